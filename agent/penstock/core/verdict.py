"""What a policy means: read this file from top to bottom, there is no other definition.

The compiler shares no code with it (only `policy` and `names`, which decide nothing), so that a mistake
in one shows against the other.  A verdict is about the packet that opens a connection; replies and ICMP
errors belong to the connection they answer and are not judged here.

* Rules only allow.  What no rule allows is denied; the first rule of the file that allows is named.
* Going out, cloud metadata and link-local addresses are reached only when named literally: by the
  address itself or by `metadata`.  No prefix, network, name or `any` opens them.  Coming in, a prefix
  means every address in it.
* Going out, a control port is opened only by itself in `ports`: no range and no `any` opens it.
* A name is at an address while an answer to the workload's own look-up says so; private addresses count
  only with `private`.
* A network by interface is whatever arrives or leaves over it, any address but this host's own; an exception
  beside it is not enforced yet, and closes it.
* Where a name leads that somebody else answers is not known: `any` allows it, exceptions aside; of another rule
  that opens the port nobody can tell whether it is about that address.
* An exception is taken out of its own rule, not out of others.
* The host's admin ports are closed to every workload on this host's own addresses, and to networks of clients
  (`plane: inference`), whatever rules say.
* Only tcp, udp and echo can be allowed.
* The mode `observe` changes nothing here: the verdict is what enforcing would do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from ipaddress import ip_network
from typing import assert_never

from penstock.core import names, rebinding
from penstock.core.connection import Connection, as_sent
from penstock.core.nearest import called, nearest, port_gap, terms
from penstock.core.policy import (
    CONTROL_PORTS,
    LINK_LOCAL,
    METADATA,
    Address,
    AddressPeer,
    AnyPeer,
    Cidr,
    CidrPeer,
    Direction,
    HostPeer,
    MetadataPeer,
    Mode,
    NamePeer,
    Network,
    NetworkPeer,
    Peer,
    Plane,
    PlanePeer,
    Policy,
    PortRange,
    Ports,
    Rule,
    WorkloadPeer,
)

__all__ = ["Connection", "Live", "NamesAt", "Reason", "Verdict", "judge"]

EVERYWHERE: tuple[Cidr, ...] = (ip_network("0.0.0.0/0"), ip_network("::/0"))
NamesAt = Mapping[Address, Collection[str]]
"""The names that lead a workload to an address now."""
JUDGED_PROTOCOLS = ("tcp", "udp", "icmp")


class Reason(StrEnum):
    """Why: a code for programs.  The first two allow, the last cannot tell, the others deny."""

    RULE = "rule"  # a rule allows it
    SELF = "self"  # a workload may always talk to itself
    UNKNOWN_WORKLOAD = "unknown-workload"  # the policy has no workload of that name
    LOCKED = "locked"  # the workload's mode denies everything, itself included
    EXPIRED = "expired"  # a rule allowed it until its `expires`
    NOT_ENFORCED = "not-enforced"  # a rule allows it in a way that is not put into the kernel yet
    EXCEPTED = "excepted"  # a rule would allow it but for its `except`
    CONTROL_PORT = "control-port"  # a rule has this peer, and the port only inside a range
    WRONG_PORT = "wrong-port"  # a rule has this peer, but not this protocol and port
    ADMIN_PORT = "admin-port"  # one of the host's `admin_ports`, and a workload or a network of clients
    METADATA = "metadata"  # cloud metadata, not named literally
    LINK_LOCAL = "link-local"  # a link-local address, not named literally
    NO_RULES = "no-rules"  # the workload allows nothing in this direction
    NO_RULE = "no-rule"  # none of its rules is about this
    DEPENDS = "depends"  # a rule opens the port at some addresses, and where it goes is not known


NEAR_MISSES = (
    Reason.DEPENDS,
    Reason.EXPIRED,
    Reason.NOT_ENFORCED,
    Reason.EXCEPTED,
    Reason.CONTROL_PORT,
    Reason.WRONG_PORT,
)
"""One rule fails on one point only: named before the general reasons, the most telling first."""

TEXTS = {
    Reason.SELF: "a workload may always talk to itself",
    Reason.UNKNOWN_WORKLOAD: "the policy has no such workload",
    Reason.LOCKED: "the workload is locked: everything is denied",
    Reason.DEPENDS: "where the name leads is not known, and some addresses are open: ask about an address",
    Reason.EXPIRED: "the rule that allowed it has expired",
    Reason.NOT_ENFORCED: "the rule that allows it is of a kind not yet enforced",
    Reason.EXCEPTED: "excepted from the rule that would allow it",
    Reason.CONTROL_PORT: "control ports are closed unless a rule names them alone",
    Reason.WRONG_PORT: "not in its rules",
    Reason.ADMIN_PORT: "an admin port of this host, closed to every workload and to networks of clients",
    Reason.METADATA: "cloud metadata is closed unless a rule names it literally",
    Reason.LINK_LOCAL: "link-local addresses are closed unless a rule names them literally",
    Reason.NO_RULES: "the workload allows nothing in this direction",
    Reason.NO_RULE: "not in its rules",
}
OTHER_PROTOCOL = "only TCP, UDP and echo can be allowed"


@dataclass(frozen=True, slots=True)
class Live:
    """What besides the policy decides."""

    now: datetime  # aware
    learned: Mapping[str, NamesAt] = field(default_factory=dict)
    """Workload -> address -> the names that its look-ups found there, as far as their answers still count."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer; `rule` is the id of the rule that allows, `nearest` of the one that came closest."""

    allow: bool
    reason: Reason
    text: str  # one phrase for people
    rule: str | None = None
    nearest: str | None = None


def judge(policy: Policy, live: Live, connection: Connection, *, as_written: bool = False) -> Verdict:
    """Say whether `connection` may be opened under `policy` at `live.now`.

    Some kinds of peers are not in the kernel yet (`_enforced`); what only they allow is denied.  With
    `as_written` they are judged by what they say: for `tests:`, which are about the language.
    """
    workload = policy.workloads.get(connection.workload)
    if workload is None:
        return _deny(Reason.UNKNOWN_WORKLOAD)
    if workload.mode is Mode.LOCK:
        return _deny(Reason.LOCKED)
    if connection.own:
        return Verdict(True, Reason.SELF, TEXTS[Reason.SELF])
    if connection.protocol not in JUDGED_PROTOCOLS:
        return Verdict(False, Reason.NO_RULE, OTHER_PROTOCOL)

    connection = as_sent(connection)
    if _is_barred(policy, connection):
        return _deny(Reason.ADMIN_PORT)
    rules = workload.egress if connection.direction is Direction.OUT else workload.ingress
    missed: dict[Reason, list[Rule]] = {}
    for rule in rules:
        outcome = _consider(policy, live, rule, connection, as_written)
        if outcome is Reason.RULE:
            but = ", but at no address that it excepts" if rule.excepted and connection.remote is None else ""
            return Verdict(True, Reason.RULE, f"{called(rule)} allows it{but}{terms(rule)}", rule=rule.id)
        missed.setdefault(outcome, []).append(rule)
    for reason in NEAR_MISSES:
        if reason in missed:
            return _near_miss(reason, missed[reason], connection)
    return _far_miss(policy, live, rules, connection)


def _is_barred(policy: Policy, connection: Connection) -> bool:
    """Whether it is to one of the host's admin ports, from who may not use them."""
    here = connection.here or (connection.remote is not None and connection.remote.is_loopback)
    if not _opens_port(policy.admin_ports, connection):
        return False
    if connection.direction is Direction.OUT:
        return here
    clients = any(_in_network(network, connection) for network in policy.of_plane(Plane.INFERENCE))
    return clients or connection.peer_workload in policy.workloads


def _consider(policy: Policy, live: Live, rule: Rule, connection: Connection, as_written: bool) -> Reason:
    """Return RULE if `rule` allows, the one point on which it fails, or NO_RULE if it fails on more."""
    peers = [peer for peer in rule.peers if _is_at(policy, live, rule, peer, connection)]
    if peers:
        return _consider_at(policy, live, rule, peers, connection, as_written)
    if rule.peers and connection.anywhere:
        outcome = _consider_at(policy, live, rule, rule.peers, connection, as_written)
        return Reason.DEPENDS if outcome is Reason.RULE else Reason.NO_RULE
    return Reason.NO_RULE


def _consider_at(
    policy: Policy, live: Live, rule: Rule, peers: Sequence[Peer], connection: Connection, as_written: bool
) -> Reason:
    """The same of `rule`, of which `peers` are at the far end."""
    port, missed = _opens_port(rule.ports, connection), Reason.WRONG_PORT
    if port and not _names_control_port(rule.ports, connection):
        port, missed = False, Reason.CONTROL_PORT
    excepted = _is_excepted(policy, rule, connection)
    if rule.expires is not None and rule.expires <= live.now:
        return Reason.EXPIRED if port and not excepted else Reason.NO_RULE
    if not port:
        return Reason.NO_RULE if excepted else missed
    if excepted:
        return Reason.EXCEPTED
    # An exception that cannot be seen yet closes the whole rule: the other way round it would open.
    visible = any(_enforced(policy, rule, peer, connection) for peer in peers) and all(
        _enforced(policy, rule, peer, connection) for peer in rule.excepted
    )
    return Reason.RULE if as_written or visible else Reason.NOT_ENFORCED


def _is_at(policy: Policy, live: Live, rule: Rule, peer: Peer, connection: Connection) -> bool:
    """Whether `peer` of `rule`, as written, is at the far end of `connection`."""
    remote = connection.remote
    if isinstance(peer, AddressPeer):
        return remote == peer.address
    if isinstance(peer, MetadataPeer):
        return remote in METADATA
    if connection.direction is Direction.OUT and _closed_unless_literal(remote) is not None:
        return False
    match peer:
        case CidrPeer():
            return _within(remote, (peer.cidr,))
        case AnyPeer():
            return _within(remote, EVERYWHERE) or connection.anywhere
        case NetworkPeer():
            return _in_network(policy.networks[peer.name], connection)
        case PlanePeer():
            return any(_in_network(network, connection) for network in policy.of_plane(peer.plane))
        case NamePeer():
            return _is_called(live, rule, peer, connection)
        case WorkloadPeer():
            return connection.peer_workload == peer.name
        case HostPeer():  # which other addresses are this host's, no policy says
            here = connection.here or (remote is not None and remote.is_loopback)
            return connection.peer_workload == "" and here
    assert_never(peer)


def _is_called(live: Live, rule: Rule, peer: NamePeer, connection: Connection) -> bool:
    if names.matches(peer.pattern, connection.name):
        return True
    remote = connection.remote
    if remote is None or not rebinding.admits(remote, rule.private):
        return False
    if connection.here and not rule.private:
        return False  # an address of this host, whatever it looks like
    found = live.learned.get(connection.workload, {}).get(remote, ())
    return any(names.matches(peer.pattern, name) for name in found)


def _enforced(policy: Policy, rule: Rule, peer: Peer, connection: Connection) -> bool:
    """Whether the kernel can be told today about `peer`, which is at the far end of `connection`."""
    match peer:
        case NetworkPeer():
            return bool(policy.networks[peer.name].cidrs) or not rule.excepted  # an interface has no addresses
        case PlanePeer():
            found = (n for n in policy.of_plane(peer.plane) if _in_network(n, connection))
            return any(n.cidrs or not rule.excepted for n in found)
        case WorkloadPeer() | HostPeer():
            return not rule.excepted  # who is called does not see from where
    return True


def _closed_unless_literal(remote: Address | None) -> Reason | None:
    """Return METADATA or LINK_LOCAL for an address that only a literal rule reaches, else None."""
    if remote in METADATA:
        return Reason.METADATA
    return Reason.LINK_LOCAL if _within(remote, LINK_LOCAL) else None


def _in_network(network: Network, connection: Connection) -> bool:
    if network.cidrs:
        return _within(connection.remote, network.cidrs)
    return not connection.here and connection.interface == network.interface != ""


def _within(remote: Address | None, cidrs: tuple[Cidr, ...]) -> bool:
    return remote is not None and any(remote in cidr for cidr in cidrs)


def _is_excepted(policy: Policy, rule: Rule, connection: Connection) -> bool:
    return any(
        _within(connection.remote, (peer.cidr,))
        if isinstance(peer, CidrPeer)
        else _in_network(policy.networks[peer.name], connection)
        for peer in rule.excepted
    )


def _opens_port(ports: Ports, connection: Connection) -> bool:
    if connection.protocol == "icmp":
        return ports.icmp
    port = connection.port
    return port is not None and any(
        opened.protocol == connection.protocol and opened.first <= port <= opened.last
        for opened in ports.ranges
    )


def _names_control_port(ports: Ports, connection: Connection) -> bool:
    """False for a control port, called, that `ports` hold only inside of ranges."""
    port = connection.port or 0
    if connection.direction is Direction.IN or connection.protocol != "tcp" or port not in CONTROL_PORTS:
        return True
    return PortRange("tcp", port, port) in ports.ranges


def _deny(reason: Reason) -> Verdict:
    return Verdict(False, reason, TEXTS[reason])


def _near_miss(reason: Reason, rules: list[Rule], connection: Connection) -> Verdict:
    """Deny, naming the one of `rules`, all of which fail on `reason`, whose ports come closest."""
    rule = min(rules, key=lambda rule: port_gap(rule.ports, connection))
    detail = f"nearest is {called(rule)}{terms(rule)}"
    if reason is Reason.WRONG_PORT:
        detail += ": other port"
    text = TEXTS[reason]
    if reason is Reason.CONTROL_PORT:
        what = CONTROL_PORTS.get(connection.port or 0)
        text = f"control port {connection.port}/tcp ({what}) is closed unless a rule names it alone"
    return Verdict(False, reason, f"{text}; {detail}", nearest=rule.id)


def _far_miss(policy: Policy, live: Live, rules: tuple[Rule, ...], connection: Connection) -> Verdict:
    """Deny what no rule is about; rules that have expired are not there."""
    reason = None
    if connection.direction is Direction.OUT:
        reason = _closed_unless_literal(connection.remote)
    reason = reason or (Reason.NO_RULE if rules else Reason.NO_RULES)
    near = nearest(policy, [r for r in rules if r.expires is None or r.expires > live.now], connection)
    if near is None:
        return _deny(reason)
    return Verdict(False, reason, f"{TEXTS[reason]}; {near.text}", nearest=near.rule.id)
