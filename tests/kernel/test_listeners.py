"""Listeners: four sockets at one port, of the resolver's cgroup, whatever else is there."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from penstock.core.slices import RESOLVER
from penstock.demo.lab import Lab
from penstock.errors import PenstockError
from penstock.kernel import cgroup
from penstock.kernel.listeners import BUFFER, Listeners, open_listeners
from penstock.kernel.process import cgroup_of

pytestmark = pytest.mark.root

Body = Callable[[dict[str, Listeners]], None]
FOUR = [
    (socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1"),
    (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1"),
    (socket.AF_INET6, socket.SOCK_DGRAM, "::1"),
    (socket.AF_INET6, socket.SOCK_STREAM, "::1"),
]


def opened(tree: Path, preferred: Mapping[str, int], body: Body) -> None:
    """Run in the lab: nothing but the listeners is left open, and nothing when they are closed."""
    cgroup.make(tree, (), resolver=True)
    before, home = os.listdir("/proc/self/fd"), cgroup_of(os.getpid())
    found = open_listeners(tree / RESOLVER, preferred)
    try:
        new = sum(len(one.descriptors) for one in found.values())
        assert len(os.listdir("/proc/self/fd")) == len(before) + new
        body(found)
    finally:
        for one in found.values():
            one.close()
    assert os.listdir("/proc/self/fd") == before
    assert cgroup_of(os.getpid()) == home
    assert cgroup.own_processes(tree / RESOLVER) == []


@contextlib.contextmanager
def sockets(listeners: Listeners) -> Iterator[list[socket.socket]]:
    copies = [socket.socket(fileno=os.dup(descriptor)) for descriptor in listeners.descriptors]
    try:
        yield copies
    finally:
        for copy in copies:
            copy.close()


def test_each_has_four_at_one_port_of_its_own(lab: Lab) -> None:
    def body(found: dict[str, Listeners]) -> None:
        assert list(found) == ["a", "b"]
        assert found["a"].port != found["b"].port
        for one in found.values():
            assert one.ipv6
            with sockets(one) as held:
                assert [(s.family, s.type, s.getsockname()[0]) for s in held] == FOUR
                assert {s.getsockname()[1] for s in held} == {one.port}
                assert not any(s.get_inheritable() for s in held)
                assert all(s.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) for s in held[2:])
                assert all(s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for s in held[1::2])
                assert all(s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= BUFFER for s in held[::2])

    lab.host.call(opened, lab.cgroup, {"a": 0, "b": 0}, body)


def test_they_are_of_the_resolvers_cgroup_and_not_of_the_callers(lab: Lab) -> None:
    def body(found: dict[str, Listeners]) -> None:
        identity = (lab.cgroup / RESOLVER).stat().st_ino
        listed = subprocess.run(
            ["ss", "-HOnltu", "--cgroup"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.splitlines()
        ours = [line for line in listed if f":{found['a'].port} " in line]
        assert len(ours) == 4, listed
        for line in ours:
            said = re.search(r"cgroup:(\S+)", line)
            assert said, line
            # Where cgroup2 is not mounted alone, ss shows the id, which is the inode of the directory.
            assert said[1].endswith((f"/{RESOLVER}", f":{identity:x}")), line

    lab.host.call(opened, lab.cgroup, {"a": 0}, body)


def test_the_preferred_port_is_taken_if_all_four_are_free(lab: Lab) -> None:
    def body(found: dict[str, Listeners]) -> None:
        assert found["a"].port == 20053

    lab.host.call(opened, lab.cgroup, {"a": 20053}, body)
    lab.host.call(opened, lab.cgroup, {"a": 20053}, body)


@pytest.mark.parametrize("taken", range(4))
def test_another_port_is_taken_when_one_of_the_four_is_not(lab: Lab, taken: int) -> None:
    family, kind, address = FOUR[taken]

    def body(found: dict[str, Listeners]) -> None:
        assert found["a"].port not in (0, 20053)
        assert found["a"].ipv6

    def work() -> None:
        with socket.socket(family, kind) as other:
            other.bind((address, 20053))
            if kind == socket.SOCK_STREAM:
                other.listen()
            opened(lab.cgroup, {"a": 20053}, body)

    lab.host.call(work)


def test_a_port_with_connections_that_ended_is_taken_again(lab: Lab) -> None:
    def body(found: dict[str, Listeners]) -> None:
        assert found["a"].port == 20054
        with sockets(found["a"]) as held, socket.create_connection(("127.0.0.1", 20054)) as client:
            server, _ = held[1].accept()
            server.close()  # first, so the TIME_WAIT is ours
            assert client.recv(1) == b""

    for _ in range(2):
        lab.host.call(opened, lab.cgroup, {"a": 20054}, body)


def test_one_that_the_workload_listens_at_itself_is_no_obstacle_for_the_next(lab: Lab) -> None:
    def body(found: dict[str, Listeners]) -> None:
        assert found["b"].port == 20056
        assert found["a"].port != 20055

    def work() -> None:
        with socket.socket() as other:
            other.bind(("0.0.0.0", 20055))
            other.listen()
            opened(lab.cgroup, {"a": 20055, "b": 20056}, body)

    lab.host.call(work)


def test_without_an_ipv6_loopback_there_are_two(lab: Lab) -> None:
    def body(found: dict[str, Listeners]) -> None:
        assert not found["a"].ipv6
        with sockets(found["a"]) as held:
            assert [(s.family, s.type, s.getsockname()[0]) for s in held] == FOUR[:2]

    lab.host.run(["ip", "-6", "addr", "del", "::1/128", "dev", "lo"])
    try:
        lab.host.call(opened, lab.cgroup, {"a": 0}, body)
    finally:
        lab.host.run(["ip", "-6", "addr", "add", "::1/128", "dev", "lo"])


def test_without_loopback_it_is_said(lab: Lab) -> None:
    def work() -> None:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(PenstockError, match="cannot listen for look-ups") as caught:
            open_listeners(lab.cgroup / RESOLVER, {"a": 0})
        assert "ip link set lo up" in caught.value.hint
        assert os.listdir("/proc/self/fd") == before

    lab.host.call(cgroup.make, lab.cgroup, (), resolver=True)
    lab.host.run(["ip", "addr", "del", "127.0.0.1/8", "dev", "lo"])
    try:
        lab.host.call(work)
    finally:
        lab.host.run(["ip", "addr", "add", "127.0.0.1/8", "dev", "lo"])


def test_without_its_cgroup_nothing_is_opened(lab: Lab) -> None:
    def work() -> None:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(PenstockError, match="cannot be entered"):
            open_listeners(lab.cgroup / "penstock.slice/nowhere", {"a": 0})
        assert os.listdir("/proc/self/fd") == before

    lab.host.call(work)


def test_when_descriptors_run_out_what_was_opened_is_closed(lab: Lab) -> None:
    def work() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        before = os.listdir("/proc/self/fd")
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + 20, hard))
        with pytest.raises(PenstockError, match="cannot listen for look-ups"):
            open_listeners(lab.cgroup / RESOLVER, dict.fromkeys(map(str, range(20)), 0))
        assert os.listdir("/proc/self/fd") == before

    lab.host.call(cgroup.make, lab.cgroup, (), resolver=True)
    lab.host.call(work)
