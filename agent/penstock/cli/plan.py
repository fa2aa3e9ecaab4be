"""`penstock plan`: what applying the rule files would change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from penstock.cli.applied import applied_path, policy_of, read_applied
from penstock.cli.context import CannotTell, Context, place_of
from penstock.cli.format import counted, paint, wrapped
from penstock.cli.problem_text import lines as problem_lines
from penstock.core.checking import examine
from penstock.core.parse import Parsed, parse
from penstock.core.plan import Kind, Plan, RuleChange, WorkloadChange, as_json, difference
from penstock.core.policy import Policy
from penstock.errors import PenstockError
from penstock.files import read_config, read_presets

DEFAULT_CONFIG = Path("/etc/penstock")
SIGNS = {Kind.ADDED: ("+", "green"), Kind.REMOVED: ("-", "red"), Kind.CHANGED: ("~", "yellow")}
NOTHING = "nothing would change"


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

    Exit status: 0 whatever the difference is, 1 when the files have errors, 2 when it cannot be told.
    """
    compared = _compare((ctx.obj or Context()).run, against)
    if compared.new.policy is None:
        problems = [problem.as_json() for problem in compared.new.problems]
        if as_json_:
            click.echo(json.dumps(_json(compared, None), indent=2))
        else:
            click.echo("\n".join(problem_lines(problems, compared.config)))
        click.echo("penstock: these files would not be applied", err=True)
        ctx.exit(1)
    found = difference(compared.old, compared.new.policy)
    if as_json_:
        click.echo(json.dumps(_json(compared, found), indent=2))
    else:
        click.echo("\n".join(_text(compared, found)))


def _compare(run: Path, against: Path | None) -> _Comparison:
    config = place_of(run, "config") or DEFAULT_CONFIG
    old = _applied(applied_path(run)) if against is None else _other(against)
    try:
        parsed = parse(read_config(config), read_presets(config))
    except PenstockError as e:
        raise CannotTell(e.message, where=e.where, hint=e.hint) from e
    return _Comparison(old, examine(parsed, datetime.now(UTC)), config)


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


def _json(compared: _Comparison, found: Plan | None) -> dict[str, object]:
    new = compared.new.policy
    return {
        "v": 1,
        "applied": compared.old.hash if compared.old else None,
        "files": new.hash if new else None,
        "changed": None if found is None else not found.empty,
        **as_json(found or Plan()),
        "problems": [problem.as_json() for problem in compared.new.problems],
    }


def _text(compared: _Comparison, found: Plan) -> Iterator[str]:
    new = compared.new.policy
    if found.empty:
        same = compared.old is not None and new is not None and compared.old.hash == new.hash
        yield NOTHING if same else f"{NOTHING}: the files differ in comments, order or tests only"
        return
    for workload in found.workloads:
        yield _heading(workload.kind, "workload", workload.name)
        yield from _workload(workload, compared.config)
    for network in found.networks:
        yield _heading(network.kind, "network", network.name)
        for text in network.details:
            yield from wrapped(text, 4)
        touched = ", ".join(f"{workload} {rule}" for workload, rule in network.touches[:8])
        more = f" and {len(network.touches) - 8} more" if len(network.touches) > 8 else ""
        yield from wrapped(f"rules that name it: {touched}{more}" if touched else "no rule names it", 4)
    for text in found.host:
        yield _heading(Kind.CHANGED, "host", text)
    yield ""
    yield f"{_counts(found)}; nothing is restarted.  Put it in force with: penstock apply"


def _heading(kind: Kind, what: str, name: str) -> str:
    sign, colour = SIGNS[kind]
    return paint(f"{sign} {what} {name}", colour)


def _workload(workload: WorkloadChange, config: Path) -> Iterator[str]:
    for text in workload.details:
        yield from wrapped(text, 4)
    for rule in workload.rules:
        yield from _rule(rule, config)


def _rule(rule: RuleChange, config: Path) -> Iterator[str]:
    sign, colour = SIGNS[rule.kind]
    side = "egress " if rule.direction == "out" else "ingress"
    yield "  " + paint(f"{sign} {side} {rule.text}", colour)
    if rule.kind is Kind.REMOVED:
        yield f"      {rule.id}"
    else:
        yield f"      {rule.id}  {config / rule.place.file}:{rule.place.line}"
    for text in rule.details:
        yield from wrapped(text, 6)


def _counts(found: Plan) -> str:
    rules = sum(len(workload.rules) for workload in found.workloads)
    parts = [(len(found.workloads), "workload"), (rules, "rule"), (len(found.networks), "network")]
    return ", ".join(counted(count, noun) for count, noun in parts if count) or "host settings only"
