"""What beats on a host: a service that tries to get out every millisecond, and strangers that try to get in.

A program of the standard library alone: it runs as a service in hosts that have nothing else, and as a stranger
beside them.  It keeps a file with what it has done so far, written anew every fraction of a second, which a crash
of the host does not take away.

    python3 hammer.py serve FILE '{"open": 8080, "closed": 9090, "often": [SHOT...], "seldom": [SHOT...]}'
    python3 hammer.py knock FILE '{"often": [SHOT...], "seldom": [SHOT...]}'

A SHOT is [protocol, address, port].
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections import Counter, deque
from typing import Any

PERIOD = 0.001
SELDOM = 8
"""Of so many rounds one has the shots that are allowed: each costs the far end a connection."""
PATIENCE = 0.05
"""Seconds that a connection has to come about; it is closed then, so that thousands a second can be made."""
TELL = 0.05

Shot = tuple[str, str, int]


class Beat:
    """One round a millisecond, and what came of all of them."""

    def __init__(self, file: str, often: list[Shot], seldom: list[Shot]) -> None:
        self._file, self._often, self._seldom = file, often, seldom
        self._waiting: deque[tuple[float, str, socket.socket]] = deque()
        self.counts: Counter[str] = Counter()
        self.first = self._told = time.monotonic()

    def round(self) -> None:
        """All that is due now."""
        self.counts["rounds"] += 1
        for shot in self._often:
            self._shoot(shot)
        if self.counts["rounds"] % SELDOM == 0:
            for shot in self._seldom:
                self._shoot(shot)
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] < now:
            self._close(*self._waiting.popleft()[1:])
        if now > self._told + TELL:
            self.tell()

    def tell(self) -> None:
        """Write down what was done so far."""
        self._told = time.monotonic()
        with open(self._file + ".new", "w") as file:
            json.dump({"first": self.first, "last": self._told, **self.counts}, file)
        os.replace(self._file + ".new", self._file)

    def _shoot(self, shot: Shot) -> None:
        protocol, address, port = shot
        key = f"{protocol}{6 if ':' in address else 4} {port}"
        self.counts[f"tried {key}"] += 1
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        try:
            if protocol == "udp":
                sock.sendto(b"hammer", (address, port))
            else:
                sock.connect((address, port))
        except BlockingIOError:
            self._waiting.append((time.monotonic() + PATIENCE, key, sock))
            return
        except OSError:
            sock.close()
            return
        self._waiting.append((time.monotonic() + PATIENCE, key, sock))

    def _close(self, key: str, sock: socket.socket) -> None:
        """Note whether it was answered: a connection that stands, a datagram that came back."""
        with contextlib.suppress(OSError):
            if key.startswith("udp"):
                sock.recv(100)
            else:
                sock.getpeername()
            self.counts[f"answered {key}"] += 1
        sock.close()


class Doors:
    """Listens on both ports, TCP and UDP, both families; counts who got in, and echoes."""

    def __init__(self, ports: list[int], counts: Counter[str]) -> None:
        self._counts = counts
        self._tcp, self._udp = [], []
        for port in ports:
            listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
            self._tcp.append((port, listener))
            for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                sock = socket.socket(family, socket.SOCK_DGRAM)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((address, port))
                self._udp.append((port, sock))
        for _, sock in (*self._tcp, *self._udp):
            sock.setblocking(False)

    def look(self) -> None:
        """Let in whoever waits."""
        for port, sock in self._tcp:
            with contextlib.suppress(OSError):
                while True:
                    sock.accept()[0].close()
                    self._counts[f"accepted {port}"] += 1
        for port, sock in self._udp:
            with contextlib.suppress(OSError):
                while True:
                    data, peer = sock.recvfrom(100)
                    self._counts[f"received {port}"] += 1
                    sock.sendto(data, peer)


def main() -> None:
    """See the module."""
    what, file, said = sys.argv[1:4]
    wanted: dict[str, Any] = json.loads(said)
    beat = Beat(file, [tuple(shot) for shot in wanted["often"]], [tuple(shot) for shot in wanted["seldom"]])
    doors = Doors([wanted["open"], wanted["closed"]], beat.counts) if what == "serve" else None
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    due = time.monotonic()
    while not ended:
        beat.round()
        if doors:
            doors.look()
        due = max(due + PERIOD, time.monotonic() - 0.1)  # what was missed is made up for, but not for ever
        time.sleep(max(0.0, due - time.monotonic()))
    beat.tell()


if __name__ == "__main__":
    main()
