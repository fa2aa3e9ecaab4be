"""All decisions of the daemon: an event in, a list of effects out.

The engine is the only mutable state of the program.  It has no clock, does no I/O and needs no kernel: what it
knows came in events, what it wants goes out as effects.

At most one operation is under way: the start, an `apply`, or a repair.  It compiles, loads, binds, reads the
kernel back, and only what was read back becomes what is in force.  Killed at any point, the kernel holds the
old rules or the new ones, and the saved state names one of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from penstock.core import effects, events, questions, state, status
from penstock.core.blocks import Process
from penstock.core.books import Books
from penstock.core.compile import Live
from penstock.core.effects import Effect
from penstock.core.events import Event
from penstock.core.explain import explain
from penstock.core.labels import assign
from penstock.core.packets import Denied
from penstock.core.parse import parse
from penstock.core.policy import Policy
from penstock.core.problems import Problem
from penstock.core.snapshot import differences
from penstock.core.view import InForce, Operation, View

TRIES = 3
"""How often an operation loads again when the kernel does not hold what was loaded."""

REPAIR_PAUSE = timedelta(seconds=1)
"""Between two repairs: whoever keeps changing our table must not keep us busy."""


class Engine:
    """See the module.  `seed`: 32 random bits; `saved`: the books of the last run."""

    def __init__(self, now: datetime, seed: int, saved: bytes | None = None) -> None:
        self.view = View(started=now)
        self.in_force: InForce | None = None
        self.books = Books(seed, saved)
        self._depth = 0
        self._operation: Operation | None = None
        self._waiting: list[int] = []  # requests to apply that came meanwhile
        self._operations = 0
        self._generation = 0  # of the ruleset, up to which every change is known not to be about us
        self._checking = False
        self._suspect = ""  # who changed our table last
        self._repaired: datetime | None = None
        self._asked: dict[int, str] = {}  # request -> its command, or the workload it is about
        self._handlers: dict[type, Callable[[Any], list[Effect]]] = {
            events.Started: self._started,
            events.ConfigRead: self._config_read,
            events.Compiled: self._compiled,
            events.ReadBack: self._read_back,
            events.Proven: self._proven,
            events.Failed: self._failed,
            events.Worked: self._worked,
            events.Examined: self._examined,
            events.RulesetChanged: self._ruleset_changed,
            events.PacketsDenied: self._packets_denied,
            events.Command: self._command,
            events.Held: lambda e: [effects.Answer(e.request, {"holds": e.holds})],
            events.Hits: self._hits,
            events.Ticked: self._ticked,
            events.Stopping: lambda e: self._record(self.books.close(e.now.timestamp())),
        }

    def handle(self, event: Event) -> list[Effect]:
        """Take in what happened; return what shall be done about it."""
        return self._handlers[type(event)](event)

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
            lines = "\n".join(problem.line() for problem in parsed.problems)
            return [effects.Quit(1, f"the applied policy is not understood by this version:\n{lines}")]
        return self._begin("start", parsed.policy, applied, event.now)

    def _config_read(self, event: events.ConfigRead) -> list[Effect]:
        request, policy, problems = event.request, event.parsed.policy, event.parsed.problems
        if policy is None:
            return self._refused(request, problems)
        if self.in_force and self.in_force.policy.hash == policy.hash and self.view.agrees:
            return [*self._applied(request, problems, changed=False, seconds=0.0), *self._next()]
        before = self.in_force.applied.labels if self.in_force else {}
        applied = state.Applied(
            policy.hash, event.now.timestamp(), event.files, event.presets, assign(policy.workloads, before)
        )
        kind = "start" if request is None else "apply"
        return self._begin(kind, policy, applied, event.now, request, problems)

    def _refused(self, request: int | None, problems: tuple[Problem, ...]) -> list[Effect]:
        if request is None:
            lines = "\n".join(problem.line() for problem in problems)
            return [effects.Quit(1, f"the configuration has errors, and no policy was applied before:\n{lines}")]
        current = self.in_force.policy.hash if self.in_force else None
        result = {"changed": False, "refused": True, "hash": current, "problems": [p.as_json() for p in problems]}
        return [effects.Answer(request, result), *self._next()]

    def _begin(
        self,
        kind: str,
        policy: Policy,
        applied: state.Applied,
        now: datetime,
        request: int | None = None,
        problems: tuple[Problem, ...] = (),
    ) -> list[Effect]:
        self._operations += 1
        self._operation = Operation(self._operations, kind, policy, applied, now, request, problems)
        live = Live(now, applied.labels, self._depth)
        return [effects.Compile(self._operation.id, policy, live)]

    def _compiled(self, event: events.Compiled) -> list[Effect]:
        operation = self._operation
        if operation is None or operation.id != event.operation:
            return []
        operation.ruleset = event.ruleset
        known = self.in_force.snapshot.present if self.in_force and self.view.agrees else None
        if operation.kind == "repair":
            return self._load(operation, None)
        return [
            effects.StageState(operation.id, state.encode(operation.applied)),
            *self._load(operation, known),
        ]

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
        wanted = questions.bindings(tuple(operation.policy.workloads), event.cgroups)
        wrong = differences(operation.ruleset, wanted, event.snapshot, event.now)
        if wrong or not event.alone:
            if operation.tries < TRIES:
                return self._load(operation, None)
            return self._give_up(event.now, "the kernel does not hold what was loaded: " + summary(wrong))
        self.in_force = InForce(
            operation.policy, operation.applied, operation.ruleset, event.snapshot, event.cgroups
        )
        self._agree(event.now, event.snapshot.generation)
        return self._done(operation, event.now)

    def _done(self, operation: Operation, now: datetime) -> list[Effect]:
        seconds = (now - operation.began).total_seconds()
        prove = [] if self.view.proven and operation.kind == "apply" else [effects.Prove()]
        if operation.kind == "repair":
            self._operation, self._repaired = None, now
            text = f"repaired in {seconds:.2f} s"
            return [effects.Journal("warning", text), *prove, *self._next()]
        text = f"policy {operation.policy.hash} is in force after {seconds:.2f} s"
        self._operation = None
        return [
            effects.CommitState(operation.id),
            *self._applied(operation.request, operation.problems, changed=True, seconds=seconds),
            effects.Journal("info", text),
            *prove,
            *self._next(),
        ]

    def _applied(
        self, request: int | None, problems: tuple[Problem, ...], *, changed: bool, seconds: float
    ) -> list[Effect]:
        if request is None or self.in_force is None:
            return []
        policy = self.in_force.policy
        result = {
            "changed": changed,
            "hash": policy.hash,
            "workloads": len(policy.workloads),
            "problems": [problem.as_json() for problem in problems],
            "seconds": round(seconds, 3),
        }
        return [effects.Answer(request, result)]

    def _next(self) -> list[Effect]:
        """The next one who waits to apply; all of them get the files as they are now."""
        if self._operation is None and self._waiting:
            return [effects.ReadConfig(self._waiting.pop(0))]
        return []

    def _give_up(self, now: datetime, error: str) -> list[Effect]:
        """The operation failed.  The kernel holds the old rules or the new ones: find out, and mend."""
        operation = self._operation
        self._operation = None
        if operation is None:
            return []
        if self.in_force is None:
            return [effects.Quit(1, error)]
        self.view.agrees, self.view.disagreement = None, error
        self._repaired = now
        told: list[Effect] = [effects.Journal("error", f"{operation.kind}: {error}")]
        if operation.request is not None:
            told.append(effects.Refuse(operation.request, error, "the last good policy stays in force"))
        return [*told, *self._check(), *self._next()]

    # --- the kernel, checked and repaired ---

    def _agree(self, now: datetime, generation: int) -> None:
        self.view.agrees, self.view.checked, self.view.disagreement = True, now, ""
        self._generation = generation

    def _check(self) -> list[Effect]:
        if self._checking or self._operation is not None or self.in_force is None:
            return []
        self._checking = True
        return [effects.ReadKernel(None, tuple(sorted(self.in_force.policy.workloads)))]

    def _checked(self, event: events.ReadBack) -> list[Effect]:
        self._checking = False
        if self.in_force is None or self._operation is not None:
            return []  # the operation reads for itself
        policy = self.in_force.policy
        wanted = questions.bindings(tuple(policy.workloads), event.cgroups)
        wrong = differences(self.in_force.ruleset, wanted, event.snapshot, event.now)
        if not wrong and event.snapshot.digest != self.in_force.snapshot.digest:
            wrong = ["a rule was changed"]
        if not wrong:
            self.in_force = replace(self.in_force, snapshot=event.snapshot, cgroups=event.cgroups)
            self._agree(event.now, event.snapshot.generation)
            return []
        return self._repair(event.now, summary(wrong))

    def _repair(self, now: datetime, wrong: str) -> list[Effect]:
        assert self.in_force is not None
        wrong, self._suspect = wrong + self._suspect, ""
        if self.view.disagreement != wrong:
            self.view.alarms.append((now, wrong))
        self.view.agrees, self.view.disagreement = False, wrong
        if self._repaired is not None and now - self._repaired < REPAIR_PAUSE:
            return []  # the next tick finds it again
        self._repaired = now
        text = f"the kernel does not hold the policy: {wrong}; repairing"
        return [
            effects.Journal("error", text),
            *self._begin("repair", self.in_force.policy, self.in_force.applied, now),
        ]

    def _ruleset_changed(self, event: events.RulesetChanged) -> list[Effect]:
        news = [commit for commit in event.commits if commit.generation > self._generation]
        if self._operation is not None:
            return []  # it reads back itself, and sees whether somebody interfered
        foreign = [commit for commit in news if commit.touched]
        if foreign or event.lost:
            self._suspect = f" (by {foreign[-1].comm!r}, pid {foreign[-1].pid})" if foreign else ""
            return self._check()
        if news and news[0].generation == self._generation + 1:
            self._generation = news[-1].generation
        return []

    def _proven(self, event: events.Proven) -> list[Effect]:
        self.view.proven, self.view.proof_error = True, ""
        return []

    def _failed(self, event: events.Failed) -> list[Effect]:
        if event.effect == effects.Prove.__name__:
            self.view.proven, self.view.proof_error = False, event.error
            return [effects.Journal("error", f"cgroup matching could not be proven: {event.error}")]
        if event.effect == effects.CommitState.__name__ and self.in_force:
            self.view.troubles[event.effect] = event.error
            text = f"in force, but it could not be saved: {event.error}"
            return [effects.Journal("error", text), *self._next()]
        if self._operation is not None and event.operation == self._operation.id:
            return self._give_up(event.now, event.error)
        if event.effect == effects.ReadKernel.__name__:
            self._checking = False
            self.view.agrees, self.view.disagreement = None, event.error
            return [effects.Journal("error", event.error)]
        if event.request is not None:
            return [effects.Refuse(event.request, event.error), *self._next()]
        if event.effect == effects.ReadConfig.__name__:
            return [effects.Quit(1, event.error)]
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
        return effects.Examine(request, workloads, watch)

    def _examined(self, event: events.Examined) -> list[Effect]:
        self.view.counters, self.view.processes = event.counters, event.processes
        self.view.strays = event.strays
        result: list[Effect] = []
        if self.in_force and self._operation is None:
            grown, blocks = self.books.counters(event.counters, self.in_force.policy, event.now.timestamp())
            result += [*self._record(blocks), *([effects.SaveBooks(self.books.save())] if grown else [])]
            result += self._look(event)
        if event.request is not None:
            result.append(effects.Answer(event.request, status.build(event, self.view, self.in_force, self.books)))
        return result

    def _look(self, event: events.Examined) -> list[Effect]:
        """What the self-check found: is all as it was read back?"""
        assert self.in_force is not None
        over = [e for s in self.in_force.ruleset.sets for e in s.expires.values() if e <= event.now]
        if dict(event.cgroups) != dict(self.in_force.cgroups):
            return self._repair(event.now, "a slice was removed or made again")
        if over and not self._checking:
            return self._begin("repair", self.in_force.policy, self.in_force.applied, event.now)
        if self.view.agrees and event.generation == self._generation:
            self.view.checked = event.now
            return []
        return self._check()

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
                self._process(denied),
            )
        return self._record(blocks)

    def _process(self, denied: Denied) -> Process | None:
        """Who sent it, when only one process of the workload can have."""
        seen = [p for p in self.view.processes.get(denied.workload, ()) if denied.uid in (None, p.uid)]
        return Process(seen[0].pid, seen[0].comm) if len(seen) == 1 else None

    @staticmethod
    def _record(blocks: Any) -> list[Effect]:
        return [effects.Record(tuple(blocks))] if blocks else []

    # --- commands ---

    def _command(self, event: events.Command) -> list[Effect]:
        request, arguments = event.request, event.message.arguments
        match event.message.command:
            case "status":
                return [self._examine(request)]
            case "apply":
                if self._operation is not None or self.in_force is None:
                    self._waiting.append(request)
                    return []
                return [effects.ReadConfig(request)]
            case "ready":
                return [effects.Answer(request, status.ready(self.view, self.in_force, arguments["workload"]))]
            case "hits":
                return self._count_hits(request, arguments["workload"])
            case _:
                return self._ask_kernel(request, arguments)

    def _count_hits(self, request: int, workload: str) -> list[Effect]:
        if self.in_force is None or workload not in self.in_force.policy.workloads:
            return [effects.Refuse(request, "no such workload in the applied policy")]
        self._asked[request] = workload
        return [effects.CountHits(request, tuple(questions.sets_of(workload)))]

    def _hits(self, event: events.Hits) -> list[Effect]:
        workload = self._asked.pop(event.request, "")
        if self.in_force is None or workload not in self.in_force.policy.workloads:
            return [effects.Refuse(event.request, "the policy has changed meanwhile")]
        hits = questions.hits_by_rule(self.in_force, workload, event.sets)
        return [effects.Answer(event.request, {"rules": hits})]

    def _ask_kernel(self, request: int, arguments: Mapping[str, Any]) -> list[Effect]:
        try:
            question = questions.to_kernel(request, arguments)
        except ValueError as e:
            return [effects.Refuse(request, str(e))]
        if self.in_force is None or arguments["workload"] not in self.in_force.policy.workloads:
            return [effects.Answer(request, {"holds": None})]
        return [question]


def summary(phrases: list[str]) -> str:
    """The first few of them, and how many more."""
    more = f" and {len(phrases) - 3} more" if len(phrases) > 3 else ""
    return ", ".join(phrases[:3]) + more
