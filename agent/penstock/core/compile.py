"""Policy -> Ruleset: what the kernel must hold so that it answers as the policy means.

Pure.  The sets say what each workload is allowed (`allowances`); the chains, in `chains`, are the same for
every workload but for their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_network

from penstock.core import (
    admin_chains,
    cgroup_maps,
    chains,
    control_ports,
    interface_chains,
    lookup_chains,
    name_chains,
    name_rules,
    peer_chains,
)
from penstock.core.conditions import InCgroup
from penstock.core.name_chains import NamePlan
from penstock.core.policy import (
    LINK_LOCAL,
    METADATA,
    Address,
    AddressPeer,
    AnyPeer,
    Cidr,
    CidrPeer,
    Direction,
    MetadataPeer,
    Mode,
    NetworkPeer,
    PlanePeer,
    Policy,
    Ports,
    Rule,
    Upstream,
    Workload,
    WorkloadPeer,
)
from penstock.core.regions import Allowance, Interval, disjoint, merge, subtract
from penstock.core.ruleset import MARKER, AddressSet, Element, Ruleset
from penstock.core.slices import SLICE

NUMBERS = {"tcp": 6, "udp": 17}
ECHO = {4: 1, 6: 58}
"""Protocol numbers (IANA); echo stands in the sets as its protocol with every "port"."""

Intervals = tuple[Interval, ...]

WHOLE = {4: (0, 2**32 - 1), 6: (0, 2**128 - 1)}


def _interval(cidr: Cidr) -> Interval:
    return int(cidr.network_address), int(cidr.broadcast_address)


NEVER: Mapping[int, tuple[Interval, ...]] = {
    family: merge(
        _interval(cidr)
        for cidr in (*LINK_LOCAL, *(ip_network(address) for address in METADATA))
        if cidr.version == family
    )
    for family in (4, 6)
}
"""What leaves only when it is named literally: taken out of every wider egress rule."""


@dataclass(frozen=True, slots=True)
class Resolver:
    """Who answers look-ups: the port that listens for each workload, and the servers that are asked."""

    ports: Mapping[str, int] = field(default_factory=dict)
    upstreams: tuple[Upstream, ...] = ()


@dataclass(frozen=True, slots=True)
class Live:
    """What the kernel's content depends on besides the policy."""

    now: datetime
    labels: Mapping[str, int]  # workload -> its label in connections
    depth: int  # level of penstock.slice, as the kernel counts for the process that loads
    levels: tuple[int, ...] = ()  # of cgroups that are bound in place, counted in the same way
    resolver: Resolver | None = None  # without, rules by name open nothing
    slice: str = SLICE  # the path of penstock.slice below /sys/fs/cgroup, where nft looks


def compile_policy(policy: Policy, live: Live) -> Ruleset:
    """Return the whole table for `policy`.  Rules that are over, or not enforceable yet, allow nothing."""
    workloads = [policy.workloads[name] for name in sorted(policy.workloads)]
    calls = peer_chains.calls(policy, live.labels, live.now)
    barred = admin_chains.barred(policy)
    plans = [
        chains.Plan(
            name=workload.name,
            mode=workload.mode,
            label=live.labels[workload.name],
            echo=any(rule.ports.icmp for rule in workload.egress),
            in_place=bool(live.levels),
            names=_names(policy, workload, live),
            calls=calls[workload.name],
            caller=any(isinstance(peer, WorkloadPeer) for rule in workload.egress for peer in rule.peers),
            links=interface_chains.links(policy, workload, live.now),
            barred=barred,
            opened=tuple(r for rule in workload.ingress for r in rule.ports.ranges),
            until=workload.until,
        )
        for workload in workloads
    ]
    by_name = chains.by_name(plans)
    sets = [s for workload in workloads for s in _sets(policy, workload, live.now)]
    return Ruleset(
        counters=(MARKER, *chains.counters(plans, barred)),
        maps=cgroup_maps.maps(live.levels, names=bool(by_name)),
        sets=(
            *sets,
            *admin_chains.sets(barred),
            *(_upstreams(live.resolver) if by_name and live.resolver else ()),
        ),
        chains=chains.build(plans, InCgroup(live.slice, live.depth), live.levels, barred),
        name_sets=(
            *lookup_chains.sets(by_name),
            *name_chains.name_sets(by_name),
            *peer_chains.served(chains.serving(plans)),
        ),
        by_name=tuple(plan.workload for plan in by_name),
    )


def _names(policy: Policy, workload: Workload, live: Live) -> NamePlan | None:
    """What of a workload goes by name; nothing while it is locked: it may not even ask."""
    if live.resolver is None or workload.mode is Mode.LOCK or not name_rules.resolves(workload):
        return None
    rules = name_rules.name_rules(policy, workload, live.now)
    port = live.resolver.ports.get(workload.name, 0)
    observed = workload.mode is Mode.OBSERVE
    groups = name_rules.groups(rules)
    return NamePlan(workload.name, live.labels[workload.name], port, groups, observed, workload.until)


def _upstreams(resolver: Resolver) -> Iterable[AddressSet]:
    for family, name in lookup_chains.UPSTREAM.items():
        elements = {
            Element(int(server.address), int(server.address), protocol, server.port, server.port): ""
            for server in resolver.upstreams
            if server.address.version == family
            for protocol in NUMBERS.values()
        }
        yield AddressSet(name, family, elements)


def _sets(policy: Policy, workload: Workload, now: datetime) -> Iterable[AddressSet]:
    for direction, rules in ((Direction.OUT, workload.egress), (Direction.IN, workload.ingress)):
        current = [rule for rule in rules if rule.expires is None or rule.expires > now]
        for family in (4, 6):
            owners = disjoint(
                allowance
                for order, rule in enumerate(current)
                for allowance in allowances(policy, rule, order, family)
            )
            yield AddressSet(
                name=chains.set_name(direction, family, workload.name),
                family=family,
                elements={element: owner.rule for element, owner in owners.items()},
                expires={e: owner.expires for e, owner in owners.items() if owner.expires is not None},
            )


def allowances(policy: Policy, rule: Rule, order: int, family: int) -> Iterable[Allowance]:
    """What `rule` allows in `family`, one item a protocol.  `order` is its place among the rules."""
    addresses = _addresses(policy, rule, family)
    if not addresses:
        return
    for protocol, ports in _ports(control_ports.of(rule), family, rule.direction):
        parts = _not_barred(policy, rule.direction, family, protocol, addresses, ports)
        for part, (remote, own) in enumerate(parts):  # two at most, each with a place of its own
            yield Allowance(2 * order + part, rule.id, protocol, remote, own, rule.expires)


def _not_barred(
    policy: Policy, direction: Direction, family: int, protocol: int, addresses: Intervals, ports: Intervals
) -> Iterable[tuple[Intervals, Intervals]]:
    """Without the host's admin ports for networks of clients: what is left of both, apart."""
    if direction is Direction.OUT or not policy.admin_ports.ranges:
        return [(addresses, ports)]
    barred = admin_chains.barred(policy)
    closed = [(r.first, r.last) for r in barred.ports if NUMBERS[r.protocol] == protocol]
    rest = subtract(ports, closed)
    others = subtract(addresses, admin_chains.intervals(barred.cidrs, family))
    return [(a, p) for a, p in ((addresses, rest), (others, subtract(ports, rest))) if a and p]


def _addresses(policy: Policy, rule: Rule, family: int) -> tuple[Interval, ...]:
    literal: list[Address] = []
    wide: list[Interval] = []
    for peer in rule.peers:
        match peer:
            case AddressPeer(address):
                literal.append(address)
            case MetadataPeer():
                literal.extend(METADATA)
            case CidrPeer(cidr):
                wide.extend(_intervals((cidr,), family))
            case NetworkPeer(name):
                wide.extend(_intervals(policy.networks[name].cidrs, family))
            case PlanePeer(plane):
                for network in policy.of_plane(plane):
                    wide.extend(_intervals(network.cidrs, family))
            case AnyPeer():
                wide.append(WHOLE[family])
            case _:
                pass  # understood and not enforced yet: allows nothing
    exact = [(int(address), int(address)) for address in literal if address.version == family]
    never = NEVER[family] if rule.direction is Direction.OUT else ()
    return subtract(merge([*subtract(merge(wide), never), *exact]), _excepted(policy, rule, family))


def _excepted(policy: Policy, rule: Rule, family: int) -> tuple[Interval, ...]:
    holes: list[Interval] = []
    for peer in rule.excepted:
        cidrs = (peer.cidr,) if isinstance(peer, CidrPeer) else policy.networks[peer.name].cidrs
        if not cidrs:  # a network by its interface: what cannot be taken out yet closes the whole rule
            return (WHOLE[family],)
        holes.extend(_intervals(cidrs, family))
    return merge(holes)


def _intervals(cidrs: Iterable[Cidr], family: int) -> list[Interval]:
    return [_interval(cidr) for cidr in cidrs if cidr.version == family]


def _ports(
    ports: Ports, family: int, direction: Direction
) -> Iterable[tuple[int, tuple[Interval, ...]]]:
    for name, number in NUMBERS.items():
        ranges = merge((r.first, r.last) for r in ports.ranges if r.protocol == name)
        if ranges:
            yield number, ranges
    if ports.icmp and direction is Direction.OUT:
        # No listener answers an echo request: the kernel does.  In an ingress rule it has no effect.
        yield ECHO[family], ((0, 65535),)


def rule_of(ruleset: Ruleset, set_name: str, element: Element) -> str:
    """Return the id of the rule that an element's hits belong to; KeyError if there is no such element."""
    return next(s.elements[element] for s in ruleset.sets if s.name == set_name)
