"""SIGKILL at any moment of `apply`: the kernel holds the old rules or the new ones, and so does the state file."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.running import Running, hammering, timed
from penstock.core.snapshot import Snapshot
from penstock.demo.lab import Lab
from penstock.demo.recorder import Recorder
from penstock.errors import PenstockError

pytestmark = pytest.mark.root

ALLOWED, FORBIDDEN = 80, 81


def test_kill_during_apply(count: int, lab: Lab, running: Running) -> None:
    recorders = [Recorder(lab, host, packets=True) for host in lab.remote.values()]
    addresses = [address for host in lab.remote.values() for address in host.addresses]
    policies = [_policy(addresses[:2]), _policy(addresses[2:])]
    running.rules("a", policies[1])
    running.up()
    chance = random.Random(20261125)
    now, outcomes = 1, {"old": 0, "new, not saved": 0, "new": 0}
    with running.actor() as workload, hammering(workload, lab.dir / "stop", _hammer, addresses) as calls:
        tables, hashes, seconds = _both(running, policies)
        assert tables[0] != tables[1]
        for _ in range(200 // count):
            running.rules("a", policies[1 - now])
            answered = _kill_during_apply(running, chance.uniform(0, 2 * seconds))
            held, saved = tables.index(_table(running)), hashes.index(running.saved().hash)
            outcomes["old" if held == now else "new" if saved == held else "new, not saved"] += 1
            assert held != now or saved == now  # nothing is saved that never was in force
            assert not answered or held == saved != now  # what was said to be in force, is
            running.up()
            now = hashes.index(running.ask("status")["policy"]["hash"])
            assert now == saved
            assert _table(running) == tables[now]
    print(f"apply takes {seconds * 1000:.0f} ms; the kernel at {200 // count} kills: {outcomes}; {calls[0]} calls")
    assert 0 < outcomes["old"] < 200 // count, "badly timed kills"
    for recorder in recorders:
        assert {packet.port for packet in recorder.arrivals("packet")} == {ALLOWED}
        recorder.stop()


def _policy(addresses: list[str]) -> str:
    return f'[{{to: [{addresses[0]}, "{addresses[1]}"], ports: [{ALLOWED}, {ALLOWED}/udp]}}]'


def _both(running: Running, policies: list[str]) -> tuple[list[Snapshot], list[str], float]:
    """What the kernel holds under each, their hashes, and how long `apply` takes.  The last one is in force."""
    tables, hashes, seconds = [], [], 0.0
    for policy in policies:
        running.rules("a", policy)
        seconds, answer = timed(running.ask, "apply")
        tables.append(_table(running))
        hashes.append(answer["hash"])
    return tables, hashes, seconds


def _table(running: Running) -> Snapshot:
    return replace(running.snapshot(), generation=0)


def _kill_during_apply(running: Running, delay: float) -> bool:
    """Whether it said before that the files are in force."""
    running.ask_later("apply")
    time.sleep(delay)
    running.stop(signal.SIGKILL)
    with contextlib.suppress(PenstockError):
        return bool(running.asker.result()["changed"])
    return False


def _hammer(stop: Path, addresses: list[str]) -> int:
    """Call the addresses, now and then at the allowed port; how often."""
    calls = 0
    while not stop.exists():
        for port in (*([FORBIDDEN] * 50), ALLOWED):
            for address in addresses:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                with socket.socket(family, socket.SOCK_STREAM) as sock:
                    sock.setblocking(False)
                    sock.connect_ex((address, port))
                with socket.socket(family, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
                    sock.sendto(b"x", (address, port))
                calls += 2
    return calls
