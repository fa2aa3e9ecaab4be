"""Packets are read as they are, and broken ones are no arrival; the rest is shown with the lab."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from penstock.demo.recorder import parse_packet

UDP = struct.pack("!HHHH", 1000, 53, 10, 0) + b"hi"


def v4(protocol: int, payload: bytes) -> bytes:
    head = bytearray(20)
    head[0], head[9] = 0x45, protocol
    head[12:16], head[16:20] = ip_address("192.0.2.1").packed, ip_address("192.0.2.2").packed
    return bytes(head) + payload


def v6(protocol: int, payload: bytes) -> bytes:
    addresses = ip_address("2001:db8::1").packed + ip_address("2001:db8::2").packed
    return struct.pack("!IHBB", 0x60000000, len(payload), protocol, 64) + addresses + payload


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (v4(17, UDP), ("udp", "192.0.2.1", 1000, 53, UDP)),
        (v6(17, UDP), ("udp", "2001:db8::1", 1000, 53, UDP)),
        (v4(1, b"\x08"), ("icmp", "192.0.2.1", 0, 0, b"\x08")),
        (v6(58, b"\x80"), ("icmpv6", "2001:db8::1", 0, 0, b"\x80")),
        (v6(58, b"\x87"), None),  # neighbour solicitation
        (v4(132, b""), ("132", "192.0.2.1", 0, 0, b"")),
        (v4(6, b"\x00"), ("tcp", "192.0.2.1", 0, 0, b"\x00")),
        (b"", None),
        (v4(17, UDP)[:19], None),
        (v6(17, UDP)[:39], None),
    ],
)
def test_parse_packet(packet: bytes, expected: tuple[str, str, int, int, bytes] | None) -> None:
    assert parse_packet(packet) == expected
