"""Denied packets -> blocks: repeats are folded, memory is bounded, and nothing is lost silently.

Too many folds (`folds`): the rest of a workload and direction is summed up in one block without address.

The books.  The kernel counts each denied packet before a rate limit decides which are logged, and log
records reach us up to a second after the counter moved, or before we read it.  So counted packets wait
`GRACE` for their records; those still without one are then `unlogged`.  Records ahead of the counter are
credit against its next reading.  Neither can become negative, and once both are used up
sum(count) + sum(unlogged) is the counter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from penstock.core.blocks import Block, Explanation, Process
from penstock.core.folds import Folds, Key, Owner
from penstock.core.packets import Denied
from penstock.core.text import printable

GRACE = 2.0  # the kernel hands records over after 0.1 s, or when 64 are there; the rest is our own delay

_NOBODY = Process()
_OVERFLOW = Explanation("overflow", "more destinations at once than are kept apart")
_UNLOGGED = Explanation("unlogged", "counted by the kernel; above the rate at which packets are logged")


@dataclass(slots=True)
class _Counted:
    """Packets that the kernel counted and that no record has come for."""

    when: float
    packets: int


@dataclass(slots=True)
class _Owned:
    """The books of one workload and direction."""

    waiting: deque[_Counted] = field(default_factory=deque)
    credit: int = 0  # records that the counter has not told of yet
    verdict: str | None = None
    mode: str | None = None

    def logged(self) -> None:
        if not self.waiting:
            self.credit += 1
            return
        self.waiting[0].packets -= 1
        if not self.waiting[0].packets:
            self.waiting.popleft()

    def counted(self, packets: int, now: float) -> None:
        covered = min(self.credit, packets)
        self.credit -= covered
        if packets > covered:
            self.waiting.append(_Counted(now, packets - covered))

    def ripe(self, now: float) -> tuple[int, float]:
        """Take out what has waited long enough: how many, and when the last of them were counted."""
        packets, when = 0, now
        while self.waiting and not 0 <= now - self.waiting[0].when < GRACE:
            counted = self.waiting.popleft()
            packets, when = packets + counted.packets, counted.when
        return packets, min(when, now)

    def all_waiting(self) -> tuple[int, float]:
        """Take out everything, also what a record may still come for."""
        return self.ripe(float("inf"))


class Folder:
    """Folds denied packets into blocks.  `seed` makes ids unique between starts; any 32 random bits."""

    def __init__(self, seed: int) -> None:
        self._folds = Folds(seed)
        self._owners: dict[Owner, _Owned] = {}

    def add(
        self,
        denied: Denied,
        now: float,
        explain: Callable[[Denied], Explanation],
        policy_hash: str | None = None,
        process: Process | None = None,
    ) -> list[Block]:
        """Take one log record in; return the blocks to write at once.

        `explain` is asked for the first packet of a fold only.
        """
        name, owner = self._owner(denied.workload, denied.direction)
        owner.verdict, owner.mode = denied.verdict.value, denied.mode.value
        owner.logged()
        who = process or _NOBODY
        key: Key = (
            *(denied.verdict, denied.mode, denied.kind, denied.protocol, denied.remote, denied.port),
            *(policy_hash, who.comm),
        )
        if not self._folds.has_room(name, key):
            rest: Key = (_OVERFLOW, denied.verdict, denied.mode)
            sums = lambda: replace(_summary(name, owner, now, _OVERFLOW), count=1, policy=policy_hash)  # noqa: E731
            return self._folds.add(name, rest, now, sums)
        return self._folds.add(name, key, now, lambda: _block(denied, now, explain(denied), policy_hash, who))

    def counted(
        self,
        workload: str,
        direction: str,
        packets: int,
        now: float,
        verdict: str | None = None,
        mode: str | None = None,
    ) -> list[Block]:
        """Take in by how much the kernel's counter of denied packets grew since the last call.

        `verdict` and `mode` say what the workload's denials are now, for a block that has no packet.
        Returns blocks to write at once.
        """
        if packets < 0:
            raise ValueError(f"a counter that went back: {packets}")
        name, owner = self._owner(workload, direction)
        owner.verdict, owner.mode = verdict or owner.verdict, mode or owner.mode
        owner.counted(packets, now)
        return self._attribute(name, owner, *owner.ripe(now))

    def flush(self, now: float) -> list[Block]:
        """Return the blocks that grew and are due; close windows that are over.  Call every second or so."""
        blocks: list[Block] = []
        for name, owner in list(self._owners.items()):
            blocks += self._attribute(name, owner, *owner.ripe(now))
        return [*blocks, *self._folds.flush(now)]

    def close(self, now: float) -> list[Block]:
        """Return all that has not been given out; nothing waits for its record any more."""
        return [
            block for workload in {name[0] for name in self._owners} for block in self.forget(workload, now)
        ]

    def forget(self, workload: str, now: float) -> list[Block]:
        """The workload and its counters are gone: return what is left of its blocks, drop its books."""
        blocks: list[Block] = []
        for name in [name for name in self._owners if name[0] == workload]:
            owner = self._owners.pop(name)
            blocks += self._attribute(name, owner, *owner.all_waiting())
        return [*blocks, *self._folds.close(now, workload)]

    def _owner(self, workload: str, direction: str) -> tuple[Owner, _Owned]:
        name = (workload, str(direction))
        return name, self._owners.setdefault(name, _Owned())

    def _attribute(self, name: Owner, owner: _Owned, packets: int, when: float) -> list[Block]:
        """Give packets without a record to the busiest fold: most likely they were its."""
        if not packets:
            return []
        busiest = self._folds.busiest(name)
        if busiest:
            busiest.grow(when, 0, packets)
            return []
        make = lambda: replace(_summary(name, owner, when, _UNLOGGED), unlogged=packets)  # noqa: E731
        return self._folds.add(name, (_UNLOGGED,), when, make)


def _summary(name: Owner, owner: _Owned, now: float, why: Explanation) -> Block:
    """A block that stands for packets without an address of their own."""
    return Block(
        id="",
        first=now,
        last=now,
        workload=name[0],
        verdict=owner.verdict,
        mode=owner.mode,
        direction=name[1],
        protocol=None,
        family=None,
        address=None,
        port=None,
        name=None,
        count=0,
        unlogged=0,
        rule=None,
        reason=why.reason,
        text=why.text,
        nearest=None,
        process=_NOBODY,
        policy=None,
        allow=None,
    )


def _block(denied: Denied, now: float, why: Explanation, policy_hash: str | None, who: Process) -> Block:
    return Block(
        id="",
        first=now,
        last=now,
        workload=denied.workload,
        verdict=denied.verdict.value,
        mode=denied.mode.value,
        direction=denied.direction.value,
        protocol=denied.protocol,
        family=denied.family,
        address=str(denied.remote),
        port=denied.port,
        name=None if why.name is None else printable(why.name),
        count=1,
        unlogged=0,
        rule=why.rule,
        reason=why.reason,
        text=printable(why.text, 512),
        nearest=why.nearest,
        process=Process(who.pid, None if who.comm is None else printable(who.comm, 64)),
        policy=policy_hash,
        allow=None if why.allow is None else printable(why.allow, 512),
    )
