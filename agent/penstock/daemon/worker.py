"""What blocks: everything that effects do to files and to the kernel, as plain functions of one object.

The kernel's half runs in a thread of its own, so that nothing waits behind a table load but kernel work.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from penstock import files
from penstock.core import effects, events, state
from penstock.core.blocks import LOG_NAME, Block
from penstock.core.checking import examine
from penstock.core.parse import FileResult, assemble, parse_file
from penstock.core.questions import bindings
from penstock.core.slices import slice_of
from penstock.daemon import places
from penstock.daemon.options import Options
from penstock.daemon.places import writing
from penstock.daemon.sinks import BlockLog
from penstock.errors import PenstockError
from penstock.kernel import cgroup, process, proof
from penstock.kernel.loading import load
from penstock.kernel.nft import Nft


def now() -> datetime:
    """The one place of the daemon that looks at the wall clock."""
    return datetime.now(UTC)


class FileWorker:
    """Configuration, state and log; used by one thread."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._log = BlockLog(options.log)
        self._parsed: dict[tuple[str, str], FileResult] = {}

    def read_config(self, effect: effects.ReadConfig) -> events.ConfigRead:
        """Files that did not change since the last time are not parsed again."""
        contents = self._config()
        presets = files.read_presets(self._options.config)
        results = self._parse(contents, presets)
        parsed = assemble(
            [results[("", path)] for path in contents], {path: results[("preset", path)] for path in presets}
        )
        return events.ConfigRead(now(), effect.request, contents, presets, examine(parsed, now()))

    def _config(self) -> dict[str, bytes]:
        """A directory that is missing or empty is a mistake, not a policy that governs nobody."""
        contents = files.read_config(self._options.config)
        if not contents:
            hint = "write penstock.yaml and a file for each workload in rules.d"
            raise PenstockError("holds no rule files", where=str(self._options.config), hint=hint)
        return contents

    def _parse(
        self, contents: dict[str, bytes], presets: dict[str, bytes]
    ) -> dict[tuple[str, str], FileResult]:
        kept: dict[tuple[str, str], FileResult] = {}
        results = {}
        for kind, group in (("", contents), ("preset", presets)):
            for path, data in group.items():
                key = (path, sha256(data).hexdigest())
                kept[key] = results[(kind, path)] = self._parsed.get(key) or parse_file(path, data)
        self._parsed = kept
        return results

    def digests(self) -> dict[str, str] | None:
        """File -> sha256 of what the configuration directory holds now; None when it cannot be read."""
        try:
            return {path: sha256(data).hexdigest() for path, data in self._config().items()}
        except PenstockError:
            return None

    def stage_state(self, effect: effects.StageState) -> None:
        with writing(self._options.state / state.STAGED):
            files.stage(self._options.state / state.STAGED, effect.data)

    def commit_state(self) -> None:
        with writing(self._options.state / state.FILE):
            files.put(self._options.state / state.STAGED, self._options.state / state.FILE)

    def save_books(self, effect: effects.SaveBooks) -> None:
        with writing(self._options.state / places.BOOKS):
            files.replace(self._options.state / places.BOOKS, effect.data)

    def record(self, blocks: Sequence[Block]) -> None:
        with writing(self._options.log / LOG_NAME):
            self._log.append(blocks)


@dataclass(slots=True)
class _Mark:
    """Where the ruleset stood when an operation began to load: its generation, and our own commits."""

    generation: int = 0
    commits: int = 0


class KernelWorker:
    """nf_tables, cgroups and processes; made and used by one thread."""

    def __init__(self, tree: Path) -> None:
        self._tree = tree
        self._nft = Nft()
        self._mark = _Mark()
        self.port = self._nft.port
        self.thread = threading.get_native_id()

    def snapshot(self) -> events.ReadBack:
        return self.read_kernel(effects.ReadKernel(None, ()))

    def make_cgroups(self, effect: effects.MakeCgroups) -> None:
        cgroup.make(self._tree, effect.workloads)

    def load(self, effect: effects.Load) -> None:
        self._mark = _Mark(self._nft.generation(), self._nft.commits)
        load(self._nft, effect.ruleset, effect.present, now())

    def bind_cgroups(self, effect: effects.BindCgroups) -> None:
        self._nft.bind(bindings(effect.workloads, cgroup.ids(self._tree, effect.workloads)))

    def read_kernel(self, effect: effects.ReadKernel) -> events.ReadBack:
        snapshot = self._nft.snapshot()
        grown = snapshot.generation - self._mark.generation
        alone = grown == self._nft.commits - self._mark.commits
        ids = cgroup.ids(self._tree, effect.workloads)
        return events.ReadBack(now(), effect.operation, snapshot, ids, alone)

    def prove(self) -> events.Proven:
        proof.prove(self._nft, self._tree)
        return events.Proven(now())

    def examine(self, effect: effects.Examine, config: dict[str, str] | None) -> events.Examined:
        processes, strays = {}, []
        watch = dict(effect.watch)
        for name in effect.workloads:
            pids = cgroup.processes(self._tree / slice_of(name))
            found = tuple(p for p in map(process.seen, pids) if p is not None)
            processes[name] = found
            for p in found:
                watch.pop((p.pid, p.started), None)
            cgroup.sweep(self._tree, name)
        for (pid, started), name in watch.items():
            stray = process.stray(pid, started, name)
            if stray is not None:
                strays.append(stray)
        return events.Examined(
            now(),
            effect.request,
            self._nft.generation(),
            self._nft.counters(),
            cgroup.ids(self._tree, effect.workloads),
            processes,
            tuple(strays),
            config,
        )

    def ask(self, effect: effects.AskKernel) -> events.Held:
        held = self._nft.has(effect.set, effect.address, effect.protocol, effect.port)
        return events.Held(now(), effect.request, held)

    def count_hits(self, effect: effects.CountHits) -> events.Hits:
        hits = {name: self._nft.hits(name, family) for name, family in effect.sets}
        return events.Hits(now(), effect.request, hits)
