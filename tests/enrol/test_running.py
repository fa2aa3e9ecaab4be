"""Processes of a unit and their ports: this very process, and its sockets."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from penstock.enrol import running
from penstock.enrol.running import Listener
from penstock.errors import PenstockError
from penstock.kernel import cgroup


def test_this_process() -> None:
    found = running.process(os.getpid())
    assert found
    assert found.exe == os.path.realpath(sys.executable)
    assert found.argv[0] in (sys.executable, *sys.orig_argv)
    assert running.process(1 << 22) is None
    assert running.argv_of(1 << 22) == ()


def test_the_main_process_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "system.slice/x.service"
    group.mkdir(parents=True)
    (group / "cgroup.procs").write_text(f"{os.getppid()}\n{os.getpid()}\n{1 << 22}\n")
    monkeypatch.setattr(cgroup, "default_tree", lambda: tmp_path)
    found = running.of_unit("/system.slice/x.service", str(os.getpid()))
    assert [process.pid for process in found] == [os.getpid(), os.getppid()]
    assert running.of_unit("", "0") == ()
    assert running.of_unit("/", "0") == ()


def test_without_a_tree_there_is_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise PenstockError("mixed")

    monkeypatch.setattr(cgroup, "default_tree", none)
    assert [one.pid for one in running.of_unit("/x.service", str(os.getpid()))] == [os.getpid()]


def test_ports() -> None:
    ours = {os.getpid()}
    before = set(running.listeners(ours))
    with (
        socket.create_server(("127.0.0.1", 0)) as local,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as local6,
        socket.create_server(("0.0.0.0", 0)) as wide,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as passing,
        socket.create_connection(local.getsockname()),
    ):
        datagrams.bind(("127.0.0.1", _free_low_port()))
        passing.bind(("127.0.0.1", 0))
        found = set(running.listeners(ours)) - before
        assert found == {
            Listener(local.getsockname()[1], "tcp", local=True),
            Listener(local6.getsockname()[1], "tcp", local=True),
            Listener(wide.getsockname()[1], "tcp", local=False),
            Listener(datagrams.getsockname()[1], "udp", local=True),
        }
        assert running.listeners({1 << 22}) == running.listeners(()) == ()


def _free_low_port() -> int:
    for port in range(20000, 20100):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
