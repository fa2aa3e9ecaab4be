"""What the kernel was found to hold of our table, and whether that is what it should hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from penstock.core.conditions import InCgroup
from penstock.core.render_nft import Present
from penstock.core.ruleset import AddressSet, Element, Ruleset

Verdict = tuple[str, str]  # jump or goto, chain
Bindings = Mapping[str, Mapping[int, Verdict]]  # map -> cgroup id -> verdict


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the kernel holds of our table at one generation of its ruleset.

    `chains` maps a chain to the number of its rules; `digest` covers base chain hooks and every rule's
    expressions, as the kernel lists them, so it is comparable within one kernel only.  Sets and maps of a shape
    that is not ours are named, and empty.
    """

    generation: int
    exists: bool = False
    ours: bool = False  # it carries the marker
    dormant: bool = False
    chains: Mapping[str, int] = field(default_factory=dict)
    digest: str = ""
    counters: frozenset[str] = frozenset()
    bindings: Bindings = field(default_factory=dict)
    slices: Mapping[str, int] = field(default_factory=dict)  # base chain -> id of what it compares with
    sets: Mapping[str, frozenset[Element]] = field(default_factory=dict)
    timed: Mapping[str, frozenset[Element]] = field(default_factory=dict)  # those of them that will run out

    @property
    def present(self) -> Present:
        """As the renderer wants it."""
        return Present(frozenset(self.chains), self.counters, frozenset(self.bindings), self.sets, self.timed)


EXPIRY_SLACK = timedelta(seconds=2)
"""An element this near to its end may be there or not: the kernel's clock and ours differ a little."""


def differences(
    ruleset: Ruleset, bindings: Bindings, governed: int | None, snapshot: Snapshot, now: datetime
) -> list[str]:
    """Say, a phrase each, in what the kernel differs from `ruleset` with `bindings`; empty: it agrees.

    `governed` is the id of penstock.slice, None when it is not there.
    """
    return list(_differences(ruleset, bindings, governed, snapshot, now))


def _differences(
    ruleset: Ruleset, bindings: Bindings, governed: int | None, snapshot: Snapshot, now: datetime
) -> Iterator[str]:
    if not snapshot.exists:
        yield "the table is gone"
        return
    if not snapshot.ours:
        yield "the table has lost its marker"
    if snapshot.dormant:
        yield "the table is dormant"
    chains = {chain.name: len(chain.rules) for chain in ruleset.chains}
    yield from _mapping("chain", chains, snapshot.chains)
    for chain in ruleset.chains:
        compares = chain.hook and any(isinstance(when, InCgroup) for rule in chain.rules for when in rule.when)
        if compares and snapshot.slices.get(chain.name, 0) != governed:
            yield f"the slice in chain {chain.name}"
    for counter in sorted(set(ruleset.counters) ^ snapshot.counters):
        yield f"counter {counter}"
    yield from _mapping("map", {name: dict(bindings.get(name, {})) for name in ruleset.maps}, snapshot.bindings)
    wanted = {address_set.name: address_set for address_set in ruleset.sets}
    declared = {name_set.name for name_set in ruleset.name_sets}
    for name in sorted(wanted.keys() | declared | snapshot.sets.keys()):
        if name in declared and name in snapshot.sets:
            continue  # what is in it comes and goes
        if name not in wanted or name not in snapshot.sets:
            yield f"set {name}"
        elif not _same(wanted[name], snapshot.sets[name], now):
            yield f"elements of set {name}"
        elif snapshot.timed.get(name, frozenset()) != snapshot.sets[name] & wanted[name].expires.keys():
            yield f"ends of elements of set {name}"


def _mapping(kind: str, wanted: Mapping[str, object], found: Mapping[str, object]) -> Iterator[str]:
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            yield f"{kind} {name}"


def _same(wanted: AddressSet, found: frozenset[Element], now: datetime) -> bool:
    if not wanted.expires:
        return wanted.elements.keys() == found
    ends = wanted.expires
    surely = {e for e in wanted.elements if e not in ends or ends[e] > now + EXPIRY_SLACK}
    perhaps = {e for e in wanted.elements if e not in ends or ends[e] > now - EXPIRY_SLACK}
    return surely <= found <= perhaps
