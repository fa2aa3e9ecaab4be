"""What a policy means for units that run: which are governed where they are, and which must restart for it.

Nothing is ever restarted by it.  A unit comes into its slice at its next restart, when a drop-in says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.core.match import Unit, claims, workload_of
from penstock.core.policy import Policy
from penstock.core.slices import DROPIN, restart_command

DROPIN_OF_IT = f"its drop-in {DROPIN}"


@dataclass(frozen=True, slots=True)
class Home:
    """What a drop-in says of a unit, or of all instances of a template.  `pending`: not before the next apply."""

    workload: str
    pending: bool = False


@dataclass(frozen=True, slots=True)
class Units:
    """The units of a host: those outside of penstock.slice, those in a workload's slice, and our drop-ins."""

    outside: Sequence[Unit] = ()
    inside: Mapping[str, str] = field(default_factory=dict)  # unit -> workload
    homes: Mapping[str, Home] = field(default_factory=dict)  # unit or template -> what its drop-in says

    def home_of(self, unit: str) -> Home | None:
        """What is said of a unit: by its own drop-in, or by that of its template."""
        return self.homes.get(unit) or self.homes.get(template_of(unit))


@dataclass(frozen=True, slots=True)
class Restart:
    """One unit; `workload` is the one it belongs to then, or "".  `command` helps, when there is one."""

    unit: str
    workload: str
    text: str
    command: str = ""


def template_of(unit: str) -> str:
    """`vllm@.service` for `vllm@7b.service`; "" for a unit that is no instance."""
    name, dot, kind = unit.rpartition(".")
    prefix, at, _ = name.partition("@")
    return f"{prefix}@.{kind}" if dot and at else ""


def restarts(old: Policy | None, new: Policy, units: Units) -> tuple[Restart, ...]:
    """What applying `new` where `old` is in force (None: nothing is) means for the units that run, by name."""
    before = old or Policy()
    found = [*_outside(before, new, units), *_inside(before, new, units)]
    return tuple(sorted(found, key=lambda one: one.unit))


def as_json(found: Sequence[Restart] | None) -> list[dict[str, Any]] | None:
    """The list `restarts` of `penstock plan --json`; None when the units are not known."""
    if found is None:
        return None
    return [
        {"unit": one.unit, "workload": one.workload or None, "text": one.text, "command": one.command or None}
        for one in found
    ]


def _outside(old: Policy, new: Policy, units: Units) -> Iterator[Restart]:
    for unit in units.outside:
        was, will = workload_of(old, unit), workload_of(new, unit)
        home = units.home_of(unit.name)
        if will is None:
            if was is not None:
                yield Restart(unit.name, "", f"no longer governed: it belonged to {was}")
        elif was != will or (home is not None and home.pending):
            yield _in_place(unit.name, will, home)


def _in_place(unit: str, workload: str, home: Home | None) -> Restart:
    now = "governed where it is at once"
    if home is None and not unit.endswith(".service"):
        return Restart(unit, workload, now)
    if home is None:
        return Restart(unit, workload, f"{now}; to give it a slice", f"penstock protect {unit}")
    if home.workload != workload:
        text = f"{now}, but {DROPIN_OF_IT} puts it into the slice of {home.workload} at its next restart"
        return Restart(unit, workload, text)
    return Restart(unit, workload, f"{now}; its slice at its next restart", restart_command(unit))


def _inside(old: Policy, new: Policy, units: Units) -> Iterator[Restart]:
    for unit, workload in units.inside.items():
        wanted = claims(new, unit)
        if workload not in new.workloads:
            if workload in old.workloads:
                text = f"stays in the slice of {workload}, which has no rules then, and may reach nothing, until"
                yield Restart(unit, "", f"{text} {DROPIN_OF_IT} is removed and it is restarted")
        elif wanted and workload not in wanted and claims(old, unit) != wanted:
            text = f"stays in the slice of {workload}, whatever `match` says, until {DROPIN_OF_IT} is changed"
            yield Restart(unit, workload, f"{text} and it is restarted")
