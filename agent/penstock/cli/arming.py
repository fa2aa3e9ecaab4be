"""Slice drop-ins, as the policy in force makes them take effect.

`penstock protect` leaves a drop-in aside while the applied policy lacks its workload, because a slice without
rules denies everything.  Once the workload is in force, and stays, the drop-in may take effect at the unit's next
restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from penstock.cli.client import ask
from penstock.cli.context import place_of
from penstock.cli.format import wrapped
from penstock.core.slices import restart_command
from penstock.core.text import printable
from penstock.core.wire import Json, Message
from penstock.errors import PenstockError

HOST = Path("/sys/fs/cgroup")
"""The tree in which systemd makes its slices: a daemon of another one governs no unit of this host."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of the drop-ins, each as (unit, workload).

    `armed` count from now on; `stranded` would put their unit into a slice that has no rules; `trouble` says why
    something could not be done.
    """

    armed: tuple[tuple[str, str], ...] = ()
    stranded: tuple[tuple[str, str], ...] = ()
    trouble: str = ""

    def as_json(self) -> Json:
        """What the JSON of a command says about it."""
        return {name: _json(getattr(self, name)) for name in ("armed", "stranded")}

    def lines(self) -> list[str]:
        """What a command says about it."""
        told: list[str] = []
        for unit, workload in self.armed:
            told += wrapped(f"{unit}: comes into the slice of {workload} at its next restart:", 0)
            told.append(f"  {printable(restart_command(unit), 300)}")  # to be copied
        for unit, workload in self.stranded:
            text = f"{unit}: belongs to {workload}, which is not in force: restarted now, it could reach nothing"
            told += wrapped(text, 0)
        return told

    def complain(self) -> None:
        """Tell the trouble, on stderr."""
        if self.trouble:
            click.echo(f"penstock: in force, but the drop-ins of units are not in place: {self.trouble}", err=True)


def settle(run: Path, *, kept: bool) -> Settled:
    """Let the drop-ins count of all workloads that the daemon of `run` has in force, if that policy is `kept`.

    Without systemd, or when the daemon governs another tree than systemd's, there is nothing to do.
    """
    from penstock.enrol import dropin, systemctl

    if not systemctl.available() or place_of(run, "cgroup") != HOST:
        return Settled()
    try:
        workloads = {str(one["name"]) for one in ask(run, Message("status"))["workloads"]}
        armed = tuple(dropin.arm(workloads)) if kept else ()
        lost = [one for one in dropin.find() if one.armed and one.workload not in workloads]
    except PenstockError as error:
        return Settled(trouble=str(error))
    return Settled(armed, tuple((one.unit, one.workload) for one in lost))


def _json(pairs: tuple[tuple[str, str], ...]) -> list[Json]:
    return [{"unit": unit, "workload": workload} for unit, workload in pairs]
