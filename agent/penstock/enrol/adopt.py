"""`penstock adopt`: move a loose process, with all that descends from it, into a workload.

The scope it comes into is frozen until all is done: nothing of the tree runs, forks or opens anything between the
move and the end of its old sockets, which would otherwise keep the identity they were made with.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock.core.slices import SLICE, adopt_scope_of
from penstock.core.text import printable
from penstock.enrol import running
from penstock.enrol.running import Process
from penstock.errors import PenstockError
from penstock.kernel import cgroup, sockets
from penstock.kernel.credentials import GIVEN_UP
from penstock.kernel.launch import GONE
from penstock.kernel.process import cgroup_of

KERNEL_THREAD = 0x00200000  # PF_KTHREAD
DEAD = ("Z", "X")
PASSES = 200
FROZEN_WITHIN = 2.0
"""Seconds; a process that waits for a disk does not freeze, and is governed all the same."""
HELD_BACK = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
"""Not while the tree is frozen: nobody would thaw it."""

_CONTAINER = re.compile(
    r"(?:^|/)(?:(?:docker|libpod|crio|cri-containerd|buildkit|machine)-[^/]*\.scope|libpod-[0-9a-f]+"
    r"|docker|libpod_parent|crio|containerd|buildkit|kubepods|lxc|garden|[0-9a-f]{64}"
    r"|kubepods[^/]*\.slice|machine\.slice|lxc\.(?:payload|monitor)[^/]*)(?:/|$)"
)
_SERVICE = re.compile(r"/(?:[^/]+\.slice/)*([^/]+\.service)(?:/|$)")


@dataclass(frozen=True, slots=True)
class Row:
    """A process in the table, by proc_pid_stat(5)."""

    parent: int
    group: int
    session: int
    flags: int
    started: int


@dataclass(frozen=True, slots=True)
class Loose:
    """A process that may be adopted; `tree` are it and its descendants now."""

    process: Process
    started: int
    tree: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Adopted:
    """What is in the workload now.  `left` are sockets and processes that its rules do not reach."""

    scope: str
    processes: tuple[Process, ...]
    closed: int  # sockets
    left: tuple[str, ...]
    warnings: tuple[str, ...]


def examine(pid: int, tree: Path) -> Loose:
    """Look at a process.  PenstockError with the reason when it cannot be adopted; nothing is changed."""
    table = processes()
    row, process = table.get(pid), running.process(pid)
    if row is None or process is None:
        raise PenstockError(f"there is no process {pid}", hint="see: ps -e")
    who = f"process {pid} ({printable(process.comm, 32)})"
    if pid == 1:
        raise PenstockError("process 1 runs this host", hint="name the process of a server")
    if row.flags & KERNEL_THREAD:
        raise PenstockError(f"{who} is a thread of the kernel")
    members = descendants(pid, table)
    if os.getpid() in members:
        text = f"{who} is this command itself, or started it"
        raise PenstockError(text, hint="run it from elsewhere, or start the server with: penstock run")
    for member in members:
        name = who if member == pid else f"process {member}, which descends from {who},"
        _refuse_place(member, name, tree)
    for kind, text in (("net", "is in another network namespace"), ("pid", "is in a container of its own")):
        if _is_foreign(pid, kind):
            hint = "the host's rules see nothing there" if kind == "net" else "start the server by a unit"
            raise PenstockError(f"{who} {text}", hint=hint)
    return Loose(process, row.started, members)


def adopt(loose: Loose, workload: str, tree: Path) -> Adopted:
    """Move it, read back, and make its earlier sockets useless.  The workload must be in force.

    PenstockError when it could not be moved; what was moved by then stays, and is governed.
    """
    pid = loose.process.pid
    scope = adopt_scope_of(workload, pid)
    directory = tree / scope
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        with _frozen(directory, pid):
            row = processes().get(pid)
            if row is None or row.started != loose.started:
                raise PenstockError(f"process {pid} ended meanwhile")
            _move_tree(directory, scope, pid)
            inside = cgroup.processes(directory)
            outcome = sockets.kill(inside)
            elsewhere = [one for one in inside if _is_foreign(one, "net")]
            found = [process for one in inside if (process := running.process(one)) is not None]
            warnings = [text for one in found for text in _rights(one)]
    except OSError as e:
        where = printable(str(e.filename or directory), 4096)
        raise PenstockError(f"cannot be moved: {e.strerror}", where=where) from e
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    left = [*outcome.left, *(f"process {one}: in another network namespace" for one in elsewhere)]
    return Adopted(scope, tuple(found), outcome.dead, tuple(left), tuple(warnings))


def processes() -> dict[int, Row]:
    """All processes of the host that live."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                state, *rest = _stat(f"/proc/{name}")
                if state not in DEAD or len(os.listdir(f"/proc/{name}/task")) > 1:
                    parent, group, session = map(int, rest[:3])
                    found[int(name)] = Row(parent, group, session, int(rest[5]), int(rest[18]))
    return found


def _stat(directory: str) -> list[str]:
    """The fields behind the name, from the state on (proc_pid_stat(5))."""
    return Path(directory, "stat").read_text("utf-8", "replace").rpartition(")")[2].split()


def descendants(pid: int, table: Mapping[int, Row]) -> tuple[int, ...]:
    """The process and its descendants, parents first; those too that lost their parent and stayed in a process
    group or a session of one of them.
    """
    found = dict.fromkeys((pid,))
    while True:
        more = [
            one
            for one, row in table.items()
            if one not in found and one != 1 and not {row.parent, row.group, row.session}.isdisjoint(found)
        ]
        if not more:
            return tuple(found)
        found |= dict.fromkeys(more)


def _refuse_place(pid: int, who: str, tree: Path) -> None:
    """PenstockError when the process belongs to somebody: a service, a container, a workload."""
    whole = cgroup_of(pid)
    if whole is None:
        return  # gone meanwhile
    below = cgroup.path_of(tree).rstrip("/")
    place = whole.removeprefix(below) if whole.startswith(f"{below}/") else whole
    if place.startswith(f"/{SLICE}/"):
        raise PenstockError(f"{who} is in {printable(place)} already")
    if _CONTAINER.search(place):
        text = f"{who} is in a container ({printable(place)}), where moving it would break its limits"
        raise PenstockError(text, hint="see `Containers` in: penstock manual operating")
    service = _SERVICE.match(place)
    if service and not service[1].startswith("user@"):
        name = printable(service[1])
        raise PenstockError(f"{who} belongs to {name}", hint=f"penstock protect {name}")


def _is_foreign(pid: int, kind: str) -> bool:
    """Whether a process is in another namespace of that kind than we are."""
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino
    except OSError:
        return False


@contextlib.contextmanager
def _frozen(directory: Path, pid: int) -> Iterator[None]:
    """The scope, with the process in it, and frozen until the end of the block; gone again when it stays empty."""
    for attempt in range(PASSES):
        try:
            directory.mkdir(mode=0o755, exist_ok=True)  # not its parents: without its slice it is not in force
            (directory / "cgroup.freeze").write_text("1")
            (directory / "cgroup.procs").write_text(str(pid))
            break
        except OSError as e:  # the daemon removes empty scopes
            if e.errno not in GONE or attempt == PASSES - 1 or not directory.parent.is_dir():
                _thaw(directory)
                raise
    try:
        yield
    finally:
        _thaw(directory)


def _thaw(directory: Path) -> None:
    with contextlib.suppress(OSError):
        (directory / "cgroup.freeze").write_text("0")
    with contextlib.suppress(OSError):  # somebody is in it
        directory.rmdir()


def _move_tree(directory: Path, scope: str, pid: int) -> None:
    """Until nobody of the tree is outside and all inside stand still."""
    for _ in range(PASSES):
        outside = [one for one in descendants(pid, processes()) if _is_outside(one, scope)]
        for one in outside:
            with contextlib.suppress(ProcessLookupError):
                (directory / "cgroup.procs").write_text(str(one))
        if not outside:
            if not _await_frozen(directory):
                return
            if not any(_is_outside(one, scope) for one in descendants(pid, processes())):
                return
    raise PenstockError(f"the tree of process {pid} grows faster than it can be moved", hint="stop it first")


def _is_outside(pid: int, scope: str) -> bool:
    """Whether a thread of the process is elsewhere.  A first thread that ended stays where it was, and is none."""
    with contextlib.suppress(OSError, IndexError):
        if _stat(f"/proc/{pid}")[0] not in DEAD:
            return f"/{scope}/" not in f"{cgroup_of(pid) or f'/{scope}'}/"
        for task in os.listdir(f"/proc/{pid}/task"):
            place = Path(f"/proc/{pid}/task/{task}/cgroup").read_text("utf-8", "replace").rstrip("\n")
            if _stat(f"/proc/{pid}/task/{task}")[0] not in DEAD and not place.endswith(f"/{scope}"):
                return True
    return False


def _await_frozen(directory: Path) -> bool:
    """Whether all in it stand still."""
    deadline = time.monotonic() + FROZEN_WITHIN
    while "frozen 1" not in (directory / "cgroup.events").read_text():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.002)
    return True


def _rights(process: Process) -> Iterator[str]:
    """What lets a process get past its rules, and stays with it."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{process.pid}/status").read_text("utf-8", "replace")
        held = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
        names = [name for name, bit in GIVEN_UP.items() if held and int(held[1], 16) >> bit & 1]
        if names:
            who = f"process {process.pid} ({printable(process.comm, 32)})"
            yield f"{who} keeps {', '.join(names)}, and could get past its rules"
