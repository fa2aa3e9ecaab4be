"""`penstock observe`: break the glass; nothing is denied to a workload for a while."""

from __future__ import annotations

from datetime import datetime, timedelta

import click

from penstock.cli.applied import complete_workload
from penstock.cli.grant import end, length
from penstock.cli.override import lend
from penstock.core.policy import Mode


@click.command()
@click.argument("workload", shell_complete=complete_workload)
@click.option("--for", "lasting", type=length, metavar="TIME", help="How long, up to 24h: 30m, 2h.")
@click.option("--until", type=end, metavar="TIME", help="Until when: 18:00, 2026-11-28T06:00:00Z.")
@click.option("--reason", default="", metavar="TEXT", help="Why, in up to 200 characters; it stays in the log.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def observe(
    ctx: click.Context,
    workload: str,
    lasting: timedelta | None,
    until: datetime | None,
    reason: str,
    as_json: bool,
) -> None:
    """Deny nothing to WORKLOAD for a while, and go on recording what would have been denied.

    It ends by itself, in the kernel, whatever becomes of the daemon.  Its file stays as it is; for good, set
    `mode: observe` there.

    Exit status: 0 when it is in force, 1 when it is refused, 2 when no daemon answers.

    \b
    penstock observe litellm --for 30m --reason "pipeline stands still, ask Anna"
    """
    if lasting is None and until is None:
        raise click.UsageError("say how long: --for 30m or --until 18:00")
    lend(ctx, workload, Mode.OBSERVE, lasting, until, reason, as_json)
