"""Where the answers of `blocks` come from: the index of the log, or where there is none that can be used the log.

Both say the same.  The log is read from its end, in as many seconds as it has hundreds of megabytes; the index
answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

from penstock.blocklog import index as writing
from penstock.blocklog.index import SMALL, Unusable, discard, grow, is_small, may_write
from penstock.blocklog.query import Index, Sum, Sums
from penstock.cli.block_log import BlockReader, Record, Wanted
from penstock.cli.block_text import MAX_GROUPS, Group, Row, groups, oldest_first, rows
from penstock.cli.context import place_of
from penstock.core.block_keys import group_key

T = TypeVar("T")

DEFAULT_LOG = Path("/var/log/penstock")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows, oldest first, and what they are the newest of."""

    shown: list[Row]
    destinations: int
    packets: int


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups, largest first, and how many there are, with how many packets."""

    shown: list[Group]
    number: int
    packets: int


class Source(Protocol):
    """Who answers.  Each may raise Unusable before it has returned anything."""

    def records(self, wanted: Wanted, limit: int | None) -> Iterable[Record]:
        """The newest blocks, oldest first."""

    def rows(self, wanted: Wanted, most: int) -> Rows:
        """The newest destinations."""

    def groups(self, wanted: Wanted, by: str, most: int) -> Groups:
        """The largest groups."""

    def with_id(self, prefix: str, most: int) -> list[Record]:
        """Blocks whose ids begin like that."""


class Scanned:
    """The log itself."""

    def __init__(self, reader: BlockReader) -> None:
        self._reader = reader

    def records(self, wanted: Wanted, limit: int | None) -> Iterable[Record]:
        """The newest blocks, oldest first."""
        return reversed(list(islice(self._reader.newest_first(wanted), limit)))

    def rows(self, wanted: Wanted, most: int) -> Rows:
        """The newest destinations."""
        found = rows(record.block for record in self._reader.newest_first(wanted))
        return Rows(oldest_first(found[:most]), len(found), sum(row.packets for row in found))

    def groups(self, wanted: Wanted, by: str, most: int) -> Groups:
        """The largest groups."""
        found = groups((record.block for record in self._reader.newest_first(wanted)), by)
        return Groups(found[:most], len(found), sum(group.count for group in found))

    def with_id(self, prefix: str, most: int) -> list[Record]:
        """Blocks whose ids begin like that."""
        all_of_them = self._reader.newest_first(Wanted())
        return list(islice((record for record in all_of_them if record.block.id.startswith(prefix)), most))


class Indexed:
    """The index; what is shown is read from the log all the same."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def records(self, wanted: Wanted, limit: int | None) -> Iterable[Record]:
        """The newest blocks, oldest first."""
        places = self._index.places(wanted, limit)
        self._index.release()
        if places:
            self._index.record(places[0])  # before anything is printed
        return self._read(places)

    def _read(self, places: Iterable[int]) -> Iterator[Record]:
        for place in places:
            with suppress(Unusable):  # emptied meanwhile
                yield self._index.record(place)

    def rows(self, wanted: Wanted, most: int) -> Rows:
        """The newest destinations."""
        found = self._index.newest(wanted, most)
        shown = [
            Row(self._index.newest_of(one, "row").block, one.packets, one.unlogged, one.last)
            for one in found.first
        ]
        return Rows(oldest_first(shown), found.number, found.packets)

    def groups(self, wanted: Wanted, by: str, most: int) -> Groups:
        """The largest groups."""
        found = self._index.top(by, wanted, min(most, MAX_GROUPS))
        read = {one.key: self._group(one, by) for one in sorted(found.first, key=lambda one: one.place)}
        shown = [read[one.key] for one in found.first]  # read in the log's order, as disks like it
        if most > len(shown) < found.number:
            shown.append(_rest(shown, found))
            shown.sort(key=lambda group: -group.count)
        return Groups(shown, found.number, found.packets)

    def with_id(self, prefix: str, most: int) -> list[Record]:
        """Blocks whose ids begin like that."""
        found = [self._index.record(place) for place in self._index.with_id(prefix, most)]
        if not all(record.block.id.startswith(prefix) for record in found):
            raise Unusable("it does not fit the log")
        return found

    def _group(self, one: Sum, by: str) -> Group:
        block = self._index.newest_of(one, by).block
        return Group(group_key(block, by), block.workload, one.packets, one.first, one.last)


def _rest(shown: list[Group], found: Sums) -> Group:
    packets = found.packets - sum(group.count for group in shown)
    return Group(None, None, packets, min(g.first for g in shown), max(g.last for g in shown))


def log_directory(run: Path) -> Path:
    """Where the log of the daemon of `run` is, or was."""
    return place_of(run, "log") or DEFAULT_LOG


def answer(directory: Path, reader: BlockReader, question: Callable[[Source], T]) -> T:
    """What the index says to the question, else the log."""
    with suppress(Unusable):
        index = _open(directory)
        try:
            said = question(Indexed(index))
        except Unusable:
            discard(directory)
            raise
        finally:
            index.close()
        reader.malformed = index.malformed
        return said
    return question(Scanned(reader))


def _open(directory: Path) -> Index:
    """The index, made or brought up to date first where that is needed and we may.  Unusable."""
    if is_small(directory):
        raise Unusable("the log is small")
    with suppress(Unusable):
        index = Index(directory)
        if index.left <= SMALL or not may_write(directory):
            return index
        index.close()
    terminal = sys.stderr.isatty()
    try:
        if may_write(directory):
            grow(directory, told=_told if terminal else None, patience=2.0)
        return Index(directory)
    except Unusable as e:
        if terminal:
            print(f"all of the log is read, its index cannot be used: {e}", file=sys.stderr, flush=True)
        raise


def _told(done: int, whole: int) -> None:
    if whole > writing.PORTION:
        end = "\r\x1b[K" if done >= whole else ""
        print(f"\rindexing the log: {100 * done // whole} %{end}", end="", file=sys.stderr, flush=True)
