"""What a workload may reach, and who may reach it, under one policy and not under another.

Rules are compared by what they open, not by how they are written: a rule that was renamed, split or moved opens
nothing new, and one that goes closes nothing that another still allows.  Addresses are compared as the compiler
puts them into the kernel, names and other workloads as they are written.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from itertools import islice
from typing import Any

from penstock.core import control_ports, rebinding
from penstock.core.compile import ECHO, NUMBERS, allowances
from penstock.core.coverage import Cover
from penstock.core.interface_chains import interfaces
from penstock.core.language.rule_ids import peer_text
from penstock.core.nearest import describe
from penstock.core.policy import (
    AddressPeer,
    AnyPeer,
    Cidr,
    CidrPeer,
    Direction,
    HostPeer,
    MetadataPeer,
    Mode,
    NamePeer,
    NetworkPeer,
    Peer,
    PlanePeer,
    Policy,
    PortRange,
    Ports,
    Rule,
    Workload,
    WorkloadPeer,
)
from penstock.core.regions import Interval, disjoint, merge, subtract
from penstock.core.unenforced import is_later

SHOWN = 8
"""Prefixes of which the part of a rule is told; of more it is only said that it is a part."""

EVERYTHING = "everything"
BUT_RULES = "everything that its rules do not allow"
OBSERVED = "everything that its rules do not allow; what was recorded: penstock blocks --workload {}"
NOT_REFUSED = "everything: nothing is refused, only recorded"
IN_SLICE = "everything, for processes in its slice: they belong to no workload then"
IN_PLACE = "everything, for units governed where they are: nothing governs them then"

_PRIVATE = "private addresses"
_NAMES = {number: name for name, number in NUMBERS.items()} | dict.fromkeys(ECHO.values(), "icmp")
_Place = tuple[Direction, int, int]  # which way, family, protocol
_Piece = tuple[int, int, tuple[Interval, ...]]  # first and last address, ports
_Split = dict[str, tuple[Interval, ...]]


@dataclass(frozen=True, slots=True)
class Opening:
    """Something that is allowed or not; `direction` is "" for both ways, `rule` "" when no rule is about it.

    `enforced` is False for what the kernel is not told about yet.
    """

    text: str
    direction: str = ""
    rule: str = ""
    enforced: bool = True


@dataclass(frozen=True, slots=True)
class Reach:
    """What changes for one workload.  `observed`: nothing is refused either way, it is about what is recorded."""

    workload: str
    allowed: tuple[Opening, ...]
    denied: tuple[Opening, ...]
    observed: bool = False


def changes(old: Policy | None, new: Policy, now: datetime) -> tuple[Reach, ...]:
    """What applying `new` at `now` opens and closes where `old` is in force (None: nothing is), by workload."""
    before = old or Policy()
    names = sorted(before.workloads.keys() | new.workloads.keys())
    found = (_change(name, before, new, now) for name in names)
    return tuple(one for one in found if one.allowed or one.denied)


def as_json(found: Iterable[Reach]) -> list[dict[str, Any]]:
    """The list `reach` of `penstock plan --json`."""
    return [
        {
            "workload": one.workload,
            "observed": one.observed,
            "allowed": [_json(opening) for opening in one.allowed],
            "denied": [_json(opening) for opening in one.denied],
        }
        for one in found
    ]


def _json(opening: Opening) -> dict[str, Any]:
    return {
        "direction": opening.direction or None,
        "text": opening.text,
        "rule": opening.rule or None,
        "enforced": opening.enforced,
    }


def _change(name: str, old: Policy, new: Policy, now: datetime) -> Reach:
    was, will = old.workloads.get(name), new.workloads.get(name)
    if will is None:
        return Reach(name, (Opening(IN_PLACE),), (Opening(IN_SLICE),))
    before, after = _Opened(old, was, now), _Opened(new, will, now)
    mode = was.mode if was else None
    match will.mode:
        case Mode.LOCK:
            return Reach(name, (), () if mode is Mode.LOCK else (Opening(EVERYTHING),))
        case Mode.OBSERVE if mode in (Mode.OBSERVE, None):
            return Reach(name, after.beyond(before), before.beyond(after), observed=True)
        case Mode.OBSERVE:
            return Reach(name, (Opening(NOT_REFUSED),), ())
    if mode is Mode.OBSERVE:
        return Reach(name, (), (Opening(OBSERVED.format(name)),))
    if mode is Mode.LOCK:
        return Reach(name, after.beyond(_Opened(old, None, now)), ())
    closed = before.beyond(after) if was else (Opening(BUT_RULES),)
    return Reach(name, after.beyond(before), closed)


class _Opened:
    """What the rules of a workload open, in whatever mode it is; None opens nothing."""

    def __init__(self, policy: Policy, workload: Workload | None, now: datetime) -> None:
        self._policy = policy
        rules = workload.rules if workload else ()
        self._rules = [rule for rule in rules if rule.expires is None or rule.expires > now]

    def beyond(self, other: _Opened) -> tuple[Opening, ...]:
        """What is open here and not there, rule by rule."""
        same = {rule.id: rule for rule in other._rules}
        return tuple(
            opening
            for rule in self._rules
            if not (same.get(rule.id) == rule and self._networks(rule) == other._networks(rule))
            for opening in self._left(rule, other)
        )

    def _networks(self, rule: Rule) -> list[object]:
        named = [peer.name for peer in (*rule.peers, *rule.excepted) if isinstance(peer, NetworkPeer)]
        of_planes = [self._policy.of_plane(peer.plane) for peer in rule.peers if isinstance(peer, PlanePeer)]
        return [*(self._policy.networks.get(name) for name in named), *of_planes]

    def _left(self, rule: Rule, other: _Opened) -> Iterator[Opening]:
        """What `rule` opens and nothing there does: the rule itself, or the parts of it that are left."""
        pieces = list(_pieces(self._policy, rule))
        left = [(place, part) for place, one in pieces for part in _without(one, other._by_address.get(place, []))]
        ports = _split(control_ports.of(rule))
        words = [(peer, word) for peer in rule.peers for word in _words(self._policy, peer)]
        rest = [(peer, *part) for peer, word in words for part in self._rest(rule, peer, word, ports, other)]
        direction = rule.direction.value
        if left == pieces and all(own == ports for _, _, own in rest):
            later = all(is_later(self._policy, rule, peer) for peer in rule.peers)
            if pieces or words:
                yield Opening(describe(rule), direction, rule.id, enforced=not later)
            return
        for text in _parts(rule, left):
            yield Opening(text, direction, rule.id)
        for peer, zone, own in rest:
            if any(own.values()):
                part = Rule(rule.id, rule.direction, (peer,), _joined(own))
                where = f", at {zone}" if zone else ""
                later = is_later(self._policy, rule, peer)
                yield Opening(f"{describe(part)}{where}", direction, rule.id, enforced=not later)

    def _rest(
        self, rule: Rule, peer: Peer, word: str, ports: _Split, other: _Opened
    ) -> Iterator[tuple[str, _Split]]:
        """The ports that no rule there opens to it; of a name also those that none opens at some addresses."""
        there = [one for wider in _wider(peer, word) for one in other._by_word.get((rule.direction, wider), ())]
        left = _minus(ports, _split(*map(control_ports.of, there)))
        yield "", left
        if not isinstance(peer, NamePeer):
            return
        takers: dict[str, list[Rule]] = {}
        if rule.private:
            takers[_PRIVATE] = [one for one in there if one.private or _is_any(one)]
        cut = [(one, Cover(other._policy, one.excepted)) for one in there]
        zones = dict.fromkeys(cidr for one in there for cidr in other._cut(one))
        own = Cover(self._policy, rule.excepted if zones else ())
        for zone in zones:
            if not own.holds(zone) and _leads_to(rule, zone):
                some = [one for one, gone in cut if not gone.holds(zone)]
                takers[peer_text(zone)] = [one for one in some if _is_any(one) or _leads_to(one, zone)]
        for text, openers in takers.items():
            more = _minus(ports, _split(*map(control_ports.of, openers)))
            if more != left:
                yield text, more

    def _cut(self, rule: Rule) -> Iterator[CidrPeer]:
        """What is taken out of it by address."""
        for peer in rule.excepted:
            cidrs = (peer.cidr,) if isinstance(peer, CidrPeer) else self._policy.networks[peer.name].cidrs
            yield from map(CidrPeer, cidrs)

    @cached_property
    def _by_address(self) -> dict[_Place, list[_Piece]]:
        """What is open by address: pieces that do not overlap, in order."""
        found: dict[_Place, dict[Interval, list[Interval]]] = defaultdict(lambda: defaultdict(list))
        for direction in Direction:
            rules = [rule for rule in self._rules if rule.direction is direction]
            for family in (4, 6):
                opened = (a for n, rule in enumerate(rules) for a in allowances(self._policy, rule, n, family))
                for low, high, protocol, first, last in disjoint(opened):
                    found[direction, family, protocol][low, high].append((first, last))
        return {
            place: sorted((low, high, merge(ports)) for (low, high), ports in pieces.items())
            for place, pieces in found.items()
        }

    @cached_property
    def _by_word(self) -> dict[tuple[Direction, str], list[Rule]]:
        """The rules that open something to names, other workloads and whatever else is no address."""
        found: dict[tuple[Direction, str], list[Rule]] = defaultdict(list)
        for rule in self._rules:
            for peer in rule.peers:
                if is_later(self._policy, rule, peer):
                    continue
                words = ["any"] if isinstance(peer, AnyPeer) else _words(self._policy, peer)
                for word in words:
                    found[rule.direction, word].append(rule)
        return found


def _is_any(rule: Rule) -> bool:
    return any(isinstance(peer, AnyPeer) for peer in rule.peers)


def _leads_to(rule: Rule, zone: CidrPeer) -> bool:
    """Whether a name of the rule may be at some address there, exceptions aside; True where that is not plain.

    Ranges of unfit addresses are prefixes: what has one kind of them at the ends of both halves has no others.
    """
    first, last = int(zone.cidr.network_address), int(zone.cidr.broadcast_address)
    middle = (first + last) // 2
    make = IPv4Address if zone.cidr.version == 4 else IPv6Address
    ends = [make(number) for number in {first, middle, min(middle + 1, last), last}]
    return len({rebinding.kind(end) for end in ends}) > 1 or rebinding.admits(ends[0], rule.private)


def _words(policy: Policy, peer: Peer) -> list[str]:
    """What it stands for besides addresses that the policy knows: interfaces, a name, who is on this host."""
    if isinstance(peer, NetworkPeer | PlanePeer):
        return [f"interface {name}" for name in interfaces(policy, peer)]
    return [] if isinstance(peer, AddressPeer | CidrPeer | MetadataPeer | AnyPeer) else [peer_text(peer)]


def _wider(peer: Peer, word: str) -> Iterator[str]:
    """One of the words of a peer, and all that contain it."""
    yield word
    if isinstance(peer, NamePeer):
        rest = peer.pattern.removeprefix("*.")
        while "." in rest:
            rest = rest.partition(".")[2]
            yield f"*.{rest}"
    if not isinstance(peer, WorkloadPeer | HostPeer):
        yield "any"


def _pieces(policy: Policy, rule: Rule) -> Iterator[tuple[_Place, _Piece]]:
    """What a rule opens by address."""
    for family in (4, 6):
        for one in allowances(policy, rule, 0, family):
            for low, high in one.addresses:
                yield (rule.direction, family, one.protocol), (low, high, one.ports)


def _without(piece: _Piece, others: Sequence[_Piece]) -> Iterator[_Piece]:
    """The parts of a piece that are in none of `others`, which are in order and do not overlap."""
    low, high, ports = piece
    for place in range(bisect_left(others, low, key=lambda other: other[1]), len(others)):
        start, end, taken = others[place]
        if start > high:
            break
        if start > low:
            yield low, start - 1, ports
            low = start
        last = min(end, high)
        if rest := subtract(ports, taken):
            yield low, last, rest
        low = last + 1
    if low <= high:
        yield low, high, ports


def _split(*several: Ports) -> _Split:
    """Ports by protocol, merged; echo is a port of its own."""
    found: _Split = {
        name: merge((r.first, r.last) for ports in several for r in ports.ranges if r.protocol == name)
        for name in NUMBERS
    }
    return {**found, "icmp": ((0, 0),) if any(ports.icmp for ports in several) else ()}


def _joined(split: _Split) -> Ports:
    ranges = [PortRange(name, *interval) for name in NUMBERS for interval in split[name]]
    return Ports(tuple(ranges), bool(split["icmp"]))


def _minus(ports: _Split, taken: _Split) -> _Split:
    return {name: subtract(intervals, taken[name]) for name, intervals in ports.items()}


def _parts(rule: Rule, left: Iterable[tuple[_Place, _Piece]]) -> list[str]:
    """What is left of a rule, as rules in a few words."""
    by_address: dict[tuple[int, int, int], list[Ports]] = defaultdict(list)
    for (_, family, protocol), (low, high, ports) in left:
        name = _NAMES[protocol]
        ranges = tuple(PortRange(name, *interval) for interval in ports) if name in NUMBERS else ()
        by_address[family, low, high].append(Ports(ranges, icmp=name not in NUMBERS))
    by_ports: dict[Ports, list[Peer]] = defaultdict(list)
    count = 0
    for (family, low, high), several in by_address.items():
        peers = list(islice(_prefixes(family, low, high), SHOWN + 1 - count))
        by_ports[_joined(_split(*several))] += peers
        count += len(peers)
        if count > SHOWN:
            return [f"{describe(rule)}, in part"]
    return [describe(Rule(rule.id, rule.direction, tuple(peers), ports)) for ports, peers in by_ports.items()]


def _prefixes(family: int, low: int, high: int) -> Iterator[Peer]:
    """An interval of addresses as prefixes; one address stands alone."""
    networks: Iterator[Cidr]
    if family == 4:
        networks = summarize_address_range(IPv4Address(low), IPv4Address(high))
    else:
        networks = summarize_address_range(IPv6Address(low), IPv6Address(high))
    for network in networks:
        yield CidrPeer(network) if network.num_addresses > 1 else AddressPeer(network.network_address)
