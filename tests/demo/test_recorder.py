"""Packets are read as they are, and broken ones are no arrival; the rest is shown with the lab."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
from collections.abc import Iterator
from dataclasses import asdict
from ipaddress import ip_address

import pytest

from penstock.demo.lab import Lab
from penstock.demo.recorder import AT_ONCE, Arrival, Recorder, on_each_processor, parse_packet

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


@pytest.fixture
def recorder(lab: Lab) -> Iterator[Recorder]:
    made = Recorder(lab, lab.remote["stranger"], udp_ports=(80,), packets=True)
    yield made
    made.stop()


@pytest.mark.root
def test_a_line_that_is_half_written_is_read_when_it_is_whole(recorder: Recorder) -> None:
    """And once."""
    arrival = Arrival("data", "tcp", 4, "192.0.2.10", 5000, 443, "hello", 1.0)
    line = json.dumps(asdict(arrival)) + "\n"
    for part in (line + line[:20], line[20:] + line[:-1]):
        with recorder.file.open("a") as file:
            file.write(part)
        recorder.wait_for("data", timeout=0)
    assert recorder.wait_for("data", timeout=0) == [arrival] * 2


@pytest.mark.root
@pytest.mark.parametrize("family", [4, 6])
def test_every_packet_that_left_before_is_there(family: int, lab: Lab, recorder: Recorder) -> None:
    """Also of more at a time than are read before sockets are served: what is asked next is behind them."""
    target, count = lab.remote["stranger"].address(family), AT_ONCE + 100
    for so_far in range(count, 4 * count, count):
        lab.host.call(send_many, target, count)
        assert sum(packet.protocol == "udp" for packet in recorder.arrivals("packet")) == so_far


@pytest.mark.root
def test_what_came_too_fast_is_told(lab: Lab, recorder: Recorder) -> None:
    """A witness that lost packets does not say that there were none."""
    os.kill(recorder._process.pid, signal.SIGSTOP)
    lab.host.call(send_many, lab.remote["stranger"].v4, 20_000)
    os.kill(recorder._process.pid, signal.SIGCONT)
    found = recorder.arrivals("packet")
    lost = [int(packet.data) for packet in found if packet.protocol == "lost"]
    assert lost
    assert 20_000 <= sum(lost) + len(found) - len(lost) <= 20_010, "with the datagrams that are waited for"


def test_on_each_processor() -> None:
    """Once on each, and then wherever it may be as before, also after a failure."""
    ours, seen = os.sched_getaffinity(0), list[set[int]]()
    assert on_each_processor(lambda: seen.append(os.sched_getaffinity(0))) == len(ours)
    assert seen == [{one} for one in ours]
    with pytest.raises(ZeroDivisionError):
        on_each_processor(lambda: 1 / 0)
    assert os.sched_getaffinity(0) == ours


def send_many(address: str, count: int) -> None:
    """Datagrams from one socket, as fast as they go."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            sender.sendto(b"datagram", (address, 80))
