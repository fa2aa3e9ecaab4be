"""The books of denied packets: what the kernel counted, what was logged, and the blocks that tell of both."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field

from penstock.core import admin_chains, base_chains, chains
from penstock.core.blocks import Block, Explanation, Process
from penstock.core.folding import Folder
from penstock.core.log_prefix import NO_WORKLOAD
from penstock.core.lookups import SEARCH, Lookup
from penstock.core.packets import Denied
from penstock.core.policy import Direction, Mode, Policy
from penstock.core.resolver_wire import FromResolver, Observed, Refused

HOUR = 60  # minutes

Counters = Mapping[str, tuple[int, int]]


@dataclass(slots=True)
class _Totals:
    counted: int = 0
    logged: int = 0
    by_minute: dict[int, int] = field(default_factory=dict)


class Books:
    """Fed with log records and counter readings; gives out blocks to write.  Times are epoch seconds.

    `saved` is what `save` gave before the last stop: packets that were denied while nobody listened are
    then found as the difference, and told as unlogged.
    """

    def __init__(self, seed: int, saved: bytes | None = None) -> None:
        self._folder = Folder(seed)
        self._seen: dict[str, int] = _decode(saved)
        self._totals: dict[str, _Totals] = defaultdict(_Totals)

    def packet(
        self,
        denied: Denied,
        now: float,
        explain: Callable[[Denied], Explanation],
        policy_hash: str | None,
        process: Process | None,
    ) -> list[Block]:
        """One log record."""
        self._totals[denied.workload].logged += 1
        return self._folder.add(denied, now, explain, policy_hash, process)

    def counters(self, values: Counters, policy: Policy, now: float) -> tuple[bool, list[Block]]:
        """One reading of the kernel's counters: whether any grew, and the blocks to write."""
        blocks: list[Block] = []
        changed = False
        for counter, (workload, direction) in denials(policy).items():
            packets = values.get(counter, (0, 0))[0]
            before = self._seen.get(counter, 0)
            grown = packets - before if packets >= before else packets  # smaller: the table is a new one
            self._seen[counter] = packets
            if grown:
                changed = True
                self._totals[workload].counted += grown
                self._denied(workload, grown, now)
                mode = policy.workloads[workload].mode if workload in policy.workloads else Mode.ENFORCE
                verdict = "would-deny" if mode is Mode.OBSERVE else "deny"
                blocks += self._folder.counted(workload, direction, grown, now, verdict, mode)
        return changed, blocks

    def lookups(self, messages: Iterable[FromResolver], workloads: Container[str], now: float) -> None:
        """What the resolver says of look-ups that no rule stands for: no packets, and denied all the same."""
        for said in messages:
            # Others than `workloads` are none: the resolver is not believed.
            if isinstance(said, Refused | Observed) and said.workload in workloads:
                lookup = Lookup.of(said)
                if lookup.reason != SEARCH:
                    self._denied(said.workload, lookup.count, now)

    def _denied(self, workload: str, count: int, now: float) -> None:
        by_minute, minute = self._totals[workload].by_minute, int(now // 60)
        by_minute[minute] = by_minute.get(minute, 0) + count

    def flush(self, now: float) -> list[Block]:
        """Blocks that are due."""
        return self._folder.flush(now)

    def close(self, now: float) -> list[Block]:
        """All that is left."""
        return self._folder.close(now)

    def unlogged(self, workload: str) -> int:
        """Packets counted and not logged, since the daemon started."""
        totals = self._totals[workload]
        return max(0, totals.counted - totals.logged)

    def last_hour(self, workload: str, now: float) -> int:
        """Packets and look-ups that were denied in the last hour, as far as this daemon saw it."""
        totals = self._totals[workload]
        oldest = int(now // 60) - HOUR
        totals.by_minute = {minute: n for minute, n in totals.by_minute.items() if minute > oldest}
        return sum(totals.by_minute.values())

    def save(self) -> bytes:
        """What must be known after a restart."""
        return json.dumps(self._seen).encode()


def denials(policy: Policy) -> dict[str, tuple[str, Direction]]:
    """The counters of denied packets: of which workload (`NO_WORKLOAD`: of none), and in which direction."""
    unbound = {Direction.OUT: base_chains.UNBOUND_OUT, Direction.IN: base_chains.UNBOUND_IN}
    owners = {counter: (NO_WORKLOAD, direction) for direction, counter in unbound.items()}
    owners[admin_chains.ADMIN_IN] = (NO_WORKLOAD, Direction.IN)
    for name in policy.workloads:
        owners.update({chains.counter_name(direction, name): (name, direction) for direction in Direction})
    return owners


def _decode(saved: bytes | None) -> dict[str, int]:
    try:
        value = json.loads(saved or b"{}")
        return {str(name): max(0, int(count)) for name, count in value.items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}  # the next reading tells all as unlogged: too much, never too little
