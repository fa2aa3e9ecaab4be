"""The rules by name of one workload, a pattern each: what the resolver, the kernel and the memory of it share.

Patterns that open the same ports in the same way share sets in the kernel: a `Group`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from penstock.core.policy import Cidr, CidrPeer, NamePeer, NetworkPeer, Policy, Ports, Rule, Workload


@dataclass(frozen=True, slots=True)
class Group:
    """How names are opened: the ports, whether private addresses count, and until when (aware; None: for good)."""

    ports: Ports
    private: bool = False
    expires: datetime | None = None
    id: str = field(init=False, compare=False, repr=False, default="")  # eight hexadecimal digits of what it says

    def __post_init__(self) -> None:
        said = [*sorted(map(str, self.ports.ranges)), str(self.ports.icmp), str(self.private), str(self.expires)]
        # Each address that is learned needs it.
        object.__setattr__(self, "id", hashlib.sha256("\n".join(said).encode()).hexdigest()[:8])


@dataclass(frozen=True, slots=True)
class NameRule:
    """One pattern of one rule; `excepted` are prefixes that its answers must not open."""

    pattern: str
    group: Group
    rule: str  # id
    excepted: tuple[Cidr, ...] = ()


def resolves(workload: Workload) -> bool:
    """Whether the workload's look-ups go to our resolver: some rule has a name, or names are known of it."""
    return bool(workload.known) or any(
        isinstance(peer, NamePeer) for rule in workload.egress for peer in rule.peers
    )


def name_rules(policy: Policy, workload: Workload, now: datetime) -> tuple[NameRule, ...]:
    """Its patterns in the order of the file, without those of rules that are over at `now`."""
    return tuple(_name_rules(policy, workload, now))


def _name_rules(policy: Policy, workload: Workload, now: datetime) -> Iterator[NameRule]:
    for rule in workload.egress:
        if rule.expires is not None and rule.expires <= now:
            continue
        excepted = _excepted(policy, rule)
        if excepted is None:
            continue
        ports = replace(rule.ports, ranges=tuple(sorted(rule.ports.ranges)))
        group = Group(ports, rule.private, rule.expires)
        for peer in rule.peers:
            if isinstance(peer, NamePeer):
                yield NameRule(peer.pattern, group, rule.id, excepted)


def _excepted(policy: Policy, rule: Rule) -> tuple[Cidr, ...] | None:
    """None: a network by its interface cannot be taken out of answers, so the rule opens nothing."""
    found: list[Cidr] = []
    for peer in rule.excepted:
        if isinstance(peer, CidrPeer):
            found.append(peer.cidr)
        elif isinstance(peer, NetworkPeer):
            if policy.networks[peer.name].interface:
                return None
            found.extend(policy.networks[peer.name].cidrs)
    return tuple(found)


def groups(rules: Sequence[NameRule]) -> tuple[Group, ...]:
    """The groups in use, each once, by id."""
    if len(rules) == 1:
        return (rules[0].group,)
    return tuple(sorted({rule.group for rule in rules}, key=lambda group: group.id))


class Index:
    """The rules by name of a workload, made ready for many questions: lists of thousands of names are common."""

    def __init__(self, rules: Sequence[NameRule]) -> None:
        self._exact: dict[str, list[NameRule]] = {}
        self._below: dict[str, list[NameRule]] = {}
        for rule in rules:
            held = self._below if rule.pattern.startswith("*.") else self._exact
            held.setdefault(rule.pattern.removeprefix("*."), []).append(rule)

    def of(self, name: str) -> list[NameRule]:
        """Those that stand for `name`, which is as `names.normalise` returns it."""
        found = list(self._exact.get(name, ()))
        _, _, rest = name.partition(".")
        while rest:
            found += self._below.get(rest, ())
            _, _, rest = rest.partition(".")
        return found
