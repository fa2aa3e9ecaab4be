"""The system calls that a lab is made of: unshare, setns, prctl, mount.

Nothing here decides anything.  Python has setns and unshare only since 3.12, so all go through libc.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces; a new pid namespace is for its next children only."""
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """Move the calling thread into the namespace of `descriptor`, which is of type `kind`."""
    _check(_libc.setns(descriptor, kind), "setns")


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode() or None
    )
    _check(result, f"mount {target}")


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, in whatever way."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


@contextlib.contextmanager
def children_in(pid_namespace: int | None) -> Iterator[None]:
    """Children started inside the block belong to that pid namespace, or to a new one for None.

    The setting belongs to the calling thread; a thread cannot be started while it holds.
    """
    home = os.open("/proc/self/ns/pid", os.O_RDONLY)
    try:
        if pid_namespace is None:
            unshare(CLONE_NEWPID)
        else:
            setns(pid_namespace, CLONE_NEWPID)
        yield
    finally:
        setns(home, CLONE_NEWPID)
        os.close(home)


def net_inode() -> int:
    """The inode of the network namespace of this thread: its identity while it lives."""
    return os.stat("/proc/thread-self/ns/net").st_ino
