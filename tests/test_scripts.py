"""The shell scripts are sound, and say in one sentence what they lack."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("agent/setup.sh", "agent/try", "tests/run", ".ci/run")


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_is_bash(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / script], check=True)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_has_nothing_to_say(script: str) -> None:
    subprocess.run(["shellcheck", "-x", "-s", "bash", script], cwd=ROOT, check=True)


def test_try_explains_itself_without_installing() -> None:
    argv = [ROOT / "agent/try", "--act", "pull", "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0
    assert all(flag in done.stdout for flag in ("--setup", "--act", "--shell", "--json"))
    assert done.stderr == ""


@pytest.mark.root
def test_try_without_root_is_one_sentence() -> None:
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", ROOT / "agent/try", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "sudo" in done.stderr


@pytest.mark.parametrize(
    ("version", "new_enough"), [("3.10.12", False), ("3.11.0", True), ("3.13.1", True), ("", False)]
)
def test_a_python_is_tried_before_it_is_taken(tmp_path: Path, version: str, new_enough: bool) -> None:
    fake = tmp_path / "python"
    numbers = tuple(int(n) for n in version.split(".")) if version else ()
    # What a version manager leaves behind for a Python that is not installed: a program that only fails.
    body = f"[ \"$2\" ] && exit {int(numbers < (3, 11))}" if version else "exit 127"
    fake.write_text(f"#!/bin/sh\n{body}\n")
    fake.chmod(0o755)
    done = subprocess.run(["bash", "-c", f". {ROOT}/agent/setup.sh; works {fake}"])
    assert (done.returncode == 0) == new_enough
