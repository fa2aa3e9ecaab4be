"""All decisions of the daemon: an event in, a list of effects out.

The engine is the only mutable state of the program.  It has no clock, does no I/O and needs no kernel: what it
knows came in events, what it wants goes out as effects.

At most one operation is under way: the start, an `apply`, or a repair.  It compiles, loads, binds, reads the
kernel back, and only what was read back becomes what is in force.  Killed at any point, the kernel holds the
old rules or the new ones, and the saved state names one of the two.

Nothing is put behind an effect that guards in the same list but what must not happen when that fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from penstock.core import effects, events, results, state, status
from penstock.core.blocks import Process
from penstock.core.books import Books
from penstock.core.commands import Commands
from penstock.core.compile import Live
from penstock.core.effects import Effect
from penstock.core.events import Event
from penstock.core.explain import explain
from penstock.core.keeper import Keeper, differs, missing, summary
from penstock.core.labels import assign
from penstock.core.parse import parse
from penstock.core.policy import Policy
from penstock.core.problems import Problem
from penstock.core.view import InForce, Operation, View

TRIES = 3
"""How often an operation loads when the kernel does not hold what was loaded."""

UNSAVED = effects.CommitState.__name__


class Engine:
    """See the module.  `seed`: 32 random bits; `saved`: the books of the last run."""

    def __init__(self, now: datetime, seed: int, saved: bytes | None = None) -> None:
        self.view = View(started=now)
        self.in_force: InForce | None = None
        self.books = Books(seed, saved)
        self._keeper = Keeper(self.view)
        self._commands = Commands()
        self._depth = 0
        self._operation: Operation | None = None
        self._operations = 0
        self._waiting: list[int] = []  # requests to apply, in the order in which they came
        self._reading = False  # the configuration, for one of them
        self._proving = False
        self._handlers: dict[type, Callable[[Any], list[Effect]]] = {
            events.Started: self._started,
            events.ConfigRead: self._config_read,
            events.Compiled: self._compiled,
            events.ReadBack: self._read_back,
            events.Saved: self._saved,
            events.Proven: self._proven,
            events.Failed: self._failed,
            events.Worked: self._worked,
            events.Examined: self._examined,
            events.RulesetChanged: self._ruleset_changed,
            events.PacketsDenied: self._packets_denied,
            events.Command: self._command,
            events.Held: lambda e: [effects.Answer(e.request, {"holds": e.holds})],
            events.Hits: lambda e: self._commands.hits(e, self.in_force),
            events.Ticked: self._ticked,
            events.Stopping: self._stopping,
        }

    def handle(self, event: Event) -> list[Effect]:
        """Take in what happened; return what shall be done about it."""
        todo = self._handlers[type(event)](event)
        # Behind anything else it would be lost if that failed; the event that comes of that brings us here again.
        return todo if any(not isinstance(e, effects.Telling) for e in todo) else [*todo, *self._next()]

    # --- start and apply ---

    def _started(self, event: events.Started) -> list[Effect]:
        self._depth = event.depth
        if event.snapshot.exists and not event.snapshot.ours:
            return [effects.Quit(1, "a table `inet penstock` is there that is not ours; remove it first")]
        if event.state is None:
            return [effects.ReadConfig(None)]
        try:
            applied = state.decode(event.state)
        except ValueError as e:
            return [effects.Journal("error", f"{e}: reading the configuration instead"), effects.ReadConfig(None)]
        parsed = parse(applied.files, applied.presets)
        if parsed.policy is None:
            return [effects.Quit(1, results.not_understood(parsed.problems))]
        labels = assign(parsed.policy.workloads, applied.labels)
        saved = labels == applied.labels
        return self._begin("start", parsed.policy, replace(applied, labels=labels), event.now, saved=saved)

    def _config_read(self, event: events.ConfigRead) -> list[Effect]:
        request, policy, problems = event.request, event.parsed.policy, event.parsed.problems
        self._reading = False
        if self._operation is not None and request is not None:
            self._waiting.insert(0, request)  # a repair came first; the files are read again after it
            return []
        if policy is None:
            return self._refused(request, problems)
        in_force = self.in_force
        good = self.view.agrees and UNSAVED not in self.view.troubles
        if good and in_force and in_force.policy.hash == policy.hash:
            return self._applied(request, problems, changed=False, seconds=0.0)
        before = in_force.applied.labels if in_force else {}
        applied = state.Applied(
            policy.hash, event.now.timestamp(), event.files, event.presets, assign(policy.workloads, before)
        )
        kind = "start" if request is None else "apply"
        return self._begin(kind, policy, applied, event.now, request=request, problems=problems)

    def _refused(self, request: int | None, problems: tuple[Problem, ...]) -> list[Effect]:
        if request is None:
            return [effects.Quit(1, results.nothing_to_start(problems))]
        return [effects.Answer(request, results.refused(self.in_force, problems))]

    def _begin(
        self,
        kind: str,
        policy: Policy,
        applied: state.Applied,
        now: datetime,
        *,
        saved: bool = False,
        request: int | None = None,
        problems: tuple[Problem, ...] = (),
    ) -> list[Effect]:
        self._operations += 1
        self._operation = Operation(self._operations, kind, policy, applied, now, saved, request, problems)
        live = Live(now, applied.labels, self._depth)
        return [effects.Compile(self._operation.id, policy, live)]

    def _again(self, kind: str, in_force: InForce, now: datetime) -> list[Effect]:
        """Load what is in force once more."""
        return self._begin(kind, in_force.policy, in_force.applied, now, saved=True)

    def _compiled(self, event: events.Compiled) -> list[Effect]:
        operation = self._operation
        if operation is None or operation.id != event.operation:
            return []
        operation.ruleset = event.ruleset
        known = self.in_force.snapshot.present if self.in_force and self.view.agrees else None
        stage = [] if operation.saved else [effects.StageState(operation.id, state.encode(operation.applied))]
        return [*stage, *self._load(operation, None if operation.kind == "repair" else known)]

    def _load(self, operation: Operation, present: Any) -> list[Effect]:
        assert operation.ruleset is not None
        workloads = tuple(sorted(operation.policy.workloads))
        operation.tries += 1
        return [
            effects.MakeCgroups(operation.id, workloads),
            effects.Load(operation.id, operation.ruleset, present),
            effects.BindCgroups(operation.id, workloads),
            effects.ReadKernel(operation.id, workloads),
        ]

    def _read_back(self, event: events.ReadBack) -> list[Effect]:
        operation = self._operation
        if event.operation is None:
            return self._checked(event)
        if operation is None or operation.id != event.operation or operation.ruleset is None:
            return []
        wrong = differs(operation.policy, operation.ruleset, event)
        # On a host that is never still: what two loads of one ruleset left behind alike, nobody has changed.
        twice = event.snapshot.digest == operation.digest
        operation.digest = event.snapshot.digest
        if not wrong and not event.alone and not twice:
            wrong = ["somebody else changed the ruleset meanwhile"]
        if wrong and operation.tries < TRIES:
            return self._load(operation, None)
        if wrong:
            return self._give_up(event.now, "the kernel does not hold what was loaded: " + summary(wrong))
        self.in_force = InForce(
            operation.policy, operation.applied, operation.ruleset, event.snapshot, event.cgroups
        )
        self._keeper.agree(event.now, event.snapshot.generation)
        return self._done(operation, event.now) if operation.saved else [effects.CommitState(operation.id)]

    def _saved(self, event: events.Saved) -> list[Effect]:
        operation = self._operation
        if operation is None or operation.id != event.operation:
            return []
        return self._done(operation, event.now)

    def _done(self, operation: Operation, now: datetime) -> list[Effect]:
        """What the operation wanted is in force and saved."""
        self._operation = None
        seconds = (now - operation.began).total_seconds()
        if operation.kind == "repair":
            self._keeper.mended(now)
        return [
            *self._applied(operation.request, operation.problems, changed=True, seconds=seconds),
            results.news(operation.kind, operation.policy.hash, seconds),
            *self._prove(again=operation.kind != "apply"),
        ]

    def _applied(
        self, request: int | None, problems: tuple[Problem, ...], *, changed: bool, seconds: float
    ) -> list[Effect]:
        if request is None or self.in_force is None:
            return []
        return [effects.Answer(request, results.applied(self.in_force, problems, changed, seconds))]

    def _next(self) -> list[Effect]:
        """The next one who waits to apply gets the files as they are now."""
        if not self._waiting or self._reading or self._operation is not None or self.in_force is None:
            return []
        self._reading = True
        return [effects.ReadConfig(self._waiting.pop(0))]

    def _give_up(self, now: datetime, error: str) -> list[Effect]:
        """The operation failed.  The kernel holds the old rules or the new ones: find out, and mend."""
        operation = self._operation
        self._operation = None
        if operation is None:
            return []
        if self.in_force is None:
            return [effects.Quit(1, error)]
        self._keeper.gave_up(now, error)
        told: list[Effect] = [effects.Journal("error", f"{operation.kind}: {error}")]
        if operation.request is not None:
            told.append(effects.Refuse(operation.request, error, "the last good policy stays in force"))
        return [*told, *self._check()]

    def _unsaved(self, operation: Operation, error: str) -> list[Effect]:
        """In force, and the next start would bring back what was before."""
        self._operation = None
        self.view.troubles[UNSAVED] = error
        text = f"in force, but it could not be saved: {error}"
        told: list[Effect] = [effects.Journal("error", text)]
        if operation.request is not None:
            told.append(effects.Refuse(operation.request, text, "mend that, then: penstock apply"))
        return [*told, *self._prove(again=operation.kind != "apply")]

    # --- the kernel, checked, repaired and proven ---

    def _check(self) -> list[Effect]:
        if self._operation is not None or self.in_force is None:
            return []  # an operation reads for itself
        return self._keeper.check(self.in_force)

    def _checked(self, event: events.ReadBack) -> list[Effect]:
        current = self._keeper.answered(self.in_force)
        if self.in_force is None or self._operation is not None:
            return []
        if not current:
            return self._check()
        wrong = differs(self.in_force.policy, self.in_force.ruleset, event)
        if not wrong and event.snapshot.digest != self.in_force.snapshot.digest:
            wrong = ["a rule was changed"]
        if wrong:
            return self._repair(event.now, summary(wrong))
        self.in_force = replace(self.in_force, snapshot=event.snapshot, cgroups=event.cgroups)
        return self._check() if self._keeper.agree(event.now, event.snapshot.generation) else []

    def _repair(self, now: datetime, wrong: str) -> list[Effect]:
        assert self.in_force is not None
        text = self._keeper.may_mend(now, wrong)
        return [effects.Journal("error", text), *self._again("repair", self.in_force, now)] if text else []

    def _ruleset_changed(self, event: events.RulesetChanged) -> list[Effect]:
        if self._operation is not None:
            return []  # it reads back itself, and sees whether somebody interfered
        return self._check() if self._keeper.announced(event) else []

    def _prove(self, *, again: bool) -> list[Effect]:
        if self._proving or (self.view.proven and not again):
            return []
        self._proving = True
        return [effects.Prove()]

    def _proven(self, event: events.Proven) -> list[Effect]:
        self._proving = False
        self.view.proven, self.view.proof_error = True, ""
        return []

    def _not_proven(self, error: str) -> list[Effect]:
        self._proving = False
        new = self.view.proven or self.view.proof_error != error
        self.view.proven, self.view.proof_error = False, error
        return [effects.Journal("error", f"cgroup matching could not be proven: {error}")] if new else []

    def _failed(self, event: events.Failed) -> list[Effect]:
        operation = self._operation
        if event.effect == effects.Prove.__name__:
            return self._not_proven(event.error)
        if operation is not None and event.operation == operation.id:
            if event.effect == UNSAVED:
                return self._unsaved(operation, event.error)
            return self._give_up(event.now, event.error)
        if event.effect == effects.ReadConfig.__name__:
            self._reading = False
            if event.request is None:
                return [effects.Quit(1, event.error)]
        if event.effect == effects.ReadKernel.__name__:
            self._keeper.answered(None)
            self._keeper.unknown(event.error)
        if event.effect == effects.Examine.__name__:
            self._keeper.unknown(event.error)
        if event.request is not None:
            self._commands.forget(event.request)
            return [effects.Refuse(event.request, event.error)]
        new = self.view.troubles.get(event.effect) != event.error
        self.view.troubles[event.effect] = event.error
        return [effects.Journal("error", event.error)] if new else []

    def _worked(self, event: events.Worked) -> list[Effect]:
        self.view.troubles.pop(event.effect, None)
        return []

    # --- the live state ---

    def _ticked(self, event: events.Ticked) -> list[Effect]:
        blocks = self.books.flush(event.now.timestamp())
        return [*self._record(blocks), self._examine(None)]

    def _examine(self, request: int | None) -> Effect:
        workloads = tuple(sorted(self.in_force.policy.workloads)) if self.in_force else ()
        watch = {(p.pid, p.started): name for name, seen in self.view.processes.items() for p in seen}
        watch.update({(stray.pid, stray.started): stray.workload for stray in self.view.strays})
        return effects.Examine(request, workloads, {k: name for k, name in watch.items() if name in workloads})

    def _examined(self, event: events.Examined) -> list[Effect]:
        self.view.counters, self.view.processes = event.counters, event.processes
        self.view.strays = event.strays
        result: list[Effect] = []
        todo: list[Effect] = []
        if self.in_force and self._operation is None:
            grown, blocks = self.books.counters(event.counters, self.in_force.policy, event.now.timestamp())
            unsaved = grown or effects.SaveBooks.__name__ in self.view.troubles
            result += [*self._record(blocks), *([effects.SaveBooks(self.books.save())] if unsaved else [])]
            todo = self._look(event)
        if event.request is not None:
            result.append(effects.Answer(event.request, status.build(event, self.view, self.in_force, self.books)))
        return [*result, *todo]

    def _look(self, event: events.Examined) -> list[Effect]:
        """What the self-check found: is all as it was read back?"""
        assert self.in_force is not None
        in_force = self.in_force
        if event.processes.keys() != in_force.policy.workloads.keys():
            return []  # a look from before the last operation
        if dict(event.cgroups) != dict(in_force.cgroups) or missing(in_force.policy, event.cgroups):
            return self._repair(event.now, "a slice was removed or made again")
        if any(end <= event.now for s in in_force.ruleset.sets for end in s.expires.values()):
            return self._again("expiry", in_force, event.now)
        if not self._keeper.holds_still(event.now, event.generation):
            return self._check()
        return self._prove(again=False)

    def _packets_denied(self, event: events.PacketsDenied) -> list[Effect]:
        self.view.lost += event.lost
        self.view.malformed += event.malformed
        policy = self.in_force.policy if self.in_force else Policy()
        now = event.now.timestamp()
        blocks = []
        for denied in event.packets:
            blocks += self.books.packet(
                denied,
                now,
                partial(explain, policy, now=event.now),
                policy.hash or None,
                _only_process(event.processes.get(denied.workload, ()), denied.uid),
            )
        return self._record(blocks)

    def _stopping(self, event: events.Stopping) -> list[Effect]:
        self._waiting.clear()
        return self._record(self.books.close(event.now.timestamp()))

    @staticmethod
    def _record(blocks: Any) -> list[Effect]:
        return [effects.Record(tuple(blocks))] if blocks else []

    # --- commands ---

    def _command(self, event: events.Command) -> list[Effect]:
        match event.message.command:
            case "status":
                return [self._examine(event.request)]
            case "apply":
                self._waiting.append(event.request)
                return []
            case _:
                return self._commands.take(event, self.view, self.in_force)


def _only_process(seen: tuple[events.Seen, ...], uid: int | None) -> Process | None:
    """Who sent it, when only one process can have: a record names the user, and no process."""
    mine = [process for process in seen if uid in (None, process.uid)]
    return Process(mine[0].pid, mine[0].comm) if len(mine) == 1 else None
