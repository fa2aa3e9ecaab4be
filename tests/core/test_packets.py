"""NFLOG records: each header form, the direction rule, and hostile bytes."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.log_prefix import Kind, Refusal
from penstock.core.packets import Denied, parse_nflog
from penstock.core.policy import Direction, Mode

A4, B4 = "192.0.2.1", "198.51.100.9"
A6, B6 = "2001:db8::1", "2001:db8:1::9"
PORTS = struct.pack(">HH", 40000, 443) + bytes(16)


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def ipv4(protocol: int, rest: bytes, options: bytes = b"", offset: int = 0) -> bytes:
    head = struct.pack(
        ">BBHHHBBH", 0x45 + len(options) // 4, 0, 20 + len(options) + len(rest), 1, offset, 64, protocol, 0
    )
    return head + ip_address(A4).packed + ip_address(B4).packed + options + rest


def ipv6(following: int, rest: bytes) -> bytes:
    return (
        struct.pack(">IHBB", 6 << 28, len(rest), following, 64)
        + ip_address(A6).packed
        + ip_address(B6).packed
        + rest
    )


def record(payload: bytes, prefix: str = "ps1 out deny enforce rules w", uid: int | None = 1000) -> bytes:
    ethertype = 0x86DD if payload[:1] and payload[0] >> 4 == 6 else 0x0800
    body = attribute(1, struct.pack(">HBB", ethertype, 3, 0)) + attribute(10, prefix.encode() + b"\0")
    body += attribute(3, bytes(16))
    if uid is not None:
        body += attribute(11, struct.pack(">I", uid))
    return body + attribute(12, struct.pack(">I", 7)) + attribute(9, payload)


def test_tcp_out() -> None:
    assert parse_nflog(record(ipv4(6, PORTS))) == Denied(
        workload="w",
        direction=Direction.OUT,
        verdict=Refusal.DENY,
        mode=Mode.ENFORCE,
        kind=Kind.RULES,
        family=4,
        protocol="tcp",
        remote=ip_address(B4),
        port=443,
        local=ip_address(A4),
        local_port=40000,
        uid=1000,
    )


@pytest.mark.parametrize(
    ("prefix", "remote", "port", "local", "local_port"),
    [
        ("ps1 out deny enforce rules w", B4, 443, A4, 40000),
        ("ps1 out deny enforce source w", B4, 443, A4, 40000),
        ("ps1 out deny enforce loopback w", B4, 443, A4, 40000),
        ("ps1 out deny enforce unbound -", B4, 443, A4, 40000),
        ("ps1 in deny enforce rules w", A4, 443, B4, 443),
        ("ps1 in deny enforce unbound -", A4, 443, B4, 443),
        ("ps1 in deny enforce reply w", B4, 40000, A4, 40000),
    ],
)
def test_direction(prefix: str, remote: str, port: int, local: str, local_port: int) -> None:
    denied = parse_nflog(record(ipv4(17, PORTS), prefix, uid=None))
    assert (str(denied.remote), denied.port, str(denied.local), denied.local_port) == (
        remote,
        port,
        local,
        local_port,
    )
    assert denied.uid is None


EXTENSION = bytes([17, 1]) + bytes(14)  # destination options, 16 bytes, then UDP
FRAGMENT = {first: struct.pack(">BBHI", 17, 0, offset, 1) for first, offset in ((True, 1), (False, 8))}
AH = bytes([6, 4]) + bytes(22)


@pytest.mark.parametrize(
    ("payload", "protocol", "port"),
    [
        (ipv4(17, PORTS), "udp", 443),
        (ipv4(6, PORTS, options=bytes(8)), "tcp", 443),
        (ipv4(1, PORTS), "icmp", None),
        (ipv4(47, PORTS), "47", None),
        (ipv4(17, PORTS, offset=0x2000), "udp", 443),  # first fragment, more to come
        (ipv4(17, PORTS, offset=185), "udp", None),  # a later one
        (ipv4(6, b"\1\2\3"), "tcp", None),  # cut off
        (ipv4(6, b""), "tcp", None),
        (ipv6(6, PORTS), "tcp", 443),
        (ipv6(17, PORTS), "udp", 443),
        (ipv6(58, PORTS), "icmpv6", None),
        (ipv6(60, EXTENSION + PORTS), "udp", 443),
        (ipv6(0, bytes([60, 0]) + bytes(6) + EXTENSION + PORTS), "udp", 443),
        (ipv6(44, FRAGMENT[True] + PORTS), "udp", 443),
        (ipv6(44, FRAGMENT[False] + PORTS), "udp", None),
        (ipv6(51, AH + PORTS), "tcp", 443),
        (ipv6(60, bytes([17, 255]) + bytes(60)), "udp", None),  # ports lie behind the snap length
        (ipv6(60, b"\x11"), "60", None),
        (ipv6(59, b""), "59", None),
    ],
)
def test_headers(payload: bytes, protocol: str, port: int | None) -> None:
    denied = parse_nflog(record(payload))
    assert (denied.protocol, denied.port) == (protocol, port)
    assert denied.family == payload[0] >> 4
    assert str(denied.remote) == (B4 if denied.family == 4 else B6)


def without(kind: int) -> bytes:
    parts = {1: struct.pack(">HBB", 0x0800, 3, 0), 9: ipv4(6, PORTS), 10: b"ps1 out deny enforce rules w\0"}
    return b"".join(attribute(k, v) for k, v in parts.items() if k != kind)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        without(1),
        without(9),
        without(10),
        without(10) + attribute(10, b"ps1 out deny enforce rules w"),  # no NUL
        without(10) + attribute(10, b"ps1 out deny enforce rules \xff\0"),
        without(0) + attribute(9, ipv4(6, PORTS)),  # twice
        without(0) + attribute(11, b"\0\0"),
        without(0) + b"\x03\0\0\0",
        without(0) + b"\xff\0\0\0",
        without(0) + b"\0",
        record(b""),
        record(b"\x45" + bytes(18)),
        record(b"\x44" + bytes(30)),
        record(b"\x60" + bytes(38)),
        record(b"\x70" + bytes(60)),
        without(1)
        + attribute(1, struct.pack(">HBB", 0x86DD, 3, 0)),  # the version is not the kernel's family
    ],
)
def test_malformed(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_nflog(body)


@given(st.binary(max_size=300))
def test_any_bytes(body: bytes) -> None:
    only_value_error(body)


@given(st.binary(max_size=160), st.sampled_from([0x40, 0x45, 0x4F, 0x60]))
def test_any_payload(payload: bytes, first: int) -> None:
    only_value_error(record(bytes([first]) + payload))


@given(st.data())
def test_any_change_of_a_good_record(data: st.DataObject) -> None:
    body = bytearray(record(ipv6(0, bytes([60, 0]) + bytes(6) + EXTENSION + PORTS)))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    only_value_error(bytes(body[: data.draw(st.integers(0, len(body)))]))


def only_value_error(body: bytes) -> None:
    try:
        denied = parse_nflog(memoryview(body))
    except ValueError:
        return
    assert denied.port is None or 0 <= denied.port <= 65535
    assert denied.remote.version == denied.family


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("ps1 out deny enforce rules w", 5),
        ("ps1 in deny enforce rules w", 4),
        ("ps1 in deny enforce reply w", 5),
    ],
)
def test_the_interface_is_that_of_the_far_end(prefix: str, expected: int) -> None:
    over = attribute(4, struct.pack(">I", 4)) + attribute(5, struct.pack(">I", 5))
    assert parse_nflog(over + record(ipv4(17, PORTS), prefix)).index == expected
    assert parse_nflog(record(ipv4(17, PORTS), prefix)).index is None
    with pytest.raises(ValueError, match="four bytes"):
        parse_nflog(attribute(4, b"x") + attribute(5, b"x") + record(ipv4(17, PORTS), prefix))
