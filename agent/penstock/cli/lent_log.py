"""The log of what was lent, as it lies on the disk: `grants.jsonl` beside that of blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from penstock.cli.context import CannotTell, place_of
from penstock.core.blocks import LOG_KEPT
from penstock.core.grants import LOG_NAME
from penstock.core.wire import Json

MAX_LINE = 64 << 10
SHOWN = ("event", "time", "id", "workload", "what", "owner", "reason")


def read(run: Path, workload: str | None) -> Iterator[Json]:
    """Its records, the oldest first, of one workload or of all.  CannotTell when there is nothing to be read."""
    directory = place_of(run, "log")
    if directory is None:
        raise CannotTell("no daemon has run here yet", where=str(run / "daemon.json"))
    names = [*(f"{LOG_NAME}.{n}" for n in range(LOG_KEPT, 0, -1)), LOG_NAME]
    for path in (directory / name for name in names):
        try:
            with path.open("rb") as file:
                for line in iter(lambda: file.readline(MAX_LINE), b""):
                    record = _record(line)
                    if record is not None and workload in (None, record["workload"]):
                        yield record
        except FileNotFoundError:
            continue
        except OSError as e:
            hint = "run it with sudo" if isinstance(e, PermissionError) else ""
            raise CannotTell(f"cannot be read: {e.strerror}", where=str(path), hint=hint) from e


def _record(line: bytes) -> Json | None:
    """None for half a line, and for what is none of ours."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    ours = isinstance(found, dict) and all(isinstance(found.get(key), str) for key in SHOWN)
    return found if ours else None
