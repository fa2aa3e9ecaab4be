"""Durations and moments as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cli.duration import parse_duration, parse_when, window

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
