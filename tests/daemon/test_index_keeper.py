"""The daemon's part in the index: a little at a time, and never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from blocklog.logs import block, noise, write
from penstock.blocklog import index
from penstock.blocklog.index import path_in
from penstock.blocklog.query import Index
from penstock.daemon import index_keeper
from penstock.daemon.file_worker import FileWorker
from penstock.daemon.index_keeper import LATER, LONG_AFTER, SOON, IndexKeeper
from penstock.daemon.options import Options


class Clock:
    """Time that stands still until it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(index_keeper, "uptime", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(index, "SMALL", 0)
    monkeypatch.setattr(index_keeper, "STEP", 10_000)
    return Clock(monkeypatch)


def left(directory: Path) -> int:
    found = Index(directory)
    found.close()
    return found.left


def test_steps(tmp_path: Path, clock: Clock) -> None:
    write(tmp_path, list(noise(1, 60)))
    keeper = IndexKeeper(tmp_path)
    keeper.keep()
    first = left(tmp_path)
    assert first > 10_000
    keeper.keep()
    assert left(tmp_path) == first, "not due yet"
    clock.now += SOON
    keeper.keep()
    assert left(tmp_path) < first
    while left(tmp_path) >= 10_000:
        clock.now += SOON
        keeper.keep()
    write(tmp_path, list(noise(2, 60)))
    behind = left(tmp_path)
    clock.now += SOON
    keeper.keep()
    assert left(tmp_path) == behind, "nothing was left to do: it is looked at later"
    clock.now += LATER
    keeper.keep()
    assert left(tmp_path) < behind


def test_failing_harms_nobody_and_is_tried_again(tmp_path: Path, clock: Clock) -> None:
    write(tmp_path, list(noise(1, 60)))
    (tmp_path / "index").write_text("in the way")
    keeper = IndexKeeper(tmp_path)
    keeper.keep()
    (tmp_path / "index").unlink()
    clock.now += LATER
    keeper.keep()
    assert not path_in(tmp_path).exists()
    clock.now += LONG_AFTER
    keeper.keep()
    assert path_in(tmp_path).exists()


def test_whoever_records_keeps_the_index(tmp_path: Path, clock: Clock) -> None:
    worker = FileWorker(Options(log=tmp_path))
    worker.record([block(n) for n in range(60)])
    assert path_in(tmp_path).exists()
