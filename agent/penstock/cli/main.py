"""`penstock`: the commands, loaded only when used, and the one place where errors become an exit status.

Exit status: 0 yes or done, 1 no or failed, 2 usage or cannot tell.  A command says which by how it ends; `run`
alone ends as what it runs.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import penstock as package
from penstock.cli.context import DEFAULT_RUN, CannotTell, Context, NotStarted, drop_output
from penstock.errors import NoDaemon, PenstockError

COMMANDS: Mapping[str, str] = {
    "status": "Say what is in force, and what weakens it.",
    "protect": "Make a workload of a systemd service.",
    "edit": "Edit a workload's rules, then check, plan and apply.",
    "check": "Find the mistakes in rule files.",
    "plan": "Show what applying the rule files would change.",
    "apply": "Put the rule files in force.",
    "confirm": "Keep what `apply --confirm` put in force.",
    "rollback": "Put an earlier policy back in force.",
    "suggest": "Propose the rules that a workload lacks.",
    "enforce": "Have a workload's rules enforced, and prove it.",
    "blocks": "Show what was blocked.",
    "why": "Say whether a connection is allowed, and by which rule.",
    "observe": "Deny nothing to a workload for a while.",
    "lock": "Deny everything to a workload.",
    "grant": "Lend a workload access that ends by itself.",
    "grants": "Show what is lent.",
    "revoke": "End a grant now.",
    "run": "Start a program inside a workload.",
    "adopt": "Move a running process into a workload.",
    "presets": "Show what is known of model hubs, registries and servers.",
    "demo": "Show an attack and the block in a throw-away lab.",
    "manual": "Show the manual.",
    "daemon": "Run the daemon in the foreground.",
    "uninstall": "Remove penstock from this host.",
}
"""In the order of the help.  Each is `penstock.cli.NAME`, which has a command of that name."""

STATUSES: Mapping[type[PenstockError], int] = {NoDaemon: 2, CannotTell: 2, NotStarted: 125, PenstockError: 1}
INTERRUPTED = 130
"""As a shell has it for a program that Ctrl-C ended; 141 for one that lost its reader."""
NO_READER = 141


class Commands(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"penstock.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help of the group, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what it raises becomes one line and a status."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except PenstockError as error:
            _tell(error)
            ctx.exit(next(status for kind, status in STATUSES.items() if isinstance(error, kind)))
        except BrokenPipeError:
            drop_output(sys.stdout)
            ctx.exit(NO_READER)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--run",
    "run",
    type=click.Path(path_type=Path, readable=False),  # only root's, and most commands say so better
    metavar="DIR",
    envvar="PENSTOCK_RUN",
    default=DEFAULT_RUN,
    show_default=True,
    show_envvar=True,
    help="Which daemon: the directory of its socket.",
)
@click.version_option(package.__version__, prog_name="penstock", message="%(prog)s %(version)s")
@click.pass_context
def penstock(ctx: click.Context, run: Path) -> None:
    """Let inference servers reach only what their rules allow, and say what was blocked.

    \b
    penstock protect ollama.service      begin: rules that deny nothing yet
    penstock suggest ollama --write      rules for what it was seen to do
    penstock enforce ollama              deny the rest, and prove it
    penstock blocks --since 1h           what was denied, and what would allow it
    penstock grant ollama HOST --for 1h --reason "..."

    Every command has --help with an example; what prints data has --json.

    Exit status: 0 yes or done, 1 no or failed, 2 usage or cannot tell.  With `apply --changed-exit` 3 is done and
    changed; `run` ends as its program does, or with 125 when it was not started.
    """
    ctx.obj = Context(run)


def _tell(error: PenstockError) -> None:
    from penstock.cli.format import wrapped

    text = f"penstock: {error}"
    try:
        # For a person whole words, to copy what helps; for programs one line.
        for line in wrapped(text, 0) if sys.stderr.isatty() else [text]:
            click.echo(line, err=True)
    except OSError:  # nobody reads it; the status must be ours all the same
        drop_output(sys.stderr)


def main() -> None:
    """The console script."""
    try:
        penstock(prog_name="penstock")
    except KeyboardInterrupt:  # before or after a command
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
