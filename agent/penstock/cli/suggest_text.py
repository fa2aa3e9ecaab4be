"""What `penstock suggest` says: lines of a rule file, their evidence as comments, and what is left out and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from penstock.cli.format import counted, wrapped
from penstock.core.blocks import rfc3339
from penstock.core.edits import New
from penstock.core.policy import AddressPeer, CidrPeer, Direction
from penstock.core.seen import Seen
from penstock.core.suggest import Proposal, Refused, Suggestion
from penstock.core.text import printable
from penstock.core.trial_rules import TEST
from penstock.core.wire import Json
from penstock.core.wishes import endpoint

SHOWN = 20
"""Refusals, and destinations of one rule, that are spelled out."""


def lines(found: Suggestion) -> Iterator[str]:
    """The rules to add, and what shall not be one."""
    for direction, key in ((Direction.OUT, "egress"), (Direction.IN, "ingress")):
        mine = [one for one in found.proposed if one.direction is direction]
        if mine:
            yield f"{key}:"
        for one in mine:
            yield from (f"  # {line.strip()}" for text in _about(one) for line in wrapped(text, 4))
            yield from New(one.rule, one.use).block("  ")
    if found.refused:
        yield from ("", "not proposed:")
    for refused in found.refused[:SHOWN]:
        yield from wrapped(f"{printable(refused.what, 80)}  {counts(refused.seen)}", 2)
        yield from wrapped(f"{refused.why.text}  ({refused.id})", 6)
    if len(found.refused) > SHOWN:
        yield f"  and {len(found.refused) - SHOWN} more: --json"


def _about(one: Proposal) -> Iterator[str]:
    yield f"{one.id}  {counts(one.seen)}"
    ends = list(dict.fromkeys(printable(endpoint(seen), 80) for seen in one.seen))
    if len(ends) > 1 or one.use or one.direction is Direction.IN:
        more = [f"and {len(ends) - SHOWN} more"] if len(ends) > SHOWN else []
        yield ", ".join([*ends[:SHOWN], *more])
    yield from one.notes


def counts(seen: Iterable[Seen]) -> str:
    """How often, when, and by which programs."""
    everyone = list(seen)
    packets = sum(one.packets for one in everyone)
    first, last = min(one.first for one in everyone), max(one.last for one in everyone)
    comms = sorted({comm for one in everyone for comm in one.comms})[:3]
    by = f"  by {', '.join(printable(comm, 16) for comm in comms)}" if comms else ""
    return f"x{packets}  {_day(first)} to {_day(last)}{by}"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%m-%d %H:%M")


def summary(found: Suggestion, workload: str) -> Iterator[str]:
    """What can be done, for people."""
    if found.proposed:
        rules = counted(len(found.proposed), "rule")
        yield f"{rules} to add; add with: penstock suggest {workload} --write"
    else:
        yield "nothing to add"
    incoming = [one.rule for one in found.proposed if one.rule and one.direction is Direction.IN]
    callers = [peer for rule in incoming for peer in rule.peers]
    if any(isinstance(peer, AddressPeer | CidrPeer) for peer in callers):
        yield "callers by address: name their network in penstock.yaml, and rules say that name"
    if found.proposed or found.refused:
        yield f"never show one again: penstock suggest {workload} --reject ID"
    if any(one.why.code == TEST for one in found.refused):
        yield f"what a test forbids: if it shall be, take the test out (penstock edit {workload}), ask again"
    if found.rejected:
        yield f"rejected before and left out: {found.rejected}"
    if found.summed:
        yield f"{counted(found.summed, 'packet')} of destinations that the log does not tell apart are not in it"


def as_json(found: Suggestion) -> Json:
    """The same for programs."""
    return {
        "proposed": [
            {
                "id": one.id,
                "direction": one.direction.value,
                "yaml": "\n".join(New(one.rule, one.use).block()),
                "use": one.use or None,
                "notes": list(one.notes),
                "seen": [seen_json(seen) for seen in one.seen],
            }
            for one in found.proposed
        ],
        "refused": [_refused(one) for one in found.refused],
        "rejected": found.rejected,
        "allowed": found.allowed,
        "summed": found.summed,
    }


def _refused(one: Refused) -> Json:
    return {
        "id": one.id,
        "direction": one.direction.value,
        "what": one.what,
        "code": one.why.code,
        "text": one.why.text,
        "seen": [seen_json(seen) for seen in one.seen],
    }


def seen_json(seen: Seen) -> Json:
    """One destination or source."""
    address = seen.address
    return {
        "name": seen.key.peer if address is None else None,
        "addresses": [str(one) for one in ([address] if address else sorted(seen.addresses, key=str))],
        "protocol": seen.key.protocol,
        "port": seen.key.port,
        "count": seen.packets,
        "first": rfc3339(seen.first),
        "last": rfc3339(seen.last),
        "processes": sorted(seen.comms),
    }
