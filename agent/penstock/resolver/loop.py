"""Waits for descriptors and for moments, and calls who asked for it.

What epoll said of a descriptor that was closed since is not given to who got its number in the same round: he is
asked about in the next.  A handler may still be called for nothing, so handlers read without blocking.
"""

from __future__ import annotations

import math
import select
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from penstock.errors import PenstockError

READ, WRITE, HUNG_UP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR
MOST_EVENTS = 512
"""Descriptors that are served before the link to the daemon is written to and moments are looked at."""

Handler = Callable[[int], object]
"""Gets what epoll said: READ, WRITE, HUNG_UP."""

K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """Things that are over `delay` seconds after they were added; `over` is then called for each.

    All wait equally long, and no `now` is before an earlier one: the first that was added is the first that ends.
    """

    def __init__(self, delay: float, over: Callable[[K], object]) -> None:
        self._delay = delay
        self._over = over
        self._ends: OrderedDict[K, float] = OrderedDict()

    def add(self, key: K, now: float) -> None:
        """Or add it again, with all its time before it."""
        self._ends[key] = now + self._delay
        self._ends.move_to_end(key)

    def discard(self, key: K) -> None:
        """It is over otherwise."""
        self._ends.pop(key, None)

    def next(self) -> float:
        """When the next one is over; infinity when there is none."""
        return next(iter(self._ends.values()), math.inf)

    def check(self, now: float) -> None:
        """Call for those that are over."""
        while self.next() <= now:
            key, _ = self._ends.popitem(last=False)
            self._over(key)


class Loop:
    """`failed` is told of an exception that a handler let through: a fault of ours, which must not end us.

    Whoever finds a packet that does it would else send it again and again, and nobody's look-ups would be
    answered.  PenstockError ends us.
    """

    def __init__(self, failed: Callable[[Exception], object]) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._new: set[int] = set()  # added since the last poll, which said nothing of them
        self._waits: list[Deadlines[object]] = []
        self._rounds: list[Callable[[], object]] = []
        self._failed = failed
        self.now = time.monotonic()
        """When what is being called was called; seconds of a clock that never goes back."""
        self.ended = False

    @property
    def descriptors(self) -> int:
        """How many are waited for."""
        return len(self._handlers)

    def add(self, descriptor: int, events: int, handler: Handler) -> None:
        """Call `handler` for these events."""
        self._handlers[descriptor] = handler
        self._new.add(descriptor)
        self._epoll.register(descriptor, events)

    def change(self, descriptor: int, events: int) -> None:
        """Wait for these from now on; 0: for nothing but its end."""
        self._epoll.modify(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """To be called before it is closed."""
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def forget(self, descriptor: int) -> None:
        """As `remove`, for one that is closed at once and that nobody else holds: that says it to the kernel."""
        self._handlers.pop(descriptor, None)

    def deadlines(self, delay: float, over: Callable[[K], object]) -> Deadlines[K]:
        """Deadlines that this loop looks after."""
        made: Deadlines[K] = Deadlines(delay, lambda key: self._call(over, key))
        self._waits.append(made)  # type: ignore[arg-type]
        return made

    def each_round(self, call: Callable[[], object]) -> None:
        """Call it when a round of handlers is over."""
        self._rounds.append(call)

    def run(self) -> None:
        """Until `ended`."""
        while not self.ended:
            self.step()

    def step(self) -> None:
        """One round: wait for the first descriptor or moment, and serve all that are due."""
        pause = min((waits.next() for waits in self._waits), default=math.inf) - time.monotonic()
        self._new.clear()
        events = self._epoll.poll(None if pause == math.inf else max(pause, 0), MOST_EVENTS)
        polled = time.monotonic()
        for descriptor, said in events:
            handler = self._handlers.get(descriptor)
            if handler is not None and descriptor not in self._new:
                self._call(handler, said)
        for waits in self._waits:
            waits.check(polled)  # not by now: what has come since has not been looked at
        for call in self._rounds:
            self._call(call)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        self.now = time.monotonic()
        try:
            function(*arguments)
        except PenstockError:
            raise
        except Exception as e:  # noqa: BLE001 (see the class)
            self._failed(e)
