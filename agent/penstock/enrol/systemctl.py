"""The one door for running programs: systemctl, with a fixed locale and environment, and a bound on its time.

systemd keeps its own counsel about units: what a unit is, it is asked, and never read from files.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from penstock.core.text import printable
from penstock.errors import PenstockError

PROGRAM = "systemctl"
BOOTED = Path("/run/systemd/system")
"""There when systemd is the first process (sd_booted(3))."""
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "SYSTEMD_COLORS": "0",
    "SYSTEMD_PAGER": "",
}
TIMEOUT = 30.0
RESTART_TIMEOUT = 900.0
"""Seconds: a model server may take ten minutes to load."""


def available() -> bool:
    """Whether systemd runs this host."""
    return BOOTED.is_dir()


def run(*arguments: str, timeout: float = TIMEOUT, nothing: int = 0) -> str:
    """What systemctl prints.  PenstockError, with the command and its first words, when it fails or hangs.

    `nothing` is a status that means, where it says no word, that there is nothing to print.
    """
    argv = [PROGRAM, *arguments]
    try:
        done = subprocess.run(
            argv,
            env=ENVIRONMENT,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise PenstockError(f"does not end within {timeout:g} s", where=_shown(argv)) from e
    except (OSError, ValueError) as e:  # ValueError: a NUL in an argument
        reason = os.strerror(e.errno) if isinstance(e, OSError) and e.errno else str(e)
        raise PenstockError(f"cannot be run: {reason}", where=_shown(argv)) from e
    if done.returncode and not (done.returncode == nothing and not done.stderr):
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = said[0] if said else f"ended with status {done.returncode}"
        raise PenstockError(printable(reason), where=_shown(argv))
    return done.stdout.decode("utf-8", "replace")


def show(unit: str, properties: Sequence[str]) -> dict[str, str]:
    """Properties of a unit; one that has several lines (ExecStart) with all of them.  A unit that is not there has
    them too: see its LoadState.
    """
    found: dict[str, list[str]] = {name: [] for name in properties}
    for line in run("show", f"--property={','.join(properties)}", "--", unit).splitlines():
        name, equals, value = line.partition("=")
        if equals and name in found:
            found[name].append(value)
    return {name: "\n".join(lines) for name, lines in found.items()}


def names(pattern: str) -> list[str]:
    """Services whose name matches a glob: those in memory and those that only have a file, templates too."""
    options = ("--no-legend", "--plain", "--full", "--type=service", "--", pattern)
    listed = run("list-units", "--all", *options) + run("list-unit-files", *options, nothing=1)
    return sorted({line.split()[0] for line in listed.splitlines() if line.strip()})


def daemon_reload() -> None:
    """Have systemd read its files again; nothing is restarted by it."""
    run("daemon-reload", timeout=90)


def restart(unit: str) -> None:
    """Restart a unit, or start it, and wait until it is up."""
    run("restart", "--", unit, timeout=RESTART_TIMEOUT)


def _shown(argv: Sequence[str]) -> str:
    return printable(" ".join(argv), 200)
