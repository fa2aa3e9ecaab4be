"""Keeps policies while the block log may name them: a record of last week is explained by the rules of then.

A policy is named while it is in force, and by no record that is older or newer.  So one is needed no more when it
was replaced before the oldest record of the log was written.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from penstock import files
from penstock.blocklog.log_files import close_all, line_at, open_all
from penstock.core import state
from penstock.core.blocks import from_json
from penstock.errors import PenstockError

MOST = 500
MOST_BYTES = 128 << 20
"""Of all of them; those that were replaced first go first."""

SLACK = 2 * 86400.0
"""Seconds: a policy may wait a day to be confirmed, a record tells of a minute, and clocks are set."""

_NAME = re.compile(r"[0-9a-f]{8,64}\.json")


class PolicyArchive:
    """In `state/policies`, for the log in `log`; used by one thread.

    It explains what was blocked, and opens nothing: that it cannot be written is no reason to do anything else
    less.
    """

    def __init__(self, home: Path, log: Path) -> None:
        self._home = home / state.POLICIES
        self._log = log

    def keep(self, data: bytes | None) -> None:
        """Keep a saved state, or note that it was in force until now."""
        try:
            name = f"{state.decode(data or b'').hash}.json"
        except ValueError:
            return
        if not _NAME.fullmatch(name) or data is None:
            return
        with suppress(OSError):
            self._home.mkdir(mode=0o700, exist_ok=True)
            files.replace(self._home / name, data)

    def forget(self) -> None:
        """Remove what no record of the log can name."""
        with suppress(OSError, PenstockError):
            oldest = _oldest(self._log)
            kept, size = 0, 0
            for replaced, one in sorted(
                ((path.stat().st_mtime, path) for path in self._home.iterdir()), reverse=True
            ):
                kept, size = kept + 1, size + one.stat().st_size
                named = oldest is None or replaced + SLACK >= oldest
                if not named or kept > MOST or size > MOST_BYTES or not _NAME.fullmatch(one.name):
                    one.unlink()


def _oldest(log: Path) -> float | None:
    """When the oldest record was written, seconds since the epoch; None when it is not known.

    A clock may have been set back: of all files the earliest time is taken.
    """
    found = open_all(log)
    try:
        times = [os.fstat(file.fd).st_mtime for file in found]
        for file in found:
            with suppress(ValueError):
                times.append(from_json(line_at(file.fd, 0)).first)
        return min(times, default=None)
    finally:
        close_all(found)
