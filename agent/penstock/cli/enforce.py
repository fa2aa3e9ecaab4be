"""`penstock enforce`: from observing to enforcing, shown before, proved after, taken back if it does not hold."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from penstock.cli.applied import complete_workload
from penstock.cli.client import ask
from penstock.cli.context import CannotTell, Context, place_of
from penstock.cli.duration import when, window
from penstock.cli.evidence import DEFAULT_LOG, asking
from penstock.cli.format import clock, counted, local, moment, wrapped
from penstock.cli.proving import prove
from penstock.cli.rule_files import edited, read_rule_files
from penstock.cli.suggest_text import counts, seen_json
from penstock.cli.trial import Trial, leave_a_watcher, undone_on_failure, wait_for_word
from penstock.core.edits import with_mode
from penstock.core.policy import Mode, Policy
from penstock.core.probes import ALLOWED, Result
from penstock.core.seen import Seen
from penstock.core.suggest import lacking
from penstock.core.text import printable
from penstock.core.wire import Json, Message
from penstock.core.wishes import endpoint
from penstock.errors import PenstockError

DEFAULT_SINCE = timedelta(days=7)
PROOF = 60
"""Seconds that the daemon gives us to prove it, where nobody is to confirm."""
SHOWN = 20
"""Destinations that are spelled out."""


@dataclass(frozen=True, slots=True)
class _Ask:
    """What the command line says.  `wait`: seconds to be confirmed in; 0 where the proof decides alone."""

    run: Path
    workload: str
    wait: int
    since: datetime
    as_json: bool

    def say(self, text: str) -> None:
        """Tell people."""
        if not self.as_json:
            click.echo(text)


@click.command()
@click.argument("workload", shell_complete=complete_workload)
@click.option(
    "--confirm",
    "wait",
    type=window,
    metavar="TIME",
    help="Revert after so long (5s to 24h) unless somebody says that all is well.",
)
@click.option("--since", type=when, metavar="T", help="Show what was seen from then on.  [default: 7d]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; nothing is waited for.")
@click.pass_context
def enforce(
    ctx: click.Context, workload: str, wait: timedelta | None, since: datetime | None, as_json: bool
) -> None:
    """Have WORKLOAD's rules enforced: what they do not allow is denied from then on.  Needs root.

    Shows what was seen and will be denied, sets `mode: enforce` in the rules file and applies; then a process in
    the workload tries something that must be denied and something that must pass, over IPv4 and IPv6.  When a
    probe shows that the rules do not hold, all is put back as it was, the file too.

    Exit status: 0 when it is enforced (and kept, or waits to be confirmed), 1 when not, 2 when no daemon answers.

    Example: penstock enforce ollama --confirm 60s
    """
    run: Path = (ctx.obj or Context()).run
    now = datetime.now(UTC)
    asked = _Ask(run, workload, int(wait.total_seconds()) if wait else 0, since or now - DEFAULT_SINCE, as_json)
    ctx.exit(0 if _enforce(asked, now) else 1)


def _enforce(asked: _Ask, now: datetime) -> bool:
    files = read_rule_files(asked.run)
    file = files.of(asked.workload, files.policy(now))
    data = edited(file, lambda name, text: with_mode(name, text, Mode.ENFORCE))
    policy = files.with_file(file.name, data).policy(now)
    before = ask(asked.run, Message("status"))
    _not_lent(asked.workload, before)
    tree = place_of(asked.run, "cgroup")
    if tree is None or os.geteuid() != 0:
        raise PenstockError("only root may put a probe into a workload", hint="run it with sudo")
    log = place_of(asked.run, "log") or DEFAULT_LOG
    lost = _lost(asked, policy, log, files.config, now)
    for line in _warning(asked, lost, before):
        asked.say(line)
    trial = Trial(asked.run, files, file, data)
    trial.begin(asked.wait or PROOF, now)
    asked.say(f"{file.path}: {'mode: enforce' if trial.written else 'enforces already'}; applied {_hash(trial)}")
    with undone_on_failure(trial):
        results = prove(asked.run, tree, log, policy, asked.workload, datetime.now(UTC))
        for line in _lines(results):
            asked.say(line)
        holds = not any(result.proven is False for result in results)
        reverted = not holds and trial.revert()
        if holds and not (asked.wait and trial.waits):
            settled = trial.keep()
            for line in settled.lines():
                asked.say(line)
            settled.complain()
    return _end(asked, trial, lost, results, holds=holds, reverted=reverted)


def _not_lent(workload: str, before: Json) -> None:
    """A mode that is lent would win over that of the file.  PenstockError then."""
    for one in before["grants"]:
        if one["workload"] == workload and one.get("mode") is not None:
            id = printable(str(one["id"]))
            text = f"{workload} has the mode {one['mode']} until {local(moment(one['until']))}, by {id}"
            raise PenstockError(text, hint=f"end that first: penstock revoke {id}")


def _end(
    asked: _Ask,
    trial: Trial,
    lost: Sequence[Seen] | None,
    results: Sequence[Result],
    *,
    holds: bool,
    reverted: bool,
) -> bool:
    """Say what came of it; wait for a word where somebody can give it."""
    until = trial.result.get("confirm_until") if holds and asked.wait else None
    if asked.as_json:
        click.echo(json.dumps(_json(asked, trial, lost, results, until, holds, reverted), indent=2))
        if until is not None:
            leave_a_watcher(trial)
    elif not holds:
        back = (
            "put back as it was, the file too"
            if reverted
            else "it was in force before, so it stays: penstock status"
        )
        click.echo(f"penstock: the rules do not hold for {asked.workload}: {back}", err=True)
    elif until is None:
        click.echo(f"enforced: {asked.workload}, kept")
    elif sys.stdin.isatty():
        holds = wait_for_word(trial)
        click.echo(f"enforced: {asked.workload}, kept" if holds else "put back as it was, the file too")
    else:
        click.echo(f"not confirmed: reverts by itself at {clock(moment(until))}; keep it with: penstock confirm")
        click.echo("the file goes back with it")
        leave_a_watcher(trial)
    return holds


def _lost(asked: _Ask, policy: Policy, log: Path, config: Path, now: datetime) -> Sequence[Seen] | None:
    """What was seen and will be denied; None when there is no log."""
    try:
        return lacking(asking(policy, asked.workload, config, log, asked.since, now))
    except CannotTell:
        return None


def _warning(asked: _Ask, lost: Sequence[Seen] | None, before: Json) -> Iterator[str]:
    """What somebody should know before."""
    if lost is None:
        yield "there is no block log: what will be denied is not known"
    elif not lost:
        yield "nothing was seen that will be denied"
    else:
        seen_so_far = counted(len(lost), "destination")
        yield f"{seen_so_far} seen that will be denied; see: penstock suggest {asked.workload}"
    for seen in (lost or ())[:SHOWN]:
        yield from wrapped(f"{printable(endpoint(seen), 80)}  {counts([seen])}", 2)
    if len(lost or ()) > SHOWN:
        yield f"  and {len(lost or ()) - SHOWN} more: --json"
    pending = before["policy"].get("pending_files")
    if pending:
        yield f"{counted(pending, 'file')} differ from what is applied and come into force too: penstock plan"


def _lines(results: Sequence[Result]) -> Iterator[str]:
    for result in results:
        word = {True: "proved", False: "FAILED", None: "unknown"}[result.proven]
        yield from wrapped(f"{result.probe!s:<16} {result.text}", 11, f"  {word}")
    if not any(result.probe.expect == ALLOWED for result in results):
        yield from wrapped("no rule has an address to call: what is allowed was not tried", 11, "  unknown")


def _hash(trial: Trial) -> str:
    return printable(str(trial.result["hash"]), 64)


def _json(
    asked: _Ask,
    trial: Trial,
    lost: Sequence[Seen] | None,
    results: Sequence[Result],
    until: str | None,
    holds: bool,
    reverted: bool,
) -> Json:
    return {
        "v": 1,
        "workload": asked.workload,
        "file": str(trial.file.path),
        "hash": trial.result["hash"],
        "changed": trial.result["changed"],
        "enforced": holds,
        "reverted": reverted,
        "confirm_until": until,
        "would_deny": None if lost is None else [seen_json(seen) for seen in lost],
        "probes": [
            {
                "expect": result.probe.expect,
                "address": str(result.probe.address),
                "port": result.probe.port,
                "rule": result.probe.rule,
                "proven": result.proven,
                "text": result.text,
            }
            for result in results
        ],
    }
