"""The units of this host, as `penstock plan` must know them: where each runs, and what our drop-ins say of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from penstock.core.restarts import Home, Units
from penstock.core.slices import slice_of
from penstock.enrol import dropin
from penstock.kernel import cgroup


def look(tree: Path, workloads: Iterable[str]) -> Units:
    """What is there now: below `tree`, the cgroup above penstock.slice, and in the slices of `workloads`.

    A slice or a directory that is not there holds nothing.
    """
    inside = {unit: name for name in workloads for unit in _services(tree / slice_of(name))}
    homes = {one.unit: Home(one.workload, not one.armed) for one in dropin.find()}
    return Units(cgroup.units(tree), inside, homes)


def _services(directory: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(directory) if entry.name.endswith(".service"))
    except OSError:
        return []
