"""Who somebody is: the cgroup in which a socket was made, whatever the process does before or after."""

from __future__ import annotations

import array
import ctypes
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from attacks import ops
from attacks.conftest import Witness
from governed import SLICE, Actor, Governed, rules, slice_of
from penstock.demo.lab import Lab

pytestmark = pytest.mark.root

FAMILIES = [pytest.param(4, id="v4"), pytest.param(6, id="v6")]
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


@pytest.fixture(autouse=True)
def policy(governed: Governed, stranger: Witness) -> None:
    governed.load(rules("w"))
    stranger.packets()


@pytest.fixture
def target(family: int, lab: Lab) -> str:
    return lab.remote["stranger"].address(family)


def both_ways(address: str) -> list[str]:
    """A TCP connect and a datagram."""
    said = [ops.connect(address, 80, timeout=0.3)]
    if isinstance(said[0], int):
        ops.close(said[0])
    sender = ops.udp("::" if ":" in address else "0.0.0.0")
    said.append(ops.sendto(sender, b"secret", address, 80))
    ops.close(sender)
    return [str(s) for s in said]


def in_child(address: str, prepare: Callable[[], None] | None = None) -> str:
    """`both_ways` in a child of a child in a session of its own, as a daemon is."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            try:
                if prepare:
                    prepare()
                os.write(writer, str(both_ways(address)).encode())
            except OSError as error:
                os.write(writer, ops.name_of(error).encode())
        os._exit(0)
    os.close(writer)
    os.wait()
    with open(reader) as pipe:
        return pipe.read()


def new_namespaces() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")


@pytest.mark.parametrize("family", FAMILIES)
def test_daemons_stay_inside(target: str, governed: Governed, stranger: Witness) -> None:
    with governed.actor() as by, governed.actor("w") as w:
        by(in_child, target)
        assert stranger.packets()
        stranger.packets()
        said = w(in_child, target)
    assert "ECONNREFUSED" in said
    assert stranger.packets() == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_namespace_of_its_own_leads_nowhere(
    target: str, governed: Governed, stranger: Witness
) -> None:
    with governed.actor("w", user="nobody") as w:
        said = w(in_child, target, new_namespaces)
    nowhere = str(["ENETUNREACH"] * 2), str(["EADDRNOTAVAIL"] * 2)
    assert said in (*nowhere, "EPERM")  # the latter: no user namespaces here
    assert stranger.packets() == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("cgroup", "counter"),
    [
        (f"{slice_of('w')}/below/deep", "denied_out_w"),
        (SLICE, "unbound_out"),
        (f"{SLICE}/penstock-nobody.slice", "unbound_out"),
        (f"{SLICE}/penstock-nobody.slice/run-1.scope", "unbound_out"),
    ],
)
def test_every_cgroup_in_the_slice_is_governed(
    cgroup: str, counter: str, target: str, lab: Lab, governed: Governed, stranger: Witness
) -> None:
    before = governed.counters()[counter]
    with Actor(lab.host, cgroup) as actor:
        said = actor(both_ways, target)
    assert said[0] == "ECONNREFUSED"
    assert stranger.packets() == []
    assert governed.counters()[counter] >= before + 2


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unbound_listener_is_closed(family: int, lab: Lab, governed: Governed) -> None:
    here = lab.host.address(family)
    with Actor(lab.host, SLICE) as inside, Actor(lab.remote["stranger"]) as far, governed.actor() as by:
        listener, control = inside(ops.listen, here, 22001), by(ops.listen, here, 22002)
        assert isinstance(far(ops.connect, here, 22002), int)
        assert far(ops.connect, here, 22001) == "ECONNREFUSED"
        assert by(ops.connect, here, 22001) == "ECONNREFUSED"
        assert inside(ops.accept, listener, 0.05) == "timeout"
        by(ops.close, control)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cgroup_made_again_is_denied(target: str, lab: Lab, governed: Governed, stranger: Witness) -> None:
    """The kernel holds the old one's id; the slice above still matches."""
    peer = lab.remote["stranger"]
    open_rules = rules("gone", egress=f"[{{to: [{peer.v4}, '{peer.v6}'], ports: [any]}}]")
    governed.load(open_rules)
    with governed.actor("gone") as w:
        assert w(both_ways, target) != ["ECONNREFUSED", "EPERM"]
        assert stranger.packets()
    path = lab.cgroup / slice_of("gone")
    governed.agent(remade, path)
    stranger.packets()
    before = governed.counters()["unbound_out"]
    with governed.actor("gone") as w:
        assert w(both_ways, target)[0] == "ECONNREFUSED"
        assert stranger.packets() == []
        assert governed.counters()["unbound_out"] > before
        governed.load(open_rules)
        assert w(both_ways, target)[0].isdigit(), "bound again"


def remade(path: Path) -> None:
    deadline = time.monotonic() + 5
    while True:
        try:
            path.rmdir()
            break
        except OSError:  # busy: a killed process leaves its cgroup a moment after it was reaped
            assert time.monotonic() < deadline
            time.sleep(0.002)
    path.mkdir()


def pass_out(path: str, descriptor: int) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        s.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))])


def waiting(path: str) -> int:
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    return server.detach()


def take_in(descriptor: int) -> int:
    with ops.borrowed(descriptor) as server:
        server.settimeout(2)
        with server.accept()[0] as s:
            _, ancillary, _, _ = s.recvmsg(1, socket.CMSG_SPACE(4))
    return int(array.array("i", ancillary[0][2])[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("giver", ["by", "w"])
def test_a_passed_socket_keeps_the_givers_identity(
    giver: str, family: int, target: str, lab: Lab, governed: Governed, stranger: Witness
) -> None:
    """Left open by nature: a bystander who hands a socket to a workload lends it his freedom."""
    path = str(lab.dir / f"pass-{giver}-{family}")
    with governed.actor("w") as w, governed.actor() as by:
        source, sink = (by, w) if giver == "by" else (w, by)
        server = sink(waiting, path)
        source(pass_out, path, source(ops.udp, "::" if family == 6 else "0.0.0.0"))
        taken = sink(take_in, server)
        sink(ops.sendto, taken, b"secret", target, 80)
    assert bool(stranger.packets()) == (giver == "by")


def move(path: str) -> None:
    Path(path, "cgroup.procs").write_text("0")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_socket_made_before_enrolment_stays_outside(
    target: str, family: int, lab: Lab, governed: Governed, stranger: Witness
) -> None:
    """So processes are born in their cgroup, and adoption destroys old sockets."""
    with governed.actor() as by:
        old = by(ops.udp, "::" if family == 6 else "0.0.0.0")
        by(move, str(lab.cgroup / slice_of("w")))
        by(ops.sendto, old, b"old", target, 80)
        assert stranger.packets()
        stranger.packets()
        assert by(both_ways, target)[0] == "ECONNREFUSED"
        assert stranger.packets() == []

