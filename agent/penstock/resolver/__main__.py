"""`python -m penstock.resolver DESCRIPTOR`: the daemon's resolver; the descriptor is the link to it."""

from __future__ import annotations

import signal
import socket
import sys

from penstock.errors import PenstockError
from penstock.resolver.app import App, outlive
from penstock.resolver.rights import give_up


def main(arguments: list[str]) -> int:
    """0 when the daemon ended, 1 when this one failed, 2 when it was not started by a daemon."""
    try:
        (number,) = map(int, arguments)
        link = socket.socket(fileno=number)
    except (ValueError, OSError):
        print("penstock.resolver is started by the daemon: penstock daemon", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the daemon, which then ends us
    signal.signal(signal.SIGTERM, lambda *_: outlive())
    try:
        give_up()
        App(link).run()
    except PenstockError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
