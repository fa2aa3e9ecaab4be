"""Addresses that answers must not open, and what `private` and `except` change about it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.policy import METADATA
from penstock.core.rebinding import admits, kind


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("8.8.8.8", None),
        ("192.0.2.1", None),
        ("198.51.100.1", None),
        ("203.0.113.1", None),
        ("9.255.255.255", None),
        ("11.0.0.0", None),
        ("100.63.255.255", None),
        ("100.128.0.0", None),
        ("172.15.255.255", None),
        ("172.32.0.0", None),
        ("192.0.1.0", None),
        ("198.17.255.255", None),
        ("198.20.0.0", None),
        ("223.255.255.255", None),
        ("0.0.0.0", "this-network"),
        ("0.255.255.255", "this-network"),
        ("10.0.0.0", "private"),
        ("10.255.255.255", "private"),
        ("100.64.0.0", "private"),
        ("100.127.255.255", "private"),
        ("100.100.100.200", "metadata"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.255", "loopback"),
        ("168.63.129.16", "metadata"),
        ("169.254.0.1", "link-local"),
        ("169.254.169.254", "metadata"),
        ("172.16.0.0", "private"),
        ("172.31.255.255", "private"),
        ("192.0.0.1", "reserved"),
        ("192.0.0.192", "metadata"),
        ("192.168.1.1", "private"),
        ("198.18.0.0", "private"),
        ("198.19.255.255", "private"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("2001:db8::1", None),
        ("2606:4700::1111", None),
        ("2a00:1450::1", None),
        ("3fff::1", None),
        ("::", "this-network"),
        ("::1", "loopback"),
        ("::2", "reserved"),
        ("::8.8.8.8", "reserved"),
        ("100::1", "reserved"),
        ("2001:2::1", "private"),
        ("2001:20::1", "reserved"),
        ("4000::1", "reserved"),
        ("5f00::1", "reserved"),
        ("fc00::1", "private"),
        ("fd12::1", "private"),
        ("fd00:ec2::254", "metadata"),
        ("fe80::1", "link-local"),
        ("febf::1", "link-local"),
        ("fec0::1", "private"),
        ("ff02::1", "multicast"),
    ],
)
def test_kinds(text: str, what: str | None) -> None:
    assert kind(ip_address(text)) == what


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("::ffff:8.8.8.8", "reserved"),
        ("::ffff:10.0.0.1", "reserved"),
        ("::ffff:169.254.169.254", "metadata"),
        ("64:ff9b::8.8.8.8", None),
        ("64:ff9b::192.0.2.1", None),
        ("64:ff9b::10.0.0.1", "private"),
        ("64:ff9b::127.0.0.1", "loopback"),
        ("64:ff9b::169.254.169.254", "metadata"),
        ("64:ff9b::1:0:0", "reserved"),
        ("64:ff9b:1::8.8.8.8", None),
        ("64:ff9b:1:2:3::8.8.8.8", None),
        ("64:ff9b:1:2:300::10.0.0.1", "private"),
        ("64:ff9b:1:0:0:1:10.0.0.1", "private"),
        ("64:ff9b:1::169.254.169.254", "metadata"),
        ("64:ff9b:1:a9fe:a9:fe00::", "metadata"),  # behind a prefix of 48 bits
        ("64:ff9b:1:a9:fe:a9fe::", "metadata"),  # 56
        ("64:ff9b:1:0:a9:fea9:fe00:0", "metadata"),  # 64
        ("64:ff9b:2::8.8.8.8", "reserved"),
        ("2002:c000:201::1", None),
        ("2002:a00:1::1", "private"),
        ("2002:a9fe:a9fe::", "metadata"),
        ("2001:0:c000:201::3fff:fdfe", None),  # 192.0.2.1 at both ends
        ("2001:0:c000:201::f5ff:fffe", "private"),  # 10.0.0.1, inverted
        ("2001:0:a00:1::3fff:fdfe", "private"),  # at the server's end
    ],
)
def test_addresses_in_addresses(text: str, what: str | None) -> None:
    assert kind(ip_address(text)) == what


@pytest.mark.parametrize("address", METADATA)
@pytest.mark.parametrize("private", [False, True])
def test_metadata_is_never_opened(address: IPv4Address | IPv6Address, private: bool) -> None:
    assert not admits(address, private)


@pytest.mark.parametrize(
    ("text", "default", "private"),
    [
        ("192.0.2.1", True, True),
        ("10.0.0.1", False, True),
        ("127.0.0.1", False, True),
        ("::1", False, True),
        ("fd12::1", False, True),
        ("64:ff9b::10.0.0.1", False, True),
        ("0.0.0.0", False, False),
        ("169.254.1.1", False, False),
        ("224.0.0.1", False, False),
        ("240.0.0.1", False, False),
        ("::ffff:10.0.0.1", False, False),
        ("fe80::1", False, False),
        ("ff02::1", False, False),
    ],
)
def test_private(text: str, default: bool, private: bool) -> None:
    assert (admits(ip_address(text), False), admits(ip_address(text), True)) == (default, private)


@pytest.mark.parametrize("text", ["192.0.2.77", "64:ff9b::192.0.2.77", "2002:c000:24d::1"])
def test_exceptions(text: str) -> None:
    address = ip_address(text)
    assert admits(address, False, (ip_network("198.51.100.0/24"), ip_network("2001:db8::/32")))
    assert not admits(address, False, (ip_network("2001:db8::/32"), ip_network("192.0.2.64/26")))
    assert not admits(address, True, iter([ip_network("192.0.2.77/32")]))


def test_exceptions_of_the_other_family() -> None:
    assert admits(ip_address("192.0.2.1"), False, (ip_network("::/0"),))
    assert not admits(ip_address("2001:db8::1"), False, (ip_network("::/0"),))


@given(st.ip_addresses())
def test_what_python_calls_private_is_never_ordinary(address: IPv4Address | IPv6Address) -> None:
    documentation = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20")
    shown = any(address in ip_network(text) for text in documentation)
    if kind(address) is None:
        assert shown or not (
            address.is_private
            or address.is_loopback
            or address.is_multicast
            or address.is_unspecified
            or address.is_link_local
        )
