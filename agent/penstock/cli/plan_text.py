"""The difference between two policies, as people read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.cli.applied import path_of
from penstock.cli.format import counted, paint, wrapped
from penstock.core.plan import Kind, Plan, RuleChange, WorkloadChange
from penstock.core.policy import Policy
from penstock.core.reach import Opening, Reach
from penstock.core.restarts import Restart
from penstock.core.text import printable

SIGNS = {Kind.ADDED: ("+", "green"), Kind.REMOVED: ("-", "red"), Kind.CHANGED: ("~", "yellow")}
NOTHING = "nothing would change"
SHOWN = 8
"""Openings that one line spells out."""
LATER = " (not yet enforced)"
SIDES = {"out": "egress ", "in": "ingress ", "": ""}


@dataclass(frozen=True, slots=True)
class Shown:
    """Two policies and how they differ.  `restarts` is None when the units of the host are not known."""

    old: Policy | None
    new: Policy
    config: Path
    plan: Plan
    reach: Sequence[Reach]
    restarts: Sequence[Restart] | None


def screen(found: Shown) -> Iterator[str]:
    """The lines."""
    plan, reach = found.plan, {one.workload: one for one in found.reach}
    if plan.empty:
        same = found.old is not None and found.old.hash == found.new.hash
        yield NOTHING if same else f"{NOTHING}: the files differ in comments, order or tests only"
        yield from _units(found.restarts or ())
        return
    for workload in plan.workloads:
        yield _heading(workload.kind, "workload", workload.name)
        yield from _workload(workload, found.config)
        if workload.name in reach:
            yield from _reach(reach.pop(workload.name), workload.kind)
    for name, one in reach.items():
        yield _heading(Kind.CHANGED, "workload", name)
        yield "    its own rules stay; a network that they name changes"
        yield from _reach(one, Kind.CHANGED)
    for network in plan.networks:
        yield _heading(network.kind, "network", network.name)
        for text in network.details:
            yield from wrapped(text, 4)
        touched = ", ".join(f"{workload} {rule}" for workload, rule in network.touches[:8])
        more = f" and {len(network.touches) - 8} more" if len(network.touches) > 8 else ""
        yield from wrapped(f"rules that name it: {touched}{more}" if touched else "no rule names it", 4)
    for text in plan.host:
        yield _heading(Kind.CHANGED, "host", text)
    yield from _units(found.restarts or ())
    yield ""
    yield f"{_counts(plan)}; nothing is restarted.  Next: penstock apply"


def _units(restarts: Sequence[Restart]) -> Iterator[str]:
    if restarts:
        yield ""
        yield "Units"
    for one in restarts:
        yield from wrapped(f"{one.unit}: {one.text}{':' if one.command else ''}", 4)
        if one.command:
            yield f"      {printable(one.command, 300)}"  # to be copied


def _reach(one: Reach, kind: Kind) -> Iterator[str]:
    """What is newly allowed and denied.  Of a new workload the rules above say the former."""
    closed, opened = ("recorded from then on", "not recorded any more") if one.observed else ("denied", "allowed")
    prefix = "" if one.observed else "newly "
    if one.allowed and kind is not Kind.ADDED:
        yield from wrapped(f"{prefix}{opened}: {_openings(one.allowed)}", 4)
    if one.denied:
        yield from wrapped(f"{prefix}{closed}: {_openings(one.denied)}", 4)


def _openings(openings: Sequence[Opening]) -> str:
    words = [f"{SIDES[one.direction]}{one.text}{'' if one.enforced else LATER}" for one in openings[:SHOWN]]
    left = len(openings) - SHOWN
    return "; ".join(words) + (f"; and {left:,} more: penstock plan --json" if left > 0 else "")


def _heading(kind: Kind, what: str, name: str) -> str:
    sign, colour = SIGNS[kind]
    return paint(f"{sign} {what} {name}", colour)


def _workload(workload: WorkloadChange, config: Path) -> Iterator[str]:
    for text in workload.details:
        yield from wrapped(text, 4)
    for rule in workload.rules:
        yield from _rule(rule, config)


def _rule(rule: RuleChange, config: Path) -> Iterator[str]:
    sign, colour = SIGNS[rule.kind]
    side = "egress " if rule.direction == "out" else "ingress"
    for n, line in enumerate(wrapped(f"{sign} {side} {rule.text}", 6)):
        yield "  " + paint(line.strip(), colour) if n == 0 else paint(line, colour)
    if rule.kind is Kind.REMOVED:
        yield f"      {rule.id}"
    else:
        yield f"      {rule.id}  {path_of(rule.place, config)}:{rule.place.line}"
    for text in rule.details:
        yield from wrapped(text, 6)


def _counts(plan: Plan) -> str:
    rules = sum(len(workload.rules) for workload in plan.workloads)
    parts = [(len(plan.workloads), "workload"), (rules, "rule"), (len(plan.networks), "network")]
    return ", ".join(counted(count, noun) for count, noun in parts if count) or "host settings only"
