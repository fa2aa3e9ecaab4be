"""Refused look-ups -> blocks: what was asked, by whom, why it got no answer, and what would give it one.

A look-up is no denied packet: the kernel lets it through to the resolver, and its counter of denied packets does
not know it.  So of these blocks the books know only how many there were of late.  They have a name, the port 53
and no address.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from penstock.core import names
from penstock.core.advice import has_port
from penstock.core.blocks import DNS_PORT, Block, Explanation, Process
from penstock.core.folds import Folds, Key, Owner
from penstock.core.nearest import NearestNames, describe, is_over
from penstock.core.policy import CONTROL_PORTS, Direction, Known, Mode, NamePeer, Policy, Rule, Workload
from penstock.core.remedies import to_name
from penstock.core.resolver_wire import Observed, Refused
from penstock.core.text import printable

SEARCH = "search"
"""What the resolver says of a name that only a list of suffixes can have made: nobody meant it."""

MOST = 1_000_000
"""Look-ups that one message stands for."""


class Reason(StrEnum):
    """Why: a code for programs."""

    NAME = "name"  # no rule has it
    TELEMETRY = "telemetry"  # no rule has it, and a preset knows it as telemetry
    METADATA_NAME = "metadata-name"  # a name of a cloud's metadata service
    TYPE = "type"  # a type of record that is not given out
    PRIVATE_ANSWER = "private-answer"  # the answer held only addresses that its rule takes with `private` alone
    UNFIT_ANSWER = "unfit-answer"  # the answer held only addresses that its rule never takes
    RATE = "rate"  # too many new names in a short time
    LOCKED = "locked"  # the mode denies everything


ROOT = "."
"""How people write the name without labels."""

HTTPS = 443

OVERFLOW = Explanation("overflow", "more names at once than are kept apart")

METADATA_NAMES = frozenset(
    {
        "metadata.google.internal",
        "metadata.goog",
        "instance-data.ec2.internal",
        "metadata.azure.internal",
        "metadata.tencentyun.com",
    }
)
"""Names of the services at `policy.METADATA`; an answer for them is never learned."""

TEXTS = {
    Reason.METADATA_NAME: "a cloud's metadata service: no name opens it, and `to: metadata` only its address",
    Reason.RATE: "too many new names under one pattern in a short time",
    Reason.LOCKED: "the workload is locked: everything is denied",
    Reason.UNFIT_ANSWER: "its rule never takes what it resolves to: metadata, link-local, reserved or excepted",
}


@dataclass(frozen=True, slots=True)
class Lookup:
    """A look-up that no rule stands for.

    `reason` is the resolver's word for it; `qtype` the type of record, as text.  `answered`: it got its answer all
    the same, because the workload is only observed.
    """

    workload: str
    name: str
    reason: str = Reason.NAME.value
    qtype: str = ""
    protocol: str | None = None
    count: int = 1
    answered: bool = False

    @classmethod
    def of(cls, said: Refused | Observed) -> Lookup:
        """What the resolver said."""
        count = min(max(said.count, 1), MOST)
        if isinstance(said, Observed):
            return cls(said.workload, said.name or ROOT, count=count, answered=True)
        name = said.name or ("" if said.reason == OVERFLOW.reason else ROOT)
        return cls(said.workload, name, said.reason, said.qtype, said.protocol, count)


class Lookups:
    """Folds them.  `seed` makes ids unique; not that of the books."""

    def __init__(self, seed: int) -> None:
        self._folds = Folds(seed)
        self._policy = Policy()
        self._near: dict[str, NearestNames] = {}  # by workload, of that policy

    def add(self, lookup: Lookup, policy: Policy, now: datetime, process: Process | None = None) -> list[Block]:
        """Take one in; return the blocks to write at once."""
        workload = policy.workloads.get(lookup.workload)
        if workload is None or lookup.reason == SEARCH:
            return []
        if workload.mode is Mode.OBSERVE and lookup.reason == OVERFLOW.reason:
            lookup = replace(lookup, answered=True)  # as nearly all are there
        moment, who = now.timestamp(), process or Process()
        owner: Owner = (lookup.workload, "look-up")
        said = (lookup.answered, workload.mode, policy.hash)
        qtype = lookup.qtype if lookup.reason == Reason.TYPE else ""
        key: Key = (lookup.name, lookup.reason, qtype, who.comm, *said)
        if not self._folds.has_room(owner, key):
            rest = lambda: _block(replace(lookup, name=""), workload, policy, moment, OVERFLOW, Process())  # noqa: E731
            return self._folds.add(owner, (OVERFLOW, *said), moment, rest, lookup.count)

        def first() -> Block:
            why = explain(workload, lookup, now, self._near_of(policy, workload))
            return _block(lookup, workload, policy, moment, why, who)

        return self._folds.add(owner, key, moment, first, lookup.count)

    def _near_of(self, policy: Policy, workload: Workload) -> NearestNames:
        if policy is not self._policy:
            self._policy, self._near = policy, {}
        if workload.name not in self._near:
            self._near[workload.name] = NearestNames(workload.egress)
        return self._near[workload.name]

    def flush(self, now: float) -> list[Block]:
        """The blocks that grew and are due.  Call every second or so."""
        return self._folds.flush(now)

    def close(self, now: float) -> list[Block]:
        """All that is left."""
        return self._folds.close(now)


def explain(workload: Workload, lookup: Lookup, now: datetime, near: NearestNames) -> Explanation:
    """Why it was refused; `near` knows the rules of the workload."""
    name = lookup.name
    if workload.mode is Mode.LOCK:
        return _said(Reason.LOCKED, TEXTS[Reason.LOCKED])
    match lookup.reason:
        case Reason.TYPE:
            return _said(Reason.TYPE, f"records of type {lookup.qtype or 'unknown'} are not given out for it")
        case Reason.RATE | Reason.LOCKED as reason:
            return _said(Reason(reason), TEXTS[Reason(reason)])
        case Reason.PRIVATE_ANSWER | Reason.UNFIT_ANSWER as reason:
            return _unfit(workload, name, now, Reason(reason))
        case Reason.NAME | Reason.TELEMETRY | Reason.METADATA_NAME:
            return _unruled(workload, name, now, near)
        case OVERFLOW.reason:
            return OVERFLOW
        case other:
            return Explanation(printable(other, 32), f"refused by the resolver: {printable(other, 32)}")


def known_as(workload: Workload, name: str) -> Known | None:
    """What a preset of the workload knows of a name."""
    return next((known for known in workload.known if names.matches(known.pattern, name)), None)


def telemetry(known: Known) -> str:
    """What to say of it."""
    return f"telemetry, which preset {known.preset} leaves closed: {known.text}"


def _unruled(workload: Workload, name: str, now: datetime, near: NearestNames) -> Explanation:
    """No rule has the name."""
    known = known_as(workload, name)
    if name in METADATA_NAMES or (known is not None and known.kind == "metadata"):
        return _said(Reason.METADATA_NAME, TEXTS[Reason.METADATA_NAME])
    if known is not None and known.kind == "telemetry":
        return _said(Reason.TELEMETRY, telemetry(known))
    allow = to_name(workload, name)
    over = next((rule for rule in workload.egress if is_over(rule, now) and _stands_for(rule, name)), None)
    if over is not None:
        text = f"the rule that allowed it has expired; it is rule {over.id} ({describe(over)})"
        return Explanation(Reason.NAME.value, text, nearest=over.id, allow=_again(workload, name, over))
    found = near.of(name, now)
    text = "not in its rules" + (f"; {found.text}" if found else "")
    if known is not None:
        text += f"; preset {known.preset} leaves it closed: {known.text}"
    return Explanation(Reason.NAME.value, text, nearest=found.rule.id if found else None, allow=allow)


def _again(workload: Workload, name: str, over: Rule) -> str | None:
    """What opens again what that rule did, or its first port; None when nothing is to be offered lightly."""
    if has_port(over.ports, HTTPS):
        return to_name(workload, name)
    first = next(iter(over.ports.ranges), None)
    if first is None or (first.protocol == "tcp" and first.first in CONTROL_PORTS):
        return None
    return to_name(workload, name, first.protocol, first.first)


def _unfit(workload: Workload, name: str, now: datetime, reason: Reason) -> Explanation:
    """A rule has the name, and the answer was not to its taste."""
    rules = [rule for rule in workload.egress if not is_over(rule, now) and _stands_for(rule, name)]
    strict = next((rule for rule in rules if not rule.private), None)
    if reason is Reason.UNFIT_ANSWER or strict is None:
        return Explanation(reason.value, TEXTS[Reason.UNFIT_ANSWER], nearest=rules[0].id if rules else None)
    text = f"it resolves to a private or loopback address; `private: true` in rule {strict.id} would allow that"
    return Explanation(reason.value, text, nearest=strict.id)


def _said(reason: Reason, text: str) -> Explanation:
    return Explanation(reason.value, text)


def _stands_for(rule: Rule, name: str) -> bool:
    return any(isinstance(peer, NamePeer) and names.matches(peer.pattern, name) for peer in rule.peers)


def _block(
    lookup: Lookup, workload: Workload, policy: Policy, now: float, why: Explanation, who: Process
) -> Block:
    return Block(
        id="",
        first=now,
        last=now,
        workload=lookup.workload,
        verdict="would-deny" if lookup.answered else "deny",
        mode=workload.mode.value,
        direction=Direction.OUT.value,
        protocol=lookup.protocol,
        family=None,
        address=None,
        port=DNS_PORT,
        name=printable(lookup.name) or None,
        count=lookup.count,
        unlogged=0,
        rule=None,
        reason=why.reason,
        text=printable(why.text, 512),
        nearest=why.nearest,
        process=Process(who.pid, None if who.comm is None else printable(who.comm, 64)),
        policy=policy.hash or None,
        allow=None if why.allow is None else printable(why.allow, 512),
    )
