"""Counters of rules that stand in chains, as those about workloads and interfaces do: packets by rule.

Rules by address need none: the elements of the sets count.  Both count packets, and those of answers too where
they are looked up.
"""

from __future__ import annotations

from collections.abc import Mapping

Counters = Mapping[str, tuple[int, int]]


def counter(workload: str, rule: str) -> str:
    """The counter of that workload's rule, by its id.  Names of workloads have no `_`, so no two share one."""
    return f"hits_{workload}_{rule}"


def of(workload: str, counters: Counters) -> dict[str, int]:
    """Packets by rule, of all counters (packets, bytes) of the table."""
    prefix = counter(workload, "")
    return {
        name.removeprefix(prefix): packets
        for name, (packets, _) in counters.items()
        if name.startswith(prefix)
    }
