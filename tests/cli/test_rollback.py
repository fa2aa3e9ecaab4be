"""`penstock rollback`: what it asks for, what it prints and how it ends."""

from __future__ import annotations

import json

import pytest

from cli.conftest import Call
from cli.fake_daemon import FILES, FakeDaemon, policy, status
from penstock.core import state
from penstock.core.wire import Message

DONE = {"changed": True, "hash": "abc", "workloads": 2, "seconds": 0.123}


@pytest.fixture
def kept(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    """Three policies are kept; the oldest one is not understood."""
    monkeypatch.setenv("TZ", "UTC")
    directory = daemon.home / "state"
    one = {name: FILES[name] for name in ("penstock.yaml", "rules.d/litellm.yaml")}
    for name, hash_, at, files in (
        ("applied.json", "abcdef012345", 1_800_000_000.0, FILES),
        ("applied.1.json", "bbbbbbbbbbbb", 1_700_000_000.0, one),
        ("applied.2.json", "cccccccccccc", 1_600_000_000.0, {"rules.d/x.yaml": b"version: 99"}),
    ):
        (directory / name).write_bytes(state.encode(state.Applied(hash_, at, files)))
    return daemon


def test_the_one_before(daemon: FakeDaemon, call: Call) -> None:
    daemon.replies["rollback"] = DONE
    done = call("rollback")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == (
        "back in force is abc: 2 workloads, 0.12 s\n"
        "the rule files are as they were; before the next apply see: penstock plan\n"
    )
    assert daemon.requests == [Message("rollback", {"to": ""})]
    daemon.replies["rollback"] = DONE | {"changed": False}
    assert call("rollback").stdout.startswith("unchanged, in force is abc: 2 workloads")
    said = json.loads(call("rollback", "--json").stdout)
    assert said == {**DONE, "changed": False, "armed": [], "stranded": []}


def test_one_by_its_hash(daemon: FakeDaemon, call: Call) -> None:
    daemon.replies["rollback"] = DONE
    assert call("rollback", "ABCD").exit_code == 0
    assert daemon.requests == [Message("rollback", {"to": "abcd"})]


@pytest.mark.parametrize("text", ["abc", "xyzw", "", "../../etc", "a" * 65])
def test_what_is_no_hash(daemon: FakeDaemon, call: Call, text: str) -> None:
    done = call("rollback", text)
    assert (done.exit_code, done.stdout, daemon.requests) == (2, "", [])
    assert "at least 4 letters of a hash" in done.stderr


def test_refused(daemon: FakeDaemon, call: Call) -> None:
    daemon.replies["rollback"] = ("no earlier policy is kept", "penstock rollback --list")
    done = call("rollback")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "penstock: no earlier policy is kept; penstock rollback --list\n"
    daemon.close()
    assert call("rollback").exit_code == 2


def test_list(kept: FakeDaemon, call: Call) -> None:
    done = call("rollback", "--list")
    lines = done.stdout.splitlines()
    assert (done.exit_code, done.stderr, len(lines)) == (0, "", 4)
    assert lines[0].split() == ["POLICY", "APPLIED", "WORKLOADS"]
    assert (lines[1].split()[0], lines[1].endswith("2  in force")) == ("abcdef012345", True)
    assert (lines[2].split()[0], lines[2].endswith("1  rollback goes here")) == ("bbbbbbbbbbbb", True)
    assert (lines[3].split()[0], lines[3].split()[-1]) == ("cccccccccccc", "-")
    assert Message("rollback", {"to": ""}) not in kept.requests


def test_list_for_scripts(kept: FakeDaemon, call: Call) -> None:
    said = json.loads(call("rollback", "--list", "--json").stdout)
    assert (said["v"], said["unconfirmed"]) == (1, None)
    assert [(one["hash"], one["workloads"]) for one in said["policies"]] == [
        ("abcdef012345", 2), ("bbbbbbbbbbbb", 1), ("cccccccccccc", None)]  # fmt: skip
    assert said["policies"][1]["applied"] == "2023-11-14T22:13:20Z"
    assert said["policies"][1]["file"] == f"{kept.home}/state/applied.1.json"


def test_list_works_without_a_daemon(kept: FakeDaemon, call: Call) -> None:
    kept.close()
    assert len(call("rollback", "--list").stdout.splitlines()) == 4


def test_list_while_an_apply_waits(kept: FakeDaemon, call: Call) -> None:
    kept.replies["status"] = status(policy=policy(hash="dddddddddddd", confirm_until="2026-11-25T02:16:00Z"))
    lines = call("rollback", "--list").stdout.splitlines()
    assert lines[1].endswith("rollback goes here")
    assert not lines[2].endswith("rollback goes here")
    assert lines[-1] == "in force is dddddddddddd, not confirmed: penstock confirm"
    assert json.loads(call("rollback", "--list", "--json").stdout)["unconfirmed"] == "dddddddddddd"


def test_list_where_something_is_damaged_or_missing(kept: FakeDaemon, call: Call) -> None:
    (kept.home / "state/applied.1.json").write_text("{")
    done = call("rollback", "--list")
    assert (done.exit_code, len(done.stdout.splitlines())) == (0, 3)
    assert "applied.1.json: is no saved state of penstock" in done.stderr
    for name in ("applied.json", "applied.2.json"):
        (kept.home / "state" / name).unlink()
    done = call("rollback", "--list")
    assert (done.exit_code, done.stdout) == (2, "")
    (kept.home / "state/applied.1.json").unlink()
    done = call("rollback", "--list")
    assert (done.exit_code, "no policy has been applied" in done.stderr) == (2, True)


def test_list_names_none(call: Call) -> None:
    done = call("rollback", "--list", "abcd")
    assert (done.exit_code, "--list takes no HASH" in done.stderr) == (2, True)
