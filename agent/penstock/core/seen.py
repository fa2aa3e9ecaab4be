"""What the block log saw a workload try, one entry a destination: the evidence for rules that are missing.

Records of one destination and port are one entry, whatever their minute and process.  Names and processes in them
are text that others chose; memory is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

from penstock.core import names
from penstock.core.advice import has_port
from penstock.core.blocks import Block
from penstock.core.explain_names import NEVER
from penstock.core.policy import Address, Direction, Policy, Workload, WorkloadPeer

MAX_SEEN = 5_000
"""Destinations that are kept apart; of the others only the packets are counted."""
MAX_ADDRESSES = 64
"""Of one name."""
MAX_COMMS = 3
MAX_POLICIES = 64

_ICMP = {"icmp": "icmp", "icmpv6": "icmp"}

Service = tuple[str, int]
"""Protocol and port of a listener of this host."""


class Key(NamedTuple):
    """What makes two records the same.  `port` None: no port, or a name that was asked and no more."""

    direction: Direction
    peer: str  # a name, or the text of an address
    protocol: str  # tcp, udp, icmp, a number, or "asked"
    port: int | None

    def __str__(self) -> str:
        """As a file keeps it: `out registry.example.org 443/tcp`."""
        port = self.protocol if self.port is None else f"{self.port}/{self.protocol}"
        return f"{self.direction} {self.peer} {port}"


ASKED = "asked"


@dataclass(slots=True)
class Seen:
    """One destination or source.  `windows` counts records, one is a minute at most.  Times: seconds."""

    key: Key
    first: float
    last: float
    packets: int = 0
    windows: int = 0
    literal: int = 0  # of them, when look-ups were seen and none was for it
    addresses: set[Address] = field(default_factory=set)  # where the name was
    reasons: set[str] = field(default_factory=set)  # codes
    comms: set[str] = field(default_factory=set)
    policies: set[str] = field(default_factory=set)  # hashes, the first few

    @property
    def address(self) -> Address | None:
        """The far end, when it was no name."""
        try:
            return ip_address(self.key.peer)
        except ValueError:
            return None

    def add(self, block: Block) -> None:
        """Take one record in."""
        self.first, self.last = min(self.first, block.first), max(self.last, block.last)
        self.packets += block.count + block.unlogged
        self.windows += 1
        self.literal += block.text.startswith(NEVER)
        self.reasons.add(block.reason)
        if block.process.comm is not None and len(self.comms) < MAX_COMMS:
            self.comms.add(block.process.comm)
        if block.policy is not None and len(self.policies) < MAX_POLICIES:
            self.policies.add(block.policy)
        if block.name and block.address and len(self.addresses) < MAX_ADDRESSES:
            self.addresses.add(ip_address(block.address))


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen; `summed` packets are not told apart in the log, or there was no room to."""

    seen: tuple[Seen, ...]
    summed: int


def gather(blocks: Iterable[Block]) -> Evidence:
    """Put records of one workload together, each block once; those seen first come first."""
    found: dict[Key, Seen] = {}
    summed = 0
    for block in blocks:
        key = _key(block)
        if key is None or (key not in found and len(found) >= MAX_SEEN):
            summed += block.count + block.unlogged
            continue
        found.setdefault(key, Seen(key, block.first, block.last)).add(block)
    return Evidence(tuple(sorted(found.values(), key=_in_order)), summed)


def _in_order(seen: Seen) -> tuple[float, str, int]:
    return seen.first, seen.key.peer, seen.key.port or 0


def _key(block: Block) -> Key | None:
    """None for what sums several destinations up, and for what no record of ours says."""
    direction = Direction(block.direction)
    if block.is_lookup:
        return Key(direction, block.name, ASKED, None) if block.name else None
    if block.address is None or block.protocol is None:
        return None
    try:
        address = str(ip_address(block.address))
    except ValueError:
        return None
    peer = block.name if block.name and direction is Direction.OUT else address
    return Key(direction, peer, _ICMP.get(block.protocol, block.protocol), block.port)


def proper_name(text: str) -> bool:
    """Whether a rule can have that name."""
    try:
        return names.normalise(text) == text
    except names.BadName:
        return False


@dataclass(frozen=True, slots=True)
class Partners:
    """Other workloads of this host: who calls a service of ours, and whose the services are that we call."""

    callers: Mapping[Service, frozenset[str]] = field(default_factory=dict)
    listeners: Mapping[Service, frozenset[str]] = field(default_factory=dict)


def partners(policy: Policy, workload: str, others: Iterable[Block], here: frozenset[Address]) -> Partners:
    """What rules and records of the other workloads say about the two.

    `here` are the addresses of this host, besides those of loopback.
    """
    callers: dict[Service, set[str]] = {}
    listeners: dict[Service, set[str]] = {}
    for block in others:
        key = _key(block)
        known = block.workload != workload and block.workload in policy.workloads
        if not known or key is None or key.port is None or not is_here(key.peer, here):
            continue
        side = callers if key.direction is Direction.OUT else listeners
        side.setdefault((key.protocol, key.port), set()).add(block.workload)
    for other in policy.workloads.values():
        if other.name != workload:
            _by_rules(other, workload, callers, listeners)
    return Partners(_frozen(callers), _frozen(listeners))


def _by_rules(
    other: Workload, workload: str, callers: dict[Service, set[str]], listeners: dict[Service, set[str]]
) -> None:
    """Rules of the other that name this workload, port by port; of wide ranges nobody is told."""
    for rule in other.rules:
        if WorkloadPeer(workload) in rule.peers:
            side = callers if rule.direction is Direction.OUT else listeners
            for ports in rule.ports.ranges:
                for port in range(ports.first, min(ports.last, ports.first + 100) + 1):
                    side.setdefault((ports.protocol, port), set()).add(other.name)


def owner(policy: Policy, workload: str, service: Service) -> str:
    """The one other workload whose ingress rules are about that port; empty when there is none, or several."""
    protocol, port = service
    owners = [
        other.name
        for other in policy.workloads.values()
        if other.name != workload and any(has_port(rule.ports, port, protocol) for rule in other.ingress)
    ]
    return owners[0] if len(owners) == 1 else ""


def is_here(peer: str, here: frozenset[Address]) -> bool:
    """Whether the text is an address of this host."""
    try:
        address = ip_address(peer)
    except ValueError:
        return False
    return address.is_loopback or address in here


def _frozen(found: Mapping[Service, set[str]]) -> dict[Service, frozenset[str]]:
    return {service: frozenset(who) for service, who in found.items()}
