"""Turning this process into a program of a workload, in place: the terminal and the exit status are the program's.

The order makes it safe.  Into the cgroup first, so that nothing of the program ever ran elsewhere.  Then close
what the cgroup does not govern: a socket keeps the cgroup in which it was made.  Then give up rights, read that
back, and only then exec.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from penstock.core.slices import scope_of
from penstock.errors import PenstockError
from penstock.kernel import credentials
from penstock.kernel.credentials import User
from penstock.kernel.process import cgroup_of

STANDARD = (0, 1, 2)
TRIES = 100
GONE = (errno.ENOENT, errno.ENODEV)
"""The daemon removes empty scopes: ours may go before we are in it."""


def prepare_standard() -> None:
    """Open what is missing of stdin, stdout and stderr, and refuse network sockets there.

    A missing one would be taken by the next file that is opened.  A socket carries the identity of whoever made
    it, so traffic over it would not be the workload's.  PenstockError then.
    """
    for descriptor in STANDARD:
        try:
            mode = os.fstat(descriptor).st_mode
        except OSError:  # the lowest free number, so this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            continue
        if stat.S_ISSOCK(mode) and _family(descriptor) != socket.AF_UNIX:
            name = ("standard input", "standard output", "standard error")[descriptor]
            text = f"{name} is a network socket, which the workload's rules would not govern"
            raise PenstockError(text, hint="put a pipe in between: ... | penstock run ... | cat")


def _family(descriptor: int) -> int:
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        return copy.family


def enter(tree: Path, workload: str) -> str:
    """Make a scope for this process in the workload's slice below `tree`, move there, and read it back.

    Returns the scope's path below `tree`.  PenstockError when the process is not there afterwards.
    """
    scope = scope_of(workload, os.getpid())
    directory = tree / scope
    try:
        _move(directory)
    except OSError as e:
        raise PenstockError(f"cannot enter the cgroup: {e.strerror}", where=str(directory)) from e
    found = cgroup_of(os.getpid()) or ""
    if not found.endswith(f"/{scope}"):
        raise PenstockError(f"is in the cgroup {found or 'unknown'} and not in {scope}", where="this process")
    return scope


def _move(directory: Path) -> None:
    for attempt in range(1, TRIES + 1):
        try:
            directory.mkdir(mode=0o755, exist_ok=True)  # not its parents: without its slice it is not in force
            (directory / "cgroup.procs").write_text("0")
            return
        except OSError as e:
            if e.errno not in GONE or attempt == TRIES or not directory.parent.is_dir():
                raise


def close_others() -> None:
    """Close every descriptor above standard error."""
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor not in STANDARD:
            try:
                os.close(descriptor)
            except OSError:
                continue  # the one through which the directory was read


def environment(who: User, inherited: Mapping[str, str]) -> dict[str, str]:
    """What the program sees: what we were given, and the user's own home, name and shell."""
    own = {"HOME": who.home, "USER": who.name, "LOGNAME": who.name, "SHELL": who.shell or "/bin/sh"}
    return {**inherited, **own}


def become(tree: Path, workload: str, who: User) -> None:
    """Everything but the exec.  PenstockError, and the process must end, when any of it failed."""
    enter(tree, workload)
    close_others()
    try:
        credentials.become(who)
    except OSError as e:
        raise PenstockError(f"cannot give up rights: {e.strerror or e}") from e
    credentials.check(who)


def execute(argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Become the program, with the signals as a shell would start it.  OSError when it cannot be started."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ignored before us: it stays so, as with nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.execvpe(argv[0], list(argv), dict(env))
