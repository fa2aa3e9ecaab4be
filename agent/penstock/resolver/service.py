"""The way of a question: decided, asked upstream, its addresses learned by the daemon, and only then answered."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from penstock.core import dns_codes as code
from penstock.core import resolver_wire as wire
from penstock.core.dns import NotTaken, Query, parse_query
from penstock.core.dns_answers import Answer, follow
from penstock.core.dns_names import Malformed, OverBound
from penstock.core.dns_replies import build_reply, rebuild, reply
from penstock.core.policy import Address
from penstock.core.resolver_rules import Forward, Refusal
from penstock.resolver.clients import Caller
from penstock.resolver.link import Link
from penstock.resolver.loop import Deadlines, Loop
from penstock.resolver.refusals import Refusals
from penstock.resolver.served import Lookup, Served
from penstock.resolver.settled import Settled
from penstock.resolver.troubles import Troubles
from penstock.resolver.upstream import DONE, Question, Upstreams

MAX_WAITING, MAX_OF_ALL = 512, 4096
"""Clients of a workload, and of all, that wait for an answer."""

LEARNING = 3.0
"""Seconds that the daemon may take."""

LIFE = 12.0
"""Seconds after which a look-up ends whatever it waits for: nothing shall be held for good by a fault of ours."""

MAX_OBSERVED = 256
"""Names of a workload and second that are told, while it is only observed; what is more has no name."""


class Service:
    """All workloads.  `configure` and `settled` are what the daemon says."""

    def __init__(self, loop: Loop, link: Link, upstreams: Upstreams, troubles: Troubles) -> None:
        self._loop = loop
        self._link = link
        self._upstreams = upstreams
        self._troubles = troubles
        self._numbers = itertools.count(1)
        self._generation = 0
        self._settled = Settled()
        self._learning: dict[int, Lookup] = {}
        self._waits: Deadlines[int] = loop.deadlines(LEARNING, self._unlearned)
        self._lives: Deadlines[Lookup] = loop.deadlines(LIFE, self._outlived)
        self._waiting = 0  # clients, for look-ups
        self._refusals = Refusals(loop, link, self._numbers.__next__, self._has_room)
        self.served: dict[str, Served] = {}

    # --- what the daemon says ---

    def configure(self, message: wire.Configure) -> None:
        """What is in force; workloads that it does not name may ask nothing."""
        self._generation = message.generation
        self._upstreams.configure(message.upstreams)
        named = {names.workload: names for names in message.workloads}
        for workload, names in named.items():
            self.of(workload).configure(names, message.search)
        for workload in self.served.keys() - named.keys():
            self.served[workload].questions = None

    def abandoned(self) -> None:
        """Nobody learns addresses any more: whatever is asked fails, and so does what is under way."""
        for served in self.served.values():
            served.questions = None
        for lookup in [lookup for served in self.served.values() for lookup in served.pending.values()]:
            self._learning.pop(lookup.id, None)
            self._give_up(lookup, code.EDE_NOT_READY, "penstock: the daemon has ended")

    def of(self, workload: str) -> Served:
        """The workload, known from now on."""
        return self.served.setdefault(workload, Served(workload))

    def settled(self, ids: Sequence[int], ok: bool) -> None:
        """The daemon has learned these, or will not; or it knows who it was that was refused."""
        for id in ids:
            lookup = self._learning.pop(id, None)
            if lookup is None:
                self._refusals.settled(id)
                continue
            self._waits.discard(id)
            if ok:
                self._keep(lookup)
                self._reply(lookup)
            elif lookup.generation != self._generation:  # it was for what is no longer in force
                self._use(lookup)
            else:
                self._not_learned(lookup)

    # --- questions ---

    def take(self, served: Served, caller: Caller, data: bytes) -> bool:
        """A message from a client of a workload.  False when it deserves no answer."""
        try:
            query = parse_query(data)
        except NotTaken as e:
            caller.way.reply(caller.address, build_reply(e.query, e.rcode))
            return True
        except Malformed:
            return False
        decision = self._decide(served, query.name, query.plain, query.qtype)
        if decision is None:
            self._fail([(query, caller)], code.EDE_NOT_READY, "penstock: not ready")
        elif isinstance(decision, Refusal):
            self._refuse(served, caller, query, decision)
        elif not self._has_room(served):
            text = "more look-ups at once than are answered"
            self._troubles.happened(self._loop.now, "in-flight", served.workload, text)
            self._fail([(query, caller)], code.EDE_NOT_READY, "penstock: too many look-ups at once")
        else:
            self._forward(served, caller, query, decision)
        return True

    def _decide(self, served: Served, name: str, plain: bool, qtype: int) -> Forward | Refusal | None:
        if served.questions is None:
            return None
        return served.questions.decide(name, plain, qtype, time.time(), self._loop.now)

    def _refuse(self, served: Served, caller: Caller, query: Query, refusal: Refusal) -> None:
        if refusal.reason == "rate":
            text = "more new names under one pattern than may be asked"
            self._troubles.happened(self._loop.now, "rate", served.workload, text)
        self._refusals.refuse(served, caller, query, refusal)

    def _has_room(self, served: Served) -> bool:
        return served.waiting < MAX_WAITING and self._waiting + self._refusals.waiting < MAX_OF_ALL

    def _forward(self, served: Served, caller: Caller, query: Query, rules: Forward) -> None:
        """Ask upstream, unless the same is asked already: many alike at once would make it easy to guess one."""
        # What the upstream finds forged opens nothing: who asks for addresses cannot have it not look.
        unchecked = query.checking_disabled and query.qtype not in code.ADDRESSES
        question = Question(query.name, query.qtype, query.recursion, unchecked, query.authentic, query.dnssec)
        served.waiting += 1
        self._waiting += 1
        lookup = served.pending.get(question)
        if lookup is not None:
            lookup.waiters.append((query, caller))
            return
        lookup = Lookup(served, question, rules, self._generation)
        lookup.waiters.append((query, caller))
        served.pending[question] = lookup
        self._lives.add(lookup, self._loop.now)
        self._upstreams.ask(question, lambda answer: self._answered(lookup, answer), served.share)

    # --- answers ---

    def _answered(self, lookup: Lookup, answer: Answer | None) -> None:
        if lookup.served.pending.get(lookup.question) is not lookup:  # it has ended
            return
        if answer is None:
            self._give_up(lookup, code.EDE_NO_REACHABLE_AUTHORITY, "penstock: no upstream answers")
            return
        if answer.rcode not in DONE:
            self._give_up(lookup, code.EDE_NETWORK_ERROR, "penstock: the upstream failed")
            return
        try:
            lookup.answer, lookup.chain = answer, follow(answer, lookup.question.name, lookup.question.qtype)
        except Malformed as e:
            if isinstance(e, OverBound):
                self._bound(lookup, "chain", "a chain of names that is too long")
            self._give_up(lookup, code.EDE_INVALID_DATA, "penstock: an answer that makes no sense")
            return
        if lookup.chain.cut:
            self._bound(lookup, "addresses", "a name with more addresses than are learned")
        self._use(lookup)

    def _bound(self, lookup: Lookup, what: str, text: str) -> None:
        self._troubles.happened(self._loop.now, what, lookup.served.workload, text)

    def _use(self, lookup: Lookup) -> None:
        """Have the daemon learn what is in the answer, if somebody must."""
        if lookup.generation != self._generation and not self._decide_again(lookup):
            return
        rules, chain = lookup.rules, lookup.chain
        if chain is None:
            return
        key = lookup.served.workload, lookup.question.name, lookup.question.qtype
        if not rules.rules:
            self._observe(lookup, chain.addresses)
        if not rules.rules or not chain.packed:
            self._reply(lookup)
            return
        if self._settled.has(key, self._generation, chain.packed, self._loop.now):
            lookup.whole = True
            self._reply(lookup)
            return
        addresses = chain.addresses
        lookup.admitted = tuple([pair for pair in addresses if rules.admits(pair[0])])
        lookup.whole = len(lookup.admitted) == len(addresses)
        if not lookup.whole and self._only_observed(lookup):
            self._observe(lookup, [pair for pair in addresses if pair not in lookup.admitted])
        if lookup.admitted:
            self._learn(lookup)
        elif self._only_observed(lookup):
            self._reply(lookup)
        else:
            self._end(lookup)
            refusal = rules.refusal(address for address, _ in addresses)
            for query, caller in lookup.waiters:
                self._refusals.refuse(lookup.served, caller, query, refusal)

    def _decide_again(self, lookup: Lookup) -> bool:
        """Another configuration is in force.  False when it refuses the question, which is answered then."""
        name, qtype = lookup.question.name, lookup.question.qtype
        decision = self._decide(lookup.served, name, True, qtype)
        if isinstance(decision, Forward):
            lookup.rules, lookup.generation = decision, self._generation
            return True
        self._end(lookup)
        if decision is None:
            self._fail(lookup.waiters, code.EDE_NOT_READY, "penstock: not ready")
        else:
            for query, caller in lookup.waiters:
                self._refuse(lookup.served, caller, query, decision)
        return False

    def _only_observed(self, lookup: Lookup) -> bool:
        questions = lookup.served.questions
        return questions is not None and questions.mode == "observe"

    def _observe(self, lookup: Lookup, addresses: Sequence[tuple[Address, int]]) -> None:
        served, name, times = lookup.served, lookup.question.name, len(lookup.waiters)
        key = name, lookup.question.qtype
        if key in served.observed:
            served.observed[key] += times
        elif len(served.observed) < MAX_OBSERVED and not self._link.congested:
            served.observed[key] = 0
            found = tuple(address for address, _ in addresses)
            self._link.say(wire.Observed(served.workload, name, found, times))
        else:
            self._refusals.overflow(served, lookup.waiters[0][1], times)

    # --- learning ---

    def _learn(self, lookup: Lookup) -> None:
        if self._link.congested:
            self._not_learned(lookup)
            return
        lookup.id = next(self._numbers)
        self._learning[lookup.id] = lookup
        self._waits.add(lookup.id, self._loop.now)
        workload, name = lookup.served.workload, lookup.question.name
        self._link.say(wire.Learn(lookup.id, self._generation, workload, name, lookup.admitted))

    def _keep(self, lookup: Lookup) -> None:
        """Remember that it is learned, unless what its rules take may change by itself."""
        chain = lookup.chain
        if chain is None or not lookup.whole:
            return
        if all(rule.said.expires is None for rule in lookup.rules.rules):
            key = lookup.served.workload, lookup.question.name, lookup.question.qtype
            self._settled.remember(key, lookup.generation, chain.packed, self._loop.now)

    def _unlearned(self, id: int) -> None:
        """The daemon took too long."""
        lookup = self._learning.pop(id, None)
        if lookup is not None:
            self._not_learned(lookup)

    def _not_learned(self, lookup: Lookup) -> None:
        if self._only_observed(lookup):
            self._reply(lookup)
        else:
            self._give_up(lookup, code.EDE_NOT_READY, "penstock: the addresses could not be opened")

    # --- the end ---

    def _reply(self, lookup: Lookup) -> None:
        """Give everybody the answer, without addresses that no rule takes."""
        self._end(lookup)
        answer, chain = lookup.answer, lookup.chain
        if answer is None or chain is None:
            return
        admits = None
        if chain.packed and not lookup.whole and not self._only_observed(lookup):
            admits = frozenset(address for address, _ in lookup.admitted).__contains__
        content = rebuild(lookup.waiters[0][0], answer, chain, admits)
        for query, caller in lookup.waiters:
            caller.way.reply(caller.address, reply(query, content, limit=caller.room(query.size)))

    def _give_up(self, lookup: Lookup, ede: int, text: str) -> None:
        self._end(lookup)
        self._fail(lookup.waiters, ede, text)

    def _fail(self, waiters: Sequence[tuple[Query, Caller]], ede: int, text: str) -> None:
        for query, caller in waiters:
            limit = caller.room(query.size)
            reply = build_reply(query, code.SERVFAIL, ede=ede, ede_text=text, limit=limit)
            caller.way.reply(caller.address, reply)

    def _end(self, lookup: Lookup) -> None:
        """It waits for nothing any more."""
        served = lookup.served
        if served.pending.get(lookup.question) is lookup:
            del served.pending[lookup.question]
            self._lives.discard(lookup)
            served.waiting -= len(lookup.waiters)
            self._waiting -= len(lookup.waiters)

    def _outlived(self, lookup: Lookup) -> None:
        self._learning.pop(lookup.id, None)
        self._give_up(lookup, code.EDE_OTHER, "penstock: it took too long")

    # --- seconds ---

    def tick(self) -> None:
        """A second is over: tell what there was more, once the daemon hears us."""
        if self._link.congested:
            return
        for served in self.served.values():
            self._refusals.flush(served)
            for (name, _), times in served.observed.items():
                if times:
                    self._link.say(wire.Observed(served.workload, name, (), min(times, wire.MAX_COUNT)))
            served.observed.clear()
