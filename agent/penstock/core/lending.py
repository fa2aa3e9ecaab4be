"""What is lent now, and what becomes of it: made, revoked, over, dropped.

A grant is on disk before it is in the kernel, and off the disk before it is out of there: whatever ends the daemon
in between, the next one lists what it puts into force.  The kernel ends a grant by itself; that it is over is
noticed here with the next tick, and only for the list and the log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256

from penstock.core import effects, events, grants
from penstock.core.effects import Effect
from penstock.core.grant_request import BadGrant, Request, grant, owner_of
from penstock.core.grants import Grant, with_grants
from penstock.core.language.rule_ids import peer_text
from penstock.core.overrides import override
from penstock.core.policy import Policy, Rule
from penstock.core.text import printable, time_text
from penstock.core.view import View
from penstock.core.wire import Json

JUMP = 0.5
"""Seconds by which a grant seems longer than it was when the clock was set back: two clocks are never looked at at
once."""

AGAIN = 30
"""Ticks between two savings while something is lent: so old is the newest time that a reboot can know of."""

REMEMBERED = 64
"""Grants that are over and still explain a block."""

SAVING = effects.KeepGrants.__name__


@dataclass(frozen=True, slots=True)
class _Pending:
    """What an operation wants: a grant more or less, what to answer, what to tell when it is in force."""

    operation: int
    one: Grant
    more: bool
    answer: Json
    told: tuple[Effect, ...]


class Lending:
    """`lent` are the grants that are on disk, all but those that are over since the last tick in force."""

    def __init__(self, view: View, seed: int) -> None:
        self.lent: tuple[Grant, ...] = ()
        self._view = view
        self._seed = seed
        self._count = 0
        self._boot = ""
        self._clock: tuple[datetime, float] = (view.started, 0.0)  # when the clocks were looked at last
        self._pending: _Pending | None = None
        self._over: deque[Grant] = deque(maxlen=REMEMBERED)
        self._merged: tuple[object, object, Policy | None] = (None, None, None)
        self._explained: tuple[object, object, Policy | None] = (None, None, None)
        self._ticks = 0

    # --- what is in force ---

    def merged(self, policy: Policy, now: datetime) -> Policy:
        """`policy` with what is lent at `now`; the same object as long as nothing changes."""
        lent = tuple(one for one in self.lent if one.at(now))
        if self._merged[0] is not policy or self._merged[1] != lent:
            self._merged = (policy, lent, with_grants(policy, lent, now))
        assert self._merged[2] is not None
        return self._merged[2]

    def explaining(self, policy: Policy) -> Policy:
        """`policy`, which is in force, with what was lent lately: as rules that are over."""
        over = tuple(self._over)
        if not over:
            return policy
        if self._explained[0] is not policy or self._explained[1] != over:
            found = policy
            for one in over:
                if not grants.missing(policy, one):
                    workload = grants.beside(found.workloads[one.workload], one)
                    found = replace(found, workloads={**found.workloads, one.workload: workload})
            self._explained = (policy, over, found)
        assert self._explained[2] is not None
        return self._explained[2]

    def as_json(self, now: datetime) -> list[Json]:
        """The list `grants` of `status`, those that end first in front."""
        live = sorted((one for one in self.lent if one.at(now)), key=lambda one: one.until)
        return [as_json(one) for one in live]

    # --- the start ---

    def restore(self, event: events.Started) -> list[Effect]:
        """Take in what was lent before the daemon, or the host, was started."""
        self._boot, self._clock = event.boot, (event.now, event.uptime)
        if event.grants is None:
            return []
        try:
            saved = grants.decode(event.grants)
        except ValueError as e:
            text = f"{e}: nothing is lent any more"
            return [effects.Journal("error", text), self._keep(event.now)]
        same = saved.boot == event.boot and saved.boot != ""
        if not same and event.now < saved.at - timedelta(seconds=JUMP):
            why = "the clock is behind the time at which it was lent"
            return self._ended("dropped", saved.grants, event.now, why)
        lent = (one if same else _anew(one, event) for one in saved.grants)
        self.lent = tuple(self._bounded(one, event.now, event.uptime) for one in lent)
        return self._end(event.now, event.uptime)

    def fit(self, policy: Policy, now: datetime) -> list[Effect]:
        """`policy` is in force for good: what is lent of a workload or network that it has not, is dropped."""
        gone = [one for one in self.lent if grants.missing(policy, one)]
        told: list[Effect] = []
        for one in gone:
            why = f"the policy has no {grants.missing(policy, one)} any more"
            told += self._ended("dropped", [one], now, why)
        return told

    # --- asked for ---

    def make(self, command: events.Command, policy: Policy, presets: Mapping[str, bytes], now: datetime) -> Grant:
        """The grant that is asked for, and in `lent` from now on.  BadGrant when it is not to be."""
        live = [one for one in self.lent if one.at(now)]
        uptime = self._uptime(now)
        if command.uptime is not None:  # looked at with the clock, which may have been set since the last tick
            uptime = command.uptime + (now - command.now).total_seconds()
        asked = Request(command.message.arguments, command.login, now, uptime, policy, presets, live)
        make = override if command.message.command == "mode" else grant
        made, notes = make(asked, self._name(now))
        self._want("made", made, {"notes": notes}, now)
        self.lent = (*self.lent, made)
        return made

    def revoke(self, command: events.Command, now: datetime) -> Grant:
        """The grant that is meant, and in `lent` no more.  BadGrant when there is none, or more than one."""
        word = command.message.arguments["id"]
        live = [one for one in self.lent if one.at(now)]
        bare = word.removeprefix("grant-")
        found = [one for one in live if bare and one.id.removeprefix("grant-").startswith(bare)]
        if len(found) != 1:
            what = f"`{printable(word, 80)}` is the beginning of {len(found)} ids" if found else ""
            raise BadGrant(what or f"no grant `{printable(word, 80)}` is live", "see: penstock grants")
        (gone,) = found
        by = owner_of(command.login, command.message.arguments["user"])
        self._want("revoked", gone, {}, now, by)
        self.lent = tuple(one for one in self.lent if one is not gone)
        return gone

    def _want(self, what: str, one: Grant, more: Json, now: datetime, by: str = "") -> None:
        answer = {"grant": as_json(one), **more}
        told = tuple(self._told(what, one, now, by=by))
        self._pending = _Pending(0, one, what == "made", answer, told)

    def begin(self, operation: int, now: datetime) -> Effect:
        """That operation brings it into force, after this."""
        assert self._pending is not None
        self._pending = replace(self._pending, operation=operation)
        return effects.SaveGrants(operation, self._encoded(now))

    def done(self, operation: int, request: int | None) -> list[Effect]:
        """That operation is over and well."""
        pending, self._pending = self._of(operation)
        if pending is None:
            return []
        answer: list[Effect] = [effects.Answer(request, pending.answer)] if request is not None else []
        return [*pending.told, *answer]

    def failed(self, operation: int, now: datetime) -> list[Effect]:
        """That operation is over, and what it wanted is not in force."""
        pending, self._pending = self._of(operation)
        if pending is None:
            return []
        others = tuple(one for one in self.lent if one.id != pending.one.id)  # time went on for them meanwhile
        self.lent = others if pending.more else (*others, pending.one)
        return [self._keep(now)]

    def _of(self, operation: int) -> tuple[_Pending | None, _Pending | None]:
        """What that operation wants, and what others do."""
        mine = self._pending is not None and self._pending.operation == operation
        return (self._pending, None) if mine else (None, self._pending)

    def _name(self, now: datetime) -> str:
        taken = {one.id for one in (*self.lent, *self._over)}
        while True:
            self._count += 1
            name = sha256(f"{self._seed} {self._count} {now.timestamp()}".encode()).hexdigest()[:8]
            if f"grant-{name}" not in taken:
                return f"grant-{name}"

    # --- time ---

    def ticked(self, event: events.Ticked) -> list[Effect]:
        """What is over is over; what a clock that was set back would lengthen ends when it would have."""
        if event.uptime is None:  # the last look of a daemon that ends
            return []
        self._clock = (event.now, event.uptime)
        self._ticks += 1
        before = self.lent
        self.lent = tuple(self._bounded(one, event.now, event.uptime) for one in self.lent)
        told = self._end(event.now, event.uptime)
        again = self.lent and self._ticks % AGAIN == 0
        unsaved = self.lent != before or again or SAVING in self._view.troubles
        return told or ([self._keep(event.now)] if unsaved else [])

    @staticmethod
    def _bounded(one: Grant, now: datetime, uptime: float) -> Grant:
        left = one.ends - uptime
        if (one.until - now).total_seconds() <= left + JUMP:
            return one
        return replace(one, until=now + timedelta(seconds=left))

    def _end(self, now: datetime, uptime: float) -> list[Effect]:
        return self._ended("ended", [one for one in self.lent if not one.at(now) or one.ends <= uptime], now)

    def _ended(self, what: str, gone: Iterable[Grant], now: datetime, why: str = "") -> list[Effect]:
        told = [effect for one in gone for effect in self._told(what, one, now, why)]
        if not told:
            return []
        ids = {one.id for one in gone}
        self._over.extend(one for one in gone if what == "ended" and one.rules)
        self.lent = tuple(one for one in self.lent if one.id not in ids)
        return [self._keep(now), *told]

    @staticmethod
    def _told(what: str, one: Grant, now: datetime, why: str = "", by: str = "") -> list[Effect]:
        record = {"v": 1, "time": time_text(now), "event": what, "by": by or None, "why": why or None}
        level = "warning" if what in ("made", "dropped") else "info"
        about = {"GRANT": one.id, "WORKLOAD": one.workload, "OWNER": one.owner, "REASON": one.reason}
        line = effects.Journal(level, sentence(what, one, why, by), f"grant-{what}", about)
        return [line, effects.Account({**record, **as_json(one)})]

    # --- the file ---

    def _keep(self, now: datetime) -> Effect:
        return effects.KeepGrants(self._encoded(now))

    def _encoded(self, now: datetime) -> bytes:
        return grants.encode(grants.Saved(now, self._boot, self.lent))

    def _uptime(self, now: datetime) -> float:
        """As it was at the last look, and what has gone by since: at most a tick."""
        at, uptime = self._clock
        return max(0.0, uptime + (now - at).total_seconds())


def _anew(one: Grant, event: events.Started) -> Grant:
    """After a boot only the wall clock can tell what is left."""
    return replace(one, ends=event.uptime + (one.until - event.now).total_seconds())


def as_json(one: Grant) -> Json:
    """A grant, as `status` has it."""
    port, protocol = _port(one.rules)
    peers = dict.fromkeys(peer_text(far) for rule in one.rules for far in rule.peers)
    return {
        "id": one.id,
        "workload": one.workload,
        "direction": one.rules[0].direction.value if one.rules else None,
        "peer": one.preset or ", ".join(peers) or None,
        "port": port,
        "protocol": protocol,
        "until": time_text(one.until),
        "owner": one.owner,
        "reason": one.reason,
        "what": one.what,
        "preset": one.preset or None,
        "mode": one.mode.value if one.mode else None,
        "made": time_text(one.made),
    }


def _port(rules: tuple[Rule, ...]) -> tuple[int | None, str | None]:
    """The one port and its protocol; None for what is not one."""
    ports = {rule.ports for rule in rules}
    if len(ports) != 1:
        return None, None
    (found,) = ports
    protocols = {ranges.protocol for ranges in found.ranges} | ({"icmp"} if found.icmp else set())
    single = [ranges for ranges in found.ranges if ranges.first == ranges.last]
    one = len(found.ranges) == len(single) == 1 and not found.icmp
    return single[0].first if one else None, protocols.pop() if len(protocols) == 1 else None


def sentence(what: str, one: Grant, why: str = "", by: str = "") -> str:
    """For the journal."""
    words = f"{one.id} {what}: {one.workload}, {one.what}, until {time_text(one.until)}, {one.owner}: {one.reason}"
    return words + (f" (by {by})" if by else "") + (f" ({why})" if why else "")
