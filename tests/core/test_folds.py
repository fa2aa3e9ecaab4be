"""Folds: given out at once and while they grow, kept apart by owner, bounded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.core import folds
from penstock.core.blocks import Block, Process
from penstock.core.folds import REWRITE, WINDOW, Folds

T = 1_764_036_000.0
W = ("w", "out")
BLOCK = Block(
    *("", T, T, "w", "deny", "enforce", "out", "udp", None, None, 53, "a.example", 1, 0, None, "name", "no"),
    *(None, Process(), None, None),
)


def make() -> Block:
    return BLOCK


def test_the_first_is_given_out_at_once_and_more_when_due() -> None:
    held = Folds(1)
    (first,) = held.add(W, (1,), T, make)
    assert first == replace(BLOCK, id=first.id)
    assert held.add(W, (1,), T + 1, make, 4) == []
    assert held.flush(T + REWRITE - 0.1) == []
    assert held.flush(T + REWRITE) == [replace(first, count=5, last=T + 1)]
    assert held.flush(T + 2 * REWRITE) == []


def test_a_window_that_is_over_makes_room_for_another_id() -> None:
    held = Folds(1)
    (first,) = held.add(W, (1,), T, make)
    held.add(W, (1,), T + 1, make)
    last, second = held.add(W, (1,), T + WINDOW, make)
    assert (last.id, last.count) == (first.id, 2)
    assert (second.id != first.id, second.count) == (True, 1)


def test_owners_are_kept_apart_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folds, "MAX_FOLDS", 3)
    monkeypatch.setattr(folds, "MAX_FOLDS_OF_ONE", 2)
    held = Folds(1)
    for key in (1, 2):
        assert held.has_room(W, (key,))
        held.add(W, (key,), T, make)
    assert held.has_room(W, (2,))
    assert not held.has_room(W, (3,))
    assert held.has_room(("v", "out"), (1,))
    held.add(("v", "out"), (1,), T, make)
    assert not held.has_room(("u", "out"), (1,))
    held.flush(T + WINDOW)
    assert held.has_room(("u", "out"), (1,))


def test_the_busiest_is_that_of_the_owner() -> None:
    held = Folds(1)
    assert held.busiest(W) is None
    held.add(W, (1,), T, make)
    held.add(W, (2,), T, make, 1)
    held.add(W, (2,), T, make, 3)
    held.add(("v", "out"), (1,), T, make)
    held.add(("v", "out"), (1,), T, make, 9)
    found = held.busiest(W)
    assert found
    assert found.block.count == 4


def test_closing_gives_out_what_has_grown_of_one_or_of_all() -> None:
    held = Folds(1)
    for owner in (W, ("w", "in"), ("v", "out")):
        held.add(owner, (1,), T, make)
        held.add(owner, (1,), T, make)
    assert [block.count for block in held.close(T, "w")] == [2, 2]
    assert [block.count for block in held.close(T)] == [2]
    assert held.close(T) == []
