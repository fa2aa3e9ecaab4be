"""The small world of the differential test: its addresses and ports, and policies and probes drawn from it.

Addresses lie dense around the ends of the prefixes that policies use, ports around the ends of their ranges,
so that an error of one shows.  Everything comes from a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from random import Random

from penstock.core.policy import (
    EVERY_PORT,
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
    Workload,
    WorkloadPeer,
)

WORKLOADS = ("alpha", "beta-2")
OWN = {"alpha": ("192.0.2.10", "2001:db8:2::10"), "beta-2": ("192.0.2.11", "2001:db8:2::11")}
BYSTANDER = ("192.0.2.12", "2001:db8:2::12")

_DENSE = {4: int(ip_address("10.9.8.0")), 6: int(ip_address("2001:db8:9::"))}
_EDGES: dict[int, tuple[str, ...]] = {
    4: (
        *("1.0.0.1", "10.0.0.0", "10.9.7.255", "10.9.9.0", "10.255.255.255", "11.0.0.0", "203.0.113.66"),
        *("169.253.255.255", "169.254.0.1", "169.254.255.254", "169.255.0.0", "223.255.255.254"),
        *("169.254.169.253", "169.254.169.255", "100.100.100.199", "100.100.100.201"),
    ),
    6: (
        *("2001:db8:8:ffff:ffff:ffff:ffff:ffff", "2001:db8:9:0:1::", "2001:db8:a::", "2001:db8:66::66"),
        *("fe80::9", "fe80::a9fe:a9fe", "fec0::1", "fe7f:ffff::1", "fd00:ec2::253", "fd00:ec2::255"),
    ),
}
DENSE: dict[int, tuple[Address, ...]] = {
    4: tuple(IPv4Address(_DENSE[4] + number) for number in range(20)),
    6: tuple(IPv6Address(_DENSE[6] + number) for number in range(20)),
}
EDGES: dict[int, tuple[Address, ...]] = {
    family: (
        *(found for found in map(ip_address, texts) if found not in METADATA),
        *(address for address in METADATA if address.version == family),
    )
    for family, texts in _EDGES.items()
}
ADDRESSES: tuple[Address, ...] = tuple(a for f in (4, 6) for a in (*DENSE[f], *EDGES[f]))

_ENDS = (2, 53, 80, 443, 2375, 2376, 8000, 8100, 65535)  # two control ports among them
PORTS = tuple(sorted({p for end in _ENDS for p in (end - 1, end, end + 1) if p <= 65535}))
SQUATTED = (8050, 8051, 8052)
"""Ports of the governed host that only the squatting bystander uses; 9 is the barrier's."""

ODD = ("other-icmp", "sctp", "options", "foreign")
"""No echo request, no TCP or UDP, a datagram with IPv4 options, one from an address that is not this host's."""

_PROTOCOLS = {
    Direction.OUT: ("tcp",) * 5 + ("udp",) * 3 + ("icmp",) * 3 + ODD,
    Direction.IN: ("tcp", "udp"),  # an echo request to this host is answered by no process of it
}
_LENGTHS = {4: (32, 32, 31, 30, 29, 28, 27, 24, 16, 8, 3, 0), 6: (128, 128, 127, 126, 124, 64, 48, 32, 10, 0)}


@dataclass(frozen=True, slots=True)
class Probe:
    """One connection: out from the workload to (remote, port), or in from remote to the workload's port."""

    workload: str
    direction: Direction
    protocol: str
    remote: Address
    port: int | None

    @property
    def own(self) -> str:
        """The workload's address of that family."""
        return OWN[self.workload][self.remote.version == 6]


NAMES = ("a.example.org", "b.example.org", "example.org", "a.example.net")
PATTERNS = ("*.example.org", "a.example.org", "example.org", "*.example.net")
Found = Mapping[str, Mapping[str, tuple[Address, ...]]]


def _family(random: Random) -> int:
    return random.choice((4, 6))


def address(random: Random, family: int) -> Address:
    """One address of the world."""
    return random.choice(DENSE[family] if random.random() < 0.6 else EDGES[family])


def _cidr(random: Random) -> Cidr:
    family = _family(random)
    return ip_network((str(address(random, family)), random.choice(_LENGTHS[family])), strict=False)


def _range(random: Random) -> PortRange:
    protocol = random.choice(("tcp", "tcp", "udp"))
    first, last = sorted(random.choices(_ENDS, k=2))
    if random.random() < 0.5:
        last = first
    return PortRange(protocol, first, last)


def _ports(random: Random) -> Ports:
    if random.random() < 0.15:
        return Ports(EVERY_PORT, icmp=random.random() < 0.7)
    ranges = tuple(_range(random) for _ in range(random.choice((1, 1, 2, 3))))
    return Ports(ranges if random.random() < 0.9 else (), icmp=random.random() < 0.35)


def _peer(random: Random, direction: Direction) -> Peer:
    kind = random.random()
    if kind < 0.30:
        return AddressPeer(address(random, _family(random)))
    if kind < 0.55:
        return CidrPeer(_cidr(random))
    if kind < 0.70:
        return NetworkPeer(random.choice(("near", "far", "wire", "unplugged")))
    if kind < 0.77:
        return PlanePeer(random.choice(tuple(Plane)))
    if kind < 0.80:
        return AnyPeer()
    if kind < 0.84:
        return MetadataPeer()
    if direction is Direction.OUT and random.random() < 0.75:
        return NamePeer(random.choice(PATTERNS))
    here: tuple[Peer, ...] = (
        WorkloadPeer("alpha"),
        HostPeer(),
    )
    return random.choice(here)


def _exception(random: Random) -> CidrPeer | NetworkPeer:
    if random.random() < 0.75:
        return CidrPeer(_cidr(random))
    return NetworkPeer(random.choice(("near", "near", "near", "far", "far", "wire", "unplugged")))


def _rule(random: Random, direction: Direction, number: int, now: datetime) -> Rule:
    lasting = random.random()
    return Rule(
        id=f"{direction}-{number}",
        direction=direction,
        peers=tuple(_peer(random, direction) for _ in range(random.choice((1, 1, 2, 3)))),
        ports=_ports(random),
        excepted=tuple(_exception(random) for _ in range(random.choice((0, 0, 1, 2)))),
        private=random.random() < 0.5,
        expires=now + timedelta(hours=-1 if lasting < 0.15 else 1) if lasting < 0.3 else None,
    )


def _network(random: Random, name: str) -> Network:
    plane = random.choice((Plane.ADMIN, Plane.ADMIN, Plane.INFERENCE))
    return Network(name, tuple(_cidr(random) for _ in range(random.choice((1, 2, 3)))), plane=plane)


def _admin_ports(random: Random) -> Ports:
    """In most of the policies: no range that holds the port of the barrier."""
    ends = [(p, p) for p in _ENDS] + [(2375, 2376)]
    chosen = random.sample(ends, random.choice((0, 2, 4)))
    return Ports(tuple(PortRange(random.choice(("tcp", "udp")), first, last) for first, last in chosen))


def policy(random: Random, now: datetime) -> Policy:
    """A policy of two workloads."""
    modes = (Mode.ENFORCE,) * 8 + (Mode.OBSERVE, Mode.LOCK)
    return Policy(
        networks={
            "near": _network(random, "near"),
            "far": _network(random, "far"),
            # Every probe goes over the one, and none over the other.
            "wire": Network("wire", interface="eth0", plane=random.choice((None, Plane.ADMIN, *Plane))),
            "unplugged": Network("unplugged", interface="eth9", plane=random.choice((None, *Plane))),
        },
        workloads={
            name: Workload(
                name,
                random.choice(modes),
                tuple(_rule(random, Direction.OUT, n, now) for n in range(random.randint(0, 6))),
                tuple(_rule(random, Direction.IN, n, now) for n in range(random.randint(0, 6))),
            )
            for name in WORKLOADS
        },
        admin_ports=_admin_ports(random),
    )


def found(random: Random) -> Found:
    """What look-ups said: workload -> name -> addresses; also for names that no rule has."""

    def addresses() -> tuple[Address, ...]:
        return tuple({address(random, _family(random)) for _ in range(random.randint(0, 12))})

    return {workload: {name: addresses() for name in NAMES} for workload in WORKLOADS}


def probe(random: Random, policy: Policy) -> Probe:
    """A connection that `policy` may or may not allow; more often one that a rule of it is about."""
    workload = random.choice(WORKLOADS)
    direction = random.choice((Direction.OUT, Direction.OUT, Direction.IN))
    protocol = random.choice(_PROTOCOLS[direction])
    port: int | None = random.choice(PORTS)
    remote = address(random, _family(random))
    governed = policy.workloads[workload]
    rules = governed.egress if direction is Direction.OUT else governed.ingress
    if rules and random.random() < 0.7:
        rule = random.choice(rules)
        if rule.ports.ranges and protocol in ("tcp", "udp") and random.random() < 0.8:
            chosen = random.choice(rule.ports.ranges)
            protocol = chosen.protocol if random.random() < 0.9 else protocol
            port = random.choice([p for p in PORTS if chosen.first - 1 <= p <= chosen.last + 1])
        remote = _near(random, policy, rule.peers, remote)
    clients = policy.of_plane(Plane.INFERENCE)
    if policy.admin_ports.ranges and clients and random.random() < 0.2:
        closed = random.choice(policy.admin_ports.ranges)
        direction, protocol, port = Direction.IN, closed.protocol, random.choice((closed.first, closed.last))
        who = [NetworkPeer(network.name) for network in clients] if random.random() < 0.5 else None
        remote = _near(random, policy, who or _sources(governed), remote)
    if protocol == "options" and remote.version == 6:
        protocol = "foreign"
    return Probe(workload, direction, protocol, remote, None if "icmp" in protocol else port)


def _sources(workload: Workload) -> Sequence[Peer]:
    return [peer for rule in workload.ingress for peer in rule.peers] or [AnyPeer()]


def _near(random: Random, policy: Policy, peers: Sequence[Peer], fallback: Address) -> Address:
    """An address of the world at an end of one of the peers, or inside, or just outside."""
    peer = random.choice(peers)
    cidrs: tuple[Cidr, ...] = ()
    if isinstance(peer, AddressPeer):
        return peer.address if random.random() < 0.7 else fallback
    if isinstance(peer, MetadataPeer):
        return random.choice(METADATA)
    if isinstance(peer, CidrPeer):
        cidrs = (peer.cidr,)
    elif isinstance(peer, NetworkPeer):
        cidrs = policy.networks[peer.name].cidrs
    if not cidrs:
        return fallback
    cidr = random.choice(cidrs)
    low, high = int(cidr.network_address) - 1, int(cidr.broadcast_address) + 1
    inside = [a for a in ADDRESSES if a.version == cidr.version and low <= int(a) <= high]
    return random.choice((inside[0], inside[-1], random.choice(inside))) if inside else fallback
