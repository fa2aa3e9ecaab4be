"""`penstock run`: start a program inside a workload, by becoming it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from penstock.cli.applied import complete_workload
from penstock.cli.client import ask
from penstock.cli.context import Context, NotStarted, place_of
from penstock.core.language.parse_peer import NAME_OF_OURS
from penstock.core.language.reading import shown
from penstock.core.text import printable
from penstock.core.wire import Message
from penstock.errors import NoDaemon, PenstockError

POLL = 0.1  # seconds
CANNOT_EXECUTE = 126
NOT_FOUND = 127


class _WithProgram(click.Command):
    """What stands behind `--` is the program's: no option of it can be taken for ours."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Set it aside."""
        ours, program = args, []
        if "--" in args:
            at = args.index("--")
            ours, program = args[:at], args[at + 1 :]
        rest = super().parse_args(ctx, ours)
        if not program and not ctx.resilient_parsing:
            raise click.UsageError("write the command behind `--`: penstock run WORKLOAD -- COMMAND", ctx)
        ctx.meta[_PROGRAM] = program
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Show it in the help."""
        return [*super().collect_usage_pieces(ctx), "-- COMMAND [ARG]..."]


_PROGRAM = "penstock.run.program"


@click.command(cls=_WithProgram)
@click.argument("workload", shell_complete=complete_workload)
@click.option("--user", "name", metavar="USER", help="As this user.  [default: the caller behind sudo, else root]")
@click.option("--wait", is_flag=True, help="Wait until the workload is in force.")
@click.pass_context
def run(ctx: click.Context, workload: str, name: str | None, wait: bool) -> None:
    """Start COMMAND inside WORKLOAD, from its first instruction on.  Needs root.

    \b
    penstock run my-server -- ./server --port 8000
    penstock run my-server --user llm --wait -- python3 -m server

    COMMAND takes the place of penstock: its terminal, signals and exit status are its own.  It gets no
    descriptor but stdin, stdout and stderr, and never the rights to change the firewall, root neither.

    Exit status: COMMAND's own; 125 when it was not started, 126 when it cannot be executed, 127 when it is
    not found.
    """
    from penstock.kernel import credentials, launch

    argv: list[str] = ctx.meta[_PROGRAM]
    try:
        if os.geteuid() != 0:
            raise PenstockError("only root may put a process into a workload", hint="run it with sudo")
        if not NAME_OF_OURS.match(workload):
            raise PenstockError(f"`{shown(workload)}` is no name of a workload")
        launch.prepare_standard()
        who = credentials.user(name if name is not None else _caller())
        env = launch.environment(who, os.environ)
        where: Path = (ctx.obj or Context()).run
        _until_ready(where, workload, wait)
        launch.become(_tree(where), workload, who)
    except PenstockError as e:
        raise NotStarted(e.message, where=e.where, hint=e.hint) from e
    try:
        launch.execute(argv, env)
    except FileNotFoundError:
        _fail(ctx, argv[0], "not found", NOT_FOUND)
    except (OSError, ValueError) as e:
        _fail(ctx, argv[0], e.strerror or str(e) if isinstance(e, OSError) else str(e), CANNOT_EXECUTE)


def _caller() -> str:
    """Who ran sudo, as a number; root when nobody did (sudo(8))."""
    uid = os.environ.get("SUDO_UID", "")
    return uid if uid.isascii() and uid.isdecimal() else "0"


def _until_ready(where: Path, workload: str, wait: bool) -> None:
    """Return when the workload is in force; PenstockError with the reason when it is not, unless to wait."""
    told = ""
    while True:
        hint = "see: penstock status"
        try:
            answer = ask(where, Message("ready", {"workload": workload}))
            if answer["ready"] is True:
                return
            reason = printable(str(answer["reason"]))
        except NoDaemon as e:
            reason, hint = e.message, e.hint
        if not wait:
            raise PenstockError(f"{workload} is not in force: {reason}", hint=f"{hint}; or wait for it: --wait")
        if reason != told:
            click.echo(f"penstock: waiting for {workload}: {reason}", err=True)
            told = reason
        time.sleep(POLL)


def _tree(where: Path) -> Path:
    tree = place_of(where, "cgroup")
    if tree is None:
        raise PenstockError("does not name the cgroup tree", where=str(where / "daemon.json"))
    return tree


def _fail(ctx: click.Context, program: str, reason: str, status: int) -> None:
    click.echo(f"penstock: {printable(program)}: {reason}", err=True)
    ctx.exit(status)
