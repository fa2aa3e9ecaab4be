"""The parts of a start that need no cgroup.  `cli/test_run` starts real programs in a lab."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from penstock.errors import PenstockError
from penstock.kernel import launch
from penstock.kernel.credentials import User

NOBODY = User("nobody", 65534, 65534, (65534,), "/nonexistent", "")


def test_environment() -> None:
    found = launch.environment(NOBODY, {"PATH": "/bin", "HOME": "/root", "USER": "root"})
    own = {"HOME": "/nonexistent", "USER": "nobody", "LOGNAME": "nobody", "SHELL": "/bin/sh"}
    assert found == {"PATH": "/bin", **own}


def test_a_directory_that_is_no_cgroup_is_found_out(tmp_path: Path) -> None:
    """What was written went into a plain file: the kernel knows nothing of it."""
    (tmp_path / "penstock.slice/penstock-a\\x2db.slice").mkdir(parents=True)
    with pytest.raises(PenstockError, match=r"and not in penstock.slice/penstock-a\\x2db.slice"):
        launch.enter(tmp_path, "a-b")


def test_no_slice(tmp_path: Path) -> None:
    with pytest.raises(PenstockError, match="cannot enter the cgroup: No such file or directory"):
        launch.enter(tmp_path, "w")
    assert not (tmp_path / "penstock.slice").exists()


@pytest.mark.parametrize(("number", "tries"), [(errno.ENODEV, 3), (errno.ENOENT, 3), (errno.EACCES, 1)])
def test_only_a_scope_that_went_away_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, tries: int
) -> None:
    tried = []

    def write_text(path: Path, text: str) -> int:
        tried.append(path)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_text", write_text)
    monkeypatch.setattr(launch, "TRIES", 3)
    (tmp_path / "penstock.slice/penstock-w.slice").mkdir(parents=True)
    with pytest.raises(PenstockError, match=os.strerror(number)):
        launch.enter(tmp_path, "w")
    assert len(tried) == tries
