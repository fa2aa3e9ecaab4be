"""What the journal is told: lines with fields by which they can be looked for, and an id for each kind.

    journalctl PENSTOCK_WORKLOAD=ollama
    journalctl PENSTOCK_EVENT=foreign-change

A block is told when it begins and, if it grew, when its minute is over: the log of blocks has what is between.  So
the journal gets two records a destination and minute at most, fewer than those for which it begins to drop some.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from penstock.core.blocks import Block
from penstock.core.effects import Effect, Journal, Record, TellBlocks
from penstock.core.folds import WINDOW
from penstock.core.text import printable
from penstock.core.wire import Json

MESSAGE_IDS: Mapping[str, str] = {
    "applied": "63279e6d1f8648c5892cae48471a7d49",
    "confirmed": "c46fe38858d74611a3dbdf2a46adcfa4",
    "rolled-back": "5302a7ff7d6c4de5b828419039ac54e8",
    "reverted": "5ba69a620b6d4e7c9983423c80aa2f3a",
    "foreign-change": "257db095d0f643fe8de7b8cadd0ae28f",
    "repaired": "9442d4d414e14c0ab2e5d394c69dbf3c",
    "denied": "0d7bc1e565584db08c797915f7cc5789",
    "would-deny": "3f8b1e64d82149c984ee192710d94cef",
    "grant-made": "01a11ae2cd19463e82dc07d32dfa6615",
    "grant-ended": "b4b597b811224614b59e7b66d9f25a6b",
    "grant-revoked": "31fd0658c65e4a278ba4ac2b2fad3d4d",
    "grant-dropped": "e24a4045451c4aebada4a1f594184f70",
    "finding": "fe147375f7fe44778d6f3445e285e2be",
    "finding-gone": "cfaafe53a99d499ab5b2806a6f7c0174",
    "failed": "5603edfae4ad4380be712778197edae8",
}
"""Kind of event -> MESSAGE_ID.  They never change: people look for them."""

TOLD_AT_ONCE = 20
"""Findings that are told of in one go, as many that went."""

MAX_VALUE = 1024
"""Characters of a field."""


def record(line: Journal) -> dict[str, str]:
    """Its fields for the journal, but for those that whoever sends it knows."""
    fields = {"MESSAGE": printable(line.text, 4096)}
    if line.kind:
        fields["PENSTOCK_EVENT"] = line.kind
    if line.kind in MESSAGE_IDS:
        fields["MESSAGE_ID"] = MESSAGE_IDS[line.kind]
    return fields | {f"PENSTOCK_{name}": printable(value, MAX_VALUE) for name, value in line.fields.items()}


class BlockNews:
    """Blocks on their way to the log -> what the journal is told of them."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[int, Block]] = {}  # by id: packets that were told of, and the block as it is

    def of(self, todo: Iterable[Effect], now: float, *, last: bool = False) -> list[Effect]:
        """What to tell of the blocks in `todo`, and of those whose minute is over; of all at the `last`."""
        lines = [line for effect in todo if isinstance(effect, Record) for line in self._begun(effect.blocks)]
        for id, (told, block) in list(self._open.items()):
            if last or not block.first <= now < block.first + WINDOW:
                del self._open[id]
                lines += [_line(block)] if _packets(block) > told else []
        return [TellBlocks(tuple(lines))] if lines else []

    def _begun(self, blocks: Iterable[Block]) -> list[Journal]:
        lines = []
        for block in blocks:
            if block.id not in self._open:
                lines.append(_line(block))
            told = self._open.get(block.id, (_packets(block), block))[0]
            self._open[block.id] = (told, block)
        return lines


def _packets(block: Block) -> int:
    return block.count + block.unlogged


def _line(block: Block) -> Journal:
    kind = "would-deny" if block.verdict == "would-deny" else "denied"
    level = "info" if kind == "would-deny" else "notice"
    process = f" (process {block.process.comm})" if block.process.comm else ""
    times = f", {_packets(block)} times" if _packets(block) > 1 else ""
    text = f"{kind}: {_what(block)}{process}{times}: {block.text}"
    return Journal(level, text, kind, _fields(block))


def _what(block: Block) -> str:
    if block.is_lookup:
        return f"{block.workload} asked for {block.name or 'names'}"
    far = _far(block) or "several"
    if block.direction == "out":
        return f"{block.workload} -> {far}" + (f" ({block.name})" if block.name else "")
    port = f", port {block.port}" if block.port is not None else ""
    return f"{far} -> {block.workload}{port}"


def _far(block: Block) -> str:
    """The far end as `why` takes it: with its port if that is there."""
    if block.address is None:
        return ""
    if block.direction != "out" or block.port is None:
        return block.address
    address = f"[{block.address}]" if block.family == 6 else block.address
    return f"{address}:{block.port}" + ("/udp" if block.protocol == "udp" else "")


def _fields(block: Block) -> dict[str, str]:
    found = {
        "BLOCK": block.id,
        "WORKLOAD": block.workload,
        "VERDICT": block.verdict,
        "MODE": block.mode,
        "DIRECTION": block.direction,
        "DESTINATION" if block.direction == "out" else "SOURCE": _far(block) or None,
        "PROTOCOL": block.protocol,
        "ADDRESS": block.address,
        "PORT": block.port,
        "NAME": block.name,
        "COUNT": block.count,
        "UNLOGGED": block.unlogged,
        "REASON": block.reason,
        "NEAREST": block.nearest,
        "PROCESS": block.process.comm,
        "PID": block.process.pid,
        "POLICY": block.policy,
        "ALLOW": block.allow,
    }
    return {name: str(value) for name, value in found.items() if value is not None}


class FindingNews:
    """Findings of errors and warnings -> those that came, and those that went."""

    def __init__(self) -> None:
        self._there: dict[tuple[str, str], Json] = {}

    def of(self, findings: Sequence[Json]) -> list[Effect]:
        """What to tell of the findings as they are now."""
        before = self._there
        weak = [one for one in findings if one["severity"] != "info"]
        self._there = {(one["code"], one["workload"] or ""): one for one in reversed(weak)}
        came = [_found(one) for key, one in self._there.items() if key not in before]
        went = [_gone(one) for key, one in before.items() if key not in self._there]
        return [*_some(came, "finding"), *_some(went, "finding-gone")]


def _found(one: Json) -> Journal:
    remedy = f"; {one['remedy']}" if one["remedy"] else ""
    return Journal(one["severity"], f"{_about(one)}{one['text']}{remedy}", "finding", _of_finding(one))


def _gone(one: Json) -> Journal:
    return Journal("info", f"over: {_about(one)}{one['text']}", "finding-gone", _of_finding(one))


def _about(one: Json) -> str:
    return f"{one['code']}: " + (f"{one['workload']}: " if one["workload"] else "")


def _of_finding(one: Json) -> dict[str, str]:
    workload = {"WORKLOAD": one["workload"]} if one["workload"] else {}
    return {"FINDING": one["code"], "SEVERITY": one["severity"], **workload}


def _some(lines: Sequence[Journal], kind: str) -> list[Effect]:
    more = len(lines) - TOLD_AT_ONCE
    rest = [Journal("warning", f"and {more} more: penstock status --json", kind)] if more > 0 else []
    return [*lines[:TOLD_AT_ONCE], *rest]
