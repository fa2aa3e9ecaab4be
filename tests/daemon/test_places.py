"""The daemon's directories: what is made, what is refused, and that the lock is one."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.daemon import places
from penstock.daemon.options import Options
from penstock.errors import PenstockError


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(tmp_path / "c", tmp_path / "s/a", tmp_path / "r", tmp_path / "l", None)


def test_what_is_missing_is_made_and_private(options: Options) -> None:
    os.close(places.prepare(options))
    assert [stat.S_IMODE(p.stat().st_mode) for p in (options.state, options.run)] == [0o700, 0o700]
    assert options.log.is_dir()


def test_what_is_ours_already_stays(options: Options) -> None:
    os.close(places.prepare(options))
    for name in places.STATE_FILES:
        (options.state / name).write_text("x")
    (options.state / "lost+found").mkdir()  # the state is a file system of its own
    os.close(places.prepare(options))
    assert (options.state / places.BOOKS).read_text() == "x"


def test_what_a_release_before_left_is_no_obstacle(options: Options) -> None:
    options.run.mkdir()
    (options.run / "ports.json").write_text("{}")
    os.close(places.prepare(options))


@pytest.mark.parametrize("which", ["state", "run"])
def test_a_directory_of_something_else_is_left_alone(options: Options, which: str) -> None:
    place: Path = getattr(options, which)
    place.mkdir(parents=True, mode=0o755)
    (place / "thesis.tex").write_text("x")
    with pytest.raises(PenstockError, match="not penstock's: thesis"):
        places.prepare(options)
    assert stat.S_IMODE(place.stat().st_mode) == 0o755


def test_a_file_in_the_place_of_a_directory_is_said(options: Options) -> None:
    options.run.write_text("x")
    with pytest.raises(PenstockError, match="cannot be used"):
        places.prepare(options)


def test_a_lock_that_cannot_be_opened_is_said(options: Options) -> None:
    options.run.mkdir()
    (options.run / places.LOCK).symlink_to("/dev/null")
    with pytest.raises(PenstockError, match="cannot be locked"):
        places.prepare(options)


def test_a_second_daemon_is_refused_until_the_first_is_gone(options: Options) -> None:
    code = (
        "import sys, pathlib; from penstock.daemon import places; from penstock.daemon.options import Options;"
        "names = dict(zip(('state', 'run', 'log'), map(pathlib.Path, sys.argv[1:])));"
        "places.prepare(Options(**names)); print('locked', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(options.state), str(options.run), str(options.log)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(places.__file__).parents[2])},
    )
    assert child.stdout
    assert child.stdout.readline() == "locked\n"
    with pytest.raises(PenstockError, match="another penstock daemon"):
        places.prepare(options)
    child.kill()
    child.communicate()
    os.close(places.prepare(options))


def test_the_facts_outlive_the_daemon(options: Options) -> None:
    os.close(places.prepare(options))
    places.tell(options, Path("/sys/fs/cgroup"), 1)
    facts = json.loads((options.run / places.FACTS).read_text())
    assert facts["config"] == str(options.config)
    assert facts["cgroup"] == "/sys/fs/cgroup"
    assert facts.keys() == {"config", "state", "run", "log", "cgroup", "pid", "version", "depth"}


def test_facts_that_cannot_be_written_are_said(options: Options) -> None:
    with pytest.raises(PenstockError, match="cannot be written"):
        places.tell(options, Path("/"), 1)


def test_read(tmp_path: Path) -> None:
    assert places.read(tmp_path / "none") is None
    with pytest.raises(PenstockError, match="cannot be read"):
        places.read(tmp_path)
