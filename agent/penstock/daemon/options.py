"""What the daemon is told on its command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from penstock.core import metrics


@dataclass(frozen=True, slots=True)
class Options:
    """Directories; `cgroup` is the tree below which penstock.slice is made (None: the cgroup2 mount)."""

    config: Path = Path("/etc/penstock")
    state: Path = Path("/var/lib/penstock")
    run: Path = Path("/run/penstock")
    log: Path = Path("/var/log/penstock")
    cgroup: Path | None = None

    @property
    def metrics(self) -> Path:
        """The file for node_exporter, which runs as somebody else: `run` is closed to it, so it is beside."""
        return self.run.with_name(f"{self.run.name}-metrics") / metrics.FILE
