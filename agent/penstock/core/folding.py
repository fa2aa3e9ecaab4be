"""Denied packets -> blocks: repeats are folded, memory is bounded, and nothing is lost silently.

A fold lives for `WINDOW`.  Its first packet makes a block at once, so that it can be seen live; while it
grows its block is given out again, same id, at most every `REWRITE`.  Too many folds: the rest of
a workload and direction is summed up in one block without address.

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
from penstock.core.packets import Denied
from penstock.core.text import printable

WINDOW = 60.0  # seconds
REWRITE = 2.0
GRACE = 2.0  # the kernel hands records over after 0.1 s, or when 64 are there; the rest is our own delay
MAX_FOLDS = 4096
MAX_FOLDS_OF_ONE = 1024
"""Open folds of one workload and direction: a noisy one must not take the room of all others."""

_NOBODY = Process()
_OVERFLOW = Explanation("overflow", "more destinations at once than are kept apart")
_UNLOGGED = Explanation("unlogged", "counted by the kernel; above the rate at which packets are logged")

_Owner = tuple[str, str]  # workload, direction
_Key = tuple[object, ...]


@dataclass(slots=True)
class _Fold:
    opened: float
    block: Block
    written: float
    changed: bool = False

    def grow(self, now: float, count: int, unlogged: int) -> None:
        old = self.block
        self.block = replace(
            old, last=max(old.last, now), count=old.count + count, unlogged=old.unlogged + unlogged
        )
        self.changed = True

    def over(self, now: float) -> bool:
        return not self.opened <= now < self.opened + WINDOW  # also when the clock was set back

    def write(self, now: float) -> Block:
        self.written, self.changed = now, False
        return self.block


@dataclass(slots=True)
class _Counted:
    """Packets that the kernel counted and that no record has come for."""

    when: float
    packets: int


@dataclass(slots=True)
class _Owned:
    """One workload and direction: its open folds and its books."""

    folds: dict[_Key, _Fold] = field(default_factory=dict)
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
        self._seed = seed & 0xFFFFFFFF
        self._made = 0
        self._open = 0
        self._owners: dict[_Owner, _Owned] = {}

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
        owner = self._owner(denied.workload, denied.direction)
        owner.verdict, owner.mode = denied.verdict.value, denied.mode.value
        owner.logged()
        who = process or _NOBODY
        key: _Key = (
            *(denied.verdict, denied.mode, denied.kind, denied.protocol, denied.remote, denied.port),
            *(policy_hash, who.comm),
        )
        full = self._open >= MAX_FOLDS or len(owner.folds) >= MAX_FOLDS_OF_ONE
        if full and key not in owner.folds:
            return self._overflow(owner, denied, now, policy_hash)
        return self._fold(owner, key, now, lambda: _block(denied, now, explain(denied), policy_hash, who))

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
        owner = self._owner(workload, direction)
        owner.verdict, owner.mode = verdict or owner.verdict, mode or owner.mode
        owner.counted(packets, now)
        return self._attribute((workload, str(direction)), owner, *owner.ripe(now))

    def flush(self, now: float) -> list[Block]:
        """Return the blocks that grew and are due; close windows that are over.  Call every second or so."""
        blocks: list[Block] = []
        for name, owner in list(self._owners.items()):
            blocks += self._attribute(name, owner, *owner.ripe(now))
            for key, fold in list(owner.folds.items()):
                over = fold.over(now)
                if fold.changed and (over or not 0 <= now - fold.written < REWRITE):
                    blocks.append(fold.write(now))
                if over:
                    self._drop(owner, key)
        return blocks

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
            blocks += [fold.write(now) for fold in owner.folds.values() if fold.changed]
            self._open -= len(owner.folds)
        return blocks

    def _owner(self, workload: str, direction: str) -> _Owned:
        return self._owners.setdefault((workload, str(direction)), _Owned())

    def _overflow(self, owner: _Owned, denied: Denied, now: float, policy_hash: str | None) -> list[Block]:
        key: _Key = (_OVERFLOW, denied.verdict, denied.mode)
        return self._fold(
            owner,
            key,
            now,
            lambda: replace(
                _summary((denied.workload, str(denied.direction)), owner, now, _OVERFLOW),
                count=1,
                policy=policy_hash,
            ),
        )

    def _attribute(self, name: _Owner, owner: _Owned, packets: int, when: float) -> list[Block]:
        """Give packets without a record to the busiest fold: most likely they were its."""
        if not packets:
            return []
        if owner.folds:
            max(owner.folds.values(), key=lambda fold: fold.block.count).grow(when, 0, packets)
            return []
        make = lambda: replace(_summary(name, owner, when, _UNLOGGED), unlogged=packets)  # noqa: E731
        return self._fold(owner, (_UNLOGGED,), when, make)

    def _fold(self, owner: _Owned, key: _Key, now: float, make: Callable[[], Block]) -> list[Block]:
        """One more packet for the fold, or a new fold whose block is given out at once."""
        blocks: list[Block] = []
        fold = owner.folds.get(key)
        if fold and not fold.over(now):
            fold.grow(now, 1, 0)
            return blocks
        if fold:
            blocks += [fold.write(now)] if fold.changed else []
            self._drop(owner, key)
        fold = _Fold(now, replace(make(), id=self._id(now)), now)
        owner.folds[key] = fold
        self._open += 1
        return [*blocks, fold.block]

    def _drop(self, owner: _Owned, key: _Key) -> None:
        del owner.folds[key]
        self._open -= 1

    def _id(self, now: float) -> str:
        """Sorts by time; the counter tells apart what one millisecond makes."""
        self._made = (self._made + 1) & 0xFFFFFF
        return f"{max(0, int(now * 1000)):012x}{self._made:06x}{self._seed:08x}"


def _summary(name: _Owner, owner: _Owned, now: float, why: Explanation) -> Block:
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
