"""How far the clock and the kernel's timeouts are apart: those know neither a clock that is set nor sleep."""

from __future__ import annotations

from datetime import datetime

from penstock.core.events import Ticked

JUMP = 0.5
"""Seconds that it may be."""


class Drift:
    """One clock, looked at with each tick."""

    def __init__(self) -> None:
        self._ticked: datetime | None = None
        self._apart = 0.0

    def ticked(self, event: Ticked) -> float:
        """Seconds by which the clock has gone before since it was told last, once they are more than `JUMP`."""
        before, self._ticked = self._ticked, event.now
        if before is None or not event.elapsed:
            return 0.0
        self._apart += (event.now - before).total_seconds() - (event.elapsed - event.slept)
        if abs(self._apart) <= JUMP:  # small steps add up
            return 0.0
        apart, self._apart = self._apart, 0.0
        return apart
