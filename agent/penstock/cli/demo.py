"""`penstock demo`: the daemon in a throw-away lab, an attack, the block."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import click

from penstock.errors import PenstockError

ACTS = ("pull", "hub", "phone-home")  # those of penstock.demo.acts, which is too much to load for a usage line


@click.command()
@click.option("--act", "acts", type=click.Choice(ACTS), multiple=True, help="Play this act; may be repeated.")
@click.option("--shell", is_flag=True, help="Then leave me in a shell inside the lab.")
@click.option("--json", "as_json", is_flag=True, help="Print the observations as JSON.")
def demo(acts: tuple[str, ...], shell: bool, as_json: bool) -> None:
    """Show an attack and the block in a throw-away lab.

    \b
    penstock demo
    penstock demo --act phone-home --json

    The network and the firewall of this host are never touched.

    Exit status: 0 only if everything was observed at the remote end, else 1.
    """
    from penstock.demo import story

    if os.geteuid() != 0:
        raise PenstockError("the lab needs root for its namespaces", hint="run it with sudo")
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that the lab is taken down, not left for the next one
        signal.signal(number, _leave)
    sys.exit(story.play(acts, shell=shell, as_json=as_json))


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)
