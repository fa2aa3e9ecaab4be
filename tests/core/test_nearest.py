"""The words about the rule that came closest: right, bounded, quick."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from penstock.core.connection import Connection, as_sent
from penstock.core.nearest import NO_GAP, NearestNames, called, describe, nearest, port_gap, terms
from penstock.core.policy import (
    EVERY_PORT,
    AddressPeer,
    AnyPeer,
    CidrPeer,
    Direction,
    HostPeer,
    MetadataPeer,
    NamePeer,
    Network,
    NetworkPeer,
    Peer,
    Place,
    Plane,
    PlanePeer,
    Policy,
    PortRange,
    Ports,
    Rule,
    WorkloadPeer,
)

OUT, IN = Direction.OUT, Direction.IN
POLICY = Policy(
    networks={
        "clients": Network("clients", (ip_network("192.0.2.0/24"), ip_network("10.30.0.0/16"))),
        "gpu-lan": Network("gpu-lan", interface="eno2"),
    }
)


def tcp(*ports: int) -> Ports:
    return Ports(tuple(PortRange("tcp", port, port) for port in ports))


def address(text: str) -> AddressPeer:
    return AddressPeer(ip_address(text))


def cidr(text: str) -> CidrPeer:
    return CidrPeer(ip_network(text))


def out(remote: str | None, port: int | None = 443, protocol: str = "tcp", name: str = "") -> Connection:
    return Connection("w", OUT, protocol, None if remote is None else ip_address(remote), port, name)


def pick(connection: Connection, *rules: tuple[Peer, Ports]) -> tuple[int, str] | None:
    """The position of the nearest of `rules` and in what it differs."""
    built = [Rule(str(i), connection.direction, (peer,), ports) for i, (peer, ports) in enumerate(rules)]
    near = nearest(POLICY, built, connection)
    return None if near is None else (int(near.rule.id), near.text.rpartition(": ")[2])


OTHER, BOTH = "other destination", "other destination and port"


@pytest.mark.parametrize(
    ("connection", "rules", "expected"),
    [
        # the most leading bits, among rules with the port
        (out("10.30.1.9"), [(address("10.99.0.1"), tcp(443)), (address("10.30.1.5"), tcp(443))], (1, OTHER)),
        (out("10.30.1.9"), [(address("10.30.1.5"), tcp(443)), (address("10.30.1.4"), tcp(443))], (0, OTHER)),
        (out("fd00::9"), [(address("10.0.0.1"), tcp(443)), (address("fd00::1"), tcp(443))], (1, OTHER)),
        # the right port before the closer address
        (out("10.30.1.9"), [(address("10.30.1.8"), tcp(80)), (address("203.0.113.1"), tcp(443))], (1, OTHER)),
        # a short prefix shares no more than its length
        (out("10.30.1.9"), [(cidr("10.30.2.0/24"), tcp(443)), (cidr("10.28.0.0/15"), tcp(443))], (0, OTHER)),
        (out("10.0.0.1"), [(cidr("10.0.0.0/8"), tcp(443)), (address("10.0.0.9"), tcp(443))], (1, OTHER)),
        (
            out("10.30.1.9"),
            [(NetworkPeer("gpu-lan"), tcp(443)), (NetworkPeer("clients"), tcp(443))],
            (1, OTHER),
        ),
        (out("10.30.1.9"), [(NetworkPeer("gpu-lan"), tcp(443))], (0, "other interface")),
        (out("10.30.1.9"), [(NetworkPeer("gpu-lan"), tcp(80))], None),
        # names by their last labels
        (
            out(None, name="cdn.hf.co"),
            [(NamePeer("example.co"), tcp(443)), (NamePeer("*.hf.co"), tcp(443))],
            (1, OTHER),
        ),
        (out("10.0.0.1"), [(NamePeer("a.example"), tcp(443)), (address("10.9.9.9"), tcp(443))], (1, OTHER)),
        # with another port too it takes some likeness
        (out("10.30.1.9"), [(address("10.99.0.1"), tcp(80))], (0, BOTH)),
        (out("10.30.1.9"), [(address("11.30.1.9"), tcp(80))], None),
        (out(None, name="hf.co"), [(NamePeer("x.hf.co"), tcp(80))], (0, BOTH)),
        (out(None, name="hf.co"), [(NamePeer("x.co"), tcp(80))], None),
        # nothing known, nothing there
        (out(None), [(address("10.0.0.1"), tcp(443))], (0, OTHER)),
        (out("10.0.0.1"), [(AnyPeer(), tcp(80))], None),
        (out("10.0.0.1"), [], None),
        (out("10.0.0.1", None, "icmp"), [(address("10.0.0.2"), Ports(icmp=True))], (0, OTHER)),
        (out("10.0.0.1", None, "icmp"), [(address("10.0.0.2"), tcp(443))], (0, BOTH)),
    ],
)
def test_nearest(
    connection: Connection, rules: list[tuple[Peer, Ports]], expected: tuple[int, str] | None
) -> None:
    assert pick(connection, *rules) == expected


def test_coming_in_the_source_differs() -> None:
    rule = Rule("r", IN, (NetworkPeer("clients"),), tcp(11434))
    near = nearest(POLICY, [rule], Connection("w", IN, "tcp", ip_address("10.31.0.1"), 11434))
    assert near is not None
    assert near.text == "nearest is rule r (clients -> 11434): other source"


def test_the_nearest_of_many_peers_is_shown_first() -> None:
    rule = Rule("r", OUT, tuple(AddressPeer(IPv4Address(0x0A000000 + 2 * i)) for i in range(1000)), tcp(5432))
    near = nearest(POLICY, [rule], out("10.0.3.233", 5432))
    assert near is not None
    assert "(10.0.3.232, 10.0.0.0, 10.0.0.2 and 997 more; ports 5432)" in near.text


@pytest.mark.parametrize(
    ("connection", "ports", "gap"),
    [
        (out("10.0.0.1", 443), tcp(443), 0),
        (out("10.0.0.1", 443), tcp(80, 440), 3),
        (out("10.0.0.1", 443), Ports((PortRange("tcp", 8000, 8100),)), 7557),
        (out("10.0.0.1", 8101), Ports((PortRange("tcp", 8000, 8100),)), 1),
        (out("10.0.0.1", 443), Ports((PortRange("udp", 443, 443),)), 65536),
        (out("10.0.0.1", 2375), Ports((PortRange("tcp", 2000, 3000),)), 1),
        (out("10.0.0.1", 2375), Ports((PortRange("tcp", 2000, 3000), PortRange("tcp", 2375, 2375))), 0),
        (replace(out("10.0.0.1", 2375), direction=Direction.IN), Ports((PortRange("tcp", 2000, 3000),)), 0),
        (out("10.0.0.1", 443), Ports(icmp=True), NO_GAP),
        (out("10.0.0.1", None), tcp(443), NO_GAP),
        (out("10.0.0.1", None, "icmp"), tcp(443), NO_GAP),
        (out("10.0.0.1", None, "icmp"), Ports(icmp=True), 0),
    ],
)
def test_port_gap(connection: Connection, ports: Ports, gap: int) -> None:
    assert port_gap(ports, connection) == gap


@pytest.mark.parametrize(
    ("direction", "peers", "ports", "text"),
    [
        (OUT, [address("10.30.1.5")], tcp(5432), "10.30.1.5:5432"),
        (OUT, [address("fd00::5")], tcp(5432), "[fd00::5]:5432"),
        (OUT, [cidr("fd00::/8")], Ports(EVERY_PORT), "[fd00::/8]:any"),
        (OUT, [cidr("10.0.0.0/8")], Ports(EVERY_PORT, icmp=True), "10.0.0.0/8:any, icmp"),
        (OUT, [NamePeer("*.hf.co")], Ports((PortRange("udp", 443, 443),)), "*.hf.co:443/udp"),
        (OUT, [WorkloadPeer("gateway")], tcp(80), "workload:gateway:80"),
        (OUT, [MetadataPeer()], tcp(80), "metadata:80"),
        (OUT, [AnyPeer()], Ports(icmp=True), "any:icmp"),
        (OUT, [AnyPeer()], tcp(1, 2, 3, 4, 5), "any:1, 2, 3 and 2 more"),
        (OUT, [address("10.0.0.1"), address("fd00::1")], tcp(80), "10.0.0.1, fd00::1; ports 80"),
        (OUT, [], Ports(), "nobody:none"),
        (IN, [NetworkPeer("clients")], tcp(11434), "clients -> 11434"),
        (IN, [PlanePeer(Plane.ADMIN), HostPeer()], tcp(9090), "plane:admin, host -> 9090"),
        (IN, [], tcp(9090), "nobody -> 9090"),
    ],
)
def test_describe(direction: Direction, peers: list[Peer], ports: Ports, text: str) -> None:
    assert describe(Rule("r", direction, tuple(peers), ports)) == text


def test_a_description_is_short_and_safe_whatever_the_rule_says() -> None:
    peers = tuple(NamePeer("\x1b[2J" + "x" * 300 + str(i)) for i in range(1000))
    text = describe(Rule("r", OUT, peers, tcp(*range(1000))))
    assert len(text) < 300
    assert text.isprintable()


def test_a_thousand_peers_are_no_burden() -> None:
    rule = Rule("r", OUT, tuple(AddressPeer(IPv4Address(0x0A000000 + i)) for i in range(1000)), tcp(5432))
    began = time.process_time()
    for _ in range(10):
        nearest(POLICY, [rule], out("10.9.0.1", 5432))
    assert (time.process_time() - began) / 10 < 0.05


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("fd00::1", "fd00::1"),
        ("10.0.0.1",) * 2,
    ],
)
def test_as_sent(typed: str, sent: str) -> None:
    assert as_sent(out(typed)) == out(sent)


NOW = datetime(2026, 11, 25, tzinfo=UTC)


def named(id: str, *patterns: str) -> Rule:
    return Rule(id, OUT, tuple(map(NamePeer, patterns)), tcp(443))


NAMES = (
    named("hub", "*.hf.co", "huggingface.co"),
    named("deep", "a.b.example.org"),
    named("cloud", "bucket.s3.amazonaws.com"),
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf.co", "hub"),
        ("cdn.huggingface.co", "hub"),
        ("c.b.example.org", "deep"),
        ("example.org", "deep"),
        ("other.s3.amazonaws.com", None),  # a suffix under which anybody gets a name is no likeness
        ("other.co", None),
        ("co", None),
        ("", None),
    ],
)
def test_the_name_that_shares_most_is_nearest(name: str, expected: str | None) -> None:
    near = NearestNames(NAMES).of(name, NOW)
    assert (near.rule.id if near else None) == expected


def test_a_rule_that_is_over_is_no_nearest_name() -> None:
    over = replace(NAMES[1], expires=NOW)
    assert NearestNames([over]).of("c.b.example.org", NOW) is None


def test_what_is_lent_says_whose_it_is_and_until_when() -> None:
    end = datetime(2026, 3, 1, 13, tzinfo=UTC)
    one = Rule("grant-1a2b3c4d", OUT, (address("10.30.1.5"),), tcp(5432), expires=end, reason="anna: to see")
    assert called(one) == "grant-1a2b3c4d (10.30.1.5:5432)"
    assert terms(one) == ", until 2026-03-01T13:00:00Z, anna: to see"
    for rule in (replace(one, id="db", expires=None), replace(one, place=Place("rules.d/a.yaml", 1, 1))):
        assert called(rule) == f"rule {rule.id} (10.30.1.5:5432)"
        assert terms(rule) == ""
