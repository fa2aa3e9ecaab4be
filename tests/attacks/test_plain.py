"""A workload tries every kind of socket to get a packet to a stranger.  The witness is the stranger's wire.

Each attempt is first made by a bystander, whose packet must arrive, or the test would prove nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from attacks import ops
from attacks.conftest import Witness
from conftest import cannot_run
from governed import Actor, Governed, rules
from penstock.demo.lab import Lab

pytestmark = pytest.mark.root

MARK = b"secret"
MSG_FASTOPEN = 0x20000000
IP_HDRINCL, IP_NODEFRAG, IP_TRANSPARENT, IPV6_FREEBIND, IPV6_TRANSPARENT = 3, 22, 19, 78, 75
IPPROTO_UDPLITE, IPPROTO_MPTCP, ANY_PROTOCOL = 136, 262, 253

FAMILIES = [pytest.param(4, id="v4"), pytest.param(6, id="v6")]


def sock(address: str, kind: int = socket.SOCK_DGRAM, protocol: int = 0) -> socket.socket:
    made = socket.socket(ops.family_of(address), kind, protocol)
    made.settimeout(0.3)
    return made


def tcp(to: str) -> None:
    with sock(to, socket.SOCK_STREAM) as s:
        s.connect((to, 80))


def tcp_nonblocking(to: str) -> None:
    with sock(to, socket.SOCK_STREAM) as s:
        s.setblocking(False)
        s.connect_ex((to, 80))


def mptcp(to: str) -> None:
    with sock(to, socket.SOCK_STREAM, IPPROTO_MPTCP) as s:
        s.connect((to, 80))


def fast_open(to: str) -> None:
    with sock(to, socket.SOCK_STREAM) as s:
        s.sendto(MARK, MSG_FASTOPEN, (to, 80))


def fast_open_connect(to: str) -> None:
    with sock(to, socket.SOCK_STREAM) as s:
        s.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
        s.connect((to, 80))
        s.send(MARK)


def udp(to: str) -> None:
    with sock(to) as s:
        s.sendto(MARK, (to, 80))


def udp_connected(to: str) -> None:
    with sock(to) as s:
        s.connect((to, 80))
        s.send(MARK)


def udp_many(to: str) -> None:
    """sendmmsg(2): the second message of a batch goes somewhere else than the first."""
    libc = ctypes.CDLL(None, use_errno=True)
    with sock(to) as s:
        messages = ctypes.create_string_buffer(128)
        keep: list[Any] = []
        for number, target in enumerate((loopback(to), to)):
            if ":" in to:
                name = struct.pack("=HHI16sI", 10, socket.htons(80), 0, socket.inet_pton(10, target), 0)
            else:
                name = struct.pack("=HH4s8x", 2, socket.htons(80), socket.inet_aton(target))
            parts = [ctypes.create_string_buffer(name, len(name)), ctypes.create_string_buffer(MARK)]
            vector = struct.pack("=QQ", ctypes.addressof(parts[1]), len(MARK))
            parts.append(ctypes.create_string_buffer(vector, 16))
            keep += parts
            header = struct.pack(
                "=QIxxxxQQQQixxxxIxxxx",
                ctypes.addressof(parts[0]), len(name), ctypes.addressof(parts[2]), 1, 0, 0, 0, 0,
            )  # fmt: skip
            ctypes.memmove(ctypes.byref(messages, number * 64), header, 64)
        for first in (0, 1):  # it stops at the first error
            libc.sendmmsg(s.fileno(), ctypes.byref(messages, first * 64), 2 - first, 0)


def udp_segmented(to: str) -> None:
    with sock(to) as s:
        s.setsockopt(socket.IPPROTO_UDP, 103, 100)  # UDP_SEGMENT
        s.sendto(MARK * 100, (to, 80))


def udp_fragmented(to: str) -> None:
    with sock(to) as s:
        s.sendto(MARK * 3000, (to, 80))


def udp_corked(to: str) -> None:
    with sock(to) as s:
        s.connect((to, 80))
        s.send(MARK, socket.MSG_MORE)
        s.send(MARK)


def udplite(to: str) -> None:
    with sock(to, socket.SOCK_DGRAM, IPPROTO_UDPLITE) as s:
        s.sendto(MARK, (to, 80))


def ping(to: str) -> None:
    if ":" in to:
        protocol, kind = socket.IPPROTO_ICMPV6, 128
    else:
        protocol, kind = socket.IPPROTO_ICMP, 8
    with sock(to, socket.SOCK_DGRAM, protocol) as s:
        s.sendto(struct.pack("!BBHHH", kind, 0, 0, 0, 1) + MARK, (to, 0))


def raw_icmp(to: str) -> None:
    protocol, kind = (socket.IPPROTO_ICMPV6, 1) if ":" in to else (socket.IPPROTO_ICMP, 3)
    with sock(to, socket.SOCK_RAW, protocol) as s:
        s.sendto(struct.pack("!BBHI", kind, 1, 0, 0) + MARK * 8, (to, 0))


def raw_any(to: str) -> None:
    with sock(to, socket.SOCK_RAW, ANY_PROTOCOL) as s:
        s.sendto(MARK, (to, 0))


def raw_sctp(to: str) -> None:
    with sock(to, socket.SOCK_RAW, 132) as s:
        s.sendto(struct.pack("!HHII", 80, 80, 0, 0) + MARK, (to, 0))


def raw_gre(to: str) -> None:
    with sock(to, socket.SOCK_RAW, 47) as s:
        s.sendto(struct.pack("!HH", 0, 0x0800) + MARK * 8, (to, 0))


def raw_tcp_ack(to: str) -> None:
    """A segment of no connection, as if one had been there for long."""
    with sock(to, socket.SOCK_RAW, socket.IPPROTO_TCP) as s:
        s.sendto(struct.pack("!HHIIBBHHH", 5555, 80, 1, 1, 0x50, 0x10, 99, 0, 0) + MARK, (to, 0))


def raw_tcp_null(to: str) -> None:
    """No flags: conntrack calls it invalid."""
    with sock(to, socket.SOCK_RAW, socket.IPPROTO_TCP) as s:
        s.sendto(struct.pack("!HHIIBBHHH", 5556, 80, 1, 1, 0x50, 0, 99, 0, 0) + MARK, (to, 0))


def header(source: str, to: str, protocol: int, body: bytes, fragment: int = 0) -> bytes:
    """An IPv4 packet, with its checksum: a bridge that filters looks at it."""
    ends = socket.inet_aton(source) + socket.inet_aton(to)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 77, fragment, 64, protocol, 0) + ends
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return head[:10] + struct.pack("!H", checksum) + head[12:] + body


def own(to: str) -> str:
    with sock(to) as s:
        s.connect((to, 9))
        address: str = s.getsockname()[0]
        return address


def loopback(to: str) -> str:
    return "::1" if ":" in to else "127.0.0.1"


def raw_fragments(to: str) -> None:
    """Fragments that the local stack is told not to put together: the second has no ports."""
    body = struct.pack("!HHHH", 5557, 80, 8 + 64, 0) + MARK * 10 + b"...."
    if ":" in to:
        with sock(to, socket.SOCK_RAW, 44) as s:
            for offset, part in ((1, body[:40]), (40, body[40:])):  # the lowest bit says: more to come
                s.sendto(struct.pack("!BBHI", 17, 0, offset, 7) + part, (to, 0))
        return
    with sock(to, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
        s.setsockopt(socket.IPPROTO_IP, IP_NODEFRAG, 1)
        for packet in (
            header(own(to), to, 17, body[:40], 0x2000),
            header(own(to), to, 17, body[40:], 40 // 8),
        ):
            with contextlib.suppress(PermissionError):
                s.sendto(packet, (to, 0))


def options(to: str) -> None:
    """IPv4 record route, IPv6 hop-by-hop padding."""
    with sock(to) as s:
        if ":" in to:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
        else:
            s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([7, 7, 4, 0, 0, 0, 0, 0]))
        s.sendto(MARK, (to, 80))


def ring() -> None:
    """Make a ring and close it."""
    made = ctypes.CDLL(None, use_errno=True).syscall(425, 4, ctypes.create_string_buffer(120))
    if made < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    os.close(made)


def io_uring(to: str, operation: int = 16) -> None:
    """connect(2) through a ring (16 is IORING_OP_CONNECT), without the system call connect."""
    libc = ctypes.CDLL(None, use_errno=True)
    parameters = ctypes.create_string_buffer(120)
    ring = libc.syscall(425, 4, parameters)
    if ring < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    (array_offset,) = struct.unpack_from("=I", parameters, 40 + 24)
    (tail_offset,) = struct.unpack_from("=I", parameters, 40 + 4)
    ring_map = mmap.mmap(ring, 4096, offset=0)
    entries = mmap.mmap(ring, 4096, offset=0x10000000)
    with sock(to, socket.SOCK_STREAM) as s:
        s.setblocking(True)
        if ":" in to:
            name = struct.pack("=HHI16sI", 10, socket.htons(80), 0, socket.inet_pton(10, to), 0)
        else:
            name = struct.pack("=HH4s8x", 2, socket.htons(80), socket.inet_aton(to))
        kept = ctypes.create_string_buffer(name, len(name))
        entries[:64] = struct.pack(
            "=BBHiQQ40x", operation, 0, 0, s.fileno(), len(name), ctypes.addressof(kept)
        )
        struct.pack_into("=I", ring_map, array_offset, 0)
        struct.pack_into("=I", ring_map, tail_offset, 1)
        libc.syscall(426, ring, 1, 1, 1, None, 0)  # io_uring_enter: submit one, wait for one
    ring_map.close()
    entries.close()
    os.close(ring)


ATTEMPTS: list[Callable[[str], None]] = [
    tcp, tcp_nonblocking, mptcp, fast_open, fast_open_connect, udp, udp_connected, udp_many, udp_segmented,
    udp_fragmented, udp_corked, udplite, ping, raw_icmp, raw_any, raw_sctp, raw_gre, raw_tcp_ack,
    raw_tcp_null, raw_fragments, options, io_uring,
]  # fmt: skip


def attempt(function: Callable[..., None], *args: Any) -> str:
    """Do it; a refusal is part of the game."""
    try:
        function(*args)
    except OSError as error:
        return ops.name_of(error)
    return "ok"


@pytest.fixture(scope="module", autouse=True)
def policy(governed: Governed, lab: Lab) -> None:
    r = lab.remote["registry"]
    everything = f"{{to: [{r.v4}, '{r.v6}'], ports: [any, icmp]}}"
    governed.load(rules("w", egress=f"[{everything}]"))
    for host in (lab.host, *lab.remote.values()):
        with Actor(host) as actor:
            actor(ops.sysctl, net__ipv4__tcp_fastopen="1031", net__ipv4__ping_group_range="0 2147483647")


@pytest.fixture(scope="module")
def workload(governed: Governed) -> Iterator[Actor]:
    with governed.actor("w") as actor:
        yield actor


@pytest.fixture(scope="module")
def bystander(governed: Governed) -> Iterator[Actor]:
    with governed.actor() as actor:
        yield actor


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("function", ATTEMPTS)
def test_no_packet_leaves(
    function: Callable[[str], None],
    family: int,
    lab: Lab,
    workload: Actor,
    bystander: Actor,
    stranger: Witness,
    governed: Governed,
) -> None:
    target = lab.remote["stranger"].address(family)
    stranger.packets()
    if function is io_uring and (why := bystander(attempt, ring)) != "ok":
        cannot_run(f"this kernel refuses io_uring: {why}")
    said = bystander(attempt, function, target)
    assert stranger.packets(), f"a bystander's packet must arrive: {said}"
    stranger.packets()  # what the stranger's answers caused is behind this
    before = governed.counters()["denied_out_w"]
    workload(attempt, function, target)
    assert stranger.packets() == []
    assert governed.counters()["denied_out_w"] > before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("function", [tcp, mptcp, fast_open, udp, udp_fragmented, udp_many, ping, io_uring])
def test_what_a_rule_allows_arrives(
    function: Callable[[str], None], family: int, lab: Lab, workload: Actor, registry: Witness
) -> None:
    registry.packets()
    workload(attempt, function, lab.remote["registry"].address(family))
    assert registry.packets()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_mapped_addresses_are_ipv4(
    kind: int, lab: Lab, workload: Actor, bystander: Actor, stranger: Witness, registry: Witness
) -> None:
    stranger.packets()
    registry.packets()
    mapped = {name: f"::ffff:{host.v4}" for name, host in lab.remote.items()}
    bystander(attempt, mapped_send, mapped["stranger"], kind)
    assert stranger.packets()
    workload(attempt, mapped_send, mapped["stranger"], kind)
    workload(attempt, mapped_send, mapped["registry"], kind)
    assert stranger.packets() == []
    assert registry.packets()


def mapped_send(to: str, kind: int) -> None:
    with socket.socket(socket.AF_INET6, kind) as s:
        s.settimeout(0.3)
        s.connect((to, 80))
        s.send(MARK)


def spoof(source: str, to: str, port: int) -> None:
    """A datagram from an address that is not ours: root's IP_TRANSPARENT, and anybody's IPV6_FREEBIND."""
    with sock(to) as s:
        if ":" in to:
            s.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        else:
            s.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        s.bind((source, 5555))
        s.sendto(MARK, (to, port))


def spoof_raw(source: str, to: str, port: int) -> None:
    body = struct.pack("!HHHH", 5555, port, 8 + len(MARK), 0) + MARK
    with sock(to, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
        if ":" in to:
            head = struct.pack("!IHBB", 6 << 28, len(body), 17, 64)
            packet = head + socket.inet_pton(10, source) + socket.inet_pton(10, to) + body
        else:
            packet = header(source, to, 17, body)
        s.sendto(packet, (to, 0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", [spoof, spoof_raw])
@pytest.mark.parametrize("via", ["nobody", "registry", "host"])
def test_nothing_comes_back_to_a_borrowed_address(
    via: str,
    way: Callable[..., None],
    family: int,
    lab: Lab,
    governed: Governed,
    workload: Actor,
    stranger: Witness,
    registry: Witness,
) -> None:
    """Neither our own refusal nor the answer of an allowed server may go to the stranger."""
    source = lab.remote["stranger"].address(family)
    to = {"registry": lab.remote["registry"], "host": lab.host}.get(via, lab.remote["registry"])
    port = 9999 if via == "nobody" else 53
    with governed.actor() as bystander:
        stranger.packets()
        bystander(attempt, way, source, to.address(family), port)
        if via == "registry" and way is spoof:
            registry.packets()
            assert stranger.packets(), "it works for a bystander"
        registry.packets()
        stranger.packets()
    workload(attempt, way, source, to.address(family), port)
    assert registry.packets() == []
    assert stranger.packets() == []


@pytest.mark.parametrize("family", FAMILIES)
def test_multicast_and_broadcast(
    family: int, lab: Lab, workload: Actor, bystander: Actor, stranger: Witness
) -> None:
    groups = {4: ("224.0.0.251", "255.255.255.255"), 6: ("ff02::fb",)}[family]
    for group in groups:
        stranger.packets()
        bystander(attempt, to_group, group)
        assert stranger.packets()
        workload(attempt, to_group, group)
        assert stranger.packets() == []


def to_group(group: str) -> None:
    with sock(group) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if ":" in group:
            s.connect((group, 80, 0, socket.if_nametoindex("eth0")))
        else:
            s.setsockopt(
                socket.IPPROTO_IP,
                socket.IP_MULTICAST_IF,
                struct.pack("=4s4si", bytes(4), bytes(4), socket.if_nametoindex("eth0")),
            )
            s.connect((group, 80))
        s.send(MARK)


@pytest.mark.parametrize("family", FAMILIES)
def test_source_routes_do_not_help(
    family: int, lab: Lab, workload: Actor, bystander: Actor, stranger: Witness, registry: Witness
) -> None:
    """Through an allowed host to the stranger: a router may follow the route, so it must not leave at all."""
    target, via = (lab.remote[name].address(family) for name in ("stranger", "registry"))
    registry.packets()
    bystander(attempt, routed, target, via)
    assert registry.packets(), "a bystander's packet takes the route"
    workload(attempt, routed, target, via)
    assert stranger.packets() == []
    assert registry.packets() == []


def routed(to: str, via: str) -> None:
    with sock(to) as s:
        if ":" in to:  # RFC 8754, one stop on the way
            route = struct.pack("!BBBBBBH", 0, 4, 4, 1, 1, 0, 0)
            s.setsockopt(
                socket.IPPROTO_IPV6,
                socket.IPV6_RTHDR,
                route + socket.inet_pton(10, to) + socket.inet_pton(10, via),
            )
        else:
            s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([131, 7, 4]) + socket.inet_aton(via) + b"\0")
        s.sendto(MARK, (to, 80))


def join(family: int) -> int:
    index = socket.if_nametoindex("eth0")
    if family == 6:
        s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        group = socket.inet_pton(10, "ff05::beef") + struct.pack("=I", index)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
    else:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.setsockopt(
            socket.IPPROTO_IP,
            socket.IP_ADD_MEMBERSHIP,
            struct.pack("=4s4si", socket.inet_aton("239.1.2.3"), bytes(4), index),
        )
    return s.detach()


