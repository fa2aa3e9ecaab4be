"""Keeps the index of the block log near the log's end, so that `penstock blocks` answers at once.

A little at a time: a log of a gigabyte without an index must not keep the files' thread from what matters.
Nothing depends on it, so nothing is said when it fails: it is tried again, and whoever asks reads the log instead.
"""

from __future__ import annotations

from pathlib import Path

from penstock.blocklog.index import Unusable, grow
from penstock.daemon.clock import uptime
from penstock.errors import PenstockError

STEP = 1 << 20
"""Bytes of the log that are indexed at once, and at least: less is read anew by each question."""

SOON = 1.0
"""Seconds between two steps while there is more to do."""

LATER = 10.0
LONG_AFTER = 60.0
"""Seconds until the next look when there was nothing to do, and when it could not be done."""

_CACHE = 4  # MiB


class IndexKeeper:
    """For the log in `directory`; used by one thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._due = 0.0

    def keep(self) -> None:
        """Do a step if one is due.  Raises nothing."""
        now = uptime()
        if now < self._due:
            return
        try:
            left = grow(self._directory, budget=STEP, least=STEP, cache=_CACHE)
            self._due = now + (SOON if left >= STEP else LATER)
        except (Unusable, PenstockError):
            self._due = now + LONG_AFTER
