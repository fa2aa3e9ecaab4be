"""`penstock revoke`: end a grant now."""

from __future__ import annotations

import json
from pathlib import Path

import click

from penstock.cli.apply import PATIENCE
from penstock.cli.client import ask
from penstock.cli.context import Context
from penstock.cli.grant import user
from penstock.cli.lent import complete_grant
from penstock.core.text import printable
from penstock.core.wire import Message


@click.command()
@click.argument("id", metavar="ID", shell_complete=complete_grant)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def revoke(ctx: click.Context, id: str, as_json: bool) -> None:
    """End a grant now: the connections that it allowed stop.  ID may be shortened, with or without `grant-`.

    \b
    penstock revoke grant-1a2b3c4d
    penstock revoke 1a2b

    Exit status: 0 when it is over, 1 when there is none or more than one of that ID, 2 when no daemon answers.
    """
    run: Path = (ctx.obj or Context()).run
    result = ask(run, Message("revoke", {"id": id, "user": user()}), PATIENCE)
    if as_json:
        click.echo(json.dumps({"v": 1, **result}, indent=2))
        return
    one = {key: printable(str(value), 500) for key, value in result["grant"].items()}
    click.echo(f"revoked {one['id']}: {one['workload']}, {one['what']}, {one['owner']}: {one['reason']}")
