"""Answers that are over: which names an address was learned for, for those who ask why it is denied now.

And for those who take the flows of a rule out when it goes: a flow outlives the answer it began with.  It is
bounded; what ended first is forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

KEPT = 5 * 86_400.0
"""Seconds that an ended answer is remembered: as long as the kernel remembers an idle flow that it let in."""

MAX_OF_ONE = 20_000
"""Ended answers of a workload."""

MAX_ALL = 100_000
MAX_NAMES = 16
"""Names of one address, those that ended last."""

Ended = tuple[str, float]  # name, when it ended

_Addresses = OrderedDict[bytes, tuple[Ended, ...]]  # the address whose answer ended last is the last


class Past:
    """By workload and address.  Times are those of the caller."""

    def __init__(self) -> None:
        self._workloads: dict[str, _Addresses] = {}
        self._counts: dict[str, int] = {}

    def add(self, workload: str, address: bytes, name: str, until: float) -> None:
        """The answer that `name` is at `address` ended."""
        held = self._workloads.setdefault(workload, OrderedDict())
        before = held.pop(address, ())
        others = [ended for ended in before if ended[0] != name]
        after = (*others[-(MAX_NAMES - 1) :], (name, until))
        held[address] = after
        self._counts[workload] = self._counts.get(workload, 0) + len(after) - len(before)
        while held and self._counts[workload] > self._room(workload):
            self._drop_first(workload)

    def of(self, workload: str, address: bytes) -> tuple[Ended, ...]:
        """The names, and when each ended."""
        return self._workloads.get(workload, _NONE).get(address, ())

    def latest_first(self, workload: str) -> Iterator[tuple[bytes, str, float]]:
        """All that is remembered of a workload."""
        held = self._workloads.get(workload, _NONE)
        return ((address, *ended) for address in reversed(held) for ended in reversed(held[address]))

    def workloads(self) -> tuple[str, ...]:
        """Those of whom something is remembered."""
        return tuple(self._workloads)

    def expire(self, now: float, work: int) -> None:
        """Forget what ended long ago, `work` addresses of each workload at most."""
        for workload, held in list(self._workloads.items()):
            for _ in range(work):
                if not held or max(until for _, until in next(iter(held.values()))) + KEPT > now:
                    break
                self._drop_first(workload)
            if not held:
                self.drop(workload)

    def forget(self, workload: str, keep: Callable[[str], bool]) -> None:
        """Forget names that `keep` is false of."""
        held = self._workloads.get(workload, _NONE)
        kept = {name: keep(name) for name in {name for ended in held.values() for name, _ in ended}}
        if all(kept.values()):
            return
        left = ((address, tuple(e for e in ended if kept[e[0]])) for address, ended in held.items())
        self._workloads[workload] = OrderedDict((address, ended) for address, ended in left if ended)
        self._counts[workload] = sum(map(len, self._workloads[workload].values()))

    def drop(self, workload: str) -> None:
        """Forget all of it."""
        self._workloads.pop(workload, None)
        self._counts.pop(workload, None)

    def _room(self, workload: str) -> int:
        others = sum(self._counts.values()) - self._counts[workload]
        return min(MAX_OF_ONE, MAX_ALL - others)

    def _drop_first(self, workload: str) -> None:
        _, ended = self._workloads[workload].popitem(last=False)
        self._counts[workload] -= len(ended)


_NONE: _Addresses = OrderedDict()
