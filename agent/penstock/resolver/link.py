"""The resolver's end of the link to the daemon: frames out in batches, frames and descriptors in."""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from collections.abc import Callable

from penstock.core import resolver_wire as wire
from penstock.core.resolver_wire import FromResolver, ToResolver
from penstock.errors import PenstockError
from penstock.resolver.loop import READ, WRITE, Loop

RECEIVE = 256 << 10
EACH = 4
"""Descriptors that come with one Listen."""

CONGESTED = 1 << 20
"""Bytes that the daemon has not read yet; from then on no look-up waits for it."""

_ANCILLARY = socket.CMSG_SPACE(EACH * array.array("i").itemsize)


class Link:
    """`take` gets each message, with the descriptors that came with it; `ended` is called when the daemon ends."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        take: Callable[[ToResolver, list[int]], object],
        ended: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._take = take
        self._ended = ended
        self._over = False
        self._frames = wire.Frames(wire.MAX_TO_RESOLVER)
        self._descriptors: deque[list[int]] = deque()  # those of one Listen after the other
        self._out: list[bytes] = []
        self._rest = bytearray()
        self._waits = False  # until it can be written to again
        sock.setblocking(False)
        loop.add(sock.fileno(), READ, self._ready)
        loop.each_round(self.flush)

    @property
    def congested(self) -> bool:
        """The daemon does not keep up."""
        return len(self._rest) > CONGESTED

    def say(self, message: FromResolver) -> None:
        """At the end of this round, with all else that is said in it."""
        self._out.append(wire.encode(message))

    def flush(self) -> None:
        """One write for all."""
        if self._out:
            if not self._over:
                self._rest += b"".join(self._out)
            self._out.clear()
            if self._rest and not self._waits:
                self._write()

    def _end(self) -> None:
        """Nobody hears us any more."""
        self._over = True
        self._rest.clear()
        self._loop.remove(self._sock.fileno())
        self._ended()

    def _write(self) -> None:
        try:
            del self._rest[: self._sock.send(self._rest)]
        except BlockingIOError:
            pass
        except OSError:
            self._end()
            return
        if self._waits != bool(self._rest):
            self._waits = bool(self._rest)
            self._loop.change(self._sock.fileno(), READ | WRITE if self._waits else READ)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._write()
        if events & ~WRITE and not self._over:
            self._read()

    def _read(self) -> None:
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(RECEIVE, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary, flags = b"", [], 0
        if not data:
            self._end()
            return
        passed = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                passed.frombytes(content[: len(content) - len(content) % passed.itemsize])
        if passed or flags & socket.MSG_CTRUNC:  # the kernel never hands over those of two writes at once
            if flags & socket.MSG_CTRUNC:  # some are missing: two that are left would pass for a host without IPv6
                for descriptor in passed:
                    os.close(descriptor)
                del passed[:]
            self._descriptors.append(list(passed))
        try:
            messages = [wire.decode_to_resolver(frame) for frame in self._frames.feed(data)]
        except ValueError as e:
            raise PenstockError(f"the daemon said what makes no sense: {e}") from e
        for message in messages:
            self._take(message, self._descriptors_of(message))

    def _descriptors_of(self, message: ToResolver) -> list[int]:
        if not isinstance(message, wire.Listen) or not self._descriptors:
            return []
        return self._descriptors.popleft()
