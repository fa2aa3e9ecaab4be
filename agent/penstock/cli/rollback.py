"""`penstock rollback`: put a policy back in force that was there before."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from penstock.cli.applied import KEPT, NEVER, applied_path, kept_paths, read_applied
from penstock.cli.apply import PATIENCE
from penstock.cli.arming import settle
from penstock.cli.client import ask
from penstock.cli.context import DEFAULT_RUN, CannotTell, Context
from penstock.cli.format import ago, counted, local, number, rfc3339, table
from penstock.core.parse import parse
from penstock.core.text import printable
from penstock.core.wire import Json, Message
from penstock.errors import PenstockError

HASH = re.compile(r"[0-9a-f]{4,64}", re.ASCII)
HEADER = ("POLICY", "APPLIED", "", "WORKLOADS", "")


@dataclass(frozen=True, slots=True)
class Kept:
    """A policy that is kept; `workloads` is None when this version cannot read it."""

    hash: str
    applied: datetime
    workloads: int | None
    file: Path


def _hash(text: str) -> str:
    if not HASH.fullmatch(text.lower()):
        raise click.BadParameter("write at least 4 letters of a hash, as `penstock rollback --list` shows it")
    return text.lower()


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Hashes for the shell, when the state may be read."""
    run = ctx.find_root().params.get("run") or DEFAULT_RUN
    try:
        return [one.hash for one in _kept(Path(run), [])[1:] if one.hash.startswith(incomplete)]
    except PenstockError:
        return []


@click.command()
@click.argument("to", metavar="[HASH]", required=False, type=_hash, shell_complete=_complete)
@click.option("--list", "only_list", is_flag=True, help="Show which policies are kept; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def rollback(ctx: click.Context, to: str | None, only_list: bool, as_json: bool) -> None:
    """Put the policy before the present one back in force, or the kept one that HASH names.

    \b
    penstock rollback
    penstock rollback --list
    penstock rollback 1a2b3c

    The rule files stay as they are: mend them before the next `apply`.  While an `apply --confirm` waits, this
    reverts it at once.

    Exit status: 0 when it is in force, 1 when it is refused, 2 when no daemon answers.
    """
    run: Path = (ctx.obj or Context()).run
    if only_list:
        if to is not None:
            raise click.UsageError("--list takes no HASH")
        _list(run, as_json)
        return
    result = ask(run, Message("rollback", {"to": to or ""}), PATIENCE)
    settled = settle(run, kept=True)
    if as_json:
        click.echo(json.dumps({**result, **settled.as_json()}, indent=2))
    else:
        for line in (*_summary(result), *settled.lines()):
            click.echo(line)
    settled.complain()
    ctx.exit(1 if settled.trouble else 0)


def _summary(result: Json) -> Iterator[str]:
    what = "back in force is" if result["changed"] else "unchanged, in force is"
    size = counted(result["workloads"], "workload")
    yield f"{what} {printable(str(result['hash']))}: {size}, {result['seconds']:.2f} s"
    yield "the rule files are as they were; before the next apply see: penstock plan"


def _list(run: Path, as_json: bool) -> None:
    """Print what is kept, the present one first.  CannotTell when nothing is, or it may not be read."""
    troubles: list[CannotTell] = []
    kept = _kept(run, troubles)
    if not kept and troubles:
        raise troubles[0]
    if not kept:
        raise CannotTell(NEVER, where=str(applied_path(run)), hint="penstock apply")
    waiting = _waiting(run)
    if as_json:
        said = {"v": 1, "unconfirmed": waiting, "policies": [_json(one) for one in kept]}
        click.echo(json.dumps(said, indent=2))
    else:
        click.echo("\n".join(_text(kept, waiting)))
    for trouble in troubles:
        click.echo(f"penstock: {trouble}", err=True)


def _kept(run: Path, troubles: list[CannotTell]) -> list[Kept]:
    """The policies in the state directory, the present one first; files that cannot be used go to `troubles`."""
    found = []
    for path in kept_paths(run):
        try:
            applied = read_applied(path)
        except CannotTell as trouble:
            troubles.append(trouble)
            continue
        if applied is not None:
            policy = parse(applied.files, applied.presets).policy
            size = len(policy.workloads) if policy else None
            found.append(Kept(applied.hash, datetime.fromtimestamp(applied.at, UTC), size, path))
    return found


def _waiting(run: Path) -> str | None:
    """The hash of a policy that is in force and not confirmed, and so not among the kept ones."""
    try:
        policy = ask(run, Message("status"))["policy"]
    except PenstockError:
        return None
    return str(policy["hash"]) if policy.get("confirm_until") is not None else None


def _json(one: Kept) -> Json:
    found: dict[str, Any] = {"hash": one.hash, "applied": rfc3339(one.applied), "workloads": one.workloads}
    return {**found, "file": str(one.file)}


def _text(kept: list[Kept], waiting: str | None) -> Iterator[str]:
    now = datetime.now(UTC)
    present = waiting if waiting is not None else kept[0].hash if kept[0].file.name == KEPT[0] else ""
    back = next((one for one in kept if one.hash != present), None)
    rows = [
        (
            printable(one.hash, 64),
            local(one.applied),
            ago(one.applied, now),
            number(one.workloads),
            "rollback goes here" if one is back else "in force" if one.hash == present else "",
        )
        for one in kept
    ]
    for row in table(HEADER, rows, right=(3,)):
        yield "  ".join(row).rstrip()
    if waiting is not None:
        yield f"in force is {printable(waiting, 64)}, not confirmed: penstock confirm"
