"""`penstock apply`: have the daemon put the rule files in force."""

from __future__ import annotations

import json
from pathlib import Path

import click

from penstock.cli.client import ask
from penstock.cli.context import Context, place_of
from penstock.cli.format import counted
from penstock.cli.problem_text import lines
from penstock.core.text import printable
from penstock.core.wire import Json, Message

PATIENCE = 130.0
"""Seconds: the daemon itself gives up after 120."""
CHANGED = 3


@click.command()
@click.option("--changed-exit", is_flag=True, help="Exit 3, not 0, when something was changed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def apply(ctx: click.Context, changed_exit: bool, as_json: bool) -> None:
    """Put the rule files in force: all of them or, when there is a mistake in one, none.

    Returns after the kernel was read back.  Exit status: 0 when they are in force, 1 when they are refused, 2
    when no daemon answers.
    """
    run: Path = (ctx.obj or Context()).run
    result = ask(run, Message("apply", {"confirm": 0}), PATIENCE)
    if as_json:
        click.echo(json.dumps(dict(result), indent=2))
    else:
        for line in lines(result["problems"], place_of(run, "config")):
            click.echo(line)
        click.echo(_summary(result), err=bool(result.get("refused")))
    if result.get("refused"):
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
