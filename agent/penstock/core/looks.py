"""What a look at the live state brings: into `View`, and to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penstock.core import effects, events
from penstock.core.blocks import Process
from penstock.core.effects import Effect
from penstock.core.view import InForce, View


def look(view: View, in_force: InForce | None, request: int | None, *, around: bool = False) -> Effect:
    """Have counters, cgroups and processes looked at; those that were seen in a workload are watched."""
    workloads = tuple(sorted(in_force.policy.workloads)) if in_force else ()
    return effects.Examine(
        request, workloads, _watched(view, workloads), in_force.places if in_force else {}, around
    )


def _watched(view: View, workloads: Sequence[str]) -> Mapping[tuple[int, int], str]:
    watch = {(p.pid, p.started): name for name, seen in view.processes.items() for p in seen}
    watch.update({(stray.pid, stray.started): stray.workload for stray in view.strays})
    return {k: name for k, name in watch.items() if name in workloads}


def let_go(view: View, before: InForce | None, now: InForce) -> None:
    """Processes of a unit that a policy gave away have not left: they are not watched any more."""
    there = {unit.path for unit in view.units}
    was = before.places.items() if before else ()
    losers = {name for path, name in was if path in there and now.places.get(path) != name}
    if losers:
        view.processes = {name: found for name, found in view.processes.items() if name not in losers}


def take_in(view: View, event: events.Examined) -> list[Effect]:
    """Remember what was seen; say it when the rule files have errors now."""
    view.counters, view.processes, view.strays = event.counters, event.processes, event.strays
    view.groups, view.delegated = event.groups, event.delegated
    if event.look_alikes is not None:
        view.look_alikes = event.look_alikes
    if event.bypasses is not None:
        view.bypasses = event.bypasses
    if event.request is not None:
        view.listeners = event.listeners
    before = view.config_errors
    if event.config is not None:
        view.config_errors = event.config.errors
    if view.config_errors and not before:
        text = f"the rule files have {view.config_errors} errors; what was applied last stays in force"
        return [effects.Journal("error", text)]
    return []


def only_process(seen: tuple[events.Seen, ...], uid: int | None) -> Process | None:
    """Who sent it, when only one process can have: a record names the user, and no process."""
    mine = [process for process in seen if uid in (None, process.uid)]
    return Process(mine[0].pid, mine[0].comm) if len(mine) == 1 else None
