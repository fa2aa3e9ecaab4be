"""`penstock plan`: what applying the rule files would change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from penstock.cli.applied import applied_path, policy_of, read_applied
from penstock.cli.context import CannotTell, Context, place_of
from penstock.cli.plan_text import Shown, screen
from penstock.cli.problem_text import lines as problem_lines
from penstock.core import reach, restarts
from penstock.core.checking import examine
from penstock.core.parse import Parsed, parse
from penstock.core.plan import Plan, as_json, difference
from penstock.core.policy import Policy
from penstock.core.restarts import Restart
from penstock.errors import PenstockError
from penstock.files import read_config, read_presets
from penstock.this_host import around

DEFAULT_CONFIG = Path("/etc/penstock")


@dataclass(frozen=True, slots=True)
class _Comparison:
    """What is applied, or stands for it, and the files."""

    old: Policy | None
    new: Parsed
    config: Path


@click.command()
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Compare with a copy of applied.json, or with another configuration directory; needs no root.",
)
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object.")
@click.pass_context
def plan(ctx: click.Context, against: Path | None, as_json_: bool) -> None:
    """Compare the daemon's rule files with what is applied: what would `penstock apply` change?

    \b
    penstock plan
    penstock plan --against applied-on-another-host.json

    Says which rules differ, what would be newly allowed and denied, and which services must restart for it.

    Exit status: 0 whatever the difference is, 1 when the files have errors, 2 when it cannot be told.
    """
    run: Path = (ctx.obj or Context()).run
    compared = _compare(run, against)
    if compared.new.policy is None:
        problems = [problem.as_json() for problem in compared.new.problems]
        if as_json_:
            click.echo(json.dumps(_json(compared, None), indent=2))
        else:
            click.echo("\n".join(problem_lines(problems, compared.config)))
        click.echo("penstock: these files would not be applied", err=True)
        ctx.exit(1)
    new, now = compared.new.policy, datetime.now(UTC)
    units = _restarts(run, compared.old, new) if against is None else None
    found = Shown(
        compared.old,
        new,
        compared.config,
        difference(compared.old, new),
        reach.changes(compared.old, new, now),
        units,
    )
    if as_json_:
        click.echo(json.dumps(_json(compared, found), indent=2))
    else:
        click.echo("\n".join(screen(found)))
        told = [problem.as_json() for problem in compared.new.problems]
        if told and not found.plan.empty:
            click.echo("\n".join(("", *problem_lines(told, compared.config))))


def _restarts(run: Path, old: Policy | None, new: Policy) -> Sequence[Restart] | None:
    """What it means for the units of this host; None when the daemon never said where they are."""
    from penstock.enrol import units

    tree = place_of(run, "cgroup")
    if tree is None:
        return None
    workloads = {*(old.workloads if old else ()), *new.workloads}
    return restarts.restarts(old, new, units.look(tree, sorted(workloads)))


def _compare(run: Path, against: Path | None) -> _Comparison:
    config = place_of(run, "config") or DEFAULT_CONFIG
    old = _applied(applied_path(run)) if against is None else _other(against)
    try:
        parsed = parse(read_config(config), read_presets(config))
    except PenstockError as e:
        raise CannotTell(e.message, where=e.where, hint=e.hint) from e
    here = around(parsed.policy or parsed.host) if against is None else None
    return _Comparison(old, examine(parsed, datetime.now(UTC), here), config)


def _applied(path: Path) -> Policy | None:
    applied = read_applied(path)
    return None if applied is None else policy_of(applied, path)


def _other(path: Path) -> Policy:
    if not path.is_dir():
        found = _applied(path)
        if found is None:
            raise CannotTell("there is no such file", where=str(path))
        return found
    try:
        policy = parse(read_config(path), read_presets(path)).policy
    except PenstockError as e:
        raise CannotTell(e.message, where=e.where, hint=e.hint) from e
    if policy is None:
        raise CannotTell("has mistakes", where=str(path), hint=f"see: penstock check {path}")
    return policy


def _json(compared: _Comparison, found: Shown | None) -> dict[str, object]:
    new = compared.new.policy
    return {
        "v": 1,
        "applied": compared.old.hash if compared.old else None,
        "files": new.hash if new else None,
        "changed": None if found is None else not found.plan.empty,
        **as_json(found.plan if found else Plan()),
        "reach": reach.as_json(found.reach if found else ()),
        "restarts": restarts.as_json(found.restarts if found else None),
        "problems": [problem.as_json() for problem in compared.new.problems],
    }
