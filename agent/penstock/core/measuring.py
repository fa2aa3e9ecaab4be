"""What is measured, and when: the counters of rules, within bounds, and what they add up to.

A rule by address is counted by the elements of its sets, which the kernel can only be asked for set by set.  So
large sets are never read for this, and of the others a few at a time: a look takes as long whatever the policy
is.  What was counted is added up here: it stays when a policy puts other elements into the sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from penstock.core import chains, hits, metrics
from penstock.core.books import Counters, denials
from penstock.core.effects import CountHits, Effect, WriteMetrics
from penstock.core.events import Hits
from penstock.core.learned import Learned
from penstock.core.metrics import Facts, Tally
from penstock.core.policy import Direction, NamePeer, Policy
from penstock.core.ruleset import AddressSet, Element, Ruleset
from penstock.core.view import InForce, View
from penstock.core.wire import Json

PERIOD = 15.0
"""Seconds between two measurements."""

AT_ONCE = 2_000
"""Elements that one measurement reads, in some 25 ms; of a set that has more none is ever read."""

SETS_AT_ONCE = 128
IN_ALL = 20_000
"""Elements that are read at all: the smallest sets go first."""

RULES = 1_000
"""Rules that are told of: each is a time series for whoever keeps them."""

CHAINS = ""
"""Where a set would stand for rules that are counted in chains."""

Key = tuple[str, str, str]
"""A rule: workload, direction, id."""


@dataclass(frozen=True, slots=True)
class _Rules:
    """Of a policy: whose sets are whose, which rules are about names (nobody counts those), counters of chains."""

    sets: Mapping[str, tuple[str, str]]
    by_name: Mapping[Key, bool]
    in_chains: Mapping[str, Key]


class Measuring:
    """Asked by the engine."""

    def __init__(self, view: View, learned: Learned) -> None:
        self._view = view
        self._learned = learned
        self._left = 0.0  # seconds
        self._over = False
        self._about: tuple[Ruleset | None, tuple[AddressSet, ...]] = (None, ())
        self._next = 0  # the set that is read next
        self._known: tuple[Policy | None, _Rules] = (None, _Rules({}, {}, {}))
        self._seen: dict[str, dict[object, Tally]] = {}
        self._totals: dict[Key, Tally] = {}

    def ticked(self, elapsed: float) -> None:
        """So many seconds went by."""
        self._left -= elapsed

    def due(self, in_force: InForce | None) -> list[Effect]:
        """What shall be read now, if it is time."""
        if self._left > 0:
            return []
        self._left = PERIOD
        return [CountHits(None, tuple((found.name, found.family) for found in self._turn(in_force)))]

    def _turn(self, in_force: InForce | None) -> Iterator[AddressSet]:
        """The sets whose turn it is."""
        sets = self._sets(in_force.ruleset) if in_force else ()
        elements = 0
        for count in range(min(len(sets), SETS_AT_ONCE)):
            found = sets[self._next % len(sets)]
            elements += len(found.elements)
            if count and elements > AT_ONCE:
                return
            self._next = (self._next + 1) % len(sets)
            yield found

    def _sets(self, ruleset: Ruleset) -> tuple[AddressSet, ...]:
        """Those that are read at all, in the order of their names."""
        if self._about[0] is not ruleset:
            read, elements = [], 0
            for found in sorted(ruleset.sets, key=lambda found: len(found.elements)):
                elements += len(found.elements)
                if len(found.elements) > AT_ONCE or elements > IN_ALL:
                    break
                if found.elements:
                    read.append(found)
            self._about = (ruleset, tuple(sorted(read, key=lambda found: found.name)))
        return self._about[1]

    def measured(self, event: Hits, in_force: InForce | None, status: Json) -> list[Effect]:
        """Add it up; `status` is as it is now."""
        if self._over:
            return []
        if in_force is not None:
            self._add(event, in_force)
        facts = self._facts(in_force, event.counters) if in_force else Facts()
        return [WriteMetrics(metrics.text(status, facts))]

    def stopping(self) -> list[Effect]:
        """What nobody looks at any more, nobody tells of."""
        self._over = True
        return [WriteMetrics(b"")]

    # --- adding up ---

    def _add(self, event: Hits, in_force: InForce) -> None:
        rules, read = self._rules(in_force.policy), self._sets(in_force.ruleset)
        owners: Mapping[str, Mapping[Element, str]] = {found.name: found.elements for found in read}
        self._seen = {name: seen for name, seen in self._seen.items() if name in owners or name == CHAINS}
        for name, elements in event.sets.items():
            if name in owners and name in rules.sets:
                tallies: dict[object, Tally] = {element: Tally(*tally) for element, tally in elements.items()}
                self._grown(name, tallies, {e: (*rules.sets[name], rule) for e, rule in owners[name].items()})
        counted = {name: Tally(*tally) for name, tally in event.counters.items() if name in rules.in_chains}
        self._grown(CHAINS, counted, rules.in_chains)
        self._totals = {key: tally for key, tally in self._totals.items() if key in rules.by_name}

    def _rules(self, policy: Policy) -> _Rules:
        if self._known[0] is not policy:
            self._known = (policy, _understood(policy))
        return self._known[1]

    def _grown(self, place: str, found: Mapping[Any, Tally], owners: Mapping[Any, Key]) -> None:
        before = self._seen.get(place, {})
        for key, tally in found.items():
            if key in owners:
                more = tally.since(before.get(key, Tally()))
                self._totals[owners[key]] = self._totals.get(owners[key], Tally()).plus(more)
        self._seen[place] = dict(found)

    def _facts(self, in_force: InForce, counters: Counters) -> Facts:
        policy = in_force.policy
        denied: dict[tuple[str, str], Tally] = {}
        for counter, (workload, direction) in denials(policy).items():
            key = (workload, direction.value)
            denied[key] = denied.get(key, Tally()).plus(Tally(*counters.get(counter, (0, 0))))
        counted = self._counted(in_force)
        return Facts(
            denied=denied,
            rules={key: self._totals.get(key, Tally()) for key in counted},
            uncounted=len(self._rules(policy).by_name) - len(counted),
            lost=self._view.lost,
            malformed=self._view.malformed,
            learned={name: self._learned.count(name) for name in policy.workloads},
        )

    def _counted(self, in_force: InForce) -> list[Key]:
        """The rules of which all is counted, as many as are told of."""
        rules = self._rules(in_force.policy)
        read = {found.name for found in self._sets(in_force.ruleset)}
        unread = (found.name for found in in_force.ruleset.sets if found.elements and found.name not in read)
        large = {rules.sets[name] for name in unread if name in rules.sets}
        whole = (key for key, by_name in rules.by_name.items() if not by_name and key[:2] not in large)
        return list(islice(whole, RULES))


def _understood(policy: Policy) -> _Rules:
    """Looked at once: a policy may have tens of thousands."""
    sets = {
        chains.set_name(direction, family, name): (name, direction.value)
        for name in policy.workloads
        for direction in Direction
        for family in (4, 6)
    }
    by_name, in_chains = {}, {}
    for name, workload in policy.workloads.items():
        for rule in workload.rules:
            key = (name, rule.direction.value, rule.id)
            by_name[key] = any(isinstance(peer, NamePeer) for peer in rule.peers)
            in_chains[hits.counter(name, rule.id)] = key
    return _Rules(sets, by_name, in_chains)
