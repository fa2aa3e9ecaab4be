"""`penstock apply`: have the daemon put the rule files in force."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import click

from penstock.cli.arming import Settled, settle
from penstock.cli.client import ask
from penstock.cli.context import Context, place_of
from penstock.cli.duration import window
from penstock.cli.format import clock, counted, moment
from penstock.cli.problem_text import lines
from penstock.core.text import printable
from penstock.core.wire import Json, Message

PATIENCE = 130.0
"""Seconds: the daemon itself gives up after 120."""
CHANGED = 3


@click.command()
@click.option(
    "--confirm",
    "wait",
    type=window,
    metavar="TIME",
    help="Revert after so long (5s to 24h) unless `penstock confirm` says that all is well.",
)
@click.option("--changed-exit", is_flag=True, help="Exit 3, not 0, when something was changed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def apply(ctx: click.Context, wait: timedelta | None, changed_exit: bool, as_json: bool) -> None:
    """Put the rule files in force: all of them or, when there is a mistake in one, none.

    \b
    penstock apply
    penstock apply --confirm 60s
    penstock apply --changed-exit

    Returns after the kernel was read back.  Nothing is restarted.

    Exit status: 0 when they are in force (3 with --changed-exit when that changed something), 1 when they are
    refused, 2 when no daemon answers.
    """
    run: Path = (ctx.obj or Context()).run
    seconds = int(wait.total_seconds()) if wait else 0
    result = ask(run, Message("apply", {"confirm": seconds}), PATIENCE)
    refused = bool(result.get("refused"))
    # What may revert by itself must not have moved a unit into a slice that is without rules by then.
    settled = Settled() if refused else settle(run, kept=result.get("confirm_until") is None)
    if as_json:
        click.echo(json.dumps({**result, **({} if refused else settled.as_json())}, indent=2))
    else:
        for line in lines(result["problems"], place_of(run, "config")):
            click.echo(line)
        click.echo(_summary(result), err=refused)
        for line in (*_window(result), *settled.lines()):
            click.echo(line)
    settled.complain()
    if refused or settled.trouble:
        ctx.exit(1)
    ctx.exit(CHANGED if changed_exit and result["changed"] else 0)


def _summary(result: Json) -> str:
    errors = sum(problem["severity"] == "error" for problem in result["problems"])
    policy = printable(str(result["hash"]))
    if result.get("refused"):
        stays = f"{policy} stays in force" if result["hash"] is not None else "no policy is in force"
        return f"penstock: not applied, {counted(errors, 'error')}; {stays}"
    what = "applied" if result["changed"] else "unchanged, in force is"
    return f"{what} {policy}: {counted(result['workloads'], 'workload')}, {result['seconds']:.2f} s"


def _window(result: Json) -> list[str]:
    """That it is not kept yet, if so."""
    until = result.get("confirm_until")
    if until is None:
        return []
    return [f"not confirmed: reverts by itself at {clock(moment(until))}; keep it with: penstock confirm"]
