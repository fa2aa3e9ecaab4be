"""`penstock check`: every mistake of the rule files, before they are applied.  No root, no daemon."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click

from penstock.cli.context import Context, place_of
from penstock.core.checking import examine, examine_preset
from penstock.core.language.parse_workload import WorkloadPart
from penstock.core.parse import parse, parse_file
from penstock.core.policy import Place, Policy
from penstock.core.presets import Preset
from penstock.core.problems import Problem, any_error, in_order
from penstock.core.surroundings import Surroundings
from penstock.core.text import printable
from penstock.errors import PenstockError
from penstock.files import find_file, home_of, read_config, read_file, read_presets
from penstock.this_host import around

DEFAULT = Path("/etc/penstock")
Look = Callable[[Policy], Surroundings]
"""Looks at the host, as far as a policy is about it."""

_STAND_IN = "{{version: 1, workload: {}, mode: enforce, egress: [], ingress: []}}"


@click.command()
@click.argument("target", metavar="[DIR|FILE]", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of all problems.")
@click.pass_context
def check(context: click.Context, target: Path | None, as_json: bool) -> None:
    """Find the mistakes in a directory of rule files, or in one of them.

    \b
    penstock check
    penstock check rules.d/ollama.yaml --json

    Warns, too, where they do not fit the host it is called on: its interfaces, and who is logged in.
    Exit status: 0 when there is no error, warnings or not, else 1.
    """
    target = target or place_of((context.obj or Context()).run, "config") or DEFAULT
    try:
        problems, count = check_path(target, datetime.now(UTC), around)
    except PenstockError as error:
        problems, count = (_of_error(error, target),), 0
    if as_json:
        click.echo(json.dumps([problem.as_json() for problem in problems], indent=2))
    else:
        for problem in problems:
            click.echo(problem.line())
    click.echo(_summary(problems, count), err=True)
    context.exit(1 if any_error(problems) else 0)


def check_path(target: Path, now: datetime, look: Look | None = None) -> tuple[tuple[Problem, ...], int]:
    """All problems of a directory or file, with places as the user writes them, and the number of files.

    `look`: the files are for this host, and are held against it.
    Raises PenstockError for a file or directory that cannot be read.
    """
    if target.is_dir() or not target.exists():
        unreadable: list[PenstockError] = []
        files = read_config(target, unreadable)
        if not files and not unreadable:
            hint = "write penstock.yaml and a file for each workload in rules.d"
            raise PenstockError("holds no rule files", where=str(target), hint=hint)
        problems = [_below(problem, target) for problem in check_files(files, read_presets(target), now, look)]
        problems += [_of_error(error, target) for error in unreadable]
        return in_order(problems), len(files) + len(unreadable)
    return _check_file(target, now, look), 1


def check_files(
    files: Mapping[str, bytes], presets: Mapping[str, bytes], now: datetime, look: Look | None = None
) -> tuple[Problem, ...]:
    """What `parse` says, and without an error also lint, what is not yet enforced, and failing tests."""
    parsed = parse(files, presets)
    return examine(parsed, now, look(parsed.policy or parsed.host) if look else None).problems


def _check_file(path: Path, now: datetime, look: Look | None) -> tuple[Problem, ...]:
    """One file alone, with what `penstock.yaml` and `penstock.d` say of the host it is for, if they are there.

    Workloads that it names are taken to exist: whether they do is no mistake of this file.  A preset is looked at
    as if a workload used it.
    """
    own = str(path)
    data = read_file(path)
    home = home_of(path)
    files = {own: data, **(_around(path, home) if home else {})}
    result = parse_file(own, data)
    if isinstance(result.part, Preset):
        return in_order((*result.problems, *examine_preset(result.part, now)))
    defined = result.part.name if isinstance(result.part, WorkloadPart) else ""
    for reference in result.references:
        if reference.kind == "workload" and reference.name != defined:
            files[f"?{reference.name}"] = _STAND_IN.format(reference.name).encode()
    problems = check_files(files, read_presets(home), now, look)
    # With a mistake around it, the file cannot be judged any further: that mistake is told then.
    return tuple(
        p
        for p in problems
        if (p.place.file == own and p.code != "one-sided") or (p.place.file != own and p.severity == "error")
    )


def _around(path: Path, home: Path) -> dict[str, bytes]:
    """The files about the host that belong to `path`, but for itself, by the path each has."""
    if path.name == "penstock.yaml":
        return {}
    itself = f"{path.resolve().parent.name}/{path.name}"
    found = read_config(home, parts=("penstock.d",))
    return {str(find_file(home, name)): data for name, data in found.items() if name != itself}


def _below(problem: Problem, directory: Path) -> Problem:
    place, path = problem.place, find_file(directory, problem.place.file)
    return replace(problem, place=Place(printable(str(path), 4096), place.line, place.column))


def _of_error(error: PenstockError, target: Path) -> Problem:
    place = Place(printable(error.where or str(target), 4096), 1, 1)
    return Problem(place, "error", "unreadable", error.message, error.hint)


def _summary(problems: tuple[Problem, ...], files: int) -> str:
    counted = Counter(problem.severity for problem in problems)
    parts = (("file", files), ("error", counted["error"]), ("warning", counted["warning"]))
    return ", ".join(f"{number} {word}{'' if number == 1 else 's'}" for word, number in parts)
