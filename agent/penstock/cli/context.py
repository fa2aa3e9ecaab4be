"""Which daemon a command is about: its run directory, and what it left there for us."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_RUN = Path("/run/penstock")
_MAX_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Context:
    """What options before the command say (`click.Context.obj`)."""

    run: Path = DEFAULT_RUN


def find_daemon_json(run: Path) -> dict[str, Any] | None:
    """Return what `RUN/daemon.json` says; it is still there when the daemon is dead.

    None when there is none, or none that we may read or can make sense of.
    """
    try:
        with (run / "daemon.json").open("rb") as f:
            found = json.loads(f.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
