"""What the block log says of one workload, and what it takes to judge it."""

from __future__ import annotations

from datetime import datetime
from ipaddress import ip_address
from pathlib import Path

from penstock.cli.block_log import BlockReader, Wanted
from penstock.cli.context import CannotTell
from penstock.cli.presets import read_all
from penstock.core.policy import Address, Policy
from penstock.core.seen import Evidence, Partners, gather, is_here, partners
from penstock.core.suggest import Ask
from penstock.errors import PenstockError

DEFAULT_LOG = Path("/var/log/penstock")


def asking(policy: Policy, workload: str, config: Path, log: Path, since: datetime, now: datetime) -> Ask:
    """A question about what was logged from `since` on, under `policy`.  CannotTell when there is no log."""
    here = addresses()
    evidence, who = _evidence(policy, workload, log, since, here)
    return Ask(policy, workload, evidence, now, read_all(config).presets, who, here)


def _evidence(
    policy: Policy, workload: str, log: Path, since: datetime, here: frozenset[Address]
) -> tuple[Evidence, Partners]:
    """What the log says of the workload and, where its far ends are on this host, of the others."""
    mine = Wanted(since=since.timestamp(), workload=workload)
    try:
        reader = BlockReader(log)
    except PenstockError as e:
        raise CannotTell(e.message, where=e.where, hint=e.hint) from e
    try:
        evidence = gather(record.block for record in reader.newest_first(mine))
        local_ends = any(is_here(seen.key.peer, here) for seen in evidence.seen)
        everybody = Wanted(since=since.timestamp())
        others = (record.block for record in reader.newest_first(everybody)) if local_ends else ()
        return evidence, partners(policy, workload, others, here)
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
