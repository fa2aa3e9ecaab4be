"""Proof that this kernel matches our cgroups at the levels we computed: packets, caught and counted.

A level that is deeper or shallower than meant is accepted by the kernel and never matches, without an error;
it counts from other places on other kernels, and some do not find the receiver of a first packet.  So before
anything is called enforcing, a child process in a cgroup of its own at a workload's level sends a datagram to
this host, and is sent one: both must be caught.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

from penstock.core import cgroup_maps
from penstock.core.slices import SLICE
from penstock.errors import PenstockError
from penstock.kernel import child
from penstock.kernel.nft import Nft

HERE, DISCARD = "127.0.0.1", 9
PREFIX = "proof-"
PATIENCE = 0.2  # seconds


HINTS = {
    cgroup_maps.PROOF_OUT: "start the daemon in the host's own cgroup namespace, or bring up loopback",
    cgroup_maps.PROOF_IN: "bring up loopback; Linux before 5.18 needs its stable fixes for this",
}


def prove(nft: Nft, tree: Path) -> None:
    """Raise PenstockError unless both datagrams were caught.  The maps must be bound already."""
    _sweep(tree)
    directory = tree / SLICE / f"{PREFIX}{os.getpid()}"
    _make(directory)
    try:
        before = nft.counters()
        cgroup = directory.stat().st_ino
        with nft.also_bound({name: {cgroup: (verb, chain)} for name, verb, chain in cgroup_maps.PROOF_BINDINGS}):
            _exchange(directory)
            after = nft.counters()
    finally:
        _remove(directory)
    for counter, hint in HINTS.items():
        if after.get(counter) == before.get(counter):
            way = "from" if counter == cgroup_maps.PROOF_OUT else "to"
            raise PenstockError(
                f"a packet {way} {directory} was not matched at the level that was computed", hint=hint
            )


def _make(directory: Path) -> None:
    try:
        directory.mkdir()
    except FileExistsError:
        pass
    except OSError as e:
        raise PenstockError(f"cannot be made: {e.strerror}", where=str(directory)) from e


def _sweep(tree: Path) -> None:
    """Remove what one who was killed in between left behind."""
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(tree / SLICE):
            if entry.name.startswith(PREFIX):
                with contextlib.suppress(OSError):
                    os.rmdir(entry.path)


def _remove(directory: Path) -> None:
    """The dead leave their cgroup a moment after they were reaped.  What stays is for the next sweep."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            directory.rmdir()
        except OSError:
            if time.monotonic() >= deadline:
                return
            time.sleep(0.002)
        else:
            return


def _exchange(directory: Path) -> None:
    """Have a child in `directory` send one datagram, and send one to it."""
    procs = os.open(directory / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    ready, told = os.pipe()  # from the child: its port
    done, end = os.pipe()  # to the child: it may go, when all who could write have closed this
    pid = child.fork(lambda: _be_caught(procs, told, done, end))
    for descriptor in (procs, told, done):
        os.close(descriptor)
    try:
        port = int.from_bytes(os.read(ready, 2))
        if port:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller, contextlib.suppress(OSError):
                caller.sendto(b"", (HERE, port))
    finally:
        os.close(end)
        os.close(ready)
        os.waitpid(pid, 0)


def _be_caught(procs: int, told: int, done: int, end: int) -> None:
    """The child."""
    os.close(end)
    os.write(procs, b"0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind((HERE, 0))
        with contextlib.suppress(OSError):
            listener.sendto(b"", (HERE, DISCARD))
        os.write(told, listener.getsockname()[1].to_bytes(2))
        os.read(done, 1)
