"""Which ports workloads have open, as the kernel says it, from the daemon's place and with its rights."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from governed import Actor, slice_of
from penstock.core.events import Listener
from penstock.demo.lab import Lab
from penstock.kernel import open_ports

pytestmark = pytest.mark.root

HOME = slice_of("w")
PLACE = "system.slice/w.service"
CAP_NET_ADMIN = 12
_held: list[socket.socket] = []


def serve(address: str, kind: int = socket.SOCK_STREAM, v6only: bool = True, device: str = "") -> int:
    """Open a port; return it."""
    one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    _held.append(one)
    if one.family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    if device:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
    one.bind((address, 0))
    if kind == socket.SOCK_STREAM:
        one.listen()
    return int(one.getsockname()[1])


def bind(port: int, connect: bool = False) -> None:
    """A UDP socket on that port."""
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    _held.append(one)
    one.bind(("127.0.0.1", port))
    if connect:
        one.connect(("127.0.0.1", 9))


def call(port: int) -> None:
    _held.append(socket.create_connection(("127.0.0.1", port)))


def rename() -> None:
    """Another name than its neighbour has."""
    with open(f"/proc/{os.getpid()}/comm", "w") as file:
        file.write("other")


def comm() -> str:
    return open("/proc/self/comm").read().strip()


def found(lab: Lab, *homes: str) -> Sequence[Listener] | None:
    """From the daemon's place, without any right but CAP_NET_ADMIN."""

    def look() -> Sequence[Listener] | None:
        header, sets = struct.pack("=Ii", 0x20080522, 0), [1 << CAP_NET_ADMIN] * 2 + [0] * 4
        assert ctypes.CDLL(None).capset(header, struct.pack("=6I", *sets)) == 0
        return open_ports.listeners(lab.cgroup, {"w": homes or (HOME,)})

    return lab.host.call(look)


def told(lab: Lab, *homes: str) -> list[tuple[str, str, int]]:
    some = found(lab, *homes)
    assert some is not None
    return sorted((one.protocol, str(one.address), one.port) for one in some)


@pytest.mark.parametrize("address", ["127.0.0.1", "192.0.2.10", "0.0.0.0", "::1", "2001:db8:2::10", "::"])
def test_tcp_that_listens_and_udp_that_is_bound(lab: Lab, address: str) -> None:
    with Actor(lab.host, f"{HOME}/a.service", "nobody") as one:
        tcp = one(serve, address)
        udp = one(serve, address, socket.SOCK_DGRAM)
        assert told(lab) == [("tcp", address, tcp), ("udp", address, udp)]
        some = found(lab)
        assert some is not None
        assert {each.comm for each in some} == {one(comm)}
        assert {each.v6only for each in some} == {True if ":" in address else None}
        assert {each.workload for each in some} == {"w"}


def test_a_connection_is_no_listener(lab: Lab) -> None:
    with Actor(lab.host, HOME) as one:
        port = one(serve, "127.0.0.1")
        one(call, port)
        one(bind, 5000, True)
        assert told(lab) == [("tcp", "127.0.0.1", port)]


def test_what_takes_ipv4_as_well_and_what_is_bound_to_an_interface(lab: Lab) -> None:
    with Actor(lab.host, HOME) as one:
        both = one(serve, "::", socket.SOCK_STREAM, False)
        bound = one(serve, "0.0.0.0", socket.SOCK_STREAM, False, "lo")
        some = {each.port: each for each in found(lab) or ()}
        assert some[both].v6only is False
        assert (some[bound].interface, some[both].interface) == ("lo", "")


def test_udp_on_a_port_of_the_kernels_choice_is_a_client(lab: Lab) -> None:
    with Actor(lab.host, HOME) as one:
        asks = one(serve, "0.0.0.0", socket.SOCK_DGRAM)
        one(bind, 5353)
        tcp = one(serve, "0.0.0.0")
        assert {each.port: each.client for each in found(lab) or ()} == {asks: True, 5353: False, tcp: False}


def test_cgroups_below_and_units_in_place_count_and_nobody_else(lab: Lab) -> None:
    with ExitStack() as stack:
        places = (f"{HOME}/a.service/worker/deeper", PLACE, slice_of("v"), None)
        actors = [stack.enter_context(Actor(lab.host, place)) for place in places]
        ports = [actor(serve, "127.0.0.1") for actor in actors]
        assert told(lab) == [("tcp", "127.0.0.1", ports[0])]
        assert [port for _, _, port in told(lab, HOME, PLACE)] == sorted(ports[:2])


def test_it_is_named_when_there_is_one_name(lab: Lab) -> None:
    with Actor(lab.host, HOME) as one, Actor(lab.host, HOME) as two:
        one(serve, "127.0.0.1")
        assert [each.comm for each in found(lab) or ()] == [one(comm)]
        two(rename)
        assert [each.comm for each in found(lab) or ()] == [None]


def test_a_port_that_several_listen_on_is_told_once(lab: Lab) -> None:
    with Actor(lab.host, HOME) as one:
        one(share)
        assert len(told(lab)) == 1


def share() -> None:
    for _ in range(3):
        one = socket.socket()
        _held.append(one)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(("127.0.0.1", 4000))
        one.listen()


def test_not_more_are_looked_at_than_is_said(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with Actor(lab.host, HOME) as one:
        for _ in range(4):
            one(serve, "127.0.0.1")
        monkeypatch.setattr(open_ports, "MAX_LISTENERS", 3)
        assert len(told(lab)) == 3
        monkeypatch.setattr(open_ports, "MAX_SOCKETS", 2)
        assert len(told(lab)) == 2


def test_where_the_kernel_says_no_cgroup_nothing_is_known(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from penstock.kernel import diagnosis

    with Actor(lab.host, HOME) as one:
        one(serve, "127.0.0.1")
        monkeypatch.setattr(diagnosis, "CGROUP_ID", 4000)
        assert found(lab) is None
