"""The saved state: the policy that was applied last, as its files, and what must outlive the daemon with it.

One JSON document, replaced as a whole.  The next start applies these files, whatever the configuration directory
holds by then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VERSION = 1
FILE = "applied.json"
STAGED = "applied.json.new"
HISTORY = ("applied.1.json", "applied.2.json")
"""The good policies before the present one, the last one first."""
POLICIES = "policies"
"""Beside it a directory of policies that the log names, each as it was saved, by its hash."""

LATEST = 250_000_000_000.0  # some years short of where datetime ends


@dataclass(frozen=True, slots=True)
class Applied:
    """`at` is seconds since the epoch; `labels` maps workloads to their bits in connection labels."""

    hash: str
    at: float
    files: Mapping[str, bytes] = field(default_factory=dict)
    presets: Mapping[str, bytes] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)


def encode(applied: Applied) -> bytes:
    """The document."""
    return json.dumps(
        {
            "penstock": VERSION,
            "hash": applied.hash,
            "at": applied.at,
            "files": _text(applied.files),
            "presets": _text(applied.presets),
            "labels": dict(applied.labels),
        }
    ).encode()


def decode(data: bytes) -> Applied:
    """The state in `data`; ValueError when it is none of ours."""
    try:
        value: Any = json.loads(data)
        version, at = value["penstock"], float(value["at"]) if value["penstock"] == VERSION else 0.0
        if version == VERSION:
            labels = {str(name): int(bit) for name, bit in value["labels"].items()}
            if not 0 <= at < LATEST or len(set(labels.values())) < len(labels):
                raise ValueError("no such time, or a label twice")
            return Applied(str(value["hash"]), at, _bytes(value["files"]), _bytes(value["presets"]), labels)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise ValueError("the saved state is damaged") from e
    raise ValueError(f"the saved state is of another version ({str(version)[:20]!r})")


def _text(files: Mapping[str, bytes]) -> dict[str, str]:
    """Policy files were parsed, so they are UTF-8."""
    return {name: data.decode("utf-8", "surrogateescape") for name, data in files.items()}


def _bytes(files: Mapping[str, str]) -> dict[str, bytes]:
    return {str(name): text.encode("utf-8", "surrogateescape") for name, text in files.items()}
