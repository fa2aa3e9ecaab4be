"""`penstock suggest`: the rules that a workload lacks, from what the log saw it try."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from penstock.cli.applied import complete_workload
from penstock.cli.context import Context, place_of
from penstock.cli.duration import when
from penstock.cli.evidence import DEFAULT_LOG, asking
from penstock.cli.format import counted, local, rfc3339
from penstock.cli.rejected import NAME, read_rejected, write_rejected
from penstock.cli.rule_files import RuleFile, RuleFiles, edited, read_rule_files, write
from penstock.cli.suggest_text import as_json, lines, summary
from penstock.core.edits import New, with_rules
from penstock.core.language.reading import shown
from penstock.core.policy import Policy
from penstock.core.suggest import Suggestion
from penstock.core.suggest import suggest as proposals
from penstock.errors import PenstockError

DEFAULT_SINCE = timedelta(days=7)


@click.command()
@click.argument("workload", shell_complete=complete_workload)
@click.option("--since", type=when, metavar="T", help="From then on: 2h, 7d, 2026-11-20.  [default: 7d]")
@click.option("--write", "writes", is_flag=True, help="Add the rules to the rules file; apply them yourself.")
@click.option("--reject", metavar="ID", multiple=True, help="Never show this one again.  Repeatable.")
@click.option("--forget", is_flag=True, help="Forget what was rejected of this workload, and show it again.")
@click.option("--log", type=click.Path(path_type=Path), metavar="DIR", help="Where the log is.")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object.")
@click.pass_context
def suggest(
    ctx: click.Context,
    workload: str,
    since: datetime | None,
    writes: bool,
    reject: tuple[str, ...],
    forget: bool,
    log: Path | None,
    as_json_: bool,
) -> None:
    """Propose rules for what WORKLOAD tried and no rule of its file allows: the narrowest, none that is unwise.

    Reads the block log, so it is for a workload in mode `observe`, or for one that lacks something.  What it does
    not propose, it says with the reason.  Nothing takes effect by this: see `penstock plan`, then apply.

    Exit status: 0, also when there is nothing to propose; 2 when there is no such workload, or no log.

    Example: penstock suggest ollama --since 2d --write
    """
    run: Path = (ctx.obj or Context()).run
    now = datetime.now(UTC)
    files = read_rule_files(run)
    policy = files.policy(now)
    file = files.of(workload, policy)
    if forget:
        write_rejected(files.config, workload, ())
    since = since or now - DEFAULT_SINCE
    directory = log or place_of(run, "log") or DEFAULT_LOG
    found = _found(files, policy, workload, directory, since, now)
    if reject:
        _reject(files.config, workload, found, reject)
        found = _found(files, policy, workload, directory, since, now)
    added = _add(files, file, found, now) if writes else 0
    if as_json_:
        said = {"v": 1, "workload": workload, "mode": policy.workloads[workload].mode.value}
        where = {"since": rfc3339(since), "file": str(file.path), "written": added}
        click.echo(json.dumps({**said, **where, **as_json(found)}, indent=2))
        return
    click.echo(f"# {workload}: seen since {local(since)}, and in no rule of")
    click.echo(f"# {file.path}")
    click.echo("\n".join(lines(found)))
    if added:
        click.echo(f"added {counted(added, 'rule')} to {file.path}; next: penstock plan", err=True)
    else:
        for text in summary(found, workload):
            click.echo(text, err=True)


def _found(
    files: RuleFiles, policy: Policy, workload: str, log: Path, since: datetime, now: datetime
) -> Suggestion:
    rejected = frozenset(read_rejected(files.config).get(workload, ()))
    return proposals(replace(asking(policy, workload, files.config, log, since, now), rejected=rejected))


def _reject(config: Path, workload: str, found: Suggestion, ids: tuple[str, ...]) -> None:
    keys = [*read_rejected(config).get(workload, ())]
    for wanted in ids:
        new = found.keys(wanted)
        if not new:
            raise PenstockError(f"nothing here has the id `{shown(wanted)}`", hint="the ids are in what it shows")
        keys += new
    write_rejected(config, workload, keys)
    click.echo(f"rejected {', '.join(ids)}: kept in {config / NAME}", err=True)


def _add(files: RuleFiles, file: RuleFile, found: Suggestion, now: datetime) -> int:
    """Write the rules; how many.  PenstockError, and nothing is written, when that cannot be done safely."""
    members = [New(one.rule, one.use) for one in found.proposed]
    if members:
        write(files, file, edited(file, lambda name, data: with_rules(name, data, members)), now)
    return len(members)
