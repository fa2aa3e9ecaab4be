"""The command `names`: what is known of a name, and of an address."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest

from governed import policy_of
from penstock.core.asked import Asked
from penstock.core.learned import FLOOR, SLACK, Learned
from penstock.core.name_questions import MOST_NAMES, names_answer, names_by_rule
from penstock.core.parse import parse
from penstock.core.policy import Policy

NOW = datetime(2026, 11, 25, 2, 15, tzinfo=UTC)
T = NOW.timestamp()
A4, A6 = ip_address("198.51.100.11"), ip_address("2001:db8::11")
RULES = '[{to: "*.hf.co"}, {to: [cdn.hf.co, other.example], ports: [8443]}, {to: "*.hf.co", ports: [80]}]'


@pytest.fixture
def policy() -> Policy:
    files = {}
    for name, mode, rules in (("a", "enforce", RULES), ("b", "observe", "[]")):
        text = f"version: 1\nworkload: {name}\nmode: {mode}\negress: {rules}\ningress: []\n"
        files[f"rules.d/{name}.yaml"] = text.encode()
    parsed = parse(files)
    assert parsed.policy, parsed.problems
    return parsed.policy


@pytest.fixture
def learned() -> Learned:
    found = Learned()
    found.learn("a", "cdn.hf.co", [(A4.packed, 60), (A6.packed, 3600)], T)
    found.learn("a", "old.hf.co", [(A4.packed, 60)], T - 5000)
    return found


def ask(policy: Policy, learned: Learned, name: str, workload: str = "a", asked: Asked | None = None) -> Any:
    answer = names_answer(policy, learned, asked or Asked(), {"workload": workload, "name": name}, NOW)
    return json.loads(json.dumps(answer))


def test_a_name_that_was_learned(policy: Policy, learned: Learned) -> None:
    assert ask(policy, learned, "CDN.hf.co") == {
        "resolving": True,
        "mode": "enforce",
        "rules": ["cdn.hf.co", "*.hf.co"],
        "addresses": [
            {"address": "198.51.100.11", "until": "2026-11-25T02:27:00Z"},
            {"address": "2001:db8::11", "until": "2026-11-25T03:17:00Z"},
        ],
        "names": [],
        "asked": None,
    }
    assert (FLOOR + SLACK) // 60 == 12


def test_what_is_over_is_no_address_of_a_name(policy: Policy, learned: Learned) -> None:
    assert ask(policy, learned, "old.hf.co")["addresses"] == []


def test_a_name_that_was_refused(policy: Policy) -> None:
    asked = Asked()
    asked.refused("a", "registry.example", "name", T - 60)
    found = ask(policy, Learned(), "registry.example", asked=asked)
    assert found["rules"] == found["addresses"] == []
    assert found["asked"] == {"name": "registry.example", "when": "2026-11-25T02:14:00Z", "reason": "name"}


def test_an_address(policy: Policy, learned: Learned) -> None:
    asked = Asked()
    asked.observed("a", "registry.example", [A4.packed], T)
    found = ask(policy, learned, "198.51.100.11", asked=asked)
    assert [entry["name"] for entry in found["names"]] == ["cdn.hf.co", "old.hf.co"]
    assert found["names"][1]["until"] == "2026-11-25T01:03:40Z"
    assert found["asked"] == {"name": "registry.example", "when": "2026-11-25T02:15:00Z", "reason": None}
    assert ask(policy, learned, "2001:db8::12")["names"] == []


def test_an_address_with_many_names_is_told_with_some(policy: Policy) -> None:
    learned = Learned()
    for n in range(MOST_NAMES + 5):
        learned.learn("a", f"n{n}.hf.co", [(A4.packed, 60)], T + n)
    found = ask(policy, learned, str(A4))["names"]
    assert (len(found), found[0]["name"]) == (MOST_NAMES, f"n{MOST_NAMES + 4}.hf.co")


def test_each_way_to_be_open_is_told(policy: Policy) -> None:
    """`cdn.hf.co` opens ports that the many others do not: nobody may take them for closed."""
    learned = Learned()
    learned.learn("a", "cdn.hf.co", [(A4.packed, 60)], T)
    for n in range(MOST_NAMES):
        learned.learn("a", f"n{n}.hf.co", [(A4.packed, 60)], T + 1 + n)
    found = [entry["name"] for entry in ask(policy, learned, str(A4))["names"]]
    assert (len(found), found[0], found[-1]) == (MOST_NAMES, f"n{MOST_NAMES - 1}.hf.co", "cdn.hf.co")


def test_how_many_names_of_a_rule_are_learned(policy: Policy, learned: Learned) -> None:
    wide, both, other = (rule.id for rule in policy.workloads["a"].rules)
    assert names_by_rule(policy, "a", Learned(), NOW) == {wide: 0, both: 0, other: 0}
    learned.learn("a", "other.example", [(A4.packed, 60)], T)
    assert names_by_rule(policy, "a", learned, NOW) == {wide: 2, both: 2, other: 2}
    assert names_by_rule(policy, "b", learned, NOW) == {}


def test_a_name_for_which_a_rule_stands_twice_is_one_of_its_names(learned: Learned) -> None:
    rules = '[{to: [cdn.hf.co, "*.hf.co"]}]'
    policy = policy_of(f"version: 1\nworkload: a\nmode: enforce\negress: {rules}\ningress: []\n")
    assert list(names_by_rule(policy, "a", learned, NOW).values()) == [2]


def test_another_workload_knows_nothing_of_it(policy: Policy, learned: Learned) -> None:
    found = ask(policy, learned, "cdn.hf.co", "b")
    assert (found["resolving"], found["mode"], found["rules"], found["addresses"]) == (False, "observe", [], [])
    assert ask(policy, learned, str(A4), "b")["names"] == []


@pytest.mark.parametrize(
    ("workload", "name"), [("c", "cdn.hf.co"), ("a", "x\x1b.example"), ("a", ""), ("a", "a" * 999)]
)
def test_questions_without_an_answer(policy: Policy, learned: Learned, workload: str, name: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        ask(policy, learned, name, workload)
    assert str(caught.value).isprintable()


def test_rules_that_are_over_do_not_count(policy: Policy) -> None:
    rules = '[{to: a.example, expires: "2026-11-25T02:00:00Z"}]'
    text = f"version: 1\nworkload: a\nmode: enforce\negress: {rules}\ningress: []\n"
    parsed = parse({"rules.d/a.yaml": text.encode()}).policy
    assert parsed
    assert ask(parsed, Learned(), "a.example")["rules"] == []
    before = names_answer(
        parsed, Learned(), Asked(), {"workload": "a", "name": "a.example"}, NOW - timedelta(hours=1)
    )
    assert before["rules"] == ["a.example"]
