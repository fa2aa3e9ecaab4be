"""From what was learned to elements of the kernel's sets: which there shall be, which must go with their rules."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from operator import itemgetter

from penstock.core import rebinding
from penstock.core.learned import Learned
from penstock.core.name_chains import FAMILIES, flow_set, learned_set, revoked_of
from penstock.core.name_rules import Group, Index, NameRule, groups, name_rules, resolves
from penstock.core.policy import Address, Mode, Policy
from penstock.core.rebinding import FIT, Prefixes, kind_of

NOTHING = Policy()

_Held = defaultdict[str, set[bytes]]


@dataclass(frozen=True, slots=True)
class Opened:
    """An address in a set of learned ones: for which name, and for how many seconds (more)."""

    set: str
    address: bytes  # network order, 4 or 16
    name: str
    seconds: float
    new: bool = False  # it is not in the set


@dataclass(frozen=True, slots=True)
class Retract:
    """Take out of a set what is about these addresses, or (`others`) about all others; flows to them end.

    `known` are some of those others: a look at a large set may miss what is in it.  Where there is no time to find
    the others the whole set is emptied; what is learned is written anew behind the load.
    """

    set: str
    addresses: frozenset[bytes]
    others: bool = False
    known: frozenset[bytes] = frozenset()


class Names:
    """The rules by name of a policy at a time, by workload; a locked one has none."""

    def __init__(self, policy: Policy = NOTHING, now: datetime | None = None) -> None:
        self.rules = {
            name: name_rules(policy, workload, now)
            for name, workload in policy.workloads.items()
            if now is not None and resolves(workload) and workload.mode is not Mode.LOCK
        }
        self.index = {name: Index(rules) for name, rules in self.rules.items()}

    def of(self, workload: str, name: str) -> list[NameRule]:
        """The rules of the workload that stand for `name`."""
        index = self.index.get(workload)
        return index.of(name) if index else []


def admitting(rules: Iterable[NameRule], address: Address) -> list[NameRule]:
    """Those of these rules that let their names be at this address."""
    return [rule for rule in rules if rebinding.admits(address, rule.group.private, rule.excepted)]


def opened(
    rules: Sequence[NameRule],
    workload: str,
    name: str,
    address: bytes,
    end: float,
    now: float,
    *,
    new: bool = False,
) -> Iterator[Opened]:
    """The elements for an address of a name that these rules admit.  Times are seconds since the epoch."""
    family = 4 if len(address) == 4 else 6
    for group in groups(rules):
        last = min(end, _until(group))
        if last > now:
            yield Opened(learned_set(workload, group.id, family), address, name, last - now, new)


def _until(group: Group) -> float:
    """Seconds since the epoch; infinite: for good."""
    return math.inf if group.expires is None else group.expires.timestamp()


def _sets(workload: str, group: Group) -> dict[int, str]:
    """Its sets of learned addresses, by an address's length."""
    return {size: learned_set(workload, group.id, family) for family, size in zip(FAMILIES, (4, 16), strict=True)}


@dataclass(frozen=True, slots=True, eq=False)
class _Ready:
    """The rules of one group that stand for a name, made ready for many addresses."""

    kinds: frozenset[str | None]  # of addresses that they let in
    excepted: tuple[Prefixes, ...]  # of each rule; none where one of them has none
    sets: dict[int, str]
    until: float


_Rules = tuple[_Ready, ...]
"""All that stand for a name, in the order of `groups`."""


class _Judge:
    """Makes rules of a workload ready; names for which the same rules stand share the result."""

    def __init__(self, names: Names, workload: str) -> None:
        self._names, self._workload = names, workload
        # By the rules' ids, which stay theirs as long as `names` does: their hashes take long.
        self._made: dict[tuple[int, ...], _Rules] = {}

    def of(self, name: str) -> _Rules:
        """Those that stand for `name`."""
        rules = self._names.of(self._workload, name)
        key = tuple(map(id, rules))
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = tuple(self._ready(group, rules) for group in groups(rules))
        return made

    def _ready(self, group: Group, rules: Iterable[NameRule]) -> _Ready:
        lists = {rule.excepted for rule in rules if rule.group == group}
        excepted = () if () in lists else tuple(map(Prefixes, lists))
        return _Ready(FIT[group.private], excepted, _sets(self._workload, group), _until(group))


def fitting(ready: _Ready, kind: str | None, addresses: Sequence[bytes]) -> Sequence[bytes]:
    """`admitting` for many: which of these addresses, all of that kind, the group's rules let their name be at."""
    if kind not in ready.kinds:
        return ()
    if not ready.excepted:
        return addresses
    return [one for one in addresses if not all(prefixes.hold(one) for prefixes in ready.excepted)]


def all_opened(names: Names, workloads: Iterable[str], learned: Learned, now: datetime) -> Iterator[Opened]:
    """The elements for all that is learned for these workloads."""
    moment = now.timestamp()
    for workload in workloads:
        judge = _Judge(names, workload)
        for name, answers in groupby(learned.current(workload, moment), itemgetter(1)):
            rules = judge.of(name)
            for address, _, end in answers:
                kind = kind_of(address)
                for ready in rules:
                    last = end if end < ready.until else ready.until
                    if last > moment and fitting(ready, kind, (address,)):
                        yield Opened(ready.sets[len(address)], address, name, last - moment)


def changed(before: Names, after: Names) -> tuple[str, ...]:
    """The workloads, of those that have rules by name after, whose rules by name are not what they were before."""
    return tuple(name for name, rules in after.rules.items() if rules != before.rules.get(name))


def sparing(gone: Retract, fresh: Iterable[Opened]) -> Retract:
    """`gone` without what was learned since it was found out, and belongs there."""
    spared = frozenset(a.address for a in fresh if revoked_of(a.set) == revoked_of(gone.set))
    addresses = gone.addresses | spared if gone.others else gone.addresses - spared
    return replace(gone, addresses=addresses, known=gone.known - spared)


def retractions(
    names: Names, workloads: Iterable[str], learned: Learned, *, before: Names, strangers: bool
) -> tuple[Retract, ...]:
    """What must go out of the sets of these workloads, because none of their rules gives it.

    `before` is what was in force, empty where that is not known.  `strangers`: flows to addresses that nobody
    remembers go too.  Learned addresses of that kind always go.
    """
    return tuple(r for w in workloads for r in _retractions(names, w, learned, before, strangers))


def _retractions(
    names: Names, workload: str, learned: Learned, before: Names, strangers: bool
) -> Iterator[Retract]:
    every = groups(names.rules[workload])
    known, gone = _sorted_out(names, workload, learned, before)
    for group in every:
        for family, there in zip(FAMILIES, _sets(workload, group).values(), strict=True):
            kept = frozenset(known[there])
            out = frozenset(gone[there] - kept)
            yield Retract(there, kept, others=True, known=out)
            flows = flow_set(workload, group.id, family)
            if strangers:
                yield Retract(flows, kept, others=True, known=out)
            elif out:
                yield Retract(flows, out)


def _sorted_out(names: Names, workload: str, learned: Learned, before: Names) -> tuple[_Held, _Held]:
    """By set of learned addresses: which belong there, and which may have come there before.

    There can be more than a million, while the daemon does nothing else: all that is alike is looked at together.
    """
    known, gone = _Held(set), _Held(set)
    every = [_sets(workload, group) for group in groups(names.rules[workload])]
    for (now, then), addresses in _by_rules(names, workload, learned, before):
        for (size, kind), alike in _by_kind(addresses):
            good = [(ready.sets[size], fitting(ready, kind, alike)) for ready in now]
            for there, right in good:
                known[there].update(right)
            if workload in before.rules:
                for ready in then:
                    gone[ready.sets[size]].update(fitting(ready, kind, alike))
            else:
                left = set(alike).difference(*(right for _, right in good))
                for sets in every:
                    gone[sets[size]].update(left)
    return known, gone


def _by_rules(
    names: Names, workload: str, learned: Learned, before: Names
) -> Iterable[tuple[tuple[_Rules, _Rules], list[bytes]]]:
    """The addresses by what stands for their names, now and before."""
    by_name = defaultdict[str, list[bytes]](list)
    for address, name in learned.remembered(workload):
        by_name[name].append(address)
    judge, was = _Judge(names, workload), _Judge(before, workload)
    found = defaultdict[tuple[_Rules, _Rules], list[bytes]](list)
    for name, addresses in by_name.items():
        found[judge.of(name), was.of(name)] += addresses
    return found.items()


def _by_kind(addresses: Iterable[bytes]) -> Iterable[tuple[tuple[int, str | None], list[bytes]]]:
    """The same by length and kind: all that these rules ask of them."""
    found = defaultdict[tuple[int, str | None], list[bytes]](list)
    for address in addresses:
        found[len(address), kind_of(address)].append(address)
    return found.items()


def workload_and_group(set_name: str) -> tuple[str, str]:
    """The workload of a set of learned addresses, and the id of its group."""
    workload, _, group = set_name.partition("_")[2].rpartition("_")
    return workload, group
