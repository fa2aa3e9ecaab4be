"""Durations and moments as people write them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cli.duration import parse_duration, parse_until, parse_when, window

NOW = datetime(2026, 11, 25, 3, 2, 11, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("10m", 600), ("2h", 7200), ("1d", 86400), ("1w", 604800), ("1h30m", 5400), ("0s", 0)],
)
def test_duration(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "10", "m", "-1m", "1.5h", "10 m", "10M", "10m ", "1y", "99999d", "\u0661m"])
def test_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("10m", datetime(2026, 11, 25, 0, 52, 11, tzinfo=UTC)),
        ("02:15", datetime(2026, 11, 25, 0, 15, tzinfo=UTC)),
        ("3:02:11", datetime(2026, 11, 25, 1, 2, 11, tzinfo=UTC)),
        ("03:03", datetime(2026, 11, 24, 1, 3, tzinfo=UTC)),  # not yet today, so yesterday
        ("2026-11-25T02:15:00Z", datetime(2026, 11, 25, 2, 15, tzinfo=UTC)),
        ("2026-11-25T02:15:00.5+02:00", datetime(2026, 11, 25, 0, 15, 0, 500_000, tzinfo=UTC)),
        ("2026-11-25 02:15", datetime(2026, 11, 25, 2, 15).astimezone()),
        ("2026-11-25", datetime(2026, 11, 25).astimezone()),
    ],
)
def test_when(text: str, moment: datetime) -> None:
    assert parse_when(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "now", "24:00", "12:60", "1200", "20261125", "2026-13-01", "9999d", "5 m"])
def test_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_when(text, NOW)


@given(st.text())
def test_any_text(text: str) -> None:
    try:
        when = parse_when(text, NOW)
    except ValueError:
        return
    assert when.tzinfo is not None


@pytest.mark.parametrize(("text", "seconds"), [("5s", 5), ("1m30s", 90), ("24h", 86400), ("1d", 86400)])
def test_a_window_to_confirm_in(text: str, seconds: int) -> None:
    assert window(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "why"),
    [("4s", "goes from 5s to 24h"), ("0s", "goes"), ("24h1s", "goes"), ("9w", "goes"), ("60", "a number and")],
)
def test_no_window(text: str, why: str) -> None:
    with pytest.raises(click.BadParameter, match=why):
        window(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("18:00", "2026-11-25T18:00:00+01:00"),
        ("02:00", "2026-11-26T02:00:00+01:00"),
        ("12:30:01", "2026-11-25T12:30:01+01:00"),
        ("12:30", "2026-11-26T12:30:00+01:00"),
        ("2026-11-28", "2026-11-29T00:00:00+01:00"),
        ("2026-11-28T06:00:00Z", "2026-11-28T07:00:00+01:00"),
        ("2026-11-28 06:00", "2026-11-28T06:00:00+01:00"),
    ],
)
def test_a_moment_to_come(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    try:
        now = datetime(2026, 11, 25, 12, 30).astimezone()
        assert parse_until(text, now) == datetime.fromisoformat(expected)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "24:00", "soon", "30m", "2026-13-01", "9999-12-31"])
def test_no_moment_to_come(text: str) -> None:
    with pytest.raises(ValueError, match=r"write 18:00|no such time of day"):
        parse_until(text, datetime.now(UTC).astimezone())
