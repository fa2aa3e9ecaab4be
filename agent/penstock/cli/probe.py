"""Trying connections as a workload does: from a process in its cgroup, without rights, that lives for a moment."""

from __future__ import annotations

import errno
import json
import os
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from penstock.core.probes import PATIENCE, Probe, Tried
from penstock.errors import PenstockError

_MAX_BYTES = 64 << 10


def attempt(tree: Path, workload: str, probes: Sequence[Probe]) -> list[Tried]:
    """Connect from inside the workload, whose slice is below `tree`.  PenstockError when that cannot be done."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(tree, workload, probes, writer)
    os.close(writer)
    try:
        said = b"".join(_parts(reader))
    finally:
        os.close(reader)
        os.waitpid(pid, 0)
    try:
        found = json.loads(said)
        if "error" in found:
            raise PenstockError(str(found["error"]))
        return [Tried(number, float(seconds)) for number, seconds in found["tried"]]
    except (ValueError, TypeError, KeyError) as e:
        raise PenstockError("the probe ended without an answer") from e


def _parts(reader: int) -> Iterator[bytes]:
    """What the child writes, until it ends."""
    left = _MAX_BYTES
    while left > 0 and (part := os.read(reader, left)):
        left -= len(part)
        yield part


def _child(tree: Path, workload: str, probes: Sequence[Probe], writer: int) -> NoReturn:
    """Never returns: what the parent was in the midst of must not go on twice."""
    from penstock.kernel import launch
    from penstock.kernel.credentials import User

    nobody = User("nobody", 65534, 65534, (65534,), "/", "/bin/sh")
    said: dict[str, object] = {"error": "the probe failed"}
    try:
        os.dup2(writer, 1)  # the only descriptors that are kept are the standard ones
        launch.become(tree, workload, nobody)
        said = {"tried": [(one.number, one.seconds) for one in connect(probes)]}
    except PenstockError as e:
        said = {"error": str(e)}
    finally:
        os.write(1, json.dumps(said).encode())
        os._exit(0)


def connect(probes: Sequence[Probe]) -> list[Tried]:
    """Begin all, then wait for each, `PATIENCE` at most.  No data is sent."""
    began = time.monotonic()
    done: dict[int, Tried] = {}
    with selectors.DefaultSelector() as selector:
        for n, probe in enumerate(probes):
            sock = _socket(probe)
            number = errno.EAFNOSUPPORT if sock is None else sock.connect_ex((str(probe.address), probe.port))
            if sock is None or number != errno.EINPROGRESS:
                done[n] = Tried(number, time.monotonic() - began)
            else:
                selector.register(sock, selectors.EVENT_WRITE, n)
        while selector.get_map() and (left := began + PATIENCE - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                number = ready.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                done[key.data] = Tried(number, time.monotonic() - began)
                selector.unregister(ready)
    return [done.get(n, Tried(None, PATIENCE)) for n in range(len(probes))]


def _socket(probe: Probe) -> socket.socket | None:
    family = socket.AF_INET if probe.address.version == 4 else socket.AF_INET6
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return None
    sock.setblocking(False)
    return sock
