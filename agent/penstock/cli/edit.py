"""`penstock edit`: a rules file in an editor, checked, planned and applied on trial."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from penstock.cli.applied import applied_policy, complete_workload
from penstock.cli.context import CannotTell, Context
from penstock.cli.duration import window
from penstock.cli.editor import alone, draft_of, make_draft
from penstock.cli.editor import edit as run_editor
from penstock.cli.format import clock, moment
from penstock.cli.plan_text import Shown, screen
from penstock.cli.problem_text import lines as problem_lines
from penstock.cli.rule_files import RuleFile, RuleFiles, read_rule_files
from penstock.cli.trial import Trial, leave_a_watcher, wait_for_word
from penstock.core import reach
from penstock.core.language.parse_workload import WorkloadPart
from penstock.core.language.reading import near, shown
from penstock.core.parse import parse_file
from penstock.core.plan import difference
from penstock.core.policy import Policy
from penstock.core.problems import any_error
from penstock.errors import PenstockError
from penstock.files import find_file, read_file

_AGAIN, _LEAVE, _DROP = "e", "x", "q"


@click.command()
@click.argument("workload", shell_complete=complete_workload)
@click.option(
    "--confirm",
    "wait",
    type=window,
    default="60s",
    show_default=True,
    metavar="TIME",
    help="Revert after so long (5s to 24h) unless somebody says that all is well.",
)
@click.pass_context
def edit(ctx: click.Context, workload: str, wait: timedelta) -> None:
    """Edit the rules file of WORKLOAD in your editor (VISUAL, EDITOR), then check, show the plan and apply.

    You edit a draft.  Only when it passes the check does it take the file's place, on trial: not confirmed, file
    and rules go back.  A draft that is not in force stays, and the next `edit` goes on with it.

    Exit status: 0 when it is in force (and kept, or waits to be confirmed) or nothing was changed, else 1.

    Example: penstock edit ollama
    """
    run: Path = (ctx.obj or Context()).run
    files = read_rule_files(run)
    file = _file_of(files, workload)
    with alone(file.path.parent):
        ctx.exit(0 if _edit(run, files, file, int(wait.total_seconds())) else 1)


def _file_of(files: RuleFiles, workload: str) -> RuleFile:
    """The file that says it is of that workload, with mistakes or without."""
    found: set[str] = set()
    for name, data in files.files.items():
        part = parse_file(name, data).part
        if isinstance(part, WorkloadPart):
            found.add(part.name)
            if part.name == workload:
                return RuleFile(name, find_file(files.config, name), data)
    name = f"rules.d/{workload}.yaml"  # so full of mistakes that it does not say whose it is
    if name in files.files:
        return RuleFile(name, find_file(files.config, name), files.files[name])
    names = sorted(found - {""})
    hint = near(workload, names) or (f"there are {', '.join(names[:10])}" if names else "protect makes one")
    raise CannotTell(f"no file is of the workload `{shown(workload)}`", hint=hint)


def _edit(run: Path, files: RuleFiles, file: RuleFile, seconds: int) -> bool:
    draft = _begun(file)
    if draft is None:
        return False
    while True:
        data = run_editor(draft, os.environ)
        if data == file.data:
            draft.unlink()
            click.echo("nothing was changed")
            return True
        policy = _checked(files, file, data)
        if policy is not None:
            break
        match _what_now():
            case "e":
                continue
            case "q":
                draft.unlink()
                click.echo(f"discarded; {file.path} is as it was", err=True)
            case _:
                click.echo(f"not applied; the draft stays for the next `penstock edit`: {draft}", err=True)
        return False
    quiet = _show(run, files, policy)
    trial = Trial(run, files, file, data)
    try:
        trial.begin(0 if quiet else seconds, datetime.now(UTC))
        kept = _end(trial)
    except PenstockError as e:
        click.echo(f"penstock: the draft stays for the next `penstock edit`: {draft}", err=True)
        raise e
    if kept:
        draft.unlink()
    else:
        click.echo(f"put back as it was, the file too; the draft stays: {draft}", err=True)
    return kept


def _begun(file: RuleFile) -> Path | None:
    """The draft to edit: that of an earlier try, if somebody wants it.  None when he leaves."""
    draft = draft_of(file)
    if not draft.exists():
        return make_draft(file)
    if read_file(draft) == file.data:
        return draft
    click.echo(f"there is a draft of an earlier try: {draft}", err=True)
    if not sys.stdin.isatty():
        return draft
    match _asked("go on with it (e), begin anew (q), leave (x)?"):
        case "e":
            return draft
        case "q":
            return make_draft(file)
        case _:
            return None


def _checked(files: RuleFiles, file: RuleFile, data: bytes) -> Policy | None:
    """Tell what is wrong with all files together; the policy when nothing is."""
    parsed = files.with_file(file.name, data).examined(datetime.now(UTC))
    told = [problem.as_json() for problem in parsed.problems if problem.place.file == file.name]
    if parsed.policy is None and not any_error(p for p in parsed.problems if p.place.file == file.name):
        told = [problem.as_json() for problem in parsed.problems if problem.severity == "error"]
    for line in problem_lines(told, files.config):
        click.echo(line)
    return parsed.policy


def _what_now() -> str:
    return (
        _asked("What now?  edit again (e), leave and keep the draft (x), discard it (q)") if _can_ask() else _LEAVE
    )


def _can_ask() -> bool:
    return sys.stdin.isatty()


def _asked(question: str) -> str:
    """One of the letters; Ctrl-D and Ctrl-C leave."""
    try:
        return str(
            click.prompt(question, type=click.Choice([_AGAIN, _LEAVE, _DROP]), show_choices=False, err=True)
        )
    except click.Abort:
        return _LEAVE


def _show(run: Path, files: RuleFiles, new: Policy) -> bool:
    """Show what would change; whether that is nothing but comments and the like."""
    try:
        old = applied_policy(run)
    except CannotTell:
        old = None
    plan = difference(old, new)
    found = Shown(old, new, files.config, plan, reach.changes(old, new, datetime.now(UTC)), None)
    lines = list(screen(found))
    click.echo("\n".join(lines if plan.empty else lines[:-2]))  # without the word that it could be applied
    return plan.empty


def _end(trial: Trial) -> bool:
    if not trial.waits:
        trial.keep()
        click.echo(f"in force, and in {trial.file.path}")
        return True
    if sys.stdin.isatty():
        kept = wait_for_word(trial)
        if kept:
            click.echo(f"kept, and in {trial.file.path}")
        return kept
    until = clock(moment(trial.result["confirm_until"]))
    click.echo(f"not confirmed: reverts by itself at {until}; keep it with: penstock confirm")
    click.echo("the file goes back with it")
    leave_a_watcher(trial)
    return True
