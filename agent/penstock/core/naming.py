"""What the engine does about names: takes in what the resolver says, and says what the kernel shall hold for it.

Nothing that the resolver says is believed: it reads hostile packets.  It can make a workload's rules by name open
addresses that nobody looked up, and never more than those rules open by name.

While an operation brings another policy, a name is learned only when both policies have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from heapq import nlargest

from penstock.core import effects, events, name_elements, resolver_wire
from penstock.core.asked import MAX_OBSERVED, Asked
from penstock.core.blocks import Block
from penstock.core.compile import Resolver
from penstock.core.dns_names import is_plain
from penstock.core.effects import Effect
from penstock.core.learned import Learned
from penstock.core.lookup_chains import ANSWERING, LISTENING
from penstock.core.lookups import Lookup, Lookups
from penstock.core.name_elements import Names, Opened, Retract
from penstock.core.name_rules import resolves
from penstock.core.policy import Mode, Policy
from penstock.core.view import InForce, Operation, View

SAVE_EVERY = 30
"""Ticks between two savings of what is remembered of addresses that have run out."""

PATIENCE = timedelta(seconds=10)
"""For which look-ups wait for a resolver that has ended: it is started anew at once."""

QUIET = timedelta(minutes=1)
"""Between two complaints alike."""

MAX_TROUBLES = 64
"""That are told at once."""

FULL = "names-full"
"""The trouble of a workload that has looked up more than is remembered."""

DAMAGED = "names-damaged"
"""The trouble with what was saved of names, until it is saved anew."""

Changes = tuple[tuple[Retract, ...], tuple[Opened, ...]]


class Naming:
    """`names` are the rules by name of what is in force."""

    def __init__(self, view: View, seed: int) -> None:
        self.learned = Learned()
        self.asked = Asked()
        self._lookups = Lookups(seed)
        self.names = Names()
        self._policy = Policy()  # whose they are
        self._loaded = 0  # by that operation
        self._view = view
        self._told: resolver_wire.Configure | None = None  # to the resolver
        self._generation = 0
        self._ticks = 0
        self._missing: datetime | None = None  # the resolver, since then
        self._brought = 0, Names()  # by that operation
        self._complained = "", view.started
        self._saved = b""

    # --- what the kernel shall hold ---

    def listeners(self, policy: Policy) -> tuple[str, ...]:
        """The workloads whose look-ups need a listener."""
        return tuple(name for name, workload in sorted(policy.workloads.items()) if resolves(workload))

    def resolver(self, policy: Policy) -> Resolver | None:
        """Who answers look-ups; None where nobody has rules by name."""
        if not self.listeners(policy):
            return None
        state = self._view.resolver
        return Resolver(state.ports, policy.upstreams or state.upstreams)

    def restore(self, event: events.Started) -> list[Effect]:
        """Take in what the kernel holds of a daemon before this one, and what that had saved."""
        now, told = event.now.timestamp(), list[Effect]()
        if event.names:
            try:
                self.learned.restore(event.names, now)
            except ValueError as e:
                self._view.troubles[DAMAGED] = text = f"what was saved of names is damaged: {e}"
                told.append(effects.Journal("error", text))
        for element in event.opened:
            workload, _ = name_elements.workload_and_group(element.set)
            # Without a name it is no rule's: it goes, and with it the flows that it let in.
            self.learned.found(workload, element.address, element.name, now + element.seconds)
        return told

    def changes(self, operation: Operation, in_force: InForce | None, *, half_way: bool = False) -> Changes:
        """What goes before the operation loads, because its policy does not give it; what comes after that.

        `half_way`: the one before it ended so, and what the kernel holds of names is not known.
        """
        names, now = Names(operation.policy, operation.began), operation.began
        if half_way or operation.kind in ("start", "repair"):
            which = tuple(names.rules)
        else:
            which = name_elements.changed(self.names, names)
        strangers = in_force is not None
        gone = name_elements.retractions(names, which, self.learned, before=self.names, strangers=strangers)
        return gone, tuple(name_elements.all_opened(names, which, self.learned, now))

    def renewal(self, now: datetime) -> list[Effect]:
        """Somebody changed our table, and what was learned cannot be seen in its shape: put it right."""
        if not self.names.rules:
            return []
        every = tuple(self.names.rules)
        gone = name_elements.retractions(self.names, every, self.learned, before=self.names, strangers=True)
        opened = tuple(name_elements.all_opened(self.names, every, self.learned, now))
        return [effects.Renew(gone, opened, self._loaded)]

    def in_force(self, in_force: InForce, operation: int, now: datetime) -> list[Effect]:
        """What that operation loaded is in force: forget what no rule stands for any more, tell the resolver."""
        self.names, self._policy, self._loaded = Names(in_force.policy, now), in_force.policy, operation
        for workload in self.learned.workloads():
            self._forget(workload, now.timestamp())
        self.asked.keep(self._policy.workloads)
        self._forget_troubles(in_force)
        return [*self.configure(in_force), *self._say_there(in_force, now)]

    def _forget(self, workload: str, now: float) -> None:
        """Forget names without a rule; packets to their addresses are told of as of names that were asked so."""
        has_rule = cache(lambda name: bool(self.names.of(workload, name)))
        for when, address, name in sorted(nlargest(MAX_OBSERVED, self.learned.lost(workload, has_rule))):
            asked, other = min(when, now), self.asked.about(workload, address)
            if other is None or other.when <= asked:
                self.asked.observed(workload, name, [address], asked)
        if workload in self.names.rules:
            self.learned.forget(workload, has_rule)
        else:
            self.learned.drop(workload)

    def _forget_troubles(self, in_force: InForce) -> None:
        """Of workloads that look nothing up any more: nobody would say that they are over."""
        by_name, state = in_force.ruleset.by_name, self._view.resolver
        state.troubles = {key: text for key, text in state.troubles.items() if key[1] in ("", *by_name)}
        for trouble in list(self._view.troubles):
            word, _, workload = trouble.partition(" ")
            if word == FULL and workload not in by_name:
                del self._view.troubles[trouble]
        if not by_name:
            self._view.troubles.pop(effects.SayThere.__name__, None)

    def configure(self, in_force: InForce | None) -> list[Effect]:
        """Tell the resolver what is in force, unless it knows; and when nobody needs it any more."""
        if in_force is None or not (in_force.ruleset.by_name or (self._told and self._told.workloads)):
            return []
        state = self._view.resolver
        told = resolver_wire.Configure(
            generation=self._generation,
            upstreams=tuple((u.address, u.port) for u in in_force.policy.upstreams or state.upstreams),
            search=state.search,
            workloads=tuple(self._of_workload(in_force.policy, name) for name in in_force.ruleset.by_name),
        )
        if told == self._told:
            return []
        self._generation += 1
        self._told = resolver_wire.renumbered(told, self._generation)
        return [effects.Configure(self._told)]

    def _of_workload(self, policy: Policy, name: str) -> resolver_wire.Names:
        workload = policy.workloads[name]
        rules = tuple(
            resolver_wire.NameRuleText(
                rule.pattern,
                rule.group.private,
                rule.excepted,
                rule.group.expires.timestamp() if rule.group.expires else None,
            )
            for rule in self.names.rules.get(name, ())
        )
        return resolver_wire.Names(name, workload.mode.value, rules)

    # --- what the resolver says ---

    def take(
        self, event: events.FromResolver, in_force: InForce | None, operation: Operation | None
    ) -> list[Effect]:
        """Learn, and let the resolver answer; or refuse to.  Write down what it refused."""
        opened: list[Opened] = []
        then: list[Opened] | None = [] if operation else None
        good: list[int] = []
        bad: list[int] = []
        told: list[int] = []
        blocks: list[Block] = []
        policy = in_force.policy if in_force else Policy()
        coming = self._coming(operation, event.now)
        loaded = max(self._loaded, operation.id if operation else 0)
        for message in event.messages:
            match message:
                case resolver_wire.Learn():
                    found = self._learn(message, in_force, coming, event.now)
                    (bad if found is None else good).append(message.id)
                    opened += found or ()
                    if found and then is not None:
                        then += self._opened(coming or self.names, message, event.now)
                case resolver_wire.Refused():
                    told.append(message.id)
                    blocks += self._refused(message, policy, event)
                case resolver_wire.Observed():
                    blocks += self._observed(message, policy, event.now)
                case resolver_wire.Trouble():
                    self._trouble(message)
        done: list[Effect] = [effects.Record(tuple(blocks))] if blocks else []
        done += [effects.Settle((*told, *bad), False)] if told or bad else []
        if good:
            learn = effects.Learn(tuple(good), tuple(opened), loaded, None if then is None else tuple(then))
            done += [learn, effects.Settle(tuple(good), True)]
        return done

    def _refused(self, message: resolver_wire.Refused, policy: Policy, event: events.FromResolver) -> list[Block]:
        if message.workload not in policy.workloads:
            return []
        self.asked.refused(message.workload, message.name, message.reason, event.now.timestamp())
        return self._lookups.add(Lookup.of(message), policy, event.now, event.askers.get(message.id))

    def _observed(self, message: resolver_wire.Observed, policy: Policy, now: datetime) -> list[Block]:
        if message.workload not in policy.workloads:
            return []
        found = [address.packed for address in message.addresses]
        self.asked.observed(message.workload, message.name, found, now.timestamp())
        return self._lookups.add(Lookup.of(message), policy, now)

    def _trouble(self, message: resolver_wire.Trouble) -> None:
        troubles = self._view.resolver.troubles
        if message.code.startswith("ok:"):
            troubles.pop((message.code.removeprefix("ok:"), message.workload), None)
        elif len(troubles) < MAX_TROUBLES:
            troubles[message.code, message.workload] = message.text

    def _coming(self, operation: Operation | None, now: datetime) -> Names | None:
        """The rules by name of the policy that is being brought into force, if it is another one."""
        if operation is None or operation.policy is self._policy:
            return None
        if self._brought[0] != operation.id:
            self._brought = operation.id, Names(operation.policy, now)
        return self._brought[1]

    def _learn(
        self, message: resolver_wire.Learn, in_force: InForce | None, coming: Names | None, now: datetime
    ) -> list[Opened] | None:
        """The elements that make the answer good; None when it must not be given."""
        workload, name = message.workload, message.name
        if in_force is None or message.generation != self._generation:
            return None
        policy = in_force.policy.workloads.get(workload)
        if policy is None or policy.mode is Mode.LOCK or not is_plain(name):
            return None
        found, moment = [(address.packed, ttl) for address, ttl in message.addresses], now.timestamp()
        rules = [names.of(workload, name) for names in (self.names, coming) if names is not None]
        if not found or not all(name_elements.admitting(of, a) for of in rules for a, _ in message.addresses):
            return None
        new = {address for address, _ in found if self.learned.is_new(workload, address, moment)}
        if not self.learned.learn(workload, name, found, moment):
            self._view.troubles[f"{FULL} {workload}"] = f"{workload} has looked up more than is remembered"
            return None
        self._view.troubles.pop(f"{FULL} {workload}", None)
        return [replace(one, new=one.address in new) for one in self._opened(self.names, message, now)]

    def _opened(self, names: Names, message: resolver_wire.Learn, now: datetime) -> Iterator[Opened]:
        """The elements by these rules for an answer that is learned."""
        workload, name, moment = message.workload, message.name, now.timestamp()
        rules = names.of(workload, name)
        for address, _ in message.addresses:
            admitting = name_elements.admitting(rules, address)
            end = self.learned.end_of(workload, name, address.packed)
            yield from name_elements.opened(admitting, workload, name, address.packed, end, moment)

    def resolver_changed(self, event: events.ResolverChanged, in_force: InForce | None) -> list[Effect]:
        """It ended: until it is back nobody gets an answer.  Or it is new, and knows nothing."""
        state = self._view.resolver
        news = (state.up, state.error) != (event.up, event.error)
        state.up, state.error = event.up, event.error
        self._missing = None if event.up else self._missing or event.now
        self._told = None
        state.troubles.clear()
        said: list[Effect] = [effects.Journal("error", event.error)] if news and event.error else []
        return [*said, *([*self.configure(in_force), *self._say_there(in_force, event.now)] if event.up else [])]

    def unlearned(self, ids: Iterable[int], error: str, now: datetime) -> list[Effect]:
        """The kernel did not take the addresses: no answer.  Why is told once a while: many may ask."""
        settled = effects.Settle(tuple(ids), False)
        before, when = self._complained
        if before == error and timedelta(0) <= now - when < QUIET:
            return [settled]
        self._complained = error, now
        return [settled, effects.Journal("error", error)]

    # --- time ---

    def ticked(self, now: datetime, in_force: InForce | None) -> list[Effect]:
        """Forget what is over; save what the next daemon cannot read from the kernel."""
        self.learned.expire(now.timestamp())
        self._ticks += 1
        blocks = self._lookups.flush(now.timestamp())
        told: list[Effect] = [effects.Record(tuple(blocks))] if blocks else []
        told += self._say_there(in_force, now)
        return [*told, *(self.save() if self._ticks % SAVE_EVERY == 0 else [])]

    def _say_there(self, in_force: InForce | None, now: datetime) -> list[Effect]:
        """Where nothing is denied yet, look-ups must not fail because we do; elsewhere they fail at once."""
        missing = None if self._view.resolver.up else self._missing
        expected = missing is None or now - missing < PATIENCE
        there = [ANSWERING] if self._view.resolver.up else []
        there += [LISTENING] if expected else []
        declared = in_force.ruleset.set_names if in_force else ()
        said = tuple(name for name in there if name in declared)
        return [effects.SayThere(said)] if said else []

    def stopping(self, now: datetime, in_force: InForce | None) -> list[Effect]:
        """Give out what is left.  From now on nobody answers."""
        blocks = self._lookups.close(now.timestamp())
        declared = in_force.ruleset.set_names if in_force else ()
        gone = tuple(name for name in (LISTENING, ANSWERING) if name in declared)
        left: list[Effect] = [effects.SayThere((), gone)] if gone else []
        return [*left, *([effects.Record(tuple(blocks))] if blocks else []), *self.save()]

    def save(self) -> list[Effect]:
        """Save it, if it is not what was saved last."""
        data, damaged = self.learned.save(), self._view.troubles.pop(DAMAGED, None)
        if data == self._saved or not (self._saved or self.names.rules or damaged):
            return []
        self._saved = data
        return [effects.SaveNames(data)]
