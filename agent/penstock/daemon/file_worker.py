"""What effects do to files, as plain functions of one object that one thread uses.

The kernel's half is in `kernel_worker`, with a thread of its own: nothing waits behind a slow disk but files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from penstock import files, this_host
from penstock.core import effects, events, floor, grants, state
from penstock.core.blocks import LOG_NAME, Block
from penstock.core.checking import examine
from penstock.core.compile import compile_policy
from penstock.core.parse import PRESETS, FileResult, Parsed, assemble, parse_file
from penstock.daemon import places
from penstock.daemon.clock import now
from penstock.daemon.index_keeper import IndexKeeper
from penstock.daemon.options import Options
from penstock.daemon.places import writing
from penstock.daemon.policy_archive import PolicyArchive
from penstock.daemon.sinks import BlockLog, LineLog
from penstock.errors import PenstockError


class FileWorker:
    """Configuration, state and log; used by one thread.  `tree` is the path of the cgroup above penstock.slice."""

    def __init__(self, options: Options, tree: str = "/") -> None:
        self._options = options
        self._below = tree.strip("/")
        self._log = BlockLog(options.log)
        self._index = IndexKeeper(options.log)
        self._archive = PolicyArchive(options.state, options.log)
        self._rotations = 0
        self._lent = LineLog(options.log, grants.LOG_NAME)
        self._parsed: dict[tuple[str, str], FileResult] = {}
        self._looked: tuple[dict[str, str], events.Files] | None = None

    def read_config(self, effect: effects.ReadConfig) -> events.ConfigRead:
        """Files that did not change since the last time are not parsed again."""
        contents = self._config()
        presets = files.read_presets(self._options.config)
        parsed = self._parse(contents, presets)
        around = this_host.around(parsed.policy or parsed.host)
        judged = examine(parsed, now(), around)
        return events.ConfigRead(now(), effect.request, contents, presets, judged, effect.confirm, around)

    def _config(self) -> dict[str, bytes]:
        """A directory that is missing or empty is a mistake, not a policy that governs nobody."""
        contents = files.read_config(self._options.config)
        if not contents:
            hint = "write penstock.yaml and a file for each workload in rules.d"
            raise PenstockError("holds no rule files", where=str(self._options.config), hint=hint)
        return contents

    def _parse(self, contents: dict[str, bytes], presets: dict[str, bytes]) -> Parsed:
        kept: dict[tuple[str, str], FileResult] = {}
        results = {}
        for kind, group in (("", contents), ("preset", presets)):
            for path, data in group.items():
                key = (path, sha256(data).hexdigest())
                kept[key] = results[(kind, path)] = self._parsed.get(key) or parse_file(path, data)
        self._parsed = kept
        return assemble(
            [results[("", path)] for path in contents], {path: results[("preset", path)] for path in presets}
        )

    def look(self) -> events.Files | None:
        """What the configuration directory holds now; None when it cannot be read."""
        try:
            contents, presets = self._config(), files.read_presets(self._options.config)
        except PenstockError:
            return None
        everything = {**contents, **{PRESETS + path: data for path, data in presets.items()}}
        digests = {path: sha256(data).hexdigest() for path, data in everything.items()}
        if self._looked is None or self._looked[0] != digests:
            parsed = self._parse(contents, presets)
            errors = sum(problem.severity == "error" for problem in examine(parsed, now()).problems)
            used = (*contents, *(PRESETS + path for path in parsed.presets))
            self._looked = digests, events.Files({path: digests[path] for path in used}, errors)
        return self._looked[1]

    def compile(self, effect: effects.Compile) -> events.Compiled:
        """The ruleset, and the floor that goes with it if that is wanted."""
        ruleset = compile_policy(effect.policy, effect.live)
        if not effect.floor:
            return events.Compiled(now(), effect.operation, ruleset)
        live = replace(effect.live, levels=(), resolver=None)  # nobody answers look-ups, and nothing is learned
        policy = effect.bare or effect.policy
        same = live == effect.live and policy is effect.policy
        plain = ruleset if same else compile_policy(policy, live)
        data = floor.text(plain, tuple(policy.workloads), policy.hash, self._below)
        return events.Compiled(now(), effect.operation, ruleset, data)

    def read_history(self, effect: effects.ReadHistory) -> events.HistoryRead:
        return events.HistoryRead(now(), effect.request, effect.to, places.history(self._options))

    def stage_state(self, effect: effects.StageState) -> None:
        with writing(self._options.state / state.STAGED):
            files.stage(self._options.state / state.STAGED, effect.data)
        with writing(self._options.state / places.STAGED_FLOOR):
            files.stage(self._options.state / places.STAGED_FLOOR, effect.floor)

    def commit_state(self) -> None:
        """The floor first: a boot in between loads what the kernel holds already."""
        home = self._options.state
        self._keep()
        replaced = places.read(home / state.FILE)
        with writing(home / places.FLOOR):
            files.put(home / places.STAGED_FLOOR, home / places.FLOOR)
        with writing(home / state.FILE):
            files.put(home / state.STAGED, home / state.FILE)
        # Last: on a disk that is nearly full what explains must not take the room of what is loaded.
        for data in (replaced, places.read(home / state.FILE)):
            self._archive.keep(data)
        self._archive.forget()

    def _keep(self) -> None:
        """The policy that goes is kept beside the one before it; a damaged one is as if it were not there."""
        home = self._options.state
        saved = [places.read(home / name) for name in (state.FILE, *state.HISTORY)]
        coming = _hash_of(places.read(home / state.STAGED))
        kept = {_hash_of(data): data for data in reversed(saved) if data}
        wanted = [data for data in reversed(kept.values()) if _hash_of(data) not in ("", coming)]
        # The oldest first: whatever moment the power fails in, the present one and the one before it are kept.
        for name, data in reversed(list(zip(state.HISTORY, wanted, strict=False))):
            if places.read(home / name) != data:
                with writing(home / name):
                    files.replace(home / name, data)

    def keep_floor(self, effect: effects.KeepFloor) -> None:
        path = self._options.state / places.FLOOR
        if places.read(path) != effect.data:
            with writing(path):
                files.replace(path, effect.data)

    def save_grants(self, data: bytes) -> None:
        """What is lent, down to the disk."""
        with writing(self._options.state / grants.FILE):
            files.replace(self._options.state / grants.FILE, data)

    def account(self, effect: effects.Account) -> None:
        """One more line of what was lent, for good."""
        with writing(self._options.log / grants.LOG_NAME):
            self._lent.write((json.dumps(dict(effect.record)).encode("ascii") + b"\n",))

    def mark_trial(self, effect: effects.MarkTrial) -> None:
        path = self._options.run / places.TRIAL
        with writing(path):
            files.replace(path, b"")
        self._archive.keep(effect.data)

    def end_trial(self) -> None:
        (self._options.run / places.TRIAL).unlink(missing_ok=True)

    def save_books(self, effect: effects.SaveBooks) -> None:
        with writing(self._options.state / places.BOOKS):
            files.replace(self._options.state / places.BOOKS, effect.data)

    def save_names(self, effect: effects.SaveNames) -> None:
        with writing(self._options.state / places.NAMES):
            files.replace(self._options.state / places.NAMES, effect.data)

    def write_metrics(self, effect: effects.WriteMetrics) -> None:
        """Others read it, as another user: whatever the umask is, they may."""
        path = self._options.metrics
        with writing(path):
            if not effect.data:
                path.unlink(missing_ok=True)
                return
            places.open_to_all(path.parent)
            staged = path.with_name(f".{path.name}.new")  # no name that a reader takes
            files.stage(staged, effect.data)
            os.chmod(staged, 0o644)
            os.rename(staged, path)

    def record(self, blocks: Sequence[Block]) -> None:
        with writing(self._options.log / LOG_NAME):
            self._log.append(blocks)
        self._index.keep()
        if self._rotations != self._log.rotations:
            self._rotations = self._log.rotations
            self._archive.forget()


def _hash_of(data: bytes | None) -> str:
    try:
        return state.decode(data or b"").hash
    except ValueError:
        return ""
