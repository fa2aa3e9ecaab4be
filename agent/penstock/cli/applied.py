"""The policy that was applied last, read from the daemon's saved state: it is there when the daemon is not."""

from __future__ import annotations

from pathlib import Path

import click

from penstock.cli.context import DEFAULT_RUN, CannotTell, place_of
from penstock.core import state
from penstock.core.language.reading import near, shown
from penstock.core.parse import parse
from penstock.core.policy import Place, Policy
from penstock.core.text import printable
from penstock.errors import PenstockError
from penstock.files import find_file

MAX_BYTES = 1 << 30
KEPT = (state.FILE, *state.HISTORY)
NEVER = "no policy has been applied"


def read_applied(path: Path) -> state.Applied | None:
    """The saved state in `path`, a file; None when there is none.  CannotTell when it cannot be used."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CannotTell("is too big for a saved state", where=str(path))
        return state.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except PermissionError as e:
        raise CannotTell("only root may read what is applied", where=str(path), hint="run it with sudo") from e
    except OSError as e:
        raise CannotTell(f"cannot be read: {e.strerror}", where=str(path)) from e
    except ValueError as e:
        raise CannotTell(f"is no saved state of penstock: {e}", where=str(path)) from e


def kept_paths(run: Path) -> list[Path]:
    """Where the daemon of `run` keeps policies: the present one first, then those before it.  CannotTell."""
    present = applied_path(run)
    return [present.with_name(name) for name in KEPT]


def applied_path(run: Path) -> Path:
    """Where the daemon of `run` saves what was applied.  CannotTell when no daemon ever ran there."""
    directory = place_of(run, "state")
    if directory is None:
        where = run / "daemon.json"
        if _is_hidden(run):
            raise CannotTell("only root may read it", where=str(where), hint="run it with sudo")
        raise CannotTell("no daemon has run here yet", where=str(where), hint="start it with `penstock daemon`")
    return directory / state.FILE


def _is_hidden(run: Path) -> bool:
    try:
        (run / "daemon.json").stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def policy_of(applied: state.Applied, where: Path) -> Policy:
    """The policy in a saved state.  CannotTell when this version does not understand it."""
    policy = parse(applied.files, applied.presets).policy
    if policy is None:
        raise CannotTell("this version cannot read the applied policy", where=str(where), hint="penstock apply")
    return policy


def applied_policy(run: Path) -> Policy:
    """The policy that the daemon of `run` applied last.  CannotTell when it cannot be known."""
    path = applied_path(run)
    applied = read_applied(path)
    if applied is None:
        raise CannotTell(NEVER, where=str(path), hint="penstock apply")
    return policy_of(applied, path)


def no_such(workload: str, policy: Policy) -> CannotTell:
    """What to say about a workload that is not there."""
    names = sorted(policy.workloads)
    hint = near(workload, names) or (f"there are {', '.join(names[:10])}" if names else "it has no workloads")
    return CannotTell(f"the policy has no workload `{shown(workload)}`", hint=hint)


def path_of(place: Place, config: Path | None) -> str:
    """The file of a rule as a path that can be opened, safe to print."""
    if not place.file:
        return ""
    return printable(str(find_file(config, place.file) if config else place.file), 4096)


def complete_workload(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of workloads for the shell, when the applied policy may be read."""
    run = ctx.find_root().params.get("run") or DEFAULT_RUN
    try:
        names = sorted(applied_policy(Path(run)).workloads)
    except PenstockError:
        return []
    return [name for name in names if name.startswith(incomplete)]
