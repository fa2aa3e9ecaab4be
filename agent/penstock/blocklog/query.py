"""Reading the index of the block log, and with it the end of the log that is not in it yet.

What is found is places in the log: whoever shows a block reads its line there.
"""

from __future__ import annotations

import os
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from penstock.blocklog import schema
from penstock.blocklog.index import (
    SMALL,
    Unusable,
    Writer,
    is_trusted,
    path_in,
    read_keys,
    read_segments,
)
from penstock.blocklog.log_files import LogFile, Record, Wanted, close_all, line_at, open_all
from penstock.blocklog.schema import COLUMN_OF
from penstock.blocklog.segments import Coverage, cover
from penstock.core.blocks import from_json

MOST_UNINDEXED = 2 * SMALL
"""Bytes at the end of the log that are read anew by each question; with more the index is no help."""

_PATIENCE = 1.0
_FEW = 1000
_LOOKED_AT = 5000
"""Blocks among which the newest rows are looked for before all are summed up."""


@dataclass(frozen=True, slots=True)
class Sum:
    """All blocks with one key: packets, how many of them were not logged, first and last time, newest line."""

    key: int
    packets: int
    unlogged: int
    first: float
    last: float
    place: int

    def plus(self, other: Sum) -> Sum:
        """Both."""
        return Sum(
            self.key,
            self.packets + other.packets,
            self.unlogged + other.unlogged,
            min(self.first, other.first),
            max(self.last, other.last),
            max(self.place, other.place),
        )


@dataclass(frozen=True, slots=True)
class Sums:
    """The first of them, and how many there are, with how many packets."""

    first: list[Sum]
    number: int
    packets: int


class Index:
    """The index of the log in `directory`.  Raises Unusable, and PenstockError when the log cannot be read.

    Nobody can change the index between making this and `release`, after which only `record` may be called.
    """

    def __init__(self, directory: Path) -> None:
        if not is_trusted(directory):
            raise Unusable("there is none")
        self._files: list[LogFile] = []
        self._path = path_in(directory).absolute()
        try:
            uri = f"{self._path.as_uri()}?mode=ro"
            self._db = sqlite3.connect(uri, _PATIENCE, isolation_level=None, uri=True)
        except sqlite3.Error as e:
            raise Unusable(str(e)) from e
        try:
            self._covered = self._begin(directory)
            self._keys = read_keys(self._db)
            self._overlay()
        except sqlite3.Error as e:
            self.close()
            raise Unusable(str(e)) from e
        except BaseException:
            self.close()
            raise

    @property
    def left(self) -> int:
        """Bytes at the end of the log that were read anew."""
        return self._covered.left

    def newest(self, wanted: Wanted, limit: int) -> Sums:
        """The `limit` rows of which the log told last, newest first; all are counted, and only these summed."""
        with _damage():
            keys = self._newest_keys(wanted, limit)
            if keys is None:
                return self.top("row", wanted, limit, newest=True)
            found = sorted(self._summed("row", keys, wanted), key=lambda one: -one.place)
            if len(found) < limit:
                return Sums(found, len(found), sum(one.packets for one in found))
            return Sums(found, self._count_rows(wanted), self._count_packets(wanted))

    def _newest_keys(self, wanted: Wanted, limit: int) -> list[int] | None:
        """The rows of which the log told last; None when they are not found soon."""
        condition, values = self._condition(wanted)
        keys: dict[int, None] = {}
        kinds: dict[int, int] = {}
        for table in self._tables:
            query = (
                f"SELECT kind FROM {table} NOT INDEXED WHERE {condition} ORDER BY place DESC LIMIT {_LOOKED_AT}"
            )
            number = 0
            for (kind,) in self._db.execute(query, values):
                number += 1
                if kind not in kinds:
                    (kinds[kind],) = self._db.execute(
                        "SELECT row FROM temp.every WHERE id = ?", (kind,)
                    ).fetchone()
                keys[kinds[kind]] = None
                if len(keys) == limit:
                    return list(keys)
            if number == _LOOKED_AT:
                return None
        return list(keys)

    def _summed(self, column: str, keys: Sequence[int], wanted: Wanted) -> Iterable[Sum]:
        """The sums of a few keys."""
        condition, values = self._condition(wanted)
        merged: dict[int, Sum] = {}
        chosen = f"k.{column} IN ({', '.join(map(str, keys))})"
        for table in self._tables:
            query = (
                f"SELECT k.{column}, SUM(count) + SUM(unlogged), SUM(unlogged), MIN(first), MAX(last), MAX(place)"
                f" FROM temp.every k CROSS JOIN {table} b ON b.kind = k.id WHERE {chosen} AND {condition}"
                f" GROUP BY k.{column}"
            )
            for one in self._sums(query, values):
                merged[one.key] = merged[one.key].plus(one) if one.key in merged else one
        return merged.values()

    def _count_rows(self, wanted: Wanted) -> int:
        condition, values = self._condition(wanted)
        there = " OR ".join(
            f"EXISTS (SELECT 1 FROM {table} b WHERE b.kind = k.id AND {condition})" for table in self._tables
        )
        ((number,),) = self._db.execute(f"SELECT COUNT(DISTINCT row) FROM temp.every k WHERE {there}", values)
        return int(number)

    def _count_packets(self, wanted: Wanted) -> int:
        condition, values = self._condition(wanted)
        query = "SELECT SUM(count) + SUM(unlogged) FROM {} WHERE {}"
        found = [self._db.execute(query.format(table, condition), values).fetchone()[0] for table in self._tables]
        return sum(packets or 0 for packets in found)

    def _sums(self, query: str, values: dict[str, float]) -> list[Sum]:
        return [
            Sum(key, packets, unlogged, first / 1000, last / 1000, where)
            for key, packets, unlogged, first, last, where in self._db.execute(query, values)
        ]

    def top(self, by: str, wanted: Wanted, limit: int, newest: bool = False) -> Sums:
        """The `limit` sums by "row", "destination", "process" or "workload", with most packets or newest first."""
        with _damage():
            self._prefetch()
            if by == "destination" and limit <= _FEW:
                return self._largest(COLUMN_OF[by], wanted, limit)
            condition, values = self._condition(wanted)
            by_kind = " UNION ALL ".join(
                f"SELECT kind, SUM(count) + SUM(unlogged) AS packets, SUM(unlogged) AS unlogged,"
                f" MIN(first) AS first, MAX(last) AS last, MAX(place) AS place"
                f" FROM {table} WHERE {condition} GROUP BY kind"
                for table in self._tables
            )
            self._db.execute("DROP TABLE IF EXISTS temp.sums")
            self._db.execute(
                f"CREATE TEMP TABLE sums AS SELECT k.{COLUMN_OF[by]} AS key, SUM(packets) AS packets,"
                f" SUM(unlogged) AS unlogged, MIN(first) AS first, MAX(last) AS last, MAX(place) AS place"
                f" FROM ({by_kind}) b JOIN temp.every k ON k.id = b.kind GROUP BY k.{COLUMN_OF[by]}",
                values,
            )
            ((number, packets),) = self._db.execute("SELECT COUNT(*), SUM(packets) FROM temp.sums")
            order = "place DESC" if newest else "packets DESC, place"
            found = self._sums(f"SELECT * FROM temp.sums ORDER BY {order} LIMIT :limit", {"limit": limit})
            return Sums(found, number, packets or 0)

    def _largest(self, column: str, wanted: Wanted, limit: int) -> Sums:
        """A few of many sums: of the others no more than the packets is needed."""
        condition, values = self._condition(wanted)
        by_kind = " UNION ALL ".join(
            f"SELECT kind, SUM(count) + SUM(unlogged) AS packets FROM {table} WHERE {condition} GROUP BY kind"
            for table in self._tables
        )
        self._db.execute("DROP TABLE IF EXISTS temp.sizes")
        self._db.execute(
            f"CREATE TEMP TABLE sizes AS SELECT k.{column} AS key, SUM(packets) AS packets"
            f" FROM ({by_kind}) b JOIN temp.every k ON k.id = b.kind GROUP BY k.{column}",
            values,
        )
        ((number, packets),) = self._db.execute("SELECT COUNT(*), SUM(packets) FROM temp.sizes")
        query = "SELECT key FROM temp.sizes ORDER BY packets DESC LIMIT ?"
        keys = [key for (key,) in self._db.execute(query, (limit,))]
        found = sorted(self._summed(column, keys, wanted), key=lambda one: (-one.packets, one.place))
        return Sums(found, number, packets or 0)

    def places(self, wanted: Wanted, limit: int | None) -> array[int]:
        """Where the lines of the blocks are that were asked for, oldest first; of the newest `limit` ones."""
        with _damage():
            condition, values = self._condition(wanted)
            found: array[int] = array("q")
            for table in self._tables:
                left = -1 if limit is None else limit - len(found)
                query = f"SELECT place FROM {table} WHERE {condition} ORDER BY place DESC LIMIT :left"
                found.extend(row[0] for row in self._db.execute(query, {**values, "left": left}))
            found.reverse()
            return found

    def with_id(self, prefix: str, limit: int) -> list[int]:
        """The places of blocks whose ids begin like that, at most so many."""
        with _damage():
            start = schema.id_of(prefix)
            condition, values = self._condition(Wanted())
            query = f"{condition} AND id >= :start AND substr(id, 1, :size) = :start ORDER BY id LIMIT :limit"
            asked = {**values, "start": start, "size": len(start), "limit": limit}
            return [
                row[0]
                for table in self._tables
                for row in self._db.execute(f"SELECT place FROM {table} WHERE {query}", asked)
            ][:limit]

    def record(self, where: int) -> Record:
        """The block at a place.  Unusable when there is none: then the index is not of this log."""
        number, offset = schema.place_parts(where)
        file = self._covered.files.get(number)
        line = line_at(file.fd, offset) if file else b""
        try:
            return Record(from_json(line), line)
        except ValueError as e:
            raise Unusable("it does not fit the log") from e

    def newest_of(self, one: Sum, by: str) -> Record:
        """The newest block of a sum.  Unusable when it is of another."""
        record = self.record(one.place)
        if self._keys.group(record.block, by) != one.key:
            raise Unusable("it does not fit the log")
        return record

    def release(self) -> None:
        """Let others write."""
        self._db.close()

    def close(self) -> None:
        """Close everything."""
        self._db.close()
        close_all(self._files)
        self._files = []

    def _begin(self, directory: Path) -> Coverage:
        self._db.execute("PRAGMA temp_store = MEMORY")
        self._db.execute("BEGIN")
        segments = read_segments(self._db)
        self._files = open_all(directory)  # after it: what was indexed is there
        covered = cover(segments, self._files)
        if covered is None:
            raise Unusable("it was made of other files")
        if covered.left > MOST_UNINDEXED:
            raise Unusable("it is far behind")
        self.malformed = sum(s.malformed for s in segments if schema.place(s.number, 0) >= covered.base)
        return covered

    def _prefetch(self) -> None:
        """Sums go through much of the file, in an order that a disk does not like."""
        with suppress(OSError):
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(file)

    def _overlay(self) -> None:
        """The end of the log, in tables of our own: `tail`, and in `gone` where blocks were that it tells anew."""
        db = self._db
        db.execute(f"CREATE TEMP TABLE kinds {schema.KINDS}")
        db.execute(f"CREATE TEMP TABLE tail {schema.BLOCKS}")
        db.execute("CREATE TEMP TABLE gone (place INTEGER PRIMARY KEY)")
        writer = Writer(db, self._keys, "temp", "tail")
        for part in self._covered.parts:
            self.malformed += writer.take(part, part.file.end)
        db.execute("INSERT INTO temp.gone SELECT b.place FROM temp.tail t JOIN main.blocks b ON b.id = t.id")
        self._has_gone = db.execute("SELECT 1 FROM temp.gone").fetchone() is not None
        has_tail = db.execute("SELECT 1 FROM temp.tail").fetchone() is not None
        self._tables = ("temp.tail", "main.blocks") if has_tail else ("main.blocks",)
        both = "SELECT * FROM main.kinds UNION ALL SELECT * FROM temp.kinds"
        db.execute(f"CREATE TEMP VIEW every AS {both if has_tail else 'SELECT * FROM main.kinds'}")

    def _condition(self, wanted: Wanted) -> tuple[str, dict[str, float]]:
        parts = ["place >= :base"]
        values: dict[str, float] = {"base": self._covered.base}
        if wanted.since is not None:
            parts.append("last >= :since")
            values["since"] = wanted.since * 1000
        if wanted.until is not None:
            parts.append("first <= :until")
            values["until"] = wanted.until * 1000
        kinds = []
        if wanted.workload is not None:
            kinds.append("workload = :workload")
            values["workload"] = self._keys.of(wanted.workload)
        if wanted.direction is not None:
            kinds.append("inward = :inward")
            values["inward"] = wanted.direction == "in"
        if kinds:
            parts.append(f"kind IN (SELECT id FROM temp.every WHERE {' AND '.join(kinds)})")
        if self._has_gone:
            parts.append("place NOT IN (SELECT place FROM temp.gone)")
        return " AND ".join(parts), values


@contextmanager
def _damage() -> Iterator[None]:
    """Whatever the database cannot answer, or answers with what we never wrote, makes it unusable."""
    try:
        yield
    except (sqlite3.Error, TypeError, OverflowError) as e:
        raise Unusable(str(e)) from e
