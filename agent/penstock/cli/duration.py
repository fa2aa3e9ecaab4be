"""How long and since when, as people write it: `10m`, `1h30m`, `02:15`, `2026-11-25T02:15:00Z`."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import click

from penstock.core.wire import LONGEST_CONFIRM

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(?:[0-9]{1,9}[smhdw])+", re.ASCII)
_PART = re.compile(r"([0-9]+)([smhdw])", re.ASCII)
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?", re.ASCII)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
SHORTEST_WINDOW = 5
"""Seconds: nobody confirms faster by hand, and the load itself takes a part of it."""
_LONGEST = 3650 * 86400


def parse_duration(text: str) -> timedelta:
    """Return `30s`, `10m`, `2h`, `1d`, `1w` or several of them together; ValueError says what is wrong."""
    if not _DURATION.fullmatch(text):
        raise ValueError("write a number and a unit: 30s, 10m, 2h, 1d")
    seconds = sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if seconds > _LONGEST:
        raise ValueError("longer than ten years")
    return timedelta(seconds=seconds)


def parse_when(text: str, now: datetime) -> datetime:
    """Return a moment, aware: a duration before `now`, a time of day that was last, or a date (and time).

    What names no zone is local time, the zone of `now` (aware).  ValueError says what is wrong.
    """
    if _DURATION.fullmatch(text):
        return now - parse_duration(text)
    if clock := _CLOCK.fullmatch(text):
        hour, minute, second = (int(part or 0) for part in clock.groups())
        return _last(now, hour, minute, second)
    try:
        if not _DAY.match(text):
            raise ValueError
        when = datetime.fromisoformat(text)
        return when if when.tzinfo else when.astimezone()
    except (ValueError, OverflowError) as e:
        raise ValueError("write 10m, 02:15, or 2026-11-25T02:15:00Z") from e


def parse_until(text: str, now: datetime) -> datetime:
    """Return a moment to come, aware: a time of day that is next, the end of a date, or a date and time.

    What names no zone is local time, the zone of `now` (aware).  ValueError says what is wrong.
    """
    if clock := _CLOCK.fullmatch(text):
        hour, minute, second = (int(part or 0) for part in clock.groups())
        last = _last(now, hour, minute, second)
        # A day later by the calendar: the night in between may have 23 or 25 hours.
        return (last.replace(tzinfo=None) + timedelta(days=1)).astimezone()
    try:
        if not _DAY.match(text):
            raise ValueError
        when = datetime.fromisoformat(text)
        if _DAY.fullmatch(text):
            when += timedelta(days=1)
        return when if when.tzinfo else when.astimezone()
    except (ValueError, OverflowError) as e:
        raise ValueError("write 18:00, 2026-11-28, or 2026-11-28T06:00:00Z") from e


def _last(now: datetime, hour: int, minute: int, second: int) -> datetime:
    if hour > 23 or minute > 59 or second > 59:
        raise ValueError("there is no such time of day")
    today = now.replace(hour=hour, minute=minute, second=second, microsecond=0)
    return today if today <= now else today - timedelta(days=1)


def duration(text: str) -> timedelta:
    """`parse_duration` as the type of an option."""
    try:
        return parse_duration(text)
    except ValueError as e:
        raise click.BadParameter(f"{text!r}: {e}") from e


def window(text: str) -> timedelta:
    """How long an `apply` waits to be confirmed, as the type of an option."""
    found = duration(text)
    if not SHORTEST_WINDOW <= found.total_seconds() <= LONGEST_CONFIRM:
        raise click.BadParameter(f"{text!r}: a time to confirm in goes from {SHORTEST_WINDOW}s to 24h")
    return found


def when(text: str) -> datetime:
    """`parse_when` as the type of an option, from now."""
    try:
        return parse_when(text, datetime.now().astimezone())
    except ValueError as e:
        raise click.BadParameter(f"{text!r}: {e}") from e
