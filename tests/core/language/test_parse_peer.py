"""One word of `to:`, `from:` and `except:`."""

from ipaddress import ip_address, ip_network

import pytest

from penstock.core.language.parse_peer import BadPeer, peer, prefix
from penstock.core.policy import (
    AddressPeer,
    AnyPeer,
    CidrPeer,
    Direction,
    HostPeer,
    MetadataPeer,
    NamePeer,
    NetworkPeer,
    Peer,
    Plane,
    PlanePeer,
    WorkloadPeer,
)

OUT, IN = Direction.OUT, Direction.IN


@pytest.mark.parametrize(
    ("text", "direction", "found"),
    [
        ("10.0.0.1", OUT, AddressPeer(ip_address("10.0.0.1"))),
        ("10.0.0.1/32", OUT, AddressPeer(ip_address("10.0.0.1"))),
        ("2001:DB8::1", IN, AddressPeer(ip_address("2001:db8::1"))),
        ("0.0.0.0/0", OUT, CidrPeer(ip_network("0.0.0.0/0"))),
        ("fd00::/8", IN, CidrPeer(ip_network("fd00::/8"))),
        ("*.HF.co", OUT, NamePeer("*.hf.co")),
        ("clients", OUT, NetworkPeer("clients")),
        ("workload:open-webui", OUT, WorkloadPeer("open-webui")),
        ("metadata", OUT, MetadataPeer()),
        ("any", OUT, AnyPeer()),
        ("any", IN, AnyPeer()),
        ("host", IN, HostPeer()),
        ("plane:admin", IN, PlanePeer(Plane.ADMIN)),
    ],
)
def test_peers(text: str, direction: Direction, found: Peer) -> None:
    assert peer(text, direction) == found


@pytest.mark.parametrize(
    ("text", "direction", "hint"),
    [
        ("host", OUT, "127.0.0.1"),
        ("self", OUT, "leave the rule out"),
        ("plane:admin", OUT, "names of its networks"),
        ("plane:users", IN, "plane:admin"),
        ("metadata", IN, "`to:`"),
        ("a.org", IN, "by address only"),
        ("localhost", OUT, "127.0.0.1"),
        ("0.0.0.0", OUT, "any"),
        ("::", OUT, "any"),
        ("010.0.0.1", OUT, "write 10.0.0.1"),
        ("1.2.3", OUT, "four numbers"),
        ("1.2.3.256", OUT, "0 to 255"),
        ("fe80::1%eth0", OUT, 'write "fe80::1"'),
        ("fe80::%eth0/10", OUT, 'write "fe80::"'),
        ("::ffff:10.0.0.1", OUT, "write 10.0.0.1"),
        ("::ffff:10.0.0.0/104", OUT, "write 10.0.0.0/8"),
        ("10.0.0.5/8", OUT, "write 10.0.0.0/8"),
        ("fd00::1/8", OUT, 'write "fd00::/8"'),
        ("10.0.0.0/33", OUT, "0 to 32"),
        ("fd00::/129", OUT, "0 to 128"),
        ("10.0.0.0/-1", OUT, "prefix"),
        ("10.0.0.0/08", OUT, "write 10.0.0.0/8"),
        ("10.0.0.0/255.0.0.0", OUT, "write 10.0.0.0/8"),
        ("a.org/path", OUT, "no path"),
        ("https://user@a.org:8/x", OUT, "a.org"),
        ("a.org:443", OUT, "write a.org, and `ports: [443]`"),
        ("10.0.0.1:443/udp", IN, "listens"),
        ("[::1]:443", OUT, 'write "::1"'),
        ("[::1]", OUT, 'write "::1"'),
        ("network:clients", OUT, "write clients"),
        ("workload:", OUT, "workload:NAME"),
        ("workload:A", OUT, "write a"),
        ("Clients", OUT, "write clients"),
        ("a b", OUT, "list"),
    ],
)
def test_what_is_no_peer(text: str, direction: Direction, hint: str) -> None:
    with pytest.raises(BadPeer) as caught:
        peer(text, direction)
    assert hint in caught.value.hint


def test_a_prefix_of_one_address_stays_a_prefix() -> None:
    assert prefix("10.0.0.1") == ip_network("10.0.0.1/32")
