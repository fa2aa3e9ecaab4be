"""Ruleset -> nft script (nft(8)).  Pure text; every name in it was validated by the parser.

A script is one transaction: packets meet the old rules or the new ones, never none.  What the kernel already
holds (`Present`) stays declared; single elements change, chains are flushed and refilled.  So counters, and
the cgroups bound in the maps, survive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address
from math import ceil

from penstock.core.conditions import Hook
from penstock.core.render_rule import rule_text
from penstock.core.ruleset import ASKED, CATCH_ALL, TABLE, AddressSet, Chain, Element, Holds, NameSet, Ruleset

BASE = {
    # After destination NAT (-100).  Among filters the order does not matter.
    Hook.OUTPUT: ("filter", "output", 0),
    Hook.INPUT: ("filter", "input", 0),
    # Before connections are tracked (-200), and before others say of whose look-ups they are not (-300).
    Hook.DIVERTING: ("route", "output", -310),
    # Here the interface is the one that it leaves over.
    Hook.LEAVING: ("filter", "postrouting", 0),
    Hook.PASSING: ("filter", "forward", 0),
}
"""Type, hook and priority of each base chain."""

DAY = 86_400
LONGEST = 36_500 * DAY
"""Seconds that an element lasts at most: the kernel refuses some centuries."""

BATCH = 2000
"""Elements a command: a line of several megabytes would be slow in nft's scanner."""


@dataclass(frozen=True, slots=True)
class Present:
    """What the kernel holds of our table."""

    chains: frozenset[str] = frozenset()
    counters: frozenset[str] = frozenset()
    maps: frozenset[str] = frozenset()
    sets: Mapping[str, frozenset[Element]] = field(default_factory=dict)
    timed: Mapping[str, frozenset[Element]] = field(default_factory=dict)  # those that will run out

    @classmethod
    def of(cls, ruleset: Ruleset, now: datetime) -> Present:
        """What the kernel holds when `ruleset` was loaded and nobody touched it: all but expired elements."""
        return cls(
            chains=frozenset(chain.name for chain in ruleset.chains),
            counters=frozenset(ruleset.counters),
            maps=frozenset(ruleset.maps),
            sets={
                **{s.name: frozenset(unexpired(s, now)) for s in ruleset.sets},
                **{s.name: frozenset() for s in ruleset.name_sets},
            },
            timed={
                **{s.name: frozenset(e for e in unexpired(s, now) if e in s.expires) for s in ruleset.sets},
                **{s.name: frozenset() for s in ruleset.name_sets},
            },
        )


def unexpired(address_set: AddressSet, now: datetime) -> Iterator[Element]:
    """Elements of the set that are still in the kernel at `now`."""
    if not address_set.expires:
        return iter(address_set.elements)
    expires = address_set.expires
    return (e for e in address_set.elements if e not in expires or expires[e] > now)


def script(
    ruleset: Ruleset,
    present: Present,
    now: datetime,
) -> str:
    """Return the transaction that turns `present` into `ruleset`; without a table, Present() is empty.

    A workload that is not in `ruleset` any more must have been unbound: its chains cannot go before.
    """
    lines = [f"add table inet {TABLE}"]
    lines += [f"flush chain inet {TABLE} {name}" for name in sorted(present.chains)]
    lines += _declarations(ruleset, present)
    lines += _elements(ruleset, present, now)
    lines += [_chain(chain) for chain in ruleset.chains]
    lines += _fill(ruleset.chains)
    lines += _removals(ruleset, present)
    return "\n".join(lines) + "\n"


def replacement(ruleset: Ruleset, now: datetime) -> str:
    """Return the transaction after which nothing is in force but `ruleset`, whatever the table holds before.

    Chains are emptied, and not made anew: an old and a new base chain are two hooks, and a packet between them may
    meet the new one before it counts and the old one when it is over.  (6 in 800 loads under a flood did.)  What
    others put into the table stays, and is called by nobody.  It fails when something there is of another type, or
    a base chain is at another hook.
    """
    fresh = Present()
    lines = [f"add table inet {TABLE}", *_declarations(ruleset, fresh), *map(_chain, ruleset.chains)]
    lines += [f"flush table inet {TABLE}"]
    lines += [f"flush map inet {TABLE} {name}" for name in ruleset.maps]
    lines += [f"flush set inet {TABLE} {address_set.name}" for address_set in ruleset.sets]
    lines += [*_elements(ruleset, fresh, now), *_fill(ruleset.chains)]
    return "\n".join(lines) + "\n"


def _declarations(ruleset: Ruleset, present: Present) -> Iterator[str]:
    for counter in ruleset.counters:
        if counter not in present.counters:
            yield f"add counter inet {TABLE} {counter}"
    for name in ruleset.maps:
        if name not in present.maps:
            yield f"add map inet {TABLE} {name} {{ type cgroupsv2 : verdict ; }}"
    for address_set in ruleset.sets:
        if address_set.name not in present.sets:
            yield (
                f"add set inet {TABLE} {address_set.name} {{ type ipv{address_set.family}_addr . inet_proto"
                " . inet_service ; flags interval, timeout ; counter ; }"
            )
    for name_set in ruleset.name_sets:
        if name_set.name not in present.sets:
            yield f"add {_kind(name_set.name)} inet {TABLE} {name_set.name} {{ {_name_set(name_set)} }}"


def _kind(name: str) -> str:
    return "map" if name.startswith(ASKED) else "set"


LEARNED, FLOWS, SERVED, PORTS = 1 << 20, 1 << 18, 1 << 12, 1 << 16
"""Elements that a set takes at most: of learned addresses more than the resolver ever asks for; of flows, what is
above is not remembered, and ends with the address that let it in; of ports, all of them."""


SWEPT = "1m"
"""How often the kernel removes addresses that have run out.

By itself it looks each second, and with half a million of them that processor does nothing else for 50 ms.
"""


def _name_set(name_set: NameSet) -> str:
    address, dynamic = f"ipv{name_set.family}_addr", "flags dynamic, timeout"
    match name_set.holds:
        case Holds.SAID:
            return "type inet_service ; flags timeout ; size 16 ;"
        case Holds.PORTS:
            return f"type inet_service ; {dynamic} ; size {PORTS} ;"
        case Holds.ASKED:
            return f"type inet_service . inet_proto : {address} ; {dynamic} ; size {2 * PORTS} ;"
        case Holds.LATELY:
            return f"type inet_service . inet_proto . {address} ; {dynamic} ; size {2 * PORTS} ;"
        case Holds.SERVED:
            return f"type {address} . inet_service ; {dynamic} ; size {SERVED} ;"
        case Holds.FLOWS:
            ends = f"{address} . inet_service . {address} . inet_service . inet_proto"
            return f"type {ends} ; {dynamic} ; size {FLOWS} ;"
        case Holds.LEARNED | Holds.REVOKED:
            return f"type {address} ; flags timeout ; gc-interval {SWEPT} ; size {LEARNED} ;"


def _elements(ruleset: Ruleset, present: Present, now: datetime) -> Iterator[str]:
    for address_set in ruleset.sets:
        held = present.sets.get(address_set.name, frozenset())
        wanted = set(unexpired(address_set, now))
        # Adding an element again does not change when it runs out, not even whether: it is replaced.
        timed = (held & wanted) & (present.timed.get(address_set.name, frozenset()) | address_set.expires.keys())
        gone = sorted(held - wanted | timed)
        new = sorted(wanted - held | timed)
        yield from _batches("delete", address_set.name, (_key(e, address_set.family) for e in gone))
        yield from _batches("add", address_set.name, (_element(e, address_set, now) for e in new))


def _batches(verb: str, set_name: str, elements: Iterable[str]) -> Iterator[str]:
    batch: list[str] = []
    for element in elements:
        batch.append(element)
        if len(batch) == BATCH:
            yield f"{verb} element inet {TABLE} {set_name} {{ {', '.join(batch)} }}"
            batch = []
    if batch:
        yield f"{verb} element inet {TABLE} {set_name} {{ {', '.join(batch)} }}"


def _key(element: Element, family: int) -> str:
    if element == CATCH_ALL:
        return "*"
    address = IPv4Address if family == 4 else IPv6Address
    low, high, protocol, first, last = element
    addresses = str(address(low)) if low == high else f"{address(low)}-{address(high)}"
    ports = str(first) if first == last else f"{first}-{last}"
    return f"{addresses} . {protocol} . {ports}"


def _element(element: Element, address_set: AddressSet, now: datetime) -> str:
    key = _key(element, address_set.family)
    expires = address_set.expires.get(element)
    if expires is None:
        return key
    return f"{key} timeout {_lasting((expires - now).total_seconds())}"


def _lasting(left: float) -> str:
    """So many seconds as nft writes it, to the millisecond: nft takes no number of nine digits."""
    seconds, milliseconds = divmod(min(max(1, ceil(left * 1000)), LONGEST * 1000), 1000)
    days, seconds = divmod(seconds, DAY)
    parts = ((days, "d"), (seconds, "s"), (milliseconds, "ms"))
    return "".join(f"{number}{unit}" for number, unit in parts if number)


def retimed(ruleset: Ruleset, now: datetime) -> str:
    """Return the transaction that tells the kernel anew when what is in it ends; empty when nothing does.

    To load a large table takes a while, and an element lasts from then on as long as it was said before: what was
    over meanwhile has come again, and goes.
    """
    lines: list[str] = []
    for address_set in ruleset.sets:
        timed = sorted(address_set.expires)
        # Only what is there can be deleted, and what is there can be added.
        lines += _batches("add", address_set.name, (_element(e, address_set, now) for e in timed))
        lines += _batches("delete", address_set.name, (_key(e, address_set.family) for e in timed))
        left = (e for e in timed if address_set.expires[e] > now)
        lines += _batches("add", address_set.name, (_element(e, address_set, now) for e in left))
    return "\n".join(lines) + "\n" if lines else ""


def _chain(chain: Chain) -> str:
    if chain.hook is None:
        return f"add chain inet {TABLE} {chain.name}"
    kind, hook, priority = BASE[chain.hook]
    base = f"type {kind} hook {hook} priority {priority} ; policy accept ;"
    return f"add chain inet {TABLE} {chain.name} {{ {base} }}"


def _fill(chains: Sequence[Chain]) -> Iterator[str]:
    for chain in chains:
        for rule in chain.rules:
            yield f"add rule inet {TABLE} {chain.name} {rule_text(rule)}"


def _removals(ruleset: Ruleset, present: Present) -> Iterator[str]:
    kinds = (
        ("map", present.maps, set(ruleset.maps)),
        ("chain", present.chains, {chain.name for chain in ruleset.chains}),
        ("set", frozenset(present.sets), set(ruleset.set_names)),
        ("counter", present.counters, set(ruleset.counters)),
    )
    for kind, held, wanted in kinds:
        for name in sorted(held - wanted):
            yield f"delete {_kind(name) if kind == 'set' else kind} inet {TABLE} {name}"


TITLES = {
    "add counter": "counters",
    "add map": "maps: cgroups are bound while the table is in force",
    "add set": "sets: what is allowed, as address . protocol . port",
    "add chain": "chains",
    "flush table": "from here on nothing else is in it",
}


def headed(text: str) -> str:
    """A script of `script` for people: with headings, an element a line."""
    lines: list[str] = []
    section = ""
    for line in text.splitlines():
        words = line.split(maxsplit=5)
        kind = " ".join(words[:2])
        now = words[4] if kind == "add rule" else TITLES.get(kind, section)
        if now != section:
            lines += ["", f"# {now}"]
            section = now
        lines.append(line.replace(" { ", " {\n\t").replace(", ", ",\n\t") if kind == "add element" else line)
    return "\n".join(lines) + "\n"
