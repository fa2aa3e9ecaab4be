"""Word of cgroups that come and go: on directories, and on a real tree."""

from __future__ import annotations

import ctypes
import os
import select
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from penstock.demo.lab import Lab
from penstock.errors import PenstockError
from penstock.kernel import cgroup, slice_watch
from penstock.kernel.slice_watch import SliceWatch


@contextmanager
def watching(tree: Path) -> Iterator[SliceWatch]:
    watch = SliceWatch(tree)
    try:
        watch.cover()
        yield watch
    finally:
        watch.close()


def heard(watch: SliceWatch, act: Callable[[], object]) -> bool:
    """Whether `act` is announced at once; nothing must be left of it afterwards."""
    assert not select.select([watch], [], [], 0)[0]
    act()
    happened = bool(select.select([watch], [], [], 0)[0])
    assert watch.read() == happened
    while watch.read():
        pass
    return happened


def unit_comes_and_goes(tree: Path) -> None:
    (tree / "system.slice").mkdir()
    with watching(tree) as watch:
        place = tree / "system.slice/x.service"
        for at in (tree, place.parent):
            assert heard(watch, (at / "y.service").mkdir), at
            assert heard(watch, (at / "y.service").rmdir), at
        assert heard(watch, place.mkdir)
        assert not heard(watch, (place / "below").mkdir), "users do there as they like"
        assert heard(watch, (tree / "new.slice").mkdir)
        assert heard(watch, (tree / "new.slice/deeper.slice").mkdir), "a slice that came since is watched"
        assert heard(watch, (tree / "new.slice/deeper.slice/x.service").mkdir)
        for name in ("new.slice/deeper.slice/x.service", "new.slice/deeper.slice", "new.slice"):
            assert heard(watch, (tree / name).rmdir)
        (place / "below").rmdir()
        place.rmdir()
        assert watch.read()


def test_directories(tmp_path: Path) -> None:
    unit_comes_and_goes(tmp_path)


@pytest.mark.root
def test_a_real_tree(lab: Lab) -> None:
    lab.host.call(unit_comes_and_goes, lab.cgroup)


def test_what_is_in_our_own_slice_is_heard_too_one_level_deep(tmp_path: Path) -> None:
    (tmp_path / "penstock.slice").mkdir()
    with watching(tmp_path) as watch:
        assert heard(watch, (tmp_path / "penstock.slice/penstock-a.slice").mkdir)
        assert not heard(watch, (tmp_path / "penstock.slice/penstock-a.slice/run-1.scope").mkdir)


def test_one_made_again_under_its_name_is_watched(tmp_path: Path) -> None:
    (tmp_path / "a.slice").mkdir()
    with watching(tmp_path) as watch:

        def again() -> None:
            (tmp_path / "a.slice").rmdir()
            (tmp_path / "a.slice").mkdir()

        assert heard(watch, again)
        assert heard(watch, (tmp_path / "a.slice/x.service").mkdir)


def test_one_that_comes_before_its_parent_is_watched_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not there when the slices were listed, and nobody announces it."""
    listed, late = cgroup.slices, [tmp_path / "a.slice/b.slice", tmp_path / "a.slice/b.slice/c.slice"]
    (tmp_path / "a.slice").mkdir()

    def and_then_one_comes(tree: Path) -> list[str]:
        found = listed(tree)
        if late:
            late.pop(0).mkdir()
        return found

    monkeypatch.setattr(cgroup, "slices", and_then_one_comes)
    with watching(tmp_path) as watch:
        while watch.read():
            pass
        assert heard(watch, (tmp_path / "a.slice/b.slice/x.service").mkdir)
        assert heard(watch, (tmp_path / "a.slice/b.slice/c.slice/x.service").mkdir)


def test_whoever_never_stops_making_slices_does_not_keep_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def another(tree: Path) -> list[str]:
        calls.append(tree)
        return [f"{len(calls)}.slice"]

    monkeypatch.setattr(cgroup, "slices", another)
    with watching(tmp_path):
        assert len(calls) == slice_watch.ROUNDS


def test_a_storm_is_one_word() -> None:
    kept = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory, watching(Path(memory)) as watch:
        place = f"{memory}/x.service"
        for _ in range(kept // 2 + 100):  # more than the kernel keeps
            os.mkdir(place)
            os.rmdir(place)
        assert watch.read()
        assert not watch.read()
        assert heard(watch, Path(place).mkdir)



def test_a_slice_that_is_gone_by_then_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.slice").touch()
    monkeypatch.setattr(cgroup, "slices", lambda tree: ["", "gone.slice", "file.slice"])
    with watching(tmp_path) as watch:
        assert heard(watch, (tmp_path / "x.service").mkdir)


def test_a_limit_is_said_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """inotify at its limits."""

        @staticmethod
        def inotify_add_watch(*args: object) -> int:
            ctypes.set_errno(28)
            return -1

        @staticmethod
        def inotify_init1(flags: int) -> int:
            ctypes.set_errno(24)
            return -1

    watch = SliceWatch(tmp_path)
    monkeypatch.setattr(slice_watch, "_libc", Full)
    with pytest.raises(PenstockError, match="cannot be watched: No space left") as caught:
        watch.cover()
    assert "fs.inotify.max_user_watches" in str(caught.value)
    watch.close()
    with pytest.raises(PenstockError, match="cannot be watched: Too many open files") as caught:
        SliceWatch(tmp_path)
    assert "fs.inotify.max_user_instances" in str(caught.value)


def test_it_does_not_outlive_an_exec(tmp_path: Path) -> None:
    with watching(tmp_path) as watch:
        assert not os.get_inheritable(watch.fileno())
        assert not os.get_blocking(watch.fileno())
