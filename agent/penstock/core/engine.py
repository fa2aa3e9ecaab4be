"""All decisions of the daemon: an event in, a list of effects out.

The engine is the only mutable state of the program.  It has no clock, does no I/O and needs no kernel: what it
knows came in events, what it wants goes out as effects.

At most one operation is under way (`operations`).  Killed at any point, the kernel holds the old rules or the new
ones, and the saved state names one of the two.

Nothing is put behind an effect that guards in the same list but what must not happen when that fails.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from penstock.core import effects, events, results, state, status
from penstock.core.books import Books
from penstock.core.commands import Commands
from penstock.core.effects import Effect
from penstock.core.events import Event
from penstock.core.explain import explain
from penstock.core.history import NotUnderstood, choose, understood
from penstock.core.journal import BlockNews, FindingNews
from penstock.core.keeper import Keeper, missing, summary, unlike
from penstock.core.labels import assign
from penstock.core.lending import Lending
from penstock.core.looks import look, only_process, take_in
from penstock.core.measuring import Measuring
from penstock.core.naming import Naming
from penstock.core.operations import FLOOR, STATE, UNSAVED, Operations
from penstock.core.policy import Policy
from penstock.core.prover import Prover
from penstock.core.slices import SLICE
from penstock.core.surroundings import unless_confirmed
from penstock.core.view import InForce, View

AROUND = 15
"""So many ticks pass between two looks at all processes of the host."""


class Engine:
    """See the module.  `seed`: 32 random bits; `saved`: the books of the last run."""

    def __init__(self, now: datetime, seed: int, saved: bytes | None = None) -> None:
        self.view = View(started=now)
        self.books = Books(seed, saved)
        self._keeper = Keeper(self.view)
        self._prover = Prover(self.view)
        self._naming = Naming(self.view, ~seed & 0xFFFFFFFF)
        self._lending = Lending(self.view, seed)
        self._operations = Operations(self.view, self._keeper, self._prover, self._naming, self._lending)
        self._commands = Commands(self._naming.learned, self._naming.asked)
        self._waiting: deque[events.Command] = deque()  # that change the policy, in the order in which they came
        self._reading: events.Command | None = None  # files are read for it
        self._measuring = Measuring(self.view, self._naming.learned)
        self._block_news, self._finding_news = BlockNews(), FindingNews()
        self._ticks = 0
        self._handlers: dict[type, Callable[[Any], list[Effect]]] = {
            events.Started: self._started,
            events.ConfigRead: self._config_read,
            events.HistoryRead: self._history_read,
            events.Compiled: self._operations.compiled,
            events.Listening: self._operations.listening,
            events.FromResolver: self._from_resolver,
            events.ResolverChanged: lambda e: self._naming.resolver_changed(e, self.in_force),
            events.UpstreamsRead: self._operations.upstreams_read,
            events.ReadBack: self._read_back,
            events.Saved: self._operations.saved,
            events.Proven: lambda e: self._prover.succeeded(),
            events.Failed: self._failed,
            events.Worked: self._worked,
            events.Examined: self._examined,
            events.UnitsSeen: self._units_seen,
            events.RulesetChanged: self._ruleset_changed,
            events.PacketsDenied: self._packets_denied,
            events.Command: self._command,
            events.Held: lambda e: [effects.Answer(e.request, {"holds": e.holds, "learned": e.learned})],
            events.Hits: self._hits,
            events.Ticked: self._ticked,
            events.Leaving: self._leaving,
            events.Stopping: self._stopping,
        }

    @property
    def busy(self) -> bool:
        """Whether the kernel is being changed, or holds what nobody has confirmed."""
        return self._operations.current is not None or self._operations.trial is not None

    @property
    def in_force(self) -> InForce | None:
        """What the kernel held when it was last read back."""
        return self._operations.in_force

    def handle(self, event: Event) -> list[Effect]:
        """Take in what happened; return what shall be done about it."""
        todo = self._handlers[type(event)](event)
        last = isinstance(event, events.Stopping)
        todo = [*self._block_news.of(todo, event.now.timestamp(), last=last), *todo]
        if self._operations.current is not None or any(not isinstance(e, effects.Telling) for e in todo):
            # Behind anything else it would be lost with it; the event that comes of that brings us here again.
            return todo
        check = self._operations.check() if self._keeper.must_look else []
        return [*todo, *(check or self._operations.enrol(event.now) or self._next(event.now))]

    # --- start, apply, rollback ---

    def _started(self, event: events.Started) -> list[Effect]:
        self._operations.depth, self._operations.slice = event.depth, event.slice
        self.view.units, self.view.floor = event.units, event.floor
        told = [*self._naming.restore(event), *self._lending.restore(event)]
        return [*told, *self._begin(event)]

    def _begin(self, event: events.Started) -> list[Effect]:
        if event.snapshot.exists and not event.snapshot.ours:
            return [effects.Quit(1, "a table `inet penstock` is there that is not ours; remove it first")]
        if event.state is None and not event.history:
            return [effects.ReadConfig(None)]
        complaints: list[ValueError] = []
        for number, data in enumerate((event.state, *event.history)):
            try:
                applied, policy = understood(data)
            except ValueError as e:
                complaints.append(e)
            else:
                what = f"the policy before it, {policy.hash}, is used instead"
                return [*self._fell_back(complaints, what), *self._resume(applied, policy, event.now, number)]
        # A policy of another version is no reason to take the files as they lie there into force.
        for complaint in complaints:
            if isinstance(complaint, NotUnderstood):
                return [effects.Quit(1, str(complaint))]
        return [*self._fell_back(complaints, "the configuration is used instead"), effects.ReadConfig(None)]

    def _fell_back(self, complaints: list[ValueError], what: str) -> list[Effect]:
        """The saved state is of no use, and `what` is."""
        if not complaints:
            return []
        text = f"{complaints[0]}: {what}"
        self.view.troubles[STATE] = text
        return [effects.Journal("error", text)]

    def _resume(self, applied: state.Applied, policy: Policy, now: datetime, number: int) -> list[Effect]:
        labels = assign(policy.workloads, applied.labels)
        saved = number == 0 and labels == applied.labels
        return self._operations.begin("start", policy, replace(applied, labels=labels), now, saved=saved)

    def _config_read(self, event: events.ConfigRead) -> list[Effect]:
        request, parsed = event.request, event.parsed
        if request is not None and not event.confirm:
            parsed = unless_confirmed(parsed, event.around, self.in_force.policy if self.in_force else None)
        policy, problems = parsed.policy, parsed.problems
        asked, self._reading = self._reading, None
        if self._operations.current is not None and asked is not None:
            self._waiting.appendleft(asked)  # a repair came first; the files are read again after it
            return []
        if policy is None:
            return results.not_applied(request, self.in_force, problems)
        in_force = self.in_force
        good = self.view.agrees and UNSAVED not in self.view.troubles
        same = bool(good and in_force and in_force.policy.hash == policy.hash)
        if same and in_force and (request is None or in_force.applied.presets == event.presets):
            if request is None:
                return []
            self._operations.chosen()
            return [effects.Answer(request, results.applied(in_force, problems, False, 0.0))]
        before = in_force.applied.labels if in_force else {}
        applied = state.Applied(
            policy.hash, event.now.timestamp(), event.files, event.presets, assign(policy.workloads, before)
        )
        kind = "start" if request is None else "apply"
        confirm = 0 if same else event.confirm  # what can be lent needs no trial
        return self._operations.begin(
            kind, policy, applied, event.now, request=request, problems=problems, confirm=confirm, same=same
        )

    def _history_read(self, event: events.HistoryRead) -> list[Effect]:
        asked, self._reading = self._reading, None
        if self._operations.current is not None and asked is not None:
            self._waiting.appendleft(asked)
            return []
        in_force = self.in_force
        try:
            applied, policy = choose(event.saved, event.to, in_force.policy.hash if in_force else "")
        except ValueError as e:
            return [effects.Refuse(event.request, str(e), "see: penstock rollback --list")]
        if in_force and policy.hash == in_force.policy.hash:
            return [effects.Answer(event.request, results.rolled_back(in_force, changed=False, seconds=0.0))]
        labels = assign(policy.workloads, in_force.applied.labels if in_force else applied.labels)
        applied = replace(applied, at=event.now.timestamp(), labels=labels)
        return self._operations.begin("rollback", policy, applied, event.now, request=event.request)

    def _next(self, now: datetime) -> list[Effect]:
        """The next one who waits to change the policy gets his turn, and all those whose answer is known."""
        todo: list[Effect] = []
        while self._waiting and self.in_force is not None:
            if self._reading or self._operations.current is not None:
                break
            todo += self._turn(self._waiting.popleft(), now)
        return todo

    def _turn(self, command: events.Command, now: datetime) -> list[Effect]:
        request, arguments = command.request, command.message.arguments
        match command.message.command:
            case "grant" | "mode" | "revoke":
                return self._operations.lend(command, now)
            case "confirm":
                return self._operations.confirm(request, now)
            case "rollback" if self._operations.trial is not None and not arguments["to"]:
                return self._operations.revert(now, request)
            case _ if self._operations.trial is not None:
                text = "a policy that was applied before waits to be confirmed"
                return [effects.Refuse(request, text, "penstock confirm, or penstock rollback")]
            case "rollback":
                self._reading = command
                return [effects.ReadHistory(request, arguments["to"])]
            case _:
                self._reading = command
                return [effects.ReadConfig(request, arguments["confirm"])]

    # --- the kernel, checked and repaired ---

    def _read_back(self, event: events.ReadBack) -> list[Effect]:
        return self._operations.read_back(event) if event.operation is not None else self._checked(event)

    def _checked(self, event: events.ReadBack) -> list[Effect]:
        in_force = self.in_force
        current = self._keeper.answered(in_force)
        if in_force is None or self._operations.current is not None:
            return []
        if not current:
            return self._operations.check()
        wrong = unlike(in_force, event, self._operations.depth) or self._operations.half_way
        if wrong:
            return self._operations.repair(event.now, summary(wrong))
        self._operations.in_force = replace(in_force, snapshot=event.snapshot, cgroups=event.cgroups)
        touched = self._keeper.suspects(event.snapshot.generation)
        if self._keeper.agree(event.now, event.snapshot.generation):
            return self._operations.check()
        return self._naming.renewal(event.now) if touched else []

    def _ruleset_changed(self, event: events.RulesetChanged) -> list[Effect]:
        self._keeper.announced(event)
        return []

    def _failed(self, event: events.Failed) -> list[Effect]:
        operation = self._operations.current
        if event.effect == effects.Prove.__name__:
            return self._prover.failed(event.error)
        if operation is not None and event.operation == operation.id:
            if event.effect == UNSAVED or operation.kind == "confirm":
                return self._operations.unsaved(event.error)
            return self._operations.give_up(event.now, event.error, event.effect)
        if event.ids:
            return self._naming.unlearned(event.ids, event.error, event.now)
        if event.effect == effects.Renew.__name__:
            return self._operations.not_renewed(event.now, event.error)
        if event.effect in (effects.ReadConfig.__name__, effects.ReadHistory.__name__):
            self._reading = None
            if event.request is None:
                return [effects.Quit(1, event.error)]
        if event.effect == effects.ReadKernel.__name__:
            self._keeper.answered(None)
        if event.effect in (effects.ReadKernel.__name__, effects.Examine.__name__):
            self._keeper.unknown(event.error)
        if event.request is not None:
            self._commands.forget(event.request)
            return [effects.Refuse(event.request, event.error)]
        new = self.view.troubles.get(event.effect) != event.error
        self.view.troubles[event.effect] = event.error
        return [effects.Journal("error", event.error, "failed")] if new else []

    def _worked(self, event: events.Worked) -> list[Effect]:
        self.view.troubles.pop(event.effect, None)
        return []

    # --- the live state ---

    def _ticked(self, event: events.Ticked) -> list[Effect]:
        blocks = self.books.flush(event.now.timestamp())
        self._ticks += 1
        self._measuring.ticked(event.elapsed)
        self._operations.may_try_again()
        self._keeper.ticked()
        lent = self._lending.ticked(event)
        around = self._ticks % AROUND == 1
        todo = [look(self.view, self.in_force, None, around=around), effects.ScanUnits()]
        if FLOOR in self.view.troubles:
            todo.insert(0, effects.KeepFloor(self._operations.floor))
        todo = self._operations.ticked(event) or self._operations.settle(event.now) or todo
        trial = self._operations.trial
        if trial is not None:
            trial.left -= event.elapsed
            if trial.left <= 0 and self._operations.current is None:
                todo = self._operations.revert(event.now)
        return [*self._record(blocks), *lent, *self._naming.ticked(event.now, self.in_force), *todo]

    def _examined(self, event: events.Examined) -> list[Effect]:
        told = take_in(self.view, event)
        result: list[Effect] = []
        todo: list[Effect] = []
        if self.in_force and self._operations.current is None:
            grown, blocks = self.books.counters(event.counters, self.in_force.policy, event.now.timestamp())
            unsaved = grown or effects.SaveBooks.__name__ in self.view.troubles
            result += [*self._record(blocks), *([effects.SaveBooks(self.books.save())] if unsaved else [])]
            todo = self._look(event)
        if event.request is not None:
            lent, trial = self._lending.as_json(event.now), self._operations.trial
            now = status.build(event, self.view, self.in_force, self.books, trial, lent)
            result.append(effects.Answer(event.request, now))
        return [*told, *result, *(todo or self._measuring.due(self.in_force))]

    def _hits(self, event: events.Hits) -> list[Effect]:
        """Somebody asked for them, or it is time to measure, and to see what is weak."""
        if event.request is not None:
            return self._commands.hits(event, self.in_force)
        lent, trial = self._lending.as_json(event.now), self._operations.trial
        now = status.seen(event.now, None, self.view, self.in_force, self.books, trial, lent)
        return [*self._finding_news.of(now["findings"]), *self._measuring.measured(event, self.in_force, now)]

    def _look(self, event: events.Examined) -> list[Effect]:
        """What the self-check found: is all as it was read back?"""
        assert self.in_force is not None
        in_force = self.in_force
        if event.processes.keys() != in_force.policy.workloads.keys():
            return []  # a look from before the last operation
        if todo := self._slices(event.cgroups, event.now):
            return todo
        if any(end <= event.now for s in in_force.ruleset.sets for end in s.expires.values()):
            return self._operations.again("expiry", event.now)
        if not self._keeper.holds_still(event.now, event.generation) or self._operations.half_way:
            return self._operations.check()
        return self._prover.prove(again=False)

    def _slices(self, found: Any, now: datetime) -> list[Effect]:
        """Mend it when a slice is not the one that was bound."""
        assert self.in_force is not None
        ours = {path: id for path, id in self.in_force.cgroups.items() if path.startswith(SLICE)}
        seen = {path: found.get(path) for path in ours}
        if seen == ours and not missing(self.in_force.policy, found):
            return []
        return self._operations.repair(now, "a slice was removed or made again")

    def _units_seen(self, event: events.UnitsSeen) -> list[Effect]:
        if event.units != self.view.units:
            self.view.units = event.units
        if self.in_force is None or self._operations.current is not None:
            return []
        return self._slices(event.slices, event.now)

    def _packets_denied(self, event: events.PacketsDenied) -> list[Effect]:
        self.view.lost += event.lost
        self.view.malformed += event.malformed
        policy = self._lending.explaining(self.in_force.policy) if self.in_force else Policy()
        now = event.now.timestamp()
        why = partial(explain, policy, now=event.now, learned=self._naming.learned, asked=self._naming.asked)
        blocks = []
        for denied in event.packets:
            process = only_process(event.processes.get(denied.workload, ()), denied.uid)
            blocks += self.books.packet(denied, now, why, policy.hash or None, process)
        return self._record(blocks)

    def _from_resolver(self, event: events.FromResolver) -> list[Effect]:
        workloads = self.in_force.policy.workloads if self.in_force else {}
        self.books.lookups(event.messages, workloads, event.now.timestamp())
        return self._naming.take(event, self.in_force, self._operations.current)

    def _leaving(self, event: events.Leaving) -> list[Effect]:
        self._waiting.clear()
        if self._operations.trial is None or self._operations.current is not None:
            return []
        return self._operations.revert(event.now)

    def _stopping(self, event: events.Stopping) -> list[Effect]:
        self._waiting.clear()
        told = self._record(self.books.close(event.now.timestamp()))
        told += self._naming.stopping(event.now, self.in_force)
        return [*told, *self._measuring.stopping(), effects.Notify("STOPPING=1")]

    @staticmethod
    def _record(blocks: Any) -> list[Effect]:
        return [effects.Record(tuple(blocks))] if blocks else []

    # --- commands ---

    def _command(self, event: events.Command) -> list[Effect]:
        match event.message.command:
            case "status":
                return [look(self.view, self.in_force, event.request)]
            case "grants":
                return [effects.Answer(event.request, {"grants": self._lending.as_json(event.now)})]
            case "apply" | "confirm" | "rollback" | "grant" | "mode" | "revoke":
                self._waiting.append(event)
                return []
            case _:
                return self._commands.take(event, self.view, self.in_force)
