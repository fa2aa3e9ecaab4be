"""`penstock grant`: lend access that ends by itself."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from penstock.cli.applied import complete_workload
from penstock.cli.apply import PATIENCE
from penstock.cli.client import ask
from penstock.cli.context import Context
from penstock.cli.duration import parse_duration, parse_until
from penstock.cli.format import moment, span, stamp
from penstock.cli.lent import complete_destination, complete_source, peer_and_port
from penstock.core.policy import Direction
from penstock.core.text import printable
from penstock.core.wire import LONGEST_GRANT, Json, Message

TOO_LONG = "nothing is lent for more than 30 days; write a rule with `expires:` into its file"
_USER = re.compile(r"[^\x00-\x1f\x7f]{1,64}\Z")


def length(text: str) -> timedelta:
    """How long something is lent, as the type of an option."""
    try:
        found = parse_duration(text)
    except ValueError as e:
        raise click.BadParameter(f"{text!r}: {e}") from e
    if not found:
        raise click.BadParameter(f"{text!r}: no time at all; write --for 30m")
    if found.total_seconds() > LONGEST_GRANT:
        raise click.BadParameter(f"{text!r}: {TOO_LONG}")
    return found


def end(text: str) -> datetime:
    """Until when something is lent, as the type of an option."""
    now = datetime.now().astimezone()
    try:
        found = parse_until(text, now)
    except ValueError as e:
        raise click.BadParameter(f"{text!r}: {e}") from e
    if found <= now:
        raise click.BadParameter(f"{text!r}: that is over already")
    if (found - now).total_seconds() > LONGEST_GRANT:
        raise click.BadParameter(f"{text!r}: {TOO_LONG}")
    return found


@click.command()
@click.argument("workload", shell_complete=complete_workload)
@click.argument(
    "destination",
    required=False,
    metavar="[DEST[:PORT][/udp] | PRESET]",
    shell_complete=complete_destination,
)
@click.option(
    "--from",
    "source",
    metavar="SOURCE",
    shell_complete=complete_source,
    help="Let SOURCE come in, to the port of the workload.",
)
@click.option("--port", "ports", multiple=True, metavar="PORT[/udp]", help="A port, or a range; again for more.")
@click.option("--for", "lasting", type=length, metavar="TIME", help="How long: 30m, 8h, 2d.")
@click.option("--until", type=end, metavar="TIME", help="Until when: 18:00, 2026-11-28, 2026-11-28T06:00:00Z.")
@click.option("--reason", default="", metavar="TEXT", help="Why, in up to 200 characters; it stays in the log.")
@click.option("--yes-wide", is_flag=True, help="It is meant: any, a prefix wider than /16 (IPv6: /48), *.com.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def grant(
    ctx: click.Context,
    workload: str,
    destination: str | None,
    source: str | None,
    ports: tuple[str, ...],
    lasting: timedelta | None,
    until: datetime | None,
    reason: str,
    yes_wide: bool,
    as_json: bool,
) -> None:
    """Lend WORKLOAD access that ends by itself, in the kernel, whatever becomes of the daemon.

    \b
    penstock grant litellm 10.30.1.9:5432 --for 30m --reason "migration"
    penstock grant litellm files.example.org --until 18:00 --reason "tokenizer"
    penstock grant litellm --from clients --port 8000 --for 1h --reason "test"
    penstock grant vllm huggingface --for 30m --reason "pull a model"

    Rule files stay as they are.

    Exit status: 0 when it is in force, 1 when it is refused, 2 when no daemon answers.
    """
    if (destination is None) == (source is None):
        raise click.UsageError("name one of DEST and --from SOURCE")
    if (lasting is None) == (until is None):
        raise click.UsageError("say how long: --for 30m or --until 18:00")
    if not reason.strip():
        raise click.UsageError('say why: --reason "..."')
    far, more = (source, "") if source is not None else peer_and_port(destination or "")
    if more and ports:
        raise click.UsageError(f"the port is there twice: {printable(destination or '', 80)} and --port")
    said = {
        "workload": workload,
        "direction": (Direction.OUT if source is None else Direction.IN).value,
        "peer": far,
        "ports": ",".join(ports) or more,
        "seconds": int(lasting.total_seconds()) if lasting else 0,
        "until": int(until.timestamp()) if until else 0,
        "reason": reason,
        "wide": int(yes_wide),
        "user": user(),
    }
    run: Path = (ctx.obj or Context()).run
    result = ask(run, Message("grant", said), PATIENCE)
    if as_json:
        click.echo(json.dumps({"v": 1, **result}, indent=2))
        return
    click.echo(_summary(result["grant"]))
    for note in result["notes"]:
        click.echo(f"penstock: {printable(str(note), 2000)}", err=True)


def user() -> str:
    """Who sudo says is behind it.  The daemon asks the kernel too, and believes that more."""
    found = os.environ.get("SUDO_USER", "")
    return found if _USER.match(found) else ""


def _summary(one: Json) -> str:
    until, id = moment(one["until"]), printable(str(one["id"]))
    left = span(until - datetime.now(UTC)) if until else "?"
    what = f"{printable(str(one['workload']))}, {printable(str(one['what']), 500)}"
    sooner = f"end it sooner with: penstock revoke {id.removeprefix('grant-')}"
    return f"{id} until {stamp(until)} ({left}):\n  {what}\n{sooner}"
