"""Numbers, times, colours and tables, as people read them."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any

import click

from penstock.core.text import printable

COLUMNS = 80
UNKNOWN = "unknown"
_UTC = re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def number(value: Any) -> str:
    """`12,345`; a dash for what is not known."""
    return f"{value:,}" if isinstance(value, int) else "-"


def counted(count: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def moment(text: Any) -> datetime | None:
    """An RFC 3339 time, aware; None when it is none."""
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def local(when: datetime | None) -> str:
    """`2026-11-25 02:15:00 CET` in local time, with its zone."""
    return UNKNOWN if when is None else when.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def clock(when: datetime | None) -> str:
    """`02:15:00 CET` in local time: of a moment less than a day away."""
    return UNKNOWN if when is None else when.astimezone().strftime("%H:%M:%S %Z")


def ago(when: datetime | None, now: datetime) -> str:
    """`3 min ago`, in the largest unit of which there is one."""
    if when is None:
        return UNKNOWN
    seconds = int((now - when).total_seconds())
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return "now"


def span(left: timedelta) -> str:
    """`1 h 20 min`, in the largest unit of which there is one, and the next."""
    seconds = max(0, ceil(left.total_seconds()))
    for (size, unit), (smaller, part) in zip(_UNITS, (*_UNITS[1:], (1, "")), strict=True):
        if seconds >= size:
            rest = seconds % size // smaller
            return f"{seconds // size} {unit}" + (f" {rest} {part}" if rest and part else "")
    return "0 s"


def stamp(when: datetime | None) -> str:
    """`2026-11-25 02:15:00 CET`, as `local`."""
    return local(when)


def localised(text: str) -> str:
    """`text` with each time in it, which the daemon says in UTC, in local time with its zone."""
    return _UTC.sub(lambda found: local(when) if (when := moment(found[0])) else found[0], text)


def rfc3339(when: datetime) -> str:
    """In UTC, to the second."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def on_terminal() -> bool:
    """Whether stdout is a terminal that knows more than lines."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def colours() -> bool:
    """Whether stdout is a terminal whose owner does not mind."""
    return on_terminal() and not os.environ.get("NO_COLOR")


def paint(text: str, colour: str | None, *, bold: bool = False) -> str:
    """`text` in a colour, where there are colours."""
    return click.style(text, fg=colour, bold=bold or None) if (colour or bold) and colours() else text


def width() -> int:
    """Columns to fill: the terminal's, but lines longer than 120 are hard to read."""
    return min(max(shutil.get_terminal_size((COLUMNS, 24)).columns, 40), 120)


def wrapped(text: str, indent: int, first: str = "") -> list[str]:
    """`text`, made safe, in lines behind `indent` spaces; the first line starts with `first`.

    Words are kept whole: a path or a command is to be copied.
    """
    lines = textwrap.wrap(
        printable(text, 2000), max(width() - indent, 20), break_long_words=False, break_on_hyphens=False
    )
    return [(first if n == 0 else "").ljust(indent) + line for n, line in enumerate(lines or [""])]


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> list[list[str]]:
    """All cells padded to the width of their column; those of the columns `right` to the right."""
    everything = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[n]) for row in everything) for n in range(len(header))]
    to_right = set(right)
    return [
        [cell.rjust(widths[n]) if n in to_right else cell.ljust(widths[n]) for n, cell in enumerate(row)]
        for row in everything
    ]
