"""The process that answers look-ups: started in its cgroup, with one descriptor to us.

It is exec'd as root, because only root may be able to read a checkout, and gives its rights up itself
(`penstock.resolver.rights`) when it has imported what it needs and has read nothing of anybody.  It is in its
cgroup before its first instruction, so every socket that it makes is governed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import penstock
from penstock.errors import PenstockError
from penstock.kernel import child

LINK = 3
"""The descriptor of the link, in the resolver."""

_TOLD, _ALL = 4, 2**31 - 1

KEPT = ("LANG", "LC_ALL", "TZ")
"""What it sees of our environment."""

PATIENCE = 1.0
"""Seconds that the end of a killed process is waited for: it takes some milliseconds."""

_unreaped: set[int] = set()


@dataclass(frozen=True, slots=True)
class ResolverProcess:
    """`link` becomes readable, and empty, when it has ended."""

    pid: int
    link: socket.socket
    pidfd: int = field(repr=False)

    def close(self) -> None:
        """Kill it, and reap it.  Harmless if it has ended by itself."""
        self.link.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # without CAP_KILL: it ends with its link
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        select.select([self.pidfd], [], [], PATIENCE)
        os.close(self.pidfd)
        _unreaped.add(self.pid)
        _reap()


def _reap() -> None:
    """Whoever would not end in time is a zombie until somebody asks again."""
    for pid in tuple(_unreaped):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
        _unreaped.discard(pid)


def command() -> list[str]:
    """What is exec'd: this interpreter, without the directories of users and of the moment."""
    return [sys.executable, "-s", "-P", "-m", "penstock.resolver", str(LINK)]


def environment(ours: Mapping[str, str]) -> dict[str, str]:
    """What it sees.  The package is where ours is, which the interpreter may not find by itself."""
    return {
        **{name: ours[name] for name in KEPT if name in ours},
        "PYTHONPATH": str(Path(penstock.__file__).parents[1]),
    }


def spawn(directory: Path, argv: Sequence[str] | None = None) -> ResolverProcess:
    """Start it in the cgroup `directory`.  PenstockError when it cannot be put there, or cannot be started.

    It dies with the thread that called this, should that end first.
    """
    _reap()
    try:
        procs = os.open(directory / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError as e:
        raise PenstockError(f"cannot be entered: {e.strerror}", where=str(directory)) from e
    words = [os.fsencode(word) for word in (argv or command())]
    env = {os.fsencode(name): os.fsencode(value) for name, value in environment(os.environ).items()}
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    heard, told = os.pipe()  # from the child: why it could not be started; closed by its exec
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pid = child.fork(lambda: _become(procs, null, theirs.fileno(), told, words, env))
    for descriptor in (procs, null, told):
        os.close(descriptor)
    theirs.close()
    process = ResolverProcess(pid, ours, os.pidfd_open(pid))  # not reaped yet, so it is that one
    with os.fdopen(heard, "rb") as answer:
        said = answer.read()
    if said:
        process.close()
        number = int.from_bytes(said, sys.byteorder)
        raise PenstockError(f"the resolver cannot be started: {os.strerror(number)}", where=os.fsdecode(words[0]))
    return process


def _become(
    procs: int, null: int, link: int, told: int, argv: Sequence[bytes], env: Mapping[bytes, bytes]
) -> None:
    """The child."""
    # Out of the way of the numbers that they get: dup2 of one onto itself would leave it to be closed by exec.
    given = (procs, null, link, told)
    procs, null, link, told = (fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, _TOLD + 1) for one in given)
    os.dup2(told, _TOLD, inheritable=False)
    try:
        os.write(procs, b"0")
        for source, target in ((null, 0), (null, 1), (link, LINK)):
            os.dup2(source, target)
        os.closerange(_TOLD + 1, _ALL)  # also what the daemon was given by whoever started it
        os.chdir("/")
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.execve(argv[0], list(argv), dict(env))
    except OSError as e:
        os.write(_TOLD, (e.errno or errno.EIO).to_bytes(4, sys.byteorder))
        raise
