"""Numbers and times for people."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from penstock.cli import format as form

NOW = datetime(2026, 11, 25, 3, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "now"), (59, "59 s ago"), (60, "1 min ago"), (7199, "1 h ago"), (86400 * 3, "3 d ago"), (-5, "now")],
)
def test_ago(seconds: int, text: str) -> None:
    assert form.ago(NOW - timedelta(seconds=seconds), NOW) == text


def test_unknown() -> None:
    assert (form.ago(None, NOW), form.local(None), form.number(None)) == ("unknown", "unknown", "-")
    assert form.clock(None) == "unknown"
    assert form.moment(None) is form.moment("nonsense") is form.moment(5) is None


def test_moment() -> None:
    assert form.moment("2026-11-25T03:00:00Z") == NOW == form.moment("2026-11-25T03:00:00")
    assert form.rfc3339(NOW) == "2026-11-25T03:00:00Z"


def test_clock() -> None:
    assert form.clock(NOW) == form.local(NOW)[11:]


def test_counted() -> None:
    assert [form.counted(n, "file") for n in (0, 1, 1200)] == ["0 files", "1 file", "1,200 files"]


def test_wrapped_keeps_words_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = form.wrapped("see " + "x-" * 30 + " twice\x1b", 4, "  - ")
    assert lines == ["  - see", "    " + "x-" * 30, "    twice\\x1b"]


def test_no_colours_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert form.paint("a", "red") == "\x1b[31ma\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert form.paint("a", "red") == "a"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (0, "0 s"),
        (0.2, "1 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (4799, "1 h 19 min"),
        (7200, "2 h"),
        (90_000, "1 d 1 h"),
    ],
)
def test_span(seconds: float, text: str) -> None:
    assert form.span(timedelta(seconds=seconds)) == text


def test_a_stamp_has_its_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    try:
        assert form.stamp(datetime(2026, 3, 1, 12, tzinfo=UTC)) == "2026-03-01 13:00:00 CET"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert form.stamp(None) == "unknown"


def test_times_in_a_text_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    try:
        said = form.localised("x, until 2026-11-25T02:15:00Z, anna: 2026-99-99T02:15:00Z")
        assert said == "x, until 2026-11-25 03:15:00 CET, anna: 2026-99-99T02:15:00Z"
    finally:
        monkeypatch.undo()
        time.tzset()
