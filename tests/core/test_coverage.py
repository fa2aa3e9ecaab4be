"""Containment of peers by look-up."""

from ipaddress import ip_address, ip_network

import pytest

from penstock.core.coverage import Cover
from penstock.core.policy import AddressPeer, AnyPeer, CidrPeer, NamePeer, Network, NetworkPeer, Peer, Policy

NET = Network("net", (ip_network("10.1.0.0/16"), ip_network("fd00::/8")))
POLICY = Policy(networks={"net": NET, "lan": Network("lan", interface="eth0")})


def a(text: str) -> AddressPeer:
    return AddressPeer(ip_address(text))


def c(text: str) -> CidrPeer:
    return CidrPeer(ip_network(text))


@pytest.mark.parametrize(
    ("outer", "inner", "yes"),
    [
        (c("10.0.0.0/8"), a("10.1.1.1"), True),
        (c("10.0.0.0/8"), c("10.0.0.0/8"), True),
        (c("10.0.0.0/8"), c("0.0.0.0/0"), False),
        (c("10.0.0.0/8"), NetworkPeer("net"), False),
        (NetworkPeer("net"), a("fd12::1"), True),
        (NetworkPeer("net"), a("11.0.0.1"), False),
        (NetworkPeer("lan"), NetworkPeer("lan"), True),
        (AnyPeer(), NetworkPeer("net"), True),
        (AnyPeer(), a("169.254.169.254"), False),
        (c("0.0.0.0/0"), a("169.254.1.1"), False),
        (a("169.254.1.1"), a("169.254.1.1"), True),
        (c("::/0"), a("10.0.0.1"), False),
        (NamePeer("*.a.org"), NamePeer("b.c.a.org"), True),
        (NamePeer("*.a.org"), NamePeer("*.b.a.org"), True),
        (NamePeer("*.a.org"), NamePeer("a.org"), False),
    ],
)
def test_holds(outer: Peer, inner: Peer, yes: bool) -> None:
    assert Cover(POLICY, [outer]).holds(inner) is yes
