"""Addresses that an answer to a look-up must not open, because they are near and not on the internet.

Whoever owns a name says where it leads.  A name that leads to this host, to the network beside it or to a cloud's
credentials would make a rule about a stranger a rule about those (DNS rebinding).  The ranges are those of IANA's
special-purpose registries; documentation ranges are ordinary here, and lead nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_network

from penstock.core.policy import LINK_LOCAL, METADATA, Address, Cidr

HOME = frozenset({"private", "loopback"})
"""What `private: true` lets in."""

_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("this-network", ("0.0.0.0/8", "::/128")),
    ("loopback", ("127.0.0.0/8", "::1/128")),
    ("private", ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fec0::/10")),
    ("private", ("198.18.0.0/15", "2001:2::/48")),  # benchmarks: inside of somebody's network
    ("multicast", ("224.0.0.0/4", "ff00::/8")),
    ("reserved", ("192.0.0.0/24", "240.0.0.0/4", "100::/64", "::/96")),
)
_RANGES = [(kind, ip_network(text)) for kind, texts in _KINDS for text in texts]
_MAPPED, _NAT64, _6TO4 = ip_network("::ffff:0:0/96"), ip_network("64:ff9b::/96"), ip_network("2002::/16")
_NAT64_OWN, _TEREDO = ip_network("64:ff9b:1::/48"), ip_network("2001::/32")


@lru_cache(4096)
def kind(address: Address) -> str | None:
    """What makes it unfit: metadata, link-local, loopback, private, multicast, this-network, reserved; or None."""
    if address in METADATA:
        return "metadata"
    if any(address in cidr for cidr in LINK_LOCAL):
        return "link-local"
    for name, cidr in _RANGES:
        if address in cidr:
            return name
    if isinstance(address, IPv6Address):
        for inside in _embedded(address):
            if found := kind(inside):
                return found
    return None


def _embedded(address: IPv6Address) -> Iterable[IPv4Address]:
    """IPv4 addresses that a translator or tunnel on the way would make of it (RFC 6052, 3056, 4380)."""
    number = int(address)
    if address in _MAPPED or address in _NAT64:
        yield IPv4Address(number & 0xFFFFFFFF)
    elif address in _6TO4:
        yield IPv4Address(number >> 80 & 0xFFFFFFFF)
    elif address in _NAT64_OWN:  # with any of the prefix lengths that fit into it
        yield IPv4Address(number & 0xFFFFFFFF)
        yield IPv4Address((number >> 64 & 0xFFFF) << 16 | number >> 40 & 0xFFFF)
    elif address in _TEREDO:
        yield IPv4Address(number >> 64 & 0xFFFFFFFF)
        yield IPv4Address(~number & 0xFFFFFFFF)


def admits(address: Address, private: bool, excepted: Iterable[Cidr] = ()) -> bool:
    """Whether an answer may open it, for a rule with `private` or without, and with these exceptions."""
    found = kind(address)
    if found is not None and not (private and found in HOME):
        return False
    return not any(address in cidr for cidr in excepted)
