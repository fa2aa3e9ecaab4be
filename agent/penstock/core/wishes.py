"""Rules in the making: what was seen at one far end, its ports together.

Many names under one parent become one pattern; names that a preset is about are left to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from penstock.core import names
from penstock.core.advice import has_port
from penstock.core.language.rule_ids import derived_id, peer_text
from penstock.core.policy import AddressPeer, Direction, NamePeer, Peer, Place, PortRange, Ports, Rule
from penstock.core.presets import Preset
from penstock.core.seen import ASKED, Seen

MANY_NAMES = 8
"""Names under one parent, at the same ports, from which on a pattern is proposed in their place."""

MANY_SOURCES = 16
"""Callers at the same ports that are in no network: so many are one, which somebody should name."""

LAST = "\uffff"
"""The file of rules that are in no file: behind all others."""

Whom = tuple[Peer, bool]
"""A far end, and whether it is a name that leads to private addresses."""


@dataclass(slots=True, eq=False)
class Wish:
    """A rule in the making."""

    direction: Direction
    peer: Peer
    private: bool = False
    ports: set[PortRange] = field(default_factory=set)
    icmp: bool = False
    seen: list[Seen] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def only_asked(self) -> bool:
        """Whether no packet followed any look-up."""
        return all(seen.key.protocol == ASKED for seen in self.seen)

    def by_port(self) -> list[Wish]:
        """The same as a wish for each port, if it has several."""
        if len(self.ports) + self.icmp < 2:
            return [self]
        parts: dict[tuple[str, int | None], Wish] = {}
        for seen in self.seen:
            key = (seen.key.protocol, seen.key.port)
            if key in parts:
                parts[key].seen.append(seen)
            else:
                parts[key] = _part(self, seen)
        return list(parts.values())

    def rule(self, number: int) -> Rule:
        """The rule that it is, at line `number` of `LAST`."""
        ports = Ports(tuple(sorted(self.ports)), self.icmp)
        place = Place(LAST, number, 1)
        rule = Rule("", self.direction, (self.peer,), ports, private=self.private, place=place)
        return replace(rule, id=derived_id(rule))


def _part(wish: Wish, seen: Seen) -> Wish:
    part = Wish(wish.direction, wish.peer, wish.private, notes=list(wish.notes))
    part.seen.append(seen)
    _widen(part, seen)
    return part


def _widen(wish: Wish, seen: Seen) -> None:
    key = seen.key
    if key.protocol == ASKED:
        wish.ports.add(PortRange("tcp", 443, 443))
    elif key.protocol == "icmp":
        wish.icmp = True
    elif key.port is not None:
        wish.ports.add(PortRange(key.protocol, key.port, key.port))


def by_pattern(wishes: list[Wish]) -> list[Wish]:
    """Many names under one parent become one pattern, which opens more than was seen and says so."""
    groups: dict[tuple[str, tuple[PortRange, ...], bool, bool], list[Wish]] = {}
    for wish in wishes:
        # Names that were asked and no more may be data on its way out: a pattern would let more of it go.
        if isinstance(wish.peer, NamePeer) and not wish.only_asked:
            parent = wish.peer.pattern.partition(".")[2]
            if "." in parent and not names.is_shared_suffix(parent):
                key = (parent, tuple(sorted(wish.ports)), wish.icmp, wish.private)
                groups.setdefault(key, []).append(wish)
    for (parent, ports, icmp, private), many in groups.items():
        if len(many) >= MANY_NAMES:
            text = f"{len(many)} names were seen below it; the pattern opens every name below {parent}"
            seen = [one for wish in many for one in wish.seen]
            whole = Wish(Direction.OUT, NamePeer(f"*.{parent}"), private, set(ports), icmp, seen, [text])
            at = wishes.index(many[0])
            wishes = [wish for wish in wishes if wish not in many]
            wishes.insert(at, whole)
    return wishes


def crowds(wishes: Iterable[Wish]) -> list[list[Wish]]:
    """Addresses that call the same ports, where they are too many for a rule each."""
    found: dict[tuple[PortRange, ...], list[Wish]] = {}
    for wish in wishes:
        if wish.direction is Direction.IN and isinstance(wish.peer, AddressPeer):
            found.setdefault(tuple(sorted(wish.ports)), []).append(wish)
    return [crowd for crowd in found.values() if len(crowd) > MANY_SOURCES]


def covered(wish: Wish, preset: Preset) -> bool:
    if not isinstance(wish.peer, NamePeer) or wish.private or wish.icmp:
        return False
    mine = [rule for rule in preset.rules if has_name(rule, wish.peer.pattern)]
    return all(any(has_port(rule.ports, port.first, port.protocol) for rule in mine) for port in wish.ports)


def has_name(rule: Rule, name: str) -> bool:
    return any(isinstance(peer, NamePeer) and names.matches(peer.pattern, name) for peer in rule.peers)


def opens(rule: Rule, protocol: str, port: int | None) -> bool:
    return rule.ports.icmp if port is None else has_port(rule.ports, port, protocol)


def is_named(rule: Rule | None) -> bool:
    return rule is not None and any(isinstance(peer, NamePeer) for peer in rule.peers)


def endpoint(seen: Seen) -> str:
    """`registry.example.org:443`, `[2001:db8::5]:53/udp`, `10.30.7.7 on 8000`, `asked name`."""
    key = seen.key
    if key.protocol == ASKED:
        return f"asked {key.peer}"
    if key.port is None:
        return f"{key.peer} {key.protocol}"
    port = str(PortRange(key.protocol, key.port, key.port))
    if key.direction is Direction.IN:
        return f"{key.peer} on {port}"
    return f"[{key.peer}]:{port}" if ":" in key.peer else f"{key.peer}:{port}"


def short(rule: Rule) -> str:
    """The same of a rule."""
    ports = ", ".join([*map(str, rule.ports.ranges), *(["icmp"] if rule.ports.icmp else [])])
    peer = peer_text(rule.peers[0])
    if rule.direction is Direction.IN:
        return f"{peer} on {ports}"
    return f"[{peer}]:{ports}" if isinstance(rule.peers[0], AddressPeer) and ":" in peer else f"{peer}:{ports}"


def gathered(wanted: Iterable[tuple[Seen, Whom]]) -> list[Wish]:
    """One wish for each far end."""
    found: dict[tuple[Direction, Peer, bool], Wish] = {}
    for seen, whom in wanted:
        wish = found.setdefault((seen.key.direction, *whom), Wish(seen.key.direction, *whom))
        wish.seen.append(seen)
        _widen(wish, seen)
    return list(found.values())
