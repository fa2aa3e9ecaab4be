"""Where blocks are written: JSON lines in a file that outlives the daemon.

One writer.  Every line in the file is whole but for a power cut; a full disk loses records, says so with
an OSError a call, counts them, and is over when there is space again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from penstock.core.blocks import LOG_KEPT, LOG_NAME, Block

MAX_BYTES = 64 << 20
"""Of one file; then it is rotated."""

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class LineLog:
    """Appends lines to the file `name` in `directory`, and rotates it.  Nothing is touched before `write`."""

    def __init__(self, directory: Path, name: str, max_bytes: int = MAX_BYTES) -> None:
        self._directory = directory
        self._name = name
        self._path = directory / name
        self._max_bytes = max_bytes
        self._fd: int | None = None
        self._unwritten = 0
        self.rotations = 0

    @property
    def unwritten(self) -> int:
        """How many lines could not be written since the start."""
        return self._unwritten

    def write(self, lines: Sequence[bytes]) -> None:
        """Write the lines, each with its end, in one go, in order; of none only make sure that there is a log.

        OSError when some could not be written; those are lost and counted in `unwritten`, the file ends
        with the last whole line, and the next call starts anew.
        """
        done = 0
        try:
            fd = self._opened()
            if lines:
                done = self._put(self._rotated_if_full(fd, sum(map(len, lines))), lines)
        finally:
            self._unwritten += len(lines) - done
        if done < len(lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self) -> None:
        """Release the file; the next call opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _opened(self) -> int:
        if self._fd is not None and self._is_current(self._fd):
            return self._fd
        self.close()
        self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        fd = os.open(self._path, _FLAGS, 0o640)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(self._path))
            os.fchmod(fd, 0o640)
            _end_half_line(fd)
        except OSError:
            os.close(fd)
            raise
        self._fd = fd
        return fd

    def _is_current(self, fd: int) -> bool:
        """Whether the name still leads to the file: somebody may have moved or removed it."""
        try:
            return os.path.samestat(os.fstat(fd), os.lstat(self._path))
        except FileNotFoundError:
            return False

    def _put(self, fd: int, lines: Sequence[bytes]) -> int:
        """Return how many lines the file has taken whole; what it took of the next is cut off again."""
        start = os.fstat(fd).st_size
        data = b"".join(lines)
        written = os.write(fd, data)
        if written == len(data):
            return len(lines)
        whole = data.rfind(b"\n", 0, written) + 1
        try:
            os.ftruncate(fd, start + whole)
        except OSError:
            self.close()  # opening it again ends the half line
            raise
        return data.count(b"\n", 0, whole)

    def _rotated_if_full(self, fd: int, more: int) -> int:
        size = os.fstat(fd).st_size
        if not size or size + more <= self._max_bytes:
            return fd
        names = [self._path, *(self._directory / f"{self._name}.{n}" for n in range(1, LOG_KEPT + 1))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            with contextlib.suppress(FileNotFoundError):
                newer.replace(older)
        self.rotations += 1
        return self._opened()


class BlockLog(LineLog):
    """The log of blocks."""

    def __init__(self, directory: Path, max_bytes: int = MAX_BYTES) -> None:
        super().__init__(directory, LOG_NAME, max_bytes)

    def append(self, blocks: Sequence[Block]) -> None:
        """Write the blocks, as `write` has it."""
        self.write([block.as_json().encode("ascii") + b"\n" for block in blocks])


def _end_half_line(fd: int) -> None:
    """What a power cut left of a line gets a line to itself, which readers skip."""
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        os.write(fd, b"\n")
