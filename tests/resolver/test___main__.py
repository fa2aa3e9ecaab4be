"""How it is started, and how it is not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from penstock.core import resolver_wire as wire

from .running import Resolver, command, eventually, rcode

COMMAND = [sys.executable, "-I", "-m", "penstock.resolver"]


@pytest.mark.parametrize("arguments", [[], ["x"], ["3", "4"], ["99"], ["-1"]])
def test_it_is_started_by_the_daemon_only(arguments: list[str]) -> None:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "penstock.resolver is started by the daemon: penstock daemon\n"


def test_what_makes_no_sense_ends_it_with_one_line() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"\0\0\0\2[]")
        done = subprocess.run(
            [*COMMAND, str(theirs.fileno())], pass_fds=[theirs.fileno()], capture_output=True, text=True
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the daemon said what makes no sense: no message of a daemon\n"


def test_a_key_that_ends_the_daemon_is_not_for_it() -> None:
    with Resolver() as resolver:
        resolver.configure("hub.example", upstreams=[])
        resolver.ask("evil.example")
        resolver.process.send_signal(signal.SIGINT)
        resolver.ask("worse.example")
        assert len(resolver.daemon.waits_for(wire.Refused, 2)) == 2


def test_who_is_only_told_that_the_daemon_died_goes_on_for_a_while() -> None:
    with Resolver(there=1) as resolver:
        resolver.configure("hub.example", upstreams=[])
        assert rcode(resolver.ask("hub.example")) == "SERVFAIL"
        began = time.monotonic()
        resolver.status = -signal.SIGALRM
        resolver.process.send_signal(signal.SIGTERM)
        assert rcode(resolver.ask("evil.example")) == "NXDOMAIN"
        resolver.process.wait(3)
        assert time.monotonic() - began > 1.5


def test_it_dies_with_whoever_started_it() -> None:
    """Some time later, and also when the link is held open by somebody else."""
    ours, theirs = socket.socketpair()
    program = f"""
import os, subprocess, sys, time
print(subprocess.Popen({[*command(1), str(theirs.fileno())]!r}, pass_fds=[{theirs.fileno()}]).pid, flush=True)
sys.stdin.read()
"""
    with ours, theirs:
        parent = subprocess.Popen(
            [sys.executable, "-c", program],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert parent.stdin is not None
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        ours.sendall(wire.encode(wire.Listen("x")))
        ours.settimeout(10)
        assert ours.recv(4096)  # a trouble: no sockets came
        began = time.monotonic()
        parent.kill()
        parent.wait()
        eventually(lambda: not _lives(pid), 3)
        assert time.monotonic() - began > 1.5
        for stream in (parent.stdin, parent.stdout):
            stream.close()


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z" and os.path.exists(f"/proc/{pid}")
    except OSError:
        return False
