"""Sockets at which look-ups arrive, with the identity of the resolver's cgroup.

A socket belongs for ever to the cgroup it was made in, so a short-lived child goes there and makes them.  The
address is 127.0.0.1 and ::1, not the wildcard: the answer of a wildcard socket would not be tracked back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import PenstockError
from penstock.kernel import child

ADDRESSES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
KINDS = (socket.SOCK_DGRAM, socket.SOCK_STREAM)
EACH = len(ADDRESSES) * len(KINDS)
BACKLOG = 64
BUFFER = 1 << 20
"""Bytes that wait at a UDP socket: a burst of some thousand look-ups."""
SO_RCVBUFFORCE = 33  # beyond what the host gives to everybody: we have CAP_NET_ADMIN
TRIES = 32
"""The kernel chooses a port that is free for one of the four; somebody may have it for another."""
NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)

_ANSWER = struct.Struct("=Hi")  # the port, or 0 and an error
Address = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Listeners:
    """Sockets at one port: UDP and TCP of 127.0.0.1, then of ::1 unless the host has no IPv6 loopback."""

    port: int
    descriptors: tuple[int, ...]

    @property
    def ipv6(self) -> bool:
        """Whether there is anything at ::1."""
        return len(self.descriptors) == EACH

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


def open_listeners(directory: Path, names: Sequence[str]) -> dict[str, Listeners]:
    """Open them for each name, at whichever port is free.

    `directory` is the cgroup.  PenstockError when it cannot be entered, or there is nowhere to listen; then
    nothing is open.
    """
    try:
        procs = os.open(directory / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError as e:
        raise PenstockError(f"cannot be entered: {e.strerror}", where=str(directory)) from e
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = child.fork(lambda: _open_there(procs, theirs, len(names)))
    os.close(procs)
    theirs.close()
    found: dict[str, Listeners] = {}
    try:
        with ours:
            for name in names:
                found[name] = _received(ours)
    except BaseException:
        for listeners in found.values():
            listeners.close()
        raise
    finally:
        os.waitpid(pid, 0)
    return found


def _received(ours: socket.socket) -> Listeners:
    data, descriptors, _, _ = socket.recv_fds(ours, _ANSWER.size, EACH, socket.MSG_CMSG_CLOEXEC)
    port, error = _ANSWER.unpack(data) if data else (0, errno.EPIPE)
    if port and len(descriptors) in (EACH // 2, EACH):
        return Listeners(port, tuple(descriptors))
    for descriptor in descriptors:
        os.close(descriptor)
    hint = "bring up loopback: ip link set lo up" if error == errno.EADDRNOTAVAIL else ""
    raise PenstockError(f"cannot listen for look-ups: {os.strerror(error or errno.EMFILE)}", hint=hint)


def _open_there(procs: int, told: socket.socket, count: int) -> None:
    """The child: enter, and send each set of sockets, until one cannot be had."""
    try:
        os.write(procs, b"0")
        addresses = [ADDRESSES[0], *filter(_is_there, ADDRESSES[1:])]
        for _ in range(count):
            sockets = _at_any(addresses)
            answer = _ANSWER.pack(sockets[0].getsockname()[1], 0)
            socket.send_fds(told, [answer], [one.fileno() for one in sockets])
            for one in sockets:
                one.close()
    except OSError as e:
        told.send(_ANSWER.pack(0, e.errno or errno.EIO))


def _is_there(address: Address) -> bool:
    """IPv6 may be switched off for the host, or for its loopback interface."""
    family, host = address
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            one.bind((host, 0))
    except OSError as e:
        if e.errno in NO_IPV6:
            return False
        raise
    return True


def _at_any(addresses: Iterable[Address]) -> list[socket.socket]:
    for _ in range(TRIES):
        with contextlib.suppress(OSError):
            return _at_one(addresses)
    return _at_one(addresses)


def _at_one(addresses: Iterable[Address]) -> list[socket.socket]:
    opened: list[socket.socket] = []
    port = 0
    try:
        for family, host in addresses:
            for kind in KINDS:
                one = socket.socket(family, kind)
                opened.append(one)
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                if kind == socket.SOCK_DGRAM:
                    with contextlib.suppress(OSError):
                        one.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
                one.bind((host, port))
                port = port or one.getsockname()[1]
                if kind == socket.SOCK_STREAM:
                    one.listen(BACKLOG)
    except OSError:
        for one in opened:
            one.close()
        raise
    return opened
