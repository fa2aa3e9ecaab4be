"""Ids of rules that have no `name:`: made from what a rule says, so that moving it keeps its counters.

Counted in: direction, peers, ports, `except`, `private`.  Not counted in: order, `reason`, `expires`, place.
"""

from __future__ import annotations

import hashlib

from penstock.core.policy import (
    AddressPeer,
    AnyPeer,
    CidrPeer,
    Direction,
    HostPeer,
    MetadataPeer,
    NamePeer,
    NetworkPeer,
    Peer,
    PlanePeer,
    Rule,
    WorkloadPeer,
)


def peer_text(peer: Peer) -> str:
    """A peer as it is written in a rule."""
    match peer:
        case AddressPeer(address):
            return str(address)
        case CidrPeer(cidr):
            return str(cidr)
        case NamePeer(pattern):
            return pattern
        case NetworkPeer(name):
            return name
        case PlanePeer(plane):
            return f"plane:{plane}"
        case WorkloadPeer(name):
            return f"workload:{name}"
        case MetadataPeer():
            return "metadata"
        case HostPeer():
            return "host"
        case AnyPeer():
            return "any"


def derived_id(rule: Rule) -> str:
    """`egress-` or `ingress-` and 8 hexadecimal digits of what the rule says."""
    said = [
        *sorted(peer_text(peer) for peer in rule.peers),
        "ports",
        *map(str, rule.ports.ranges),
        *(["icmp"] if rule.ports.icmp else []),
        "except",
        *sorted(peer_text(peer) for peer in rule.excepted),
        *(["private"] if rule.private else []),
    ]
    prefix = "egress" if rule.direction is Direction.OUT else "ingress"
    digest = hashlib.sha256("\n".join(said).encode()).hexdigest()
    return f"{prefix}-{digest[:8]}"
