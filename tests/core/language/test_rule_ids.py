"""Ids: what counts, and that they differ for what differs."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

from penstock.core.language.rule_ids import derived_id
from penstock.core.policy import AddressPeer, CidrPeer, Direction, PortRange, Ports, Rule

RULE = Rule("", Direction.OUT, (AddressPeer(ip_address("10.0.0.1")),), Ports((PortRange("tcp", 443, 443),)))


def test_everything_that_is_said_counts() -> None:
    ten = CidrPeer(ip_network("10.0.0.0/8"))
    others = [
        replace(RULE, peers=(ten,)),
        replace(RULE, peers=(*RULE.peers, ten)),
        replace(RULE, ports=Ports(RULE.ports.ranges, icmp=True)),
        replace(RULE, ports=Ports((PortRange("udp", 443, 443),))),
        replace(RULE, excepted=(ten,)),
        replace(RULE, private=True),
        replace(RULE, direction=Direction.IN),
    ]
    assert len({derived_id(rule) for rule in [RULE, *others]}) == 8
    assert derived_id(replace(RULE, reason="x", id="y", preset="z")) == derived_id(RULE) == "egress-eb0f404a"
