"""Which workload a running unit belongs to, by its name: `match: {unit: GLOB}`.

A unit is told by its cgroup, which only the service manager of the host gives (`kernel.cgroup.units`): a name that
a user gives to a unit of his own does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache

from penstock.core.policy import Match, Policy

OURS = ("penstock.service", "penstock-floor.service", "penstock-floor-again.service")
"""Never a workload: a daemon that governs itself cannot be told from one that fails."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of the host that runs outside of penstock.slice."""

    name: str  # as systemd has it
    path: str  # of its cgroup, below the tree
    id: int  # of that cgroup


class Claims:
    """What a policy says of units, made ready for many of them: a host has hundreds, a policy perhaps as many."""

    def __init__(self, policy: Policy) -> None:
        self._names: dict[str, set[str]] = {}
        self._globs: list[tuple[re.Pattern[str], str]] = []
        for name, workload in policy.workloads.items():
            for glob in filter(None, map(_glob, workload.match)):
                if any(c in glob for c in "*?["):
                    self._globs.append((_compiled(glob), name))
                else:
                    self._names.setdefault(glob, set()).add(name)

    def of(self, unit: str) -> list[str]:
        """The workloads that match a unit of that name, in order; more than one is a mistake."""
        if unit in OURS:
            return []
        by_glob = {name for glob, name in self._globs if glob.match(unit)}
        return sorted(by_glob | self._names.get(unit, set()))


def _glob(match: Match) -> str | None:
    """What the mapping says of units, if it says nothing else: all that it says must hold."""
    return None if match.container or match.bridge or match.exe else match.unit


@lru_cache(4096)
def _compiled(glob: str) -> re.Pattern[str]:
    return re.compile(translate(glob))


def claims(policy: Policy, unit: str) -> list[str]:
    """The same for one unit."""
    return Claims(policy).of(unit)


def workload_of(policy: Policy, unit: Unit) -> str | None:
    """The workload of a unit; of several that match, the first by name."""
    return next(iter(claims(policy, unit.name)), None)


def places(policy: Policy, units: Iterable[Unit]) -> dict[str, str]:
    """Cgroup path -> workload, of the units that are to be bound where they are."""
    known = Claims(policy)
    found = {unit.path: known.of(unit.name) for unit in units}
    return {path: names[0] for path, names in found.items() if names}
