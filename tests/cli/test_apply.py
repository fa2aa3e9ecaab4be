"""`penstock apply`: what it prints and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Call
from cli.fake_daemon import FakeDaemon
from penstock.cli.arming import Settled
from penstock.core.wire import Message

PROBLEM = {
    "file": "rules.d/w.yaml",
    "line": 3,
    "column": 5,
    "severity": "warning",
    "code": "wide",
    "message": "opens\x1b much",
    "hint": "less",
}


def result(changed: bool = True, **more: Any) -> dict[str, Any]:
    return {"changed": changed, "hash": "abc", "workloads": 2, "problems": [], "seconds": 0.123} | {
        "confirm_until": None
    } | more


def refused(hash: str | None = "abc") -> dict[str, Any]:
    return {"changed": False, "hash": hash, "refused": True, "problems": [PROBLEM | {"severity": "error"}]}


@pytest.mark.parametrize(
    ("options", "reply", "status", "out", "err"),
    [
        ((), result(), 0, "applied abc: 2 workloads, 0.12 s\n", ""),
        ((), result(False, workloads=1), 0, "unchanged, in force is abc: 1 workload, 0.12 s\n", ""),
        (("--changed-exit",), result(), 3, "applied abc: 2 workloads, 0.12 s\n", ""),
        (("--changed-exit",), result(False), 0, "unchanged, in force is abc: 2 workloads, 0.12 s\n", ""),
        ((), ("the kernel refused", "try"), 1, "", "penstock: the kernel refused; try\n"),
    ],
)
def test_outcomes(
    daemon: FakeDaemon, call: Call, options: tuple[str, ...], reply: Any, status: int, out: str, err: str
) -> None:
    daemon.replies["apply"] = reply
    done = call("apply", *options)
    assert (done.exit_code, done.stdout, done.stderr) == (status, out, err)


def test_problems_are_told_as_check_tells_them(daemon: FakeDaemon, call: Call) -> None:
    daemon.replies["apply"] = result(problems=[PROBLEM])
    place = f"{daemon.home}/config/rules.d/w.yaml:3:5"
    assert call("apply").stdout.splitlines()[0] == f"{place}: warning: opens\\x1b much; less"
    daemon.replies["apply"] = refused()
    done = call("apply", "--changed-exit")
    assert (done.exit_code, done.stdout) == (1, f"{place}: error: opens\\x1b much; less\n")
    assert done.stderr == "penstock: not applied, 1 error; abc stays in force\n"
    daemon.replies["apply"] = refused(None)
    assert call("apply").stderr == "penstock: not applied, 1 error; no policy is in force\n"


def test_json(daemon: FakeDaemon, call: Call) -> None:
    daemon.replies["apply"] = said = result(problems=[PROBLEM])
    done = call("apply", "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {**said, "armed": [], "stranded": []})
    daemon.replies["apply"] = refused()
    done = call("apply", "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (1, refused())


UNTIL = "2026-11-25T02:16:00Z"


def test_waits_to_be_confirmed(daemon: FakeDaemon, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.cli.apply.clock", lambda when: f"{when:%H:%M:%S}")
    daemon.replies["apply"] = result(confirm_until=UNTIL)
    done = call("apply", "--confirm", "10m", "--changed-exit")
    assert (done.exit_code, done.stderr) == (3, "")
    assert done.stdout.splitlines()[1] == (
        "not confirmed: reverts by itself at 02:16:00; keep it with: penstock confirm"
    )
    assert daemon.requests[0] == Message("apply", {"confirm": 600})
    assert json.loads(call("apply", "--confirm", "5s", "--json").stdout)["confirm_until"] == UNTIL
    daemon.replies["apply"] = result(changed=False)
    assert "not confirmed" not in call("apply", "--confirm", "5s").stdout
    call("apply")
    assert daemon.requests[-1] == Message("apply", {"confirm": 0})


@pytest.mark.parametrize("text", ["4s", "0s", "86401s", "2d", "60", "-5s", "", "soon"])
def test_times_that_are_none(daemon: FakeDaemon, call: Call, text: str) -> None:
    done = call("apply", f"--confirm={text}")
    assert (done.exit_code, done.stdout, daemon.requests) == (2, "", [])
    assert "goes from 5s to 24h" in done.stderr or "write a number and a unit" in done.stderr


@pytest.mark.parametrize(("until", "kept"), [(None, True), (UNTIL, False)])
def test_drop_ins(
    daemon: FakeDaemon, call: Call, monkeypatch: pytest.MonkeyPatch, until: str | None, kept: bool
) -> None:
    asked = []

    def settle(run: Path, *, kept: bool) -> Settled:
        asked.append(kept)
        return Settled((("a.service", "a"),), (("b.service", "b"),), "it is late")

    monkeypatch.setattr("penstock.cli.apply.settle", settle)
    daemon.replies["apply"] = result(confirm_until=until)
    done = call("apply", "--changed-exit")
    assert (done.exit_code, asked) == (1, [kept])
    assert "a.service: comes into the slice of a at its next restart" in done.stdout
    assert done.stderr == "penstock: in force, but the drop-ins of units are not in place: it is late\n"
    daemon.replies["apply"] = refused()
    assert call("apply").exit_code == 1
    assert asked == [kept]


def test_no_daemon(daemon: FakeDaemon, call: Call) -> None:
    daemon.close()
    assert call("apply").exit_code == 2
