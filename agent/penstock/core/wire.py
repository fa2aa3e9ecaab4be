"""Messages of the control socket <-> bytes.

One request and one answer a connection, each one line of JSON.  A request is small and exact: unknown commands,
unknown keys and wrong types are refused.  Answers are ours, but bounded all the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]

VERSION = 1
MAX_REQUEST = 16 << 10
MAX_ANSWER = 32 << 20

COMMANDS: Mapping[str, Mapping[str, type]] = {
    "status": {},
    "apply": {"confirm": int},  # seconds until it reverts by itself; 0: it stays
    "confirm": {},
    "rollback": {"to": str},  # the hash of a kept policy, or its beginning; "": the one before
    "ready": {"workload": str},  # may a process be put into it now?
    "hits": {"workload": str},
    "names": {"workload": str, "name": str},  # a domain name or an address: what was learned of it?
    "grants": {},
    "grant": {
        "workload": str,
        "direction": str,  # out or in
        "peer": str,  # as `to:` or `from:` has it, or the name of a preset
        "ports": str,  # as members of `ports:`, with commas between; "": as a rule without it
        "seconds": int,  # how long; 0: `until` says it
        "until": int,  # seconds since the epoch; 0: `seconds` says it
        "reason": str,
        "wide": int,  # 1: a wide prefix is meant
        "user": str,  # who says he is behind it: what sudo said, or ""
    },
    "mode": {  # lend a workload the mode observe or lock; the rest as in `grant`
        "workload": str,
        "mode": str,
        "seconds": int,
        "until": int,
        "reason": str,
        "user": str,
    },
    "revoke": {"id": str, "user": str},  # an id, or the beginning of one
    "holds": {  # the kernel; `here`: it is an address of this host
        "workload": str,
        "direction": str,
        "address": str,
        "protocol": str,
        "port": int,
        "here": int,
    },
    # Which rules open it in chains?  `far`: host, workload:NAME or interface:NAME.
    "opens": {"workload": str, "direction": str, "far": str, "protocol": str, "port": int},
}
"""Each command with its arguments; all of them are required."""

LONGEST_CONFIRM = 24 * 3600
"""Seconds that an `apply` may wait to be confirmed."""

LONGEST_GRANT = 30 * 86_400
"""Seconds that something is lent for at most: what is needed longer belongs into a rule file."""

LIMITS: Mapping[str, int] = {
    "confirm": LONGEST_CONFIRM,
    "here": 1,
    "port": 65535,
    "seconds": LONGEST_GRANT,
    "until": 1 << 40,
    "wide": 1,
}
"""The largest value of a number; the smallest is 0."""


@dataclass(frozen=True, slots=True)
class Message:
    """A request."""

    command: str
    arguments: Json = field(default_factory=dict)


def encode_request(message: Message) -> bytes:
    """One line."""
    return _line({"v": VERSION, "command": message.command, "arguments": dict(message.arguments)})


def decode_request(line: bytes) -> Message:
    """The request in `line`.  ValueError, with a sentence for the peer, when it is none."""
    value = _object(line, MAX_REQUEST)
    if value.keys() != {"v", "command", "arguments"} or value["v"] != VERSION:
        raise ValueError(f"expected v {VERSION}, command and arguments")
    command, arguments = value["command"], value["arguments"]
    if not isinstance(command, str) or command not in COMMANDS:
        raise ValueError("unknown command")
    wanted = COMMANDS[command]
    if not isinstance(arguments, dict) or arguments.keys() != wanted.keys():
        raise ValueError(f"{command} takes: {', '.join(wanted) or 'nothing'}")
    for name, kind in wanted.items():
        if type(arguments[name]) is not kind:
            raise ValueError(f"{name} must be {'a number' if kind is int else 'text'}")
        if kind is int and not 0 <= arguments[name] <= LIMITS[name]:
            raise ValueError(f"{name} goes from 0 to {LIMITS[name]}")
    return Message(command, arguments)


def encode_result(result: Json) -> bytes:
    """An answer that says yes."""
    return _line({"v": VERSION, "ok": True, "result": dict(result)})


def encode_error(message: str, hint: str = "") -> bytes:
    """An answer that says no."""
    return _line({"v": VERSION, "ok": False, "error": {"message": message, "hint": hint}})


def decode_answer(line: bytes) -> tuple[Json | None, str, str]:
    """(result, "", "") or (None, message, hint).  ValueError when it is no answer."""
    value = _object(line, MAX_ANSWER)
    if value.get("ok") is True and isinstance(value.get("result"), dict):
        return value["result"], "", ""
    error = value.get("error")
    if not isinstance(error, dict):
        raise ValueError("not an answer")
    return None, str(error.get("message", "")), str(error.get("hint", ""))


def _line(value: Json) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _object(line: bytes, limit: int) -> dict[str, Any]:
    if len(line) > limit:
        raise ValueError(f"longer than {limit} bytes")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise ValueError("not JSON") from e
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value
