"""The daemon's own directories and files: made if missing, never taken over from somebody else."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import penstock
from penstock import files
from penstock.core import grants, state
from penstock.daemon.options import Options
from penstock.errors import PenstockError

SOCKET, FACTS, LOCK, BOOKS = "control.sock", "daemon.json", "lock", "books.json"
NAMES = "names.json"
"""What is remembered of names."""
FLOOR, FLOOR_SAID, TRIAL = "floor.nft", "floor", "unconfirmed"
"""What is loaded at boot; what was, in the run directory; and that the kernel holds what nobody has confirmed."""
STAGED_FLOOR = f"{FLOOR}.new"
_SAVED = (state.FILE, *state.HISTORY, BOOKS, NAMES, FLOOR, grants.FILE)
STATE_FILES = frozenset({state.POLICIES, *(f"{name}{end}" for name in _SAVED for end in ("", ".new"))})
_SAID = (FACTS, FLOOR_SAID, TRIAL)
RUN_FILES = frozenset({SOCKET, LOCK, *(f"{name}{end}" for name in _SAID for end in ("", ".new"))})
MAX_SAID = 4096
FSCK = "lost+found"
"""In the top directory of many file systems, when ours is one."""
_REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room on that disk",
    errno.EROFS: "mount it writable, or name another directory",
}


def prepare(options: Options) -> int:
    """Make the directories, refuse foreign ones, and take the lock; returns the lock's descriptor.

    The lock goes with the process, however it ends.  PenstockError says what is wrong; nothing is changed then.
    """
    _directory(options.state, 0o700, STATE_FILES)
    _directory(options.run, 0o700, RUN_FILES | {"ports.json"})  # which releases before December 2026 made
    _directory(options.log, 0o750, None)
    lock = options.run / LOCK
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as e:
        raise PenstockError(f"cannot be locked: {e.strerror}", where=str(lock)) from e
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(descriptor)
        hint = "stop it first, or give this one another --run, --cgroup and network namespace"
        raise PenstockError("another penstock daemon is running here", where=str(options.run), hint=hint) from e
    return descriptor


def _directory(path: Path, mode: int, ours: frozenset[str] | None) -> None:
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        found = set(os.listdir(path))
    except OSError as e:
        raise PenstockError(f"cannot be used: {e.strerror}", where=str(path), hint="name another directory") from e
    if path.stat().st_uid != os.geteuid():
        raise PenstockError("belongs to somebody else", where=str(path), hint="name another directory")
    if ours is None:
        return
    foreign = sorted(found - ours - {FSCK})
    if foreign:
        hint = "name a directory that is empty or penstock's own"
        raise PenstockError(f"holds files that are not penstock's: {foreign[0]}", where=str(path), hint=hint)
    try:
        path.chmod(mode)
    except OSError as e:
        raise PenstockError(f"cannot be used: {e.strerror}", where=str(path), hint="name another directory") from e


def open_to_all(path: Path) -> None:
    """Make a directory that everybody may read.  OSError; also when it is somebody else's, or a link."""
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise OSError(errno.ENOTDIR, "something else is where its directory should be", str(path))
    if found.st_uid != os.geteuid():
        raise OSError(errno.EPERM, "its directory belongs to somebody else", str(path))
    if stat.S_IMODE(found.st_mode) != 0o755:
        path.chmod(0o755)


def read(path: Path) -> bytes | None:
    """The content, None when there is no such file.  PenstockError when it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise PenstockError(f"cannot be read: {e.strerror}", where=str(path)) from e


def history(options: Options) -> tuple[bytes, ...]:
    """The good policies before the present one, as they were saved."""
    found = (read(options.state / name) for name in state.HISTORY)
    return tuple(data for data in found if data is not None)


def floor_said(options: Options) -> str:
    """What the floor said at boot, one line; empty when there was none."""
    try:
        with (options.run / FLOOR_SAID).open("rb") as file:
            said = file.read(MAX_SAID).decode("utf-8", "replace")
    except OSError:
        return ""
    return next(iter(said.splitlines()), "")


def tell(options: Options, tree: Path, depth: int) -> None:
    """Write RUN/daemon.json, by which the command line finds everything, also after the daemon's death."""
    facts = {
        "config": str(options.config.absolute()),
        "state": str(options.state.absolute()),
        "run": str(options.run.absolute()),
        "log": str(options.log.absolute()),
        "cgroup": str(tree),
        "pid": os.getpid(),
        "version": penstock.__version__,
        "depth": depth,
    }
    with writing(options.run / FACTS):
        files.replace(options.run / FACTS, json.dumps(facts).encode() + b"\n")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError inside the block is about writing `path`: say so."""
    try:
        yield
    except OSError as e:
        hint = _REMEDIES.get(e.errno or 0, "see the file and its directory")
        raise PenstockError(f"cannot be written: {e.strerror or e}", where=str(path), hint=hint) from e
