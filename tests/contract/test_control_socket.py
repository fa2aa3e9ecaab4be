"""What the daemon answers on its control socket: the fake and the real one must pass the same tests."""

from __future__ import annotations

from typing import Any

import pytest

from cli.fake_daemon import BY_NAME, in_force
from contract.conftest import Ask
from penstock.errors import PenstockError

STATES = {"enforcing", "observing", "locked", "unenforced", "degraded"}


def shape(value: Any) -> Any:
    """Keys and kinds of values, without the values; of a list the first member's."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def test_status(asked: Ask) -> None:
    status = asked("status")
    assert shape(status) == shape(in_force()["status"])
    assert status["daemon"]["running"] is True
    assert [one["name"] for one in status["workloads"]] == ["litellm", "ollama"]
    assert [one["egress"] for one in status["workloads"]] == ["enforcing", "observing"]
    assert {one["ingress"] for one in status["workloads"]} <= STATES
    assert status["kernel"]["agrees"] is True
    assert {finding["code"] for finding in status["findings"]} == {"not-yet-enforced"}
    assert len(status["policy"]["hash"]) == 12


def test_ready(asked: Ask) -> None:
    assert asked("ready", workload="litellm") == {"ready": True, "reason": ""}
    answer = asked("ready", workload="nobody")
    assert answer == {"ready": False, "reason": "the applied policy has no such workload"}


@pytest.mark.parametrize(
    ("direction", "address", "protocol", "port", "held"),
    [
        ("out", "10.30.1.5", "tcp", 5432, True),
        ("out", "10.30.1.5", "udp", 5432, False),
        ("out", "10.30.1.6", "tcp", 5432, False),
        ("out", "10.30.1.5", "icmp", 0, False),
        ("out", "2001:db8::5", "icmp", 0, False),
        ("in", "10.30.0.0", "tcp", 8000, True),
        ("in", "10.31.0.0", "tcp", 8000, False),
        ("in", "2001:db8::5", "tcp", 8000, False),
    ],
)
def test_holds(asked: Ask, direction: str, address: str, protocol: str, port: int, held: bool) -> None:
    question = {"direction": direction, "address": address, "protocol": protocol, "port": port, "here": 0}
    assert asked("holds", workload="litellm", **question) == {"holds": held, "learned": False}


@pytest.mark.parametrize("far", ["host", "workload:ollama", "interface:eth0"])
def test_opens(asked: Ask, far: str) -> None:
    question = {"direction": "in", "far": far, "protocol": "tcp", "port": 8000}
    assert asked("opens", workload="litellm", **question) == in_force()["opens"]


def test_hits(asked: Ask) -> None:
    said = asked("hits", workload="litellm")
    rules = said["rules"]
    assert said["names"] == {BY_NAME: 0}
    assert [(name.partition("-")[0], hits) for name, hits in sorted(rules.items())] == [
        ("db", 0), ("ingress", 0)], "those of a rule by name nobody counts"  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rules"),
    [("registry.example.org", ["registry.example.org"]), ("other.example.org", []), ("10.30.1.5", [])],
)
def test_names(asked: Ask, name: str, rules: list[str]) -> None:
    nothing: dict[str, Any] = {"addresses": [], "names": [], "asked": None}
    expected = {"resolving": True, "mode": "enforce", "rules": rules, **nothing}
    assert asked("names", workload="litellm", name=name) == expected


def test_apply_of_what_is_applied(asked: Ask) -> None:
    answer = asked("apply", confirm=0)
    assert shape(answer) == shape(in_force()["apply"])
    assert (answer["changed"], answer["workloads"]) == (False, 2)
    assert {problem["code"] for problem in answer["problems"]} >= {"not-yet-enforced"}


def test_nothing_waits_to_be_confirmed(asked: Ask) -> None:
    answer = asked("confirm")
    assert shape(answer) == shape(in_force()["confirm"])
    assert answer["confirmed"] is False


def test_no_earlier_policy(asked: Ask) -> None:
    for to in ("", "0123"):
        with pytest.raises(PenstockError, match="is kept"):
            asked("rollback", to=to)


def test_what_is_no_request(asked: Ask) -> None:
    with pytest.raises(PenstockError, match="not a request: unknown command"):
        asked("nonsense")


def test_a_mode_is_lent(asked: Ask) -> None:
    said = {
        "workload": "litellm",
        "mode": "observe",
        "seconds": 600,
        "until": 0,
        "reason": "to see",
        "user": "anna",
    }
    made = asked("mode", **said)
    assert shape(made) == shape(in_force()["mode"])
    asked("revoke", id=made["grant"]["id"], user="")


def test_lent_listed_and_revoked(asked: Ask) -> None:
    said = {"workload": "litellm", "direction": "out", "peer": "10.30.1.9", "ports": "5432", "seconds": 600}
    made = asked("grant", **said, until=0, reason="to see", wide=0, user="anna")
    assert shape(made) == shape(in_force()["grant"])
    revoked = asked("revoke", id=made["grant"]["id"], user="")
    assert shape(revoked) == shape(in_force()["revoke"])
    assert revoked["grant"] == made["grant"]
    assert asked("grants") == {"grants": []}
