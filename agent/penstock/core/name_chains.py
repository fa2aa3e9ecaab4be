"""The chains for rules by name: what was learned lets packets out.  Look-ups are in `lookup_chains`.

Learned addresses are in sets, one of a family and `Group` of a workload.  The flows that they let in are
remembered with the group, because a connection outlives the answer it began with.  A flow begins only with a
learned address, and goes on without: a TCP segment that would begin a new connection is none of it.  Whoever takes
an address out because its rule goes revokes it first: its flows end at once, however many there are and whatever
packets write into their set meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import product

from penstock.core import control_ports
from penstock.core.actions import Final, Goto, Jump, Remember
from penstock.core.base_chains import UDP
from penstock.core.conditions import (
    AddressIn,
    Away,
    Before,
    Condition,
    Echo,
    End,
    FlowIn,
    PortIn,
    TcpAnswer,
    TcpData,
    TcpEnd,
)
from penstock.core.name_rules import Group
from penstock.core.ruleset import Chain, Holds, NameSet, Rule

LONG, ENDED, DATAGRAMS = 5 * 86_400, 120, 180
"""Seconds a flow is remembered: as long as the kernel tracks an idle TCP connection; after FIN or RST; of UDP."""

FAMILIES = (4, 6)


@dataclass(frozen=True, slots=True)
class NamePlan:
    """What the chains of a workload with rules by name depend on; `port` 0: nobody listens for its look-ups."""

    workload: str
    label: int  # its own in connections
    port: int
    groups: tuple[Group, ...]
    observed: bool = False  # nothing is denied: look-ups of a resolver that does not answer go where they went
    until: datetime | None = None  # it is observed up to then, and enforced from then on

    @property
    def echo(self) -> bool:
        """Some group allows echo requests."""
        return any(group.ports.icmp for group in self.groups)


def learned_set(workload: str, group: str, family: int) -> str:
    """The set of addresses learned for names of that group (its id)."""
    return f"names{family}_{workload}_{group}"


def flow_set(workload: str, group: str, family: int) -> str:
    """The set of flows that such an address let in."""
    return f"flows{family}_{workload}_{group}"


def revoked_set(workload: str, group: str, family: int) -> str:
    """The set of addresses to which such flows do not go on."""
    return f"revoked{family}_{workload}_{group}"


def revoked_of(name: str) -> str:
    """That set, for the name of one of learned addresses or of flows."""
    return "revoked" + name.removeprefix("names").removeprefix("flows")


def holds_flows(name: str) -> bool:
    """Whether that set is one of flows."""
    return name.startswith("flows")


def name_sets(plans: Sequence[NamePlan]) -> tuple[NameSet, ...]:
    """All sets of these workloads."""
    return tuple(
        name_set
        for plan in plans
        for group in plan.groups
        for family in FAMILIES
        for name_set in (
            NameSet(learned_set(plan.workload, group.id, family), family),
            NameSet(flow_set(plan.workload, group.id, family), family, Holds.FLOWS),
            NameSet(revoked_set(plan.workload, group.id, family), family, Holds.REVOKED),
        )
    )


_rule = Rule.of


def _until(group: Group) -> tuple[Condition, ...]:
    return (Before(group.expires),) if group.expires is not None else ()


def _groups(plan: NamePlan, here: bool) -> list[Group]:
    """A name that leads to an address of this host is somebody's trick, unless the rule says `private`."""
    return [group for group in plan.groups if group.private or not here]


def learned(plan: NamePlan, *, here: bool) -> list[Rule]:
    """For the chains of what leaves: to a learned address.  `here`: on loopback."""
    return [
        _rule(
            *_until(group),
            AddressIn(learned_set(plan.workload, group.id, f), f, End.DESTINATION),
            Jump(_named(plan.workload, group, f)),
        )
        for group, f in product(_groups(plan, here), FAMILIES)
    ]


def flows(plan: NamePlan, *, here: bool) -> list[Rule]:
    """For the same chains, behind all else: of a flow that a learned address let in."""
    rules = []
    for group, f in product(_groups(plan, here), FAMILIES):
        held = flow_set(plan.workload, group.id, f)
        kinds: list[tuple[Condition, int]] = []
        if _has(group, "tcp"):
            kinds += [(TcpEnd(), ENDED), (TcpAnswer(), LONG)]
        if _has(group, "udp"):
            kinds.append((UDP, DATAGRAMS))
        for kind, seconds in kinds:
            again = Remember(held, f, seconds)
            rules.append(_rule(*_until(group), kind, _flow(plan, group, f), again, Final.ACCEPT))
    return rules


def _flow(plan: NamePlan, group: Group, family: int, *, answer: bool = False) -> FlowIn:
    who = plan.workload, group.id, family
    return FlowIn(flow_set(*who), family, revoked_set(*who), answer)


def answered(plan: NamePlan) -> list[Rule]:
    """For the chain of what arrives as an answer.

    Answers of TCP need no rule: they are tracked.  Those to echo requests never come there: they have no socket.
    """
    return [
        _rule(*_until(group), UDP, _flow(plan, group, f, answer=True), Final.ACCEPT)
        for group, f in product(plan.groups, FAMILIES)
        if _has(group, "udp")
    ]


def echoes(plan: NamePlan) -> list[Rule]:
    """For the chain of echo requests."""
    return [
        _rule(
            *_until(group),
            *(() if group.private else (Away(),)),
            Echo(f),
            AddressIn(learned_set(plan.workload, group.id, f), f, End.DESTINATION),
            Final.ACCEPT,
        )
        for group in plan.groups
        if group.ports.icmp
        for f in FAMILIES
    ]


def own_chains(plan: NamePlan) -> list[Chain]:
    """Chains of a workload: for each group what a learned address opens."""
    return [
        chain
        for group, f in product(plan.groups, FAMILIES)
        for chain in (_pass(plan.workload, group, f), _ports(plan.workload, group, f))
    ]


def _named(workload: str, group: Group, family: int) -> str:
    return f"named{family}_{workload}_{group.id}"


def _has(group: Group, protocol: str) -> bool:
    return any(ports.protocol == protocol for ports in group.ports.ranges)


def _ports(workload: str, group: Group, family: int) -> Chain:
    go_on = Goto(f"pass{family}_{workload}_{group.id}")
    ranges = control_ports.opened(group.ports.ranges)
    rules = [_rule(PortIn(r.protocol, End.DESTINATION, r.first, r.last), go_on) for r in ranges]
    return Chain(_named(workload, group, family), tuple(rules))


def _pass(workload: str, group: Group, family: int) -> Chain:
    held = flow_set(workload, group.id, family)
    rules: list[Rule] = []
    if _has(group, "tcp"):
        # Not yet with its SYN: who gets no answer would fill the set.  Nor anew: the last ACK comes after FIN.
        rules.append(_rule(TcpData(), Remember(held, family, LONG, anew=False), Final.ACCEPT))
        rules.append(_rule(TcpEnd(), Remember(held, family, ENDED), Final.ACCEPT))
    if _has(group, "udp"):
        rules.append(_rule(UDP, Remember(held, family, DATAGRAMS), Final.ACCEPT))
    # When there is no room to remember, the learned address decides alone.
    return Chain(f"pass{family}_{workload}_{group.id}", (*rules, _rule(Final.ACCEPT)))
