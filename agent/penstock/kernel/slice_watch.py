"""Word of cgroups that come and go, at once: inotify(7) on the directories of the host's slices.

cgroups are made and removed by mkdir and rmdir, which the kernel announces like those of any file system.  What
happens below services is not watched: users do there as they like, and identity does not depend on it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from penstock.errors import PenstockError
from penstock.kernel import cgroup

IN_CREATE, IN_DELETE, IN_ONLYDIR = 0x100, 0x200, 0x01000000
BUFFER = 64 << 10

_libc = ctypes.CDLL(None, use_errno=True)


class SliceWatch:
    """Non-blocking; wait for `fileno` to become readable, then `read`."""

    def __init__(self, tree: Path) -> None:
        self._tree = tree
        self._fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise _error("cgroups cannot be watched")
        self._cover()

    def fileno(self) -> int:
        return int(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def read(self) -> bool:
        """Whether something came or went since the last call."""
        happened = False
        while True:
            try:
                os.read(self._fd, BUFFER)
            except BlockingIOError:
                break
            happened = True
        if happened:
            self._cover()
        return happened

    def _cover(self) -> None:
        """Watch each slice that there is: what is watched already stays so, what is gone goes by itself."""
        for path in cgroup.slices(self._tree):
            place = os.fsencode(self._tree / path)
            number = _libc.inotify_add_watch(self._fd, place, IN_CREATE | IN_DELETE | IN_ONLYDIR)
            if number < 0 and ctypes.get_errno() not in (errno.ENOENT, errno.ENOTDIR):
                raise _error("a cgroup cannot be watched")


def _error(what: str) -> PenstockError:
    number = ctypes.get_errno()
    hint = "raise fs.inotify.max_user_watches" if number == errno.ENOSPC else ""
    return PenstockError(f"{what}: {os.strerror(number)}", hint=hint)
