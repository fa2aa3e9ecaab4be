"""Rules that a workload lacks, proposed from what the log saw it try: the narrowest that let that through.

A name where one was asked, else the exact address; the port that was used; the network a caller is in, or the
workload it is.  Names under one parent stay apart unless they are many.  What is unwise is refused, with the
reason: by its evidence (`unwise`), or because `lint` warns of the rule that it would be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from ipaddress import ip_address

from penstock.core import probes, rebinding, unwise
from penstock.core.connection import Connection
from penstock.core.name_rules import resolves
from penstock.core.nearest import is_over
from penstock.core.policy import (
    Address,
    AddressPeer,
    Direction,
    HostPeer,
    Known,
    Mode,
    NamePeer,
    NetworkPeer,
    Peer,
    Policy,
    Rule,
    WorkloadPeer,
)
from penstock.core.presets import Origin, Preset, known_to
from penstock.core.seen import ASKED, Evidence, Partners, Seen, is_here, owner
from penstock.core.trial_rules import TEST, Trial
from penstock.core.unwise import Ground, Why
from penstock.core.verdict import Live, judge
from penstock.core.wishes import (
    Whom,
    Wish,
    by_pattern,
    covered,
    crowds,
    endpoint,
    gathered,
    has_name,
    is_named,
    opens,
    short,
)

AIRGAP = "airgap"
"""The preset that opens nothing and has look-ups go where they are seen."""


@dataclass(frozen=True, slots=True)
class Ask:
    """`policy` is what the files say; `rejected` are keys that somebody decided against."""

    policy: Policy
    workload: str
    evidence: Evidence
    now: datetime
    presets: Mapping[str, Preset] = field(default_factory=dict)
    partners: Partners = field(default_factory=Partners)
    here: frozenset[Address] = frozenset()
    rejected: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Proposal:
    """A rule to add, or `use:` of a preset (then `rule` is None)."""

    id: str
    direction: Direction
    rule: Rule | None
    use: str
    seen: tuple[Seen, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """What is not proposed; `what` is the destination or source in short."""

    id: str
    direction: Direction
    what: str
    seen: tuple[Seen, ...]
    why: Why


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The answer; `rejected` and `allowed` count destinations that are not in it for that reason."""

    proposed: tuple[Proposal, ...]
    refused: tuple[Refused, ...]
    rejected: int
    allowed: int
    summed: int

    def keys(self, wanted: str) -> tuple[str, ...]:
        """The keys of the proposal or refusal with that id; none when there is no such."""
        everything: tuple[Proposal | Refused, ...] = (*self.proposed, *self.refused)
        found = [one for one in everything if one.id == wanted]
        return tuple(str(seen.key) for one in found for seen in one.seen)


def suggest(ask: Ask) -> Suggestion:
    """What to add for what was seen.  `ask.workload` exists."""
    return _Suggesting(ask).run()


def lacking(ask: Ask) -> tuple[Seen, ...]:
    """What was seen and is allowed by no rule: what enforcing denies, unwise or not."""
    asking = _Suggesting(ask)
    return tuple(seen for seen in ask.evidence.seen if not _is_ours(seen) and not asking.is_allowed(seen))


class _Suggesting:
    """One run; the steps in their order."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.workload = ask.policy.workloads[ask.workload]
        everything = Preset("", "", Origin("", ""), knows_all=True)
        self.known: tuple[Known, ...] = known_to([everything], ask.presets)
        opened = replace(self.workload, mode=Mode.ENFORCE)
        self.policy = replace(ask.policy, workloads={**ask.policy.workloads, opened.name: opened})
        self.trial = Trial(ask.policy, ask.workload, ask.now)
        self.refused: list[Refused] = []
        self.proposed: list[Proposal] = []
        self.rejected = self.allowed = 0

    def run(self) -> Suggestion:
        wishes = gathered((seen, whom) for seen in self.left() for whom in self.peers(seen))
        wishes = by_pattern(self.by_preset(self.without_crowds(wishes)))
        self.judged(wishes)
        self.look_ups_first()
        order = [one for direction in Direction for one in self.proposed if one.direction is direction]
        proposed = tuple(sorted(order, key=lambda one: (one.direction is Direction.IN, not one.use)))
        numbers = (self.rejected, self.allowed, self.ask.evidence.summed)
        return Suggestion(proposed, tuple(self.refused), *numbers)

    def left(self) -> list[Seen]:
        """What was seen without what is allowed by now, rejected, or refused for what it is."""
        ground = Ground(self.policy, self.known, self.ask.here, resolves(self.workload))
        named = {seen.key.peer for seen in self.ask.evidence.seen if seen.key.protocol != ASKED}
        found: list[Seen] = []
        for seen in self.ask.evidence.seen:
            if (seen.key.protocol == ASKED and seen.key.peer in named) or _is_ours(seen):
                continue  # the packets to it say more; or `penstock enforce` tried it
            if self.is_allowed(seen):
                self.allowed += 1
            elif str(seen.key) in self.ask.rejected:
                self.rejected += 1
            else:
                found.append(seen)
        for scan in unwise.scans(found):
            gone = {id(one) for one in scan.seen}
            if any(id(one) in gone for one in found):
                self.refuse(scan.seen, Why("scan", scan.text), scan.what)
                found = [one for one in found if id(one) not in gone]
        left = []
        for seen in found:
            why = unwise.why(seen, ground) or self.narrow_name(seen)
            if why is None:
                left.append(seen)
            else:
                self.refuse((seen,), why)
        return left

    def refuse(self, seen: tuple[Seen, ...], why: Why, what: str = "") -> None:
        said = "\n".join(sorted(str(one.key) for one in seen))
        digest = hashlib.sha256(said.encode("utf-8", "backslashreplace")).hexdigest()[:8]
        key = seen[0].key
        self.refused.append(Refused(f"refused-{digest}", key.direction, what or endpoint(seen[0]), seen, why))

    # --- what is allowed by now ---

    def is_allowed(self, seen: Seen) -> bool:
        key, workload = seen.key, self.workload
        if key.protocol == ASKED:
            return any(has_name(rule, key.peer) and not is_over(rule, self.ask.now) for rule in workload.egress)
        if seen.address is None:
            by_name = [Connection(workload.name, Direction.OUT, key.protocol, None, key.port, name=key.peer)]
            return self.all_open(self.at_addresses(seen) or by_name, key.peer)
        if key.direction is Direction.OUT or not is_here(key.peer, self.ask.here):
            far = self.partner(seen) if key.direction is Direction.OUT else ""
            return self.all_open([self.connection(seen, far)])
        if callers := self.callers(seen):
            return self.all_open([self.connection(seen, caller) for caller in callers])
        return self.all_open([self.connection(seen, "")])

    def at_addresses(self, seen: Seen) -> list[Connection]:
        key = seen.key
        return [
            Connection(self.workload.name, Direction.OUT, key.protocol, address, key.port)
            for address in sorted(seen.addresses, key=lambda one: (one.version, int(one)))
        ]

    def all_open(self, connections: Iterable[Connection], name: str = "") -> bool:
        """Whether each is allowed, its far end known by `name`."""
        return all(
            judge(
                self.policy,
                Live(self.ask.now, {c.workload: {c.remote: [name]}} if name and c.remote else {}),
                c,
            ).allow
            for c in connections
        )

    def connection(self, seen: Seen, far: str) -> Connection:
        key = seen.key
        here = is_here(key.peer, self.ask.here)
        return Connection(
            *(self.workload.name, key.direction, key.protocol, ip_address(key.peer), key.port),
            peer_workload=far,
            here=here,
        )

    def narrow_name(self, seen: Seen) -> Why | None:
        """A rule has the name, and does not take where it leads."""
        has = any(
            has_name(rule, seen.key.peer) and opens(rule, seen.key.protocol, seen.key.port)
            for rule in self.workload.egress
        )
        if seen.address is None and seen.addresses and has:
            text = "a rule has the name and does not take this address: find out whose it is, then `private: true`"
            return Why("private-answer", text)
        return None

    # --- who is at the far end on this host ---

    def partner(self, seen: Seen) -> str:
        """The workload whose service an address of this host is; empty when it cannot be told."""
        key = seen.key
        if key.port is None or not is_here(key.peer, self.ask.here):
            return ""
        found = self.ask.partners.listeners.get((key.protocol, key.port), frozenset())
        if len(found) == 1:
            return next(iter(found))
        return owner(self.policy, self.workload.name, (key.protocol, key.port))

    def callers(self, seen: Seen) -> list[str]:
        """Workloads of this host that call; none when it was somebody else.

        What was refused under the rules of now was none of those that they let in.
        """
        key = seen.key
        if key.port is None:
            return []
        found = sorted(self.ask.partners.callers.get((key.protocol, key.port), ()))
        shut_out = [name for name in found if not self.all_open([self.connection(seen, name)])]
        return [] if not shut_out and self.ask.policy.hash in seen.policies else shut_out or found

    # --- wishes ---

    def peers(self, seen: Seen) -> Iterator[Whom]:
        """Whom the rule is about, and whether the name is at private addresses."""
        key = seen.key
        if seen.address is None:
            yield NamePeer(key.peer), any(rebinding.kind(one) == "private" for one in seen.addresses)
        elif key.direction is Direction.OUT:
            partner = self.partner(seen)
            yield (WorkloadPeer(partner) if partner else AddressPeer(seen.address)), False
        elif not is_here(key.peer, self.ask.here):
            yield self.network_of(seen.address), False
        elif callers := self.callers(seen):
            for caller in callers:
                yield WorkloadPeer(caller), False
        else:
            yield HostPeer() if seen.address.is_loopback else AddressPeer(seen.address), False

    def network_of(self, address: Address) -> Peer:
        """The smallest network that it lies in, or itself."""
        sizes = [
            (cidr.prefixlen, network.name)
            for network in self.policy.networks.values()
            for cidr in network.cidrs
            if cidr.version == address.version and address in cidr
        ]
        return NetworkPeer(max(sizes)[1]) if sizes else AddressPeer(address)

    def without_crowds(self, wishes: list[Wish]) -> list[Wish]:
        """Without callers that are so many that somebody should say who they are."""
        for crowd in crowds(wishes):
            seen = tuple(one for wish in crowd for one in wish.seen)
            ports = short(crowd[0].rule(0)).partition(" on ")[2]
            text = f"{len(crowd)} callers in no network: define one for them in penstock.yaml, and ask again"
            self.refuse(seen, Why("crowd", text), f"many on {ports}")
            wishes = [wish for wish in wishes if wish not in crowd]
        return wishes

    # --- presets ---

    def by_preset(self, wishes: list[Wish]) -> list[Wish]:
        """Take out the names that presets are about, the preset with the most first."""
        used = {rule.preset for rule in self.workload.egress}
        while True:
            covers = {
                name: [wish for wish in wishes if covered(wish, preset)]
                for name, preset in self.ask.presets.items()
                if name not in used
            }
            best = max(covers, key=lambda name: len(covers[name]), default="")
            enough = min(2, len(self.ask.presets[best].openings)) if best else 0
            if not best or len(covers[best]) < max(1, enough):
                for name, few in covers.items():
                    for wish in few:
                        wish.notes.append(f"the preset {name} has it, and what belongs to it: `use: {name}`")
                return wishes
            used.add(best)
            seen = tuple(one for wish in covers[best] for one in wish.seen)
            if against := self.trial.broken(self.ask.presets[best].rules):
                self.refuse(seen, Why(TEST, against), f"use: {best}")
            else:
                self.use(best, seen, (self.ask.presets[best].title,))
            wishes = [wish for wish in wishes if wish not in covers[best]]

    def use(self, preset: str, seen: tuple[Seen, ...], notes: tuple[str, ...]) -> None:
        self.proposed.append(Proposal(f"use-{preset}", Direction.OUT, None, preset, seen, notes))

    def look_ups_first(self) -> None:
        """Where names are not seen, have them seen before anything is decided about addresses."""
        blind = [one for one in self.refused if one.why.code in ("unnamed", "resolver")]
        named = any(one.use or is_named(one.rule) for one in self.proposed)
        if not resolves(self.workload) and blind and not named and AIRGAP in self.ask.presets:
            text = "opens nothing; its look-ups are seen from then on: apply, wait, and ask again"
            self.use(AIRGAP, tuple(seen for one in blind for seen in one.seen), (text,))

    # --- what lint and tests say ---

    def judged(self, wishes: list[Wish]) -> None:
        """Propose the rules of which nothing is said, or something to decide about."""
        rules = [wish.rule(number) for number, wish in enumerate(wishes, 1)]
        at: dict[int, int] = {}  # of a rule: its place among the proposals
        again: list[Wish] = []
        for number, (wish, rule, remarks) in enumerate(zip(wishes, rules, self.trial.remarks(rules), strict=True)):
            by = next((one.by for one in remarks if one.by is not None), None)
            against = next((one for one in remarks if one.hard and one.by is None), None)
            if by in at:  # it is proposed, and opens all of this
                wider = self.proposed[at[by]]
                self.proposed[at[by]] = replace(wider, seen=(*wider.seen, *wish.seen))
            elif against is not None and len(split := wish.by_port()) > 1:
                again += split
            elif against is not None:
                self.refuse(tuple(wish.seen), Why(against.code, against.text), short(rule))
            elif by is not None:
                again.append(wish)
            else:
                notes = (*wish.notes, *self.notes(wish), *(one.text for one in remarks))
                at[number] = len(self.proposed)
                self.proposed.append(Proposal(rule.id, rule.direction, rule, "", tuple(wish.seen), notes))
        if again:
            self.judged(again)

    def notes(self, wish: Wish) -> Iterator[str]:
        """What somebody should know who decides about it."""
        peer = wish.peer
        if wish.private:
            yield "the name leads to a private address, so the rule says `private: true`"
        if isinstance(peer, NamePeer):
            known = unwise.known_as(peer.pattern, self.known)
            if known is not None:
                yield known.text
            if wish.only_asked:
                yield "it was asked and no packet followed: the port is a guess"
        elif isinstance(peer, AddressPeer) and rebinding.kind(peer.address) is None:
            yield "a public address without a name: find out whose it is"
        elif isinstance(peer, HostPeer):
            yield "the caller is on this host; the log does not tell who it was"


def _is_ours(seen: Seen) -> bool:
    return probes.is_ours(seen.key.direction, seen.address, seen.key.port)
