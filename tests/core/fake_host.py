"""A host without a kernel, on which the engine is run: it plays the executor, and what the executor works on.

Each list of effects is a task; tasks go on in an order that a seed chooses, as do the events that come of them.
What fails is injected.  What the fakes do is what the real kernel modules promise.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from penstock.core import effects, events, resolver_wire, state
from penstock.core.blocks import Block
from penstock.core.checking import examine
from penstock.core.compile import compile_policy
from penstock.core.effects import Effect
from penstock.core.engine import Engine
from penstock.core.events import Commit, Event, Seen, Stray
from penstock.core.match import Unit
from penstock.core.name_elements import Opened, Retract, sparing
from penstock.core.parse import PRESETS, parse
from penstock.core.questions import bindings
from penstock.core.render_nft import Present, unexpired
from penstock.core.ruleset import MARKER, Element, Ruleset
from penstock.core.slices import RESOLVER, SLICE, slice_of
from penstock.core.snapshot import Snapshot
from penstock.core.surroundings import Surroundings
from penstock.core.wire import Json, Message

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DEPTH = 1
SETTLED = 20_000
"""Steps."""
Failing = Callable[[Effect], str]


def rules(name: str, egress: str = "[]", ingress: str = "[]", mode: str = "enforce") -> bytes:
    """A rule file; the lists in YAML's flow style."""
    text = f"version: 1\nworkload: {name}\nmode: {mode}\negress: {egress}\ningress: {ingress}\n"
    return text.encode()


ONE = {"rules.d/a.yaml": rules("a", "[{to: 198.51.100.10, ports: [443]}]")}
TWO = {**ONE, "rules.d/b.yaml": rules("b", "[{to: 198.51.100.11, ports: [443]}]")}
BROKEN = {"rules.d/a.yaml": b"version: 1\nworkload: a\nmode: enfoce\negress: x\ningress: []\n"}


def applied(files: Mapping[str, bytes], labels: Mapping[str, int]) -> bytes:
    """The state file of a daemon that applied these files."""
    policy = parse(files).policy
    assert policy
    return state.encode(state.Applied(policy.hash, START.timestamp() - 60, files, {}, labels))


class Kernel:
    """One table, cgroups, and a generation that grows with each transaction."""

    def __init__(self) -> None:
        self.ruleset: Ruleset | None = None
        self.bindings: dict[str, dict[int, tuple[str, str]]] = {}
        self.sets: dict[str, frozenset[Element]] = {}
        self.learned: dict[str, dict[bytes, str]] = {}  # set -> address -> name
        self.tampered = ""  # what somebody else did to our rules
        self.ours = True
        self.generation = 1
        self.commits = 0  # of ours
        self.recognised = True  # our loads are announced as ours
        self.cgroups: dict[str, int] = {}
        self.slices: dict[str, int] = {}  # base chain -> the slice that was there when it was loaded
        self.counters: dict[str, int] = {}
        self.announcements: deque[Commit] = deque()
        self._next_cgroup = 100

    def commit(self, *, touched: bool, pid: int, comm: str = "penstock") -> None:
        self.generation += 1
        self.announcements.append(Commit(self.generation, touched, pid, comm))

    def mkdir(self, path: str) -> None:
        if path not in self.cgroups:
            self._next_cgroup += 1
            self.cgroups[path] = self._next_cgroup

    def load(self, ruleset: Ruleset, now: datetime) -> None:
        self.ruleset, self.ours, self.tampered = ruleset, True, ""
        self.slices = dict.fromkeys(("output", "input"), self.cgroups[SLICE])
        kept = {chain.name for chain in ruleset.chains}
        for name in ruleset.maps:
            held = self.bindings.get(name, {})
            self.bindings[name] = {c: v for c, v in held.items() if v[1] in kept}
        self.sets = {s.name: frozenset(unexpired(s, now)) for s in ruleset.sets}
        names = {s.name for s in ruleset.name_sets}
        self.learned = {name: held for name, held in self.learned.items() if name in names}
        self.counters = {name: self.counters.get(name, 0) for name in ruleset.counters}
        self.commits += 1
        self.commit(touched=not self.recognised, pid=1)

    def bind(self, wanted: Mapping[str, Mapping[int, tuple[str, str]]]) -> None:
        new = {name: dict(elements) for name, elements in wanted.items()}
        if new != self.bindings:
            self.bindings = new
            self.commits += 1
            self.commit(touched=False, pid=1)

    def flush(self, comm: str = "nft", pid: int = 77) -> None:
        """Somebody flushes everything."""
        self.ruleset, self.bindings, self.sets, self.tampered, self.counters = None, {}, {}, "", {}
        self.learned = {}
        self.commit(touched=True, pid=pid, comm=comm)

    def tamper(self, comm: str = "nft", pid: int = 77) -> None:
        """Somebody exchanges a rule for another one, each time for a new one."""
        self.tampered += f"x{self.generation}"
        self.commit(touched=True, pid=pid, comm=comm)

    def learn(self, opened: Iterable[Opened]) -> None:
        declared = {s.name for s in self.ruleset.name_sets} if self.ruleset else set()
        for element in opened:
            if element.set not in declared:
                raise LookupError(element.set)
            self.learned.setdefault(element.set, {})[element.address] = element.name
        self.commits += 1
        self.commit(touched=False, pid=1)

    def retract(self, retractions: Iterable[Retract]) -> None:
        for gone in retractions:
            held = self.learned.get(gone.set, {})
            out = [address for address in held if (address in gone.addresses) != gone.others]
            self.learned[gone.set] = {a: name for a, name in held.items() if a not in out}

    def snapshot(self, now: datetime) -> Snapshot:
        ruleset = self.ruleset
        if ruleset is None:
            return Snapshot(self.generation)
        ends = {s.name: s.expires for s in ruleset.sets}
        held = {
            name: frozenset(e for e in elements if e not in ends[name] or ends[name][e] > now)
            for name, elements in self.sets.items()
        }
        chains = repr([(chain.name, chain.rules, chain.hook) for chain in ruleset.chains])
        return Snapshot(
            generation=self.generation,
            exists=True,
            ours=self.ours,
            chains={chain.name: len(chain.rules) for chain in ruleset.chains},
            digest=sha256((chains + self.tampered).encode()).hexdigest(),
            counters=frozenset(ruleset.counters) if self.ours else frozenset(ruleset.counters) - {MARKER},
            bindings={name: dict(elements) for name, elements in self.bindings.items()},
            slices=self.slices,
            sets=held | {s.name: frozenset() for s in ruleset.name_sets},
            timed={name: frozenset(e for e in elements if e in ends[name]) for name, elements in held.items()},
        )


class Host:
    """Run it with `start`, `command`, `tick`, `settle`; look at its parts."""

    def __init__(
        self,
        files: Mapping[str, bytes] | None = None,
        saved: bytes | None = None,
        seed: int | None = None,
        books: bytes | None = None,
    ) -> None:
        self.files: dict[str, bytes] = dict(ONE if files is None else files)
        self.presets: dict[str, bytes] = {}
        self.state = saved
        self.staged: bytes | None = None
        self.history: list[bytes] = []
        self.floor, self.staged_floor = b"", b""
        self.marked = False  # that a policy is on trial
        self.units: list[Unit] = []
        self.bound: dict[str, int] = {}  # places, as they were bound last
        self.told: list[str] = []  # to the service manager
        self.kernel = Kernel()
        self.grants: bytes | None = None
        self.accounts: list[Json] = []
        self.metrics = b""
        self.lines: list[effects.Journal] = []
        self.told_blocks: list[effects.Journal] = []
        self.floored: Ruleset | None = None  # what the last floor was made of
        self.boot, self.login = "boot-1", "anna"
        self._set, self._woke = 0.0, 1000.0  # how far the clock was set; the uptime at START
        self.now = START
        self.engine = Engine(START, 7, books)
        self.failing: Failing = lambda effect: ""
        self.done: list[Effect] = []  # all that were tried
        self.answers: dict[int, Json] = {}
        self.refusals: dict[int, effects.Refuse] = {}
        self.asked: list[int] = []
        self.blocks: list[Block] = []
        self.books: bytes | None = None
        self.journal: list[tuple[str, str]] = []
        self.quit: effects.Quit | None = None
        self.around = Surroundings()
        self.deaf = ""  # why the resolver cannot listen
        self.configured: resolver_wire.Configure | None = None
        self.settled: dict[int, bool] = {}
        self.there: set[str] = set()  # as was said last; the kernel forgets it
        self.saved_names: bytes | None = None
        self.processes: dict[str, list[Seen]] = {}
        self.strays: list[Stray] = []
        self.interfere: Callable[[], None] = lambda: None  # called between a load and its reading back
        self._random = random.Random(seed) if seed is not None else None
        self._tasks: list[deque[Effect]] = []
        self._events: deque[tuple[Event | None, deque[Effect] | None]] = deque()
        self._failed: set[str] = set()
        self._mark = (0, 0)
        self._loaded = 0
        self._fresh: list[tuple[int, Opened]] = []

    # --- what happens ---

    def start(self) -> Host:
        snapshot = self.kernel.snapshot(self.now)
        before = tuple(self.history)
        self.feed(
            events.Started(
                *(self.now, snapshot, self.state, DEPTH, tuple(self.units), before),
                grants=self.grants,
                boot=self.boot,
                uptime=self.uptime,
            )
        )
        return self.settle()

    @property
    def uptime(self) -> float:
        """Seconds since boot."""
        return self._woke + (self.now - START).total_seconds() - self._set

    def set_clock(self, seconds: float) -> None:
        """Forward by so much, or back."""
        self.now += timedelta(seconds=seconds)
        self._set += seconds

    def restart(self, *, boot: bool = False, away: float = 0.0) -> Host:
        """The daemon is killed and started again, or the whole host is, `away` seconds later."""
        self._tasks.clear()
        self._events.clear()
        self.asked, self.answers, self.refusals = [], {}, {}
        self.now += timedelta(seconds=away)
        if boot:
            self.boot += "+"
            self._woke -= self.uptime - 5.0
            self.kernel = Kernel()
        self.kernel.announcements.clear()
        self.engine = Engine(self.now, 8, self.books)
        return self.start()

    def command(self, name: str, /, **arguments: Any) -> int:
        """Send it; settle must follow before it is answered."""
        number = len(self.asked) + 1
        self.asked.append(number)
        if name == "apply":
            arguments = {"confirm": 0, **arguments}
        self.feed(events.Command(self.now, number, Message(name, arguments), self.login, self.uptime))
        return number

    def ask(self, name: str, /, **arguments: Any) -> Any:
        """Send it and return its answer."""
        number = self.command(name, **arguments)
        self.settle()
        return self.answers[number]

    def apply(self, files: Mapping[str, bytes] | None = None, confirm: int = 0) -> Any:
        if files is not None:
            self.files = dict(files)
        return self.ask("apply", confirm=confirm)

    def status(self) -> Any:
        return self.ask("status")

    def tick(self, seconds: float = 2.0) -> Host:
        self.now += timedelta(seconds=seconds)
        self.feed(events.Ticked(self.now, seconds, uptime=self.uptime))
        return self.settle()

    def announce(self) -> None:
        """The kernel's announcements reach the daemon."""
        commits = tuple(self.kernel.announcements)
        self.kernel.announcements.clear()
        if commits:
            self.feed(events.RulesetChanged(self.now, commits))

    def settle(self) -> Host:
        """Until nothing is under way; whatever happens, that is so before long."""
        for _ in range(SETTLED):
            if not self.step():
                return self
        raise AssertionError(f"busy for ever with {self.names()[-8:]}")

    def feed(self, event: Event) -> None:
        self.now += timedelta(milliseconds=1)
        todo = self.engine.handle(event)
        if todo:
            self._tasks.append(deque(todo))

    # --- the executor ---

    def step(self) -> bool:
        """One effect, or one event; False when there is none."""
        if self._events and (not self._tasks or self._pick(2) == 0):
            event, task = self._events.popleft()
            if task:
                self._tasks.append(task)
            if event is not None:
                self.feed(event)
        elif self._tasks:
            self._perform(self._tasks.pop(self._pick(len(self._tasks))))
        elif self.kernel.announcements:
            self.announce()
        else:
            return False
        return True

    def step_last(self) -> None:
        """One effect, of what began last: others wait for something else.  Without any, one event."""
        if self._tasks:
            self._perform(self._tasks.pop())
        else:
            assert self.step()

    def _pick(self, count: int) -> int:
        return self._random.randrange(count) if self._random else 0

    def _perform(self, task: deque[Effect]) -> None:
        effect = task.popleft()
        name = type(effect).__name__
        self.done.append(effect)
        error = self.failing(effect)
        if isinstance(effect, effects.Load) and SLICE not in self.kernel.cgroups:
            error = "cgroupv2 path fails: No such file or directory"
        if isinstance(effect, effects.Learn | effects.Renew) and self._loaded > effect.loaded:
            error = "another policy was loaded since the look-up"
        if error:
            getattr(self, f"_fail_{name}", lambda effect: None)(effect)
            self._failed.add(name)
            numbers = (getattr(effect, "operation", None), getattr(effect, "request", None))
            ids = getattr(effect, "ids", ())
            rest = task if isinstance(effect, effects.Telling) else None
            self._events.append((events.Failed(self.now, name, error, *numbers, ids), rest))
            return
        if name in self._failed:
            self._failed.discard(name)
            self._events.append((events.Worked(self.now, name), None))
        self._events.append((self._do(effect), task))

    def _do(self, effect: Effect) -> Event | None:
        handler: Callable[[Any], Event | None] = getattr(self, f"_do_{type(effect).__name__}")
        return handler(effect)

    def _do_ReadConfig(self, effect: effects.ReadConfig) -> Event:
        parsed = examine(parse(self.files, self.presets), self.now, self.around)
        files, presets = dict(self.files), dict(self.presets)
        return events.ConfigRead(self.now, effect.request, files, presets, parsed, effect.confirm, self.around)

    def _do_ReadHistory(self, effect: effects.ReadHistory) -> Event:
        return events.HistoryRead(self.now, effect.request, effect.to, tuple(self.history))

    def _do_Compile(self, effect: effects.Compile) -> Event:
        ruleset = compile_policy(effect.policy, effect.live)
        floor = f"floor of {effect.policy.hash}".encode() if effect.floor else b""
        if effect.floor:
            self.floored = compile_policy(effect.bare or effect.policy, effect.live)
        return events.Compiled(self.now, effect.operation, ruleset, floor)

    def _do_StageState(self, effect: effects.StageState) -> None:
        assert effect.floor
        self.staged, self.staged_floor = effect.data, effect.floor

    def _do_CommitState(self, effect: effects.CommitState) -> Event:
        assert self.staged is not None
        if self.state is not None:
            self.history = [self.state, *self.history][:2]
        self.state, self.staged = self.staged, None
        self.floor = self.staged_floor
        return events.Saved(self.now, effect.operation)

    def _do_SaveGrants(self, effect: effects.SaveGrants) -> None:
        self.grants = effect.data

    def _do_KeepGrants(self, effect: effects.KeepGrants) -> None:
        self.grants = effect.data

    def _do_Account(self, effect: effects.Account) -> None:
        self.accounts.append(effect.record)

    def _do_KeepFloor(self, effect: effects.KeepFloor) -> None:
        assert effect.data
        self.floor = effect.data

    def _do_MarkTrial(self, effect: effects.MarkTrial) -> None:
        assert effect.data
        self.marked = True

    def _do_EndTrial(self, effect: effects.EndTrial) -> None:
        self.marked = False

    def _do_Notify(self, effect: effects.Notify) -> None:
        self.told.append(effect.text)

    def _do_MakeCgroups(self, effect: effects.MakeCgroups) -> None:
        for path in (SLICE, *([RESOLVER] if effect.resolver else []), *map(slice_of, effect.workloads)):
            self.kernel.mkdir(path)

    def _fail_Load(self, effect: effects.Load) -> None:
        self.kernel.retract(effect.retract)  # which comes before what can fail

    def _do_Load(self, effect: effects.Load) -> None:
        assert effect.present is None or isinstance(effect.present, Present)
        self._mark = (self.kernel.generation, self.kernel.commits)
        fresh = [one for operation, one in self._fresh if operation == effect.operation]
        self._fresh.clear()
        self.kernel.retract(sparing(gone, fresh) for gone in effect.retract)
        self._loaded = effect.operation
        self.kernel.load(effect.ruleset, self.now)
        if effect.opened or fresh:
            self.kernel.learn([*effect.opened, *fresh])
        self.interfere()

    def _do_Listen(self, effect: effects.Listen) -> Event:
        ports = {} if self.deaf else {name: 40_000 + n for n, name in enumerate(effect.workloads)}
        return events.Listening(self.now, effect.operation, ports, self.deaf)

    def _do_Learn(self, effect: effects.Learn) -> None:
        brought = effect.then is not None and self._loaded == effect.loaded
        self.kernel.learn(effect.then or () if brought else effect.opened)
        self._fresh += [(effect.loaded, one) for one in effect.then or ()]

    def _do_Renew(self, effect: effects.Renew) -> None:
        self.kernel.retract(effect.retract)
        if effect.opened:
            self.kernel.learn(effect.opened)

    def _do_SayThere(self, effect: effects.SayThere) -> None:
        assert self.kernel.ruleset
        assert {*effect.there, *effect.gone} <= set(self.kernel.ruleset.set_names)
        self.there |= set(effect.there)
        self.there -= set(effect.gone)

    def _do_SaveNames(self, effect: effects.SaveNames) -> None:
        self.saved_names = effect.data

    def _do_Configure(self, effect: effects.Configure) -> None:
        self.configured = effect.message

    def _do_Settle(self, effect: effects.Settle) -> None:
        self.settled.update(dict.fromkeys(effect.ids, effect.ok))

    def _do_BindCgroups(self, effect: effects.BindCgroups) -> None:
        assert self.kernel.ruleset or self._random, "bound without a table"
        found = self._ids(effect.workloads, effect.places)
        wanted = bindings(
            effect.workloads, found, effect.places, effect.depth, effect.levels, by_name=effect.by_name
        )
        self.kernel.bind(wanted)
        self.bound = {path: found[path] for path in effect.places if path in found}

    def _do_ReadKernel(self, effect: effects.ReadKernel) -> Event:
        generation, commits = self._mark
        alone = self.kernel.generation - generation == self.kernel.commits - commits
        snapshot = self.kernel.snapshot(self.now)
        found = self._ids(effect.workloads)
        found |= {path: self.bound[path] for path in effect.places if path in self.bound}
        return events.ReadBack(self.now, effect.operation, snapshot, found, alone)

    def _do_ScanUnits(self, effect: effects.ScanUnits) -> Event:
        ours = {path: number for path, number in self.kernel.cgroups.items() if path.startswith(SLICE)}
        return events.UnitsSeen(self.now, tuple(self.units), ours)

    def _do_Prove(self, effect: effects.Prove) -> Event:
        for _ in range(2):  # bound, and unbound again
            self.kernel.commits += 1
            self.kernel.commit(touched=False, pid=1)
        return events.Proven(self.now)

    def _do_Examine(self, effect: effects.Examine) -> Event:
        processes = {name: tuple(self.processes.get(name, ())) for name in effect.workloads}
        inside = {(p.pid, p.started) for found in processes.values() for p in found}
        strays = tuple(
            s for s in self.strays if (s.pid, s.started) in effect.watch and (s.pid, s.started) not in inside
        )
        parsed = parse(self.files, self.presets)
        problems = examine(parsed, self.now).problems
        found = {**self.files, **{PRESETS + name: self.presets[name] for name in parsed.presets}}
        digests = {name: sha256(data).hexdigest() for name, data in found.items()}
        config = events.Files(digests, sum(problem.severity == "error" for problem in problems))
        return events.Examined(
            self.now,
            effect.request,
            self.kernel.generation,
            {name: (count, count * 60) for name, count in self.kernel.counters.items()},
            self._ids(effect.workloads),
            processes,
            strays,
            config if effect.around or effect.request is not None else None,
            {name: self._groups(name, effect.places) for name in effect.workloads},
        )

    def _groups(self, name: str, places: Mapping[str, str]) -> tuple[events.Group, ...]:
        number = len(self.processes.get(name, ()))
        inside = events.Group("run-1.scope", f"{slice_of(name)}/run-1.scope", "run", number)
        return (inside, *(events.Group("u", path, "in-place", 1) for path, w in places.items() if w == name))

    def _do_AskKernel(self, effect: effects.AskKernel) -> Event:
        address = int.from_bytes(effect.address)
        held = any(
            e.low <= address <= e.high and e.protocol == effect.protocol and e.first <= effect.port <= e.last
            for e in self.kernel.sets.get(effect.set, ())
        )
        learned = any(effect.address in self.kernel.learned.get(name, ()) for name in effect.learned)
        return events.Held(self.now, effect.request, held, learned)

    def _do_CountHits(self, effect: effects.CountHits) -> Event:
        sets = {name: dict.fromkeys(self.kernel.sets.get(name, ()), (3, 180)) for name, _ in effect.sets}
        counters = {name: (count, count * 60) for name, count in self.kernel.counters.items()}
        return events.Hits(self.now, effect.request, sets, counters)

    def _do_Record(self, effect: effects.Record) -> None:
        self.blocks += effect.blocks

    def _do_SaveBooks(self, effect: effects.SaveBooks) -> None:
        self.books = effect.data

    def _do_WriteMetrics(self, effect: effects.WriteMetrics) -> None:
        self.metrics = effect.data

    def _do_TellBlocks(self, effect: effects.TellBlocks) -> None:
        self.told_blocks += effect.lines

    def _do_Journal(self, effect: effects.Journal) -> None:
        self.journal.append((effect.level, effect.text))
        self.lines.append(effect)

    def _do_Answer(self, effect: effects.Answer) -> None:
        self._once(effect.request)
        self.answers[effect.request] = effect.result

    def _do_Refuse(self, effect: effects.Refuse) -> None:
        self._once(effect.request)
        self.refusals[effect.request] = effect

    def _do_Quit(self, effect: effects.Quit) -> None:
        self.quit = effect

    def _once(self, request: int) -> None:
        assert request in self.asked
        assert request not in self.answers, "answered twice"
        assert request not in self.refusals, "refused twice"

    def _ids(self, workloads: Sequence[str], places: Iterable[str] = ()) -> dict[str, int]:
        cgroups = self.kernel.cgroups
        paths = (SLICE, RESOLVER, *map(slice_of, workloads), *places)
        return {path: cgroups[path] for path in paths if path in cgroups}

    def unit(self, path: str) -> None:
        """A unit is started, or started again; the daemon hears of it when it is told or looks."""
        self.stop_unit(path)
        self.kernel.mkdir(path)
        self.units.append(Unit(path.rpartition("/")[2], path, self.kernel.cgroups[path]))

    def stop_unit(self, path: str) -> None:
        self.kernel.cgroups.pop(path, None)
        self.units = [unit for unit in self.units if unit.path != path]

    def watch(self) -> Host:
        """The daemon hears that cgroups came or went."""
        self.watch_later()
        return self.settle()

    def watch_later(self) -> None:
        """The same, without waiting for what comes of it."""
        self._tasks.append(deque([effects.ScanUnits()]))

    # --- what is looked at ---

    @property
    def unanswered(self) -> list[int]:
        return [n for n in self.asked if n not in self.answers and n not in self.refusals]

    def names(self, since: int = 0) -> list[str]:
        """What was tried, by name."""
        return [type(effect).__name__ for effect in self.done[since:]]

    def holds_policy(self) -> bool:
        """Whether the kernel holds what the engine says is in force: rules, sets and bindings."""
        in_force = self.engine.in_force
        if in_force is None or self.kernel.tampered or self.kernel.ruleset != in_force.ruleset:
            return False
        names = tuple(in_force.policy.workloads)
        sets = {s.name: frozenset(unexpired(s, START)) for s in in_force.ruleset.sets}
        found = self._ids(names, in_force.places)
        by_name = in_force.ruleset.by_name
        wanted = bindings(names, found, in_force.places, DEPTH, in_force.levels, by_name=by_name)
        return self.kernel.bindings == wanted and self.kernel.sets == sets


def once(name: str, error: str = "it broke") -> Failing:
    """The first effect of that name fails."""
    left = [name]

    def failing(effect: Effect) -> str:
        if type(effect).__name__ in left:
            left.clear()
            return error
        return ""

    return failing


def always(*names: str, error: str = "it broke") -> Failing:
    """Every effect of those names fails."""
    return lambda effect: error if type(effect).__name__ in names else ""
