"""What the chains ask about networks by `interface:`: what arrives over one, and what leaves over it.

An interface says nothing about addresses: whoever sends over it is in the network, and so is whatever address a
workload reaches over it, a router's there included.  Only what is closed unless named literally stays closed.

Rules are by the name of the interface and are asked for each packet: one that does not exist yet is in the
network as soon as it does, and what is taken back ends at once.  Both ways are asked: an answer leaves by the
interface that the call came over, and comes back over the one that it left by.

What this host sends to its own addresses travels over loopback and is in no such network; neither is what it sends
to a multicast group and gets back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

from penstock.core import control_ports, hits
from penstock.core.actions import Count, Final, Jump
from penstock.core.conditions import Among, Before, Condition, Echo, End, ForeignSource, Interface, PortIn
from penstock.core.policy import (
    LINK_LOCAL,
    METADATA,
    Cidr,
    NetworkPeer,
    Peer,
    PlanePeer,
    Policy,
    Ports,
    Workload,
)
from penstock.core.policy import Rule as PolicyRule
from penstock.core.ruleset import Chain, Rule

FAMILIES = (4, 6)
_LITERAL: tuple[Cidr, ...] = (*LINK_LOCAL, *map(ip_network, METADATA))
CLOSED: dict[int, tuple[Cidr, ...]] = {
    4: tuple(collapse_addresses(cidr for cidr in _LITERAL if isinstance(cidr, IPv4Network))),
    6: tuple(collapse_addresses(cidr for cidr in _LITERAL if isinstance(cidr, IPv6Network))),
}
"""What leaves only when a rule names it literally."""

_rule = Rule.of


@dataclass(frozen=True, slots=True)
class Link:
    """A rule opens these ports over that interface until then; `counter` is of its hits."""

    interface: str
    ports: Ports
    counter: str
    expires: datetime | None = None


@dataclass(frozen=True, slots=True)
class Links:
    """Of a workload: what it may call, and what may call it."""

    out: tuple[Link, ...] = ()
    in_: tuple[Link, ...] = ()

    @property
    def counters(self) -> tuple[str, ...]:
        """Of the rules' hits, each once."""
        return tuple(dict.fromkeys(link.counter for link in (*self.out, *self.in_)))


NONE = Links()


def links(policy: Policy, workload: Workload, now: datetime) -> Links:
    """Of all rules about interfaces that are not over."""
    return Links(
        tuple(_links(policy, workload.name, workload.egress, now)),
        tuple(_links(policy, workload.name, workload.ingress, now)),
    )


def _links(policy: Policy, workload: str, rules: Sequence[PolicyRule], now: datetime) -> Iterator[Link]:
    for rule in rules:
        # An interface has no addresses that an exception could be taken out of.
        if rule.excepted or (rule.expires is not None and rule.expires <= now):
            continue
        names = dict.fromkeys(name for peer in rule.peers for name in interfaces(policy, peer))
        for name in names:
            yield Link(name, control_ports.of(rule), hits.counter(workload, rule.id), rule.expires)


def interfaces(policy: Policy, peer: Peer) -> tuple[str, ...]:
    """The interfaces that a peer stands for."""
    if isinstance(peer, NetworkPeer):
        networks = [policy.networks[peer.name]]
    elif isinstance(peer, PlanePeer):
        networks = list(policy.of_plane(peer.plane))
    else:
        return ()
    return tuple(network.interface for network in networks if network.interface)


def _opened(
    found: Sequence[Link], over: End, port: End, protocols: Sequence[str] = ("tcp", "udp"), *, called: bool = False
) -> list[Rule]:
    """`called`: it may be a call that comes in."""
    # What this host sends to everybody in a network it gets itself, as if over that network's interface.
    stranger = {"udp": (ForeignSource(),)} if called else {}
    return [
        _rule(
            *_until(link),
            Interface(link.interface, over),
            PortIn(ports.protocol, port, ports.first, ports.last),
            *stranger.get(ports.protocol, ()),
            Count(link.counter),
            Final.ACCEPT,
        )
        for link in found
        for ports in link.ports.ranges
        if ports.protocol in protocols
    ]


def _until(link: Link) -> tuple[Condition, ...]:
    return (Before(link.expires),) if link.expires is not None else ()


def arriving(found: Links) -> list[Rule]:
    """For the chain of what arrives: calls."""
    return _opened(found.in_, End.SOURCE, End.DESTINATION, called=True)


def replying(found: Links) -> list[Rule]:
    """For the chain of what leaves as an answer."""
    return _opened(found.in_, End.DESTINATION, End.SOURCE)


def leaving(name: str, found: Links) -> list[Rule]:
    """For the chain of what leaves, and for that of echo requests; not on loopback."""
    return [_rule(Interface(interface, End.DESTINATION), Jump(f"over_{name}")) for interface in names(found.out)]


def answered(name: str, found: Links) -> list[Rule]:
    """For the chain of what arrives as an answer.  Those of TCP need no rule: they are tracked."""
    called = _opened(found.out, End.SOURCE, End.SOURCE, ("udp",))
    interfaces = dict.fromkeys(w.name for rule in called for w in rule.when if isinstance(w, Interface))
    return [_rule(Interface(interface, End.SOURCE), Jump(f"heard_{name}")) for interface in interfaces]


def own_chains(name: str, found: Links) -> list[Chain]:
    """The chains that those jump to; they come back unless a rule opens it."""
    if not found.out:
        return []
    echoes = [
        _rule(
            *_until(link),
            Interface(link.interface, End.DESTINATION),
            Echo(family),
            Count(link.counter),
            Final.ACCEPT,
        )
        for link in found.out
        if link.ports.icmp
        for family in FAMILIES
    ]
    over = (*_closed(End.DESTINATION), *_opened(found.out, End.DESTINATION, End.DESTINATION), *echoes)
    heard = _opened(found.out, End.SOURCE, End.SOURCE, ("udp",))
    return [
        Chain(f"over_{name}", over),
        *([Chain(f"heard_{name}", (*_closed(End.SOURCE), *heard))] if heard else []),
    ]


def _closed(end: End) -> list[Rule]:
    return [_rule(Among(family, end, CLOSED[family]), Final.RETURN) for family in FAMILIES]


def names(found: Sequence[Link]) -> list[str]:
    """The interfaces that these are about."""
    return list(dict.fromkeys(link.interface for link in found))
