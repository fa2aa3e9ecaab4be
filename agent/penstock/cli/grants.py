"""`penstock grants`: what is lent now, and what was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from penstock.cli.applied import complete_workload
from penstock.cli.client import ask
from penstock.cli.context import Context
from penstock.cli.format import local, moment, rfc3339, span, wrapped
from penstock.cli.lent import lent
from penstock.cli.lent_log import SHOWN, read
from penstock.core.lending import as_json as saved_as_json
from penstock.core.text import printable
from penstock.core.wire import Json, Message
from penstock.errors import NoDaemon

AS_SAVED = "this is what was saved last, and what the kernel keeps to"


@click.command()
@click.argument("workload", required=False, shell_complete=complete_workload)
@click.option("--past", is_flag=True, help="Show from the log what was lent, revoked and ended, the latest last.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; with --past one a line.")
@click.pass_context
def grants(ctx: click.Context, workload: str | None, past: bool, as_json: bool) -> None:
    """Show what is lent now: until when, by whom and why; those that end first come first.

    \b
    penstock grants
    penstock grants litellm --json
    penstock grants --past

    Exit status: 0; 2 when no daemon answers: what was saved last is shown then.
    """
    run: Path = (ctx.obj or Context()).run
    if past:
        for record in read(run, workload):
            click.echo(json.dumps(record) if as_json else "\n".join(_event(record)))
        return
    now = datetime.now(UTC)
    trouble: NoDaemon | None = None
    try:
        found = ask(run, Message("grants"))["grants"]
    except NoDaemon as e:
        saved = lent(run, now)
        if saved is None:
            raise
        found, trouble = [saved_as_json(one) for one in sorted(saved, key=lambda one: one.until)], e
    found = [one for one in found if workload in (None, one["workload"])]
    if as_json:
        click.echo(json.dumps({"v": 1, "time": rfc3339(now), "grants": found}, indent=2))
    else:
        click.echo("\n".join(_lines(found, now)))
    if trouble is not None:
        click.echo(f"penstock: {trouble}\npenstock: {AS_SAVED}", err=True)
        ctx.exit(2)


def _lines(found: Sequence[Json], now: datetime) -> Iterator[str]:
    if not found:
        yield "nothing is lent"
    for one in found:
        until = moment(one["until"])
        left = span(until - now) if until else "?"
        what = f"{printable(str(one['workload']))}, {printable(str(one['what']), 500)}"
        yield from wrapped(f"{what}: {left} left, until {local(until)}", 16, printable(str(one["id"])))
        yield from wrapped(f"{one['owner']}: {one['reason']}", 16)


def _event(record: Json) -> Iterator[str]:
    """`SHOWN` are the keys."""
    one = {key: printable(str(record[key]), 500) for key in SHOWN}
    head = f"{local(moment(record['time']))}  {one['event']:8} "
    by = f" (by {printable(str(record['by']))})" if record.get("by") else ""
    why = f" ({printable(str(record['why']), 500)})" if record.get("why") else ""
    words = f"{one['workload']}, {one['what']}, {one['owner']}: {one['reason']}{by}{why}"
    yield from wrapped(f"{one['id']} {words}", len(head), head)
