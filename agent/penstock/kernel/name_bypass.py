"""Who answers look-ups over a Unix socket, and which processes reach one: no packet, so no rule sees it.

Whether a socket is to be seen from another mount namespace stands in /proc/PID/mountinfo (proc_pid_mountinfo(5)),
which may be read of every process; its root directory and its namespace itself may not, without CAP_SYS_PTRACE.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

RESOLVED, NSCD, AVAHI = "/run/systemd/resolve/io.systemd.Resolve", "/run/nscd/socket", "/run/avahi-daemon/socket"
BUS = "/run/dbus/system_bus_socket"
BEHIND_BUS = (RESOLVED, AVAHI)
"""Who answers over the bus too: without them it is harmless."""

MAX_PROCESSES, MAX_NAMESPACES = 64, 16
"""Of one workload, that are looked at."""
MOST = 1 << 20  # bytes of a mountinfo


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo: what of the file system `device` is to be seen at `point`, below `root` of it."""

    id: int
    parent: int
    device: str
    root: PurePosixPath
    point: PurePosixPath


def exposed(pids: Iterable[int]) -> Iterator[tuple[str, int]]:
    """Sockets of this host that answer look-ups, each with the first of these processes that sees it."""
    sockets = present()
    found: set[str] = set()
    if not sockets:
        return
    known: set[str] = set()
    for pid in islice(pids, MAX_PROCESSES):
        text = _mountinfo(pid)
        namespace = text.partition("\n")[0]  # mounts have numbers that no other namespace has
        if namespace in known or len(known) == MAX_NAMESPACES:
            continue
        known.add(namespace)
        mounts = parse(text)
        for path, (device, inside) in sockets.items():
            if path not in found and sees(mounts, device, inside):
                found.add(path)
                yield path, pid


def present() -> dict[str, tuple[str, PurePosixPath]]:
    """Those that are there now: where, and in which file system, at which path of it."""
    there = [path for path in (RESOLVED, NSCD, AVAHI) if _is_socket(path)]
    if _is_socket(BUS) and any(path in there for path in BEHIND_BUS):
        there.append(BUS)
    mounts = parse(_mountinfo("self")) if there else []
    found = {}
    for path in there:
        mount = _over(mounts, PurePosixPath(path))
        if mount is not None:
            found[path] = (mount.device, mount.root / PurePosixPath(path).relative_to(mount.point))
    return found


def parse(mountinfo: str) -> list[Mount]:
    """The mounts that a process sees.  A line that makes no sense is left out."""
    found = []
    for line in mountinfo.split("\n"):
        words = line.split(" ")
        if len(words) > 6 and words[0].isdecimal() and words[1].isdecimal():
            root, point = (PurePosixPath(_unescape(word)) for word in words[3:5])
            found.append(Mount(int(words[0]), int(words[1]), words[2], root, point))
    return found


def sees(mounts: Sequence[Mount], device: str, inside: PurePosixPath) -> bool:
    """Whether a file at the path `inside` of that file system is to be seen under any name."""
    for mount in mounts:
        if mount.device == device and inside.is_relative_to(mount.root):
            name = mount.point / inside.relative_to(mount.root)
            if _over(mounts, name) is mount:
                return True
    return False


def _over(mounts: Sequence[Mount], path: PurePosixPath) -> Mount | None:
    """The mount in which a path ends, walking down from the root, as the kernel does."""
    ids = {mount.id for mount in mounts}
    on_the_way = [mount for mount in mounts if path.is_relative_to(mount.point)]
    steps = [mount for mount in on_the_way if mount.parent not in ids or mount.parent == mount.id]
    over = None
    while steps:
        over = min(steps, key=lambda mount: len(mount.point.parts))
        on_the_way.remove(over)
        steps = [mount for mount in on_the_way if mount.parent == over.id]
    return over


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def _mountinfo(pid: int | str) -> str:
    try:
        with open(f"/proc/{pid}/mountinfo", "rb") as file:
            return file.read(MOST).decode("utf-8", "surrogateescape")
    except OSError:
        return ""


def _unescape(text: str) -> str:
    """Blanks, tabs, newlines and backslashes stand there as three octal digits."""
    before, *others = text.split("\\")
    return before + "".join(chr(int(other[:3], 8)) + other[3:] for other in others if other[:3].isdecimal())
