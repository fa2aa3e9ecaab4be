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
ROUNDS = 20
"""So often at most the slices are listed anew because others came meanwhile."""

_libc = ctypes.CDLL(None, use_errno=True)


class SliceWatch:
    """Non-blocking; `cover` first, then wait for `fileno` to become readable, and `read`."""

    def __init__(self, tree: Path) -> None:
        self._tree = tree
        self._fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise _error("cgroups cannot be watched")

    def fileno(self) -> int:
        return int(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def read(self) -> bool:
        """Whether something came or went since the last call.  PenstockError as `cover`; that something did."""
        happened = False
        while True:
            try:
                os.read(self._fd, BUFFER)
            except BlockingIOError:
                break
            happened = True
        if happened:
            self.cover()
        return happened

    def cover(self) -> None:
        """Watch each slice that there is: what is watched already stays so, what is gone goes by itself.

        PenstockError when one cannot be watched.
        """
        covered: list[str] = []
        for _ in range(ROUNDS):
            found = cgroup.slices(self._tree)
            if found == covered:
                return
            for path in found:
                self._add(path)
            covered = found  # one that came before its parent was watched was not announced

    def _add(self, path: str) -> None:
        place = os.fsencode(self._tree / path)
        number = _libc.inotify_add_watch(self._fd, place, IN_CREATE | IN_DELETE | IN_ONLYDIR)
        if number < 0 and ctypes.get_errno() not in (errno.ENOENT, errno.ENOTDIR):
            raise _error("a cgroup cannot be watched")


def _error(what: str) -> PenstockError:
    number = ctypes.get_errno()
    limits = {errno.ENOSPC: "fs.inotify.max_user_watches", errno.EMFILE: "fs.inotify.max_user_instances"}
    hint = f"raise {limits[number]}" if number in limits else ""
    return PenstockError(f"{what}: {os.strerror(number)}", hint=hint)
