"""Blocks as people read them: one row a destination, and one hint how to let it through."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import click

from penstock.cli.format import local, localised
from penstock.core.block_keys import destination, endpoint, group_key
from penstock.core.blocks import Block, rfc3339
from penstock.core.text import printable

_VERDICTS = {"deny": ("DENY", "red"), "would-deny": ("WOULD-DENY", "yellow"), None: ("DENY?", "yellow")}
_ARROWS = {"out": "->", "in": "<-"}
_INDENT = " " * 10
MAX_GROUPS = 100_000
"""Of `--by`; the rest is summed up under no key."""


@dataclass(slots=True)
class Row:
    """All blocks of one destination."""

    latest: Block
    packets: int
    unlogged: int
    last: float = 0.0  # seconds since the epoch; a later line may tell of an earlier time


@dataclass(frozen=True, slots=True)
class Look:
    """How to print: local date of today, colours, columns of the terminal (None: no limit), ids of blocks."""

    today: str
    colour: bool = False
    columns: int | None = None
    ids: bool = False


@dataclass(slots=True)
class Group:
    """All blocks with the same key of `--by`."""

    key: str | None
    workload: str | None
    count: int
    first: float
    last: float

    def as_json(self, by: str) -> str:
        """One JSON object."""
        return json.dumps(
            {
                "v": 1,
                "by": by,
                "key": self.key,
                "workload": self.workload,
                "count": self.count,
                "first": rfc3339(self.first),
                "last": rfc3339(self.last),
            },
            separators=(",", ":"),
        )


def rows(newest_first: Iterable[Block]) -> list[Row]:
    """Fold blocks of the same destination, whatever their window; first comes the row that was told of last."""
    found: dict[tuple[object, ...], Row] = {}
    for block in newest_first:
        row = found.setdefault(destination(block), Row(block, 0, 0))
        row.last = max(row.last, block.last)
        row.packets += block.count + block.unlogged
        row.unlogged += block.unlogged
    return list(found.values())


def oldest_first(found: Iterable[Row]) -> list[Row]:
    """As people read them."""
    return sorted(found, key=lambda row: row.last)


@dataclass(frozen=True, slots=True)
class Widths:
    """Columns of the verdict, the workload and its far end."""

    verdict: int = 4
    workload: int = 8
    far: int = 23

    def with_room_for(self, block: Block) -> Widths:
        """These, or as much wider as the block needs; a very long end may stick out."""
        return Widths(
            max(self.verdict, len(_VERDICTS[block.verdict][0])),
            max(self.workload, len(printable(block.workload))),
            max(self.far, min(47, len(_far(block)))),
        )


def lines(row: Row, widths: Widths, look: Look, hint: bool) -> list[str]:
    """The row, and below it, if `hint`, the command that would allow it."""
    block = row.latest
    word, colour = _VERDICTS[block.verdict]
    word = word.ljust(widths.verdict)
    verdict = click.style(word, fg=colour, bold=True) if look.colour else word
    name = printable(block.workload).ljust(widths.workload)
    far = _far(block).ljust(widths.far)
    head = f"{_clock(block.last, look.today)}  {verdict}  {name} {far}  {f'x{row.packets}':<5}"
    text = localised(printable(block.text, 512))
    if block.process.comm is not None:
        text += f"; by {printable(block.process.comm, 32)}[{block.process.pid}]"
    if row.unlogged:
        text += f"; {row.unlogged} of them counted, not logged"
    bare = len(click.unstyle(head)) + 2 + len(text)
    fits = not look.columns or bare <= look.columns
    told = [f"{head}  {text}"] if fits else [head.rstrip(), *_below(text, look)]
    if look.ids:
        told.append(f"{_INDENT}id: {printable(block.id, 64)}")
    if hint and block.allow:
        told += _hint(_allow_label(block.allow), printable(block.allow, 512), look)
    return told


def _below(text: str, look: Look) -> list[str]:
    columns = max((look.columns or 0) - len(_INDENT), 40)
    return [
        _INDENT + line for line in textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False)
    ]


def _hint(label: str, command: str, look: Look) -> list[str]:
    """A command is never broken, as it is to be copied: it gets a line of its own where that helps."""
    if not look.columns or len(_INDENT) + len(label) + 2 + len(command) <= look.columns:
        return [f"{_INDENT}{label}  {command}"]
    if not command.startswith("penstock "):
        return [_INDENT + label, *_below(command, look)]
    room = look.columns - len(command)
    return [_INDENT + label, " " * max(0, min(len(_INDENT), room)) + command]


def _far(block: Block) -> str:
    return endpoint(block) if block.is_lookup else f"{_ARROWS[block.direction]} {endpoint(block)}"


def _allow_label(command: str) -> str:
    return "allow until morning:" if " --for 8h" in command else "allow:"


def groups(newest_first: Iterable[Block], by: str) -> list[Group]:
    """Sum up by destination, workload or process; largest first.  Unlogged packets count as well."""
    found: dict[tuple[str | None, str | None], Group] = {}
    for block in newest_first:
        key: tuple[str | None, str | None] = (group_key(block, by), block.workload)
        if key not in found and len(found) >= MAX_GROUPS:
            key = (None, None)
        group = found.setdefault(key, Group(*key, 0, block.first, block.last))
        group.count += block.count + block.unlogged
        group.first, group.last = min(group.first, block.first), max(group.last, block.last)
    return sorted(found.values(), key=lambda group: (-group.count, group.key or "", group.workload or ""))


def group_line(group: Group, by: str, today: str) -> str:
    """One group for people."""
    key = "(unknown)" if group.key is None else printable(group.key)
    workload = "" if by == "workload" or group.workload is None else f"{printable(group.workload):<10}  "
    times = f"{_clock(group.first, today)} to {_clock(group.last, today)}"
    return f"{f'x{group.count}':<8} {workload}{key:<36}  {times}"


def _clock(seconds: float, today: str) -> str:
    """Of today the time alone; of another day all, with the zone."""
    day, time, *zone = local(datetime.fromtimestamp(seconds, UTC)).split(" ")
    return time if day == today else " ".join((day, time, *zone))
