"""What was asked lately and no rule has: look-ups that were refused, that observe mode let through, or whose rule
is gone.

Bounded: what was asked longest ago is forgotten first.  Names are in the form of `names.normalise`, addresses are
packed, times are seconds since the epoch and come from the caller.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

MAX_REFUSED = 1024
"""Names of a workload."""

MAX_OBSERVED = 4096
"""Addresses of a workload."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A name was asked and refused: why (`lookups.Reason`), and when last."""

    reason: str
    when: float


@dataclass(frozen=True, slots=True)
class Observed:
    """An answer for a name that no rule has, or has any more: the name, and when last."""

    name: str
    when: float


@dataclass(slots=True)
class _Lately:
    refused: OrderedDict[str, Refused] = field(default_factory=OrderedDict)
    observed: OrderedDict[bytes, Observed] = field(default_factory=OrderedDict)


class Asked:
    """By workload."""

    def __init__(self) -> None:
        self._workloads: dict[str, _Lately] = {}

    def refused(self, workload: str, name: str, reason: str, now: float) -> None:
        """`name` was asked and refused."""
        _put(self._of(workload).refused, name, Refused(reason, now), MAX_REFUSED)

    def observed(self, workload: str, name: str, addresses: Iterable[bytes], now: float) -> None:
        """`name` was asked, no rule has it now, and the answer was given all the same."""
        held = self._of(workload).observed
        for address in addresses:
            _put(held, address, Observed(name, now), MAX_OBSERVED)

    def about(self, workload: str, address: bytes) -> Observed | None:
        """For which name without a rule the address was given last."""
        held = self._workloads.get(workload)
        return held.observed.get(address) if held else None

    def last_refused(self, workload: str, name: str) -> Refused | None:
        """When the name was refused last."""
        held = self._workloads.get(workload)
        return held.refused.get(name) if held else None

    def keep(self, workloads: Collection[str]) -> None:
        """Forget all others."""
        self._workloads = {name: held for name, held in self._workloads.items() if name in workloads}

    def _of(self, workload: str) -> _Lately:
        return self._workloads.setdefault(workload, _Lately())


def _put(held: OrderedDict[Key, Value], key: Key, value: Value, limit: int) -> None:
    held[key] = value
    held.move_to_end(key)
    if len(held) > limit:
        held.popitem(last=False)
