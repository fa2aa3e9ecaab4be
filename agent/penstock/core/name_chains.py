"""The chains for rules by name: how look-ups reach the resolver, and what was learned lets packets out.

A look-up of a workload, to whatever server it is, is redirected to the listener of that workload; nothing else may
reach the listener.  Connection tracking would lend the redirect to whoever gets the same source port next, so
look-ups over UDP are tracked in a zone of their workload.  (Over TCP a new SYN begins anew.  Zones work only while
some nat chain is there; ours is.)  A look-up carries the labels of a workload that talks to itself (see `chains`),
and besides its own sockets only the resolver's take such: who gets the port when nobody listens gets no look-up.

Learned addresses are in sets, one of a family and `Group` of a workload.  The flows that they let in are
remembered with the group, because a connection outlives the answer it began with; whoever takes an address out
takes its flows out too.  A flow begins only with a learned address, and goes on without: a TCP segment that would
begin a new connection is none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from penstock.core import control_ports
from penstock.core.base_chains import ON_LOOPBACK_OUT, STALE, UDP, UNPROVEN, WORKLOAD
from penstock.core.cgroup_maps import ASKS, RESOLVER_IN, RESOLVER_OUT, RESOLVER_OWN, ZONES, place_name_maps
from penstock.core.name_rules import Group
from penstock.core.rule_parts import (
    AddressIn,
    Answering,
    AskedAt,
    Away,
    Before,
    Condition,
    Count,
    Detour,
    Dispatch,
    Echo,
    End,
    Final,
    FlowIn,
    ForeignSource,
    Goto,
    HasLabel,
    Hook,
    InSet,
    Jump,
    LinkLocalDestination,
    LocalDestination,
    PortIn,
    Protocol,
    Redirect,
    Redirected,
    Remember,
    Reply,
    SetLabel,
    SetZone,
    TcpAnswer,
    TcpData,
    TcpEnd,
    Tracked,
)
from penstock.core.ruleset import Chain, NameSet, Rule

PORT = 53
FIRST_ZONE = 28_800
"""What a label is added to.  Zones are numbers of 16 bits that the whole host shares; nobody is known to use
these."""

LONG, ENDED, DATAGRAMS = 5 * 86_400, 120, 180
"""Seconds a flow is remembered: as long as the kernel tracks an idle TCP connection; after FIN or RST; of UDP."""

UPSTREAM = {4: "upstream4", 6: "upstream6"}
"""Sets of the servers that the resolver may ask."""

ANSWERING = "answering"
"""A set that holds `PORT` while the resolver answers; whoever starts it says so again and again."""

FAMILIES = (4, 6)


@dataclass(frozen=True, slots=True)
class NamePlan:
    """What the chains of a workload with rules by name depend on; `port` 0: nobody listens for its look-ups."""

    workload: str
    label: int  # its own in connections
    port: int
    groups: tuple[Group, ...]
    observed: bool = False  # nothing is denied: look-ups of a resolver that does not answer go where they went

    @property
    def zone(self) -> int:
        """Where its look-ups over UDP are tracked."""
        return FIRST_ZONE + self.label

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


def name_sets(plans: Sequence[NamePlan]) -> tuple[NameSet, ...]:
    """All sets of these workloads."""
    answering = (NameSet(ANSWERING, 4, ports=True),) if any(plan.observed for plan in plans) else ()
    return (*answering, *(name_set for plan in plans for name_set in _name_sets(plan)))


def _name_sets(plan: NamePlan) -> tuple[NameSet, ...]:
    return tuple(
        name_set
        for group in plan.groups
        for family in FAMILIES
        for name_set in (
            NameSet(learned_set(plan.workload, group.id, family), family),
            NameSet(flow_set(plan.workload, group.id, family), family, flows=True),
        )
    )


def stray(workload: str) -> str:
    """The chain for a look-up that would leave although it was redirected."""
    return f"stray_{workload}"


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
            rules.append(_rule(*_until(group), kind, FlowIn(held, f), again, Final.ACCEPT))
    return rules


def answered(plan: NamePlan) -> list[Rule]:
    """For the chain of what arrives as an answer.

    Answers of TCP need no rule: they are tracked.  Those to echo requests never come there: they have no socket.
    """
    return [
        _rule(*_until(group), UDP, FlowIn(flow_set(plan.workload, group.id, f), f, answer=True), Final.ACCEPT)
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


def asks(plan: NamePlan) -> list[Rule]:
    """For the chains of what leaves: a look-up on its way to our listener."""
    return [_rule(Redirected(), Jump(f"ask_{plan.workload}"))] if plan.port else []


def own_chains(plan: NamePlan) -> list[Chain]:
    """Chains of a workload: for each group what a learned address opens, and where its look-ups go."""
    name, listens = plan.workload, bool(plan.port)
    chains = []
    for group, f in product(plan.groups, FAMILIES):
        chains += [_pass(name, group, f), _ports(name, group, f)]
    # When nobody listens, look-ups stay as they are, and are judged as everything else.
    answers = (Answering(ANSWERING),) if plan.observed else ()
    redirects = [_rule(*answers, Redirect(protocol, plan.port)) for protocol in ("udp", "tcp")]
    return [
        *chains,
        *(_asking(plan) if listens else ()),
        Chain(f"zone_{name}", (_rule(SetZone(plan.zone), Final.ACCEPT),) if listens else ()),
        # Who talks to a link-local address is bound to its interface, and a redirect would leave there.
        Chain(f"dns_{name}", (_rule(LinkLocalDestination(), Final.RETURN), *redirects) if listens else ()),
    ]


def _asking(plan: NamePlan) -> list[Chain]:
    name = plan.workload
    labels = [SetLabel(label) for label in (WORKLOAD, plan.label, UNPROVEN)]
    lookup = Chain(
        f"lookup_{name}",
        (
            # Others may send elsewhere what is for this host: with the labels it would leave.
            _rule(Tracked.NEW, LocalDestination(), *labels),
            _rule(HasLabel(STALE), Final.RETURN),
            _rule(HasLabel(UNPROVEN), LocalDestination(), Final.ACCEPT),
        ),
    )
    return [lookup, Chain(f"ask_{name}", tuple(_rule(to, Goto(lookup.name)) for to in _listeners(plan)))]


def _listeners(plan: NamePlan) -> list[Condition]:
    return [PortIn(protocol, End.DESTINATION, plan.port, plan.port) for protocol in ("udp", "tcp")]


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


def _asked() -> list[tuple[Condition, ...]]:
    return [(Protocol(protocol), Redirected(), AskedAt(PORT)) for protocol in ("udp", "tcp")]


def unanswered() -> list[Rule]:
    """For look-ups that no full socket takes: nobody listens, or one of the resolver's is in TIME_WAIT."""
    return [_rule(*lookup, Final.RETURN) for lookup in _asked()]


def shared() -> list[Chain]:
    """The chains of the resolver: it answers whom it was redirected to, asks its servers, and nothing else."""
    asked = _asked()
    to_servers = [_rule(InSet(UPSTREAM[f], f, End.DESTINATION, End.DESTINATION), Final.ACCEPT) for f in FAMILIES]
    from_servers = [_rule(Reply(), InSet(UPSTREAM[f], f, End.SOURCE, End.SOURCE), Final.ACCEPT) for f in FAMILIES]
    denied = [_rule(Count(RESOLVER_OUT)), _rule(Goto("refuse_out"))]
    elsewhere = (ForeignSource(), Detour(4), Detour(6))
    return [
        # Look-ups come here as what a workload would say to itself, and only the resolver takes them besides.
        Chain(RESOLVER_OWN, tuple(_rule(*lookup, Final.ACCEPT) for lookup in asked)),
        Chain("resolver_denied", tuple(denied)),
        Chain(
            RESOLVER_OUT,
            (
                *(_rule(ON_LOOPBACK_OUT, Reply(), *lookup, Final.ACCEPT) for lookup in asked),
                # As for workloads: nobody else gets the answer, or what was asked.
                *(_rule(condition, Goto("resolver_denied")) for condition in elsewhere),
                *to_servers,
                _rule(Goto("resolver_denied")),
            ),
        ),
        Chain(
            RESOLVER_IN,
            (
                *from_servers,
                _rule(Tracked.RELATED, Jump("told")),
                _rule(Count(RESOLVER_IN)),
                _rule(Goto("refuse_in")),
            ),
        ),
    ]


def base(plans: Sequence[NamePlan], depth: int, levels: Sequence[int]) -> list[Chain]:
    """The base chains that look-ups pass, and where those end that would leave."""

    def dispatches(which: int, own: str) -> list[Dispatch]:
        places = [Dispatch(place_name_maps(level)[which], level) for level in sorted(levels, reverse=True)]
        return [Dispatch(own, depth + 1), *places]

    asked = {protocol: PortIn(protocol, End.DESTINATION, PORT, PORT) for protocol in ("udp", "tcp")}
    zones = [_rule(asked["udp"], dispatch) for dispatch in dispatches(0, ZONES)]
    redirects = [_rule(ask, dispatch) for ask in asked.values() for dispatch in dispatches(1, ASKS)]
    listened = [(plan, to) for plan in plans if plan.port for to in _listeners(plan)]
    strays = [_rule(to, LocalDestination(), Goto(stray(plan.workload))) for plan, to in listened]
    return [
        Chain("lookups", tuple(zones), Hook.BEFORE_TRACKING),
        Chain("lookups_nat", tuple(redirects), Hook.NAT),
        # A socket that is bound to a device sends there, wherever its packet is redirected to.
        Chain("strays", tuple(strays)),
        Chain("leaving", (_rule(Away(), Redirected(), Jump("strays")),), Hook.LEAVING),
    ]
