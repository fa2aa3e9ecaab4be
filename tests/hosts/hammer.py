"""What beats on a host: a service that tries to get out every millisecond, and strangers that try to get in.

A program of the standard library alone: it runs as a service in hosts that have nothing else, and as a stranger
beside them.  It keeps a file with what it has done so far, written anew every fraction of a second, which a crash
of the host does not take away.

    python3 hammer.py FILE '{"often": [SHOT...], "seldom": [SHOT...], "every": 8, "patience": 0.05,
                             "doors": [PORT...], "lasting": [SHOT...]}'

A SHOT is [protocol, address, port].  Those of `often` are tried in each round, those of `seldom` in each one of
`every` rounds; a connection or an answer has `patience` seconds to come about.  `doors` are ports to listen on,
`lasting` are talks that never end.  All but the first two may be missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections import Counter, deque
from typing import Any

PERIOD = 0.001
TELL = 0.05
LULL = 0.01
"""Seconds between an answer and the next request of a lasting talk."""
TALK_PATIENCE = 5.0

Shot = tuple[str, str, int]


def name_of(shot: Shot) -> str:
    """As counts have it."""
    return " ".join(map(str, shot))


class Beat:
    """One round a millisecond, and what came of all of them."""

    def __init__(self, file: str, wanted: dict[str, Any]) -> None:
        self._file = file
        self._often: list[Shot] = [tuple(shot) for shot in wanted["often"]]
        self._seldom: list[Shot] = [tuple(shot) for shot in wanted["seldom"]]
        self._every, self._patience = wanted.get("every", 8), wanted.get("patience", 0.05)
        self._waiting: deque[tuple[float, str, socket.socket]] = deque()
        self.counts: Counter[str] = Counter()
        self.talks = [Talk(tuple(shot)) for shot in wanted.get("lasting", ())]
        self.first = self._told = time.monotonic()

    def round(self) -> None:
        """All that is due now."""
        self.counts["rounds"] += 1
        for shot in self._often:
            self._shoot(shot)
        if self.counts["rounds"] % self._every == 0:
            for shot in self._seldom:
                self._shoot(shot)
        while self._waiting and self._is_over(*self._waiting[0]):
            self._waiting.popleft()[2].close()
        if time.monotonic() > self._told + TELL:
            self.tell()

    def tell(self) -> None:
        """Write down what was done so far."""
        self._told = time.monotonic()
        with open(self._file + ".new", "w") as file:
            talks = {f"{what} {talk.key}": n for talk in self.talks for what, n in talk.counts.items()}
            json.dump({"first": self.first, "last": self._told, **self.counts, **talks}, file)
        os.replace(self._file + ".new", self._file)

    def _shoot(self, shot: Shot) -> None:
        protocol, address, port = shot
        key = name_of(shot)
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
            pass
        except OSError:
            sock.close()
            self.counts[f"refused {key}"] += 1
            return
        self._waiting.append((time.monotonic() + self._patience, key, sock))

    def _is_over(self, deadline: float, key: str, sock: socket.socket) -> bool:
        """Whether it was answered (by a connection that stands, or a datagram), refused, or is too late."""
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            outcome = "refused"
        else:
            try:
                sock.recv(100) if key.startswith("udp") else sock.getpeername()
                outcome = "answered"
            except OSError:
                if time.monotonic() < deadline:
                    return False
                outcome = "unanswered"
        self.counts[f"{outcome} {key}"] += 1
        return True


class Talk:
    """Requests and answers over one socket for ever, in a thread; what is lost or broken is counted."""

    def __init__(self, shot: Shot) -> None:
        self.key = name_of(shot)
        self.counts: dict[str, float] = {"said": 0, "broken": 0, "slowest": 0.0}
        threading.Thread(target=self._go_on, args=shot, daemon=True).start()

    def _go_on(self, protocol: str, address: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        while True:
            with contextlib.suppress(OSError), socket.socket(family, kind) as sock:
                sock.settimeout(TALK_PATIENCE)
                sock.connect((address, port))
                while self._said(sock):
                    time.sleep(LULL)
            self.counts["broken"] += 1
            time.sleep(LULL)

    def _said(self, sock: socket.socket) -> bool:
        start = time.monotonic()
        said = b"%012d" % self.counts["said"]
        sock.sendall(said)
        heard = sock.recv(100)
        self.counts["slowest"] = max(self.counts["slowest"], time.monotonic() - start)
        self.counts["said"] += 1
        return heard == said


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
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    file, said = sys.argv[1:3]
    wanted: dict[str, Any] = json.loads(said)
    beat = Beat(file, wanted)
    doors = Doors(wanted.get("doors", []), beat.counts)
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    due = time.monotonic()
    while not ended:
        beat.round()
        doors.look()
        due = max(due + PERIOD, time.monotonic() - 0.1)  # what was missed is made up for, but not for ever
        time.sleep(max(0.0, due - time.monotonic()))
    beat.tell()


if __name__ == "__main__":
    main()
