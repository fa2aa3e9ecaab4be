"""What somebody decided against when it was suggested: a file beside the rules; the daemon never reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from penstock.errors import PenstockError
from penstock.files import replace

NAME = "rejected.json"
MODE = 0o644
MAX_BYTES = 8 << 20


def read_rejected(config: Path) -> dict[str, tuple[str, ...]]:
    """Keys of what was rejected, by workload.  PenstockError for a file that is not ours or cannot be read."""
    path = config / NAME
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(MAX_BYTES))
        return _read(found)
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise PenstockError(f"cannot be read: {e.strerror}", where=str(path)) from e
    except (ValueError, RecursionError) as e:
        hint = "remove it: what was rejected is suggested again then"
        raise PenstockError("does not say what was rejected", where=str(path), hint=hint) from e


def write_rejected(config: Path, workload: str, keys: Iterable[str]) -> None:
    """Remember these keys of a workload, and no others of it.  PenstockError."""
    found: Mapping[str, Iterable[str]] = {**read_rejected(config), workload: sorted(set(keys))}
    said = {"v": 1, "rejected": {name: list(mine) for name, mine in sorted(found.items()) if mine}}
    path = config / NAME
    try:
        replace(path, json.dumps(said, indent=2).encode() + b"\n", MODE)
    except OSError as e:
        hint = "run it with sudo" if isinstance(e, PermissionError) else ""
        raise PenstockError(f"cannot be written: {e.strerror}", where=str(path), hint=hint) from e


def _read(found: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(found, dict) or not isinstance(found.get("rejected"), dict):
        raise ValueError("no object of ours")
    for keys in found["rejected"].values():
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ValueError("no list of texts")
    return {name: tuple(keys) for name, keys in found["rejected"].items()}
