"""What /proc says of a process (proc(5)).  A process may be gone at any moment: then the answer is None."""

from __future__ import annotations

from pathlib import Path

from penstock.core.events import Seen, Stray


def seen(pid: int) -> Seen | None:
    """The process, with the start time that tells it from a later one with its pid."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return None
    # Not the owner of /proc/PID: that is root for whoever forbids to be dumped (prctl(2)).
    uids = status.partition(b"\nUid:\t")[2].split(None, 2)
    # The name stands in parentheses and may hold any byte, also ")": the last one closes it.
    name, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    if len(fields) < 20 or len(uids) < 2:
        return None
    return Seen(pid, int(fields[19]), name, int(uids[1]))


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
