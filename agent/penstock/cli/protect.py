"""`penstock protect`: find out what a unit is, write its first rules and its slice, and restart nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penstock.cli.applied import applied_policy
from penstock.cli.context import CannotTell, Context, place_of
from penstock.cli.format import counted, wrapped
from penstock.core.slices import restart_command, slice_of
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.enrol.protect import Done, Plan
    from penstock.enrol.unit import Facts

DEFAULT_CONFIG = Path("/etc/penstock")
_WIDTH = 8


@click.command()
@click.argument("unit")
@click.option("--name", metavar="WORKLOAD", help="The workload's name.  [default: from the unit's]")
@click.option("--restart", is_flag=True, help="Restart the unit now, if its rules are in force already.")
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be written, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def protect(
    ctx: click.Context, unit: str, name: str | None, restart: bool, only_plan: bool, as_json: bool
) -> None:
    """Make a workload of UNIT: a service, a template (`vllm@.service`) or a glob in quotes.  Needs root.

    \b
    penstock protect ollama.service --plan
    penstock protect ollama.service
    penstock protect 'llama-*.service' --name llama

    Writes a rules file in mode `observe`, and a drop-in that puts the unit into the workload's slice at its next
    start once the rules are in force.  Nothing takes effect by this alone, and nothing is restarted without
    --restart.  Again is harmless: what is there stays.

    Exit status: 0 done, 1 refused, or not restarted though asked to.
    """
    from penstock.enrol import protect as enrol
    from penstock.enrol import systemctl

    run: Path = (ctx.obj or Context()).run
    config = place_of(run, "config") or DEFAULT_CONFIG
    request = enrol.Request(unit, name, config, _applied(run), datetime.now(UTC))
    plan = enrol.plan(request)
    done = None if only_plan else enrol.perform(plan)
    restarted: list[str] = []
    failed = ""
    if restart and done is not None and plan.in_force:
        for facts in plan.units:
            if facts.processes:
                try:
                    systemctl.restart(facts.name)
                    restarted.append(facts.name)
                except PenstockError as e:
                    failed = str(e)
    if as_json:
        click.echo(json.dumps(_json(plan, done, restarted), indent=2))
    else:
        for line in _text(plan, done, restarted):
            click.echo(line)
    if restart and not plan.in_force:
        failed = f"not restarted: {plan.workload} is not in force yet, so its slice would not be either"
    if failed:
        click.echo(f"penstock: {failed}", err=True)
        ctx.exit(1)


def _applied(run: Path) -> frozenset[str]:
    """Workloads of the applied policy; none where none was ever applied."""
    try:
        return frozenset(applied_policy(run).workloads)
    except CannotTell:
        return frozenset()


def _text(plan: Plan, done: Done | None, restarted: list[str]) -> Iterator[str]:
    from penstock.enrol.protect import described

    for facts in plan.units[:20]:
        lines = described(facts)
        for n, line in enumerate(lines):
            yield from wrapped(line, 2 if n else 0)
    if plan.units[20:]:
        yield f"and {counted(len(plan.units) - 20, 'unit')} more"
    for warning in plan.warnings:
        yield from wrapped(warning, _WIDTH, "warning")
    yield ""
    yield from _files(plan, done)
    yield ""
    yield from _when(plan, done, restarted)


def _files(plan: Plan, done: Done | None) -> Iterator[str]:
    verb = "wrote" if done is not None else "would write"
    if plan.rules is None:
        yield f"kept {plan.rules_path}: the rules of {plan.workload} match already"
    else:
        workload = plan.rules.policy.workloads[plan.workload]
        yield f"{verb} {plan.rules_path}: mode observe, {counted(len(workload.rules), 'rule')}"
        for text in plan.rules.left_out:
            if not text.startswith("test "):
                yield from wrapped(text, 4 + len("left out "), "    left out ")
    waits = "" if plan.in_force else f"; it waits until {plan.workload} is in force"
    for name, one in plan.drop_ins.items():
        if one is None:
            yield f"{verb} the drop-in of {name}{waits}"
        elif name in plan.stale:
            yield f"{verb} {one.path} anew: it was of another version"
        else:
            yield f"kept {one.path}"


def _when(plan: Plan, done: Done | None, restarted: list[str]) -> Iterator[str]:
    """What takes effect when."""
    if done is None:
        yield "nothing was written"
        return
    rest = [facts.name for facts in plan.units if facts.name not in restarted]
    if restarted:
        yield f"restarted {', '.join(restarted)}: in {slice_of(plan.workload)} from now on"
    if not plan.in_force:
        yield "Now: nothing has changed for the service.  Next:"
        yield "  penstock plan                  shows what would change"
        yield "  penstock apply --confirm 60s   its rules hold where it runs, in mode observe"
        yield "  penstock confirm               keeps them; its slice counts at the next start"
        yield "Then, when it suits, as nothing else restarts it, into its slice:"
    elif rest:
        yield "Now: its rules hold where it runs.  Its slice takes over at its next start:"
    for name in rest:
        yield f"  {restart_command(name)}"
    if plan.rules is not None:
        yield "And when it has done its work for some days, the rules that it needs:"
        yield f"  penstock suggest {plan.workload}"


def _json(plan: Plan, done: Done | None, restarted: list[str]) -> dict[str, Any]:
    return {
        "v": 1,
        "workload": plan.workload,
        "match": plan.match,
        "in_force": plan.in_force,
        "units": [_unit_json(facts, _drop_in(facts.name, plan)) for facts in plan.units],
        "rules": {
            "path": str(plan.rules_path),
            "new": plan.rules is not None,
            "left_out": list(plan.rules.left_out) if plan.rules else [],
        },
        "warnings": list(plan.warnings),
        "written": [str(path) for path in done.written] if done else [],
        "armed": list(done.armed) if done else [],
        "restarted": restarted,
    }


def _drop_in(name: str, plan: Plan) -> Path:
    """Where it is now, or will be."""
    from penstock.enrol import dropin

    found = plan.drop_ins[name] or dropin.of_unit(name)
    if found is None:
        return dropin.pending_path(name)
    armed = dropin.armed_path(found.unit)
    return armed if armed.exists() else found.path


def _unit_json(facts: Facts, drop_in: Path) -> dict[str, Any]:
    return {
        "unit": facts.name,
        "executable": next((process.exe for process in facts.processes), None),
        "server": facts.server.name if facts.server else None,
        "user": facts.user,
        "running": bool(facts.processes),
        "ports": [{"port": one.port, "protocol": one.protocol, "local": one.local} for one in facts.listeners],
        "slice": facts.slice,
        "dropin": str(drop_in),
    }
