"""The chains for rules by name: how look-ups reach the resolver, and what was learned lets packets out.

A look-up of a workload, to whatever server it is, is redirected to the listener of that workload; nothing else may
reach the listener.  Connection tracking would lend the redirect to whoever gets the same source port next, so
look-ups over UDP are tracked in a zone of their workload.  (Over TCP a new SYN begins anew.  Zones work only while
some nat chain is there; ours is.)

Learned addresses are in sets, one of a family and `Group` of a workload.  The flows that they let in are
remembered with the group, because a connection outlives the answer it began with; whoever takes an address out
takes its flows out too.  A flow begins only with a learned address, and goes on without: a TCP segment that would
begin a new connection is none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from penstock.core.cgroup_maps import ASKS, RESOLVER_IN, RESOLVER_OUT, ZONES, place_name_maps
from penstock.core.name_rules import Group
from penstock.core.ruleset import (
    AddressIn,
    AskedAt,
    Before,
    Chain,
    Condition,
    Count,
    Dispatch,
    Echo,
    End,
    Final,
    FlowIn,
    Goto,
    Hook,
    InSet,
    Jump,
    LocalDestination,
    Loopback,
    NameSet,
    PortIn,
    Protocol,
    Redirect,
    Redirected,
    Remember,
    Reply,
    Rule,
    SetZone,
    TcpAnswer,
    TcpData,
    TcpEnd,
    TcpStart,
    Tracked,
)

PORT = 53
FIRST_ZONE = 28_800
"""Zones are numbers of 16 bits that all of the host shares; nobody is known to use those from here on."""

LONG, ENDED, DATAGRAMS = 5 * 86_400, 120, 180
"""Seconds a flow is remembered: as long as the kernel tracks an idle TCP connection; after FIN or RST; of UDP."""

UPSTREAM = {4: "upstream4", 6: "upstream6"}
"""Sets of the servers that the resolver may ask."""

FAMILIES = (4, 6)


@dataclass(frozen=True, slots=True)
class NamePlan:
    """What the chains of a workload with rules by name depend on; `port` 0: nobody listens for its look-ups."""

    workload: str
    zone: int
    port: int
    groups: tuple[Group, ...]

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


def name_sets(plan: NamePlan) -> tuple[NameSet, ...]:
    """All sets of a workload."""
    return tuple(
        name_set
        for group in plan.groups
        for family in FAMILIES
        for name_set in (
            NameSet(learned_set(plan.workload, group.id, family), family),
            NameSet(flow_set(plan.workload, group.id, family), family, flows=True),
        )
    )


_rule = Rule.of


UDP = Protocol("udp")


def _until(group: Group) -> tuple[Condition, ...]:
    return (Before(group.expires),) if group.expires is not None else ()


def opened(plan: NamePlan, *, here: bool) -> list[Rule]:
    """For the chains of what leaves: to a learned address, or of a flow that one let in.  `here`: on loopback.

    A name that leads to an address of this host is somebody's trick, unless the rule says `private`.
    """
    groups = [group for group in plan.groups if group.private or not here]
    name = plan.workload
    learned, flows = [], []
    for group, f in product(groups, FAMILIES):
        to_learned = AddressIn(learned_set(name, group.id, f), f, End.DESTINATION)
        learned.append(_rule(*_until(group), to_learned, Jump(_named(name, group))))
        held = flow_set(name, group.id, f)
        kinds: list[tuple[Condition, int]] = []
        if _has(group, "tcp"):
            kinds += [(TcpEnd(), ENDED), (TcpAnswer(), LONG)]
        if _has(group, "udp"):
            kinds.append((UDP, DATAGRAMS))
        for kind, seconds in kinds:
            again = Remember(held, f, seconds)
            flows.append(_rule(*_until(group), kind, FlowIn(held, f), again, Final.ACCEPT))
    return [*learned, *flows]


def answered(plan: NamePlan) -> list[Rule]:
    """For the chain of what arrives as an answer.  (Answers of TCP need no rule: they are tracked.)"""
    rules = []
    for group in plan.groups:
        for f in FAMILIES:
            if _has(group, "udp"):
                held = flow_set(plan.workload, group.id, f)
                rules.append(_rule(*_until(group), UDP, FlowIn(held, f, answer=True), Final.ACCEPT))
            if group.ports.icmp:
                held = learned_set(plan.workload, group.id, f)
                rules.append(_rule(*_until(group), Protocol("icmp"), AddressIn(held, f, End.SOURCE), Final.ACCEPT))
    return rules


def echoes(plan: NamePlan) -> list[Rule]:
    """For the chain of echo requests."""
    return [
        _rule(
            *_until(group),
            Echo(f),
            AddressIn(learned_set(plan.workload, group.id, f), f, End.DESTINATION),
            Final.ACCEPT,
        )
        for group in plan.groups
        if group.ports.icmp
        for f in FAMILIES
    ]


def asks(plan: NamePlan) -> list[Rule]:
    """For the chains of what leaves: a look-up on its way to our listener."""
    if not plan.port:
        return []
    listeners = [PortIn(protocol, End.DESTINATION, plan.port, plan.port) for protocol in ("udp", "tcp")]
    return [_rule(Redirected(), listener, LocalDestination(), Final.ACCEPT) for listener in listeners]


def told(plan: NamePlan) -> list[Rule]:
    """For the chain of what arrives: our listener's answer, which comes from the server that was asked."""
    if not plan.port:
        return []
    here = (Loopback(Hook.INPUT), Reply(), Redirected())
    return [_rule(*here, PortIn("udp", End.SOURCE, PORT, PORT), Final.ACCEPT)]


def own_chains(plan: NamePlan) -> list[Chain]:
    """Chains of a workload: for each group what a learned address opens, and where its look-ups go."""
    chains = []
    for group in plan.groups:
        chains += [_pass(plan.workload, group), _ports(plan.workload, group)]
    redirects = [_rule(Redirect(protocol, plan.port)) for protocol in ("udp", "tcp")] if plan.port else []
    zones = [_rule(SetZone(plan.zone))] if plan.port else []
    return [
        *chains,
        Chain(f"zone_{plan.workload}", tuple(zones)),
        Chain(f"dns_{plan.workload}", tuple(redirects)),
    ]


def _named(workload: str, group: Group) -> str:
    return f"named_{workload}_{group.id}"


def _has(group: Group, protocol: str) -> bool:
    return any(ports.protocol == protocol for ports in group.ports.ranges)


def _ports(workload: str, group: Group) -> Chain:
    go_on = Goto(f"pass_{workload}_{group.id}")
    rules = [_rule(PortIn(r.protocol, End.DESTINATION, r.first, r.last), go_on) for r in group.ports.ranges]
    return Chain(_named(workload, group), tuple(rules))


def _pass(workload: str, group: Group) -> Chain:
    rules: list[Rule] = []
    if _has(group, "tcp"):
        rules.append(_rule(TcpData(), Final.ACCEPT))
    for f in FAMILIES:
        held = flow_set(workload, group.id, f)
        if _has(group, "tcp"):
            rules.append(_rule(TcpEnd(), FlowIn(held, f), Remember(held, f, ENDED), Final.ACCEPT))
            rules.append(_rule(TcpStart(), Remember(held, f, LONG), Final.ACCEPT))
        if _has(group, "udp"):
            rules.append(_rule(UDP, Remember(held, f, DATAGRAMS), Final.ACCEPT))
    # When there is no room to remember, the learned address decides alone.
    return Chain(f"pass_{workload}_{group.id}", (*rules, _rule(Final.ACCEPT)))


def shared() -> list[Chain]:
    """The chains of the resolver: it answers whom it was redirected to, asks its servers, and nothing else."""
    asked = [(Protocol(protocol), Redirected(), AskedAt(PORT)) for protocol in ("udp", "tcp")]
    to_servers = [_rule(InSet(UPSTREAM[f], f, End.DESTINATION, End.DESTINATION), Final.ACCEPT) for f in FAMILIES]
    from_servers = [_rule(Reply(), InSet(UPSTREAM[f], f, End.SOURCE, End.SOURCE), Final.ACCEPT) for f in FAMILIES]
    return [
        Chain(
            RESOLVER_OUT,
            (
                *(_rule(Reply(), *lookup, Final.ACCEPT) for lookup in asked),
                *to_servers,
                _rule(Count(RESOLVER_OUT)),
                _rule(Goto("refuse_out")),
            ),
        ),
        Chain(
            RESOLVER_IN,
            (
                *(_rule(Loopback(Hook.INPUT), *lookup, Final.ACCEPT) for lookup in asked),
                *from_servers,
                _rule(Tracked.RELATED, Jump("told")),
                _rule(Count(RESOLVER_IN)),
                _rule(Goto("refuse_in")),
            ),
        ),
    ]


def base(depth: int, levels: Sequence[int]) -> list[Chain]:
    """The base chains that look-ups pass."""

    def dispatches(which: int, own: str) -> list[Dispatch]:
        places = [Dispatch(place_name_maps(level)[which], level) for level in sorted(levels, reverse=True)]
        return [Dispatch(own, depth + 1), *places]

    asked = {protocol: PortIn(protocol, End.DESTINATION, PORT, PORT) for protocol in ("udp", "tcp")}
    zones = [_rule(asked["udp"], dispatch) for dispatch in dispatches(0, ZONES)]
    redirects = [_rule(ask, dispatch) for ask in asked.values() for dispatch in dispatches(1, ASKS)]
    return [
        Chain("lookups", tuple(zones), Hook.BEFORE_TRACKING),
        Chain("lookups_nat", tuple(redirects), Hook.NAT),
    ]
