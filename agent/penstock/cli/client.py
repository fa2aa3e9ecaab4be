"""Asking the daemon: one question, one answer, over its control socket."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from penstock.cli.context import DEFAULT_RUN, CannotTell
from penstock.core.text import printable
from penstock.core.wire import MAX_ANSWER, Json, Message, decode_answer, encode_request
from penstock.errors import NoDaemon, PenstockError

SOCKET = "control.sock"
UNIT = Path("/usr/lib/systemd/system/penstock.service")


def ask(run: Path, message: Message, timeout: float = 10) -> Json:
    """Return what the daemon of `run` answers within `timeout` seconds.

    NoDaemon when none answers, CannotTell when we may not ask, PenstockError with the daemon's own words when it
    says no.
    """
    path = run / SOCKET
    try:
        result, text, hint = decode_answer(_exchange(path, encode_request(message), timeout))
    except TimeoutError as e:
        text = f"the daemon at {path} does not answer within {timeout:g} s"
        raise NoDaemon(text, hint="see its messages") from e
    except PermissionError as e:
        raise CannotTell(f"only root may ask the daemon at {path}", hint="run it with sudo") from e
    except (OSError, ValueError) as e:
        raise NoDaemon(f"no daemon answers at {path}", hint=_how_to_start(run)) from e
    if result is None:
        raise PenstockError(printable(text, 2000), hint=printable(hint, 2000))
    return result


def _how_to_start(run: Path) -> str:
    """What helps when no daemon runs: an installed one is a service."""
    how = f"systemctl start {UNIT.name}" if run == DEFAULT_RUN and UNIT.exists() else "penstock daemon"
    return f"start it with `{how}`; `blocks`, `why` and `check` work without it"


def _exchange(path: Path, request: bytes, timeout: float) -> bytes:
    """Send a line and return the line that comes back.  OSError, or ValueError when it has no end."""
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as peer:
        peer.settimeout(timeout)
        peer.connect(str(path))
        peer.sendall(request)
        answer = bytearray()
        while not answer.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            peer.settimeout(left)
            part = peer.recv(1 << 16)
            if not part or len(answer) > MAX_ANSWER:
                raise ValueError("no whole answer")
            answer += part
    return bytes(answer)
