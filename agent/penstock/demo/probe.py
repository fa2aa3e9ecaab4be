"""Try to reach somebody, and say what happened: for `Host.call` and `Host.call_in`."""

from __future__ import annotations

import errno
import socket
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of it.  `outcome` is "ok", "timeout", or the name of an errno such as ECONNREFUSED."""

    outcome: str
    ms: float
    reply: bytes = b""


def tcp(address: str, port: int, payload: bytes = b"hello", timeout: float = 3) -> Attempt:
    """Connect, send `payload` if there is one, and read one answer; `timeout` in seconds for each step."""
    return _attempt(socket.SOCK_STREAM, address, port, payload, timeout)


def udp(address: str, port: int, payload: bytes = b"hello", timeout: float = 3) -> Attempt:
    """Send one datagram and wait for one back."""
    return _attempt(socket.SOCK_DGRAM, address, port, payload, timeout)


def _attempt(kind: socket.SocketKind, address: str, port: int, payload: bytes, timeout: float) -> Attempt:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    start = time.monotonic()
    reply, outcome = b"", "ok"
    with socket.socket(family, kind) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect((address, port))
            if payload:
                sock.sendall(payload)
                reply = sock.recv(65536)
        except TimeoutError:
            outcome = "timeout"
        except OSError as error:
            outcome = errno.errorcode.get(error.errno or 0, str(error))
    return Attempt(outcome, (time.monotonic() - start) * 1000, reply)
