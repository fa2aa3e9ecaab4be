"""Listeners: four sockets at one port, of the resolver's cgroup, whatever else is there."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
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


def opened(tree: Path, names: Sequence[str], body: Body) -> None:
    """Run in the lab: nothing but the listeners is left open, and nothing when they are closed."""
    cgroup.make(tree, (), resolver=True)
    before, home = os.listdir("/proc/self/fd"), cgroup_of(os.getpid())
    found = open_listeners(tree / RESOLVER, names)
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

    lab.host.call(opened, lab.cgroup, ["a", "b"], body)


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

    lab.host.call(opened, lab.cgroup, ["a"], body)


@contextlib.contextmanager
def chosen_from(first: int, last: int) -> Iterator[None]:
    """In the lab: the kernel has these ports and no others to choose from."""
    ports = Path("/proc/sys/net/ipv4/ip_local_port_range")
    before = ports.read_text()
    ports.write_text(f"{first} {last}")
    try:
        yield
    finally:
        ports.write_text(before)


@pytest.mark.parametrize("taken", range(4))
def test_another_port_is_taken_when_one_of_the_four_is_not_free(lab: Lab, taken: int) -> None:
    family, kind, address = FOUR[taken]

    def body(found: dict[str, Listeners]) -> None:
        assert found["a"].port == 20054
        assert found["a"].ipv6

    def work() -> None:
        with chosen_from(20053, 20054), socket.socket(family, kind) as other:
            other.bind((address, 20053))
            if kind == socket.SOCK_STREAM:
                other.listen()
            opened(lab.cgroup, ["a"], body)

    lab.host.call(work)


def test_when_no_port_is_free_it_is_said(lab: Lab) -> None:
    def work() -> None:
        before = os.listdir("/proc/self/fd")
        with chosen_from(20053, 20054), pytest.raises(PenstockError, match="Address already in use"):
            open_listeners(lab.cgroup / RESOLVER, ["a", "b", "c"])
        assert os.listdir("/proc/self/fd") == before

    lab.host.call(cgroup.make, lab.cgroup, (), resolver=True)
    lab.host.call(work)


def test_nobody_else_can_listen_where_they_do(lab: Lab) -> None:
    """Not even who says, before and after, that he would share."""

    def body(found: dict[str, Listeners]) -> None:
        for family, kind, address in FOUR:
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                with socket.socket(family, kind) as other:
                    other.setsockopt(socket.SOL_SOCKET, option, 1)
                    with pytest.raises(OSError, match="Address already in use"):
                        other.bind((address, found["a"].port))

    lab.host.call(opened, lab.cgroup, ["a"], body)


def test_without_an_ipv6_loopback_there_are_two(lab: Lab) -> None:
    def body(found: dict[str, Listeners]) -> None:
        assert not found["a"].ipv6
        with sockets(found["a"]) as held:
            assert [(s.family, s.type, s.getsockname()[0]) for s in held] == FOUR[:2]

    lab.host.run(["ip", "-6", "addr", "del", "::1/128", "dev", "lo"])
    try:
        lab.host.call(opened, lab.cgroup, ["a"], body)
    finally:
        lab.host.run(["ip", "-6", "addr", "add", "::1/128", "dev", "lo"])


def test_without_loopback_it_is_said(lab: Lab) -> None:
    def work() -> None:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(PenstockError, match="cannot listen for look-ups") as caught:
            open_listeners(lab.cgroup / RESOLVER, ["a"])
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
            open_listeners(lab.cgroup / "penstock.slice/nowhere", ["a"])
        assert os.listdir("/proc/self/fd") == before

    lab.host.call(work)


def test_when_descriptors_run_out_what_was_opened_is_closed(lab: Lab) -> None:
    def work() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        before = os.listdir("/proc/self/fd")
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + 20, hard))
        with pytest.raises(PenstockError, match="cannot listen for look-ups"):
            open_listeners(lab.cgroup / RESOLVER, [str(number) for number in range(20)])
        assert os.listdir("/proc/self/fd") == before

    lab.host.call(cgroup.make, lab.cgroup, (), resolver=True)
    lab.host.call(work)
