"""What the block log says of one workload, and what it takes to judge it."""

from __future__ import annotations

from datetime import datetime
from ipaddress import ip_address
from pathlib import Path

from penstock.cli.block_log import BlockReader, Wanted
from penstock.cli.block_source import DEFAULT_LOG, Source, answer
from penstock.cli.context import CannotTell
from penstock.cli.presets import read_all
from penstock.core.policy import Address, Policy
from penstock.core.seen import Evidence, Partners, gather, is_here, partners
from penstock.core.suggest import Ask
from penstock.errors import PenstockError

__all__ = ["DEFAULT_LOG", "addresses", "asking"]

OTHERS = 100_000
"""The newest records, of all workloads, that are asked who else is on this host: enough for a hint."""


def asking(policy: Policy, workload: str, config: Path, log: Path, since: datetime, now: datetime) -> Ask:
    """A question about what was logged from `since` on, under `policy`.  CannotTell when there is no log."""
    here = addresses()
    evidence, who = _evidence(policy, workload, log, since, here)
    return Ask(policy, workload, evidence, now, read_all(config).presets, who, here)


def _evidence(
    policy: Policy, workload: str, log: Path, since: datetime, here: frozenset[Address]
) -> tuple[Evidence, Partners]:
    """What the log says of the workload and, where its far ends are on this host, of the others."""
    mine, everybody = Wanted(since=since.timestamp(), workload=workload), Wanted(since=since.timestamp())
    try:
        reader = BlockReader(log)
    except PenstockError as e:
        raise CannotTell(e.message, where=e.where, hint=e.hint) from e

    def question(source: Source) -> tuple[Evidence, Partners]:
        evidence = gather(record.block for record in source.records(mine, None))
        local_ends = any(is_here(seen.key.peer, here) for seen in evidence.seen)
        others = (record.block for record in source.records(everybody, OTHERS)) if local_ends else ()
        return evidence, partners(policy, workload, others, here)

    try:
        return answer(log, reader, question)
    finally:
        reader.close()


def addresses() -> frozenset[Address]:
    """Those of this host."""
    import psutil

    found = set()
    for ends in psutil.net_if_addrs().values():
        for end in ends:
            try:
                found.add(ip_address(end.address.partition("%")[0]))
            except ValueError:
                continue  # a link's own address
    return frozenset(found)
