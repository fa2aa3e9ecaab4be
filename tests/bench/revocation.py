"""How soon a removed rule ends what it allowed: python -m tests.bench.revocation [--runs N] [--json]

The real daemon.  A workload sends over a TCP connection and over UDP, a datagram or write each half millisecond;
the rule file loses its rule, `apply` is asked for.  Measured at the remote host: milliseconds from the return of
`apply` to the last data that arrives, negative when it was over before; and when the workload was told.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from attacks import ops
from daemon.running import Running
from governed import Actor
from penstock.demo.lab import Lab

PORT = 9000
QUIET = 0.3
"""Seconds without data after which nothing more is expected; far more than anything measured."""
PAUSE = 0.0005


@dataclass(frozen=True, slots=True)
class Run:
    """Milliseconds after the return of apply, and how long apply took."""

    protocol: str
    family: int
    last_data: float
    sender_told: float
    error: str
    apply: float


def sending(descriptor: int) -> tuple[float, str]:
    """Send until an error; when it came, and what it was."""
    with ops.borrowed(descriptor) as sock:
        sock.settimeout(2)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                sock.send(b"x")
            except OSError as error:
                return time.monotonic(), ops.name_of(error)
            time.sleep(PAUSE)
        return time.monotonic(), "none"


def receiving(descriptor: int) -> tuple[float, int]:
    """Receive until it is quiet for a while; when the last data came, and how often any came."""
    last, count = 0.0, 0
    with ops.borrowed(descriptor) as sock:
        sock.settimeout(5)
        while True:
            try:
                data = sock.recv(65536)
            except OSError:
                return last, count
            if not data:
                return last, count
            last, count = time.monotonic(), count + 1
            sock.settimeout(QUIET)


def called(address: str, port: int) -> int:
    """A UDP socket that sends there."""
    sock = socket.socket(ops.family_of(address), socket.SOCK_DGRAM)
    sock.connect((address, port))
    return sock.detach()


class Bench:
    """The daemon, the flows' ends, and one measurement after the other."""

    def __init__(self, stack: ExitStack) -> None:
        self._lab = stack.enter_context(Lab())
        self._running = stack.enter_context(Running(self._lab))
        self._remote = self._lab.remote["registry"]
        peers = ", ".join(f"'{a}'" for a in self._remote.addresses)
        self._allowed = f"[{{to: [{peers}], ports: [{PORT}, {PORT}/udp]}}]"
        self._running.rules("w", self._allowed)
        self._running.up()
        self._senders = {p: stack.enter_context(self._running.actor("w")) for p in ("tcp", "udp")}
        self._receivers = {p: stack.enter_context(Actor(self._remote)) for p in ("tcp", "udp")}

    def run(self, family: int) -> list[Run]:
        """Open both flows, remove the rule, see them end, and give the rule back."""
        sockets = self._open(family)
        for protocol, (near, far) in sockets.items():
            self._receivers[protocol].start(receiving, far)
            self._senders[protocol].start(sending, near)
        time.sleep(0.1)
        self._running.rules("w")
        start = time.monotonic()
        self._running.ask("apply")
        returned = time.monotonic()
        found = []
        for protocol in sockets:
            told, error = self._senders[protocol].result()
            last, count = self._receivers[protocol].result()
            assert count > 20, "the flow never flowed"
            after, told_after = (last - returned) * 1000, (told - returned) * 1000
            found.append(Run(protocol, family, after, told_after, error, (returned - start) * 1000))
        for protocol, (near, far) in sockets.items():
            self._senders[protocol](ops.close, near)
            self._receivers[protocol](ops.close, far)
        self._running.rules("w", self._allowed)
        self._running.ask("apply")
        return found

    def _open(self, family: int) -> dict[str, tuple[int, int]]:
        address = self._remote.address(family)
        listener = self._receivers["tcp"](ops.listen, address, PORT)
        receiver = self._receivers["udp"](ops.udp, address, PORT)
        near = self._senders["tcp"](ops.connect, address, PORT)
        assert isinstance(near, int), near
        far = self._receivers["tcp"](ops.accept, listener)
        self._receivers["tcp"](ops.close, listener)
        return {"tcp": (near, far), "udp": (self._senders["udp"](called, address, PORT), receiver)}


def show(runs: list[Run]) -> None:
    """Print medians and worst cases."""
    print(f"{'milliseconds after apply returned':36} {'median':>8} {'worst':>8}")
    for protocol in ("tcp", "udp"):
        for family in (4, 6):
            ours = [run for run in runs if (run.protocol, run.family) == (protocol, family)]
            errors = ", ".join(sorted({run.error for run in ours}))
            for what, values in (
                ("last data", [run.last_data for run in ours]),
                (f"sender told ({errors})", [run.sender_told for run in ours]),
            ):
                name = f"{protocol} v{family}, {what}"
                print(f"{name:36} {statistics.median(values):8.2f} {max(values):8.2f}")
    taken = [run.apply for run in runs]
    print(f"{'apply itself':36} {statistics.median(taken):8.2f} {max(taken):8.2f}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="revocation", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with ExitStack() as stack:
        bench = Bench(stack)
        runs = [run for number in range(options.runs) for run in bench.run((4, 6)[number % 2])]
    if options.json:
        print(json.dumps([asdict(run) for run in runs], indent=1))
    else:
        show(runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
