"""`penstock status`: is everything that the policy says in force, and what weakens it?"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from penstock.cli.applied import applied_policy, complete_workload, path_of
from penstock.cli.client import ask
from penstock.cli.context import CannotTell, Context, place_of
from penstock.cli.duration import duration
from penstock.cli.format import on_terminal, rfc3339
from penstock.cli.lent import with_lent
from penstock.cli.status_text import screen
from penstock.cli.watching import repeat
from penstock.core.language.reading import near, shown
from penstock.core.nearest import describe, is_lent
from penstock.core.status_words import NOT_IN_FORCE
from penstock.core.wire import Json, Message
from penstock.errors import NoDaemon, PenstockError

POLL = 0.1  # seconds
FASTEST = 1.0
"""Seconds between two looks of --watch: each makes the daemon look at every process and open port."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the daemon said, or why it said nothing."""

    status: Json
    trouble: NoDaemon | CannotTell | None = None

    @property
    def code(self) -> int:
        """The exit status."""
        if self.trouble is not None:
            return 2
        return 0 if in_force(self.status) else 1


@click.command()
@click.argument("workload", required=False, shell_complete=complete_workload)
@click.option("--wait", is_flag=True, help="Wait until everything is in force, and for the daemon to be there.")
@click.option(
    "--timeout", type=duration, default="30s", show_default=True, metavar="TIME", help="How long --wait waits."
)
@click.option("--watch", is_flag=True, help="Show it again and again, until ctrl-c.")
@click.option("--every", type=duration, metavar="TIME", help="How often --watch looks.  [default: 2s]")
@click.option("--all", "everything", is_flag=True, help="Show all workloads, grants and findings, however many.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; with --watch one a line.")
@click.pass_context
def status(
    ctx: click.Context,
    workload: str | None,
    wait: bool,
    timeout: timedelta,
    watch: bool,
    every: timedelta | None,
    everything: bool,
    as_json: bool,
) -> None:
    """Say what is in force, and what weakens it; with a WORKLOAD also its rules and how often each was hit.

    \b
    penstock status
    penstock status ollama
    penstock status --wait --timeout 60s
    penstock status --watch

    Exit status: 0 when everything in the policy is in force, 1 when not, 2 when no daemon answers.
    """
    run = (ctx.obj or Context()).run
    if watch or every is not None:
        seconds = _period(wait=wait, watch=watch, every=every)
        ctx.exit(_watch(run, workload, seconds, everything=everything, as_json=as_json))
    answer = _wait(run, workload, timeout.total_seconds()) if wait else _look(run, workload)
    rules = _rules(run, workload) if workload and answer.trouble is None else None
    if as_json:
        click.echo(json.dumps(_with_rules(answer, rules), indent=2))
    elif answer.trouble is None:
        click.echo("\n".join(screen(answer.status, rules, everything=everything)))
    if answer.trouble is not None:
        click.echo(f"penstock: {answer.trouble}", err=True)
        if isinstance(answer.trouble, NoDaemon) and (run / TRIAL).exists():
            click.echo(f"penstock: {LEFT_ON_TRIAL}", err=True)
    elif wait and answer.code:
        click.echo(f"penstock: not in force after {timeout.total_seconds():g} s", err=True)
    ctx.exit(answer.code)


def _with_rules(answer: Answer, rules: list[dict[str, Any]] | None) -> Json:
    return answer.status if rules is None else {**answer.status, "rules": rules}


def _period(*, wait: bool, watch: bool, every: timedelta | None) -> float:
    """Seconds between two looks."""
    if not watch:
        raise click.UsageError("--every says how often --watch looks: give both")
    if wait:
        raise click.UsageError("--wait ends when all is in force, and --watch does not: give one of them")
    seconds = every.total_seconds() if every is not None else 2.0
    if seconds < FASTEST:
        raise click.UsageError("--every takes a second at least")
    return seconds


def _watch(run: Path, workload: str | None, seconds: float, *, everything: bool, as_json: bool) -> int:
    """Show it until somebody presses ctrl-c; the exit status is that of the last look."""
    code = 2

    def show() -> list[str]:
        nonlocal code
        answer = _look(run, workload)
        code, rules = answer.code, None
        if workload and answer.trouble is None:
            try:
                rules = _rules(run, workload)
            except PenstockError as e:  # it ended, or the policy changed, a moment ago
                return [] if as_json else [f"penstock: {e}"]
        if as_json:
            return [json.dumps(_with_rules(answer, rules))]
        if answer.trouble is not None:
            lines = [f"penstock: {answer.trouble}"]
        else:
            lines = screen(answer.status, rules, everything=everything, live=True)
        return lines if on_terminal() else [*lines, ""]

    repeat(show, seconds, " ".join(["penstock status", *([workload] if workload else [])]))
    return code


TRIAL = "unconfirmed"
"""A file that the daemon keeps in its run directory as long as a policy waits to be confirmed."""

LEFT_ON_TRIAL = (
    "the kernel holds a policy that nobody has confirmed; the one before it comes back when the daemon starts"
)


def in_force(status: Json) -> bool:
    """Whether everything that `status` is about holds, by the published schema."""
    states = [workload[side] for workload in status["workloads"] for side in ("egress", "ingress")]
    weak = any(f["severity"] == "error" or f["code"] == "not-yet-enforced" for f in status["findings"])
    applied = status["policy"]["hash"] is not None
    agrees = status["kernel"]["agrees"] is True
    return applied and agrees and not weak and not any(state in NOT_IN_FORCE for state in states)


def _look(run: Path, workload: str | None) -> Answer:
    try:
        whole = ask(run, Message("status"))
    except (NoDaemon, CannotTell) as trouble:
        return Answer(nothing(datetime.now(UTC)), trouble)
    if workload is None:
        return Answer(whole)
    names = [one["name"] for one in whole["workloads"]]
    return Answer(_about(whole, workload), None if workload in names else _unknown(workload, names))


def _wait(run: Path, workload: str | None, seconds: float) -> Answer:
    """Look until it is in force, at most so long; the last answer."""
    deadline = time.monotonic() + seconds
    while True:
        answer = _look(run, workload)
        forbidden = isinstance(answer.trouble, CannotTell) and not answer.status["daemon"]["running"]
        if answer.code == 0 or forbidden or time.monotonic() >= deadline:
            return answer
        time.sleep(POLL)


def nothing(now: datetime) -> Json:
    """The object when no daemon answers: nothing is known."""
    return {
        "v": 1,
        "time": rfc3339(now),
        "daemon": {"running": False, "pid": None, "version": None, "since": None},
        "policy": {"hash": None, "applied": None, "pending_files": None, "confirm_until": None},
        "kernel": {"backend": None, "agrees": None, "checked": None},
        "workloads": [],
        "implicit": [],
        "grants": [],
        "findings": [],
    }


def _about(status: Json, workload: str) -> Json:
    """What concerns one workload, and the host as a whole."""
    return {
        **status,
        "workloads": [one for one in status["workloads"] if one["name"] == workload],
        "grants": [one for one in status["grants"] if one["workload"] == workload],
        "findings": [one for one in status["findings"] if one["workload"] in (None, workload)],
    }


def _unknown(workload: str, names: list[str]) -> CannotTell:
    hint = near(workload, names) or (f"there are {', '.join(names[:10])}" if names else "it has none")
    return CannotTell(f"the applied policy has no workload `{shown(workload)}`", hint=hint)


def _rules(run: Path, workload: str) -> list[dict[str, Any]]:
    """The rules of a workload with the packets that each let through; `hits` is None when it is not known.

    `names`: how many of its names are learned now, None without names.
    """
    said = ask(run, Message("hits", {"workload": workload}))
    hits, names = said["rules"], said["names"]
    config, policy = place_of(run, "config"), with_lent(applied_policy(run), run, datetime.now(UTC))
    return [
        {
            "id": rule.id,
            "direction": rule.direction.value,
            "text": describe(rule),
            "file": None if is_lent(rule) else path_of(rule.place, config),
            "line": None if is_lent(rule) else rule.place.line,
            "hits": hits.get(rule.id),
            "names": names.get(rule.id),
        }
        for rule in policy.workloads[workload].rules
    ]
