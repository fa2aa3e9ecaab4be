"""What does not work is said, and not said all the time."""

from __future__ import annotations

from penstock.core.resolver_wire import MAX_TEXT, Trouble
from penstock.resolver import troubles
from penstock.resolver.troubles import PAUSE, QUIET, Troubles


def test_the_same_is_told_once_in_a_while() -> None:
    said: list[Trouble] = []
    told = Troubles(said.append)
    for second in range(25):
        told.happened(100.0 + second, "rate", "w", "too many")
    assert said == [Trouble("rate", "w", "too many")] * 3
    told.happened(125.0, "rate", "v", "too many")
    told.happened(125.0, "upstream", "", "no answer")
    assert said[3:] == [Trouble("rate", "v", "too many"), Trouble("upstream", "", "no answer")]


def test_it_is_over_when_it_works_or_after_a_while() -> None:
    said: list[Trouble] = []
    told = Troubles(said.append)
    told.over("upstream")
    assert said == []
    told.happened(100.0, "upstream", "", "no answer")
    told.over("upstream")
    told.over("upstream")
    assert said[1:] == [Trouble("ok:upstream", "", "")]
    told.happened(101.0, "upstream", "", "no answer")
    told.happened(101.0 + PAUSE - 1, "upstream", "", "no answer")
    told.check(101.0 + PAUSE - 1 + QUIET - 1)
    assert len(said) == 3
    told.check(101.0 + PAUSE - 1 + QUIET)
    assert said[3:] == [Trouble("ok:upstream", "", "")]


def test_nothing_is_said_of_who_is_gone() -> None:
    said: list[Trouble] = []
    told = Troubles(said.append)
    told.happened(0.0, "rate", "w", "")
    told.happened(0.0, "upstream", "", "")
    told.forget("w")
    told.forget("")
    told.check(1000.0)
    assert [trouble.code for trouble in said] == ["rate", "upstream", "ok:upstream"]


def test_they_are_bounded() -> None:
    said: list[Trouble] = []
    told = Troubles(said.append)
    for number in range(troubles.MOST + 10):
        told.happened(1.0, "rate", f"w{number}", "x" * 10_000)
    assert len(said) == troubles.MOST
    assert {len(trouble.text) for trouble in said} == {MAX_TEXT}
