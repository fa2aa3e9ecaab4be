"""What was asked lately: by workload, the last time of each, bounded."""

from __future__ import annotations

from penstock.core.asked import MAX_OBSERVED, MAX_REFUSED, Asked, Observed, Refused

T = 1_764_036_000.0
A, B = b"\xc0\x00\x02\x01", b"\x20\x01\x0d\xb8" + bytes(12)


def test_the_last_time_of_a_name_is_told() -> None:
    asked = Asked()
    asked.refused("w", "a.example", "name", T)
    asked.refused("w", "a.example", "rate", T + 5)
    assert asked.last_refused("w", "a.example") == Refused("rate", T + 5)
    assert asked.last_refused("w", "b.example") is None
    assert asked.last_refused("v", "a.example") is None


def test_an_address_is_told_with_the_name_that_gave_it_last() -> None:
    asked = Asked()
    asked.observed("w", "a.example", [A, B], T)
    asked.observed("w", "b.example", [A], T + 5)
    assert asked.about("w", A) == Observed("b.example", T + 5)
    assert asked.about("w", B) == Observed("a.example", T)
    assert asked.about("v", A) is None


def test_the_oldest_are_forgotten_and_of_others_nothing() -> None:
    asked = Asked()
    asked.refused("v", "old.example", "name", T)
    asked.refused("w", "old.example", "name", T)
    asked.refused("w", "again.example", "name", T)
    asked.observed("w", "a.example", [A], T)
    asked.refused("w", "old.example", "name", T)
    for n in range(MAX_REFUSED - 1):
        asked.refused("w", f"n{n}.example", "name", T)
    for n in range(MAX_OBSERVED):
        asked.observed("w", "b.example", [n.to_bytes(4, "big")], T)
    assert asked.last_refused("w", "again.example") is None
    assert asked.about("w", A) is None
    assert asked.last_refused("w", "old.example")
    assert asked.last_refused("v", "old.example")


def test_workloads_that_are_gone_are_forgotten() -> None:
    asked = Asked()
    for workload in ("v", "w"):
        asked.refused(workload, "a.example", "name", T)
    asked.keep(["w"])
    assert asked.last_refused("v", "a.example") is None
    assert asked.last_refused("w", "a.example")
