"""Policies stay while the log may name them, and no longer."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from blocklog.logs import BLOCK, write
from penstock.core import effects, state
from penstock.daemon import places, policy_archive, sinks
from penstock.daemon.file_worker import FileWorker
from penstock.daemon.options import Options
from penstock.daemon.policy_archive import SLACK, PolicyArchive

NOW = time.time()


def saved(hash: str, text: bytes = b"x") -> bytes:
    return state.encode(state.Applied(hash, 1.0, {"rules.d/a.yaml": text}))


def record(log: Path, when: float) -> None:
    write(log, [replace(BLOCK, id=str(when), first=when, last=when)])


def kept(home: Path) -> list[str]:
    return sorted(path.stem for path in (home / "policies").iterdir())


def replaced(home: Path, hash: str, when: float) -> None:
    os.utime(home / "policies" / f"{hash}.json", (when, when))


def test_one_stays_while_a_record_may_name_it(tmp_path: Path) -> None:
    archive = PolicyArchive(tmp_path, tmp_path / "log")
    record(tmp_path / "log", NOW - 1000)
    for hash in ("aaaaaaaaaaaa", "bbbbbbbbbbbb"):
        archive.keep(saved(hash))
    replaced(tmp_path, "aaaaaaaaaaaa", NOW - 1000 - SLACK - 5)
    replaced(tmp_path, "bbbbbbbbbbbb", NOW - 1000 - SLACK + 5)
    archive.forget()
    assert kept(tmp_path) == ["bbbbbbbbbbbb"]


def test_a_clock_that_was_set_back_costs_none(tmp_path: Path) -> None:
    """The oldest record claims to be of tomorrow; those after it are of now."""
    archive = PolicyArchive(tmp_path, tmp_path / "log")
    record(tmp_path / "log", NOW + 30 * 86400)
    archive.keep(saved("aaaaaaaaaaaa"))
    archive.forget()
    assert kept(tmp_path) == ["aaaaaaaaaaaa"]


def test_kept_again_is_in_force_until_now(tmp_path: Path) -> None:
    archive = PolicyArchive(tmp_path, tmp_path / "log")
    record(tmp_path / "log", NOW)
    archive.keep(saved("aaaaaaaaaaaa"))
    replaced(tmp_path, "aaaaaaaaaaaa", NOW - 10 * SLACK)
    archive.keep(saved("aaaaaaaaaaaa"))
    archive.forget()
    assert kept(tmp_path) == ["aaaaaaaaaaaa"]


def test_how_many_and_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_archive, "MOST", 3)
    archive = PolicyArchive(tmp_path, tmp_path / "log")
    record(tmp_path / "log", NOW)
    for n in range(6):
        archive.keep(saved(f"{n}" * 12))
        replaced(tmp_path, f"{n}" * 12, NOW + n)
    archive.forget()
    assert kept(tmp_path) == ["3" * 12, "4" * 12, "5" * 12]
    monkeypatch.setattr(policy_archive, "MOST_BYTES", 2 * len(saved("5" * 12)))
    archive.forget()
    assert kept(tmp_path) == ["4" * 12, "5" * 12]


def test_strange_things_harm_nothing(tmp_path: Path) -> None:
    archive = PolicyArchive(tmp_path, tmp_path / "log")
    archive.forget()
    archive.keep(None)
    archive.keep(b"{")
    archive.keep(saved("../../../../tmp/evil"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "policies").write_text("in the way")
    archive.keep(saved("aaaaaaaaaaaa"))
    archive.forget()


def test_without_a_log_nothing_is_forgotten(tmp_path: Path) -> None:
    archive = PolicyArchive(tmp_path, tmp_path / "log")
    archive.keep(saved("aaaaaaaaaaaa"))
    replaced(tmp_path, "aaaaaaaaaaaa", 0)
    archive.forget()
    assert kept(tmp_path) == ["aaaaaaaaaaaa"]


def test_the_daemon_keeps_what_it_loads_and_what_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(state=tmp_path / "state", log=tmp_path / "log", run=tmp_path / "run")
    options.state.mkdir(mode=0o700)
    options.run.mkdir()
    (options.state / state.FILE).write_bytes(saved("aaaaaaaaaaaa"))  # of a version that kept none
    worker = FileWorker(options)
    worker.stage_state(effects.StageState(1, saved("bbbbbbbbbbbb"), b"floor"))
    assert not (options.state / "policies").exists(), "what is loaded has room first"
    worker.commit_state()
    assert kept(options.state) == ["aaaaaaaaaaaa", "bbbbbbbbbbbb"]
    worker.mark_trial(effects.MarkTrial(2, saved("cccccccccccc")))
    assert kept(options.state) == ["aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"], "it may be named too"
    places.prepare(options)  # they are no strangers there
    monkeypatch.setattr(sinks, "LOG_KEPT", 1)
    worker.record([replace(BLOCK, first=NOW, last=NOW)])
    replaced(options.state, "aaaaaaaaaaaa", NOW - 2 * SLACK)
    worker._log._max_bytes = 10
    worker.record([replace(BLOCK, first=NOW, last=NOW)])
    assert kept(options.state) == ["bbbbbbbbbbbb", "cccccccccccc"], "a rotation looks for what is needed no more"
