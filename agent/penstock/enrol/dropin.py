"""The drop-in that puts a unit into its workload's slice: `UNIT.d/50-penstock.conf` in /etc/systemd/system.

It waits as `50-penstock.conf.pending`, a name that systemd does not read, until the workload is in force: a slice
without rules denies everything, and an unlucky restart would cut off a model server.  A file is ours when its
first line says so; nobody else's is ever written over, renamed or removed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from penstock.core.slices import DROPIN, slice_unit
from penstock.core.text import printable
from penstock.enrol import systemctl
from penstock.errors import PenstockError
from penstock.files import put, read_file, replace

UNITS = Path("/etc/systemd/system")
PENDING = f"{DROPIN}.pending"
LOOK_UP = ("systemd-resolved.service", "nscd.service", "avahi-daemon.service")
"""What is not there yet when a unit starts cannot be hidden from it.  The system bus comes before all services."""

RESOLVE = Path("/run/systemd/resolve")


class Hide(Enum):
    """What is hidden from a unit, in lines of its drop-in.

    Directories where that can be, because a mount over a socket goes when its owner makes the socket anew, as each
    restart of systemd-resolved does.  Its directory also holds what /etc/resolv.conf leads to.
    """

    RESOLVED = """\
InaccessiblePaths=-/run/dbus -/run/nscd -/run/avahi-daemon
TemporaryFileSystem=/run/systemd/resolve:ro
BindReadOnlyPaths=-/run/systemd/resolve/resolv.conf -/run/systemd/resolve/stub-resolv.conf
"""
    # On a host without it the directory would be made, and left there.
    NO_RESOLVED = """\
InaccessiblePaths=-/run/dbus -/run/nscd -/run/avahi-daemon -/run/systemd/resolve/io.systemd.Resolve
"""
    # With `+` paths count from the unit's own root, which has the sockets only if the unit binds them there.  Here
    # too a directory would be made, and where that is not possible the unit would fail.
    OWN_ROOT = """\
InaccessiblePaths=-+/run/dbus -+/run/nscd -+/run/avahi-daemon -+/run/systemd/resolve/io.systemd.Resolve
"""


_OURS = re.compile(r"# Written by `penstock protect`: (\S{1,255}) belongs to the workload ([a-z0-9-]{1,48})\.\n")


@dataclass(frozen=True, slots=True)
class DropIn:
    """One of ours.  `armed`: systemd reads it, so the unit's next start is in the slice."""

    unit: str
    workload: str
    path: Path
    armed: bool


def hide(rooted: bool) -> Hide:
    """What to hide on this host, as it is now.  `rooted`: the unit has a root directory or image of its own."""
    if rooted:
        return Hide.OWN_ROOT
    return Hide.RESOLVED if RESOLVE.is_dir() else Hide.NO_RESOLVED


def text(unit: str, workload: str, hidden: Hide = Hide.RESOLVED) -> str:
    """The content of the file."""
    return f"""\
# Written by `penstock protect`: {unit} belongs to the workload {workload}.
# The unit needs the floor, the last good rules, and only wants the daemon: an upgrade never stops a model server.
[Unit]
Requires=penstock-floor.service
After=penstock-floor.service {" ".join(LOOK_UP)}
Wants=penstock.service

[Service]
Slice={slice_unit(workload)}
# With these it could send packets past the rules, change them, or leave its slice.
CapabilityBoundingSet=~CAP_NET_RAW CAP_NET_ADMIN CAP_SYS_ADMIN
# Here others look names up for whoever asks, past the rules: the system bus, nscd, avahi, systemd-resolved.
{hidden.value}"""


def armed_path(unit: str) -> Path:
    """Where systemd reads it."""
    return UNITS / f"{unit}.d" / DROPIN


def pending_path(unit: str) -> Path:
    """Where it waits."""
    return UNITS / f"{unit}.d" / PENDING


def of_unit(unit: str) -> DropIn | None:
    """Ours for that unit, or None.  PenstockError, naming the file, when somebody else's is there."""
    for path, armed in ((armed_path(unit), True), (pending_path(unit), False)):
        found = _read(path, armed)
        if found is not None:
            return found
        if os.path.lexists(path):
            raise PenstockError("is not from penstock", where=str(path), hint="move it away, then try again")
    return None


def write_pending(unit: str, workload: str, hidden: Hide = Hide.RESOLVED) -> bool:
    """Have the drop-in wait, unless it is there already; whether a file was written.

    PenstockError when the place is somebody else's, or the unit another workload's; OSError when it cannot be
    written.
    """
    found = of_unit(unit)
    if found is None:
        path = pending_path(unit)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        replace(path, text(unit, workload, hidden).encode(), 0o644)
        return True
    if found.workload != workload:
        raise PenstockError(f"puts {unit} into the workload {found.workload}", where=str(found.path))
    return False


def is_stale(one: DropIn, hidden: Hide = Hide.RESOLVED) -> bool:
    """Whether it says something else: of an earlier penstock, of a host without systemd-resolved, or changed."""
    return read_file(one.path).decode("utf-8", "replace") != text(one.unit, one.workload, hidden)


def renew(one: DropIn, hidden: Hide = Hide.RESOLVED) -> None:
    """Write it anew where it is; it counts for the unit's next start.  OSError when it cannot be written."""
    replace(one.path, text(one.unit, one.workload, hidden).encode(), 0o644)
    if one.armed:
        systemctl.daemon_reload()


def arm(workloads: Collection[str]) -> list[tuple[str, str]]:
    """Let the waiting drop-ins of workloads in force count; nothing is restarted.

    Returns (unit, workload) of those that count from now on.  PenstockError when one cannot be renamed.
    """
    found = [one for one in find() if not one.armed and one.workload in workloads]
    done = []
    for one in found:
        target = armed_path(one.unit)
        if os.path.lexists(target) and _read(target, True) is None:
            raise PenstockError("is not from penstock", where=str(target), hint="move it away: penstock apply")
        try:
            put(one.path, target)
        except OSError as e:
            raise PenstockError(f"cannot be put in place: {e.strerror}", where=str(one.path)) from e
        done.append((one.unit, one.workload))
    if done:
        systemctl.daemon_reload()
    return done


def find() -> list[DropIn]:
    """All of ours, armed and waiting, by unit."""
    return sorted(_all(), key=lambda one: (one.unit, one.path))


def remove() -> list[DropIn]:
    """Remove all of ours, and directories that held nothing else; nothing is restarted.  Returns what it was."""
    found = find()
    for one in found:
        try:
            one.path.unlink()
        except OSError as e:
            raise PenstockError(f"cannot be removed: {e.strerror}", where=str(one.path)) from e
        remove_if_empty(one.path.parent)
    if found and systemctl.available():
        systemctl.daemon_reload()
    return found


def remove_if_empty(directory: Path) -> None:
    """Leave no empty directory behind."""
    with contextlib.suppress(OSError):
        directory.rmdir()


def _all() -> Iterator[DropIn]:
    try:
        names = [name for name in os.listdir(UNITS) if name.endswith(".d")]
    except OSError:
        return
    for name in names:
        for path, armed in ((UNITS / name / DROPIN, True), (UNITS / name / PENDING, False)):
            found = _read(path, armed)
            if found is not None and found.unit == name.removesuffix(".d"):
                yield found


def _read(path: Path, armed: bool) -> DropIn | None:
    """What its first line says; None when it is not there or not ours."""
    try:
        said = _OURS.match(read_file(path).decode("utf-8", "replace"))
    except PenstockError:
        return None
    return DropIn(printable(said[1]), said[2], path, armed) if said else None
