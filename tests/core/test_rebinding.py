"""Addresses that answers must not open, and what `private` and `except` change about it."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core import rebinding
from penstock.core.policy import LINK_LOCAL, METADATA
from penstock.core.rebinding import Prefixes, admits, carried, kind, kind_of

Address = IPv4Address | IPv6Address
Cidr = IPv4Network | IPv6Network


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


# --- packed and searched, against the plainest thing that could be right ---

LISTED: tuple[tuple[Cidr, str | None], ...] = (
    *((ip_network(address), "metadata") for address in METADATA),
    *((network, "link-local") for network in LINK_LOCAL),
    *((ip_network(text), what or None) for text, what in rebinding._KINDS),
)
WORST = ("metadata", "link-local", "this-network", "multicast", "reserved", "loopback", "private")


def plain_carried(address: Address) -> Iterator[IPv4Address]:
    if isinstance(address, IPv4Address):
        return
    if address in ip_network("64:ff9b::/96"):
        yield IPv4Address(address.packed[12:])
    if address in ip_network("64:ff9b:1::/48"):
        yield IPv4Address(address.packed[12:])
        joined = address.packed[:8] + address.packed[9:]
        for prefix in (6, 7, 8) if not address.packed[8] else ():
            inner, behind = joined[prefix : prefix + 4], joined[prefix + 4 :]
            if any(inner) and not any(behind):
                yield IPv4Address(inner)
    yield from (one for one in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())) if one)


def plain_kind(address: Address) -> str | None:
    every = (address, *plain_carried(address))
    found = {next((what for network, what in LISTED if one in network), None) for one in every}
    return next((what for what in WORST if what in found), None)


def edges(version: int) -> list[Address]:
    """First and last of each network, and what is beside them."""
    numbers = {0}
    for network, _ in LISTED:
        if network.version == version:
            first, last = int(network.network_address), int(network.broadcast_address)
            numbers |= {first - 1, first, first + 1, last - 1, last, last + 1}
    of, bits = (IPv4Address, 32) if version == 4 else (IPv6Address, 128)
    return [of(number) for number in sorted(numbers) if 0 <= number < 1 << bits]


fours = st.one_of(st.sampled_from(edges(4)), st.ip_addresses(v=4)).map(int)


def carrier(shape: str, inner: int, other: int) -> IPv6Address:
    match shape:
        case "mapped":
            return IPv6Address(0xFFFF << 32 | inner)
        case "nat64":
            return IPv6Address(0x64FF9B << 96 | inner)
        case "6to4":
            return IPv6Address(0x2002 << 112 | inner << 80 | other)
        case "teredo":
            return IPv6Address(0x20010000 << 96 | inner << 64 | other)
        case "local":
            return IPv6Address(0x64FF9B0001 << 80 | other << 32 | inner)
    behind = 120 - int(shape) - 32
    joined = 0x64FF9B0001 << 72 | inner << behind  # without the bits 64 to 71
    return IPv6Address(joined >> 56 << 64 | joined & (1 << 56) - 1)


SHAPES = ("mapped", "nat64", "6to4", "teredo", "local", "48", "56", "64")
addresses = st.one_of(
    st.sampled_from([*edges(4), *edges(6)]),
    st.ip_addresses(),
    st.builds(carrier, st.sampled_from(SHAPES), fours, fours),
)


@given(addresses)
@settings(max_examples=1000)
def test_the_kind_of_a_packed_address(address: Address) -> None:
    assert kind_of(address.packed) == kind(address) == plain_kind(address)
    assert set(carried(address)) == set(plain_carried(address))


def test_the_kind_at_each_edge() -> None:
    for address in (*edges(4), *edges(6)):
        assert kind(address) == plain_kind(address), address


def around(address: Address, length: int) -> Cidr:
    return ip_network((address, min(length, address.max_prefixlen)), strict=False)


@given(st.lists(st.tuples(addresses, st.integers(0, 128)), max_size=6), st.data())
@settings(max_examples=300)
def test_prefixes_hold_what_is_in_one_of_them(near: list[tuple[Address, int]], data: st.DataObject) -> None:
    cidrs = [around(*pair) for pair in near]
    ends = [end for cidr in cidrs for end in (cidr.network_address, cidr.broadcast_address)]
    address = data.draw(st.one_of(addresses, st.sampled_from(ends)) if ends else addresses)
    expected = any(one in cidr for cidr in cidrs for one in (address, *plain_carried(address)))
    assert Prefixes(iter(cidrs)).hold(address.packed) is expected
    assert admits(address, True, cidrs) is (not expected and plain_kind(address) in (None, "private", "loopback"))
