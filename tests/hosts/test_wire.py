"""The recorder's reading of packets, and that it says so when it lost some."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hosts.wire import SYN, Wire, parse

V4 = ("192.0.2.1", "192.0.2.2")
V6 = ("2001:db8::1", "2001:db8::2")


def ipv4(protocol: int, payload: bytes, fragment: int = 0) -> bytes:
    ends = socket.inet_aton(V4[0]) + socket.inet_aton(V4[1])
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, fragment, 64, protocol, 0) + ends + payload


def ipv6(protocol: int, payload: bytes) -> bytes:
    ends = b"".join(socket.inet_pton(socket.AF_INET6, a) for a in V6)
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + ends + payload


TCP = struct.pack("!HHIIBBHHH", 4000, 443, 0, 0, 5 << 4, SYN, 0, 0, 0)
UDP = struct.pack("!HHHH", 4000, 53, 8, 0)
NO_OPTIONS = bytes(6)


@pytest.mark.parametrize(
    ("packet", "protocol", "port", "flags"),
    [
        (ipv4(6, TCP), "tcp", 443, SYN),
        (ipv4(17, UDP), "udp", 53, 0),
        (ipv4(1, b"\x08" + bytes(7)), "icmp", 0, 0),
        (ipv4(132, bytes(12)), "132", 0, 0),
        (ipv4(17, UDP, fragment=185), "udp", 0, 0),
        (ipv6(6, TCP), "tcp", 443, SYN),
        (ipv6(17, UDP), "udp", 53, 0),
        (ipv6(58, b"\x80" + bytes(7)), "icmpv6", 0, 0),
        (ipv6(0, bytes([60, 0]) + NO_OPTIONS + bytes([17, 0]) + NO_OPTIONS + UDP), "udp", 53, 0),
        (ipv6(44, struct.pack("!BBHI", 17, 0, 0, 1) + UDP), "udp", 53, 0),
        (ipv6(44, struct.pack("!BBHI", 17, 0, 8, 1) + UDP), "udp", 0, 0),
        (ipv6(59, b""), "59", 0, 0),
    ],
)
def test_packets_of_every_kind_are_told_apart(packet: bytes, protocol: str, port: int, flags: int) -> None:
    ends = V4 if packet[0] >> 4 == 4 else V6
    source_port = 4000 if port else 0
    assert parse(packet) == (protocol, ends[0], source_port, ends[1], port, flags, len(packet))


@pytest.mark.parametrize("packet", [b"", b"\x45" + bytes(5), ipv6(58, b"\x87" + bytes(20))])
def test_what_is_no_packet_of_a_program_is_left_out(packet: bytes) -> None:
    assert parse(packet) is None


def at_once(host: str, function: Callable[[], Any]) -> bool:
    return False


def test_a_loss_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "wire"
    argv = [sys.executable, "-c", "print('ready')"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as ready:
        packet = [1.0, "h", "tcp", V4[0], 4000, V4[1], 443, SYN, 40]
        file.write_text(json.dumps(packet) + "\n")
        wire = Wire(file, ready, running=lambda: ["h"], in_network=at_once)
    wire._read()
    assert [p.opens for p in wire.seen("h", to=V4[1], port=443)] == [True]
    assert wire.seen("h", since=wire.mark()) == []
    with file.open("a") as more:
        more.write(json.dumps(["lost", 3]) + "\n")
    with pytest.raises(AssertionError, match="lost 3"):
        wire._read()
    wire.close()
