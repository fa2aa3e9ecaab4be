"""Proving by packets, from inside a workload, that what is in force is what the policy says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from penstock.cli.block_log import BlockReader, Wanted
from penstock.cli.client import ask
from penstock.cli.probe import attempt
from penstock.core import probes
from penstock.core.policy import Policy
from penstock.core.probes import Probe, Result, Tried
from penstock.core.wire import Message
from penstock.errors import PenstockError

GRACE = 5.0
"""Seconds until a denied packet is in the log, or in the counters as the daemon tells them."""
POLL = 0.2


def prove(run: Path, tree: Path, log: Path, policy: Policy, workload: str, now: datetime) -> list[Result]:
    """Try what must be denied, in both families, and what must pass.  PenstockError when it cannot be tried."""
    families = probes.denied(policy, workload, now)
    passing = probes.allowed(policy, workload, now)
    counted, hits = _denied(run, workload), _hits(run, workload)
    first = [family[0] for family in families if family]
    tried = list(zip([*first, *passing], attempt(tree, workload, [*first, *passing]), strict=True))
    for n, (probe, found) in enumerate(tried[: len(first)]):
        spare = next((p for family in families if probe in family for p in family if p.address.is_loopback), None)
        if found.unsent and spare is not None and spare != probe:
            tried[n] = (spare, attempt(tree, workload, [spare])[0])
    refused = [probe for probe, one in tried if one.refused]
    logged, more = _told(run, log, workload, refused, counted, now)
    after = _hits(run, workload)
    results = [_judged(probe, one, probe in logged, more, hits, after) for probe, one in tried]
    if not first:
        text = "nothing is denied that could be tried: its rules open every address"
        results.append(Result(Probe(probes.DENIED, probes.NOWHERE[0], probes.PORT), None, text))
    return results


def _judged(
    probe: Probe, tried: Tried, logged: bool, more: bool, hits: dict[str, int], after: dict[str, int]
) -> Result:
    if probe.expect == probes.DENIED:
        return probes.judge_denied(probe, tried, more, logged)
    rule = probe.rule or ""
    known = rule in hits and rule in after
    return probes.judge_allowed(probe, tried, after[rule] - hits[rule] if known else None, logged)


def _told(
    run: Path, log: Path, workload: str, refused: Sequence[Probe], before: int | None, now: datetime
) -> tuple[set[Probe], bool]:
    """Which of them are in the block log by now, and whether the counter rose by that many."""
    deadline = time.monotonic() + GRACE
    expected = [probe for probe in refused if probe.expect == probes.DENIED]
    while True:
        logged = _logged(log, workload, refused, now)
        counted = _denied(run, workload)
        more = before is not None and counted is not None and counted >= before + len(expected) > before
        if set(expected) <= logged or time.monotonic() >= deadline:
            return logged, more
        time.sleep(POLL)


def _logged(log: Path, workload: str, wanted: Sequence[Probe], now: datetime) -> set[Probe]:
    try:
        reader = BlockReader(log)
    except PenstockError:
        return set()
    try:
        asked = Wanted(since=now.timestamp(), workload=workload, direction="out")
        found = {
            (record.block.address, record.block.port)
            for record in reader.newest_first(asked)
            if record.block.verdict == "deny"
        }
    finally:
        reader.close()
    return {probe for probe in wanted if (str(probe.address), probe.port) in found}


def _denied(run: Path, workload: str) -> int | None:
    """The kernel's counter, as the daemon has it."""
    said = ask(run, Message("status"))["workloads"]
    return next((int(one["denied"]) for one in said if one["name"] == workload), None)


def _hits(run: Path, workload: str) -> dict[str, int]:
    """Packets that each rule let through."""
    hits = ask(run, Message("hits", {"workload": workload}))["rules"]
    return {str(rule): int(packets) for rule, packets in hits.items() if packets is not None}
