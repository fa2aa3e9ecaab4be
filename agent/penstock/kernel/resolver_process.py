"""The process that answers look-ups: started in its cgroup, without rights, with one descriptor to us.

It is exec'd as root, because only root may be able to read a checkout; it has read nothing of anybody when it
gives its rights up (`penstock.resolver`), and it is in its cgroup before its first instruction.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from penstock.errors import PenstockError

LINK = 3
"""The descriptor of the link, in the resolver."""

ENVIRONMENT = ("LANG", "LC_ALL", "TZ")
PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class ResolverProcess:
    """`link` becomes readable, and empty, when it has ended."""

    pid: int
    link: socket.socket

    def close(self) -> None:
        """End it, and wait for that: it is killed, which takes no time."""
        self.link.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def command() -> list[str]:
    """What is exec'd: this interpreter, without the user's own site directories."""
    return [sys.executable, "-I", "-m", "penstock.resolver", str(LINK)]


def spawn(directory: Path, argv: Sequence[str] | None = None) -> ResolverProcess:
    """Start it in the cgroup `directory`.  PenstockError when it cannot be put there."""
    try:
        procs = os.open(directory / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError as e:
        raise PenstockError(f"cannot be entered: {e.strerror}", where=str(directory)) from e
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    words = [os.fsencode(word) for word in (argv or command())]
    env = {os.fsencode(k): os.fsencode(os.environ[k]) for k in ENVIRONMENT if k in os.environ}
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _be_child(procs, null, theirs.fileno(), words, env)
    os.close(procs)
    os.close(null)
    theirs.close()
    return ResolverProcess(child, ours)


def _be_child(
    procs: int, null: int, link: int, argv: list[bytes], env: dict[bytes, bytes]
) -> NoReturn:
    """Only system calls between fork and exec.  Every other descriptor of ours is closed by exec."""
    try:
        os.write(procs, b"0")
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        copy = os.dup(link) if link == LINK else link
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(copy, LINK)
        os.chdir("/")
        os.execve(argv[0], argv, env)
    finally:
        os._exit(127)
