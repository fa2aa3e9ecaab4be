"""What effects do to the kernel, as plain functions of one object.

It has a thread of its own, so that nothing waits behind a table load but kernel work.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.core import effects, events
from penstock.core.name_elements import Opened, sparing
from penstock.core.questions import bindings
from penstock.core.slices import SLICE, slice_of, slice_unit
from penstock.daemon.clock import now, uptime
from penstock.errors import PenstockError
from penstock.kernel import cgroup, name_bypass, name_sets, open_ports, process, proof, systemd
from penstock.kernel.loading import load, retime
from penstock.kernel.name_sets import NameSets
from penstock.kernel.nft import Nft

LEARNED = ("names4_", "names6_")
"""What the names of sets of learned addresses begin with."""

LATE = 0.02
"""Seconds that a load may take before the ends of elements are told anew: they count from some moment in it."""


@dataclass(slots=True)
class _Mark:
    """Where the ruleset stood when an operation began to load: its generation, and our own commits."""

    generation: int = 0
    commits: int = 0


class KernelWorker:
    """nf_tables, cgroups and processes; made and used by one thread.  `path`: `tree` as in /proc/PID/cgroup."""

    def __init__(self, tree: Path, path: str = "/") -> None:
        self._tree = tree
        self._path = path.rstrip("/") + "/"
        self._nft = Nft()
        self._names = NameSets(self._nft)
        self._mark = _Mark()
        self._loaded = 0  # by that operation
        self._fresh: list[tuple[int, Opened]] = []  # learned since that operation began: it must not take them out
        self._bound: dict[str, int] = {}  # places, with the ids that the kernel's maps were given
        self.port = self._nft.port
        self.thread = threading.get_native_id()

    def snapshot(self) -> events.ReadBack:
        return self.read_kernel(effects.ReadKernel(None, ()))

    def make_cgroups(self, effect: effects.MakeCgroups) -> None:
        cgroup.make(self._tree, effect.workloads, resolver=effect.resolver)

    def load(self, effect: effects.Load) -> None:
        self._mark = _Mark(self._nft.generation(), self._nft.commits)
        fresh = [one for operation, one in self._fresh if operation == effect.operation]
        self._fresh.clear()
        self._names.retract([sparing(gone, fresh) for gone in effect.retract])
        began = uptime()
        load(self._nft, effect.ruleset, effect.present, now())
        if uptime() - began > LATE:
            retime(self._nft, effect.ruleset, now)
        self._loaded = effect.operation
        self._names.renew([*effect.opened, *fresh])

    def learn(self, effect: effects.Learn) -> None:
        self._still(effect.loaded)
        brought = effect.then is not None and self._loaded == effect.loaded
        self._names.learn(effect.then or () if brought else effect.opened)
        self._fresh += [(effect.loaded, one) for one in effect.then or ()]

    def _still(self, loaded: int) -> None:
        """PenstockError when another policy was loaded since an address was judged: its rule may be gone."""
        if self._loaded > loaded:
            raise PenstockError("another policy was loaded since the look-up", hint="it is tried again by itself")

    def say_there(self, effect: effects.SayThere) -> None:
        name_sets.say_there(self._nft, effect.there, effect.gone)

    def renew(self, effect: effects.Renew) -> None:
        self._still(effect.loaded)
        self._names.retract(effect.retract)
        self._names.renew(effect.opened)

    def learned(self) -> tuple[Opened, ...]:
        """What a daemon before this one has learned, and the kernel still holds."""
        names = [name for name in self._nft.sets() if name.startswith(LEARNED)]
        return tuple(name_sets.learned(self._nft, names))

    def bind_cgroups(self, effect: effects.BindCgroups) -> None:
        found = cgroup.ids(self._tree, effect.workloads, effect.places)
        wanted = bindings(
            effect.workloads, found, effect.places, effect.depth, effect.levels, by_name=effect.by_name
        )
        self._nft.bind(wanted)
        self._bound = {path: found[path] for path in effect.places if path in found}

    def read_kernel(self, effect: effects.ReadKernel) -> events.ReadBack:
        snapshot = self._nft.snapshot()
        grown = snapshot.generation - self._mark.generation
        alone = grown == self._nft.commits - self._mark.commits
        found = cgroup.ids(self._tree, effect.workloads)
        found |= {path: self._bound[path] for path in effect.places if path in self._bound}
        return events.ReadBack(now(), effect.operation, snapshot, found, alone)

    def prove(self) -> events.Proven:
        proof.prove(self._nft, self._tree)
        return events.Proven(now())

    def scan_units(self) -> events.UnitsSeen:
        return events.UnitsSeen(now(), cgroup.units(self._tree), cgroup.our_slices(self._tree))

    def examine(self, effect: effects.Examine, config: events.Files | None) -> events.Examined:
        processes, groups = {}, {}
        watch = dict(effect.watch)
        for name in effect.workloads:
            places = [path for path, workload in effect.places.items() if workload == name]
            homes = [slice_of(name), *places]
            pids = [pid for path in homes for pid in cgroup.processes(self._tree / path)]
            processes[name] = tuple(p for p in map(process.seen, pids) if p is not None)
            for p in processes[name]:
                watch.pop((p.pid, p.started), None)
            cgroup.sweep(self._tree, name)
            groups[name] = self._groups(name, places)
        strays = (process.stray(pid, started, name) for (pid, started), name in watch.items())
        return events.Examined(
            now(),
            effect.request,
            self._nft.generation(),
            self._nft.counters(),
            cgroup.ids(self._tree, effect.workloads),
            processes,
            tuple(stray for stray in strays if stray is not None),
            config,
            groups,
            self._look_alikes(effect) if effect.around else None,
            tuple(self._delegated(effect)),
            tuple(_bypasses(processes)) if effect.around else None,
            self._listeners(effect) if effect.request is not None else None,
        )

    def _listeners(self, effect: effects.Examine) -> tuple[events.Listener, ...] | None:
        homes = {name: [slice_of(name)] for name in effect.workloads}
        for path, name in effect.places.items():
            homes.setdefault(name, []).append(path)
        try:
            return open_ports.listeners(self._tree, homes)
        except OSError:
            return None

    def _groups(self, workload: str, places: Sequence[str]) -> tuple[events.Group, ...]:
        home = slice_of(workload)
        loose = cgroup.own_processes(self._tree / home)
        direct = [events.Group(slice_unit(workload), home, "slice", len(loose))] if loose else []
        return (*direct, *map(self._group, [*cgroup.groups(self._tree, workload), *places]))

    def _group(self, path: str) -> events.Group:
        name = path.rpartition("/")[2]
        number, boxes = len(cgroup.processes(self._tree / path)), cgroup.containers(self._tree, path)
        if not path.startswith(f"{SLICE}/"):
            name = name.removeprefix("_")  # as `cgroup.units` has it
            return events.Group(name, path, "in-place", number, systemd.dropin(name), boxes)
        ways = {"run": "run", "adopt": "adopted"}
        prefix, _, rest = name.partition("-")
        ours = rest.removesuffix(".scope").isdigit()
        return events.Group(name, path, ways.get(prefix, "slice") if ours else "slice", number, containers=boxes)

    def _look_alikes(self, effect: effects.Examine) -> tuple[events.LookAlike, ...]:
        homes = [self._path + path + "/" for path in (SLICE, *effect.places)]
        return process.look_alikes(lambda place: any(f"{place}/".startswith(home) for home in homes))

    def _delegated(self, effect: effects.Examine) -> Iterator[tuple[str, str, int]]:
        """Slices around a workload that are not root's."""
        for name in effect.workloads:
            above = {slice_of(name), SLICE}
            above |= {path.rpartition("/")[0] for path, workload in effect.places.items() if workload == name}
            for path in sorted(above):
                uid = cgroup.owner(self._tree, path)
                if uid:
                    yield name, path, uid

    def ask(self, effect: effects.AskKernel) -> events.Held:
        held = self._nft.has(effect.set, effect.address, effect.protocol, effect.port)
        learned = any(name_sets.has(self._nft, name, effect.address) for name in effect.learned)
        return events.Held(now(), effect.request, held, learned)

    def count_hits(self, effect: effects.CountHits) -> events.Hits:
        hits = {name: self._nft.hits(name, family) for name, family in effect.sets}
        return events.Hits(now(), effect.request, hits, self._nft.counters())


def _bypasses(processes: Mapping[str, Sequence[events.Seen]]) -> Iterator[events.Bypass]:
    for workload, seen in processes.items():
        comms = {one.pid: one.comm for one in seen}
        for path, pid in name_bypass.exposed(comms):
            yield events.Bypass(workload, path, pid, comms[pid])
