"""A record of the log is explained by the policy of then."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blocklog.logs import BLOCK, T, block, write
from cli.conftest import Call
from cli.fake_daemon import FILES, FakeDaemon
from penstock.blocklog import index
from penstock.cli.main import penstock
from penstock.cli.why_block import complete_block
from penstock.core import state
from penstock.core.blocks import Block

THEN = "0123456789ab"
OLD = {
    **FILES,
    "rules.d/litellm.yaml": b"""\
version: 1
workload: litellm
mode: enforce
egress:
  # the database moved
  - {to: 10.30.1.9, ports: [6432], name: old-db}
ingress: []
match: {container: litellm}
""",
}


@pytest.fixture(params=["index", "log"])
def home(daemon: FakeDaemon, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy of then, and the present one, in which 10.30.1.9:5432 is as closed, but a neighbour is not."""
    if request.param == "index":
        monkeypatch.setattr(index, "SMALL", 0)
    (daemon.home / "state/policies").mkdir()
    keep(daemon.home, THEN, OLD)
    return daemon.home


def keep(home: Path, name: str, files: dict[str, bytes]) -> None:
    saved = state.encode(state.Applied(name, T - 100, files))
    (home / f"state/policies/{name}.json").write_bytes(saved)


def told(home: Path, *blocks: Block) -> None:
    write(home / "log", list(blocks))


def explained(call: Call, id_: str, status: int = 1) -> dict[str, Any]:
    done = call("why", "--block", id_, "--json")
    assert done.exit_code == status, done.output
    found = json.loads(done.stdout)
    assert list(found) == ["v", "block", "kept", "applied", "rule_read", "then", "now"]
    return dict(found)


def test_by_the_policy_of_then_and_of_now(home: Path, call: Call) -> None:
    told(home, block(1, policy=THEN, address="10.30.1.5", text="as told then"), block(2))
    found = explained(call, block(1).id)
    assert found["block"]["id"] == block(1).id
    assert (found["kept"], found["applied"]) == (True, "2025-11-25T01:58:20Z")
    assert (found["then"]["verdict"], found["then"]["nearest"]["id"]) == ("deny", "old-db")
    assert found["rule_read"] == "- {to: 10.30.1.9, ports: [6432], name: old-db}"
    assert (found["now"]["verdict"], found["now"]["rule"]["id"]) == ("allow", "db")
    text = call("why", "--block", block(1).id).stdout
    assert "as told then" in text
    assert f"by the policy of then, {THEN}, applied " in text
    assert "DENIED  litellm -> 10.30.1.5:5432/tcp" in text
    assert "/rules.d/litellm.yaml:6\n" in text
    assert "that line was then: - {to: 10.30.1.9, ports: [6432], name: old-db}" in text
    assert "by the policy of now, abcdef012345:" in text.replace(found["now"]["policy"], "abcdef012345")
    assert "ALLOWED  litellm -> 10.30.1.5:5432/tcp" in text
    assert "kernel" not in text


@pytest.mark.parametrize(
    ("changes", "question"),
    [
        ({}, "10.30.1.9:5432/tcp"),
        ({"address": "2001:db8::1", "family": 6}, "[2001:db8::1]:5432/tcp"),
        ({"protocol": "icmp", "port": None}, "10.30.1.9 icmp"),
        ({"direction": "in", "port": 8000, "address": "10.9.9.9"}, "from 10.9.9.9 8000/tcp"),
        ({"address": None, "port": 53, "name": "hub.example", "protocol": "udp"}, "hub.example:443"),
    ],
)
def test_every_kind_of_record(home: Path, call: Call, changes: dict[str, Any], question: str) -> None:
    told(home, block(1, policy=THEN, **changes))
    assert explained(call, block(1).id)["then"]["question"] == question


@pytest.mark.parametrize(
    "changes",
    [
        {"address": None, "port": None, "protocol": None},
        {"protocol": "132", "port": None},
        {"protocol": None, "port": None},
        {"address": "nonsense\x1b[2J"},
        {"address": "clients"},
        {"address": None, "port": 53, "name": None},
        {"address": None, "port": 53, "name": "db"},
        {"address": None, "port": 53, "name": "clients"},
        {"address": None, "port": 53, "name": "10.30.1.5"},
        {"address": None, "port": 53, "name": "workload:ollama"},
        {"address": None, "port": 53, "name": "\x1b[2J.example"},
    ],
)
def test_one_that_rules_are_not_about(home: Path, call: Call, changes: dict[str, Any]) -> None:
    told(home, block(1, policy=THEN, **changes))
    found = explained(call, block(1).id, status=2)
    assert (found["then"], found["now"]) == (None, None)
    done = call("why", "--block", block(1).id)
    assert done.exit_code == 2
    assert "not in its rules" in done.stdout
    assert "\x1b" not in done.stdout


def test_why_no_rule_can_be_about_it(home: Path, call: Call) -> None:
    look_up = {"address": None, "port": 53}
    told(home, block(1, **look_up, name="db"), block(2, **look_up), block(3, protocol="132"))
    one, two, three = (call("why", "--block", block(n).id).stdout.splitlines() for n in (1, 2, 3))
    assert "then: no rule can have such a name: a name of one label is no domain name" in one
    assert "then: it is about no single address or name, and rules are about these" in two
    assert "then: no rule can be about protocol 132" in three


def test_a_look_up_is_judged_for_a_port_of_its_rule_of_then_and_of_now(home: Path, call: Call) -> None:
    egress = b"[{to: '*.w.example', ports: [5432]}]"
    text = b"version: 1\nworkload: litellm\nmode: enforce\negress: " + egress + b"\ningress: []\n"
    keep(home, "0123456789ac", {**FILES, "rules.d/litellm.yaml": text})
    told(home, block(1, policy="0123456789ac", address=None, port=53, name="deep.w.example"))
    found = explained(call, block(1).id, status=0)
    assert (found["then"]["verdict"], found["then"]["question"]) == ("allow", "deep.w.example:5432")
    assert (found["now"]["verdict"], found["now"]["question"]) == ("deny", "deep.w.example:443")


def test_a_policy_that_is_not_kept_or_not_whole(home: Path, call: Call) -> None:
    told(home, block(1, policy="ffffffffffff"), block(2, policy=None), block(3, policy="../../evil"))
    (home / "evil.json").write_bytes(state.encode(state.Applied("../../evil", T, OLD)))
    for n in (1, 2, 3):
        found = explained(call, block(n).id, status=2)
        assert (found["kept"], found["then"]) == (False, None)
        assert found["now"]["verdict"] == "deny"
    assert "is not kept any more" in call("why", "--block", block(1).id).stdout
    (home / "state/policies/ffffffffffff.json").write_bytes(b"{")
    assert explained(call, block(1).id, status=2)["kept"] is False
    keep(home, "ffffffffffff", {"penstock.yaml": b"version: 99\n"})
    assert "this version cannot read" in call("why", "--block", block(1).id).stdout


def test_the_present_policy_and_those_before_it_are_found_where_they_are(home: Path, call: Call) -> None:
    told(home, block(1, policy="abcdef012345"), block(2, policy="222222222222", workload="gone"))
    (home / "state" / state.HISTORY[1]).write_bytes(state.encode(state.Applied("222222222222", T, OLD)))
    assert explained(call, block(1).id)["kept"] is True
    assert "now: the same policy is in force" in call("why", "--block", block(1).id).stdout
    found = explained(call, block(2).id, status=2)
    assert (found["kept"], found["then"]) == (True, None)
    assert "has no workload gone" in call("why", "--block", block(2).id).stdout


def test_a_shortened_id(home: Path, call: Call) -> None:
    told(home, *(replace(BLOCK, id=id_, policy=THEN) for id_ in ("019a00", "019a01", "019b00", "019a0000")))
    assert explained(call, "019b")["block"]["id"] == "019b00"
    assert explained(call, "019a00")["block"]["id"] == "019a00", "whole, though it begins another"
    done = call("why", "--block", "019a")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "several blocks begin with `019a`; 019a" in done.stderr


def test_an_id_that_is_not_there(home: Path, call: Call) -> None:
    told(home, block(1))
    done = call("why", "--block", block(1).id[:-1] + "0")
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"did you mean `{block(1).id}`?" in done.stderr
    assert "penstock blocks --ids" in call("why", "--block", "x").stderr
    (home / "log/blocks.jsonl").unlink()
    assert call("why", "--block", "x").exit_code == 2


@pytest.mark.parametrize("arguments", [("w",), ("--from", "clients"), ("--policy", ".")])
def test_nothing_else_can_be_asked_with_it(home: Path, call: Call, arguments: tuple[str, ...]) -> None:
    told(home, block(1))
    done = call("why", *arguments, "--block", block(1).id)
    assert (done.exit_code, done.stdout) == (2, "")


def test_ids_are_shown_and_completed(home: Path, call: Call, daemon: FakeDaemon) -> None:
    told(home, block(1), block(2, address="192.0.2.2"), replace(BLOCK, id="$(reboot)"))
    text = call("blocks", "--ids").stdout
    assert f"          id: {block(2).id}\n" in text
    assert " id: " not in call("blocks").stdout
    ctx = penstock.make_context("penstock", ["--run", str(daemon.run), "why"])
    assert complete_block(ctx, None, "") == [block(2).id, block(1).id]  # type: ignore[arg-type]
    assert complete_block(ctx, None, block(2).id[:12]) == [block(2).id]  # type: ignore[arg-type]
    (home / "log/blocks.jsonl").unlink()
    assert complete_block(ctx, None, "") == []  # type: ignore[arg-type]
