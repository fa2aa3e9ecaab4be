"""What was blocked, as people and scripts read it: one `Block` a destination and minute.

`Folder` folds denied packets into blocks and keeps the books: for each workload and direction,
what was logged (`count`) and what the kernel only counted (`unlogged`) add up to the kernel's counter.
Times are seconds since the epoch; whoever calls says what time it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

LOG_NAME = "blocks.jsonl"
LOG_KEPT = 15
"""Rotated files beside the log: `blocks.jsonl.1` (the newest) to `blocks.jsonl.15`; a million lines of 1 KiB."""

VERSION = 1
DNS_PORT = 53
MAX_LINE = 64 << 10
"""Bytes of a record; we write less than 2 KiB."""


@dataclass(frozen=True, slots=True)
class Process:
    """Who sent it, as far as known.  `comm` is text that the process chose."""

    pid: int | None = None
    comm: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a packet was denied: `reason` is a code, `text` a sentence, `nearest` the id of the rule that
    comes closest, `allow` the command that would let it through, `name` the DNS name that was asked."""

    reason: str
    text: str
    rule: str | None = None
    nearest: str | None = None
    allow: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """One line of the log.  Lines with the same id are the same block; the last one counts.

    `address` is the remote end; it, `port`, `protocol` and `family` are None where several packets are
    summed up that were not kept apart, or that the kernel counted without logging them.

    A refused look-up is a block with a `name` and the port 53, without an address.  It is no packet that the
    kernel denied: the resolver refused it.
    """

    id: str
    first: float
    last: float
    workload: str
    verdict: str | None  # deny, would-deny
    mode: str | None  # observe, enforce, lock
    direction: str  # out, in
    protocol: str | None
    family: int | None
    address: str | None
    port: int | None
    name: str | None
    count: int
    unlogged: int
    rule: str | None
    reason: str
    text: str
    nearest: str | None
    process: Process
    policy: str | None
    allow: str | None

    @property
    def is_lookup(self) -> bool:
        """Whether it is about names that were asked, and not about packets."""
        return self.address is None and self.port == DNS_PORT

    def as_json(self) -> str:
        """One JSON object without a newline, ASCII only."""
        return json.dumps(
            {
                "v": VERSION,
                "id": self.id,
                "first": rfc3339(self.first),
                "last": rfc3339(self.last),
                "workload": self.workload,
                "verdict": self.verdict,
                "mode": self.mode,
                "direction": self.direction,
                "protocol": self.protocol,
                "family": self.family,
                "address": self.address,
                "port": self.port,
                "name": self.name,
                "count": self.count,
                "unlogged": self.unlogged,
                "rule": self.rule,
                "reason": self.reason,
                "text": self.text,
                "nearest": self.nearest,
                "process": {"pid": self.process.pid, "comm": self.process.comm},
                "policy": self.policy,
                "allow": self.allow,
            },
            separators=(",", ":"),
        )


def rfc3339(seconds: float) -> str:
    """UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_LATEST = 250_000_000_000.0  # some years short of where datetime ends in any time zone
_OR_NULL = type(None)
_TEXT = (str,)
_TEXT_OR_NULL = (str, _OR_NULL)
_NUMBER = (int,)
_NUMBER_OR_NULL = (int, _OR_NULL)
_KEYS: dict[str, tuple[type, ...]] = {
    "id": _TEXT,
    "workload": _TEXT,
    "verdict": _TEXT_OR_NULL,
    "mode": _TEXT_OR_NULL,
    "direction": _TEXT,
    "protocol": _TEXT_OR_NULL,
    "family": _NUMBER_OR_NULL,
    "address": _TEXT_OR_NULL,
    "port": _NUMBER_OR_NULL,
    "name": _TEXT_OR_NULL,
    "count": _NUMBER,
    "unlogged": _NUMBER,
    "rule": _TEXT_OR_NULL,
    "reason": _TEXT,
    "text": _TEXT,
    "nearest": _TEXT_OR_NULL,
    "policy": _TEXT_OR_NULL,
    "allow": _TEXT_OR_NULL,
}
_WORDS = {
    "verdict": frozenset({"deny", "would-deny", None}),
    "mode": frozenset({"observe", "enforce", "lock", None}),
    "direction": frozenset({"out", "in"}),
    "family": frozenset({4, 6, None}),
}


def from_json(line: str | bytes) -> Block:
    """Return the block that `as_json` wrote.  Unknown keys are ignored; ValueError for all else."""
    if len(line) > MAX_LINE:
        raise ValueError("line too long")
    try:
        fields = json.loads(line)
    except RecursionError as e:
        raise ValueError("nested too deep") from e
    if not isinstance(fields, dict) or fields.get("v") != VERSION:
        raise ValueError("not a record of a block")
    process = fields.get("process")
    if not isinstance(process, dict):
        raise ValueError("process: not an object")
    return Block(
        first=_time(fields, "first"),
        last=_time(fields, "last"),
        process=Process(
            _value(process, "pid", _NUMBER_OR_NULL),
            _value(process, "comm", _TEXT_OR_NULL),
        ),
        **{key: _value(fields, key, types) for key, types in _KEYS.items()},
    )


def _value(fields: Mapping[str, Any], key: str, types: Iterable[type]) -> Any:
    if key not in fields:
        raise ValueError(f"{key}: missing")
    value = fields[key]
    if type(value) not in types:  # not isinstance: a bool is no number
        raise ValueError(f"{key}: wrong type")
    if key in _WORDS and value not in _WORDS[key]:
        raise ValueError(f"{key}: unknown word")
    if type(value) is int and not 0 <= value < 1 << 63:
        raise ValueError(f"{key}: out of range")
    return value


def _time(fields: Mapping[str, Any], key: str) -> float:
    try:
        when = datetime.fromisoformat(_value(fields, key, _TEXT))
        if when.tzinfo is None:
            raise ValueError(f"{key}: no time zone")
        seconds = when.timestamp()
    except OverflowError as e:
        raise ValueError(f"{key}: out of range") from e
    if not 0 <= seconds < _LATEST:
        raise ValueError(f"{key}: out of range")
    return seconds
