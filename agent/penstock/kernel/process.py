"""What /proc says of a process (proc(5)).  A process may be gone at any moment: then the answer is None."""

from __future__ import annotations

from pathlib import Path

from penstock.core.events import Seen, Stray


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
    return Seen(pid, int(fields[19]), name, uid)


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
