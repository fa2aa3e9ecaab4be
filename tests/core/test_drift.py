"""The clock and the kernel's timeouts, apart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from penstock.core.drift import JUMP, Drift
from penstock.core.events import Ticked

START = datetime(2026, 11, 27, tzinfo=UTC)


def told(*moments: tuple[float, float, float]) -> list[float]:
    """What comes of ticks: (what the clock says, seconds since the last, of which the host slept)."""
    drift = Drift()
    return [drift.ticked(Ticked(START + timedelta(seconds=s), *rest)) for s, *rest in moments]


def test_ticks_at_their_time_are_no_drift() -> None:
    assert told((0, 0, 0), (2, 2, 0), (60, 58, 0)) == [0.0, 0.0, 0.0]


def test_a_clock_that_is_set_is_told_once() -> None:
    assert told((0, 2, 0), (3602, 2, 0), (3604, 2, 0), (4, 2, 0)) == [0.0, 3600.0, 0.0, -3602.0]


def test_sleep_stops_the_kernels_timeouts() -> None:
    assert told((0, 2, 0), (100, 100, 98)) == [0.0, 98.0]


def test_small_steps_add_up() -> None:
    step = JUMP / 2
    found = told(*((2 * n + n * step, 2, 0) for n in range(4)))
    assert found == [0.0, 0.0, 0.0, 3 * step]
