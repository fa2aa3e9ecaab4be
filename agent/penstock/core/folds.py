"""Repeats become one block: it is given out at its first, and again while it grows.

A fold lives for `WINDOW`.  Its first event makes a block at once, so that it can be seen live; while it grows its
block is given out again, same id, at most every `REWRITE`.  How many are open is bounded: whoever adds asks for
room first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from penstock.core.blocks import Block

WINDOW = 60.0  # seconds
REWRITE = 2.0
MAX_FOLDS = 4096
MAX_FOLDS_OF_ONE = 1024
"""Open folds of one owner: a noisy one must not take the room of all others."""

Owner = tuple[str, str]  # workload, and what kind of events: a direction
Key = tuple[object, ...]


@dataclass(slots=True)
class Fold:
    """One window of one key."""

    opened: float
    block: Block
    written: float
    changed: bool = False

    def grow(self, now: float, count: int, unlogged: int) -> None:
        """So many more."""
        old = self.block
        self.block = replace(
            old, last=max(old.last, now), count=old.count + count, unlogged=old.unlogged + unlogged
        )
        self.changed = True

    def over(self, now: float) -> bool:
        """Also when the clock was set back."""
        return not self.opened <= now < self.opened + WINDOW

    def write(self, now: float) -> Block:
        """The block as it is now."""
        self.written, self.changed = now, False
        return self.block


class Folds:
    """All open folds.  `seed` makes ids unique between starts; any 32 random bits."""

    def __init__(self, seed: int) -> None:
        self._seed = seed & 0xFFFFFFFF
        self._made = 0
        self._open = 0
        self._owners: dict[Owner, dict[Key, Fold]] = {}

    def has_room(self, owner: Owner, key: Key) -> bool:
        """Whether one more of this key can be kept apart from others."""
        mine = self._owners.get(owner, {})
        return key in mine or (self._open < MAX_FOLDS and len(mine) < MAX_FOLDS_OF_ONE)

    def add(self, owner: Owner, key: Key, now: float, make: Callable[[], Block], count: int = 1) -> list[Block]:
        """`count` more for the fold, or a new one with the block that `make` gives: it is given out at once."""
        blocks: list[Block] = []
        mine = self._owners.setdefault(owner, {})
        fold = mine.get(key)
        if fold and not fold.over(now):
            fold.grow(now, count, 0)
            return blocks
        if fold:
            blocks += [fold.write(now)] if fold.changed else []
            self._drop(mine, key)
        fold = Fold(now, replace(make(), id=self._id(now)), now)
        mine[key] = fold
        self._open += 1
        return [*blocks, fold.block]

    def busiest(self, owner: Owner) -> Fold | None:
        """The one with most of it."""
        mine = self._owners.get(owner, {})
        return max(mine.values(), key=lambda fold: fold.block.count, default=None)

    def flush(self, now: float) -> list[Block]:
        """Return the blocks that grew and are due; close windows that are over.  Call every second or so."""
        blocks: list[Block] = []
        for owner, mine in list(self._owners.items()):
            for key, fold in list(mine.items()):
                over = fold.over(now)
                if fold.changed and (over or not 0 <= now - fold.written < REWRITE):
                    blocks.append(fold.write(now))
                if over:
                    self._drop(mine, key)
            if not mine:
                del self._owners[owner]
        return blocks

    def close(self, now: float, workload: str | None = None) -> list[Block]:
        """Close all windows, or those of a workload; return what has not been given out."""
        blocks: list[Block] = []
        for owner in [owner for owner in self._owners if workload in (None, owner[0])]:
            mine = self._owners.pop(owner)
            blocks += [fold.write(now) for fold in mine.values() if fold.changed]
            self._open -= len(mine)
        return blocks

    def _drop(self, mine: dict[Key, Fold], key: Key) -> None:
        del mine[key]
        self._open -= 1

    def _id(self, now: float) -> str:
        """Sorts by time; the counter tells apart what one millisecond makes."""
        self._made = (self._made + 1) & 0xFFFFFF
        return f"{max(0, int(now * 1000)):012x}{self._made:06x}{self._seed:08x}"
