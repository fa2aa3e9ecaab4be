"""Names of cgroups: where a workload lives below the tree that penstock was given.

systemd nests slices at every dash (systemd.slice(5)), so a dash of a workload's name is escaped, the way
systemd-escape(1) does: each workload then sits directly in penstock.slice.
"""

from __future__ import annotations

SLICE = "penstock.slice"


def slice_of(workload: str) -> str:
    """The path of a workload's slice below the tree."""
    escaped = workload.replace("-", "\\x2d")
    return f"{SLICE}/penstock-{escaped}.slice"


def scope_of(workload: str, pid: int) -> str:
    """The path of the scope that `penstock run` makes for itself."""
    return f"{slice_of(workload)}/run-{pid}.scope"
