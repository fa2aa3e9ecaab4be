"""From what was learned to elements of the kernel's sets: which there shall be, which must go with their rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import ip_address

from penstock.core import rebinding
from penstock.core.learned import Learned
from penstock.core.name_chains import FAMILIES, flow_set, learned_set, revoked_of
from penstock.core.name_rules import Index, NameRule, groups, name_rules, resolves
from penstock.core.policy import Address, Mode, Policy

NOTHING = Policy()


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

    `known` are some of those others: a look at a large set may miss what is in it.
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

    def admitting(self, workload: str, name: str, address: bytes) -> list[NameRule]:
        """Those of them that let the name be at this address."""
        return admitting(self.of(workload, name), ip_address(address))


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
        last = min(end, group.expires.timestamp()) if group.expires is not None else end
        if last > now:
            yield Opened(learned_set(workload, group.id, family), address, name, last - now, new)


def all_opened(names: Names, workloads: Iterable[str], learned: Learned, now: datetime) -> Iterator[Opened]:
    """The elements for all that is learned for these workloads."""
    moment = now.timestamp()
    for workload in workloads:
        for address, name, end in learned.current(workload, moment):
            rules = names.admitting(workload, name, address)
            yield from opened(rules, workload, name, address, end, moment)


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
    known: dict[str, set[bytes]] = {}
    gone: dict[str, set[bytes]] = {}
    every = groups(names.rules[workload])
    for address, name in learned.remembered(workload):
        admitting = groups(names.admitting(workload, name, address))
        for group in admitting:
            known.setdefault(group.id, set()).add(address)
        gave = every if not admitting else []
        if workload in before.rules:
            gave = groups(before.admitting(workload, name, address))
        for group in gave:
            gone.setdefault(group.id, set()).add(address)
    for group in every:
        for family, size in zip(FAMILIES, (4, 16), strict=True):
            kept = frozenset(a for a in known.get(group.id, ()) if len(a) == size)
            out = frozenset(a for a in gone.get(group.id, ()) if len(a) == size) - kept
            yield Retract(learned_set(workload, group.id, family), kept, others=True, known=out)
            flows = flow_set(workload, group.id, family)
            if strangers:
                yield Retract(flows, kept, others=True, known=out)
            elif out:
                yield Retract(flows, out)


def workload_and_group(set_name: str) -> tuple[str, str]:
    """The workload of a set of learned addresses, and the id of its group."""
    workload, _, group = set_name.partition("_")[2].rpartition("_")
    return workload, group
