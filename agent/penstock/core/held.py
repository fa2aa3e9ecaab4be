"""What the kernel must hold so that it answers a question as the policy does: in a set, or in a chain.

Sets are about addresses, written or learned; chains are about who is at the far end (`chain_rules`), and those of
what is locked are asked nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime

from penstock.core.chain_rules import HOST, INTERFACE, WORKLOAD
from penstock.core.connection import Connection, as_sent
from penstock.core.coverage import is_literal_only
from penstock.core.policy import (
    Address,
    Direction,
    HostPeer,
    Mode,
    NamePeer,
    NetworkPeer,
    Peer,
    Plane,
    PlanePeer,
    Policy,
    Ports,
    Rule,
    Sentence,
    WorkloadPeer,
)
from penstock.core.sentences import connections
from penstock.core.verdict import Live, NamesAt, judge


@dataclass(frozen=True, slots=True)
class InChain:
    """Whether a rule opens `connection` because of who is at the far end: `far`, as `chain_rules` has it."""

    connection: Connection
    far: str
    opened: bool


@dataclass(frozen=True, slots=True)
class InSets:
    """Whether a rule opens `connection` by address, and whether by name; None: it does not matter.

    The mode does not matter to rules by address; a locked workload has none by name.
    """

    connection: Connection
    by_address: bool | None
    by_name: bool | None


def in_set(policy: Policy, now: datetime, connection: Connection) -> bool:
    """Whether a rule opens it by address, so that a set must hold it."""

    def by_address(peer: Peer) -> bool:
        return not isinstance(peer, WorkloadPeer | HostPeer)

    only = _only(policy, connection.workload, by_address)
    if connection.direction is Direction.OUT:  # which are closed on this host is said by a chain
        only = replace(only, admin_ports=Ports())
    return judge(only, Live(now), replace(connection, interface="")).allow


def in_learned(policy: Policy, now: datetime, connection: Connection, names: NamesAt) -> bool:
    """Whether a rule opens it by name, so that a set of learned addresses must hold the far end."""

    def by_name(peer: Peer) -> bool:
        return isinstance(peer, NamePeer)

    if policy.workloads[connection.workload].mode is Mode.LOCK:
        return False
    only = replace(_only(policy, connection.workload, by_name), admin_ports=Ports())
    return judge(only, Live(now, {connection.workload: names}), connection).allow


def in_chain(policy: Policy, now: datetime, connection: Connection) -> InChain | None:
    """The same of chains; None when no rule in a chain can be about it."""
    far, remote = _far(connection), as_sent(connection).remote
    if not far or policy.workloads[connection.workload].mode is Mode.LOCK:
        return None
    if connection.direction is Direction.OUT and remote is not None and is_literal_only(remote):
        return None  # the chain comes back before it is asked about interfaces

    def by_chain(peer: Peer) -> bool:
        if isinstance(peer, NetworkPeer):
            return not policy.networks[peer.name].cidrs
        return isinstance(peer, WorkloadPeer | HostPeer | PlanePeer)

    only = _only(policy, connection.workload, by_chain)
    planes = {name: replace(n, plane=None) if n.cidrs else n for name, n in only.networks.items()}
    only = replace(only, networks=planes)
    if connection.interface or far == HOST:  # what admin ports close to clients stands before it
        only = replace(only, admin_ports=Ports())
    return InChain(connection, far, judge(only, Live(now), connection).allow)


def _far(connection: Connection) -> str:
    if connection.peer_workload:
        return f"{WORKLOAD}:{connection.peer_workload}"
    if connection.interface:
        return f"{INTERFACE}:{connection.interface}"
    return HOST if connection.direction is Direction.IN and is_here(connection) else ""


def is_here(connection: Connection) -> bool:
    """Whether the far end is known to be on this host."""
    remote = as_sent(connection).remote
    return connection.here or bool(connection.peer_workload) or (remote is not None and remote.is_loopback)


def _only(policy: Policy, name: str, wanted: Callable[[Peer], bool]) -> Policy:
    """As if the workload enforced, and its rules had those peers only."""

    def part(rule: Rule) -> Rule:
        return replace(rule, peers=tuple(filter(wanted, rule.peers)))

    workload = policy.workloads[name]
    egress, ingress = (tuple(map(part, rules)) for rules in (workload.egress, workload.ingress))
    reduced = replace(workload, mode=Mode.ENFORCE, egress=egress, ingress=ingress)
    return replace(policy, workloads={**policy.workloads, name: reduced})


def asked_about(
    policy: Policy, name: str, sentence: Sentence, own: Collection[Address]
) -> list[tuple[Connection, tuple[Connection, ...]]]:
    """The connections that `sentence` is about, each with what it may be besides: over interfaces that rules name.

    An address does not tell by which interface it comes or goes.
    """
    workload = policy.workloads[name]
    over = _interfaces(policy, workload.egress if sentence.direction is Direction.OUT else workload.ingress)
    if sentence.direction is Direction.IN and policy.admin_ports.ranges:
        over |= {network.interface: None for network in policy.of_plane(Plane.INFERENCE) if network.interface}
    found = []
    for plain in connections(policy, workload, sentence):
        connection = replace(plain, here=as_sent(plain).remote in own)
        known = connection.interface or is_here(connection) or isinstance(sentence.peer, NamePeer)
        variants = () if known else tuple(replace(connection, interface=interface) for interface in over)
        found.append((connection, variants))
    return found


def _interfaces(policy: Policy, rules: Collection[Rule]) -> dict[str, None]:
    networks = [policy.networks[p.name] for rule in rules for p in rule.peers if isinstance(p, NetworkPeer)]
    for rule in rules:
        for peer in rule.peers:
            if isinstance(peer, PlanePeer):
                networks += policy.of_plane(peer.plane)
    return {network.interface: None for network in networks if network.interface}
