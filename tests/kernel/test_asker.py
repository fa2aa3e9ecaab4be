"""Who asked: found by a socket that is still there, and nobody named when it may have been another."""

from __future__ import annotations

import ctypes
import encodings.idna
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from governed import Actor, slice_of
from penstock.core.blocks import Process
from penstock.demo.lab import Lab
from penstock.kernel.asker import Asker

pytestmark = pytest.mark.root

assert encodings.idna  # loaded now: actors of other users cannot read our Python
CAP_NET_ADMIN = 12

HOME = slice_of("w")
_held: list[socket.socket] = []


def ask(family: int, kind: int, address: str, to: str = "", bind: str = "") -> tuple[str, int]:
    """A socket that asks; where its packets come from."""
    one = socket.socket(family, kind)
    _held.append(one)
    if bind:
        one.bind((bind, 0))
    if to:
        one.connect((to, 53))
    return address, one.getsockname()[1]


def tcp(address: str) -> tuple[str, int]:
    """A connection to oneself: the client's end."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.create_server((address, 0), family=family)
    client = socket.create_connection(server.getsockname()[:2])
    _held.extend((server, client, server.accept()[0]))
    host, port = client.getsockname()[:2]
    return host, port


def whoami() -> Process:
    """As /proc has it."""
    return Process(os.getpid(), open("/proc/self/comm").read().strip())


def close() -> None:
    while _held:
        _held.pop().close()


def found(lab: Lab, protocol: str, client: tuple[str, int], *places: str) -> Process | None:
    """What is found from the daemon's place, without any right but CAP_NET_ADMIN."""


    def look() -> Process | None:
        keep_only(CAP_NET_ADMIN)
        return Asker(lab.cgroup).find(places or (HOME,), protocol, ip_address(client[0]), client[1])

    return lab.host.call(look)


def keep_only(capability: int) -> None:
    """The other capabilities(7) of this process go (capset(2))."""
    header = struct.pack("=Ii", 0x20080522, 0)
    sets = struct.pack("=6I", 1 << capability, 1 << capability, 0, 0, 0, 0)
    assert ctypes.CDLL(None).capset(header, sets) == 0


@contextmanager
def actor(lab: Lab, cgroup: str | None = f"{HOME}/a.service", user: str = "nobody") -> Iterator[Actor]:
    with Actor(lab.host, cgroup, user) as made:
        yield made


UDP = {
    "connected": (socket.AF_INET, "192.0.2.10", "203.0.113.66", ""),
    "connected, 6": (socket.AF_INET6, "2001:db8:2::10", "2001:db8:66::66", ""),
    "to the stub": (socket.AF_INET, "127.0.0.1", "127.0.0.53", ""),
    "not connected": (socket.AF_INET, "192.0.2.10", "", "0.0.0.0"),
    "not connected, 6": (socket.AF_INET6, "2001:db8:2::10", "", "::"),
    "of both families": (socket.AF_INET6, "192.0.2.10", "", "::"),
    "mapped": (socket.AF_INET6, "192.0.2.10", "::ffff:203.0.113.66", ""),
}


@pytest.mark.parametrize("name", UDP)
def test_a_process_that_asks_over_udp(lab: Lab, name: str) -> None:
    family, address, to, bind = UDP[name]
    with actor(lab) as one:
        client = one(ask, family, socket.SOCK_DGRAM, address, to, bind)
        assert found(lab, "udp", client) == one(whoami)
        assert found(lab, "tcp", client) is None
        one(close)
        assert found(lab, "udp", client) is None


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "192.0.2.10"])
def test_a_process_that_asks_over_tcp(lab: Lab, address: str) -> None:
    with actor(lab) as one:
        client = one(tcp, address)
        assert found(lab, "tcp", client) == one(whoami)
        assert found(lab, "udp", client) is None


def test_another_with_the_same_port_is_not_meant(lab: Lab) -> None:
    """An address of his own, and the port by chance."""
    with actor(lab) as one, actor(lab, f"{HOME}/b.service") as other:
        _, port = one(ask, socket.AF_INET, socket.SOCK_DGRAM, "", "", "127.0.0.1")
        other(bind_at, "127.0.0.2", port)
        assert found(lab, "udp", ("127.0.0.1", port)) == one(whoami)
        assert found(lab, "udp", ("127.0.0.2", port)) == other(whoami)


def bind_at(address: str, port: int) -> None:
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    _held.append(one)
    one.bind((address, port))


def test_of_two_processes_of_one_user_in_one_cgroup_none_is_named(lab: Lab) -> None:
    with actor(lab) as one, actor(lab), actor(lab, user="daemon") as third:
        client = one(ask, socket.AF_INET, socket.SOCK_DGRAM, "192.0.2.10", "203.0.113.66")
        assert found(lab, "udp", client) is None
        client = third(ask, socket.AF_INET, socket.SOCK_DGRAM, "192.0.2.10", "203.0.113.66")
        assert found(lab, "udp", client) == third(whoami)


def test_those_of_other_cgroups_do_not_count(lab: Lab) -> None:
    with actor(lab) as one, actor(lab, f"{HOME}/b.service"), actor(lab, slice_of("v")), actor(lab, None):
        client = one(ask, socket.AF_INET, socket.SOCK_DGRAM, "192.0.2.10", "203.0.113.66")
        assert found(lab, "udp", client) == one(whoami)
        assert found(lab, "udp", client, slice_of("v")) is None


def test_one_that_forbids_to_be_looked_into_is_found_too(lab: Lab) -> None:
    with actor(lab) as one:
        one(forbid)
        client = one(ask, socket.AF_INET, socket.SOCK_DGRAM, "192.0.2.10", "203.0.113.66")
        assert found(lab, "udp", client) == one(whoami)


def forbid() -> None:
    assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0


def test_a_flood_costs_a_part_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.02, 10.1, 10.19, 10.21, 10.21])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    asked: list[int] = []
    one = Asker(None)  # type: ignore[arg-type]
    monkeypatch.setattr(Asker, "_find", lambda self, places, protocol, address, port: asked.append(port))
    for port in (1, 2, 3, 4):
        one.find((), "udp", ip_address("127.0.0.1"), port)
    assert asked == [1, 4]
