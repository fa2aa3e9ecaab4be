"""The shell scripts are sound, and say in one sentence what they lack."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import cannot_run
from penstock.cli.check import check_path
from penstock.cli.main import COMMANDS
from test_examples import NOW

ROOT = Path(__file__).parents[1]
SCRIPTS = ("agent/setup.sh", "agent/try", "tests/run", ".ci/run", "systemd/install.sh")
"""With what they source."""
PLAIN = ("systemd/floor.sh", "systemd/sleep.sh")
"""For the shell of a host that has little else."""


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_is_bash(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / script], check=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_has_nothing_to_say(script: str) -> None:
    if shutil.which("shellcheck") is None:
        cannot_run("needs shellcheck")
    subprocess.run(["shellcheck", "-x", "-s", "bash", script], cwd=ROOT, check=True)


@pytest.mark.parametrize("script", PLAIN)
def test_plain_ones_are_sh(script: str) -> None:
    assert (ROOT / script).read_text().startswith("#!/bin/sh\n")
    for shell in ("dash", "bash"):
        if shutil.which(shell) is None:
            cannot_run(f"needs {shell}")
        subprocess.run([shell, "-n", ROOT / script], check=True)
    if shutil.which("shellcheck") is None:
        cannot_run("needs shellcheck")
    subprocess.run(["shellcheck", "-s", "sh", script], cwd=ROOT, check=True)


def install(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What the installer says to these."""
    argv = [str(ROOT / "systemd/install.sh"), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})


def test_the_installer_explains_itself() -> None:
    done = install("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(flag in done.stdout for flag in ("--download DIR", "--offline DIR"))


@pytest.mark.parametrize(
    "arguments",
    [["--what"], ["DIR"], ["--offline"], ["--offline="], ["--download", "a", "--offline", "b"], ["\x1b[31m"]],
)
def test_wrong_usage_of_the_installer(arguments: list[str]) -> None:
    done = install(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr[:-1].isprintable()


def test_the_man_page_names_each_command() -> None:
    page = (ROOT / "systemd/penstock.8").read_text()
    named = re.findall(r"^\.TP\n\.B ([a-z]+)$", page, re.MULTILINE)
    assert sorted(named) == sorted(COMMANDS)


def test_the_man_page_is_sound() -> None:
    if shutil.which("groff") is None:
        cannot_run("needs groff")
    argv = ["groff", "-man", "-Tutf8", "-wall", "-z", str(ROOT / "systemd/penstock.8")]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stderr == ""


def test_the_configuration_that_is_installed_is_sound(tmp_path: Path) -> None:
    """Also with its examples, which are comments."""
    text = (ROOT / "systemd/penstock.yaml").read_text()
    examples = text.partition("# networks:")
    for content in (text, examples[0] + re.sub(r"^# ", "", examples[1] + examples[2], flags=re.MULTILINE)):
        (tmp_path / "penstock.yaml").write_text(content)
        assert not check_path(tmp_path, NOW)[0]
    assert "\nnetworks:" in content


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
