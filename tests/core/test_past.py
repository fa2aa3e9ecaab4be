"""Answers that are over: told, bounded, and forgotten in their order."""

from __future__ import annotations

import pytest

from penstock.core import past
from penstock.core.past import KEPT, Past

A, B = b"\xc0\x00\x02\x01", b"\xc0\x00\x02\x02"


def test_what_ended_is_told_with_its_end() -> None:
    told = Past()
    told.add("w", A, "one.example", 10)
    told.add("w", A, "two.example", 20)
    told.add("w", A, "one.example", 30)
    assert told.of("w", A) == (("two.example", 20), ("one.example", 30))
    assert told.of("w", B) == told.of("v", A) == ()


def test_the_last_comes_first() -> None:
    told = Past()
    for address, name, end in ((A, "one.example", 10), (B, "one.example", 20), (A, "two.example", 30)):
        told.add("w", address, name, end)
    names = [(address, name) for address, name, _ in told.latest_first("w")]
    assert names == [(A, "two.example"), (A, "one.example"), (B, "one.example")]


def test_it_is_forgotten_in_the_end() -> None:
    told = Past()
    told.add("w", A, "one.example", 10)
    told.add("w", B, "one.example", 20)
    told.expire(10 + KEPT - 1, 9)
    assert told.of("w", A)
    told.expire(10 + KEPT, 9)
    assert not told.of("w", A)
    assert told.of("w", B)
    told.expire(20 + KEPT, 9)
    assert told.workloads() == ()


def test_one_call_does_a_bounded_amount_of_work() -> None:
    told = Past()
    for n in range(10):
        told.add("w", bytes((192, 0, 2, n)), "one.example", n)
    told.expire(100 + KEPT, 4)
    assert len(list(told.latest_first("w"))) == 6


def test_a_workload_has_its_bound_and_so_have_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "MAX_OF_ONE", 6)
    monkeypatch.setattr(past, "MAX_ALL", 8)
    told = Past()
    for workload in ("v", "w", "x"):
        for n in range(10):
            told.add(workload, bytes((192, 0, 2, n)), "one.example", n)
    kept = {w: [address[-1] for address, _, _ in told.latest_first(w)] for w in ("v", "w", "x")}
    assert kept == {"v": [9, 8, 7, 6, 5, 4], "w": [9, 8], "x": []}


def test_an_address_with_many_names_keeps_the_last_of_them() -> None:
    told = Past()
    for n in range(100):
        told.add("w", A, f"n{n}.example", n)
    assert told.of("w", A)[0] == (f"n{100 - past.MAX_NAMES}.example", 100 - past.MAX_NAMES)
    assert len(list(told.latest_first("w"))) == past.MAX_NAMES


def test_names_that_no_rule_stands_for_are_forgotten() -> None:
    told = Past()
    told.add("w", A, "one.example", 10)
    told.add("w", A, "two.example", 10)
    told.add("w", B, "two.example", 10)
    told.forget("w", lambda name: name == "one.example")
    assert [(a, n) for a, n, _ in told.latest_first("w")] == [(A, "one.example")]
    told.drop("w")
    assert told.workloads() == ()
