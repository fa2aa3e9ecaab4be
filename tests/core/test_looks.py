"""Looks at the live state: what is watched, what is remembered, who can only have been one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from penstock.core import events
from penstock.core.blocks import Process
from penstock.core.effects import Examine, Journal
from penstock.core.events import Examined, Files, Seen, Stray
from penstock.core.looks import look, only_process, take_in
from penstock.core.view import View

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ONE, TWO = Seen(7, 70, "one", 1000), Seen(8, 80, "two", 1001)


def examined(**changes: Any) -> Examined:
    return Examined(NOW, None, 1, {"c": (1, 60)}, {}, {"a": (ONE,)}, (), **changes)


def test_nothing_is_watched_while_nothing_is_in_force() -> None:
    view = View(NOW, processes={"a": (ONE,)}, strays=(Stray(9, 90, "x", "a", "/"),))
    assert look(view, None, 5, around=True) == Examine(5, (), {}, {}, True)


def test_errors_in_the_files_are_said_once() -> None:
    view = View(NOW)
    said = [Journal("error", "the rule files have 2 errors; what was applied last stays in force")]
    assert take_in(view, examined(config=Files({}, 2))) == said
    assert take_in(view, examined(config=Files({}, 3))) == []
    assert take_in(view, examined()) == []
    assert view.config_errors == 3
    assert take_in(view, examined(config=Files({}))) == []
    assert take_in(view, examined(config=Files({}, 2))) == said


def test_what_was_not_looked_for_is_not_forgotten() -> None:
    view = View(NOW)
    look_alike = events.LookAlike(1, "x", "vllm", "/")
    take_in(view, examined(look_alikes=(look_alike,), bypasses=()))
    take_in(view, examined())
    assert (view.look_alikes, view.counters, view.processes) == ((look_alike,), {"c": (1, 60)}, {"a": (ONE,)})


def test_only_one_can_have_been_it() -> None:
    assert only_process((ONE, TWO), 1000) == Process(7, "one")
    assert only_process((ONE, TWO), None) is None
    assert only_process((ONE,), None) == Process(7, "one")
    assert only_process((ONE,), 0) is None
