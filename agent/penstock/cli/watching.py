"""Showing the same thing again and again: redrawn on a terminal, one after the other elsewhere; until ctrl-c."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence

import click

from penstock.cli.format import COLUMNS, on_terminal

HOME, CLEAR, REST_OF_LINE, BELOW = "\x1b[H", "\x1b[2J", "\x1b[K", "\x1b[J"


def repeat(show: Callable[[], Sequence[str]], seconds: float, more: str) -> None:
    """Show lines every so many seconds.  `more` is the command that shows them all, where a terminal is too small.

    Returns when somebody presses ctrl-c.
    """
    terminal = on_terminal()
    try:
        if terminal:
            click.echo(CLEAR, nl=False, color=True)
        while True:
            lines = show()
            text = _screen(lines, more) if terminal else "".join(f"{line}\n" for line in lines)
            click.echo(text, nl=False, color=terminal)
            time.sleep(seconds)
    except KeyboardInterrupt:
        if terminal:
            click.echo()


def _screen(lines: Sequence[str], more: str) -> str:
    """From the top of the terminal, which keeps its last line for the cursor."""
    room = shutil.get_terminal_size((COLUMNS, 24)).lines - 1
    if len(lines) > room:
        left = len(lines) - room + 1
        lines = [*lines[: room - 1], f"... {left} more lines: {more}"]
    return HOME + "".join(f"{line}{REST_OF_LINE}\n" for line in lines) + BELOW
