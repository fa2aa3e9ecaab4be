"""Names of cgroups: where a workload lives below the tree that penstock was given.

systemd nests slices at every dash (systemd.slice(5)), so a dash of a workload's name is escaped, the way
systemd-escape(1) does: each workload then sits directly in penstock.slice.
"""

from __future__ import annotations

from shlex import quote

SLICE = "penstock.slice"
RESOLVER = f"{SLICE}/resolver"
"""The cgroup of the process that answers look-ups, below the tree."""

DROPIN = "50-penstock.conf"
"""The file in UNIT.d that puts a unit into its workload's slice."""


def slice_unit(workload: str) -> str:
    """The name of a workload's slice as a unit of systemd."""
    escaped = workload.replace("-", "\\x2d")
    return f"penstock-{escaped}.slice"


def slice_of(workload: str) -> str:
    """The path of a workload's slice below the tree."""
    return f"{SLICE}/{slice_unit(workload)}"


def scope_of(workload: str, pid: int) -> str:
    """The path of the scope that `penstock run` makes for itself."""
    return f"{slice_of(workload)}/run-{pid}.scope"


def adopt_scope_of(workload: str, pid: int) -> str:
    """The path of the scope that `penstock adopt` makes for a process and its tree."""
    return f"{slice_of(workload)}/adopt-{pid}.scope"


def restart_command(unit: str) -> str:
    """What a person types to restart a unit, or all instances of a template, which itself cannot be restarted."""
    return f"systemctl restart {quote(unit.replace('@.', '@*.'))}"
