"""What /proc says of a process (proc(5)).  A process may be gone at any moment: then the answer is None."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from penstock.core.events import LookAlike, Seen, Stray
from penstock.core.servers import recognise

MAX_AROUND, MAX_LOOK_ALIKES = 20_000, 20
"""Processes of the host that are looked at, and those that are told of."""
MAX_ARGV = 4096


def seen(pid: int) -> Seen | None:
    """The process, with the start time that tells it from a later one with its pid."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        # Of all in /proc/PID only the directory itself is not given to root when the process forbids to be dumped.
        uid = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None
    # The name stands in parentheses and may hold any byte, also ")": the last one closes it.
    name, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    if len(fields) < 20:
        return None
    return Seen(pid, int(fields[19]), name, uid, _network_of(pid) not in (None, _network_of("self")))


def _network_of(pid: int | str) -> int | None:
    """What tells network namespaces apart: each has files of its own in /proc/PID/net (network_namespaces(7)).

    /proc/PID/ns would say it too, and only to whoever may trace the process.
    """
    try:
        return os.stat(f"/proc/{pid}/net/dev").st_ino
    except OSError:
        return None


def cgroup_of(pid: int) -> str | None:
    """The cgroup v2 path of a process, from the root of our cgroup namespace."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    return next((line[3:] for line in lines if line.startswith("0::")), None)


def stray(pid: int, started: int, workload: str) -> Stray | None:
    """The process that was in a workload, if it still lives, as something that left it."""
    found = seen(pid)
    place = cgroup_of(pid)
    if found is None or place is None or found.started != started or _is_dead(pid):
        return None
    return Stray(pid, started, found.comm, workload, place)


def _is_dead(pid: int) -> bool:
    """A zombie is in no list of its cgroup's processes, and does nothing any more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[:1] in (["Z"], ["X"])


def argv_of(pid: int) -> list[str]:
    """The command line as the process has it now, cut to MAX_ARGV bytes: it may write there what it likes."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            data = file.read(MAX_ARGV)
    except OSError:
        return []
    return data.rstrip(b"\0").decode("utf-8", "replace").split("\0") if data else []


def look_alikes(governed: Callable[[str], bool]) -> tuple[LookAlike, ...]:
    """Processes that look like an inference server, in a cgroup that is not `governed`."""
    found = []
    for name in islice(filter(str.isdigit, os.listdir("/proc")), MAX_AROUND):
        pid = int(name)
        argv = argv_of(pid)
        seen_now = seen(pid) if argv else None
        server = recognise(seen_now.comm, argv) if seen_now else None
        if seen_now is None or server is None:
            continue
        place = cgroup_of(pid)
        if place is not None and not governed(place):
            found.append(LookAlike(pid, seen_now.comm, server.name, place))
        if len(found) == MAX_LOOK_ALIKES:
            break
    return tuple(found)
