"""The resolver: everything put together, and what the daemon says given to who it is for."""

from __future__ import annotations

import gc
import os
import signal
import socket
import traceback
from functools import partial

from penstock.core import resolver_wire as wire
from penstock.core.resolver_wire import THERE, ToResolver
from penstock.resolver.clients import Connections, Listeners
from penstock.resolver.link import EACH, Link
from penstock.resolver.loop import Deadlines, Loop
from penstock.resolver.service import Service
from penstock.resolver.troubles import Troubles
from penstock.resolver.upstream import Upstreams

SECOND = 1.0
ALIVE_EVERY = 10
"""Seconds between two messages that only say that this loop still goes round."""


def outlive() -> None:
    """The daemon is dead: so are we, some seconds later, whatever becomes of our loop."""
    signal.alarm(2 * THERE)


class App:
    """`link` is the socket to the daemon."""

    def __init__(self, link: socket.socket) -> None:
        self._loop = Loop(self._failed)
        self._link = Link(self._loop, link, self._take, self._abandoned)
        self._troubles = Troubles(self._link.say)
        upstreams = Upstreams(self._loop, self._troubles)
        self._service = Service(self._loop, self._link, upstreams, self._troubles)
        self._connections = Connections(self._loop, self._full)
        self._ticks: Deadlines[int] = self._loop.deadlines(SECOND, self._tick)

    def run(self) -> None:
        """Until the daemon ends, and a little longer.  PenstockError when it says what makes no sense."""
        self._ticks.add(1, self._loop.now)
        self._loop.run()

    def _take(self, message: ToResolver, descriptors: list[int]) -> None:
        match message:
            case wire.Settled(ids, ok):
                self._service.settled(ids, ok)
            case wire.Configure(generation):
                self._service.configure(message)
                self._link.say(wire.Configured(generation))
                gc.freeze()  # it stays for long, and going through thousands of rules takes milliseconds
            case wire.Listen(workload):
                self._listen(workload, descriptors)
            case wire.Leave():
                self._loop.ended = True
            case wire.Unlisten(workload):
                served = self._service.served.pop(workload, None)
                if served is not None:
                    served.unlisten()
                    self._troubles.forget(workload)

    def _abandoned(self) -> None:
        """The daemon is gone without a word, and the kernel goes on sending look-ups here for some seconds."""
        outlive()
        self._last: Deadlines[int] = self._loop.deadlines(THERE, self._end)
        self._last.add(0, self._loop.now)
        self._service.abandoned()

    def _end(self, number: int) -> None:
        self._loop.ended = True

    def _listen(self, workload: str, descriptors: list[int]) -> None:
        if len(descriptors) not in (EACH, EACH // 2):  # two on a host that has no ::1
            for descriptor in descriptors:
                os.close(descriptor)
            text = "its sockets did not arrive: there are too many descriptors"
            self._troubles.happened(self._loop.now, "listen", workload, text)
            return
        served = self._service.of(workload)
        take = partial(self._service.take, served)
        served.listen(lambda: Listeners(self._connections, workload, descriptors, take))

    def _full(self, workload: str, text: str) -> None:
        self._troubles.happened(self._loop.now, "connections", workload, text)

    def _failed(self, error: Exception) -> None:
        """Where it was, and not what: that may hold what somebody sent."""
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"a fault of the resolver: {type(error).__name__} in {place.name}, line {place.lineno}"
        self._troubles.happened(self._loop.now, "fault", "", text)

    def _tick(self, number: int) -> None:
        self._ticks.add(number + 1, self._loop.now)
        self._service.tick()
        self._troubles.check(self._loop.now)
        if number % ALIVE_EVERY == 0:
            self._link.say(wire.Alive())
