"""Where the demo keeps what it downloads, and how it runs the programs that download: with progress."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from penstock.errors import PenstockError

Say = Callable[[str], None]

_CHECKOUT = Path(__file__).parents[3]


def directory(name: str) -> Path:
    """A directory of that name in the cache: `.try_cache` in a checkout, else /var/cache/penstock."""
    base = _CHECKOUT / ".try_cache" if (_CHECKOUT / "agent/try").exists() else Path("/var/cache/penstock")
    path = base / name
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Keep other processes from filling the directory `path` meanwhile."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def give_to_owner(path: Path) -> None:
    """Let whoever owns the checkout own, and so be able to remove, what root put into the cache."""
    owner = _CHECKOUT.stat() if (_CHECKOUT / "agent/try").exists() else None
    if owner and owner.st_uid:
        for target in (path.parent, path):
            os.chown(target, owner.st_uid, owner.st_gid)
        ids = f"{owner.st_uid}:{owner.st_gid}"
        subprocess.run(["chown", "-R", "--no-dereference", ids, str(path)], check=False)


def run(argv: Sequence[str], on_line: Callable[[str], None] = lambda _: None) -> None:
    """Run a program to its end, handing on each line it prints; PenstockError with its last words if it fails."""
    last = ""
    env = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )
    except FileNotFoundError as e:
        raise PenstockError(f"{argv[0]} is not installed") from e
    with child:
        for line in child.stdout or ():
            if line.strip():
                last = line.strip() if not last.startswith("E:") else last
                on_line(line.rstrip())
    if child.returncode:
        raise PenstockError(f"{argv[0]} failed: {last}")
