"""One connection from a chosen address, and what came of it: for `call` and `call_in` of hosts."""

from __future__ import annotations

import errno
import socket

PATIENCE = 3.0
"""Seconds for a connection.  What is refused is told at once."""


def reach(address: str, port: int, source: str = "", patience: float = PATIENCE) -> str:
    """Connect over TCP, from `source` if given: "ok", "timeout" or the name of an errno."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as out:
        out.settimeout(patience)
        try:
            if source:
                out.bind((source, 0))
            out.connect((address, port))
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))
    return "ok"
