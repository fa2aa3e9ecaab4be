"""Which rule came closest to allowing a connection, in words: help for people, no part of the verdict.

A rule with the right port is nearer than one with another; among those, the one whose peers share the
most leading bits of the address, or trailing labels of the name; among those, the first of the file.
One pass over all peers, integers only: a rule may have thousands, and this runs for every block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from penstock.core.connection import Connection
from penstock.core.names import is_shared_suffix
from penstock.core.policy import (
    CONTROL_PORTS,
    EVERY_PORT,
    NOWHERE,
    Address,
    AddressPeer,
    AnyPeer,
    Cidr,
    CidrPeer,
    Direction,
    HostPeer,
    MetadataPeer,
    NamePeer,
    NetworkPeer,
    Peer,
    PlanePeer,
    Policy,
    Ports,
    Rule,
    WorkloadPeer,
)
from penstock.core.text import printable, time_text

SHOWN = 3  # peers and port ranges that a text spells out
WORD = 64  # characters of one peer that it spells out
BITS = 128  # closeness is counted in bits of 128, so that both families compare
LABEL = 16  # what one shared label of a name is worth, in those bits
FAR = 32  # with another port too, less than this (10.*, two labels) is no likeness
NO_GAP = 1 << 20  # further than any two ports are


@dataclass(frozen=True, slots=True)
class Near:
    """The nearest rule, and one phrase that names it and says in what it differs."""

    rule: Rule
    text: str


def nearest(policy: Policy, rules: Iterable[Rule], connection: Connection) -> Near | None:
    """Return the one of `rules` closest to allowing `connection`, or None if none is anything like it."""
    best: tuple[bool, int] = (False, FAR - 1)
    found: tuple[Rule, Peer] | None = None
    for rule in rules:
        same_port = port_gap(rule.ports, connection) == 0
        for peer in rule.peers:
            score = (same_port, _closeness(policy, peer, connection))
            if score > best:
                best, found = score, (rule, peer)
    if found is None:
        return None
    rule, peer = found
    far_end = "destination" if connection.direction is Direction.OUT else "source"
    if isinstance(peer, NetworkPeer) and policy.networks[peer.name].interface:
        far_end = "interface"
    differs = f"other {far_end}" if best[0] else f"other {far_end} and port"
    return Near(rule, f"nearest is {called(rule, peer)}: {differs}")


class NearestNames:
    """The names in rules, made ready for many questions: the policy may have thousands, and so may an attacker."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._by_suffix: dict[str, tuple[Rule, NamePeer]] = {}
        for rule in rules:
            for peer in rule.peers:
                if isinstance(peer, NamePeer):
                    for suffix in _suffixes(peer.pattern.removeprefix("*.")):
                        self._by_suffix.setdefault(suffix, (rule, peer))

    def of(self, name: str, now: datetime) -> Near | None:
        """The rule whose name shares most labels with `name`, which none stands for; None: none is like it."""
        for suffix in _suffixes(name):
            rule, peer = self._by_suffix.get(suffix, (None, None))
            if rule is not None and peer is not None and not is_over(rule, now):
                differs = "not the name above" if peer.pattern == f"*.{name}" else "other name"
                return Near(rule, f"nearest is {called(rule, peer)}: {differs}")
        return None


def _suffixes(name: str) -> Iterator[str]:
    """It, and the names above it, as far as all below belongs to the same people."""
    while name and not is_shared_suffix(name):
        yield name
        _, _, name = name.partition(".")


def is_over(rule: Rule, now: datetime) -> bool:
    """Whether the rule has expired."""
    return rule.expires is not None and rule.expires <= now


def port_gap(ports: Ports, connection: Connection) -> int:
    """Return how far the nearest open port is: 0 if it is open, small for the same protocol."""
    if connection.protocol == "icmp":
        return 0 if ports.icmp else NO_GAP
    if connection.port is None:
        return NO_GAP
    calls = connection.direction is Direction.OUT and connection.protocol == "tcp"
    closed = calls and connection.port in CONTROL_PORTS
    gaps = [
        # A range around a control port does not open it.
        max(opened.first - connection.port, connection.port - opened.last, closed and opened.first < opened.last)
        + (0 if opened.protocol == connection.protocol else 65536)
        for opened in ports.ranges
    ]
    return min(gaps, default=NO_GAP)


def _closeness(policy: Policy, peer: Peer, connection: Connection) -> int:
    """Return how much of the far end `peer` shares, 0 to 128."""
    if isinstance(peer, NamePeer):
        return _shared_labels(peer.pattern, connection.name)
    remote = connection.remote
    if remote is None:
        return 0
    if isinstance(peer, AddressPeer):
        return _shared_bits(remote, peer.address, peer.address.max_prefixlen)
    if isinstance(peer, CidrPeer):
        return _shared_with(remote, peer.cidr)
    if isinstance(peer, NetworkPeer):
        return max((_shared_with(remote, cidr) for cidr in policy.networks[peer.name].cidrs), default=0)
    return 0


def _shared_with(remote: Address, cidr: Cidr) -> int:
    return _shared_bits(remote, cidr.network_address, cidr.prefixlen)


def _shared_bits(one: Address, other: Address, limit: int) -> int:
    """Return the leading bits that are the same, `limit` at most, scaled to 128; 0 across families."""
    width = one.max_prefixlen
    if other.max_prefixlen != width:
        return 0
    shared = width - (int(one) ^ int(other)).bit_length()
    return min(shared, limit) * (BITS // width)


def _shared_labels(pattern: str, name: str) -> int:
    shared = 0
    for one, other in zip(reversed(pattern.split(".")), reversed(name.split(".")), strict=False):
        if one != other or not one:
            break
        shared += LABEL
    return min(shared, BITS)


def called(rule: Rule, peer: Peer | None = None) -> str:
    """Return `rule` with its id: `rule db (10.30.1.5:5432)`; what is lent is a grant, not a rule."""
    words = f"{rule.id} ({describe(rule, peer)})"
    return words if is_lent(rule) else f"rule {words}"


def terms(rule: Rule) -> str:
    """Return, of what is lent, until when, by whom and why, to stand behind a phrase."""
    return f", until {time_text(rule.expires)}, {rule.reason}" if is_lent(rule) else ""


def is_lent(rule: Rule) -> bool:
    """Whether it is a grant's, and stands in no file."""
    return rule.place == NOWHERE and rule.id.startswith("grant-")


def describe(rule: Rule, peer: Peer | None = None) -> str:
    """Return `rule` in a few words of bounded length: `10.30.1.5:5432`, `clients -> 11434`.

    Of several peers `peer`, if given, comes first.
    """
    first = [] if peer is None else [peer]
    rest = [other for other in rule.peers[: SHOWN + 1] if other != peer]
    shown = (first + rest)[:SHOWN]
    peers = _some([_word(p) for p in shown], len(rule.peers)) if shown else "nobody"
    ports = _ports(rule.ports)
    if rule.direction is Direction.IN:
        return f"{peers} -> {ports}"
    if len(rule.peers) > 1:
        return f"{peers}; ports {ports}"
    return f"[{peers}]:{ports}" if ":" in peers.removeprefix("workload:") else f"{peers}:{ports}"


def _ports(ports: Ports) -> str:
    words = ["any"] if ports.ranges == EVERY_PORT else [str(opened) for opened in ports.ranges]
    words += ["icmp"] if ports.icmp else []
    return _some(words[:SHOWN], len(words)) or "none"


def _some(words: list[str], count: int) -> str:
    more = count - len(words)
    return ", ".join(words) + (f" and {more} more" if more > 0 else "")


def _word(peer: Peer) -> str:
    """Return `peer` as an operator writes it."""
    match peer:
        case AddressPeer():
            return str(peer.address)
        case CidrPeer():
            return str(peer.cidr)
        case NamePeer():
            return printable(peer.pattern, WORD)
        case NetworkPeer():
            return printable(peer.name, WORD)
        case PlanePeer():
            return f"plane:{peer.plane}"
        case WorkloadPeer():
            return f"workload:{printable(peer.name, WORD)}"
        case MetadataPeer():
            return "metadata"
        case HostPeer():
            return "host"
        case AnyPeer():
            return "any"
