"""How soon who is refused knows it: python -m tests.bench.refusal [--count N] [--json]

Milliseconds from the call to its error: of a workload that calls a stranger, or a bystander's listener over
loopback, and of a stranger who calls a workload.
"""

from __future__ import annotations

import argparse
import errno
import json
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from attacks import ops
from governed import Actor, Governed, rules
from penstock.demo.lab import Lab

OPEN, CLOSED = 8000, 8001
UNLIMITED = {
    "/proc/sys/net/ipv4/icmp_ratelimit": "0",
    "/proc/sys/net/ipv4/icmp_msgs_per_sec": "1000000",
    "/proc/sys/net/ipv4/icmp_msgs_burst": "1000000",
    "/proc/sys/net/ipv6/icmp/ratelimit": "0",
}
"""Without it the kernel sends one ICMP error a second to each remote host: that would be what is measured."""


@dataclass(frozen=True, slots=True)
class Refusals:
    """Milliseconds, and how often each error came."""

    what: str
    protocol: str
    family: int
    median: float
    p99: float
    worst: float
    errors: dict[str, int]


def connects(address: str, port: int, count: int) -> list[tuple[float, str]]:
    """Milliseconds until connect(2) says no, and its errno."""
    found = []
    for _ in range(count):
        with socket.socket(ops.family_of(address), socket.SOCK_STREAM) as sock:
            sock.settimeout(3)
            start = time.perf_counter()
            try:
                sock.connect((address, port))
                outcome = "connected"
            except OSError as error:
                outcome = ops.name_of(error)
            found.append(((time.perf_counter() - start) * 1000, outcome))
    return found


def datagrams(address: str, port: int, count: int) -> list[tuple[float, str]]:
    """Milliseconds until send(2), or the recv(2) after it, says no."""
    found = []
    for _ in range(count):
        with socket.socket(ops.family_of(address), socket.SOCK_DGRAM) as sock:
            sock.settimeout(3)
            sock.connect((address, port))
            start = time.perf_counter()
            try:
                sock.send(b"x")
                sock.recv(10)
                outcome = "answered"
            except OSError as error:
                outcome = ops.name_of(error)
            found.append(((time.perf_counter() - start) * 1000, outcome))
    return found


def measure(count: int) -> Iterator[Refusals]:
    """All of them, one after the other."""
    with Lab() as lab, closing(Governed(lab)) as governed:
        peers = [f"'{a}'" for a in lab.remote["registry"].addresses]
        governed.load(rules("w", f"[{{to: [{', '.join(peers)}], ports: [80]}}]"))
        stranger = lab.remote["stranger"]
        with governed.actor("w") as workload, governed.actor() as bystander, Actor(stranger) as remote:
            governed.agent(_write, UNLIMITED)
            for family in (4, 6):
                here, loopback = lab.host.address(family), {4: "127.0.0.1", 6: "::1"}[family]
                workload(ops.listen, here, OPEN)
                workload(ops.udp, here, OPEN)
                bystander(ops.listen, loopback, CLOSED)
                bystander(ops.udp, loopback, CLOSED)
                for what, actor, address, port in (
                    ("workload to a stranger", workload, stranger.address(family), 80),
                    ("workload to a bystander, loopback", workload, loopback, CLOSED),
                    ("stranger to a workload", remote, here, OPEN),
                ):
                    for protocol, function in (("tcp", connects), ("udp", datagrams)):
                        actor(function, address, port, 5)
                        yield _summary(what, protocol, family, actor(function, address, port, count))


def _write(values: dict[str, str]) -> None:
    for path, value in values.items():
        Path(path).write_text(value)


def _summary(what: str, protocol: str, family: int, found: list[tuple[float, str]]) -> Refusals:
    times = sorted(taken for taken, _ in found)
    errors = Counter(outcome for _, outcome in found)
    assert all(hasattr(errno, name) or name == "timeout" for name in errors), errors
    p99 = times[min(len(times) - 1, len(times) * 99 // 100)]
    return Refusals(what, protocol, family, statistics.median(times), p99, times[-1], dict(errors))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="refusal", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = list(measure(options.count))
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return 0
    print(f"{'milliseconds':42} {'median':>8} {'p99':>8} {'worst':>8}")
    for row in rows:
        errors = ", ".join(f"{name} {number}" for name, number in row.errors.items())
        name = f"{row.what}, {row.protocol} v{row.family}"
        print(f"{name:42} {row.median:8.3f} {row.p99:8.3f} {row.worst:8.3f}  {errors}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
