"""Descriptors and moments."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from penstock.errors import PenstockError
from penstock.resolver import loop as loop_module
from penstock.resolver.loop import HUNG_UP, READ, WRITE, Deadlines, Loop

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def loop(faults: list[Exception] | None = None) -> Loop:
    return Loop((faults if faults is not None else []).append)


def test_what_was_added_first_is_over_first() -> None:
    over: list[str] = []
    waits: Deadlines[str] = Deadlines(2.0, over.append)
    assert waits.next() == math.inf
    for number, key in enumerate("abc"):
        waits.add(key, float(number))
    assert waits.next() == 2.0
    waits.check(1.9)
    assert over == []
    waits.add("a", 2.5)  # again, with all its time
    waits.discard("b")
    waits.discard("never added")
    waits.check(4.0)
    assert over == ["c"]
    waits.check(4.5)
    assert over == ["c", "a"]
    assert waits.next() == math.inf


def test_one_that_is_over_may_be_added_again() -> None:
    waits: Deadlines[int] = Deadlines(1.0, lambda key: waits.add(key + 1, 5.0) if key < 3 else None)
    waits.add(1, 0.0)
    waits.check(5.5)
    assert waits.next() == 6.0


def test_handlers_are_called_for_what_they_wait_for(pair: Pair) -> None:
    made, said = loop(), list[tuple[str, int]]()
    one, other = pair
    made.add(one.fileno(), READ, lambda events: said.append((one.recv(9).decode(), events)))
    other.send(b"x")
    made.step()
    assert said == [("x", READ)]
    made.change(one.fileno(), WRITE)
    made.remove(one.fileno())
    made.add(one.fileno(), WRITE, lambda events: said.append(("", events)))
    made.step()
    assert said[1:] == [("", WRITE)]
    made.change(one.fileno(), 0)
    other.close()
    made.step()
    assert said[2][1] & HUNG_UP
    assert made.descriptors == 1
    made.remove(one.fileno())
    made.remove(one.fileno())
    assert made.descriptors == 0


def test_it_wakes_for_a_moment_and_runs_until_it_is_ended() -> None:
    made = loop()
    waits: Deadlines[str] = made.deadlines(0.05, lambda key: setattr(made, "ended", True))
    rounds: list[int] = []
    made.each_round(lambda: rounds.append(1))
    waits.add("x", made.now)
    began = made.now
    made.run()
    assert made.now - began >= 0.05
    assert 1 <= len(rounds) <= 3


def test_a_fault_of_a_handler_is_told_and_ends_nothing(pair: Pair) -> None:
    faults: list[Exception] = []
    made = loop(faults)
    one, other = pair

    def handler(events: int) -> None:
        raise KeyError(one.recv(9))

    made.add(one.fileno(), READ, handler)
    for _ in range(2):
        other.send(b"x")
        made.step()
    assert [type(fault) for fault in faults] == [KeyError, KeyError]


def test_an_error_for_a_person_ends_it(pair: Pair) -> None:
    def handler(events: int) -> None:
        raise PenstockError("no")

    made = loop()
    made.add(pair[0].fileno(), WRITE, handler)
    with pytest.raises(PenstockError):
        made.step()


def test_who_was_removed_in_this_round_is_not_called(pair: Pair) -> None:
    made, called = loop(), list[int]()

    def handler(which: int, other: int) -> None:
        called.append(which)
        made.remove(pair[other].fileno())

    made.add(pair[0].fileno(), WRITE, lambda events: handler(0, 1))
    made.add(pair[1].fileno(), WRITE, lambda events: handler(1, 0))
    made.step()
    assert len(called) == 1


def test_what_was_said_of_one_is_not_given_to_who_got_its_number(pair: Pair) -> None:
    """A client that hung up would else end a connection that was taken in the same round."""
    made, said = loop(), list[int]()
    one, _ = pair
    old, far = socket.socketpair()
    with ExitStack() as stack:
        stack.callback(old.close)
        number = old.fileno()

        def takes(events: int) -> None:
            made.remove(one.fileno())
            made.remove(number)
            old.close()
            new = [stack.enter_context(sock) for sock in socket.socketpair()]
            assert new[0].fileno() == number
            made.add(number, READ, said.append)
            new[1].send(b"x")

        made.add(one.fileno(), WRITE, takes)
        made.add(number, READ, lambda events: said.append(-1))
        far.close()
        made.step()
        assert said == []
        made.step()
        assert said == [READ]


def test_what_begins_late_in_a_round_has_all_its_time(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    made, over = loop(), list[int]()
    waits: Deadlines[int] = made.deadlines(7, over.append)

    def takes_long(number: int) -> None:
        waits.add(number, made.now)
        clock[0] += 5
        made.remove(pair[number].fileno())

    made.add(pair[0].fileno(), WRITE, lambda events: takes_long(0))
    made.add(pair[1].fileno(), WRITE, lambda events: takes_long(1))
    made.step()
    assert over == []
    made.step()
    assert len(over) == 1
    clock[0] += 2
    made.step()
    assert sorted(over) == [0, 1]


def test_each_moment_is_a_call_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the time at which it begins, and whatever became of the others."""
    clock = [1000.0]
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    faults: list[Exception] = []
    made, called = loop(faults), list[float]()

    def takes_long(key: str) -> None:
        called.append(made.now)
        clock[0] += 5
        raise KeyError(key)

    waits: Deadlines[str] = made.deadlines(1, takes_long)
    for key in "ab":
        waits.add(key, made.now)
    clock[0] += 1
    made.step()
    assert called == [1001.0, 1006.0]
    assert len(faults) == 2
