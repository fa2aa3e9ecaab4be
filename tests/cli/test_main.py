"""The group: what it loads, and how errors become one line and a status."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from blocklog.logs import block, write
from cli.conftest import Call
from cli.fake_daemon import FakeDaemon, in_force, status, workload
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
    """Little later than the library that prints it is there: processor's time, the best of some, in turns.

    Alone on a machine that is 0.1 s; on a busy one both need more.
    """

    def needed(*argv: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert subprocess.run(argv, env=ENV, stdout=subprocess.DEVNULL, timeout=20).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    turns = [(needed(*PROGRAM, "--help"), needed(sys.executable, "-c", "import click")) for _ in range(5)]
    ours, library = map(min, zip(*turns, strict=True))
    assert ours < library + 0.1


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_there_and_says_the_same_of_itself(name: str) -> None:
    if name == "daemon":
        pytest.importorskip("penstock.daemon.app")
    command = penstock.get_command(click.Context(penstock), name)
    assert command is not None
    assert command.name == name
    result = CliRunner().invoke(penstock, [name, "--help"])
    assert result.exit_code == 0


def tree() -> dict[str, click.Command]:
    """Every command, those of a group by both names."""
    found: dict[str, click.Command] = {}
    for name in COMMANDS:
        command = penstock.get_command(click.Context(penstock), name)
        assert command is not None
        found[name] = command
        if isinstance(command, click.Group):
            found.update({f"{name} {inner}": one for inner, one in command.commands.items()})
    return found


TREE = tree()


@pytest.mark.parametrize("name", TREE)
def test_each_help_has_an_example_that_is_understood(name: str) -> None:
    lines = [line.strip().removeprefix("Example: ") for line in (TREE[name].help or "").splitlines()]
    examples = [shlex.split(line) for line in lines if line.startswith("penstock ")]
    own = [words for words in examples if words[1 : 1 + len(name.split())] == name.split()]
    assert own, "no example"
    for words in examples:
        understand(penstock, words[1:])


def understand(command: click.Command, words: list[str]) -> None:
    """UsageError when the words are none that the command takes."""
    if isinstance(command, click.Group) and words:
        inner = command.get_command(click.Context(command), words[0])
        assert inner is not None, words
        understand(inner, words[1:])
    else:
        command.make_context(command.name, list(words))


@pytest.mark.parametrize("name", TREE)
def test_each_help_says_how_it_ends_and_fits_a_terminal(name: str) -> None:
    help_text = CliRunner().invoke(penstock, [*name.split(), "--help"], terminal_width=80).stdout
    assert re.search(r"Exit status: \S", help_text)
    assert [line for line in help_text.splitlines() if len(line) > 80] == []


WITHOUT_JSON = {
    "edit": "it is an editor's",
    "run": "what it prints is the program's",
    "manual": "pages are text",
    "daemon": "it prints nothing",
}


@pytest.mark.parametrize("name", TREE)
def test_what_prints_data_prints_json(name: str) -> None:
    options = {option for parameter in TREE[name].params for option in parameter.opts}
    assert ("--json" in options) != (name in WITHOUT_JSON)


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


def bash_completes(line: str, run: Path, tmp_path: Path) -> list[str]:
    """What bash offers at the end of the line, with the script that is installed for it."""
    wrapper = tmp_path / "bin/penstock"
    wrapper.parent.mkdir(exist_ok=True)
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m penstock.cli.main "$@"\n')
    wrapper.chmod(0o755)
    words = [*shlex.split(line), *([""] if line.endswith(" ") else [])]
    script = (
        'eval "$(_PENSTOCK_COMPLETE=bash_source penstock)"\n'
        f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}\n"
        "complete -p penstock | grep -q _penstock_completion && _penstock_completion penstock\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    env = {**ENV, "PATH": f"{wrapper.parent}:{os.environ['PATH']}", "PENSTOCK_RUN": str(run)}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_bash_completes_what_there_is(daemon: FakeDaemon, tmp_path: Path) -> None:
    write(daemon.home / "log", [block(1), block(2)])
    expected = {
        "penstock gra": ["grant", "grants"],
        "penstock status o": ["ollama"],
        "penstock why li": ["litellm"],
        "penstock presets show hugg": ["huggingface"],
        "penstock why --block ": [block(2).id, block(1).id],
        f"penstock why --block {block(1).id[:12]}": [block(1).id],
        "penstock manual ope": ["operating"],
        "penstock why nobody": [],
    }
    assert {line: bash_completes(line, daemon.run, tmp_path) for line in expected} == expected


def on_a_terminal(arguments: list[str], **env: str) -> str:
    """What the program prints there."""
    ours, theirs = pty.openpty()
    environment = {**ENV, "TERM": "xterm", "NO_COLOR": "", **env}
    with subprocess.Popen([*PROGRAM, *arguments], env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        with suppress(OSError):  # EIO: nobody writes any more
            while data := os.read(ours, 65536):
                said += data
        os.close(ours)
        process.wait(20)
    return said.decode()


def test_what_went_wrong_keeps_words_whole_on_a_terminal(daemon: FakeDaemon) -> None:
    long = "a" * 60
    arguments = ["--run", str(daemon.run), "why", long, "10.30.1.9:5432"]
    lines = on_a_terminal(arguments, COLUMNS="80").splitlines()
    assert len(lines) > 1
    assert any(f"`{long}`" in line for line in lines)
    assert all(len(line) <= 80 for line in lines)
    done = subprocess.run([*PROGRAM, *arguments], env=ENV, capture_output=True, text=True)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("line", ["status", "why litellm 10.30.1.9:5432", "blocks", "plan"])
def test_colours_are_for_terminals_whose_owner_does_not_mind(daemon: FakeDaemon, line: str) -> None:
    write(daemon.home / "log", [block(1)])
    (daemon.home / "config/rules.d/new.yaml").write_text(
        "version: 1\nworkload: new\nmode: enforce\negress: [{to: 192.0.2.1, ports: [443]}]\ningress: []\n"
    )
    arguments = ["--run", str(daemon.run), *line.split()]
    assert "\x1b[" in on_a_terminal(arguments)
    assert "\x1b" not in on_a_terminal(arguments, NO_COLOR="1")
    assert "\x1b" not in on_a_terminal(arguments, TERM="dumb")
    assert "\x1b" not in program(*arguments, TERM="xterm").stdout


def test_json_is_json(call: Call) -> None:
    assert json.loads(call("status", "--json").stdout)["v"] == 1


# --- JSON: keys are only ever added, and times are UTC ---

SCHEMAS = {
    "status": "v time daemon policy kernel workloads implicit grants findings",
    "status litellm": "v time daemon policy kernel workloads implicit grants findings rules",
    "check": "file line column severity code message hint",
    "plan": "v applied files changed workloads networks host reach restarts problems",
    "apply": "changed hash workloads seconds problems confirm_until armed stranded",
    "confirm": "confirmed hash armed stranded",
    "rollback": "changed hash workloads seconds armed stranded",
    "rollback --list": "v unconfirmed policies",
    "blocks": "v id first last workload verdict mode direction protocol family address port name count unlogged"
    " rule reason text nearest process policy allow",
    "blocks --by workload": "v by key workload count first last",
    "why litellm 10.30.1.5:5432": "v workload direction question address name protocol port verdict effect mode"
    " reason text rule nearest kernel policy notes resolving addresses names asked",
    "why --block 000": "v block kept applied rule_read then now",
    "presets": "v presets problems",
    "presets show huggingface": "v name title source date file published names for known egress ports recognise",
    "presets diff huggingface --against tests/recorded/huggingface-meta.json": "v preset date against names same"
    " missing extra ignored",
    "grants": "v time grants",
    "suggest litellm": "v workload mode since file written proposed refused rejected",
}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d")
_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def times_in(value: Any) -> Iterator[str]:
    """Every time in a JSON document."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from times_in(inner)
    elif isinstance(value, str) and _TIME.match(value):
        yield value


@pytest.fixture
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A time zone that is not UTC."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("line", SCHEMAS)
def test_json_has_what_was_promised(
    tokyo: None, daemon: FakeDaemon, call: Call, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(AGENT.parent)
    daemon.replies.update(in_force() | {"rollback": BACK})
    (daemon.home / "config/rules.d/ollama.yaml").write_text("version: 1\nworkload: ollama\nmod: enforce\n")
    if line.startswith("suggest"):
        daemon.write()
    write(daemon.home / "log", [block(1, policy="abcdef012345")])
    done = call(*line.split(), "--json")
    found = json.loads(done.stdout.splitlines()[0] if line.startswith("blocks") else done.stdout)
    found = found[0] if isinstance(found, list) else found
    assert set(SCHEMAS[line].split()) <= found.keys()
    assert [when for when in times_in(found) if not _UTC.fullmatch(when)] == []


def test_text_has_local_times_with_their_zone(tokyo: None, daemon: FakeDaemon, call: Call) -> None:
    write(daemon.home / "log", [block(1)])
    assert call("blocks").stdout.startswith("2025-11-25 11:00:01 JST  DENY")
    assert "applied 2026-11-25 11:12:01 JST" in call("status").stdout
    assert "1970-01-01 09:00:00 JST" in call("rollback", "--list").stdout


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
        ("why litellm 10.30.1.5:5432", {"holds": True, "learned": False}, 0),
        ("why litellm 10.30.1.6:5432", {"holds": False, "learned": False}, 1),
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
