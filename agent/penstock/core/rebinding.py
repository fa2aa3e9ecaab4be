"""Addresses that an answer to a look-up must not open, because they are near and not on the internet.

Whoever owns a name says where it leads.  A name that leads to this host, to the network beside it or to a cloud's
credentials would make a rule about a stranger a rule about those (DNS rebinding).  The ranges are those of IANA's
special-purpose registries; documentation ranges are ordinary here, and lead nowhere.  IPv6 addresses that carry
an IPv4 address are judged by that as well: NAT64, 6to4 and Teredo would take a packet there.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network

from penstock.core.policy import LINK_LOCAL, METADATA, Address, Cidr

_Ranges = tuple[tuple[int, int, str], ...]
"""(bits behind the prefix, the prefix's bits, kind), the first that fits counts."""

HOME = frozenset({"private", "loopback"})
"""What `private: true` lets in; nothing lets in the other kinds."""

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


def _ranges(version: int) -> _Ranges:
    networks: list[tuple[Cidr, str]] = [(network, "link-local") for network in LINK_LOCAL]
    networks += [(ip_network(text), kind) for text, kind in _KINDS]
    return tuple(
        (network.max_prefixlen - network.prefixlen, _bits(network), kind)
        for network, kind in networks
        if network.version == version
    )


def _bits(network: IPv4Network | IPv6Network) -> int:
    return int(network.network_address) >> (network.max_prefixlen - network.prefixlen)


_METADATA = frozenset(METADATA)
_RANGES = {4: _ranges(4), 6: _ranges(6)}
_WORST_FIRST = ("metadata", "link-local", "this-network", "multicast", "reserved", "loopback", "private")


@lru_cache(8192)
def kind(address: Address) -> str | None:
    """What makes `address` unfit as an answer; None for an ordinary one.

    "metadata", "link-local", "this-network", "multicast", "reserved", "loopback" or "private"; the worst, where
    an address that it carries has another.
    """
    own = _kind(address)
    if address.version == 4:
        return own
    found = {own, *(_kind(inner) for inner in carried(address))}
    return next((kind for kind in _WORST_FIRST if kind in found), None)


def _kind(address: Address) -> str | None:
    if address in _METADATA:
        return "metadata"
    number = int(address)
    for shift, bits, kind in _RANGES[address.version]:
        if number >> shift == bits:
            return kind or None
    return None


def carried(address: Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that an IPv6 address stands for: mapped, NAT64, 6to4, both ends of Teredo.

    Under NAT64's local prefix the operator chose where the IPv4 address is: each place that can be it counts.
    """
    number = int(address)
    if address.version == 4 or number >> 125 not in (0, 1):
        return ()
    if number >> 32 in (0xFFFF, 0x64FF9B << 64):
        return (IPv4Address(number & 0xFFFFFFFF),)
    if number >> 112 == 0x2002:
        return (IPv4Address(number >> 80 & 0xFFFFFFFF),)
    if number >> 96 == 0x20010000:
        return IPv4Address(number >> 64 & 0xFFFFFFFF), IPv4Address(~number & 0xFFFFFFFF)
    if number >> 80 == 0x64FF9B0001:
        return tuple(IPv4Address(inner) for inner in _local(number))
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
    unfit = kind(address)
    if unfit is not None and not (private and unfit in HOME):
        return False
    return not any(one in cidr for cidr in excepted for one in (address, *carried(address)))
