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
        if value["penstock"] != VERSION:
            raise ValueError(f"version {value['penstock']!r} of the saved state is not known")
        return Applied(
            hash=str(value["hash"]),
            at=float(value["at"]),
            files=_bytes(value["files"]),
            presets=_bytes(value["presets"]),
            labels={str(name): int(bit) for name, bit in value["labels"].items()},
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ValueError("the saved state is damaged") from e


def _text(files: Mapping[str, bytes]) -> dict[str, str]:
    """Policy files were parsed, so they are UTF-8."""
    return {name: data.decode("utf-8", "surrogateescape") for name, data in files.items()}


def _bytes(files: Mapping[str, str]) -> dict[str, bytes]:
    return {str(name): text.encode("utf-8", "surrogateescape") for name, text in files.items()}
