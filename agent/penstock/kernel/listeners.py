"""Sockets at which look-ups arrive, with the identity of the resolver's cgroup.

A socket belongs for ever to the cgroup it was made in, so a short-lived child goes there and makes them.  The
address is 127.0.0.1 and ::1, not the wildcard: the answer of a wildcard socket would not be tracked back.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from penstock.errors import PenstockError

ADDRESSES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
KINDS = (socket.SOCK_DGRAM, socket.SOCK_STREAM)
EACH = len(ADDRESSES) * len(KINDS)
BACKLOG = 64
BUFFER = 1 << 20
TRIES = 32
_ANSWER = struct.Struct("=H")


@dataclass(frozen=True, slots=True)
class Listeners:
    """Four sockets at one port: UDP and TCP of 127.0.0.1, then of ::1."""

    port: int
    descriptors: tuple[int, ...]

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


def open_listeners(directory: Path, preferred: Mapping[str, int]) -> dict[str, Listeners]:
    """Open them for each name, at its preferred port if that is free (0: no matter which).

    `directory` is the cgroup.  PenstockError when it cannot be entered, or there is no loopback interface.
    """
    procs = os.open(directory / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        _be_child(procs, theirs, list(preferred.values()))
    os.close(procs)
    theirs.close()
    found: dict[str, Listeners] = {}
    try:
        with ours:
            for name in preferred:
                data, descriptors, _, _ = socket.recv_fds(ours, _ANSWER.size, EACH)
                if len(data) != _ANSWER.size or len(descriptors) != EACH:
                    raise PenstockError("cannot listen for look-ups", hint="bring up loopback: ip link set lo up")
                found[name] = Listeners(_ANSWER.unpack(data)[0], tuple(descriptors))
                for descriptor in descriptors:
                    os.set_inheritable(descriptor, False)
    except BaseException:
        for listeners in found.values():
            listeners.close()
        raise
    finally:
        os.waitpid(child, 0)
    return found


def _be_child(procs: int, told: socket.socket, ports: list[int]) -> NoReturn:
    """Only system calls between fork and exit."""
    try:
        os.write(procs, b"0")
        for port in ports:
            sockets = _four(port)
            socket.send_fds(told, [_ANSWER.pack(sockets[0].getsockname()[1])], [s.fileno() for s in sockets])
            for opened in sockets:
                opened.close()
    finally:
        os._exit(0)


def _four(port: int) -> list[socket.socket]:
    for attempt in range(TRIES):
        try:
            return _at(port if attempt == 0 else 0)
        except OSError:
            continue
    return _at(0)


def _at(port: int) -> list[socket.socket]:
    opened: list[socket.socket] = []
    try:
        for family, address in ADDRESSES:
            for kind in KINDS:
                one = socket.socket(family, kind)
                opened.append(one)
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                if kind == socket.SOCK_STREAM:
                    # A daemon before this one may have left connections in TIME_WAIT there; it listens no more.
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                else:
                    with contextlib.suppress(OSError):
                        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
                one.bind((address, port))
                port = port or one.getsockname()[1]
                if kind == socket.SOCK_STREAM:
                    one.listen(BACKLOG)
    except OSError:
        for one in opened:
            one.close()
        raise
    return opened
