"""What would change: the difference between the policy that is applied and the one in the files.

Rules are told apart by their id, which is made from what they say, so a rule that was moved is no change.  What
cannot change a verdict (order, places, `tests:`) is no difference either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from penstock.core.language.rule_ids import peer_text
from penstock.core.name_rules import resolves
from penstock.core.nearest import describe
from penstock.core.policy import (
    Known,
    Mode,
    Network,
    NetworkPeer,
    Place,
    PlanePeer,
    Policy,
    Ports,
    Rule,
    Workload,
)
from penstock.core.text import printable

SHOWN = 8
"""Members of a list that a line spells out."""

MODES: Mapping[Mode, str] = {
    Mode.OBSERVE: "nothing is refused, only recorded",
    Mode.ENFORCE: "what no rule allows is refused",
    Mode.LOCK: "everything is refused",
}

OTHER_NAMES: Mapping[Mode, str] = {
    Mode.OBSERVE: "what no rule names is answered, and recorded",
    Mode.ENFORCE: "names that no rule has do not exist for it",
    Mode.LOCK: "no name exists for it",
}
"""What penstock's resolver makes of them."""


class Kind(StrEnum):
    """What happens to a thing."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class RuleChange:
    """`text` is the rule in a few words; `details` say what of it changes; `place` is where it stands."""

    kind: Kind
    id: str
    direction: str
    text: str
    details: tuple[str, ...] = ()
    place: Place = field(default=Place("", 0, 0), compare=False)


@dataclass(frozen=True, slots=True)
class WorkloadChange:
    """`details` are about the workload itself: its mode, how it is recognised."""

    kind: Kind
    name: str
    details: tuple[str, ...]
    rules: tuple[RuleChange, ...]


@dataclass(frozen=True, slots=True)
class NetworkChange:
    """`touches` are the rules that name it, as (workload, rule id)."""

    kind: Kind
    name: str
    details: tuple[str, ...]
    touches: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """`host` is what changes in the host's own settings, a phrase each."""

    workloads: tuple[WorkloadChange, ...] = ()
    networks: tuple[NetworkChange, ...] = ()
    host: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing changes."""
        return not (self.workloads or self.networks or self.host)


def difference(old: Policy | None, new: Policy) -> Plan:
    """Return what applying `new` changes where `old` is in force; None: nothing is."""
    before = old or Policy()
    return Plan(
        tuple(_workloads(before, new)),
        tuple(_networks(before, new)),
        (*_set("admin ports", _ports(before.admin_ports), _ports(new.admin_ports)), *_of_dns(before, new)),
    )


def as_json(plan: Plan) -> dict[str, Any]:
    """The object that `penstock plan --json` prints, but for what it adds."""
    return {
        "workloads": [
            {
                "change": w.kind.value,
                "name": w.name,
                "details": list(w.details),
                "rules": [
                    {
                        "change": r.kind.value,
                        "id": r.id,
                        "direction": r.direction,
                        "text": r.text,
                        "details": list(r.details),
                        "file": r.place.file,
                        "line": r.place.line,
                    }
                    for r in w.rules
                ],
            }
            for w in plan.workloads
        ],
        "networks": [
            {
                "change": n.kind.value,
                "name": n.name,
                "details": list(n.details),
                "touches": [{"workload": workload, "rule": rule} for workload, rule in n.touches],
            }
            for n in plan.networks
        ],
        "host": list(plan.host),
    }


def _kind(old: object, new: object) -> Kind:
    if old is None:
        return Kind.ADDED
    return Kind.REMOVED if new is None else Kind.CHANGED


def _workloads(old: Policy, new: Policy) -> Iterator[WorkloadChange]:
    for name in sorted(old.workloads.keys() | new.workloads.keys()):
        was, now = old.workloads.get(name), new.workloads.get(name)
        details, rules = tuple(_of_workload(was, now)), tuple(_rules(was, now))
        if was is None or now is None or details or rules:
            yield WorkloadChange(_kind(was, now), name, details, rules)


def _of_workload(old: Workload | None, new: Workload | None) -> Iterator[str]:
    if new is None:
        return
    if old is None:
        yield f"mode {new.mode}: {MODES[new.mode]}"
        return
    if old.mode is not new.mode:
        yield f"mode {old.mode} -> {new.mode}: {MODES[new.mode]}"
    if old.match != new.match:
        yield "how it is recognised (`match`)"
    if resolves(new) and not resolves(old):
        yield f"its look-ups go to penstock's resolver from then on: {OTHER_NAMES[new.mode]}"
    elif resolves(old) and not resolves(new):
        yield "penstock's resolver takes its look-ups no more: they go where its rules let them"
    yield from _known(old.known, new.known)


def _known(old: Sequence[Known], new: Sequence[Known]) -> Iterator[str]:
    """What presets know and leave closed: it decides what is said of a name that was refused."""
    told = tuple(_set("known and left closed", *([known.pattern for known in side] for side in (old, new))))
    yield from told
    if not told and old != new:
        yield "what presets say of the names that they leave closed"


def _rules(old: Workload | None, new: Workload | None) -> Iterator[RuleChange]:
    was = {rule.id: rule for rule in (old.rules if old else ())}
    now = {rule.id: rule for rule in (new.rules if new else ())}
    for rule in now.values():
        if rule.id not in was:
            yield _rule(Kind.ADDED, rule, tuple(_conditions(rule)))
        elif details := tuple(_of_rule(was[rule.id], rule)):
            yield _rule(Kind.CHANGED, rule, details)
    for rule in was.values():
        if rule.id not in now:
            yield _rule(Kind.REMOVED, rule, ())


def _rule(kind: Kind, rule: Rule, details: tuple[str, ...]) -> RuleChange:
    return RuleChange(kind, rule.id, rule.direction.value, describe(rule), details, rule.place)


def _conditions(rule: Rule) -> Iterator[str]:
    if rule.excepted:
        yield f"except {_some(map(peer_text, rule.excepted))}"
    if rule.expires is not None:
        yield f"until {rule.expires.isoformat()}"
    if rule.private:
        yield "names may resolve to private addresses"
    if rule.override:
        yield f"overrides {_some(rule.override)}: {printable(rule.reason)}"


def _of_rule(old: Rule, new: Rule) -> Iterator[str]:
    yield from _set("peers", map(peer_text, old.peers), map(peer_text, new.peers))
    yield from _set("ports", _ports(old.ports), _ports(new.ports))
    yield from _set("except", map(peer_text, old.excepted), map(peer_text, new.excepted))
    if old.direction is not new.direction:
        yield f"direction {old.direction} -> {new.direction}"
    if old.expires != new.expires:
        yield f"expires {_when(old)} -> {_when(new)}"
    if old.private != new.private:
        yield f"names may {'' if new.private else 'no longer '}resolve to private addresses"
    yield from _set("override", old.override, new.override)
    if old.reason != new.reason:
        yield f"reason: {printable(new.reason) or 'none'}"


def _when(rule: Rule) -> str:
    return "never" if rule.expires is None else rule.expires.isoformat()


def _networks(old: Policy, new: Policy) -> Iterator[NetworkChange]:
    for name in sorted(old.networks.keys() | new.networks.keys()):
        was, now = old.networks.get(name), new.networks.get(name)
        if was == now:
            continue
        planes = {network.plane for network in (was, now) if network is not None}
        touches = sorted({*_touched(old, name, planes), *_touched(new, name, planes)})
        details = tuple(_of_network(was or Network(name), now or Network(name)))
        yield NetworkChange(_kind(was, now), name, details, tuple(touches))


def _of_network(old: Network, new: Network) -> Iterator[str]:
    yield from _set("cidr", map(str, old.cidrs), map(str, new.cidrs))
    if old.interface != new.interface:
        yield f"interface {old.interface or 'none'} -> {new.interface or 'none'}"
    if old.plane is not new.plane:
        yield f"plane {old.plane or 'none'} -> {new.plane or 'none'}"


def _touched(policy: Policy, network: str, planes: set[Any]) -> Iterator[tuple[str, str]]:
    """Rules that name it, or a plane it is in or was in."""
    for workload in policy.workloads.values():
        for rule in workload.rules:
            for peer in (*rule.peers, *rule.excepted):
                named = isinstance(peer, NetworkPeer) and peer.name == network
                if named or (isinstance(peer, PlanePeer) and peer.plane in planes):
                    yield workload.name, rule.id


def _ports(ports: Ports) -> list[str]:
    return [*map(str, ports.ranges), *(["icmp"] if ports.icmp else [])]


def _of_dns(old: Policy, new: Policy) -> Iterator[str]:
    was, now = ([f"{u.address} port {u.port}" for u in policy.upstreams] for policy in (old, new))
    yield from _set("DNS servers", was, now)
    if was != now and sorted(was) == sorted(now):
        yield f"DNS servers are asked in this order: {_some(now)}"


def _set(what: str, old: Iterable[str], new: Iterable[str]) -> Iterator[str]:
    """`what: + a, b; - c`, when the two differ, in whatever order."""
    was, now = dict.fromkeys(old), dict.fromkeys(new)
    added = [item for item in now if item not in was]
    removed = [item for item in was if item not in now]
    parts = [f"{sign} {_some(items)}" for sign, items in (("+", added), ("-", removed)) if items]
    if parts:
        yield f"{what}: {'; '.join(parts)}"


def _some(items: Iterable[str]) -> str:
    words = [printable(item, 80) for item in items]
    more = f" and {len(words) - SHOWN:,} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more
