"""One record of the kernel's packet log (NFLOG) -> what was denied, to whom, by which of our rules.

Input is hostile: a workload writes the packet.  What the kernel wrote (attributes, prefix, the IP header
it built or checked) must be right to the byte, else ValueError and nothing else.  What lies behind the IP
header may be cut off by the log's snap length or be nonsense that the workload wrote: then ports are
unknown, but the record stands, or a malformed packet would be a way not to be recorded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from penstock.core.log_prefix import Kind, Prefix, Refusal, parse_prefix
from penstock.core.policy import Address, Direction, Mode

NFULA_PACKET_HDR = 1
NFULA_IFINDEX_INDEV = 4
NFULA_IFINDEX_OUTDEV = 5
NFULA_PAYLOAD = 9
NFULA_PREFIX = 10
NFULA_UID = 11
NFULA_SEQ = 12

_ATTRIBUTE = struct.Struct("=HH")  # length with this header, type; host byte order
_TYPE_MASK = 0x3FFF  # the two upper bits of a type are flags (nested, network byte order)
_ETHERTYPES = {0x0800: 4, 0x86DD: 6}
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
_WITH_PORTS = frozenset({6, 17})
_FRAGMENT = 44
_AUTHENTICATION = 51
_EXTENSIONS = frozenset({0, 43, _FRAGMENT, _AUTHENTICATION, 60})  # hop-by-hop, routing, ..., destination


@dataclass(frozen=True, slots=True)
class Denied:
    """One denied packet, seen from the workload.

    `port` is the remote port for direction out and the workload's own for direction in; `local` and
    `local_port` are the workload's end.  Ports are None for protocols without, for later fragments, and
    where the packet was cut off.  `uid` is None where the packet had no full socket.  `index` is the number of
    the interface that it came over or was to leave by; whoever knows its name puts it into `interface`.
    """

    workload: str
    direction: Direction
    verdict: Refusal
    mode: Mode
    kind: Kind
    family: int
    protocol: str  # tcp, udp, icmp, icmpv6, else the number as text
    remote: Address
    port: int | None
    local: Address
    local_port: int | None
    uid: int | None
    index: int | None = None
    interface: str = ""


@dataclass(frozen=True, slots=True)
class _Packet:
    source: Address
    destination: Address
    protocol: int
    source_port: int | None
    destination_port: int | None


def attributes(body: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield (type, value) of each netlink attribute.  ValueError where the lengths do not add up."""
    view = memoryview(body)
    offset, end = 0, len(view)
    while offset < end:
        if end - offset < _ATTRIBUTE.size:
            raise ValueError("cut off inside an attribute's header")
        length, kind = _ATTRIBUTE.unpack_from(view, offset)
        if length < _ATTRIBUTE.size or length > end - offset:
            raise ValueError(f"attribute {kind & _TYPE_MASK} has a wrong length: {length}")
        yield kind & _TYPE_MASK, view[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def parse_nflog(body: bytes | memoryview) -> Denied:
    """Return what one NFULNL_MSG_PACKET says; `body` is what follows its nfgenmsg.

    ValueError for anything malformed, and for a packet that no rule of ours logged.
    """
    found: dict[int, memoryview] = {}
    for kind, value in attributes(body):
        if kind in found:
            raise ValueError(f"attribute {kind} twice")
        found[kind] = value
    prefix = _prefix(found.get(NFULA_PREFIX))
    payload = found.get(NFULA_PAYLOAD)
    if payload is None:
        raise ValueError("no payload")
    packet = _packet(payload)
    family = packet.source.version
    _check_family(found.get(NFULA_PACKET_HDR), family)
    arrived = prefix.direction is Direction.IN and prefix.kind is not Kind.REPLY
    index = _number(found.get(NFULA_IFINDEX_INDEV if arrived else NFULA_IFINDEX_OUTDEV))
    return _denied(prefix, packet, family, _number(found.get(NFULA_UID)), index, arrived=arrived)


def _denied(
    prefix: Prefix, packet: _Packet, family: int, uid: int | None, index: int | None, *, arrived: bool
) -> Denied:
    if arrived:
        remote, local, local_port = packet.source, packet.destination, packet.destination_port
    else:
        remote, local, local_port = packet.destination, packet.source, packet.source_port
    return Denied(
        workload=prefix.workload,
        direction=prefix.direction,
        verdict=prefix.verdict,
        mode=prefix.mode,
        kind=prefix.kind,
        family=family,
        protocol=_PROTOCOLS.get(packet.protocol, str(packet.protocol)),
        remote=remote,
        port=packet.destination_port if prefix.direction is Direction.OUT else local_port,
        local=local,
        local_port=local_port,
        uid=uid,
        index=index,
    )


def _prefix(value: memoryview | None) -> Prefix:
    if value is None:
        raise ValueError("no prefix")
    text = bytes(value)
    if not text.endswith(b"\0"):
        raise ValueError("prefix without its closing NUL")
    return parse_prefix(text[:-1].decode("ascii"))  # UnicodeDecodeError is a ValueError


def _number(value: memoryview | None) -> int | None:
    if value is None:
        return None
    if len(value) != 4:
        raise ValueError("a number that is not four bytes")
    return int.from_bytes(value, "big")


def _check_family(header: memoryview | None, family: int) -> None:
    """A raw socket lets root write any version into an IPv4 header: the kernel's word must agree."""
    if header is None or len(header) != 4:
        raise ValueError("no packet header")
    if _ETHERTYPES.get(int.from_bytes(header[:2], "big")) != family:
        raise ValueError("the packet is not of the family that the kernel says")


def _packet(data: memoryview) -> _Packet:
    version = data[0] >> 4 if len(data) else 0
    if version == 4:
        return _packet4(data)
    if version == 6:
        return _packet6(data)
    raise ValueError("neither IPv4 nor IPv6")


def _packet4(data: memoryview) -> _Packet:
    if len(data) < 20:
        raise ValueError("cut off inside the IPv4 header")
    header = (data[0] & 15) * 4
    if header < 20:
        raise ValueError("the IPv4 header says that it is shorter than it can be")
    first = int.from_bytes(data[6:8], "big") & 0x1FFF == 0  # fragment offset
    ports = _ports(data, header, data[9]) if first else (None, None)
    return _Packet(IPv4Address(bytes(data[12:16])), IPv4Address(bytes(data[16:20])), data[9], *ports)


def _packet6(data: memoryview) -> _Packet:
    if len(data) < 40:
        raise ValueError("cut off inside the IPv6 header")
    protocol, offset, first = data[6], 40, True
    # Each header moves the offset on, so this ends; the one whose header is cut off is reported as found.
    while protocol in _EXTENSIONS and first and offset + 8 <= len(data):
        following, length = data[offset], data[offset + 1]
        if protocol == _FRAGMENT:
            first = int.from_bytes(data[offset + 2 : offset + 4], "big") & 0xFFF8 == 0
            length = 8
        elif protocol == _AUTHENTICATION:
            length = (length + 2) * 4
        else:
            length = (length + 1) * 8
        protocol, offset = following, offset + length
    ports = _ports(data, offset, protocol) if first else (None, None)
    return _Packet(IPv6Address(bytes(data[8:24])), IPv6Address(bytes(data[24:40])), protocol, *ports)


def _ports(data: memoryview, offset: int, protocol: int) -> tuple[int | None, int | None]:
    if protocol not in _WITH_PORTS or offset + 4 > len(data):
        return None, None
    two = data[offset : offset + 4]
    return int.from_bytes(two[:2], "big"), int.from_bytes(two[2:], "big")
