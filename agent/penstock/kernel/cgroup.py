"""The cgroup v2 tree (cgroups(7)): where it is, our slices in it, and who is in them.

A cgroup's id, which rules match, is the inode of its directory.  Removing a directory and making it again gives
another id, so nothing here is remembered between calls.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from penstock.core.containers import is_container
from penstock.core.match import Unit
from penstock.core.slices import RESOLVER, SLICE, slice_of
from penstock.errors import PenstockError

MAX_PROCESSES = 10_000
"""Processes of one workload that are looked at; a tree of more is not read to its end."""

MAX_SLICES, MAX_UNITS = 1_000, 10_000
"""Slices and units of the host that are looked at."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount of cgroup2: `root` is the cgroup, as this namespace counts, that the mount point shows."""

    root: str
    point: Path


def mounts(mountinfo: str = "/proc/self/mountinfo") -> list[Mount]:
    """All mounts of cgroup2 that this process sees (proc_pid_mountinfo(5)); the later ones cover earlier ones."""
    found = []
    for line in Path(mountinfo).read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] == "cgroup2":
            root, point = before.split(" ")[3:5]
            found.append(Mount(_unescape(root), Path(_unescape(point))))
    return found


def _unescape(text: str) -> str:
    return text.encode().decode("unicode_escape") if "\\" in text else text


def default_tree() -> Path:
    """The mount point of cgroup2 where it is the only hierarchy.  PenstockError with the remedy otherwise."""
    found = mounts()
    if not found:
        hint = "boot with systemd.unified_cgroup_hierarchy=1, or mount it"
        raise PenstockError("this host has no cgroup v2", hint=hint)
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return Path("/sys/fs/cgroup")
    point = found[-1].point
    hint = f"boot with systemd.unified_cgroup_hierarchy=1, or name the tree yourself: --cgroup {point}"
    raise PenstockError("cgroup v1 and v2 are mixed on this host", where=str(point), hint=hint)


def path_of(tree: Path) -> str:
    """The path of `tree` from the root of this process's cgroup namespace, as /proc/PID/cgroup says it.

    PenstockError when it is no directory of a cgroup2 tree.
    """
    real = tree.resolve()
    around = [mount for mount in mounts() if real.is_relative_to(mount.point)]
    if not around or not (real / "cgroup.procs").exists():
        raise PenstockError("is not in a cgroup v2 tree", where=str(tree), hint="see: findmnt -t cgroup2")
    mount = max(around, key=lambda mount: len(mount.point.parts))
    if "/.." in mount.root:
        raise PenstockError("is outside of this process's cgroup namespace", where=str(tree))
    return str(Path(mount.root) / real.relative_to(mount.point))


def depth_of(path: str) -> int:
    """The level of penstock.slice in the tree at `path`, as `socket cgroupv2 level` counts it.

    Linux 6.11 and later count from the root of the cgroup namespace of whoever loads the rule; earlier ones from
    the real root, which is the same unless the daemon runs in a container.
    """
    return len(Path(path).parts[1:]) + 1


def slice_for_nft(tree: Path) -> str:
    """penstock.slice in `tree`, as nft looks for cgroups: from /sys/fs/cgroup, wherever else the tree is mounted.

    PenstockError when nft could not read the path.
    """
    path = os.path.relpath(tree / SLICE, "/sys/fs/cgroup")
    if not path.isprintable() or '"' in path:
        raise PenstockError("has a path that nft cannot read", where=str(tree), hint="name another directory")
    return path


def make(tree: Path, workloads: tuple[str, ...], *, resolver: bool = False) -> None:
    """Make penstock.slice, in it the slices of `workloads` and `resolver`'s cgroup, where they are missing."""
    for path in (SLICE, *([RESOLVER] if resolver else []), *(slice_of(name) for name in workloads)):
        try:
            os.mkdir(tree / path)
            os.chmod(tree / path, 0o755)  # whatever our umask: users have cgroups below it that they may enter
        except FileExistsError:
            continue
        except OSError as e:
            hint = "run the daemon as root, in the host's own cgroup namespace"
            raise PenstockError(f"cannot be made: {e.strerror}", where=str(tree / path), hint=hint) from e


def ids(tree: Path, workloads: tuple[str, ...], places: Iterable[str] = ()) -> dict[str, int]:
    """Path below `tree` -> id, as far as they are there: of penstock.slice, of the resolver's cgroup, of the
    workloads' slices, and of `places`.
    """
    found = {}
    for path in (SLICE, RESOLVER, *(slice_of(name) for name in workloads), *places):
        with contextlib.suppress(OSError):
            found[path] = os.stat(tree / path).st_ino
    return found


def slices(tree: Path) -> list[str]:
    """Paths below `tree` of the slices that are nested in each other from the top; what is in ours is left out.

    Only the host's service manager makes these.  Below a service are others, which users name as they like.
    """
    found = [""]
    for path in found:  # which grows meanwhile
        if path == SLICE or len(found) > MAX_SLICES:
            continue
        found += [f"{path}/{name}".lstrip("/") for name in _children(tree / path) if name.endswith(".slice")]
    return found[:MAX_SLICES]


def units(tree: Path) -> tuple[Unit, ...]:
    """Services and scopes of the host that are outside of penstock.slice (systemd.unit(5))."""
    found: list[Unit] = []
    for path in slices(tree):
        if path == SLICE:
            continue
        for name in _children(tree / path):
            if name.endswith((".service", ".scope")):
                place = f"{path}/{name}".lstrip("/")
                with contextlib.suppress(OSError):
                    # systemd puts a `_` before names that the kernel could take for its own files.
                    found.append(Unit(name.removeprefix("_"), place, os.stat(tree / place).st_ino))
    return tuple(found[:MAX_UNITS])


def our_slices(tree: Path) -> dict[str, int]:
    """Path below `tree` -> id, of penstock.slice, the slices in it, and the resolver's cgroup."""
    found = {}
    slices_in_it = [f"{SLICE}/{name}" for name in _children(tree / SLICE) if name.endswith(".slice")]
    for path in (SLICE, RESOLVER, *slices_in_it):
        with contextlib.suppress(OSError):
            found[path] = os.stat(tree / path).st_ino
    return found


def _children(directory: Path) -> list[str]:
    """Names of the cgroups directly in this one; empty when it is gone."""
    try:
        return sorted(entry.name for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def groups(tree: Path, workload: str) -> list[str]:
    """Paths below `tree` of the cgroups directly in the workload's slice: its units, and scopes of ours."""
    return [f"{slice_of(workload)}/{name}" for name in _children(tree / slice_of(workload))]


def containers(tree: Path, path: str) -> int:
    """How many cgroups of containers there are: this one, or those directly below it."""
    return sum(map(is_container, (path.rpartition("/")[2], *_children(tree / path))))


def owner(tree: Path, path: str) -> int | None:
    """The user who may move processes out of that cgroup, None when it is gone (cgroups(7), delegation)."""
    try:
        return os.stat(tree / path / "cgroup.procs").st_uid
    except OSError:
        return None


def processes(directory: Path) -> list[int]:
    """Pids in this cgroup and all below it, at most MAX_PROCESSES.  Empty when it is gone."""
    found: list[int] = []
    for place, _, _ in os.walk(directory):
        found += own_processes(Path(place))
        if len(found) >= MAX_PROCESSES:
            return found[:MAX_PROCESSES]
    return found


def own_processes(directory: Path) -> list[int]:
    """Pids in this very cgroup.  Empty when it is gone."""
    try:
        return [int(line) for line in (directory / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def sweep(tree: Path, workload: str) -> None:
    """Remove scopes that `penstock run` made and whose process, which names them, is gone with all others."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(tree / slice_of(workload)):
            kind, _, rest = entry.name.partition("-")
            pid = rest.removesuffix(".scope")
            if kind in ("run", "adopt") and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
                with contextlib.suppress(OSError):  # EBUSY: somebody is still in it
                    os.rmdir(entry.path)


def foreign(tree: Path) -> list[str]:
    """Names of cgroups in penstock.slice that no penstock made."""
    try:
        names = [entry.name for entry in os.scandir(tree / SLICE) if entry.is_dir()]
    except FileNotFoundError:
        return []
    ours = ("penstock-", "proof-")
    return sorted(name for name in names if not name.startswith(ours) and f"{SLICE}/{name}" != RESOLVER)
