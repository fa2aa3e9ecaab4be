"""`penstock presets`: what is known of model hubs, registries and servers.  No root, no daemon.

Nothing is asked over the network but by `presets diff`, and then it says first whom it asks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import click

from penstock.cli import preset_text
from penstock.cli.context import DEFAULT_RUN, CannotTell, Context, place_of
from penstock.core import published
from penstock.core.language.reading import near, shown
from penstock.core.parse import PRESETS, parse_file, preset_problems, same_name
from penstock.core.policy import Place
from penstock.core.presets import Preset
from penstock.core.problems import Problem, any_error
from penstock.core.text import printable
from penstock.errors import PenstockError
from penstock.files import find_file, read_file, read_presets

DEFAULT_CONFIG = Path("/etc/penstock")


@dataclass(frozen=True, slots=True)
class Read:
    """All presets by name, the file of each, and what is wrong with files, by the name the preset should have."""

    presets: dict[str, Preset]
    paths: dict[str, Path]
    problems: dict[str, list[Problem]]


def read_all(directory: Path) -> Read:
    """The presets that a configuration directory can use.  Raises PenstockError for a file that cannot be read."""
    found = Read({}, {}, {})
    results = [parse_file(name, data) for name, data in read_presets(directory).items()]
    names = {result.part.name for result in results if isinstance(result.part, Preset)}
    twice = list(same_name(names, results))
    for result in results:
        path = find_file(directory, PRESETS + result.path)
        own = result.part.name if isinstance(result.part, Preset) else result.path.removesuffix(".yaml")
        if isinstance(result.part, Preset):
            found.presets[own], found.paths[own] = result.part, path
        said_twice = (problem for problem in twice if problem.place.file == PRESETS + result.path)
        if wrong := [_at(problem, path) for problem in (*preset_problems(result), *said_twice)]:
            found.problems.setdefault(own, []).extend(wrong)
    for name, wrong in found.problems.items():
        if any_error(wrong):
            found.presets.pop(name, None)
    return found


def _at(problem: Problem, path: Path) -> Problem:
    place = Place(printable(str(path), 4096), problem.place.line, problem.place.column)
    return Problem(place, problem.severity, problem.code, problem.message, problem.hint)


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    run = ctx.find_root().params.get("run") or DEFAULT_RUN
    try:
        names = sorted(read_all(_directory(Path(run))).presets)
    except PenstockError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def _directory(run: Path) -> Path:
    return place_of(run, "config") or DEFAULT_CONFIG


def _read(ctx: click.Context) -> Read:
    return read_all(_directory((ctx.obj or Context()).run))


def _one(read: Read, name: str) -> Preset:
    """CannotTell when there is none of that name, PenstockError when its file has mistakes."""
    if name in read.presets:
        return read.presets[name]
    if wrong := read.problems.get(name):
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise PenstockError(f"{wrong[0].message}{more}", where=str(wrong[0].place), hint=wrong[0].hint)
    names = sorted(read.presets)
    hint = near(name, names) or f"there are {', '.join(names[:20])}"
    raise CannotTell(f"there is no preset `{shown(name)}`", hint=hint)


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def presets(ctx: click.Context, as_json: bool) -> None:
    """List what is known of model hubs, registries and servers, for `use: NAME` in the egress of a workload.

    \b
    penstock presets
    penstock presets show huggingface

    NAMES are the names it opens, FOR what it opens them, DENIED the names that it knows and keeps closed, those
    that every preset knows among them.

    Exit status: 0, or 1 when a preset has mistakes.
    """
    if ctx.invoked_subcommand is not None:
        if as_json:
            command = f"penstock presets {ctx.invoked_subcommand} NAME --json"
            raise click.UsageError(f"write --json at the end: {command}")
        return
    read = _read(ctx)
    wrong = [problem for name in sorted(read.problems) for problem in read.problems[name]]
    if as_json:
        found = [
            preset_text.summary_json(preset, read.paths[name], read.presets)
            for name, preset in sorted(read.presets.items())
        ]
        click.echo(json.dumps({"v": 1, "presets": found, "problems": [one.as_json() for one in wrong]}, indent=2))
    else:
        click.echo("\n".join(preset_text.listing(read.presets)))
        for problem in wrong:
            click.echo(problem.line(), err=True)
    ctx.exit(1 if any_error(wrong) else 0)


@presets.command()
@click.argument("name", shell_complete=_complete)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def show(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show everything that one preset knows, and where it is from.

    \b
    penstock presets show huggingface
    penstock presets show huggingface --json

    Exit status: 0, 1 when its file has mistakes, 2 when there is no such preset.
    """
    read = _read(ctx)
    preset = _one(read, name)
    if as_json:
        click.echo(json.dumps(preset_text.as_json(preset, read.paths[name], read.presets), indent=2))
    else:
        click.echo("\n".join(preset_text.screen(preset, read.paths[name], read.presets)))


@presets.command()
@click.argument("name", shell_complete=_complete)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Compare with a copy of the list; then nothing is asked over the network.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def diff(ctx: click.Context, name: str, against: Path | None, as_json: bool) -> None:
    """Compare the names of a preset with the list that its upstream publishes.

    \b
    penstock presets diff huggingface
    penstock presets diff huggingface --against meta.json

    Downloads that list, as the user who calls this, and says first from where.

    Exit status: 0 no difference, 1 some, or the list cannot be had, 2 there is no such preset or no list.
    """
    preset = _one(_read(ctx), name)
    if against is None and not preset.published:
        hint = "with --against FILE it is compared with a list that you have"
        raise CannotTell(f"the upstream of `{name}` publishes no list that is known", hint=hint)
    where = printable(str(against), 4096) if against is not None else preset.published
    data = read_file(against) if against is not None else _download(preset.published)
    try:
        listed = published.read(data)
    except ValueError as error:
        raise PenstockError(f"is no list of names: {error}", where=where) from error
    found = published.compare(preset, listed)
    if as_json:
        click.echo(json.dumps(preset_text.difference_json(preset, where, listed, found), indent=2))
    else:
        click.echo("\n".join(preset_text.difference(preset, listed, found)))
    ctx.exit(0 if found.same else 1)


def _download(url: str) -> bytes:
    from penstock.cli import download

    proxy = download.through(url)
    click.echo(f"asking {url}{f' through the proxy {proxy}' if proxy else ''}", err=True)
    return download.download(url, published.MAX_BYTES)
