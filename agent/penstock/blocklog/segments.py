"""Which part of the log an index is about, and whether the files are still those that it was made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from penstock.blocklog.log_files import LogFile
from penstock.blocklog.schema import place

_LOOKED_AT = 4096
"""Bytes at both ends of what was indexed of a file."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A file of the log: its number grows from the oldest on, and up to `end` it is in the index.

    `head` and `tail` are digests of the first bytes and of the last before `end`.
    """

    number: int
    inode: int
    end: int
    head_size: int
    head: bytes
    tail: bytes
    malformed: int = 0

    @classmethod
    def of(cls, number: int, file: LogFile, end: int, malformed: int) -> Segment:
        """The segment of a file that was indexed up to `end`."""
        size = min(end, _LOOKED_AT)
        return cls(number, _inode(file), end, size, _digest(file, 0, size), _tail(file, end), malformed)

    @property
    def columns(self) -> tuple[int | bytes, ...]:
        """As it is stored."""
        return self.number, self.inode, self.end, self.head_size, self.head, self.tail, self.malformed

    def begins(self, file: LogFile) -> bool:
        """Whether the file still begins with what was indexed."""
        return (
            self.inode == _inode(file)
            and file.end >= self.end
            and _digest(file, 0, self.head_size) == self.head
            and _tail(file, self.end) == self.tail
        )


@dataclass(frozen=True, slots=True)
class Part:
    """What is not in the index yet of a file: from `start`, where a line begins, to `file.end`."""

    number: int
    file: LogFile
    start: int
    malformed: int  # before it


@dataclass(frozen=True, slots=True)
class Coverage:
    """`base`: places before it are of files that are gone.  `parts` are what is left to do, oldest first."""

    base: int
    files: dict[int, LogFile]
    parts: tuple[Part, ...]

    @property
    def left(self) -> int:
        """Bytes that are not in the index."""
        return sum(part.file.end - part.start for part in self.parts)


def cover(segments: Sequence[Segment], newest_first: Sequence[LogFile]) -> Coverage | None:
    """What of the log's files is in the index; None when it was made of others.

    Files go when they are the oldest, come when they are the newest, and grow only then.
    """
    files = [file for file in reversed(newest_first) if file.end]
    kept = next(kept for gone in range(len(segments) + 1) if _fit(kept := segments[gone:], files))
    if segments and not kept:
        return None
    number = kept[0].number if kept else 1
    numbers = range(number, number + len(files))
    done = [(segment.end, segment.malformed) for segment in kept] + [(0, 0)] * (len(files) - len(kept))
    parts = [Part(n, file, end, malformed) for n, file, (end, malformed) in zip(numbers, files, done, strict=True)]
    return Coverage(
        place(number, 0),
        dict(zip(numbers, files, strict=True)),
        tuple(part for part in parts if part.start < part.file.end),
    )


def _fit(segments: Sequence[Segment], files: Sequence[LogFile]) -> bool:
    """Whether the files, from the oldest on, are those segments; only of the last one more may be there.

    It goes by content too: the next file often gets the number of the one that has just been removed.
    """
    return len(segments) <= len(files) and all(
        segment.begins(file) and (segment is segments[-1] or file.end == segment.end)
        for segment, file in zip(segments, files, strict=False)
    )


def _inode(file: LogFile) -> int:
    """Only the number within its device: devices are numbered anew at a boot."""
    return file.inode[1] & (1 << 63) - 1


def _digest(file: LogFile, start: int, size: int) -> bytes:
    return blake2b(os.pread(file.fd, size, start), digest_size=16).digest()


def _tail(file: LogFile, end: int) -> bytes:
    start = max(0, end - _LOOKED_AT)
    return _digest(file, start, end - start)
