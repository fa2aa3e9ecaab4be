"""What is known to stay open, each shown to be so: when one of these fails, the threat model has to change."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from attacks import ops
from attacks.test_plain import ANY_PROTOCOL, IPPROTO_UDPLITE, header, join
from conftest import cannot_run
from governed import Actor, Governed, eventually, rules
from penstock.demo.lab import Lab

pytestmark = pytest.mark.root

FAMILIES = [pytest.param(4, id="v4"), pytest.param(6, id="v6")]
PORT = 24000


@pytest.fixture
def w(governed: Governed) -> Iterator[Actor]:
    governed.load(rules("w"))
    with governed.actor("w") as actor:
        yield actor


@pytest.fixture(scope="module")
def far(lab: Lab) -> Iterator[Actor]:
    with Actor(lab.remote["stranger"]) as actor:
        yield actor


def receiver(address: str, kind: int, protocol: int) -> int:
    made = socket.socket(ops.family_of(address), kind, protocol)
    made.bind((address, PORT if kind == socket.SOCK_DGRAM else 0))
    return made.detach()


def transmit(address: str, kind: int, protocol: int) -> None:
    with socket.socket(ops.family_of(address), kind, protocol) as s:
        s.sendto(b"inward", (address, PORT if kind == socket.SOCK_DGRAM else 0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("kind", "protocol", "arrives"),
    [
        pytest.param(socket.SOCK_DGRAM, socket.IPPROTO_UDP, False, id="udp"),
        pytest.param(socket.SOCK_DGRAM, IPPROTO_UDPLITE, True, id="udplite"),
        pytest.param(socket.SOCK_RAW, ANY_PROTOCOL, True, id="raw"),
    ],
)
def test_inward_the_kernel_finds_only_tcp_and_udp_sockets(
    kind: int, protocol: int, arrives: bool, family: int, lab: Lab, w: Actor, far: Actor
) -> None:
    """Of other protocols nobody knows in the input hook who will get the packet.  No answer leaves."""
    here = lab.host.address(family)
    try:
        mine = w(receiver, here, kind, protocol)
    except OSError as error:
        if error.errno not in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            raise
        cannot_run(f"this kernel has no such protocol: {error}")
    far(transmit, here, kind, protocol)
    data = w(ops.receive, mine, 0.1)
    assert (isinstance(data, bytes) and data.endswith(b"inward")) == arrives
    w(ops.close, mine)


def sniffer() -> int:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    made.bind(("eth0", 3))
    return made.detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_joining_a_group_tells_the_link(family: int, w: Actor, far: Actor) -> None:
    """IGMP and MLD reports are the kernel's own packets; the group is the workload's choice."""
    ear = far(sniffer)
    kept = w(join, family)
    group = {4: socket.inet_aton("239.1.2.3"), 6: socket.inet_pton(10, "ff05::beef")}[family]
    assert far(hear, ear, group)
    w(ops.close, kept)
    far(ops.close, ear)


def hear(ear: int, wanted: bytes) -> bool:
    end = ops.now() + 3
    while ops.now() < end:
        data = ops.receive(ear, 0.5)
        if isinstance(data, bytes) and wanted in data:
            return True
    return False


@pytest.mark.parametrize("family", FAMILIES)
def test_packet_sockets_pass(family: int, lab: Lab, w: Actor, far: Actor) -> None:
    """AF_PACKET is below the firewall; it needs CAP_NET_RAW, which a workload must not have."""
    ear = far(sniffer)
    w(frame, lab.host.address(family), lab.remote["stranger"].address(family))
    assert far(hear, ear, b"below")
    far(ops.close, ear)


def frame(here: str, there: str) -> None:
    body = struct.pack("!HHHH", 5000, 80, 13, 0) + b"below"
    if ":" in here:
        kind, head = 0x86DD, struct.pack("!IHBB", 6 << 28, len(body), 17, 64)
        packet = head + socket.inet_pton(10, here) + socket.inet_pton(10, there) + body
    else:
        kind, packet = 0x0800, header(here, there, 17, body)
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as s:
        s.sendto(packet, ("eth0", kind, 0, 0, b"\xff" * 6))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_port_shared_on_purpose_can_be_steered(
    family: int, governed: Governed, w: Actor
) -> None:
    """Sockets of one user may share a UDP port and choose by a program who gets what: the lookup of the
    firewall does not run it.  So workloads want users of their own."""
    address = {4: "127.0.0.1", 6: "::1"}[family]
    with governed.actor() as by:
        theirs = by(ops.udp, address, PORT + 1, share=True)  # index 0
        mine = w(ops.udp, address, PORT + 1, share=True)  # index 1
        w(steer, mine, 0)
        for _ in range(20):
            sender = w(ops.udp, address)
            w(ops.sendto, sender, b"leak", address, PORT + 1)
            w(ops.close, sender)
        assert by(ops.pending, theirs)
        other = by(ops.udp, address, PORT + 2)
        sender = w(ops.udp, address)
        w(ops.sendto, sender, b"leak", address, PORT + 2)
        assert by(ops.pending, other) == [], "a port that is not shared stays closed"
        by(ops.close, theirs, other)
        w(ops.close, mine, sender)


def steer(descriptor: int, index: int) -> None:
    """SO_ATTACH_REUSEPORT_CBPF with the program "return index"."""
    code = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, index), 8)
    with ops.borrowed(descriptor) as sock:
        sock.setsockopt(socket.SOL_SOCKET, 51, struct.pack("=HxxxxxxQ", 1, ctypes.addressof(code)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_without_a_rule_connects_from_the_port_it_had_a_moment_ago_and_says_nothing(
    family: int, lab: Lab, governed: Governed, w: Actor, far: Actor
) -> None:
    """His SYN meets a socket in TIME_WAIT, which has no cgroup; the new connection has one, and no data passes."""
    here, source = lab.host.address(family), lab.remote["stranger"].address(family)
    governed.load(rules("w", ingress=f"[{{from: '{source}', ports: [{PORT}]}}]"))
    listener = w(ops.listen, "::" if family == 6 else "0.0.0.0", PORT)
    made = far(ops.connect, here, PORT, source=(source, PORT))
    w(ops.close, w(ops.accept, listener))
    assert far(ops.receive, made, 1) == b""
    far(ops.close, made)
    governed.load(rules("w"))
    assert far(ops.connect, here, PORT, source=(source, PORT + 1)) == "ECONNREFUSED"
    again = far(ops.connect, here, PORT, source=(source, PORT))
    accepted = w(ops.accept, listener)
    assert isinstance(again, int)
    far(ops.send, again, b"inward")
    assert w(ops.receive, accepted, 0.3) == "timeout"
    w(ops.send, accepted, b"outward")
    assert far(ops.receive, again, 0.3) != b"outward"
    far(ops.close, again)
    w(ops.close, accepted, listener)


@pytest.fixture
def pair(governed: Governed) -> Iterator[dict[str, Actor]]:
    """A model server, its gateway, another workload, and a bystander; the kernel soon forgets what was reset."""
    made = {name: governed.actor(name) for name in ("model", "gw", "third")} | {"by": governed.actor()}
    made["by"](ops.sysctl, net__netfilter__nf_conntrack_tcp_timeout_close="3")
    yield made
    made["by"](ops.sysctl, net__netfilter__nf_conntrack_tcp_timeout_close="10")
    for actor in made.values():
        actor.close()


def caller(pair: dict[str, Actor], address: str, listener: int) -> Callable[[str, int], bool]:
    """Who connects from a port, whether he gets in; the model server closes first."""

    def call(who: str, port: int) -> bool:
        made = pair[who](ops.connect, address, PORT, source=(address, port))
        if not isinstance(made, int):
            return False
        pair["model"](ops.close, pair["model"](ops.accept, listener))
        assert pair[who](ops.receive, made) == b""
        pair[who](ops.close, made)
        return True

    return call


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"], ids=["v4", "v6"])
def test_a_port_from_which_another_workload_was_refused_is_spoiled_until_it_is_forgotten(
    address: str, pair: dict[str, Actor], governed: Governed
) -> None:
    """The kernel takes the new SYN for one of the connection that was reset, and that has the other's label."""
    governed.load(
        rules("model", ingress=f"[{{from: 'workload:gw', ports: [{PORT}]}}]"),
        rules("gw", egress=f"[{{to: 'workload:model', ports: [{PORT}]}}]"),
        rules("third"),
    )
    listener = pair["model"](ops.listen, address, PORT)
    call = caller(pair, address, listener)
    assert not call("by", PORT + 1)
    assert call("gw", PORT + 1), "who is no workload spoils nothing"
    assert not call("third", PORT + 2)
    assert not call("gw", PORT + 2)
    eventually(lambda: call("gw", PORT + 2), timeout=10)
    pair["model"](ops.close, listener)
