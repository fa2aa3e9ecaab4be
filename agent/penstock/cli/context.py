"""Which daemon a command is about: its run directory, and what it left there for us."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from penstock.errors import PenstockError

DEFAULT_RUN = Path("/run/penstock")
_MAX_BYTES = 64 << 10


class CannotTell(PenstockError):
    """The question has no answer now: exit status 2, which scripts must not take for a no."""


class NotStarted(PenstockError):
    """`run` did not start the program: exit status 125, which tells it from the program's own."""


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


def place_of(run: Path, what: str) -> Path | None:
    """The directory that `RUN/daemon.json` gives for "config", "state", "log" or "cgroup"; None if it does not."""
    said = (find_daemon_json(run) or {}).get(what)
    return Path(said) if isinstance(said, str) and said.startswith("/") else None


def drop_output(stream: TextIO) -> None:
    """What is still buffered has no reader: the interpreter must not complain about it when it ends."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
