"""The ruleset as a value: what the kernel shall hold, said without any firewall's syntax.

`compile` makes it, a renderer turns it into text, `kernel` loads that text.  A rule is conditions that must all
hold (`conditions`), then `actions` in their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from typing import NamedTuple

from penstock.core.actions import Action
from penstock.core.conditions import Condition, Hook

TABLE = "penstock"
MARKER = "penstock-agent-1"
"""A counter of this name in the table says that the table is ours."""


@dataclass(frozen=True, slots=True)
class Rule:
    """All of `when`, then `do` in order."""

    when: tuple[Condition, ...]
    do: tuple[Action, ...]

    @classmethod
    def of(cls, *parts: Condition | Action) -> Rule:
        """A rule of its parts as they are read: conditions first."""
        conditions = tuple(part for part in parts if isinstance(part, Condition))
        return cls(conditions, tuple(part for part in parts if not isinstance(part, Condition)))


@dataclass(frozen=True, slots=True)
class Chain:
    """Rules in order; with a hook it is a base chain, whose packets are accepted when no rule decides."""

    name: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None


class Element(NamedTuple):
    """Addresses `low` to `high` (as integers) . protocol number . ports `first` to `last`, all included."""

    low: int
    high: int
    protocol: int
    first: int
    last: int


ASKED = "asked"
"""What the names of those sets begin with that are maps: from who asks to whom he asked."""

CATCH_ALL = Element(-1, -1, -1, -1, -1)
"""The element `*`, which holds everything.  Never ours; somebody else may add one to a set of ours."""


@dataclass(frozen=True, slots=True)
class AddressSet:
    """Disjoint elements of one family, each with the id of the rule whose hits its counter counts."""

    name: str
    family: int
    elements: Mapping[Element, str] = field(default_factory=dict)
    expires: Mapping[Element, datetime] = field(default_factory=dict)


class Holds(Enum):
    """What a set holds that is filled while the table is in force."""

    LEARNED = auto()  # addresses, for names
    FLOWS = auto()  # that such an address let in
    REVOKED = auto()  # addresses to which no such flow goes on
    SERVED = auto()  # addresses and ports at which a workload served
    SAID = auto()  # ports at which somebody says that he is there
    PORTS = auto()  # from which something was sent
    LATELY = auto()  # such ports, each with the server that was asked from it a moment ago
    ASKED = auto()  # a map: from such a port to the server that was asked from it last


@dataclass(frozen=True, slots=True)
class NameSet:
    """Filled while the table is in force, by packets or by the daemon.  For ports alone `family` means nothing."""

    name: str
    family: int
    holds: Holds = Holds.LEARNED


@dataclass(frozen=True, slots=True)
class Ruleset:
    """The whole table.

    `maps` and `name_sets` are declared empty: they are filled while it is in force.
    """

    counters: tuple[str, ...]
    maps: tuple[str, ...]
    sets: tuple[AddressSet, ...]
    chains: tuple[Chain, ...]
    name_sets: tuple[NameSet, ...] = ()
    by_name: tuple[str, ...] = ()  # workloads whose look-ups are governed

    @property
    def set_names(self) -> tuple[str, ...]:
        """Names of all sets."""
        return (*(s.name for s in self.sets), *(s.name for s in self.name_sets))
