"""`penstock uninstall`: says what goes, asks once, and removes it; it runs from what it removes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from penstock.cli.context import CannotTell
from penstock.core.text import printable
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.enrol.uninstall import Step


@click.command()
@click.option("--plan", "only_plan", is_flag=True, help="Print what would be done, and change nothing.")
@click.option("--purge", is_flag=True, help="Remove /etc/penstock and /var/log/penstock as well.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="With --plan: print one JSON object.")
@click.pass_context
def uninstall(ctx: click.Context, only_plan: bool, purge: bool, yes: bool, as_json: bool) -> None:
    """Remove penstock from this host.

    \b
    penstock uninstall --plan
    penstock uninstall

    Nothing is stopped but the daemon, and nothing restarted.  A governed service stays in its slice until its own
    restart, and reaches everything meanwhile.  Rule files and the log stay without --purge.

    Exit status: 0 done, or nothing was there; 1 refused, or not agreed to; 2 without a terminal to ask on.
    """
    # All of it now: the files that hold it will be gone.
    from penstock.enrol import installed
    from penstock.enrol import uninstall as work

    if as_json and not only_plan:
        raise click.UsageError("--json is for --plan")
    if os.geteuid() != 0:
        raise PenstockError("uninstalling needs root", hint="run it with sudo")
    places = installed.Places()
    steps = work.steps(places, purge)
    if as_json:
        _tell_json(steps, work.consequences(installed.residents(places)) if steps else [])
        return
    if not steps:
        click.echo("nothing of penstock is installed here")
        return
    residents = installed.residents(places)
    if only_plan or not yes:
        click.echo("would do:" if only_plan else "this will:")
        for step in steps:
            click.echo(f"  {step.text}")
        _tell(work.consequences(residents))
    if only_plan:
        return
    if not yes and not _agreed():
        ctx.exit(1)
    for step in steps:
        step.do()
        click.echo(f"done: {step.text}")
    if yes:
        _tell(work.consequences(residents))
    if not purge and places.config.exists():
        click.echo("kept: /etc/penstock and /var/log/penstock")


def _tell_json(steps: Sequence[Step], consequences: list[str]) -> None:
    told = {"v": 1, "steps": [step.text for step in steps], "consequences": consequences}
    click.echo(json.dumps(told, indent=2))


def is_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()


def _agreed() -> bool:
    if not is_terminal():
        raise CannotTell("there is no terminal to ask on", hint="say --yes, or look first with --plan")
    try:
        return click.confirm("Remove penstock from this host?", default=False, err=True)
    except click.Abort:
        click.echo(err=True)
        return False


def _tell(consequences: list[str]) -> None:
    """What happens to those who are governed now."""
    click.echo("without the table every process reaches everything, and is reached by everybody")
    for line in consequences:
        click.echo(f"  {printable(line)}")
