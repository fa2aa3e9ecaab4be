"""`penstock uninstall`: what it says, when it asks, and how it ends."""

from __future__ import annotations

import json
import os
import sys
from functools import partial

import pytest
from click.testing import CliRunner, Result

from penstock.cli.main import penstock
from penstock.enrol import installed, uninstall
from penstock.enrol.installed import Resident
from penstock.enrol.uninstall import Step
from penstock.errors import PenstockError


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two steps, and which of them were taken."""
    taken: list[str] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    steps = [Step("one", lambda: taken.append("one")), Step("two", lambda: taken.append("two"))]
    monkeypatch.setattr(uninstall, "steps", lambda places, purge: [*steps, *steps[:purge]])
    monkeypatch.setattr(installed, "residents", lambda places: [Resident("a.service", "a", 3, True)])
    return taken


def run(*arguments: str, text: str = "") -> Result:
    return CliRunner().invoke(penstock, ["uninstall", *arguments], text)


def test_plan_changes_nothing(done: list[str]) -> None:
    result = run("--plan")
    assert (result.exit_code, done) == (0, [])
    assert result.stdout == (
        "would do:\n  one\n  two\n"
        "without the table every process reaches everything, and is reached by everybody\n"
        "  a.service (workload a, 3 processes) stays in its slice until its restart\n"
    )


def test_plan_as_json(done: list[str]) -> None:
    result = run("--plan", "--json")
    assert (result.exit_code, done) == (0, [])
    consequence = "a.service (workload a, 3 processes) stays in its slice until its restart"
    assert json.loads(result.stdout) == {"v": 1, "steps": ["one", "two"], "consequences": [consequence]}
    assert (run("--yes", "--json").exit_code, done) == (2, [])


def test_yes(done: list[str]) -> None:
    result = run("--yes")
    assert (result.exit_code, done) == (0, ["one", "two"])
    assert result.stdout.startswith("done: one\ndone: two\nwithout the table every process")
    assert "a.service" in result.stdout


def test_purge(done: list[str]) -> None:
    assert run("--yes", "--purge").exit_code == 0
    assert done == ["one", "two", "one"]


def test_without_a_terminal_it_wants_yes(done: list[str]) -> None:
    result = run(text="y\n")
    assert (result.exit_code, done) == (2, [])
    assert result.stderr == "penstock: there is no terminal to ask on; say --yes, or look first with --plan\n"


@pytest.mark.parametrize(("answer", "status", "taken"), [("y\n", 0, 2), ("\n", 1, 0), ("n\n", 1, 0), ("", 1, 0)])
def test_on_a_terminal_it_asks_once(
    done: list[str], monkeypatch: pytest.MonkeyPatch, answer: str, status: int, taken: int
) -> None:
    monkeypatch.setattr("penstock.cli.uninstall.is_terminal", lambda: True)
    result = run(text=answer)
    assert (result.exit_code, len(done)) == (status, taken)
    assert result.stderr.count("Remove penstock from this host?") == 1
    assert result.stdout.startswith("this will:\n  one\n  two\n")


def test_not_a_terminal_is_seen() -> None:
    from penstock.cli.uninstall import is_terminal

    assert is_terminal() == sys.stdin.isatty()


def test_nothing_is_installed(done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uninstall, "steps", lambda places, purge: [])
    result = run("--yes")
    assert (result.exit_code, result.stdout) == (0, "nothing of penstock is installed here\n")


def test_a_step_that_fails_ends_it(done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise PenstockError("cannot be removed", where="/x")

    steps = [Step(name, partial(done.append, name)) for name in ("one", "two", "three")]
    steps[1] = Step("two", fail)
    monkeypatch.setattr(uninstall, "steps", lambda places, purge: steps)
    result = run("--yes")
    assert (result.exit_code, done) == (1, ["one"])
    assert result.stderr == "penstock: /x: cannot be removed\n"


def test_it_needs_root(done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = run("--plan")
    assert (result.exit_code, result.stderr) == (1, "penstock: uninstalling needs root; run it with sudo\n")
