"""The shell scripts are sound, and say in one sentence what they lack."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import cannot_run

ROOT = Path(__file__).parents[1]
SCRIPTS = ("agent/setup.sh", "agent/try", "tests/run", ".ci/run")


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_is_bash(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / script], check=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_has_nothing_to_say(script: str) -> None:
    if shutil.which("shellcheck") is None:
        cannot_run("needs shellcheck")
    subprocess.run(["shellcheck", "-x", "-s", "bash", script], cwd=ROOT, check=True)


def test_try_explains_itself_without_installing() -> None:
    argv = [str(ROOT / "agent/try"), "--act", "pull", "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0
    assert all(flag in done.stdout for flag in ("--setup", "--act", "--shell", "--json"))
    assert done.stderr == ""


@pytest.mark.root
def test_try_without_root_is_one_sentence() -> None:
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", str(ROOT / "agent/try"), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "sudo" in done.stderr


def test_a_python_is_tried_before_it_is_taken(tmp_path: Path) -> None:
    # A version manager leaves such a program behind for a Python that is not installed.
    shim = tmp_path / "python3.13"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    argv = ["bash", "-c", f". {ROOT}/agent/setup.sh; find_python"]
    path = f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin"
    found = subprocess.run(argv, env={"PATH": path}, capture_output=True, text=True, check=True).stdout.strip()
    assert found != str(shim)
    asked = [found, "-c", "import sys; print(sys.version_info >= (3, 11))"]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == "True\n"
