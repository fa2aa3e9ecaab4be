"""Reading the block log: newest first through all its files, and on as it grows.

Memory does not grow with the log.  The files are the daemon's; they may be rotated, cut or removed while
we read.  A line that is not whole yet is not there yet.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from penstock.blocklog.log_files import LogFile, Record, Wanted, close_all, inode, open_all
from penstock.core.blocks import LOG_NAME, MAX_LINE, from_json
from penstock.core.text import printable
from penstock.errors import PenstockError

__all__ = ["BlockReader", "LogFile", "Record", "Wanted"]

_CHUNK = 256 << 10
_REMEMBERED = 65_536
"""Ids: lines of one block are at most a minute apart, and a minute makes far fewer blocks than this."""

_TOO_OLD = 4096
"""So many blocks in a row before the time asked for end the search: one alone may be a clock set wrong."""


class BlockReader:
    """The log in `directory`.  PenstockError when there is none, or none that we may read."""

    def __init__(self, directory: Path) -> None:
        self.malformed = 0
        self._directory = directory
        self._files = open_all(directory)
        if not self._files:
            raise PenstockError(
                f"there is no block log (looked for {LOG_NAME})",
                where=printable(str(directory), 4096),
                hint="has a daemon run here? --log DIR names another place",
            )

    def newest_first(self, wanted: Wanted) -> Iterator[Record]:
        """What was asked for, each block once, as its last line says."""
        seen: OrderedDict[str, None] = OrderedDict()
        old = 0
        for line in self._lines_backwards():
            record = self._parsed(line)
            if record is None:
                continue
            block = record.block
            repeated = block.id in seen
            seen[block.id] = None
            seen.move_to_end(block.id)
            if len(seen) > _REMEMBERED:
                seen.popitem(last=False)
            old = old + 1 if wanted.since is not None and block.last < wanted.since else 0
            if old == _TOO_OLD:
                return
            if not repeated and wanted.has(block):
                yield record

    def grown(self, wanted: Wanted) -> Iterator[Record]:
        """What was written since the reader was made, or since the last call; a block once a line."""
        yield from self._new_in_current(wanted)
        with suppress(FileNotFoundError):  # in the middle of a rotation
            if inode(os.stat(self._directory / LOG_NAME)) != self._files[0].inode:
                yield from self._new_after_rotation(wanted)

    def close(self) -> None:
        """Close the files."""
        close_all(self._files)
        self._files = []

    def _parsed(self, line: bytes) -> Record | None:
        try:
            return Record(from_json(line), line)
        except ValueError:
            self.malformed += 1
            return None

    def _lines_backwards(self) -> Iterator[bytes]:
        for file in self._files:
            yield from _backwards(file.fd, file.end)

    def _new_in_current(self, wanted: Wanted) -> Iterator[Record]:
        current = self._files[0]
        position = current.end if os.fstat(current.fd).st_size >= current.end else 0  # else it was emptied
        while chunk := os.pread(current.fd, _CHUNK, position):
            whole = chunk.rfind(b"\n") + 1
            if not whole and len(chunk) < _CHUNK:
                break
            whole = whole or len(chunk)  # so long a line is none of ours: pass over it
            position += whole
            self._files[0] = LogFile(current.fd, current.inode, position)
            yield from self._wanted(chunk[:whole], wanted)
        self._files[0] = LogFile(current.fd, current.inode, position)

    def _new_after_rotation(self, wanted: Wanted) -> Iterator[Record]:
        """Several rotations may have passed while we were stopped."""
        own = self._files[0].inode
        found = open_all(self._directory)
        newer = []
        for file in found:
            if file.inode == own:
                break
            newer.append(file)
        close_all(found[len(newer) :])
        yield from self._new_in_current(wanted)  # written after we looked and before it was rotated
        for file in reversed(newer):
            self.close()
            self._files = [LogFile(file.fd, file.inode, 0)]
            yield from self._new_in_current(wanted)

    def _wanted(self, chunk: bytes, wanted: Wanted) -> Iterator[Record]:
        for line in chunk.splitlines():
            record = self._parsed(line) if line else None
            if record and wanted.has(record.block):
                yield record


def _backwards(fd: int, end: int) -> Iterator[bytes]:
    """The lines before `end`, which is where a line ends, last line first.  Empty lines are left out."""
    tail = b""
    while end > 0:
        start = max(0, end - _CHUNK)
        parts = (os.pread(fd, end - start, start) + tail).split(b"\n")
        end = start
        tail = parts[0][: 2 * MAX_LINE]  # of a line without end keep enough to see that it is none of ours
        yield from (line for line in reversed(parts[1:]) if line)
    if tail:
        yield tail
