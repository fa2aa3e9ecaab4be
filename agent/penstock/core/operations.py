"""Operations: what changes the kernel's rules, one at a time, and what is in force because of it.

Each compiles, loads, binds and reads the kernel back, and only what was read back becomes what is in force.  A
policy that waits to be confirmed is in the kernel and not on disk: whatever ends the daemon brings back the one
before it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from penstock.core import effects, events, questions, results, state
from penstock.core.compile import Live
from penstock.core.drift import Drift
from penstock.core.effects import Effect
from penstock.core.grant_request import BadGrant
from penstock.core.keeper import Keeper, differs, summary
from penstock.core.lending import Lending
from penstock.core.looks import let_go
from penstock.core.match import places
from penstock.core.naming import Naming
from penstock.core.policy import Policy
from penstock.core.problems import Problem
from penstock.core.prover import Prover
from penstock.core.slices import SLICE
from penstock.core.view import InForce, Operation, Trial, View

TRIES = 3
"""How often an operation loads when the kernel does not hold what was loaded."""

UNTOUCHED = {effect.__name__ for effect in (effects.MarkTrial, effects.StageState, effects.MakeCgroups)}
"""What comes before the first load: when that fails the kernel's rules are what they were."""

UNSAVED = effects.CommitState.__name__
STATE = "ReadState"
"""The trouble of a saved state that could not be used."""
FLOOR, ENROL = effects.KeepFloor.__name__, "Enrol"

BY_PEOPLE = ("apply", "confirm", "rollback")


class Operations:
    """`current` is under way, `in_force` is what came of the last one, `trial` waits to be confirmed."""

    def __init__(self, view: View, keeper: Keeper, prover: Prover, naming: Naming, lending: Lending) -> None:
        self.in_force: InForce | None = None
        self.current: Operation | None = None
        self.trial: Trial | None = None
        self.depth = 0  # the level of penstock.slice
        self.slice = SLICE  # its path, for nft
        self._view = view
        self._keeper = keeper
        self._prover = prover
        self._naming = naming
        self._lending = lending
        self._count = 0
        self._drift = Drift()
        self._jumped = False  # the clock, and what is timed in the kernel does not know it
        self._tried: object = None  # what was to be bound in place when it was last tried
        self._known: tuple[object, object, dict[str, str], dict[str, int]] = (None, None, {}, {})
        self.floor = b""  # that the daemon started with
        self.half_way: list[str] = []
        """How learned addresses may be held by other rules than those in force, which no listing shows."""

    # --- beginning ---

    def begin(
        self,
        kind: str,
        policy: Policy,
        applied: state.Applied,
        now: datetime,
        *,
        saved: bool = False,
        request: int | None = None,
        problems: tuple[Problem, ...] = (),
        confirm: int = 0,
        same: bool = False,
    ) -> list[Effect]:
        """Begin one; there must be none under way.  `policy` is that of files: what is lent comes to it."""
        bare, policy = policy, self._lending.merged(policy, now)
        operation = self._new(kind, policy, applied, now, saved, request, problems)
        operation.confirm, operation.same = confirm, same
        operation.bare = None if bare is policy else bare
        operation.places = places(policy, self._view.units)
        levels = questions.levels(operation.places, self.depth)
        if self.in_force and kind not in BY_PEOPLE:
            levels = tuple(sorted({*levels, *self.in_force.levels}))  # what goes may come again
        operation.levels = levels
        asking = self._naming.listeners(policy)
        return [effects.Listen(operation.id, asking)] if asking else self._compile(operation)

    def listening(self, event: events.Listening) -> list[Effect]:
        """The resolver listens for whoever has rules by name; what does not work of it, `status` says."""
        operation = self.current
        if operation is None or operation.id != event.operation:
            return []
        state = self._view.resolver
        state.ports, state.error = event.ports, event.error
        return self._compile(operation)

    def _compile(self, operation: Operation) -> list[Effect]:
        policy = operation.policy
        resolver = self._naming.resolver(policy)
        listening = resolver is not None and resolver.ports.keys() >= set(self._naming.listeners(policy))
        operation.upstreams = resolver.upstreams if resolver and listening else None  # None: to be tried again
        labels = operation.applied.labels
        live = Live(operation.began, labels, self.depth, operation.levels, resolver, self.slice)
        floor = operation.kind in (*BY_PEOPLE, "start")
        return [effects.Compile(operation.id, policy, live, floor, operation.bare)]

    def upstreams_read(self, event: events.UpstreamsRead) -> list[Effect]:
        """Ask whom the host asks; the kernel must let us.  Who could not listen may be able to now."""
        self._view.resolver.upstreams, self._view.resolver.search = event.servers, event.search
        in_force = self.in_force
        if in_force is None or self.current is not None:
            return []
        resolver = self._naming.resolver(in_force.policy)
        if resolver is not None and resolver.upstreams != in_force.upstreams:
            return self.again("upstreams", event.now)
        return self._naming.configure(in_force)

    def _new(self, kind: str, policy: Policy, applied: state.Applied, now: datetime, *rest: Any) -> Operation:
        self._count += 1
        self.current = Operation(self._count, kind, policy, applied, now, *rest)
        return self.current

    def again(self, kind: str, now: datetime) -> list[Effect]:
        """Load what is in force once more."""
        assert self.in_force is not None
        return self.begin(kind, self.in_force.base, self.in_force.applied, now, saved=True)

    def lend(self, command: events.Command, now: datetime) -> list[Effect]:
        """Begin a grant or a revoke, if it may be."""
        assert self.in_force is not None
        base, applied, kind = self.in_force.base, self.in_force.applied, command.message.command
        try:
            if kind != "revoke":
                self._lending.make(command, base, applied.presets, now)
            else:
                self._lending.revoke(command, now)
        except BadGrant as e:
            return [effects.Refuse(command.request, str(e), e.hint)]
        begun = self.begin(kind, base, applied, now, saved=True, request=command.request)
        assert self.current is not None
        return [self._lending.begin(self.current.id, now), *begun]

    def settle(self, now: datetime) -> list[Effect]:
        """What is lent is not what it was when it was loaded: load anew."""
        if self.in_force is None or self.current is not None:
            return []
        if self._lending.merged(self.in_force.base, now) is self.in_force.policy:
            return []
        return self.again("expiry", now)

    def enrol(self, now: datetime) -> list[Effect]:
        """Bind units where they are, and unbind those that went, unless that is so, or was tried just before."""
        in_force = self.in_force
        if in_force is None or self.current is not None:
            return []
        wanted, ids = self._wanted(in_force.policy)
        held = {path: in_force.cgroups.get(path) for path in in_force.places}
        if ids == held:
            self._view.troubles.pop(ENROL, None)
        if ids == held or self._tried == (ids, in_force.policy.hash):
            return []
        self._tried = (ids, in_force.policy.hash)
        if not set(questions.levels(wanted, self.depth)) <= set(in_force.levels):
            return self.again("enrol", now)
        operation = self._new("enrol", in_force.policy, in_force.applied, now, True)
        operation.ruleset, operation.places, operation.levels = in_force.ruleset, wanted, in_force.levels
        operation.upstreams, operation.bare = in_force.upstreams, in_force.bare
        return self._bind(operation)

    def _wanted(self, policy: Policy) -> tuple[dict[str, str], dict[str, int]]:
        """Where units are to be bound and to which workload, and the ids of these cgroups: each event asks."""
        units = self._view.units
        if self._known[0] is not policy or self._known[1] is not units:
            found = places(policy, units)
            self._known = (policy, units, found, {unit.path: unit.id for unit in units if unit.path in found})
        return self._known[2], self._known[3]

    def ticked(self, event: events.Ticked) -> list[Effect]:
        """When the clock was set, or the host slept, what is to run out in the kernel is timed anew."""
        if apart := self._drift.ticked(event):
            self._naming.learned.jump(apart)
            self._jumped = True
        if not self._jumped or self.in_force is None or self.current is not None:
            return []
        self._jumped = False
        timed = any(address_set.expires for address_set in self.in_force.ruleset.sets)
        return self.again("jump", event.now) if timed else []

    def may_try_again(self) -> None:
        """Time went by since units could not be bound."""
        self._tried = None

    def confirm(self, request: int, now: datetime) -> list[Effect]:
        """Save what waits to be confirmed."""
        if self.trial is None or self.in_force is None:
            return [effects.Answer(request, results.nothing_to_confirm(self.in_force))]
        operation = self._new("confirm", self.in_force.policy, self.in_force.applied, now, False, request)
        operation.bare = self.in_force.bare
        data = state.encode(operation.applied)
        return [
            effects.StageState(operation.id, data, self.trial.floor),
            effects.CommitState(operation.id),
        ]

    def revert(self, now: datetime, request: int | None = None) -> list[Effect]:
        """Bring back what was in force before the policy that nobody confirmed."""
        assert self.trial is not None
        before = self.trial.before
        return self.begin("revert", before.base, before.applied, now, saved=True, request=request)

    # --- under way ---

    def compiled(self, event: events.Compiled) -> list[Effect]:
        """Stage what will be saved, and load."""
        operation = self.current
        if operation is None or operation.id != event.operation:
            return []
        operation.ruleset, operation.floor = event.ruleset, event.floor
        known = self.in_force.snapshot.present if self.in_force and self._view.agrees else None
        before: list[Effect] = []
        if operation.confirm:
            before = [effects.MarkTrial(operation.id, state.encode(operation.applied))]
        elif not operation.saved:
            before = [effects.StageState(operation.id, state.encode(operation.applied), operation.floor)]
        return [*before, *self._load(operation, None if operation.kind == "repair" else known)]

    def _load(self, operation: Operation, present: Any) -> list[Effect]:
        assert operation.ruleset is not None
        operation.tries += 1
        operation.mends = self.half_way
        retract, opened = self._naming.changes(operation, self.in_force, half_way=bool(self.half_way))
        return [
            effects.MakeCgroups(
                operation.id, tuple(sorted(operation.policy.workloads)), resolver=bool(operation.ruleset.by_name)
            ),
            effects.Load(operation.id, operation.ruleset, present, retract, opened),
            *self._bind(operation),
        ]

    def _bind(self, operation: Operation) -> list[Effect]:
        workloads = tuple(sorted(operation.policy.workloads))
        by_name = operation.ruleset.by_name if operation.ruleset else ()
        return [
            effects.BindCgroups(operation.id, workloads, operation.places, self.depth, operation.levels, by_name),
            effects.ReadKernel(operation.id, workloads, tuple(sorted(operation.places))),
        ]

    def read_back(self, event: events.ReadBack) -> list[Effect]:
        """What the operation left in the kernel: good, once more, or given up."""
        operation = self.current
        if operation is None or operation.id != event.operation or operation.ruleset is None:
            return []
        wrong = differs(operation.policy, operation.ruleset, event, operation.places, self.depth)
        if not operation.tries and self.in_force:
            if not wrong and event.snapshot.digest != self.in_force.snapshot.digest:
                wrong = ["a rule was changed"]
            if wrong:
                self.current = None  # it bound some units and loaded nothing, so somebody else did
                return self.repair(event.now, summary(wrong))
        told: list[Effect] = []
        if wrong and not event.alone:
            told = [effects.Journal("error", self._keeper.interfered(event.now, summary(wrong)), "foreign-change")]
        # On a host that is never still: what two loads of one ruleset left behind alike, nobody has changed.
        twice = event.snapshot.digest == operation.digest
        operation.digest = event.snapshot.digest
        if not wrong and not event.alone and not twice and operation.tries:
            wrong = ["somebody else changed the ruleset meanwhile"]
        if wrong and operation.tries < TRIES:
            return [*told, *self._load(operation, None)]
        if wrong:
            error = "the kernel does not hold what was loaded: " + summary(wrong)
            return [*told, *self.give_up(event.now, error)]
        before = self.in_force
        self.in_force = InForce(
            *(operation.policy, operation.applied, operation.ruleset, event.snapshot, event.cgroups),
            *(operation.places, operation.levels, operation.upstreams, operation.bare),
        )
        let_go(self._view, before, self.in_force)
        self._keeper.agree(event.now, event.snapshot.generation)
        if operation.tries:  # what was loaded counts from now on, saved or not
            # Not what ended since it was found out what this takes out.
            self.half_way = [] if operation.mends is self.half_way else self.half_way
            told += self._naming.in_force(self.in_force, operation.id, event.now)
        if operation.confirm and before is not None:
            until = event.now + timedelta(seconds=operation.confirm)
            self.trial = Trial(before, operation.confirm, until, operation.floor)
        if operation.saved or operation.confirm:
            return [*told, *self._done(operation, event.now)]
        return [*told, effects.CommitState(operation.id)]

    # --- its end ---

    def saved(self, event: events.Saved) -> list[Effect]:
        """The state file names what is in force."""
        operation = self.current
        if operation is None or operation.id != event.operation:
            return []
        return self._done(operation, event.now)

    def _done(self, operation: Operation, now: datetime) -> list[Effect]:
        """What the operation wanted is in force and saved."""
        self.current = None
        assert self.in_force is not None
        seconds = (now - operation.began).total_seconds()
        if operation.kind == "repair":
            self._keeper.mended(now)
        if operation.kind == "enrol":
            self._view.troubles.pop(ENROL, None)
        told: list[Effect] = []
        if operation.kind == "start" and operation.saved:
            self.floor = operation.floor
            told.append(effects.KeepFloor(operation.floor))
        if operation.kind in BY_PEOPLE and not operation.confirm:  # it was saved, and its floor with it
            self.chosen()
            self._view.troubles.pop(FLOOR, None)
        if operation.kind in ("confirm", "revert", "rollback"):
            self.trial = None
        if operation.kind in ("start", "confirm", "revert", "rollback"):
            told.append(effects.EndTrial())  # at the start there may be one of a daemon that was killed
        if self.trial is None and operation.kind in (*BY_PEOPLE, "start"):
            told += self._lending.fit(self.in_force.base, now)
        told += self._lending.done(operation.id, operation.request)
        told += results.of(operation, self.in_force, self.trial, seconds)
        again = operation.kind not in ("apply", "confirm", "enrol", *results.LENDING)
        return [*told, *self._prover.prove(again=again)]

    def chosen(self) -> None:
        """Somebody decided what is in force, and that is saved."""
        self._view.troubles.pop(STATE, None)

    def give_up(self, now: datetime, error: str, effect: str = "") -> list[Effect]:
        """The operation failed, at that effect.  The kernel holds the old rules or the new: find out, and mend."""
        operation = self.current
        self.current = None
        if operation is None:
            return []
        if self.in_force is None:
            return [effects.Quit(1, error)]
        if effect == effects.BindCgroups.__name__ and not operation.tries:
            self._keeper.unknown(error)  # nothing was loaded or bound: what differs now, others did
        else:
            self._keeper.gave_up(now, error, mending=operation.kind in ("repair", "enrol"))
        if operation.tries > 1 or (operation.tries == 1 and effect not in UNTOUCHED):
            self.half_way = [f"{operation.kind} ended half-way"]
        told = self._lending.failed(operation.id, now)
        if operation.kind != "enrol" or self._view.troubles.get(ENROL) != error:
            told.append(effects.Journal("error", f"{operation.kind}: {error}", "failed"))
        if operation.kind == "enrol":
            self._view.troubles[ENROL] = error  # tried at each tick, said once
        if operation.confirm:
            told.append(effects.EndTrial())
        if operation.request is not None:
            told.append(effects.Refuse(operation.request, error, "the last good policy stays in force"))
        return [*told, *self.check()]

    def not_renewed(self, now: datetime, error: str) -> list[Effect]:
        """What is learned could not be put right: nobody knows what the kernel holds of it."""
        self._keeper.gave_up(now, error, mending=True)
        self.half_way = ["what was learned is not known to be in it"]
        return [effects.Journal("error", error, "failed"), *self.check()]

    def unsaved(self, error: str) -> list[Effect]:
        """In force, and the next start would bring back what was before."""
        operation = self.current
        self.current = None
        if operation is None:
            return []
        text = f"in force, but it could not be saved: {error}"
        hint = "mend that, then: penstock apply"
        if operation.kind == "confirm":
            text, hint = f"not confirmed: it could not be saved: {error}", "mend that, then: penstock confirm"
        else:
            self._view.troubles[UNSAVED] = error
        told: list[Effect] = [effects.Journal("error", text, "failed")]
        if operation.request is not None:
            told.append(effects.Refuse(operation.request, text, hint))
        if operation.kind == "start" and self.in_force is not None:
            told += [effects.EndTrial(), results.ready(self.in_force)]
        return [*told, *self._prover.prove(again=operation.kind not in ("apply", "confirm"))]

    # --- the kernel, checked ---

    def check(self) -> list[Effect]:
        """Have the kernel read, unless an operation does."""
        if self.current is not None or self.in_force is None:
            return []
        return self._keeper.check(self.in_force)

    def repair(self, now: datetime, wrong: str) -> list[Effect]:
        """The kernel does not hold what is in force."""
        assert self.in_force is not None
        text = self._keeper.may_mend(now, wrong)
        told = effects.Journal("error", text, "foreign-change")
        return [told, *self.again("repair", now)] if text else []
