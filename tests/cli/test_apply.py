"""`penstock apply`: what it prints and how it ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cli.conftest import Call
from cli.fake_daemon import FakeDaemon

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
    return {"changed": changed, "hash": "abc", "workloads": 2, "problems": [], "seconds": 0.123} | more


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
    assert (done.exit_code, json.loads(done.stdout)) == (0, said)
    daemon.replies["apply"] = refused()
    done = call("apply", "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (1, refused())


def test_no_daemon(daemon: FakeDaemon, call: Call) -> None:
    daemon.close()
    assert call("apply").exit_code == 2
