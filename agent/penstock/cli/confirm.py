"""`penstock confirm`: keep the policy that `apply --confirm` put in force."""

from __future__ import annotations

import json
from pathlib import Path

import click

from penstock.cli.apply import PATIENCE
from penstock.cli.arming import Settled, settle
from penstock.cli.client import ask
from penstock.cli.context import Context
from penstock.core.text import printable
from penstock.core.wire import Message


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def confirm(ctx: click.Context, as_json: bool) -> None:
    """Keep the policy that `apply --confirm` put in force: it does not revert any more.

    \b
    penstock apply --confirm 60s
    penstock confirm

    Exit status: 0 when it is kept, 1 when nothing waits to be confirmed, 2 when no daemon answers.
    """
    run: Path = (ctx.obj or Context()).run
    result = ask(run, Message("confirm"), PATIENCE)
    confirmed = result["confirmed"] is True
    settled = settle(run, kept=True) if confirmed else Settled()
    policy = printable(str(result["hash"]))
    if as_json:
        click.echo(json.dumps({**result, **settled.as_json()}, indent=2))
    elif confirmed:
        for line in (f"confirmed {policy}: it stays in force", *settled.lines()):
            click.echo(line)
    if not confirmed:
        in_force = f"in force is {policy}" if result["hash"] is not None else "no policy is in force"
        click.echo(f"penstock: nothing waits to be confirmed; {in_force}", err=True)
    settled.complain()
    ctx.exit(0 if confirmed and not settled.trouble else 1)
