"""Where questions come from: two datagram sockets and two listeners a workload.

Nothing of a packet stays here but, over TCP, one message that is not whole yet.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from penstock.resolver.loop import HUNG_UP, READ, WRITE, Deadlines, Loop

LONGEST_QUESTION = 4096
LONGEST_DATAGRAM, LONGEST_ANSWER = 4096, 65535
AT_ONCE = 64
"""Datagrams of one socket, or connections of one listener, before others have their turn."""

MAX_CONNECTIONS, MAX_OF_ALL = 64, 1024
"""TCP connections of a workload, and of all."""

MAX_WAITING = 64
"""Questions of one connection that have no answer yet; further ones are read later."""

MAX_UNREAD = 128 << 10
"""Bytes that a client has not taken; until it has, nothing more is read of it, and another answer ends it."""

IDLE = 5.0
"""Seconds without a whole question, or with an answer that is not taken, until a connection is closed."""

MAX_SPARED = 2
"""So many times longer while an answer of ours is missing."""

PAUSE = 0.1
"""Seconds without connections when there is no room for one."""

RECEIVE = 128
"""Bytes of one connection before others have their turn: two usual questions, or six of the shortest."""


class Way(Protocol):
    """Back to whoever asked."""

    protocol: str

    def reply(self, address: Any, data: bytes) -> None:
        """Send it.  That the client is gone is no error."""


class Caller(NamedTuple):
    """Who waits for an answer."""

    way: Way
    address: Any  # as the socket module has it
    longest: int  # bytes of an answer, if the client takes that much

    def room(self, size: int) -> int:
        """Bytes that an answer to him may have; `size`: what he says that he takes over UDP."""
        return self.longest if self.way.protocol == "tcp" else min(self.longest, size)


Take = Callable[[Caller, bytes], bool]
"""Gets each message, before anything is known about it.  False: it will get no answer."""


class Datagrams:
    """A UDP socket.  It is bound to one address, so answers leave from the address that was asked."""

    protocol = "udp"

    def __init__(self, loop: Loop, sock: socket.socket, take: Take) -> None:
        self._loop = loop
        self._sock = sock
        self._take = take
        sock.setblocking(False)
        loop.add(sock.fileno(), READ, self._ready)

    def _ready(self, events: int) -> None:
        receive = self._sock.recvfrom
        for _ in range(AT_ONCE):
            try:
                data, address = receive(LONGEST_QUESTION + 1)
            except OSError:  # nothing more, or nothing that concerns us
                return
            if len(data) <= LONGEST_QUESTION:
                self._take(Caller(self, address, LONGEST_DATAGRAM), data)

    def reply(self, address: Any, data: bytes) -> None:
        """Send it, or not: nobody waits for a client who does not take it."""
        try:
            self._sock.sendto(data, address)
        except OSError:
            return

    def close(self) -> None:
        """Take nothing any more; the daemon keeps its own copy open."""
        self._loop.remove(self._sock.fileno())
        self._sock.close()


class Connections:
    """What all TCP connections share.  `full` is told (workload, text) when a bound is hit."""

    def __init__(self, loop: Loop, full: Callable[[str, str], object]) -> None:
        self.loop = loop
        self.full = full
        self.open = 0
        self.idle: Deadlines[Connection] = loop.deadlines(IDLE, lambda connection: connection.idled())
        self.pauses: Deadlines[Listener] = loop.deadlines(PAUSE, lambda listener: listener.resume())


class Listener:
    """A TCP listener of a workload; `held` are the connections of all its listeners."""

    def __init__(
        self, group: Connections, workload: str, sock: socket.socket, held: set[Connection], take: Take
    ) -> None:
        self._group = group
        self._workload = workload
        self._sock = sock
        self._held = held
        self._take = take
        sock.setblocking(False)
        group.loop.add(sock.fileno(), READ, self._ready)

    def _ready(self, events: int) -> None:
        for _ in range(AT_ONCE):
            if len(self._held) >= MAX_CONNECTIONS or self._group.open >= MAX_OF_ALL:
                self._pause("as many connections as there may be")
                return
            try:
                sock, address = self._sock.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue
            except OSError as e:
                self._pause(f"no connection can be taken: {e.strerror}")
                return
            self._group.open += 1
            self._held.add(Connection(self._group, sock, address, self._take, self._closed))

    def _pause(self, why: str) -> None:
        """It would be called again at once, and could do nothing."""
        self._group.full(self._workload, why)
        self._group.loop.change(self._sock.fileno(), 0)
        self._group.pauses.add(self, self._group.loop.now)

    def resume(self) -> None:
        """Take connections again."""
        self._group.loop.change(self._sock.fileno(), READ)

    def _closed(self, connection: Connection) -> None:
        self._held.discard(connection)
        self._group.open -= 1

    def close(self) -> None:
        """Take nothing any more; the daemon keeps its own copy open."""
        self._group.pauses.discard(self)
        self._group.loop.remove(self._sock.fileno())
        self._sock.close()


_RESET = struct.pack("ii", 1, 0)


def _unsent(sock: socket.socket) -> bool:
    """Whether the client has not acknowledged all yet (tcp(7), SIOCOUTQ)."""
    return bool(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0])


class Connection:
    """A TCP connection: questions one after the other, answers as they come (RFC 7766).

    It ends with a reset: the last word of a client has no socket any more, so no cgroup, and does not get here;
    and whoever meets a port of ours in TIME_WAIT is asked nothing.  What the client has got already he can read.
    """

    protocol = "tcp"

    def __init__(
        self,
        group: Connections,
        sock: socket.socket,
        address: Any,
        take: Take,
        closed: Callable[[Connection], object],
    ) -> None:
        self._group = group
        self._sock = sock
        self._caller = Caller(self, address, LONGEST_ANSWER)
        self._take = take
        self._closed = closed
        self._in = bytearray()
        self._out = bytearray()
        self._waiting = 0  # questions without an answer
        self._spared = 0  # so many times since something happened
        self._ended = False  # the client asks no more
        self._busy = False
        self._events = READ
        sock.setblocking(False)
        group.loop.add(sock.fileno(), READ, self._ready)
        group.idle.add(self, group.loop.now)

    def _ready(self, events: int) -> None:
        if events & HUNG_UP:
            self.close()
            return
        if events & READ:
            try:
                data = self._sock.recv(RECEIVE)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            self._in += data
            self._ended = not data
        self._go_on()

    def _go_on(self) -> None:
        """Take what is there, send what can be sent, and wait for what can happen next."""
        self._busy = True
        try:
            while self._questions() | self._send():
                pass
        except BaseException:
            self.close()
            raise
        self._busy = False
        if self._sock.fileno() < 0:
            return
        if self._ended and not self._waiting and not self._out:
            self.close()
            return
        events = (WRITE if self._out else 0) | (0 if self._ended or self._full() else READ)
        if events != self._events:
            self._events = events
            self._group.loop.change(self._sock.fileno(), events)

    def _full(self) -> bool:
        return self._waiting >= MAX_WAITING or len(self._out) > MAX_UNREAD

    def _questions(self) -> bool:
        """Take those that are whole, as long as there is room for answers.  Whether there were any."""
        start, held = 0, self._in
        while not self._full() and len(held) - start >= 2:
            size = int.from_bytes(held[start : start + 2])
            end = start + 2 + size
            if size <= LONGEST_QUESTION and len(held) < end:
                break
            self._waiting += 1
            if size > LONGEST_QUESTION or not self._take(self._caller, bytes(held[start + 2 : end])):
                self.close()
                return False
            start = end
        del held[:start]
        if start:
            self._active()
        return start > 0

    def _send(self) -> bool:
        """As much as the socket takes.  Whether that was something."""
        if not self._out:
            return False
        try:
            sent = self._sock.send(self._out)
        except BlockingIOError:
            return False
        except OSError:
            self.close()
            return False
        del self._out[:sent]
        self._active()
        return sent > 0

    def _active(self) -> None:
        self._spared = 0
        self._group.idle.add(self, self._group.loop.now)

    def reply(self, address: Any, data: bytes) -> None:
        """An answer to one of its questions."""
        if self._sock.fileno() < 0:
            return
        if len(self._out) > MAX_UNREAD:  # before this one: all that it waits for could be the longest there is
            self.close()
            return
        self._waiting -= 1
        self._out += len(data).to_bytes(2) + data
        if not self._busy:
            self._go_on()

    def idled(self) -> None:
        """Nothing happened for a while.  Answers that are still to come are worth waiting for, for a time."""
        if self._waiting and not self._out and self._spared < MAX_SPARED:
            self._spared += 1
            self._group.idle.add(self, self._group.loop.now)
        else:
            self.close()

    def close(self) -> None:
        """At once; what is still to be answered is not."""
        if self._sock.fileno() >= 0:
            self._group.idle.discard(self)
            self._group.loop.remove(self._sock.fileno())
            if not _unsent(self._sock):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._sock.close()
            self._in.clear()
            self._out.clear()
            self._closed(self)


class Listeners:
    """The four sockets of a workload, as they came from the daemon: UDP and TCP of 127.0.0.1, then of ::1."""

    def __init__(self, group: Connections, workload: str, descriptors: Sequence[int], take: Take) -> None:
        self._held: set[Connection] = set()
        self._parts: list[Datagrams | Listener] = []
        for descriptor in descriptors:
            sock = socket.socket(fileno=descriptor)
            if sock.type == socket.SOCK_DGRAM:
                self._parts.append(Datagrams(group.loop, sock, take))
            else:
                self._parts.append(Listener(group, workload, sock, self._held, take))

    def close(self) -> None:
        """Serve them no more, and end their connections: whose they are is no longer known."""
        for part in self._parts:
            part.close()
        for connection in list(self._held):
            connection.close()
