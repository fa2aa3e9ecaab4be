"""The group: what it loads, and how errors become one line and a status."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cli.conftest import Call
from cli.fake_daemon import FakeDaemon, status, workload
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


def test_help_comes_at_once() -> None:
    """The processor's time, as a busy machine has a clock of its own; the best of some, as it is what we need."""

    def needed() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert program("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(needed() for _ in range(5)) < 0.15


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_there_and_says_the_same_of_itself(name: str) -> None:
    if name == "daemon":
        pytest.importorskip("penstock.daemon.app")
    command = penstock.get_command(click.Context(penstock), name)
    assert command is not None
    assert command.name == name
    result = CliRunner().invoke(penstock, [name, "--help"])
    assert result.exit_code == 0


def test_a_run_directory_that_only_root_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on every installed host: what needs no daemon works for everybody."""
    (tmp_path / "run").mkdir()
    (tmp_path / "a.yaml").write_text("version: 1\nworkload: a\nmode: enforce\negress: []\ningress: []\n")
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("/run"))
    done = CliRunner().invoke(penstock, ["--run", str(tmp_path / "run"), "check", str(tmp_path / "a.yaml")])
    assert done.exit_code == 0, done.output


def test_version_and_usage() -> None:
    assert program("--version").stdout.startswith("penstock 0")
    for arguments in (("nonsense",), ("status", "--nonsense"), ("why",)):
        done = program(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PenstockError("no", where="here", hint="go"), 1),
        (NoDaemon("no", where="here", hint="go"), 2),
        (CannotTell("no", where="here", hint="go"), 2),
        (NotStarted("no", where="here", hint="go"), 125),
    ],
)
def test_an_error_is_one_line(monkeypatch: pytest.MonkeyPatch, error: PenstockError, code: int) -> None:
    @click.command()
    def broken() -> None:
        raise error

    monkeypatch.setattr(module.Commands, "get_command", lambda *_: broken)
    result = CliRunner().invoke(penstock, ["status"])
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", "penstock: here: no; go\n")


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


# --- exit statuses: 0 yes or done, 1 no or failed, 2 usage or cannot tell, 3 changed ---

NEEDS_DAEMON = ("status", "apply", "confirm", "rollback")
APPLIED = {"changed": True, "hash": "abc", "workloads": 1, "seconds": 0.1, "problems": [], "confirm_until": None}
REFUSED: dict[str, Any] = {"changed": False, "refused": True, "hash": None, "problems": []}
BACK = {"changed": True, "hash": "abc", "workloads": 1, "seconds": 0.1}
NOT_ALL = status(workload(egress="degraded"))


@pytest.mark.parametrize(
    ("line", "reply", "expected"),
    [
        ("status", None, 0),
        ("status", NOT_ALL, 1),
        ("check", None, 0),
        ("check /no/such/directory", None, 1),
        ("plan", None, 0),
        ("plan --against /no/such/file", None, 2),
        ("apply", APPLIED, 0),
        ("apply --changed-exit", APPLIED, 3),
        ("apply --changed-exit", APPLIED | {"changed": False}, 0),
        ("apply --changed-exit", REFUSED, 1),
        ("apply", ("the kernel refused", ""), 1),
        ("apply --confirm 1s", APPLIED, 2),
        ("confirm", {"confirmed": True, "hash": "abc"}, 0),
        ("confirm", {"confirmed": False, "hash": "abc"}, 1),
        ("rollback", BACK, 0),
        ("rollback", BACK | {"changed": False}, 0),
        ("rollback abcd", ("no policy abcd is kept", ""), 1),
        ("rollback --list", None, 0),
        ("why litellm 10.30.1.5:5432", {"holds": True}, 0),
        ("why litellm 10.30.1.6:5432", {"holds": False}, 1),
        ("why nobody 10.30.1.6:5432", None, 2),
        ("blocks", None, 0),
        ("manual", None, 0),
        ("manual nonsense", None, 2),
    ],
)
def test_exit_statuses(daemon: FakeDaemon, call: Call, line: str, reply: Any, expected: int) -> None:
    (daemon.home / "log/blocks.jsonl").touch()
    if reply is not None:
        daemon.replies["holds" if line.startswith("why") else line.split()[0]] = reply
    assert call(*line.split()).exit_code == expected


def test_no_daemon_is_no_answer_where_one_is_needed(daemon: FakeDaemon, call: Call) -> None:
    daemon.close()
    assert {name: call(name).exit_code for name in NEEDS_DAEMON} == dict.fromkeys(NEEDS_DAEMON, 2)
    (daemon.home / "log/blocks.jsonl").touch()
    for line in ("check", "plan", "blocks", "rollback --list", "why litellm 10.30.1.5:5432"):
        assert call(*line.split()).exit_code == 0
    (daemon.run / "daemon.json").unlink()
    for line in ("plan", "rollback --list", "why litellm 10.30.1.5:5432"):
        assert call(*line.split()).exit_code == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_usage(call: Call, name: str) -> None:
    done = call(name, "--no-such-option")
    assert (done.exit_code, done.stdout) == (2, "")
