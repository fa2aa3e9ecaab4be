"""`penstock confirm`: what it prints and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.conftest import Call
from cli.fake_daemon import FakeDaemon
from penstock.cli.arming import Settled
from penstock.core.wire import Message

YES = {"confirmed": True, "hash": "abc"}


def test_confirmed(daemon: FakeDaemon, call: Call) -> None:
    daemon.replies["confirm"] = YES
    done = call("confirm")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "confirmed abc: it stays in force\n", "")
    assert daemon.requests[0] == Message("confirm")
    done = call("confirm", "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {**YES, "armed": [], "stranded": []})


def test_nothing_waits(daemon: FakeDaemon, call: Call) -> None:
    daemon.replies["confirm"] = {"confirmed": False, "hash": "abc"}
    done = call("confirm")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "penstock: nothing waits to be confirmed; in force is abc\n"
    daemon.replies["confirm"] = {"confirmed": False, "hash": None}
    assert call("confirm").stderr == "penstock: nothing waits to be confirmed; no policy is in force\n"
    assert call("confirm", "--json").exit_code == 1


def test_failures(daemon: FakeDaemon, call: Call) -> None:
    daemon.replies["confirm"] = ("cannot be saved", "make room")
    done = call("confirm")
    assert (done.exit_code, done.stderr) == (1, "penstock: cannot be saved; make room\n")
    daemon.close()
    assert call("confirm").exit_code == 2


def test_drop_ins(daemon: FakeDaemon, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def settle(run: Path, *, kept: bool) -> Settled:
        assert (run, kept) == (daemon.run, True)
        return Settled((("a.service", "a"),))

    monkeypatch.setattr("penstock.cli.confirm.settle", settle)
    daemon.replies["confirm"] = YES
    text = "a.service: comes into the slice of a at its next restart: systemctl restart a.service"
    assert " ".join(" ".join(call("confirm").stdout.splitlines()[1:]).split()) == text
    assert json.loads(call("confirm", "--json").stdout)["armed"] == [{"unit": "a.service", "workload": "a"}]
    daemon.replies["confirm"] = {"confirmed": False, "hash": "abc"}
    assert "a.service" not in call("confirm").stdout
