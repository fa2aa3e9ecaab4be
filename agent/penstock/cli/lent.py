"""What is lent, read from what the daemon saved: the kernel keeps to it when the daemon is not there."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import click

from penstock.cli.applied import applied_path, policy_of, read_applied
from penstock.cli.context import DEFAULT_RUN, place_of
from penstock.core import grants
from penstock.core.grants import Grant, with_grants
from penstock.core.policy import Policy
from penstock.errors import PenstockError

_PORT = r"(?:[0-9]+(?:-[0-9]+)?(?:/[a-z]+)?|any|icmp)"
_WITH_PORT = re.compile(rf"(.*[^:]):({_PORT}(?:,{_PORT})*)\Z")
_BARE = re.compile(r"(workload:)?[^:]*\Z|[a-z][a-z0-9+.-]*://[^:]*\Z")


def peer_and_port(text: str) -> tuple[str, str]:
    """`10.0.0.5:443`, `[2001:db8::5]:53/udp`, `workload:x:8000` as far end and port; no port: "".

    An IPv6 address before a port needs brackets: without, all of it is the address.  What is none of it stays
    whole, and the daemon says what is wrong.
    """
    found = _WITH_PORT.match(text)
    far, ports = (found[1], found[2]) if found else (text, "")
    if far.startswith("[") and far.endswith("]"):
        return far[1:-1], ports
    return (far, ports) if _BARE.match(far) else (text, "")


def lent(run: Path, now: datetime) -> tuple[Grant, ...] | None:
    """The grants that are not over; None when what was saved cannot be read."""
    directory = place_of(run, "state")
    if directory is None:
        return None
    try:
        with (directory / grants.FILE).open("rb") as file:
            saved = grants.decode(file.read(grants.MAX_BYTES + 1))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError):
        return None
    return tuple(one for one in saved.grants if one.at(now))


def with_lent(policy: Policy, run: Path, now: datetime) -> Policy:
    """`policy`, which was applied last, with what is lent besides."""
    return with_grants(policy, lent(run, now) or (), now)


def complete_destination(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Networks, workloads and presets for the shell, when the saved state may be read."""
    return _known(ctx, incomplete, presets=True)


def complete_source(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Networks and workloads for the shell, when the saved state may be read."""
    return _known(ctx, incomplete, presets=False)


def _known(ctx: click.Context, incomplete: str, *, presets: bool) -> list[str]:
    run = Path(ctx.find_root().params.get("run") or DEFAULT_RUN)
    try:
        path = applied_path(run)
        applied = read_applied(path)
        policy = policy_of(applied, path) if applied else Policy()
    except PenstockError:
        return []
    names = {*policy.networks, *(f"workload:{name}" for name in policy.workloads)}
    if presets and applied:
        names |= {Path(file).stem for file in applied.presets}
    return sorted(name for name in names if name.startswith(incomplete))


def complete_grant(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Ids for the shell, when the saved state may be read."""
    run = ctx.find_root().params.get("run") or DEFAULT_RUN
    ids = [one.id for one in lent(Path(run), datetime.now(UTC)) or ()]
    return [id for id in ids if id.startswith(incomplete)] or [
        id.removeprefix("grant-") for id in ids if id.removeprefix("grant-").startswith(incomplete)
    ]
