"""The files of the block log, as whoever reads them finds them.

They are the daemon's; they may be rotated, cut or removed while we read.  A line that is not whole yet is not
there yet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.core.blocks import LOG_KEPT, LOG_NAME, MAX_LINE, Block
from penstock.core.text import printable
from penstock.errors import PenstockError

_CHUNK = 256 << 10
_MOST_LINES = 4 << 10
"""Bytes in which a line usually ends."""


@dataclass(frozen=True, slots=True)
class LogFile:
    """An open file, and where its last whole line ends."""

    fd: int
    inode: tuple[int, int]
    end: int


@dataclass(frozen=True, slots=True)
class Record:
    """A block and the line that it came from."""

    block: Block
    line: bytes


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for.  A block counts as long as part of it lies between `since` and `until`."""

    since: float | None = None
    until: float | None = None
    workload: str | None = None
    direction: str | None = None

    def has(self, block: Block) -> bool:
        """Whether the block was asked for."""
        return (
            (self.since is None or block.last >= self.since)
            and (self.until is None or block.first <= self.until)
            and self.workload in (None, block.workload)
            and self.direction in (None, block.direction)
        )


def open_all(directory: Path) -> list[LogFile]:
    """Newest first.  PenstockError when one may not be read.

    A rotation meanwhile moves a file to the next name: it shows twice and is taken once.
    """
    files: list[LogFile] = []
    for name in (LOG_NAME, *(f"{LOG_NAME}.{n}" for n in range(1, LOG_KEPT + 1))):
        try:
            fd = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as e:
            close_all(files)
            where = printable(str(directory / name), 4096)
            hint = "run it as root, or as a member of the group that owns the log"
            raise PenstockError(f"cannot be read: {e.strerror}", where=where, hint=hint) from e
        status = os.fstat(fd)
        if inode(status) in [file.inode for file in files]:
            os.close(fd)
        else:
            files.append(LogFile(fd, inode(status), _last_newline(fd, status.st_size)))
    return files


def close_all(files: Sequence[LogFile]) -> None:
    """Close them."""
    for file in files:
        os.close(file.fd)


def inode(status: os.stat_result) -> tuple[int, int]:
    """What tells one file from another as long as it is open."""
    return status.st_dev, status.st_ino


def _last_newline(fd: int, size: int) -> int:
    """Where the last whole line ends."""
    end = size
    while end > 0:
        start = max(0, end - _CHUNK)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def lines_between(fd: int, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The lines from `start`, where one begins, to `end`, where one ends, each with its place.

    Empty ones are left out; of one that is too long to be ours only as much is kept as shows that.
    """
    at, rest, dropped = start, b"", 0
    while start < end:
        chunk = os.pread(fd, min(_CHUNK, end - start), start)
        if not chunk:
            return
        start += len(chunk)
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        for line in lines:
            if line:
                yield at, line[: 2 * MAX_LINE]
            at += len(line) + dropped + 1
            dropped = 0
        if len(rest) > 2 * MAX_LINE:
            dropped += len(rest) - 2 * MAX_LINE
            rest = rest[: 2 * MAX_LINE]


def line_at(fd: int, place: int) -> bytes:
    """The line that begins there; less than a line when there is none of ours."""
    data = os.pread(fd, _MOST_LINES, place)
    if b"\n" not in data:
        data = os.pread(fd, MAX_LINE + 1, place)
    return data.partition(b"\n")[0]
