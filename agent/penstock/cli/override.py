"""Lending a mode: what `penstock observe` and `penstock lock` have in common."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from penstock.cli.apply import PATIENCE
from penstock.cli.client import ask
from penstock.cli.context import Context
from penstock.cli.format import moment, paint, span, stamp
from penstock.cli.grant import user
from penstock.core.policy import Mode
from penstock.core.text import printable
from penstock.core.wire import LONGEST_GRANT, Json, Message

WORDS = {Mode.OBSERVE: "observed: nothing is denied to it", Mode.LOCK: "locked: everything is denied to it"}


def lend(
    ctx: click.Context,
    workload: str,
    mode: Mode,
    lasting: timedelta | None,
    until: datetime | None,
    reason: str,
    as_json: bool,
) -> None:
    """Ask the daemon for it, and say what came of it."""
    if lasting is not None and until is not None:
        raise click.UsageError("say it once: --for 30m or --until 18:00")
    if not reason.strip():
        raise click.UsageError('say why: --reason "..."')
    seconds = int(lasting.total_seconds()) if lasting else 0 if until else LONGEST_GRANT
    said = {
        "workload": workload,
        "mode": mode.value,
        "seconds": seconds,
        "until": int(until.timestamp()) if until else 0,
        "reason": reason,
        "user": user(),
    }
    run: Path = (ctx.obj or Context()).run
    result = ask(run, Message("mode", said), PATIENCE)
    if as_json:
        click.echo(json.dumps({"v": 1, **result}, indent=2))
        return
    for line in _summary(result["grant"], mode):
        click.echo(line)
    for note in result["notes"]:
        click.echo(f"penstock: {printable(str(note), 2000)}", err=True)


def _summary(one: Json, mode: Mode) -> tuple[str, ...]:
    until, id = moment(one["until"]), printable(str(one["id"]))
    left = span(until - datetime.now(UTC)) if until else "?"
    what = paint(f"{printable(str(one['workload']))} is {WORDS[mode]}", "red")
    sooner = f"end it sooner with: penstock revoke {id.removeprefix('grant-')}"
    return f"{id} until {stamp(until)} ({left}):", f"  {what}", sooner
