"""`penstock adopt`: take a process that runs already into a workload."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from penstock.cli.applied import applied_policy, complete_workload, no_such
from penstock.cli.client import ask
from penstock.cli.context import Context, place_of
from penstock.cli.format import counted, wrapped
from penstock.core.policy import Policy
from penstock.core.text import printable
from penstock.core.wire import Message
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.enrol.adopt import Adopted

SHOWN = 20


@click.command()
@click.argument("pid", type=click.IntRange(1))
@click.option(
    "--workload",
    metavar="WORKLOAD",
    shell_complete=complete_workload,
    help="Into this one.  [default: the one whose `match` has this executable]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def adopt(ctx: click.Context, pid: int, workload: str | None, as_json: bool) -> None:
    """Move the process PID, with all that descends from it, into a workload that is in force.  Needs root.

    \b
    penstock adopt 4711 --workload my-server

    Its earlier network sockets are closed, because no rule would govern them: the program opens new ones, or must
    be restarted.  What it started as a service of systemd is for `penstock protect`.

    Exit status: 0 when all of it is governed, 1 when something is not, or was refused.
    """
    from penstock.enrol import adopt as enrol

    run: Path = (ctx.obj or Context()).run
    if os.geteuid() != 0:
        raise PenstockError("only root may put a process into a workload", hint="run it with sudo")
    policy = applied_policy(run)
    tree = place_of(run, "cgroup")
    if tree is None:
        raise PenstockError("does not name the cgroup tree", where=str(run / "daemon.json"))
    loose = enrol.examine(pid, tree)
    name = _named(policy, workload) if workload is not None else _matching(policy, loose.process.exe)
    answer = ask(run, Message("ready", {"workload": name}))
    if answer["ready"] is not True:
        reason = printable(str(answer["reason"]))
        raise PenstockError(f"{name} is not in force: {reason}", hint="see: penstock status")
    done = enrol.adopt(loose, name, tree)
    if as_json:
        click.echo(json.dumps(_json(name, done), indent=2))
    else:
        click.echo("\n".join(_text(name, done)))
    for text in (*done.warnings, *(f"not governed: {text}" for text in done.left)):
        click.echo(f"penstock: {text}", err=True)
    ctx.exit(1 if done.left else 0)


def _named(policy: Policy, workload: str) -> str:
    if workload not in policy.workloads:
        wrong = no_such(workload, policy)
        raise PenstockError(wrong.message, hint=wrong.hint)
    return workload


def _matching(policy: Policy, exe: str) -> str:
    """The workload that matches by this executable alone; the parser sees to it that there is no second one."""
    for workload in policy.workloads.values():
        if any(m.exe == exe and exe and not (m.unit or m.container or m.bridge) for m in workload.match):
            return workload.name
    text = f"no workload of the policy matches {printable(exe) or 'an executable that cannot be told'}"
    names = ", ".join(sorted(policy.workloads)[:10])
    raise PenstockError(text, hint=f"say which: --workload NAME (there are {names})" if names else "")


def _text(workload: str, done: Adopted) -> list[str]:
    count = len(done.processes)
    lines = [f"{count} {'process' if count == 1 else 'processes'} moved into {workload}, as {done.scope}:"]
    lines += [f"  {one.pid:>7} {printable(one.comm, 32)}" for one in done.processes[:SHOWN]]
    if done.processes[SHOWN:]:
        lines.append(f"  and {len(done.processes) - SHOWN} more")
    if done.closed:
        text = (
            f"{counted(done.closed, 'socket')} closed, which no rule would have governed: a server that does not "
            "listen again by itself must be restarted"
        )
        lines += wrapped(text, 0)
    return lines


def _json(workload: str, done: Adopted) -> dict[str, object]:
    return {
        "v": 1,
        "workload": workload,
        "scope": done.scope,
        "processes": [{"pid": one.pid, "comm": one.comm, "executable": one.exe or None} for one in done.processes],
        "sockets_closed": done.closed,
        "left": list(done.left),
        "warnings": list(done.warnings),
    }
