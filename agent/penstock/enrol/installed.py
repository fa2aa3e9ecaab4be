"""What the installer put on this host, and who still sits in a slice of penstock's.

The installer leaves a list of every path (`manifest`); names that are known here are for a host that lost it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from penstock.core.slices import RESOLVER, SLICE
from penstock.core.text import printable
from penstock.errors import PenstockError
from penstock.files import DROP_INS, read_file

SERVICES = ("penstock.service", "penstock-floor-again.service", "penstock-floor.service")
"""In the order in which they can go."""
WANTED_BY = ("multi-user.target", "sysinit.target", "nftables.service", "firewalld.service", "ufw.service")
PROGRAM = PurePosixPath("usr/bin/penstock")
LIBRARY = PurePosixPath("usr/lib/penstock")
_UNITS = "usr/lib/systemd/system"
KNOWN = (
    *(f"/{_UNITS}/{name}" for name in SERVICES),
    *(f"/{_UNITS}/{name}" for name in ("penstock.slice", "penstock-.slice.d/10-penstock.conf")),
    f"/{_UNITS}/penstock-.slice.d/",
    "/usr/lib/systemd/system-sleep/penstock",
    "/usr/lib/tmpfiles.d/penstock.conf",
    "/usr/share/bash-completion/completions/penstock",
    "/usr/share/zsh/vendor-completions/_penstock",
    "/usr/share/fish/vendor_completions.d/penstock.fish",
    "/usr/share/man/man8/penstock.8",
)
"""All that the installer puts outside of the library, but for directories that it found missing."""
MANIFEST = "manifest"
MAX_GROUPS = 10_000


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are; `root` is another one in tests."""

    root: Path = Path("/")

    @property
    def library(self) -> Path:
        """Where penstock's own files are, and a fleet's drop-ins."""
        return self.root / LIBRARY

    def in_library(self) -> list[Path]:
        """What of it we put there: drop-ins of a fleet are somebody else's."""
        try:
            return sorted(path for path in self.library.iterdir() if path.name not in DROP_INS)
        except OSError:
            return []

    @property
    def program(self) -> Path:
        """The name under which people call it."""
        return self.root / PROGRAM

    @property
    def config(self) -> Path:
        """The operator's."""
        return self.root / "etc/penstock"

    @property
    def state(self) -> Path:
        """What was applied, and the floor."""
        return self.root / "var/lib/penstock"

    @property
    def run(self) -> Path:
        """The daemon's socket."""
        return self.root / "run/penstock"

    @property
    def metrics(self) -> Path:
        """Where the daemon leaves metrics."""
        return self.root / "run/penstock-metrics"

    @property
    def log(self) -> Path:
        """What was blocked."""
        return self.root / "var/log/penstock"

    @property
    def cgroup(self) -> Path:
        """Our slice in the cgroup tree."""
        return self.root / "sys/fs/cgroup" / SLICE

    @property
    def watch(self) -> Path:
        """Units that only last until the next boot."""
        return self.root / "run/systemd/system"


@dataclass(frozen=True, slots=True)
class Resident:
    """A cgroup in a slice of ours that is not empty: a unit, or a scope of `penstock run` or `adopt`."""

    name: str
    workload: str
    processes: int
    is_service: bool


def paths(places: Places) -> tuple[list[Path], list[Path]]:
    """Files outside of the library, and directories that were made for them, deepest first: those that are there.

    A line of the list that leads anywhere but below /usr is passed over: it is not the installer's.
    """
    try:
        lines = read_file(places.library / MANIFEST).decode("utf-8", "replace").splitlines()
    except PenstockError:
        lines = []
    named = {line for line in (*lines, *KNOWN) if line.startswith("/usr/") and ".." not in line.split("/")}
    inside = (f"/{LIBRARY}/", f"/{LIBRARY}")
    mine = sorted((line for line in named if not line.startswith(inside)), key=lambda line: (-len(line), line))
    outside = [line for line in mine if line.rstrip("/") != f"/{PROGRAM}"]
    files = [places.root / line.lstrip("/") for line in outside if not line.endswith("/")]
    directories = [places.root / line.strip("/") for line in outside if line.endswith("/")]
    return [path for path in files if os.path.lexists(path)], [path for path in directories if path.is_dir()]


def links(places: Places) -> tuple[list[Path], list[Path]]:
    """The symbolic links by which systemd starts our services, and directories that may hold nothing else."""
    made = [places.root / "etc/systemd/system" / f"{by}.wants" for by in WANTED_BY]
    found = [directory / name for directory in made for name in SERVICES]
    services = [directory for directory in made if directory.name.endswith(".service.wants")]
    return [path for path in found if path.is_symlink()], [path for path in services if path.is_dir()]


def is_ours(program: Path) -> bool:
    """Whether this name leads into our library, whatever of it is still there."""
    try:
        target = os.readlink(program)
    except OSError:
        return False
    return target.startswith(f"/{LIBRARY}/")


def residents(places: Places) -> list[Resident]:
    """Everybody who still sits in a slice of ours; a cgroup with sub-cgroups counts once, by its top."""
    found: dict[tuple[str, str], int] = {}
    for number, (place, _, _) in enumerate(os.walk(places.cgroup)):
        if number >= MAX_GROUPS:
            break
        try:
            count = len(Path(place, "cgroup.procs").read_text().split())
        except OSError:
            continue
        parts = Path(place).relative_to(places.cgroup).parts
        if count and parts[:1] != (RESOLVER.rpartition("/")[2],):  # that one goes with the daemon
            workload = _workload(parts[0]) if parts else ""
            top = next((part for part in parts if not part.endswith(".slice")), SLICE if not parts else parts[-1])
            found[(workload, top)] = found.get((workload, top), 0) + count
    return [
        Resident(printable(name), printable(workload), count, name.endswith(".service"))
        for (workload, name), count in sorted(found.items())
    ]


def _workload(slice_name: str) -> str:
    return slice_name.removeprefix("penstock-").removesuffix(".slice").replace("\\x2d", "-")
