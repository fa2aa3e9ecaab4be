"""Proof that this kernel matches our cgroups at the levels we computed: a packet, caught and counted.

A level that is deeper or shallower than meant is accepted by the kernel and never matches, without an error;
it counts from other places on other kernels.  So before anything is called enforcing, a child process in a
cgroup of its own at a workload's level sends a datagram to this host, and must be refused and counted.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

from penstock.core import chains
from penstock.core.slices import SLICE
from penstock.errors import PenstockError
from penstock.kernel.nft import Nft

DISCARD = ("127.0.0.1", 9)
PREFIX = "proof-"
PATIENCE = 0.2  # seconds


def prove(nft: Nft, tree: Path) -> None:
    """Raise PenstockError unless the datagram was caught.  The maps must be bound already."""
    _sweep(tree)
    directory = tree / SLICE / f"{PREFIX}{os.getpid()}"
    _make(directory)
    try:
        before = nft.counters().get(chains.PROOF, (0, 0))[0]
        cgroup = directory.stat().st_ino
        with nft.also_bound({name: {cgroup: (verb, chain)} for name, verb, chain in chains.PROOF_BINDINGS}):
            _send_from(directory)
            after = nft.counters().get(chains.PROOF, (0, 0))[0]
    finally:
        _remove(directory)
    if after == before:
        raise PenstockError(
            f"a packet from {directory} was not matched at the level that was computed",
            hint="start the daemon in the host's own cgroup namespace, or bring the loopback interface up",
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


def _send_from(directory: Path) -> None:
    """Send one datagram from a child that is in `directory`.  Only system calls between fork and exit."""
    procs = os.open(directory / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        child = os.fork()
        if child == 0:
            try:
                os.write(procs, b"0")
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", DISCARD)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    finally:
        os.close(procs)
