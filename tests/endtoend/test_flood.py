"""A workload that does nothing but knock: each packet is counted, few are logged, and the daemon stays well."""

from __future__ import annotations

import ctypes
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from daemon.running import MIB, Running, timed
from governed import Actor, eventually
from penstock.core.blocks import LOG_NAME

pytestmark = pytest.mark.root

PACKETS = 1_000_000
"""Which is ten seconds of 100,000."""
SENDERS = 2


@pytest.fixture
def flooders(running: Running) -> Iterator[list[Actor]]:
    actors = [running.actor() for _ in range(SENDERS)]
    yield actors
    for actor in actors:
        actor.close()


@pytest.mark.parametrize("family", [4, 6])
def test_flood(family: int, count: int, running: Running, flooders: list[Actor]) -> None:
    running.rules("a")
    running.up()
    address = running.lab.remote["stranger"].address(family)
    packets = PACKETS // count
    start = time.monotonic()
    for flooder in flooders:
        flooder.start(_flood, address, packets // SENDERS)
    slowest, answers = 0.0, 0
    while running.counter("denied_out_a") < 0.8 * packets and answers < 1000:
        slowest = max(slowest, timed(running.ask, "status")[0])
        answers += 1
    for flooder in flooders:
        flooder.result()
    seconds = time.monotonic() - start
    eventually(lambda: running.status()["denied"] == packets)
    assert running.status()["egress"] == "enforcing"
    peak = running.peak()
    assert running.stop() == 0
    log = (running.log / LOG_NAME).stat().st_size
    print(
        f"IPv{family}: {packets} denied packets in {seconds:.1f} s ({packets / seconds:,.0f}/s); "
        f"{answers} answers meanwhile, the slowest after {slowest * 1000:.0f} ms; "
        f"peak {peak / MIB:.0f} MiB; log of {log} bytes"
    )
    told = [block["count"] + block["unlogged"] for block in running.blocks()]
    assert sum(told) == running.counter("denied_out_a") == packets
    assert {block["workload"] for block in running.blocks()} == {"a"}
    assert slowest < 1
    assert peak < 100 * MIB
    assert log < 1 << 20


def test_flood_of_many_destinations(count: int, running: Running, flooders: list[Actor]) -> None:
    """Each packet to another address and port: what is remembered of them is bounded."""
    running.rules("a")
    running.up()
    packets = PACKETS // count // 4
    for number, flooder in enumerate(flooders):
        flooder.start(_scan, number, packets // SENDERS)
    for flooder in flooders:
        flooder.result()
    assert timed(running.ask, "status")[0] < 1
    peak = running.peak()
    assert running.stop() == 0
    told = [block["count"] + block["unlogged"] for block in running.blocks()]
    print(f"{packets} packets to as many ports: {len(told)} blocks, peak {peak / MIB:.0f} MiB")
    assert sum(told) == running.counter("denied_out_a") == packets
    assert peak < 100 * MIB


def test_what_is_denied_while_nobody_listens(count: int, running: Running, flooders: list[Actor]) -> None:
    """The next daemon tells it."""
    running.rules("a")
    running.up()
    running.stop()
    flooders[0](_flood, running.lab.remote["stranger"].v4, 1000 // count)
    running.up()
    eventually(lambda: running.status()["denied"] == 1000 // count)
    assert running.stop() == 0
    assert sum(block["unlogged"] for block in running.blocks()) == 1000 // count


def test_what_was_logged_just_before_the_end_is_told_once(running: Running) -> None:
    """The counters are read after the last record, so the next daemon does not find them grown."""
    running.rules("a")
    running.up()
    with running.actor() as actor:
        actor(_flood, running.lab.remote["stranger"].v4, 20)
    eventually(lambda: len(running.blocks()) > 0)
    assert running.stop() == 0
    running.up()
    eventually(lambda: running.status()["denied"] == 20)
    assert running.stop() == 0
    assert sum(block["count"] + block["unlogged"] for block in running.blocks()) == 20


# --- in actors: by the C library, as Python's own exceptions cost more than the packets ---


def _destination(address: str, port: int) -> bytes:
    if ":" in address:
        return struct.pack("=HHI", socket.AF_INET6, socket.htons(port), 0) + socket.inet_pton(
            socket.AF_INET6, address
        ) + bytes(4)
    return struct.pack("=HH", socket.AF_INET, socket.htons(port)) + socket.inet_aton(address) + bytes(8)


def _flood(address: str, packets: int) -> None:
    """The same datagram, as fast as may be.  Not connected: a refusal would come back instead of a packet."""
    sendto, to = ctypes.CDLL(None).sendto, _destination(address, 53)
    size = len(to)
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        descriptor = sock.fileno()
        for _ in range(packets):
            sendto(descriptor, b"x", 1, 0, to, size)


def _scan(number: int, packets: int) -> None:
    """Each to another port, and to another address of a network of documentation."""
    sendto = ctypes.CDLL(None).sendto
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        descriptor = sock.fileno()
        for packet in range(packets):
            to = _destination(f"203.0.113.{number * 128 + packet % 127}", 1 + packet % 65000)
            sendto(descriptor, b"x", 1, 0, to, len(to))
