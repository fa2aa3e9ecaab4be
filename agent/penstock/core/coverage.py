"""Which peers lie inside which: asked of many peers at once without comparing each with each.

A peer has keys.  What contains it has one of a few other keys: for an address, one for each prefix length in
use.  So "is it inside one of these?" is a few look-ups, however long the list is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_network

from penstock.core.policy import (
    LINK_LOCAL,
    METADATA,
    Address,
    AddressPeer,
    AnyPeer,
    Cidr,
    CidrPeer,
    NamePeer,
    NetworkPeer,
    Peer,
    Policy,
)

Key = tuple[str | int, ...]
_ANY: Key = ("any",)
_BITS = {4: 32, 6: 128}


def is_literal_only(address: Address) -> bool:
    """Whether only an exact address (or `metadata`) opens it, and no prefix around it."""
    return address in METADATA or any(
        address.version == block.version and address in block for block in LINK_LOCAL
    )


def keys(policy: Policy, peer: Peer) -> list[Key]:
    """The keys under which a peer is stored: one, or one for each prefix of a network."""
    if isinstance(peer, NetworkPeer) and policy.networks[peer.name].cidrs:
        return [_of_cidr(cidr) for cidr in policy.networks[peer.name].cidrs]
    if isinstance(peer, AddressPeer):
        return [_of_address(peer.address)]
    if isinstance(peer, CidrPeer):
        return [_of_cidr(peer.cidr)]
    if isinstance(peer, NamePeer):
        return [("name", peer.pattern)]
    return [_ANY] if isinstance(peer, AnyPeer) else [("peer", repr(peer))]


def _of_address(address: Address) -> Key:
    kind = "exact" if is_literal_only(address) else "ip"
    return (kind, address.version, _BITS[address.version], int(address))


def _of_cidr(cidr: Cidr) -> Key:
    return ("ip", cidr.version, cidr.prefixlen, int(cidr.network_address))


class Cover:
    """A set of peers that can be asked whether it contains another peer, in one of its own."""

    def __init__(self, policy: Policy, peers: Iterable[Peer]) -> None:
        self._policy = policy
        self._keys = {key for peer in peers for key in keys(policy, peer)}
        lengths = {(key[1], key[2]) for key in self._keys if key[0] == "ip"}
        self._lengths = {version: sorted(int(n) for v, n in lengths if v == version) for version in (4, 6)}

    def holds(self, peer: Peer) -> bool:
        """Whether every address or name of `peer` is in this set."""
        return all(any(wider in self._keys for wider in self._wider(key)) for key in keys(self._policy, peer))

    def _wider(self, key: Key) -> Iterator[Key]:
        yield key
        if key[0] == "ip":
            yield _ANY
            version, own, bits = int(key[1]), int(key[2]), int(key[3])
            for length in self._lengths[version]:
                if length < own:
                    gone = _BITS[version] - length
                    yield ("ip", version, length, bits >> gone << gone)
        elif key[0] == "name":
            rest = str(key[1]).removeprefix("*.")
            while "." in rest:
                rest = rest.partition(".")[2]
                yield ("name", f"*.{rest}")


def is_everything(peer: Peer) -> bool:
    """Whether a peer is every address of a family."""
    return isinstance(peer, AnyPeer) or (isinstance(peer, CidrPeer) and peer.cidr.prefixlen == 0)


LOOPBACK: tuple[Peer, ...] = (
    CidrPeer(ip_network("127.0.0.0/8")),
    AddressPeer(ip_network("::1").network_address),
)
