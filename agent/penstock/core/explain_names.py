"""What a denied packet has to do with names: which was asked for its address, when, and why that did not help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from penstock.core import lookups
from penstock.core.asked import Asked, Observed
from penstock.core.blocks import Explanation
from penstock.core.connection import Connection, as_sent
from penstock.core.learned import Entry, Learned
from penstock.core.name_rules import resolves
from penstock.core.nearest import is_over, port_gap
from penstock.core.policy import CONTROL_PORTS, Direction, NamePeer, Policy, Workload
from penstock.core.remedies import to_name
from penstock.core.text import duration, printable
from penstock.core.verdict import Live, Reason, Verdict, judge

EXPIRED_NAME = "expired-name"
"""The address was learned for a name, and the answer is over."""

LITERAL = "literal"
"""A rule by name opens the port, and nobody looked the address up."""

NEVER = "literal address, never looked up"
"""How the text of a block begins whose workload's look-ups were seen, when none was for that address."""

LOOKED_AT = 16
"""Names of one address: content networks have thousands at one, and each is judged by all rules."""

PLAIN = frozenset({Reason.METADATA, Reason.LINK_LOCAL, Reason.LOCKED, Reason.UNKNOWN_WORKLOAD})
"""Here names explain nothing."""


def live(learned: Learned | None, connection: Connection, now: datetime) -> Live:
    """What counts for `judge`: the names that lead to the far end now."""
    remote = as_sent(connection).remote
    if learned is None or remote is None or connection.direction is not Direction.OUT:
        return Live(now)
    entries = learned.names_of(connection.workload, remote.packed)
    current = [entry.name for entry in entries if entry.until > now.timestamp()]
    return Live(now, {connection.workload: {remote: current}} if current else {})


def opens(policy: Policy, now: datetime, connection: Connection, name: str) -> bool:
    """Whether a look-up of `name` that leads to the far end opens this."""
    remote = as_sent(connection).remote
    if remote is None:
        return False
    return judge(policy, Live(now, {connection.workload: {remote: [name]}}), connection).allow


def explain(
    policy: Policy,
    connection: Connection,
    verdict: Verdict,
    now: datetime,
    learned: Learned,
    asked: Asked,
    *,
    here: bool,
) -> Explanation | None:
    """Explain a packet that `verdict` denies; None where names have nothing to do with it.

    `here`: it was on its way to this host itself.
    """
    workload, remote = policy.workloads.get(connection.workload), as_sent(connection).remote
    if workload is None or remote is None or connection.direction is not Direction.OUT:
        return None
    if verdict.reason in PLAIN or remote.is_loopback or remote.is_multicast or not resolves(workload):
        return None
    entries = learned.names_of(workload.name, remote.packed)
    if entries:
        return _learned(policy, connection, verdict, now, _telling(policy, connection, now, entries), here)
    observed = asked.about(workload.name, remote.packed)
    if observed is not None:
        return _observed(policy, connection, verdict, now, observed)
    if here:
        return None
    reason: str = verdict.reason.value
    if verdict.reason in (Reason.NO_RULE, Reason.NO_RULES) and _opens_by_name(workload, connection, now):
        reason = LITERAL
    return Explanation(reason, f"{NEVER}; {verdict.text}", nearest=verdict.nearest)


def _telling(policy: Policy, connection: Connection, now: datetime, entries: Sequence[Entry]) -> Entry:
    """Of the names of one address the one whose rule opens this, else the one that ends last."""
    opening = (
        entry
        for entry in entries[:LOOKED_AT]
        if judge(policy, Live(now), replace(connection, name=entry.name)).allow
    )
    return next(opening, entries[0])


def _learned(
    policy: Policy, connection: Connection, verdict: Verdict, now: datetime, entry: Entry, here: bool
) -> Explanation:
    """It was looked up, for a name that some rule has or had."""
    over = now.timestamp() - entry.until
    text = f"learned for {printable(entry.name)}" + (f", expired {duration(over)} ago" if over >= 0 else "")
    asked = judge(policy, Live(now), replace(connection, name=entry.name))
    if over >= 0 and opens(policy, now, connection, entry.name):
        text += "; a look-up opens it again"
        return Explanation(EXPIRED_NAME, text, nearest=asked.rule, name=entry.name)
    if asked.allow and here:
        text += f", which leads to this host; `private: true` in rule {asked.rule} would allow that"
        return Explanation(lookups.Reason.PRIVATE_ANSWER.value, text, nearest=asked.rule, name=entry.name)
    if asked.allow:  # the address is one that the rule does not take
        text += f"; {verdict.text}"
        return Explanation(verdict.reason.value, text, nearest=verdict.nearest, name=entry.name)
    if asked.reason is Reason.WRONG_PORT:
        nearest = asked.text.partition("; ")[2].removesuffix(": other port")
        text += f"{', and its' if over >= 0 else ', whose'} rule opens other ports; {nearest}"
    else:
        text += f"; {asked.text}"
    offer = _offer(policy, connection, entry.name)
    return Explanation(asked.reason.value, text, nearest=asked.nearest, allow=offer, name=entry.name)


def _observed(
    policy: Policy, connection: Connection, verdict: Verdict, now: datetime, observed: Observed
) -> Explanation:
    """It was looked up, for a name that no rule had when observe mode answered, or that has lost its rule."""
    name = observed.name
    text = f"asked {printable(name)} {duration(now.timestamp() - observed.when)} ago"
    asked = judge(policy, Live(now), replace(connection, name=name))
    if opens(policy, now, connection, name):
        text += ", and not since its rule is in force; a look-up opens it now"
        return Explanation(lookups.Reason.NAME.value, text, nearest=asked.rule, name=name)
    if asked.allow:
        text += f", whose rule does not take this address; {verdict.text}"
        return Explanation(verdict.reason.value, text, nearest=asked.rule, name=name)
    known = lookups.known_as(policy.workloads[connection.workload], name)
    if known is not None and known.kind == "telemetry":
        text += f"; {lookups.telemetry(known)}"
        return Explanation(lookups.Reason.TELEMETRY.value, text, name=name)
    text += f", {asked.text}"
    offer = _offer(policy, connection, name)
    return Explanation(asked.reason.value, text, nearest=asked.nearest, allow=offer, name=name)


def _offer(policy: Policy, connection: Connection, name: str) -> str | None:
    if connection.port is None or (connection.protocol == "tcp" and connection.port in CONTROL_PORTS):
        return None
    return to_name(policy.workloads[connection.workload], name, connection.protocol, connection.port)


def _opens_by_name(workload: Workload, connection: Connection, now: datetime) -> bool:
    return any(
        port_gap(rule.ports, connection) == 0
        and not is_over(rule, now)
        and any(isinstance(peer, NamePeer) for peer in rule.peers)
        for rule in workload.egress
    )
