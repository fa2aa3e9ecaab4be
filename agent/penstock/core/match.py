"""Which workload a running unit belongs to, by its name: `match: {unit: GLOB}`.

A unit is told by its cgroup, which only the service manager of the host gives (`kernel.cgroup.units`): a name that
a user gives to a unit of his own does not count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from penstock.core.policy import Match, Policy

OURS = ("penstock.service", "penstock-floor.service", "penstock-floor-again.service")
"""Never a workload: a daemon that governs itself cannot be told from one that fails."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of the host that runs outside of penstock.slice."""

    name: str  # as systemd has it
    path: str  # of its cgroup, below the tree
    id: int  # of that cgroup


def claims(policy: Policy, unit: str) -> list[str]:
    """The workloads that match a unit of that name, in order; more than one is a mistake."""
    if unit in OURS:
        return []
    return [name for name in sorted(policy.workloads) if any(_fits(m, unit) for m in policy.workloads[name].match)]


def _fits(match: Match, unit: str) -> bool:
    """Whether the mapping is about units only, and about this one: all that it says must hold."""
    alone = not (match.container or match.bridge or match.exe)
    return bool(match.unit) and alone and fnmatchcase(unit, match.unit)


def workload_of(policy: Policy, unit: Unit) -> str | None:
    """The workload of a unit; of several that match, the first by name."""
    return next(iter(claims(policy, unit.name)), None)


def places(policy: Policy, units: Iterable[Unit]) -> dict[str, str]:
    """Cgroup path -> workload, of the units that are to be bound where they are."""
    found = {unit.path: workload_of(policy, unit) for unit in units}
    return {path: workload for path, workload in found.items() if workload is not None}
