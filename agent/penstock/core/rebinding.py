"""Addresses that an answer to a look-up must not open, because they are near and not on the internet.

Whoever owns a name says where it leads.  A name that leads to this host, to the network beside it or to a cloud's
credentials would make a rule about a stranger a rule about those (DNS rebinding).  The ranges are those of IANA's
special-purpose registries; documentation ranges are ordinary here, and lead nowhere.  IPv6 addresses that carry
an IPv4 address are judged by that as well: NAT64, 6to4 and Teredo would take a packet there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Network, collapse_addresses, ip_network

from penstock.core.policy import LINK_LOCAL, METADATA, Address, Cidr

HOME = frozenset({"private", "loopback"})
"""What `private: true` lets in; nothing lets in the other kinds."""

FIT: Mapping[bool, frozenset[str | None]] = {False: frozenset({None}), True: frozenset({None, *HOME})}
"""The kinds that a rule lets in, by its `private`."""

_KINDS: tuple[tuple[str, str], ...] = (
    ("0.0.0.0/8", "this-network"),  # Linux connects 0.0.0.0 to itself
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "private"),  # of a provider, and of overlay networks
    ("127.0.0.0/8", "loopback"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "reserved"),
    ("192.88.99.0/24", "reserved"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "private"),  # of test beds, and of proxies that make addresses up
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/128", "this-network"),
    ("::1/128", "loopback"),
    ("::ffff:0:0/96", "reserved"),  # an IPv4 address has no business in an AAAA record
    ("64:ff9b:1::/48", ""),
    ("64:ff9b::/96", ""),
    ("fc00::/7", "private"),
    ("fec0::/10", "private"),
    ("ff00::/8", "multicast"),
    ("2001::/32", ""),  # Teredo
    ("2001:2::/48", "private"),  # of test beds
    ("2001::/23", "reserved"),
    ("2000::/3", ""),
    ("::/0", "reserved"),  # nothing else is given to anybody
)

_WORST_FIRST = ("metadata", "link-local", "this-network", "multicast", "reserved", "loopback", "private", None)
_RANK = {kind: rank for rank, kind in enumerate(_WORST_FIRST)}

# IPv6 addresses that carry an IPv4 address begin so.
_MAPPED = bytes(10) + b"\xff\xff"
_NAT64 = b"\x00\x64\xff\x9b" + bytes(8)
_NAT64_LOCAL = b"\x00\x64\xff\x9b\x00\x01"
_TEREDO = b"\x20\x01\x00\x00"
_SIX_TO_FOUR = b"\x20\x02"
_CARRYING = tuple(
    IPv6Network((begin.ljust(16, b"\x00"), 8 * len(begin)))
    for begin in (_MAPPED, _NAT64, _NAT64_LOCAL, _TEREDO, _SIX_TO_FOUR)
)

_Spans = tuple[list[bytes], list[tuple[str | None, bool]]]
"""Where a span of addresses begins, in order; of each its kind, and whether its addresses carry others."""


def _spans(version: int) -> _Spans:
    """All addresses of a version, cut where a network begins or ends: a search finds what a list would."""
    listed: list[tuple[Cidr, str]] = [(ip_network(address), "metadata") for address in METADATA]
    listed += [(network, "link-local") for network in LINK_LOCAL]
    listed += [(ip_network(text), kind) for text, kind in _KINDS]
    listed = [(network, kind) for network, kind in listed if network.version == version]
    carrying = [network for network in _CARRYING if network.version == version]
    cuts = {0}
    for network in (*carrying, *(network for network, _ in listed)):
        cuts |= {int(network.network_address), int(network.broadcast_address) + 1}
    bits = 32 if version == 4 else 128
    starts = sorted(cut for cut in cuts if not cut >> bits)
    spans = [
        (
            next((kind or None for network, kind in listed if _holds(network, start)), None),
            any(_holds(network, start) for network in carrying),
        )
        for start in starts
    ]
    return [start.to_bytes(bits // 8, "big") for start in starts], spans


def _holds(network: Cidr, number: int) -> bool:
    return int(network.network_address) <= number <= int(network.broadcast_address)


_SPANS = {4: _spans(4), 16: _spans(6)}  # by an address's length


def kind(address: Address) -> str | None:
    """What makes `address` unfit as an answer; None for an ordinary one.

    "metadata", "link-local", "this-network", "multicast", "reserved", "loopback" or "private"; the worst, where
    an address that it carries has another.
    """
    return kind_of(address.packed)


def kind_of(address: bytes) -> str | None:
    """`kind` of a packed address: hundreds of thousands are asked about at once."""
    starts, spans = _SPANS[len(address)]
    own, carries = spans[bisect_right(starts, address) - 1]
    if not carries:
        return own
    return min((own, *map(kind_of, _carried(address))), key=_RANK.__getitem__)


def carried(address: Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that an IPv6 address stands for: mapped, NAT64, 6to4, both ends of Teredo.

    Under NAT64's local prefix the operator chose where the IPv4 address is: each place that can be it counts.
    """
    return tuple(map(IPv4Address, _carried(address.packed)))


def _carried(address: bytes) -> Iterable[bytes]:
    if len(address) == 4 or address[0] not in (0, 0x20):
        return ()
    if address.startswith((_MAPPED, _NAT64)):
        return (address[12:],)
    if address.startswith(_SIX_TO_FOUR):
        return (address[2:6],)
    if address.startswith(_TEREDO):
        return address[4:8], bytes(byte ^ 0xFF for byte in address[12:])
    if address.startswith(_NAT64_LOCAL):
        return [inner.to_bytes(4, "big") for inner in _local(int.from_bytes(address, "big"))]
    return ()


def _local(number: int) -> Iterable[int]:
    """RFC 6052: the address begins where the prefix ends, leaves bits 64 to 71 out, and zeros follow it."""
    yield number & 0xFFFFFFFF  # behind a prefix of 96 bits
    if number >> 56 & 0xFF:
        return
    joined = number >> 64 << 56 | number & (1 << 56) - 1  # 120 bits, without those eight
    for prefix in (48, 56, 64):
        behind = 120 - prefix - 32
        inner = joined >> behind & 0xFFFFFFFF
        if inner and not joined & (1 << behind) - 1:
            yield inner


def admits(address: Address, private: bool, excepted: Iterable[Cidr] = ()) -> bool:
    """Whether an answer may open it, for a rule with `private` or without, and with these exceptions."""
    if kind(address) not in FIT[private]:
        return False
    return not any(one in cidr for cidr in excepted for one in (address, *carried(address)))


class Prefixes:
    """A rule's exceptions, made ready for many packed addresses."""

    def __init__(self, cidrs: Iterable[Cidr]) -> None:
        self._starts: dict[int, list[bytes]] = {4: [], 16: []}  # by an address's length
        self._ends: dict[int, list[bytes]] = {4: [], 16: []}
        every = tuple(cidrs)
        apart: list[Cidr] = [*collapse_addresses(cidr for cidr in every if isinstance(cidr, IPv4Network))]
        apart += collapse_addresses(cidr for cidr in every if isinstance(cidr, IPv6Network))
        for cidr in apart:  # in order
            first, last = cidr.network_address.packed, cidr.broadcast_address.packed
            self._starts[len(first)].append(first)
            self._ends[len(first)].append(last)

    def hold(self, address: bytes) -> bool:
        """Whether the address, or one that it carries, is in one of them."""
        starts = self._starts[len(address)]
        place = bisect_right(starts, address) - 1
        if place >= 0 and address <= self._ends[len(address)][place]:
            return True
        return len(address) == 16 and any(map(self.hold, _carried(address)))
