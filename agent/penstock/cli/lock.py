"""`penstock lock`: cut a workload off now."""

from __future__ import annotations

from datetime import datetime, timedelta

import click

from penstock.cli.applied import complete_workload
from penstock.cli.grant import end, length
from penstock.cli.override import lend
from penstock.core.policy import Mode


@click.command()
@click.argument("workload", shell_complete=complete_workload)
@click.option("--for", "lasting", type=length, metavar="TIME", help="How long: 30m, 2d.  [default: 30d, the most]")
@click.option("--until", type=end, metavar="TIME", help="Until when: 18:00, 2026-11-28T06:00:00Z.")
@click.option("--reason", default="", metavar="TEXT", help="Why, in up to 200 characters; it stays in the log.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def lock(
    ctx: click.Context,
    workload: str,
    lasting: timedelta | None,
    until: datetime | None,
    reason: str,
    as_json: bool,
) -> None:
    """Deny everything to WORKLOAD, allowed or not: its connections end.  The process runs on.

    The daemon lifts it when it is over; without a daemon it stays.  Its file stays as it is; for good, set
    `mode: lock` there.

    Exit status: 0 when it is in force, 1 when it is refused, 2 when no daemon answers.

    \b
    penstock lock vllm --reason "it calls a stranger, see ticket 4711"
    """
    lend(ctx, workload, Mode.LOCK, lasting, until, reason, as_json)
