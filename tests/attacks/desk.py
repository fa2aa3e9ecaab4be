"""Who answers, and who asks: servers that say who they are, and look-ups that tell who answered them.

A look-up is any text here: the kernel does not read it.  Functions run in actors, as those of `ops` do.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any

from attacks import ops

PORT = 53
PATIENCE = 1.0
"""Seconds that who asks waits for an answer; what is refused is refused much sooner."""

BRIEF = 0.25
"""Seconds that who asks waits where no answer may come; one that comes does within some milliseconds."""

Option = tuple[int, int, int | bytes]
RESET: Option = (socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
"""A TCP connection ends at once, and its port is free."""


def by_way_of(to: str, via: str) -> Option:
    """Have a socket's packets to `to` go to `via` first: a source route (RFC 791, RFC 8754)."""
    if ":" in to:
        route = struct.pack("!BBBBBBH", 0, 4, 4, 1, 1, 0, 0)
        stops = socket.inet_pton(socket.AF_INET6, to) + socket.inet_pton(socket.AF_INET6, via)
        return socket.IPPROTO_IPV6, socket.IPV6_RTHDR, route + stops
    return socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([131, 7, 4, *socket.inet_aton(via), 0])


class Desk:
    """A server at some addresses, UDP and TCP; a thread answers, and writes down what was asked.

    The answer to `x` at the desk `name` is `name:x`.
    """

    def __init__(self, name: str, addresses: Sequence[str], port: int) -> None:
        self.name = name
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._seen: list[str] = []
        self._sockets: list[socket.socket] = []
        for address in addresses:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                made = socket.socket(ops.family_of(address), kind)
                if kind == socket.SOCK_STREAM:
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made.bind((address, port))
                if kind == socket.SOCK_STREAM:
                    made.listen(100)
                self._add(made, listens=kind == socket.SOCK_STREAM)
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _add(self, made: socket.socket, *, listens: bool) -> None:
        made.setblocking(False)
        self._sockets.append(made)
        self._selector.register(made, selectors.EVENT_READ, listens)

    def _run(self) -> None:
        while not self._ended:
            ready = self._selector.select(0.05)
            with self._lock:
                self._serve(ready)

    def _serve(self, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        for key, _ in ready:
            made: Any = key.fileobj
            with contextlib.suppress(OSError):  # the other one of us was faster; or it was reset
                if key.data:
                    self._add(made.accept()[0], listens=False)
                    continue
                data, peer = made.recvfrom(1 << 16)
                if data:
                    self._seen.append(data[:100].decode("latin-1"))
                    answer = f"{self.name}:".encode() + data[:100]
                    made.sendto(answer, peer) if peer else made.send(answer)
                elif made.type == socket.SOCK_STREAM:
                    self._selector.unregister(made)
                    made.close()

    def seen(self) -> list[str]:
        """What was asked since the last call, all that is there now included."""
        with self._lock:
            while ready := self._selector.select(0):
                self._serve(ready)
            found, self._seen = self._seen, []
            return found

    def close(self) -> None:
        self._ended = True
        self._thread.join()
        for made in self._sockets:
            made.close()


_desks: dict[str, Desk] = {}


def attend(name: str, addresses: Sequence[str], port: int = PORT) -> None:
    """Open a desk."""
    _desks[name] = Desk(name, addresses, port)


def seen(name: str) -> list[str]:
    """See `Desk.seen`."""
    return _desks[name].seen()


def say(name: str, text: str, address: str, port: int) -> None:
    """Send somebody who did not ask a datagram from it."""
    mine = (s for s in _desks[name]._sockets if (s.family, s.type) == (ops.family_of(address), socket.SOCK_DGRAM))
    next(mine).sendto(text.encode(), (address, port))


def leave(name: str) -> None:
    """Close it."""
    _desks.pop(name).close()


def at(address: str, port: int) -> Any:
    """As connect and sendto want it: with the interface, where the address has one."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.getaddrinfo(address, port, kind, socket.SOCK_DGRAM)[0][4]


def asker(
    kind: str,
    address: str,
    source: tuple[str, int] | None = None,
    options: Sequence[Option] = (),
    patience: float = PATIENCE,
) -> socket.socket:
    """A socket for look-ups of `address`."""
    family = ops.family_of(address)
    sock = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    sock.settimeout(patience)
    for option in options:
        sock.setsockopt(*option)
    if source:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(source)
    return sock


def ask(
    kind: str,
    address: str,
    text: str = "x",
    *,
    port: int = PORT,
    source: tuple[str, int] | None = None,
    options: Sequence[Option] = (RESET,),
    connected: bool = True,
    patience: float = PATIENCE,
) -> str:
    """The answer, with @ and from where behind it unless from `address`; or the name of the error."""
    try:
        with asker(kind, address, source, options, patience) as sock:
            if kind == "tcp" or connected:
                sock.connect(at(address, port))
            return asked(sock, text, address, port)
    except OSError as error:
        return ops.name_of(error)


def asked(sock: socket.socket, text: str, address: str, port: int = PORT) -> str:
    """Ask with a socket that stays open; raises OSError."""
    try:
        sock.send(text.encode())
    except OSError as error:
        if ops.name_of(error) != "EDESTADDRREQ":
            raise
        sock.sendto(text.encode(), at(address, port))
    answer, peer = sock.recvfrom(1 << 16)
    peer = peer or sock.getpeername()
    plain = address.partition("%")[0]
    return answer.decode("latin-1") + ("" if peer[:2] == (plain, port) else f"@{peer[0]}:{peer[1]}")


def quickly(kind: str, address: str, text: str = "x", **more: Any) -> tuple[str, float]:
    """`ask`, and how many seconds it took."""
    start = time.monotonic()
    said = ask(kind, address, text, **more)
    return said, time.monotonic() - start


def many(kind: str, address: str, count: int, *, connected: bool = True) -> list[str]:
    """The answers to `count` look-ups by one socket."""
    with asker(kind, address) as sock:
        if connected or kind == "tcp":
            sock.connect(at(address, PORT))
        return [asked(sock, f"q{number}", address) for number in range(count)]


_kept: dict[str, socket.socket] = {}


def keep(name: str, kind: str, address: str, source: tuple[str, int] | None = None, port: int = PORT) -> None:
    """Make a connected socket that stays open."""
    _kept[name] = asker(kind, address, source)
    _kept[name].connect(at(address, port))


def again(name: str, address: str, text: str, port: int = PORT, patience: float = PATIENCE) -> str:
    """Ask with it."""
    _kept[name].settimeout(patience)
    try:
        return asked(_kept[name], text, address, port)
    except OSError as error:
        return ops.name_of(error)


def option(name: str, level: int, number: int, value: int | bytes) -> None:
    """Set an option of it."""
    _kept[name].setsockopt(level, number, value)


def drop(name: str) -> None:
    """Close it."""
    _kept.pop(name).close()


def reset(descriptor: int) -> None:
    """Close a connection at once."""
    with ops.borrowed(descriptor) as sock:
        sock.setsockopt(*RESET)
    ops.close(descriptor)


def pid() -> int:
    return os.getpid()
