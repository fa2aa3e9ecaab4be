"""The group: what it loads, and how errors become one line and a status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli.conftest import Call
from cli.fake_daemon import FakeDaemon
from penstock.cli import main as module
from penstock.cli.context import CannotTell, NotStarted
from penstock.cli.main import COMMANDS, penstock
from penstock.errors import NoDaemon, PenstockError

AGENT = Path(module.__file__).parents[2]
PROGRAM = [sys.executable, "-m", "penstock.cli.main"]
ENV = {**os.environ, "PYTHONPATH": str(AGENT), "PENSTOCK_RUN": ""}


def program(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], env={**ENV, **env}, capture_output=True, text=True, timeout=20)


def test_help_names_every_command_and_loads_none() -> None:
    script = (
        "import sys; from penstock.cli.main import penstock\n"
        "try: penstock(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in sys.modules if m.startswith(('penstock.core', 'penstock.kernel', 'yaml', 'asyncio'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], env=ENV, capture_output=True, text=True, timeout=20)
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert done.stdout.endswith("\n[]\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_there_and_says_the_same_of_itself(name: str) -> None:
    if name == "daemon":
        pytest.importorskip("penstock.daemon.app")
    command = penstock.get_command(click.Context(penstock), name)
    assert command is not None
    assert command.name == name
    result = CliRunner().invoke(penstock, [name, "--help"])
    assert result.exit_code == 0


def test_version_and_usage() -> None:
    assert program("--version").stdout.startswith("penstock 0")
    for arguments in (("nonsense",), ("status", "--nonsense"), ("why",)):
        done = program(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PenstockError("no", where="here", hint="go"), 1),
        (NoDaemon("no", where="here", hint="go"), 2),
        (CannotTell("no", where="here", hint="go"), 2),
        (NotStarted("no", where="here", hint="go"), 125),
    ],
)
def test_an_error_is_one_line(monkeypatch: pytest.MonkeyPatch, error: PenstockError, status: int) -> None:
    @click.command()
    def broken() -> None:
        raise error

    monkeypatch.setattr(module.Commands, "get_command", lambda *_: broken)
    result = CliRunner().invoke(penstock, ["status"])
    assert (result.exit_code, result.stdout, result.stderr) == (status, "", "penstock: here: no; go\n")


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Commands, "get_command", lambda *_: interrupted)
    result = CliRunner().invoke(penstock, ["status"])
    assert (result.exit_code, result.stderr) == (130, "")


def test_a_reader_that_went_away(daemon: FakeDaemon) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    argv = [*PROGRAM, "--run", str(daemon.run), "status"]
    done = subprocess.run(argv, env=ENV, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=20)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_which_daemon_option_wins(daemon: FakeDaemon, call: Call) -> None:
    assert call("status", env={"PENSTOCK_RUN": "/nowhere"}).exit_code == 0
    assert program("status", PENSTOCK_RUN=str(daemon.run)).returncode == 0
    assert program("status", PENSTOCK_RUN="/nowhere").returncode == 2


def test_a_shell_completes_commands_and_workloads(daemon: FakeDaemon) -> None:
    def completed(words: str, number: int) -> list[str]:
        done = program(
            _PENSTOCK_COMPLETE="bash_complete",
            COMP_WORDS=words,
            COMP_CWORD=str(number),
            PENSTOCK_RUN=str(daemon.run),
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert completed("penstock st", 1) == ["status"]
    assert completed("penstock why li", 2) == ["litellm"]
    assert completed(f"penstock --run {daemon.run} run o", 4) == ["ollama"]


def test_json_is_json(call: Call) -> None:
    assert json.loads(call("status", "--json").stdout)["v"] == 1
