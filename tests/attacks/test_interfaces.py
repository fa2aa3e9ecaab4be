"""Networks by `interface:`: the same addresses at both ends, over two wires; only one of them is the network."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address

import pytest

from attacks import ops
from attacks.conftest import until_soon
from governed import Actor, Governed, eventually, rules
from penstock.core.packets import parse_nflog
from penstock.demo.host import Host
from penstock.demo.lab import Lab
from penstock.kernel.nflog import NflogReader

pytestmark = pytest.mark.root

_ports = itertools.count(30000)
_served = itertools.count(8000)
OPENED = "8000-8999, 8000-8999/udp"
LAN = "version: 1\nnetworks: {lan: {interface: lan0}}\n"
FROM, TO = f"[{{from: lan, ports: [{OPENED}]}}]", f"[{{to: lan, ports: [{OPENED}]}}]"
FAMILIES = [pytest.param(4, id="v4"), pytest.param(6, id="v6")]
KINDS = ["tcp", "udp"]


@dataclass(frozen=True)
class Wire:
    """A link from the governed host to the stranger, by its names and the host's addresses on it.

    What the host sends from these addresses leaves over it; what the stranger sends to them too.
    """

    interface: str
    addresses: tuple[str, str]

    def own(self, family: int) -> str:
        return self.addresses[family == 6]


OTHER = Wire("eth0", ("192.0.2.10", "2001:db8:2::10"))
MINE = Wire("lan0", ("192.0.2.20", "2001:db8:2::20"))
LATE = Wire("late0", ("192.0.2.30", "2001:db8:2::30"))
LINK_LOCAL = {4: "169.254.7.7", 6: "fd00:ec2::254"}
"""Closed unless named literally; IPv6's own link-local addresses would need their interface to be named."""


def connect(lab: Lab, wire: Wire, table: int) -> None:
    """Lay it."""
    name, there = wire.interface, lab.remote["stranger"]
    lab.host.run(["ip", "link", "add", name, "type", "veth", "peer", "name", name, "netns", "stranger"])
    lab.host.run(["ip", "link", "set", name, "up"])
    there.run(["ip", "link", "set", name, "up"])
    hardware = {host: hardware_of(host, name) for host in (lab.host, there)}
    for address in wire.addresses:
        whole, nodad = (128, ["nodad"]) if ":" in address else (32, [])
        lab.host.run(["ip", "addr", "add", f"{address}/{whole}", "dev", name, *nodad])
        family = "-6" if ":" in address else "-4"
        lab.host.run(["ip", family, "rule", "add", "from", address, "table", str(table)])
        lab.host.run(["ip", family, "route", "add", "default", "dev", name, "table", str(table)])
        there.run(["ip", family, "route", "add", address, "dev", name])
        meet(there, address, hardware[lab.host], name)
    for address in (*there.addresses, *LINK_LOCAL.values()):
        meet(lab.host, address, hardware[there], name)


def meet(host: Host, address: str, hardware: str, interface: str) -> None:
    """Tell a host who has an address: nobody else would answer for it there."""
    host.run(["ip", "neigh", "replace", address, "lladdr", hardware, "nud", "permanent", "dev", interface])


def hardware_of(host: Host, interface: str) -> str:
    links = host.run(["ip", "-o", "link", "show", interface]).stdout
    return links.partition("link/ether ")[2].split()[0]


@pytest.fixture(scope="module")
def actors(governed: Governed) -> Iterator[dict[str, Actor]]:
    lab = governed.lab
    connect(lab, MINE, 100)
    for address in LINK_LOCAL.values():
        whole = "/128" if ":" in address else "/32"
        lab.remote["stranger"].run(["ip", "addr", "add", address + whole, "dev", "lo"])
    governed.load(rules("w"))
    made = {"w": governed.actor("w"), "by": governed.actor(), "far": Actor(lab.remote["stranger"])}
    yield made
    for actor in made.values():
        actor.close()


@pytest.fixture(autouse=True)
def policy(governed: Governed, actors: dict[str, Actor]) -> None:
    load(governed)


def load(
    governed: Governed, egress: str = TO, ingress: str = FROM, mode: str = "enforce", host: str = LAN
) -> None:
    governed.load(rules("w", egress, ingress, mode), host=host)


def far(governed: Governed, family: int) -> str:
    return governed.lab.remote["stranger"].address(family)


def calls(
    client: Actor, server: Actor, source: str, address: str, kind: str, port: int | None = None
) -> bool:
    """Whether a call from `source` gets there, and its answer back; nothing gets there by halves."""
    port = port or next(_served)
    everywhere = "::" if ":" in address else "0.0.0.0"
    if kind == "udp":
        here, there = client(ops.udp, source, next(_ports)), server(ops.udp, address, port)
        client(ops.sendto, here, b"ping", address, port)
        time.sleep(0.02)
        heard = b"ping" in server(ops.pending, there)
        if heard:
            server(ops.sendto, there, b"pong", source, client(ops.port_of, here))
            assert client(ops.receive, here) == b"pong"
        client(ops.close, here)
        server(ops.close, there)
        return heard
    listener = server(ops.listen, everywhere, port)
    made = client(ops.connect, address, port, source=(source, next(_ports)), timeout=1)
    accepted = server(ops.accept, listener, 0.05)
    assert isinstance(made, int) == isinstance(accepted, int), (made, accepted)
    if isinstance(made, int):
        client(ops.send, made, b"ping")
        assert server(ops.receive, accepted) == b"ping"
        server(ops.send, accepted, b"pong")
        assert client(ops.receive, made) == b"pong"
        client(ops.close, made)
        server(ops.close, accepted)
    server(ops.close, listener)
    return isinstance(made, int)


def arrives(governed: Governed, actors: dict[str, Actor], wire: Wire, family: int, kind: str, **more: int) -> bool:
    """Whether the stranger gets to the workload over that wire."""
    return calls(actors["far"], actors["w"], far(governed, family), wire.own(family), kind, **more)


def leaves(governed: Governed, actors: dict[str, Actor], wire: Wire, family: int, kind: str, **more: int) -> bool:
    """Whether the workload gets to the stranger over that wire."""
    return calls(actors["w"], actors["far"], wire.own(family), far(governed, family), kind, **more)


# --- which way it comes and goes ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_who_comes_over_it_comes_in(family: int, kind: str, governed: Governed, actors: dict[str, Actor]) -> None:
    assert arrives(governed, actors, MINE, family, kind)
    assert not arrives(governed, actors, OTHER, family, kind), "the same source, over another interface"
    assert not arrives(governed, actors, MINE, family, kind, port=9000)
    load(governed, ingress="[]")
    assert not arrives(governed, actors, MINE, family, kind)
    load(governed, ingress=f"[{{from: '{far(governed, family)}', ports: [{OPENED}]}}]")
    assert arrives(governed, actors, OTHER, family, kind), "control"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_leaves_over_it_leaves(family: int, kind: str, governed: Governed, actors: dict[str, Actor]) -> None:
    assert leaves(governed, actors, MINE, family, kind)
    assert not leaves(governed, actors, OTHER, family, kind), "the same destination, over another interface"
    assert not leaves(governed, actors, MINE, family, kind, port=9000)
    load(governed, egress="[]")
    assert not leaves(governed, actors, MINE, family, kind)
    load(governed, egress=f"[{{to: '{far(governed, family)}', ports: [{OPENED}]}}]")
    assert leaves(governed, actors, OTHER, family, kind), "control"


def crossed(watch: Actor, descriptor: int) -> set[tuple[str, int, str]]:
    """(interface, protocol number, destination) of what came to a host since it was last asked."""
    found = set()
    for name, packet in watch(sniffed, descriptor):
        six = packet[0] >> 4 == 6
        found.add((name, packet[6 if six else 9], str(ip_address(packet[24:40] if six else packet[16:20]))))
    return found


def sniff() -> int:
    return socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)).detach()


def sniffed(descriptor: int) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    with ops.borrowed(descriptor) as sock:
        sock.setblocking(False)
        while True:
            try:
                packet, (name, kind, direction, *_) = sock.recvfrom(100)
            except BlockingIOError:
                return found
            if direction != 4 and kind in (0x0800, 0x86DD):  # what it sent itself
                found.append((name, packet))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_may_not_leave_is_never_on_the_wire(
    family: int, kind: str, governed: Governed, actors: dict[str, Actor]
) -> None:
    """Bound to the interface or not, whatever the destination: metadata and link-local addresses stay closed."""
    w, watch = actors["w"], actors["far"]
    number, tap = {"tcp": 6, "udp": 17}[kind], watch(sniff)

    def try_to(address: str, wire: Wire) -> bool:
        """Whether a packet to `address` came over the wire."""
        w(attempt, kind, wire.own(family), address, next(_served), wire.interface)
        actors["by"](attempt, "udp", wire.own(family), far(governed, family), 9, wire.interface)
        seen: set[tuple[str, int, str]] = set()

        def barrier() -> bool:
            seen.update(crossed(watch, tap))
            return (wire.interface, 17, far(governed, family)) in seen

        eventually(barrier)
        return (wire.interface, number, address) in seen

    anywhere = {4: "198.51.100.99", 6: "2001:db8:51::99"}[family]
    meet(governed.lab.host, anywhere, hardware_of(governed.lab.remote["stranger"], "lan0"), "lan0")
    assert try_to(anywhere, MINE), "any address"
    assert not try_to(LINK_LOCAL[family], MINE)
    load(governed, egress=f"[{{to: [lan, '{LINK_LOCAL[family]}'], ports: [{OPENED}]}}]")
    assert try_to(LINK_LOCAL[family], MINE), "control"
    watch(ops.close, tap)


def attempt(kind: str, source: str, address: str, port: int, interface: str) -> None:
    """Send something to there over that interface, whatever the routes say."""
    sock = socket.socket(ops.family_of(address), socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        sock.settimeout(0.05)
        try:
            sock.bind((source, 0))
            sock.connect((address, port))
            sock.send(b"datagram")
        except OSError:
            pass


@pytest.mark.parametrize("family", FAMILIES)
def test_own_addresses_are_in_no_such_network(family: int, governed: Governed, actors: dict[str, Actor]) -> None:
    """A bystander who calls the address on the interface comes over loopback, and so does the workload."""
    own = MINE.own(family)
    for kind in KINDS:
        assert not calls(actors["by"], actors["w"], own, own, kind)
        assert not calls(actors["w"], actors["by"], own, own, kind)
    load(governed, ingress=f"[{{from: '{own}', ports: [{OPENED}]}}]")
    assert calls(actors["by"], actors["w"], own, own, "tcp"), "control"


@pytest.mark.parametrize("family", FAMILIES)
def test_pings(family: int, governed: Governed, actors: dict[str, Actor]) -> None:
    def pings(wire: Wire) -> bool:
        answered: bool = actors["w"](ping, wire.own(family), far(governed, family))
        return answered

    assert not pings(MINE)
    load(governed, egress="[{to: lan, ports: [icmp]}]")
    assert pings(MINE)
    assert not pings(OTHER)


def ping(source: str, address: str) -> bool:
    """Whether an echo request is answered."""
    six = ":" in address
    protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    with socket.socket(ops.family_of(address), socket.SOCK_RAW, protocol) as sock:
        sock.settimeout(0.3)
        sock.bind((source, 0))
        body = struct.pack("!HH", os.getpid() & 0xFFFF, 1)
        kind = 128 if six else 8
        check = (0xFFFF - (kind << 8) - sum(struct.unpack("!HH", body))) % 0xFFFF  # in IPv6 it is the kernel's
        try:
            sock.sendto(struct.pack("!BBH", kind, 0, check) + body, (address, 0))
            while True:
                data = sock.recv(1000)
                data = data if six else data[(data[0] & 15) * 4 :]
                if (data[0], data[4:8]) == (129 if six else 0, body):
                    return True
        except OSError:
            return False


# --- when it ends ---


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("outward", [False, True], ids=["in", "out"])
def test_taking_the_rule_back_ends_what_it_let_in(
    outward: bool, family: int, governed: Governed, actors: dict[str, Actor]
) -> None:
    flows = Flows(governed, actors, family, outward)
    assert flows.alive() == (True, True)
    load(governed, **({"egress": "[]"} if outward else {"ingress": "[]"}))
    assert flows.alive() == (False, False)
    flows.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("outward", [False, True], ids=["in", "out"])
def test_answers_leave_by_the_same_interface(
    outward: bool, family: int, governed: Governed, actors: dict[str, Actor]
) -> None:
    """What is of another interface now is of another network."""
    flows = Flows(governed, actors, family, outward)
    assert flows.alive() == (True, True)
    load(governed, host=LAN.replace("lan0", "eth0"))
    assert flows.alive() == (False, False)
    flows.close()


@pytest.mark.parametrize("outward", [False, True], ids=["in", "out"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_rule_with_an_end(outward: bool, family: int, governed: Governed, actors: dict[str, Actor]) -> None:
    begun: list[Flows] = []

    def begin(end: datetime) -> None:
        until = f", expires: '{end.isoformat()}', reason: a test}}"
        load(governed, egress=TO.replace("}", until), ingress=FROM.replace("}", until))
        begun.append(Flows(governed, actors, family, outward))
        assert begun[-1].alive() == (True, True)

    until_soon(begin)
    assert begun[-1].alive() == (False, False)
    begun[-1].close()


class Flows:
    """A TCP connection and datagrams between the stranger and the workload, over the interface."""

    def __init__(self, governed: Governed, actors: dict[str, Actor], family: int, outward: bool) -> None:
        w, stranger = actors["w"], actors["far"]
        self.client, self.server = (w, stranger) if outward else (stranger, w)
        mine, theirs = MINE.own(family), far(governed, family)
        source, self.address = (mine, theirs) if outward else (theirs, mine)
        port, self.here, self.there = next(_served), next(_ports), next(_served)
        self.listener = self.server(ops.listen, self.address, port)
        self.made = self.client(ops.connect, self.address, port, source=(source, next(_ports)))
        self.accepted = self.server(ops.accept, self.listener)
        self.a = self.client(ops.udp, source, self.here)
        self.b = self.server(ops.udp, self.address, self.there)
        self.source = source
        self.workload_calls = outward

    def alive(self) -> tuple[bool, bool]:
        """Whether anything gets from the workload to the stranger, over TCP and over UDP, or the other way."""
        self.client(ops.send, self.made, b"call")
        self.server(ops.send, self.accepted, b"answer")
        self.client(ops.sendto, self.a, b"call", self.address, self.there)
        self.server(ops.sendto, self.b, b"answer", self.source, self.here)
        time.sleep(0.05)
        tcp = b"call" in self.server(ops.pending, self.accepted), b"answer" in self.client(ops.pending, self.made)
        udp = b"call" in self.server(ops.pending, self.b), b"answer" in self.client(ops.pending, self.a)
        assert tcp[0] == tcp[1], tcp
        assert udp[0] == udp[1], udp
        return tcp[0], udp[0]

    def close(self) -> None:
        self.client(ops.close, self.made, self.a)
        self.server(ops.close, self.accepted, self.listener, self.b)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_datagram_that_only_looks_like_an_answer_stays(
    family: int, governed: Governed, actors: dict[str, Actor]
) -> None:
    """The stranger wrote to a bystander's port over the other interface; the workload takes the port."""
    w, by, stranger = actors["w"], actors["by"], actors["far"]
    for wire, passes in ((OTHER, False), (MINE, True)):
        port, there = next(_served), next(_ports)
        held = by(ops.udp, wire.own(family), port)
        watch = stranger(ops.udp, far(governed, family), there)
        stranger(ops.sendto, watch, b"opens", wire.own(family), port)
        assert by(ops.receive, held) == b"opens"
        by(ops.close, held)
        mine = w(ops.udp, wire.own(family), port)
        w(ops.sendto, mine, b"data", far(governed, family), there)
        time.sleep(0.05)
        assert stranger(ops.pending, watch) == ([b"data"] if passes else [])
        w(ops.close, mine)
        stranger(ops.close, watch)


# --- names ---


def test_an_interface_that_comes_later_is_the_network_at_once(
    governed: Governed, actors: dict[str, Actor]
) -> None:
    load(governed, host=LAN.replace("lan0", "late0"))
    assert not arrives(governed, actors, MINE, 4, "tcp")
    connect(governed.lab, LATE, 101)
    for family, kind in itertools.product((4, 6), KINDS):
        assert arrives(governed, actors, LATE, family, kind)
        assert leaves(governed, actors, LATE, family, kind)
        assert not arrives(governed, actors, MINE, family, kind)


def test_a_longer_or_shorter_name_is_another_interface(governed: Governed, actors: dict[str, Actor]) -> None:
    for name in ("lan", "lan01", "lan.", "Lan0"):
        load(governed, host=LAN.replace("lan0", name))
        assert not arrives(governed, actors, MINE, 4, "tcp"), name
        assert not leaves(governed, actors, MINE, 4, "udp"), name


@pytest.mark.parametrize("family", FAMILIES)
def test_planes(family: int, governed: Governed, actors: dict[str, Actor]) -> None:
    host = LAN.replace("lan0", "lan0, plane: admin")
    load(governed, ingress=f"[{{from: 'plane:admin', ports: [{OPENED}]}}]", host=host)
    assert arrives(governed, actors, MINE, family, "tcp")
    assert not arrives(governed, actors, OTHER, family, "tcp")
    load(governed, ingress=f"[{{from: 'plane:inference', ports: [{OPENED}]}}]", host=host)
    assert not arrives(governed, actors, MINE, family, "tcp")


@pytest.mark.parametrize("family", FAMILIES)
def test_modes(family: int, governed: Governed, actors: dict[str, Actor]) -> None:
    load(governed, mode="lock")
    assert not arrives(governed, actors, MINE, family, "tcp")
    assert not leaves(governed, actors, MINE, family, "tcp")
    load(governed, mode="observe")
    for wire in (MINE, OTHER):
        before = governed.counters()
        assert arrives(governed, actors, wire, family, "tcp")
        assert leaves(governed, actors, wire, family, "tcp")
        after = governed.counters()
        recorded = [after[name] > before[name] for name in ("denied_in_w", "denied_out_w")]
        assert recorded == [wire is OTHER] * 2


def test_what_is_counted(governed: Governed, actors: dict[str, Actor]) -> None:
    """Hits by rule, and they outlive a load."""
    ids = [rule.id for rule in governed.policy.workloads["w"].rules]
    before = governed.counters()
    assert arrives(governed, actors, MINE, 4, "tcp")
    load(governed, mode="observe")
    load(governed)
    found = {rule: governed.counters()[f"hits_w_{rule}"] - before[f"hits_w_{rule}"] for rule in ids}
    assert [found[rule] > 0 for rule in ids] == [False, True], found
    assert not arrives(governed, actors, OTHER, 4, "tcp")
    assert {rule: governed.counters()[f"hits_w_{rule}"] - before[f"hits_w_{rule}"] for rule in ids} == found


def test_the_log_says_over_which_interface(governed: Governed, actors: dict[str, Actor]) -> None:
    host = governed.lab.host
    numbers = {wire: host.call(socket.if_nametoindex, wire.interface) for wire in (MINE, OTHER)}
    load(governed, "[]", "[]")
    reader = governed.actor()
    reader(listen_to_log)
    for wire in (MINE, OTHER):
        assert not arrives(governed, actors, wire, 4, "udp")
        assert not leaves(governed, actors, wire, 4, "udp")
        records: list[bytes] = []

        def two(records: list[bytes] = records) -> bool:
            records.extend(reader(logged))
            return len(records) >= 2

        eventually(two)
        assert {parse_nflog(record).index for record in records} == {numbers[wire]}
    reader.close()


_readers: list[NflogReader] = []


def listen_to_log() -> None:
    _readers.append(NflogReader())


def logged() -> list[bytes]:
    return _readers[0].read().records




@pytest.mark.parametrize("family", FAMILIES)
def test_a_bystander_does_not_come_back_over_it(family: int, governed: Governed, actors: dict[str, Actor]) -> None:
    """What this host sends to all hosts of a network it gets itself, over the interface that it left by."""
    w, by, stranger, port = actors["w"], actors["by"], actors["far"], next(_served)
    there = w(ops.udp, "::" if family == 6 else "0.0.0.0", port)
    everybody = {4: "224.0.0.1", 6: "ff02::1"}[family]
    for source in (MINE.own(family), OTHER.own(family), {4: "0.0.0.0", 6: "::"}[family]):
        assert by(to_all, everybody, port, source, MINE.interface) == "ok"
        time.sleep(0.05)
        assert w(ops.pending, there) == []
    assert stranger(to_all, everybody, port, far(governed, family), MINE.interface) == "ok"
    eventually(lambda: w(ops.pending, there) == [b"all"])
    w(ops.close, there)


def to_all(group: str, port: int, source: str, interface: str) -> str:
    """A datagram to a multicast group, which its sender gets as well."""
    number = socket.if_nametoindex(interface)
    with socket.socket(ops.family_of(group), socket.SOCK_DGRAM) as sock:
        if ":" in group:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, number)
        else:
            way = struct.pack("@4s4si", bytes(4), bytes(4), number)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, way)
        sock.bind((source, 0))
        try:
            sock.sendto(b"all", (group, port))
        except OSError as error:
            return ops.name_of(error)
    return "ok"
