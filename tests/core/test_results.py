"""What is said of a start, an apply and a repair."""

from __future__ import annotations

import pytest
from fake_host import BROKEN, Host

from penstock.core import results
from penstock.core.parse import parse

PROBLEMS = parse(BROKEN).problems


def test_an_apply() -> None:
    in_force = Host().start().engine.in_force
    assert in_force
    assert results.applied(in_force, (), True, 0.12345) == {
        "changed": True, "hash": in_force.policy.hash, "workloads": 1, "problems": [], "seconds": 0.123,
        "confirm_until": None,
    }
    refused = results.refused(in_force, PROBLEMS)
    assert (refused["refused"], refused["changed"], refused["hash"]) == (True, False, in_force.policy.hash)
    assert refused["problems"] == [problem.as_json() for problem in PROBLEMS]
    assert results.refused(None, PROBLEMS)["hash"] is None


def test_every_mistake_is_in_the_last_words() -> None:
    for text in (results.nothing_to_start(PROBLEMS), results.not_understood(PROBLEMS)):
        assert [problem.line() in text for problem in PROBLEMS] == [True] * len(PROBLEMS)


@pytest.mark.parametrize(
    ("kind", "level", "word"),
    [
        ("repair", "warning", "repaired"),
        ("expiry", "info", "over"),
        ("start", "info", "abc is in force"),
        ("apply", "info", "abc is in force"),
    ],
)
def test_the_journal(kind: str, level: str, word: str) -> None:
    told = results.news(kind, "abc", 1.5)
    assert told.level == level
    assert word in told.text
    assert "1.50 s" in told.text
