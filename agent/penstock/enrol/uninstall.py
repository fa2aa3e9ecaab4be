"""Remove penstock from a host: a list of steps, which can be printed instead of taken.

Their order is such that an interruption leaves a host that works, and that a second run completes: first nothing
needs the floor any more, then nobody repairs the table, then nothing loads it again, then it goes; the program
itself goes last.  Nothing that is governed is stopped, restarted or moved.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from penstock import files
from penstock.core.ruleset import TABLE
from penstock.core.slices import RESOLVER
from penstock.core.text import printable
from penstock.enrol import dropin, installed, systemctl
from penstock.enrol.installed import Places, Resident
from penstock.errors import PenstockError
from penstock.kernel import cgroup, nft_removal

FLOOR, DAEMON = "penstock-floor.service", "penstock.service"
PATIENCE = 2.0  # seconds, for the end of a process that was killed
LEFTOVERS = "penstock-leftovers"
"""Units that remove our cgroups when the last process in them has gone.  They end with it, or at the next boot."""

_PATH_UNIT = """\
[Unit]
Description=penstock was uninstalled: wait until nobody is in its cgroups any more
[Path]
PathModified=/sys/fs/cgroup/penstock.slice/cgroup.events
"""
_SERVICE_UNIT = """\
[Unit]
Description=penstock was uninstalled: remove its cgroups that are empty
[Service]
Type=oneshot
ExecStart=-/usr/bin/find /sys/fs/cgroup/penstock.slice -depth -type d -exec rmdir {} +
ExecStart=/bin/sh -c 'if ! [ -e /sys/fs/cgroup/penstock.slice ]; then \\
  rm -f /run/systemd/system/penstock-leftovers.*; \\
  systemctl --no-block stop penstock-leftovers.path; systemctl --no-block daemon-reload; fi'
StandardError=null
"""


@dataclass(frozen=True, slots=True)
class Step:
    """What will be done, in words, and the doing."""

    text: str
    do: Callable[[], None]


def steps(places: Places, purge: bool) -> list[Step]:
    """All that there is to do on this host now; empty when nothing of penstock is there.

    PenstockError when it cannot be found out, or when something stands against all of it.
    """
    _refuse_stray_daemon(places)
    _refuse_dependents({one.unit for one in dropin.find()})
    return list(_steps(places, purge))


def _steps(places: Places, purge: bool) -> Iterator[Step]:
    kept, directories = installed.paths(places)
    links, wants = installed.links(places)
    drop_ins = dropin.find()
    if drop_ins:
        units = ", ".join(sorted({one.unit for one in drop_ins}))
        yield Step(f"remove the drop-ins that put {units} in slices; nothing is restarted", _remove_drop_ins)
    if _loaded(DAEMON) or links:
        yield Step("stop and disable the daemon and the floor; no rule changes yet", lambda: _stop(links, wants))
    if kept or directories or _loaded(FLOOR):
        text = f"remove {len(kept)} files from /usr: units, slices, completion, man page"
        yield Step(text, lambda: _remove_units(kept, directories))
    if nft_removal.is_there():
        yield Step(f"delete the table inet {TABLE}: from here on nothing is governed", nft_removal.delete)
    if places.cgroup.exists():
        yield Step("remove cgroups in penstock.slice that are empty", lambda: _remove_cgroups(places))
    doomed = [places.run, places.metrics, places.state, *((places.config, places.log) if purge else ())]
    doomed = [path for path in doomed if os.path.lexists(path)]
    if doomed:
        shown = ", ".join(f"/{path.relative_to(places.root)}" for path in doomed)
        yield Step(f"remove {shown}", lambda: _remove_trees(doomed))
    if places.in_library() or installed.is_ours(places.program):
        theirs = [name for name in files.DROP_INS if (places.library / name).exists()]
        but = f", but for {' and '.join(theirs)} in it" if theirs else ""
        yield Step(f"remove /usr/bin/penstock and /usr/lib/penstock{but}", lambda: _remove_program(places))


def consequences(residents: list[Resident]) -> list[str]:
    """Who still sits in a slice, and what that means; for people."""
    lines = []
    for one in residents:
        count = "1 process" if one.processes == 1 else f"{one.processes} processes"
        until = "its restart" if one.is_service else "its end"
        lines.append(f"{one.name} (workload {one.workload or 'none'}, {count}) stays in its slice until {until}")
    return lines


def _refuse_stray_daemon(places: Places) -> None:
    """A daemon that somebody runs in a terminal would put the table back."""
    try:
        descriptor = os.open(places.run / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if systemctl.show(DAEMON, ("MainPID",))["MainPID"] in ("", "0"):
            raise PenstockError(
                "a penstock daemon runs here that is no service", hint="end it, then try again"
            ) from None
    finally:
        os.close(descriptor)


def _refuse_dependents(ours: set[str]) -> None:
    """Whoever requires the floor by other means than our drop-in could not start without it."""
    for unit in _requirers(FLOOR):
        template = f"{unit.partition('@')[0]}@.service"
        if unit not in ours and ("@" not in unit or template not in ours):
            name = printable(unit)
            hint = f"remove that from its unit or drop-in, or it cannot start: systemctl cat '{name}'"
            raise PenstockError(f"requires {FLOOR} by a file that is not penstock's", where=name, hint=hint)


def _loaded(unit: str) -> bool:
    """Whether systemd knows it, or remembers it as running although its file is gone."""
    found = systemctl.show(unit, ("LoadState", "ActiveState"))
    return found["LoadState"] == "loaded" or found["ActiveState"] not in ("", "inactive")


def _remove_drop_ins() -> None:
    dropin.remove()


def _stop(links: list[Path], directories: list[Path]) -> None:
    if systemctl.show(DAEMON, ("ActiveState",))["ActiveState"] not in ("", "inactive"):
        systemctl.run("stop", "--", DAEMON, timeout=60)
    for link in links:
        _unlink(link)
    for directory in directories:
        dropin.remove_if_empty(directory)


def _remove_units(paths: list[Path], directories: list[Path]) -> None:
    _refuse_dependents(set())  # ours are none any more
    for path in paths:
        _unlink(path)
        _unlink(path.with_name(f"{path.name}.penstock-new"))
    for directory in directories:
        dropin.remove_if_empty(directory)
    systemctl.daemon_reload()
    # Without its file it may be stopped by hand; that changes no rule, and stops nobody, as nobody requires it.
    if systemctl.show(FLOOR, ("ActiveState",))["ActiveState"] not in ("", "inactive"):
        systemctl.run("stop", "--", FLOOR)
    for unit in installed.SERVICES:
        if systemctl.show(unit, ("ActiveState",))["ActiveState"] == "failed":
            systemctl.run("reset-failed", "--", unit)


def _requirers(unit: str) -> list[str]:
    """Units that cannot be without it.  systemctl quotes those with a backslash, as a shell would."""
    return shlex.split(systemctl.show(unit, ("RequiredBy",))["RequiredBy"])


def _remove_cgroups(places: Places) -> None:
    """Those that are empty; one in which somebody still is stays, and goes when it is empty."""
    _end_resolver(places.cgroup.parent / RESOLVER)
    listed = systemctl.run(
        "list-units", "--all", "--no-legend", "--plain", "--full", "--type=slice", "--", "penstock*.slice"
    )
    names = {line.split()[0] for line in listed.splitlines() if line.strip()}
    for unit in sorted(names, key=len, reverse=True):
        # Who else requires a slice sits in it by its own configuration, and would be stopped with it.
        if set(_requirers(unit)) <= names:
            systemctl.run("stop", "--", unit)
        else:
            names.discard(unit)
    for place, _, _ in os.walk(places.cgroup, topdown=False):
        with contextlib.suppress(OSError):  # EBUSY: somebody is in it
            os.rmdir(place)
    if places.cgroup.exists():
        files.replace(places.watch / f"{LEFTOVERS}.path", _PATH_UNIT.encode(), 0o644)
        files.replace(places.watch / f"{LEFTOVERS}.service", _SERVICE_UNIT.encode(), 0o644)
        systemctl.daemon_reload()
        systemctl.run("start", "--", f"{LEFTOVERS}.path")
        systemctl.run("start", "--", f"{LEFTOVERS}.service")  # they may all have gone a moment ago


def _end_resolver(directory: Path) -> None:
    """It ends with the daemon; whoever is there now outlived that, or is about to go."""
    for pid in cgroup.own_processes(directory):
        with contextlib.suppress(OSError), _descriptor(os.pidfd_open(pid)) as process:
            if pid in cgroup.own_processes(directory):  # still that one, and not the next with its number
                signal.pidfd_send_signal(process, signal.SIGKILL)
                select.select([process], [], [], PATIENCE)


@contextlib.contextmanager
def _descriptor(number: int) -> Iterator[int]:
    try:
        yield number
    finally:
        os.close(number)


def _remove_trees(paths: list[Path]) -> None:
    for path in paths:
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            continue
        except OSError as e:
            raise PenstockError(f"cannot be removed: {e.strerror}", where=str(path)) from e


def _remove_program(places: Places) -> None:
    """The list of what was installed goes last: by it the installer knows what an interrupted removal left."""
    manifest = places.library / installed.MANIFEST
    _remove_trees([path for path in places.in_library() if path.is_dir() and not path.is_symlink()])
    if installed.is_ours(places.program):
        _unlink(places.program)
    for path in places.in_library():
        if path != manifest:
            _unlink(path)
    _unlink(manifest)
    dropin.remove_if_empty(places.library)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        raise PenstockError(f"cannot be removed: {e.strerror}", where=str(path)) from e
