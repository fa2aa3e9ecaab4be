"""The play fails when the attack gets through, and says what it saw."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from io import StringIO

import pytest

from penstock.demo import stage, story
from penstock.demo.lab import Lab
from penstock.demo.recorder import Arrival
from penstock.errors import PenstockError

DOES_NOTHING = """#!/bin/sh
# a penstock that says all is well and holds nothing back
case $1 in
  daemon) exec sleep 600 ;;
  run) shift 3; exec "$@" ;;
  blocks) [ $2 ] || echo '203.0.113.66 2001:db8:66::66' ;;
  status) echo ollama ;;
  why) echo ollama; exit 1 ;;
esac
"""


def does_nothing(lab: Lab) -> str:
    path = lab.dir / "bin/penstock"
    path.parent.mkdir()
    path.write_text(DOES_NOTHING)
    path.chmod(0o755)
    return str(path)


@pytest.mark.root
def test_a_penstock_that_holds_nothing_back_is_found_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "_program", does_nothing)
    monkeypatch.setattr(story, "LOGGED_WITHIN", 0)
    assert story.play(["pull"], as_json=True) == 1
    seen = json.loads(capsys.readouterr().out)
    assert seen["ok"] is False
    failed = [(o["name"], o["family"]) for o in seen["observations"] if not o["ok"]]
    assert failed == [("the attack is refused", 4), ("the attack is refused", 6)]


@pytest.mark.root
def test_the_attack_is_seen_to_arrive_and_then_to_be_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert story.play(["pull"], as_json=True) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["ok"] is True
    assert seen["skipped"] == []
    remote = [o for o in seen["observations"] if not o["name"].startswith("penstock")]
    assert [(o["name"], o["family"], bool(o["evidence"])) for o in remote] == [
        (name, family, arrives)
        for name, arrives in (
            ("the attack arrives", True),
            ("the attack is refused", False),
            ("the allowed registry still works", True),
            ("another process of this host, no workload, is untouched", True),
        )
        for family in (4, 6)
    ]


@pytest.mark.root
def test_in_the_shell_every_command_works_without_a_terminal() -> None:
    argv = [sys.executable, "-m", "penstock.cli.main", "demo", "--act", "pull", "--shell"]
    typed = "penstock status; echo status:$?; penstock why ollama 203.0.113.66:80; echo why:$?; hostname\n"
    env = {**os.environ, "PYTHONPATH": "agent"}
    done = subprocess.run(argv, input=typed, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "lab"
    assert "status:0" in lines
    assert "why:1" in lines


@pytest.mark.root
def test_an_act_that_cannot_be_played_is_skipped_and_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: object) -> None:
        raise PenstockError("no such thing here")

    monkeypatch.setattr(stage, "_program", does_nothing)
    monkeypatch.setattr(story, "LOGGED_WITHIN", 0)
    monkeypatch.setattr("penstock.demo.acts.fetch", fails)
    monkeypatch.setattr(story.Play, "_call", lambda *_args, **_options: None)
    for ci, status in (("", 0), ("1", 1)):
        monkeypatch.setenv("CI", ci)
        assert story.play([]) == status
        assert "Skipped: hub: no such thing here" in capsys.readouterr().out


def arrival(event: str) -> Arrival:
    return Arrival(event, "tcp", 4, "192.0.2.10", 5, 80, "", 0.0)


@pytest.mark.parametrize(
    ("came", "words"),
    [
        ([], "no packet reached the x"),
        ([arrival("packet")], "1 packets reached the x"),
        ([arrival("packet"), arrival("connect")], "the x took 1 connection from 192.0.2.10"),
    ],
)
def test_what_arrived_in_words(came: list[Arrival], words: str) -> None:
    assert story.arrived(came, "x") == words


def test_no_colours_where_nobody_looks() -> None:
    stream = StringIO()
    story.Teller(stream).heading("a\x1b[31m")
    assert stream.getvalue() == "\na\x1b[31m\n"
    story.Teller(stream).shown("b\x1b[31m")
    assert stream.getvalue().endswith("    b\\x1b[31m\n")
