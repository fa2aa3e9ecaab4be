"""`penstock daemon`: the one command that is the daemon, and asks none."""

from __future__ import annotations

from pathlib import Path

import click

from penstock.cli.context import Context

_DIRECTORY = click.Path(path_type=Path)


@click.command()
@click.option("--config", type=_DIRECTORY, default="/etc/penstock", show_default=True, help="Rule files.")
@click.option("--state", type=_DIRECTORY, default="/var/lib/penstock", show_default=True, help="What is applied.")
@click.option("--run", "run", type=_DIRECTORY, help="Its socket.  [default: as before the command]")
@click.option("--log", type=_DIRECTORY, default="/var/log/penstock", show_default=True, help="What was blocked.")
@click.option(
    "--cgroup", type=_DIRECTORY, help="The tree below which penstock.slice is made.  [default: the cgroup2 mount]"
)
@click.pass_context
def daemon(
    ctx: click.Context, config: Path, state: Path, run: Path | None, log: Path, cgroup: Path | None
) -> None:
    """Run the daemon in the foreground, as root.

    \b
    penstock daemon
    penstock daemon --config ./config --state ./state --run ./run --log ./log

    It loads the policy that was applied last; only where there is none it applies --config.  Several may run at
    once, each with its own --run, --cgroup and network namespace.

    Exit status: 0 when it was told to end, 1 when it cannot start.
    """
    from penstock.daemon import app
    from penstock.daemon.options import Options

    run = run or (ctx.obj or Context()).run
    ctx.exit(app.main(Options(config=config, state=state, run=run, log=log, cgroup=cgroup)) or 0)
