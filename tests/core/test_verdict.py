"""What a policy means, as a table; and what must hold for every policy."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.policy import (
    EVERY_PORT,
    LINK_LOCAL,
    METADATA,
    AddressPeer,
    AnyPeer,
    CidrPeer,
    Direction,
    HostPeer,
    MetadataPeer,
    Mode,
    NamePeer,
    Network,
    NetworkPeer,
    Peer,
    Plane,
    PlanePeer,
    Policy,
    PortRange,
    Ports,
    Rule,
    Workload,
    WorkloadPeer,
)
from penstock.core.verdict import NEAR_MISSES, TEXTS, Connection, Live, Reason, Verdict, judge

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HTTPS = Ports((PortRange("tcp", 443, 443),))
NETWORKS = {
    "clients": Network(
        "clients", (ip_network("10.30.0.0/16"), ip_network("fd00:30::/64")), plane=Plane.INFERENCE
    ),
    "admin": Network("admin", (ip_network("10.20.0.0/24"),), plane=Plane.ADMIN),
    "gpu-lan": Network("gpu-lan", interface="eno2", plane=Plane.ADMIN),
    "lure": Network("lure", (ip_network("169.254.169.254/32"), ip_network("fe80::/64"))),
}


def peer(text: str) -> Peer:
    """The peer an operator would write as `text`; an address with `/` is a prefix whatever its length."""
    words: dict[str, Peer] = {
        "any": AnyPeer(),
        "host": HostPeer(),
        "metadata": MetadataPeer(),
        "plane:admin": PlanePeer(Plane.ADMIN),
        "plane:inference": PlanePeer(Plane.INFERENCE),
        "workload:gateway": WorkloadPeer("gateway"),
        "workload:other": WorkloadPeer("other"),
    }
    if text in words:
        return words[text]
    if text in NETWORKS:
        return NetworkPeer(text)
    if "/" in text:
        return CidrPeer(ip_network(text))
    if text[-1].isalpha() and ":" not in text:
        return NamePeer(text)
    return AddressPeer(ip_address(text))


def rule(direction: Direction, number: int, peers: str, ports: Ports = HTTPS, **more: Any) -> Rule:
    return Rule(
        f"{direction}-{number}", direction, tuple(peer(word) for word in peers.split()), ports, **more
    )


def policy(*, out: tuple[Rule, ...] = (), in_: tuple[Rule, ...] = (), mode: Mode = Mode.ENFORCE) -> Policy:
    return Policy(networks=NETWORKS, workloads={"w": Workload("w", mode, out, in_)})


def out(remote: str | None, port: int | None = 443, protocol: str = "tcp", **more: Any) -> Connection:
    address = None if remote is None else ip_address(remote)
    return Connection("w", Direction.OUT, protocol, address, port, **more)


def into(remote: str | None, port: int | None = 443, protocol: str = "tcp", **more: Any) -> Connection:
    return replace(out(remote, port, protocol, **more), direction=Direction.IN)


def ask(rules: tuple[Rule, ...], connection: Connection, *, as_written: bool = False) -> Verdict:
    """Judge `connection` by `rules`, put on the side of the connection's direction."""
    going_out = connection.direction is Direction.OUT
    asked = policy(out=rules) if going_out else policy(in_=rules)
    return judge(asked, Live(NOW), connection, as_written=as_written)


# --- one rule, tcp/443 unless said otherwise: who is allowed, and why not ---

RANGE = Ports((PortRange("tcp", 8000, 8100), PortRange("udp", 443, 443)))
DOCKER = Ports((PortRange("tcp", 2000, 3000), PortRange("tcp", 2375, 2375)))
ECHO = Ports(icmp=True)
ANY_PORT = Ports(EVERY_PORT)

EGRESS = [
    # peers, ports, connection, expected
    ("10.30.1.5", HTTPS, out("10.30.1.5"), Reason.RULE),
    ("10.30.1.5", HTTPS, out("10.30.1.6"), Reason.NO_RULE),
    ("10.30.1.5", HTTPS, out("10.30.1.5", 444), Reason.WRONG_PORT),
    ("10.30.1.5", HTTPS, out("10.30.1.5", protocol="udp"), Reason.WRONG_PORT),
    ("10.30.1.5", HTTPS, out("10.30.1.5", None), Reason.WRONG_PORT),
    ("10.30.1.5", HTTPS, out("10.30.1.5", None, "icmp"), Reason.WRONG_PORT),
    ("2001:db8::5", HTTPS, out("2001:db8::5"), Reason.RULE),
    ("2001:db8::5", HTTPS, out("2001:db8::6"), Reason.NO_RULE),
    # the far end as the packet carries it
    ("10.30.1.5", HTTPS, out("::ffff:10.30.1.5"), Reason.RULE),
    ("::/0", HTTPS, out("::ffff:10.30.1.5"), Reason.NO_RULE),
    ("any", HTTPS, out("::ffff:169.254.169.254"), Reason.METADATA),
    ("fe80::5", HTTPS, out("fe80::5%eth0"), Reason.RULE),
    # edges of ranges
    ("10.30.1.5", RANGE, out("10.30.1.5", 7999), Reason.WRONG_PORT),
    ("10.30.1.5", RANGE, out("10.30.1.5", 8000), Reason.RULE),
    ("10.30.1.5", RANGE, out("10.30.1.5", 8100), Reason.RULE),
    ("10.30.1.5", RANGE, out("10.30.1.5", 8101), Reason.WRONG_PORT),
    ("10.30.1.5", RANGE, out("10.30.1.5", 443, "udp"), Reason.RULE),
    ("10.30.1.5", RANGE, out("10.30.1.5", 8000, "udp"), Reason.WRONG_PORT),
    ("any", ANY_PORT, out("192.0.2.1", 0), Reason.RULE),
    ("any", ANY_PORT, out("192.0.2.1", 65535, "udp"), Reason.RULE),
    # echo, and protocols that nothing can allow
    ("any", ECHO, out("192.0.2.1", None, "icmp"), Reason.RULE),
    ("any", ECHO, out("2001:db8::1", None, "icmp"), Reason.RULE),
    ("any", ECHO, out("192.0.2.1", 443), Reason.WRONG_PORT),
    ("any", ANY_PORT, out("192.0.2.1", None, "icmp"), Reason.WRONG_PORT),
    ("any", ANY_PORT, out("192.0.2.1", 443, "132"), Reason.NO_RULE),
    ("any", ANY_PORT, out("192.0.2.1", 443, "6"), Reason.NO_RULE),
    # edges of prefixes
    ("10.30.1.0/30", HTTPS, out("10.30.0.255"), Reason.NO_RULE),
    ("10.30.1.0/30", HTTPS, out("10.30.1.0"), Reason.RULE),
    ("10.30.1.0/30", HTTPS, out("10.30.1.3"), Reason.RULE),
    ("10.30.1.0/30", HTTPS, out("10.30.1.4"), Reason.NO_RULE),
    ("fd00:1::/64", HTTPS, out("fd00:0:ffff:ffff:ffff:ffff:ffff:ffff"), Reason.NO_RULE),
    ("fd00:1::/64", HTTPS, out("fd00:1::"), Reason.RULE),
    ("fd00:1::/64", HTTPS, out("fd00:1::ffff:ffff:ffff:ffff"), Reason.RULE),
    ("fd00:1::/64", HTTPS, out("fd00:1:0:1::"), Reason.NO_RULE),
    ("0.0.0.0/0", HTTPS, out("2001:db8::1"), Reason.NO_RULE),
    ("::/0", HTTPS, out("192.0.2.1"), Reason.NO_RULE),
    # networks, any
    ("clients", HTTPS, out("10.30.255.255"), Reason.RULE),
    ("clients", HTTPS, out("fd00:30::9"), Reason.RULE),
    ("clients", HTTPS, out("10.31.0.0"), Reason.NO_RULE),
    ("any", HTTPS, out("2001:db8::1"), Reason.RULE),
    ("any", HTTPS, out(None, name="example.org"), Reason.NO_RULE),
    ("10.0.0.1 admin", HTTPS, out("10.20.0.9"), Reason.RULE),
    ("", HTTPS, out("10.20.0.9"), Reason.NO_RULE),
    # metadata and link-local: literally or not at all
    ("169.254.169.254", HTTPS, out("169.254.169.254"), Reason.RULE),
    ("metadata", HTTPS, out("169.254.169.254"), Reason.RULE),
    ("metadata", HTTPS, out("fd00:ec2::254"), Reason.RULE),
    ("metadata", HTTPS, out("fd00:ec2::254", 80), Reason.WRONG_PORT),
    ("metadata", HTTPS, out("169.254.1.1"), Reason.LINK_LOCAL),
    ("any", HTTPS, out("169.254.169.254"), Reason.METADATA),
    ("169.254.169.254/32", HTTPS, out("169.254.169.254"), Reason.METADATA),
    ("lure", HTTPS, out("169.254.169.254"), Reason.METADATA),
    ("100.64.0.0/10", HTTPS, out("100.100.100.200"), Reason.METADATA),
    ("100.64.0.0/10", HTTPS, out("100.100.100.201"), Reason.RULE),
    ("fd00::/8", HTTPS, out("fd00:ec2::254"), Reason.METADATA),
    ("169.254.1.1", HTTPS, out("169.254.1.1"), Reason.RULE),
    ("169.254.0.0/16", HTTPS, out("169.254.1.1"), Reason.LINK_LOCAL),
    ("any", HTTPS, out("169.253.255.255"), Reason.RULE),
    ("any", HTTPS, out("169.254.0.0"), Reason.LINK_LOCAL),
    ("any", HTTPS, out("169.254.255.255"), Reason.LINK_LOCAL),
    ("any", HTTPS, out("169.255.0.0"), Reason.RULE),
    ("lure", HTTPS, out("fe80::1"), Reason.LINK_LOCAL),
    ("any", HTTPS, out("febf:ffff::1"), Reason.LINK_LOCAL),
    ("any", HTTPS, out("fec0::1"), Reason.RULE),
    # control ports: alone or not at all
    ("10.30.1.5", DOCKER, out("10.30.1.5", 2375), Reason.RULE),
    ("10.30.1.5", DOCKER, out("10.30.1.5", 2376), Reason.CONTROL_PORT),
    ("10.30.1.5", DOCKER, out("10.30.1.5", 2377), Reason.RULE),
    ("10.30.1.5", DOCKER, out("10.30.1.6", 2376), Reason.NO_RULE),
    ("10.30.1.5", DOCKER, out("10.30.1.5", 10250), Reason.WRONG_PORT),
    ("any", ANY_PORT, out("192.0.2.1", 10250), Reason.CONTROL_PORT),
    ("any", ANY_PORT, out("192.0.2.1", 10250, "udp"), Reason.RULE),
    ("*.hf.co", ANY_PORT, out("192.0.2.1", 16514, name="cdn.hf.co"), Reason.CONTROL_PORT),
    ("workload:gateway", ANY_PORT, out("127.0.0.1", 2375, peer_workload="gateway"), Reason.CONTROL_PORT),
    # names
    ("*.hf.co", HTTPS, out("192.0.2.1", name="cdn.hf.co"), Reason.RULE),
    ("*.hf.co", HTTPS, out("169.254.169.254", name="cdn.hf.co"), Reason.METADATA),
    ("*.hf.co", HTTPS, out("192.0.2.1", 80, name="cdn.hf.co"), Reason.WRONG_PORT),
    # where somebody else led it, nobody knows
    ("any", HTTPS, out(None), Reason.RULE),
    ("10.30.1.5 any", HTTPS, out(None), Reason.RULE),
    ("any", HTTPS, out(None, 80), Reason.WRONG_PORT),
    ("any", ANY_PORT, out(None, 2375), Reason.CONTROL_PORT),
    ("10.30.1.5", HTTPS, out(None), Reason.DEPENDS),
    ("10.30.1.5", HTTPS, out(None, 80), Reason.NO_RULE),
    ("10.30.1.5", ANY_PORT, out(None, 2375), Reason.NO_RULE),
    ("10.0.0.0/8", HTTPS, out(None), Reason.DEPENDS),
    ("clients", HTTPS, out(None), Reason.DEPENDS),
    ("gpu-lan", HTTPS, out(None), Reason.DEPENDS),
    ("metadata", HTTPS, out(None), Reason.DEPENDS),
    ("workload:gateway", HTTPS, out(None), Reason.DEPENDS),
    ("10.30.1.5", ECHO, out(None, None, "icmp"), Reason.DEPENDS),
    ("", HTTPS, out(None), Reason.NO_RULE),
    ("10.30.1.5", HTTPS, out(None, name="example.org"), Reason.NO_RULE),
    # workloads
    ("workload:gateway", HTTPS, out("127.0.0.1", peer_workload="gateway"), Reason.RULE),
    ("workload:gateway", HTTPS, out("127.0.0.1"), Reason.NO_RULE),
    ("workload:gateway", HTTPS, out("127.0.0.1", 80, peer_workload="gateway"), Reason.WRONG_PORT),
    # what the kernel is not told yet
    ("gpu-lan", HTTPS, out("192.0.2.1", interface="eno2"), Reason.RULE),
    ("gpu-lan", HTTPS, out("192.0.2.1", interface="eno1"), Reason.NO_RULE),
    ("gpu-lan", HTTPS, out("192.0.2.1"), Reason.NO_RULE),
    ("gpu-lan", HTTPS, out("192.0.2.1", interface="eno2", here=True), Reason.NO_RULE),
    ("gpu-lan", HTTPS, out("169.254.169.254", interface="eno2"), Reason.METADATA),
    ("gpu-lan", HTTPS, out("fe80::1", interface="eno2"), Reason.LINK_LOCAL),
    ("*.hf.co 192.0.2.1", HTTPS, out("192.0.2.1", name="cdn.hf.co"), Reason.RULE),
    # the far end is ourselves
    ("", HTTPS, out("127.0.0.1", 9, own=True), Reason.SELF),
]

INGRESS = [
    ("clients", HTTPS, into("10.30.0.0"), Reason.RULE),
    ("any", HTTPS, into(None), Reason.NO_RULE),
    ("clients", HTTPS, into("10.29.255.255"), Reason.NO_RULE),
    ("clients", HTTPS, into("fd00:30::1", 80), Reason.WRONG_PORT),
    ("any", HTTPS, into("127.0.0.1", peer_workload="gateway"), Reason.RULE),
    ("any", ECHO, into("2001:db8::1", None, "icmp"), Reason.RULE),
    # the closed addresses are closed going out only
    ("any", HTTPS, into("fe80::1"), Reason.RULE),
    ("fe80::/10", HTTPS, into("fe80::1"), Reason.RULE),
    ("169.254.0.0/16", HTTPS, into("169.254.169.254"), Reason.RULE),
    ("clients", HTTPS, into("169.254.169.254"), Reason.NO_RULE),
    ("any", ANY_PORT, into("10.30.0.1", 2375), Reason.RULE),
    # planes and workloads
    ("plane:inference", HTTPS, into("10.30.0.1"), Reason.RULE),
    ("plane:admin", HTTPS, into("10.30.0.1"), Reason.NO_RULE),
    ("workload:gateway", HTTPS, into("::1", peer_workload="gateway"), Reason.RULE),
    ("workload:gateway", HTTPS, into("::1", peer_workload="other"), Reason.NO_RULE),
    ("host", HTTPS, into("127.0.0.1"), Reason.RULE),
    ("host", HTTPS, into("127.0.0.1", peer_workload="gateway"), Reason.NO_RULE),
    ("", HTTPS, into("127.0.0.1", own=True), Reason.SELF),
]


@pytest.mark.parametrize(("peers", "ports", "connection", "expected"), EGRESS + INGRESS)
def test_one_rule(peers: str, ports: Ports, connection: Connection, expected: Reason) -> None:
    only = rule(connection.direction, 1, peers, ports)
    verdict = ask((only,), connection)
    assert verdict.reason is expected
    assert verdict.allow is (expected in (Reason.RULE, Reason.SELF))
    assert verdict.rule == (only.id if expected is Reason.RULE else None)
    if expected in NEAR_MISSES:
        assert verdict.nearest == only.id
        assert f"rule {only.id} (" in verdict.text


AS_WRITTEN = [
    ("*.hf.co", out(None, name="cdn.hf.co"), True),
    ("*.hf.co", out(None, name="hf.co"), False),
    ("*.hf.co", out("192.0.2.1"), False),
    ("*.hf.co", out("192.0.2.1", name="cdn.hf.co"), True),
    ("*.hf.co", out("169.254.169.254", name="cdn.hf.co"), False),  # rebinding
    ("workload:gateway", out("127.0.0.1", peer_workload="gateway"), True),
    ("workload:gateway", out("127.0.0.1", peer_workload="other"), False),
    ("workload:gateway", into("127.0.0.1"), False),
    ("host", into("127.8.8.8"), True),
    ("host", into("::1"), True),
    ("host", into("127.0.0.1", peer_workload="gateway"), False),
    ("host", into("10.20.0.1"), False),
    ("host", into(None), False),
    ("plane:admin", into("10.20.0.255"), True),
    ("plane:admin", into("10.30.0.1"), False),
    ("plane:admin", into("192.0.2.1", interface="eno2"), True),
    ("plane:inference", into("fd00:30::1"), True),
    ("gpu-lan", into("192.0.2.1", interface="eno2"), True),
    ("gpu-lan", into("192.0.2.1", interface="eno1"), False),
    ("gpu-lan", into("192.0.2.1"), False),
    ("clients", into("10.30.0.1"), True),
]


@pytest.mark.parametrize(("peers", "connection", "expected"), AS_WRITTEN)
def test_as_written(peers: str, connection: Connection, expected: bool) -> None:
    assert ask((rule(connection.direction, 1, peers),), connection, as_written=True).allow is expected


SSH = PortRange("tcp", 22, 22)
EVERYBODY = (
    rule(Direction.OUT, 1, "any", Ports(EVERY_PORT)),
    rule(Direction.OUT, 2, "workload:other", Ports(EVERY_PORT)),
    rule(Direction.IN, 3, "any workload:other host", Ports(EVERY_PORT)),
)
BARRED = [
    (out("127.0.0.1", 22), True),
    (out("::1", 22), True),
    (out("192.0.2.10", 22, here=True), True),
    (out("192.0.2.10", 22), False),  # another host's
    (out("127.0.0.1", 22, protocol="udp"), False),
    (out("127.0.0.1", 23), False),
    (out("127.0.0.1", 22, peer_workload="other"), True),
    (out("127.0.0.1", 22, own=True), False),
    (into("10.30.0.1", 22), True),
    (into("fd00:30::1", 22), True),
    (into("::ffff:10.30.0.1", 22), True),
    (into("10.30.0.1", 23), False),
    (into("10.20.0.1", 22), False),
    (into("192.0.2.1", 22), False),
    (into("192.0.2.1", 22, interface="eno7"), True),
    (into("127.0.0.1", 22), False),  # whoever is no workload
    (into("127.0.0.1", 22, peer_workload="other"), True),
]


@pytest.mark.parametrize(("connection", "expected"), BARRED)
def test_the_hosts_admin_ports(connection: Connection, expected: bool) -> None:
    out_, in_ = EVERYBODY[:2], EVERYBODY[2:]
    workloads = {name: Workload(name, Mode.ENFORCE, out_, in_) for name in ("w", "other")}
    networks = {**NETWORKS, "lan": Network("lan", interface="eno7", plane=Plane.INFERENCE)}
    barred = Policy(networks=networks, workloads=workloads, admin_ports=Ports((SSH,)))
    verdict = judge(barred, Live(NOW), connection)
    assert (verdict.reason is Reason.ADMIN_PORT) is expected
    assert judge(replace(barred, admin_ports=Ports()), Live(NOW), connection).allow
    assert verdict.allow is not expected


def test_not_enforced_is_denied_unless_judged_as_written() -> None:
    rules = (rule(Direction.OUT, 1, "gpu-lan", excepted=(NetworkPeer("clients"),)),)
    connection = out("192.0.2.1", interface="eno2")
    assert ask(rules, connection).reason is Reason.NOT_ENFORCED
    assert ask(rules, connection, as_written=True).rule == "out-1"


@pytest.mark.parametrize(
    ("pattern", "address", "found", "private", "expected"),
    [
        ("*.hf.co", "192.0.2.1", ["cdn.hf.co"], False, True),
        ("*.hf.co", "192.0.2.1", ["hf.co", "a.example"], False, False),
        ("*.hf.co", "192.0.2.1", ["a.example", "cdn.hf.co"], False, True),
        ("*.hf.co", "192.0.2.2", [], False, False),
        ("a.example", "10.0.0.1", ["a.example"], False, False),
        ("a.example", "10.0.0.1", ["a.example"], True, True),
        ("a.example", "169.254.169.254", ["a.example"], True, False),
        ("a.example", "64:ff9b::a9fe:a9fe", ["a.example"], True, False),
        ("a.example", "2001:db8::1", ["a.example"], False, True),
    ],
)
def test_a_name_is_where_the_workloads_own_look_ups_found_it(
    pattern: str, address: str, found: list[str], private: bool, expected: bool
) -> None:
    by_name = replace(rule(Direction.OUT, 1, pattern), private=private)
    there = ip_address(address)
    for workload, allowed in (("w", expected), ("another", False)):
        live = Live(NOW, {workload: {there: found}})
        assert judge(policy(out=(by_name,)), live, out(address)).allow is allowed


@pytest.mark.parametrize("private", [False, True])
def test_a_name_at_an_address_of_this_host_needs_private(private: bool) -> None:
    """It is no private address by its looks, and still one that no stranger may lead to."""
    by_name = replace(rule(Direction.OUT, 1, "a.example"), private=private)
    here = out("192.0.2.1", here=True)
    live = Live(NOW, {"w": {ip_address("192.0.2.1"): ["a.example"]}})
    assert judge(policy(out=(by_name,)), live, here).allow is private
    assert judge(policy(out=(by_name,)), live, replace(here, here=False)).allow


def test_a_network_without_addresses_and_interface_is_nowhere() -> None:
    nowhere = Policy(
        networks={"n": Network("n")},
        workloads={
            "w": Workload("w", Mode.ENFORCE, (), (Rule("in-1", Direction.IN, (NetworkPeer("n"),), HTTPS),))
        },
    )
    assert not judge(nowhere, Live(NOW), into("192.0.2.1"), as_written=True).allow


def test_an_unknown_address_is_taken_for_none_that_is_excepted_and_the_text_says_so() -> None:
    cut = (CidrPeer(ip_network("10.0.0.0/8")),)
    but = "allows it, but at no address that it excepts"
    for peers, far in (("any", out(None)), ("a.example", out(None, name="a.example"))):
        assert ask((rule(Direction.OUT, 1, peers, excepted=cut),), far).text == f"rule out-1 ({peers}:443) {but}"
    assert ask((rule(Direction.OUT, 1, "any", excepted=cut),), out("192.0.2.1")).text.endswith(" allows it")


def test_to_an_unknown_address_nothing_is_open_by_what_is_over_or_not_enforced() -> None:
    cut = (CidrPeer(ip_network("10.0.0.0/8")),)
    for peers, reason in (("any", Reason.EXPIRED), ("10.30.1.5", Reason.NO_RULE)):
        assert ask((rule(Direction.OUT, 1, peers, expires=NOW),), out(None)).reason is reason
    unseen = (NetworkPeer("gpu-lan"),)
    assert ask((rule(Direction.OUT, 1, "any", excepted=unseen),), out(None)).reason is Reason.NOT_ENFORCED
    assert ask((rule(Direction.OUT, 1, "workload:gateway", excepted=cut),), out(None)).reason is Reason.NO_RULE


# --- exceptions ---


def test_an_exception_is_taken_out_of_its_own_rule_only() -> None:
    wide = rule(
        Direction.OUT, 1, "10.0.0.0/8", excepted=(CidrPeer(ip_network("10.30.0.0/30")), NetworkPeer("admin"))
    )
    assert ask((wide,), out("10.29.255.255")).allow
    assert ask((wide,), out("10.30.0.0")).reason is Reason.EXCEPTED
    assert ask((wide,), out("10.30.0.3")).nearest == "out-1"
    assert ask((wide,), out("10.30.0.4")).allow
    assert ask((wide,), out("10.20.0.7")).reason is Reason.EXCEPTED
    assert ask((wide,), out("10.30.0.3", 80)).reason is Reason.NO_RULE  # two points, not one
    assert ask((wide, rule(Direction.OUT, 2, "10.30.0.3")), out("10.30.0.3")).rule == "out-2"


def test_an_exception_closes_even_what_is_named_literally() -> None:
    cut = (CidrPeer(ip_network("169.254.0.0/16")),)
    verdict = ask((rule(Direction.OUT, 1, "metadata", excepted=cut),), out("169.254.169.254"))
    assert verdict.reason is Reason.EXCEPTED


def test_an_exception_that_cannot_be_seen_yet_closes_the_rule() -> None:
    rules = (rule(Direction.IN, 1, "any", excepted=(NetworkPeer("gpu-lan"),)),)
    assert ask(rules, into("192.0.2.1", interface="eno1")).reason is Reason.NOT_ENFORCED
    assert ask(rules, into("192.0.2.1", interface="eno1"), as_written=True).allow
    assert ask(rules, into("192.0.2.1", interface="eno2"), as_written=True).reason is Reason.EXCEPTED


def test_an_exception_beside_who_is_on_this_host_closes_it() -> None:
    """Who is called does not see from which address he is."""
    cut = (CidrPeer(ip_network("10.0.0.0/8")),)
    for who, peer in (("workload:gateway", "gateway"), ("host", "")):
        rules = (rule(Direction.IN, 1, who, excepted=cut),)
        assert ask(rules, into("::1", peer_workload=peer)).reason is Reason.NOT_ENFORCED
        assert ask(rules, into("::1", peer_workload=peer), as_written=True).allow


def test_beside_an_exception_only_addresses_of_a_plane_count() -> None:
    """An interface has no addresses that could be taken out of it."""
    net = Network("net", (ip_network("10.0.0.0/8"),), plane=Plane.ADMIN)
    networks = {"lan": Network("lan", interface="eno2", plane=Plane.ADMIN), "net": net}
    cut = (CidrPeer(ip_network("10.1.0.0/16")),)
    for excepted, reason in (((), Reason.RULE), (cut, Reason.NOT_ENFORCED)):
        found = policy(in_=(rule(Direction.IN, 1, "plane:admin", excepted=excepted),))
        only = replace(found, networks=networks)
        assert judge(only, Live(NOW), into("192.0.2.1", interface="eno2")).reason is reason
        assert judge(only, Live(NOW), into("10.0.0.1", interface="eno2")).allow


# --- time ---


def test_a_rule_ends_at_the_very_moment() -> None:
    def ending(seconds: int, **more: Any) -> tuple[Rule, ...]:
        return (rule(Direction.OUT, 1, "10.30.1.5", expires=NOW + timedelta(seconds=seconds), **more),)

    assert ask(ending(1), out("10.30.1.5")).allow
    assert ask(ending(0), out("10.30.1.5")).reason is Reason.EXPIRED
    assert ask(ending(-1), out("10.30.1.5")).nearest == "out-1"
    # an expired rule that would not have allowed either is not there at all
    assert ask(ending(0), out("10.30.1.5", 80)) == ask(ending(0), out("10.30.1.5", 81))
    assert ask(ending(0), out("10.30.1.5", 80)).nearest is None
    cut = (CidrPeer(ip_network("10.30.1.5/32")),)
    assert ask(ending(0, excepted=cut), out("10.30.1.5")).reason is Reason.NO_RULE


# --- which rule, which reason ---


def test_the_first_rule_that_allows_is_named() -> None:
    rules = (
        rule(Direction.OUT, 1, "10.0.0.1"),
        rule(Direction.OUT, 2, "any"),
        rule(Direction.OUT, 3, "10.0.0.2"),
    )
    assert ask(rules, out("10.0.0.2")).rule == "out-2"


def test_directions_do_not_mix() -> None:
    one_way = policy(out=(rule(Direction.OUT, 1, "any"),))
    assert judge(one_way, Live(NOW), out("192.0.2.1")).allow
    verdict = judge(one_way, Live(NOW), into("192.0.2.1"))
    assert (verdict.reason, verdict.nearest) == (Reason.NO_RULES, None)


def test_a_near_miss_is_told_before_a_general_reason() -> None:
    at = "10.30.1.5"
    misses = {
        Reason.EXPIRED: rule(Direction.OUT, 1, at, expires=NOW),
        Reason.NOT_ENFORCED: rule(Direction.OUT, 2, "gpu-lan", excepted=(NetworkPeer("admin"),)),
        Reason.EXCEPTED: rule(Direction.OUT, 3, at, excepted=(CidrPeer(ip_network(f"{at}/32")),)),
        Reason.WRONG_PORT: rule(Direction.OUT, 4, at, Ports((PortRange("tcp", 80, 80),))),
        Reason.NO_RULE: rule(Direction.OUT, 5, "10.30.1.4"),
    }
    rules = tuple(reversed(misses.values()))
    for reason in misses:
        verdict = ask(rules, out(at, interface="eno2"))
        assert (verdict.reason, verdict.nearest) == (reason, misses[reason].id)
        rules = rules[:-1]


def test_of_several_wrong_ports_the_closest_is_named() -> None:
    rules = tuple(
        rule(Direction.OUT, number, "10.0.0.1", Ports((PortRange(protocol, port, port),)))
        for number, protocol, port in ((1, "udp", 443), (2, "tcp", 80), (3, "tcp", 440), (4, "tcp", 440))
    )
    assert ask(rules, out("10.0.0.1")).nearest == "out-3"


def test_nothing_is_opened_by_no_rules() -> None:
    assert ask((), out("192.0.2.1")).reason is Reason.NO_RULES
    assert ask((), out("169.254.169.254")).reason is Reason.METADATA  # a wide rule would not help
    assert ask((), out("fe80::1")).reason is Reason.LINK_LOCAL
    assert ask((), into("fe80::1")).reason is Reason.NO_RULES


def test_modes() -> None:
    opened = (rule(Direction.OUT, 1, "any"),)
    for mode in (Mode.OBSERVE, Mode.ENFORCE):
        assert judge(policy(out=opened, mode=mode), Live(NOW), out("192.0.2.1")).allow
        assert not judge(policy(out=opened, mode=mode), Live(NOW), out("192.0.2.1", 80)).allow
    for connection in (out("192.0.2.1"), into("192.0.2.1"), out("127.0.0.1", own=True)):
        verdict = judge(policy(out=opened, mode=Mode.LOCK), Live(NOW), connection)
        assert (verdict.allow, verdict.reason) == (False, Reason.LOCKED)


def test_an_unknown_workload_gets_nothing() -> None:
    verdict = judge(Policy(), Live(NOW), out("127.0.0.1", own=True))
    assert (verdict.allow, verdict.reason) == (False, Reason.UNKNOWN_WORKLOAD)


def test_a_kind_of_peer_that_nobody_defined_is_an_error_and_no_verdict() -> None:
    strange: Any = Ports()
    with pytest.raises(AssertionError):
        ask((Rule("out-1", Direction.OUT, (strange,), HTTPS),), out("192.0.2.1"))


def test_texts() -> None:
    rules = (rule(Direction.OUT, 1, "10.30.1.5", Ports((PortRange("tcp", 5432, 5432),))),)
    expected = "not in its rules; nearest is rule out-1 (10.30.1.5:5432): "
    assert ask(rules, out("10.30.1.5", 5433)).text == expected + "other port"
    assert ask(rules, out("10.30.1.9", 5432)).text == expected + "other destination"
    wide = (rule(Direction.OUT, 1, "10.30.1.5", Ports(EVERY_PORT)),)
    expected = "control port 2375/tcp (the Docker API) is closed unless a rule names it alone; nearest is rule "
    assert ask(wide, out("10.30.1.5", 2375)).text == expected + "out-1 (10.30.1.5:any)"
    assert ask(rules, out("10.30.1.5", 5432)).text == "rule out-1 (10.30.1.5:5432) allows it"
    assert "only TCP, UDP and echo" in ask(rules, out("10.30.1.5", protocol="47")).text


def test_every_reason_has_a_text_and_a_case_here() -> None:
    assert set(TEXTS) == set(Reason) - {Reason.RULE}
    reached = {expected for *_, expected in EGRESS + INGRESS}
    others = {Reason.UNKNOWN_WORKLOAD, Reason.LOCKED, Reason.EXPIRED, Reason.EXCEPTED, Reason.NO_RULES}
    others |= {Reason.ADMIN_PORT, Reason.NOT_ENFORCED}
    assert reached | others == set(Reason)
    assert all("\n" not in text and len(text) < 100 for text in TEXTS.values())


# --- what holds for every policy ---

addresses = st.one_of(
    st.sampled_from(METADATA),
    st.integers(0, 7).map(lambda low: IPv4Address(0x0A1E0000 + low)),
    st.integers(0, 7).map(lambda low: IPv6Address((0xFD00 << 112) + low)),
    st.sampled_from([cidr[1] for cidr in LINK_LOCAL]),
)
cidrs = st.one_of(
    st.tuples(addresses, st.integers(0, 128)).map(
        lambda pair: ip_network((pair[0], min(pair[1], pair[0].max_prefixlen)), strict=False)
    ),
)
wide_peers: st.SearchStrategy[Peer] = st.one_of(
    cidrs.map(CidrPeer),
    st.sampled_from([AnyPeer(), NamePeer("a.example"), WorkloadPeer("gateway"), HostPeer()]),
    st.sampled_from([*map(NetworkPeer, NETWORKS), PlanePeer(Plane.ADMIN), PlanePeer(Plane.INFERENCE)]),
)
literal_peers: st.SearchStrategy[Peer] = st.one_of(addresses.map(AddressPeer), st.just(MetadataPeer()))
port_sets = st.builds(
    Ports,
    st.lists(
        st.builds(PortRange, st.sampled_from(["tcp", "udp"]), st.just(442), st.integers(442, 444)), max_size=2
    ).map(tuple),
    st.booleans(),
)


def rules_of(peers: st.SearchStrategy[Peer]) -> st.SearchStrategy[Rule]:
    return st.builds(
        Rule,
        st.uuids().map(str),
        st.just(Direction.OUT),
        st.lists(peers, max_size=3).map(tuple),
        port_sets,
        st.lists(st.one_of(cidrs.map(CidrPeer), st.just(NetworkPeer("gpu-lan"))), max_size=1).map(tuple),
        expires=st.sampled_from([None, NOW, NOW + timedelta(seconds=1)]),
    )


rule_lists = st.lists(rules_of(wide_peers | literal_peers), max_size=4).map(tuple)
connections = st.builds(
    Connection,
    st.just("w"),
    st.sampled_from(Direction),
    st.sampled_from(["tcp", "udp", "icmp", "47"]),
    st.none() | addresses,
    st.none() | st.integers(441, 445),
    st.sampled_from(["", "a.example"]),
    st.sampled_from(["", "gateway"]),
    st.sampled_from(["", "eno2"]),
)


@given(rule_lists, rules_of(wide_peers | literal_peers), st.integers(0, 4), connections, st.booleans())
def test_a_rule_more_never_denies_and_a_rule_less_never_allows(
    rules: tuple[Rule, ...], extra: Rule, at: int, connection: Connection, as_written: bool
) -> None:
    without = ask(rules, connection, as_written=as_written)
    with_it = ask((*rules[:at], extra, *rules[at:]), connection, as_written=as_written)
    assert with_it.allow >= without.allow


@given(rule_lists, connections, st.booleans())
def test_lock_denies_everything(rules: tuple[Rule, ...], connection: Connection, own: bool) -> None:
    locked = policy(out=rules, in_=rules, mode=Mode.LOCK)
    assert not judge(locked, Live(NOW), replace(connection, own=own), as_written=True).allow


@given(st.lists(rules_of(wide_peers), max_size=4).map(tuple), st.sampled_from(METADATA), connections)
def test_metadata_is_reached_by_literal_rules_only(
    rules: tuple[Rule, ...], remote: IPv4Address | IPv6Address, connection: Connection
) -> None:
    assert not ask(rules, replace(connection, direction=Direction.OUT, remote=remote), as_written=True).allow


@given(rule_lists, connections)
def test_what_is_enforced_is_never_wider_than_what_is_written(
    rules: tuple[Rule, ...], connection: Connection
) -> None:
    assert ask(rules, connection).allow <= ask(rules, connection, as_written=True).allow


@given(rule_lists, connections)
def test_a_verdict_names_what_it_speaks_of(rules: tuple[Rule, ...], connection: Connection) -> None:
    verdict = ask(rules, connection)
    ids = {r.id for r in rules}
    assert (verdict.rule in ids) is verdict.allow
    assert verdict.nearest is None or (verdict.nearest in ids and not verdict.allow)
