"""`tests:` of rule files: what holds is silent, what does not is told with the address that shows it."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

import pytest

from penstock.core.policy import (
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
    Place,
    Plane,
    PlanePeer,
    Policy,
    PortRange,
    Ports,
    Rule,
    Sentence,
    Workload,
    WorkloadPeer,
)
from penstock.core.problems import Problem
from penstock.core.sentences import failures

NOW = datetime(2026, 3, 1, tzinfo=UTC)
OUT, IN = Direction.OUT, Direction.IN
PLACE = Place("rules.d/w.yaml", 12, 5)
P80 = Ports((PortRange("tcp", 80, 80),))
NETWORKS = {
    "clients": Network(
        "clients", (ip_network("10.30.0.0/16"), ip_network("fd00:30::/64")), plane=Plane.INFERENCE
    ),
    "guests": Network("guests", (ip_network("10.31.0.0/16"),), plane=Plane.INFERENCE),
    "gpu-lan": Network("gpu-lan", interface="eno2"),
}


def address(text: str) -> AddressPeer:
    return AddressPeer(ip_address(text))


def cidr(text: str) -> CidrPeer:
    return CidrPeer(ip_network(text))


def run(
    direction: Direction,
    peer: Peer,
    allow: bool,
    *peers: Peer,
    excepted: tuple[CidrPeer | NetworkPeer, ...] = (),
    text: str = "",
    mode: Mode = Mode.ENFORCE,
    expires: datetime | None = None,
    protocol: str = "tcp",
) -> list[Problem]:
    """Run one sentence about port 80 against one rule for port 80."""
    sentence = Sentence(text, direction, peer, protocol, None if protocol == "icmp" else 80, allow, PLACE)
    rules = (Rule("r1", direction, peers, P80, excepted, expires=expires),)
    egress, ingress = (rules, ()) if direction is OUT else ((), rules)
    workload = Workload("w", mode, egress, ingress, sentences=(sentence,))
    return failures(Policy(networks=NETWORKS, workloads={"w": workload}), NOW)


HOLDS = [
    (OUT, address("10.0.0.9"), True, [address("10.0.0.9")], ()),
    (OUT, address("10.0.0.9"), False, [address("10.0.0.8")], ()),
    (OUT, NamePeer("cdn.hf.co"), True, [NamePeer("*.hf.co")], ()),
    (OUT, NamePeer("hf.co"), False, [NamePeer("*.hf.co")], ()),
    (OUT, NamePeer("example.org"), True, [AnyPeer()], ()),  # somebody else answers, and it may lead anywhere
    (OUT, NamePeer("example.org"), True, [AnyPeer()], (cidr("10.0.0.0/8"),)),
    (OUT, NamePeer("example.org"), False, [AnyPeer(), NamePeer("a.example")], ()),  # we answer: no such name
    (OUT, NamePeer("example.org"), False, [], ()),
    (OUT, MetadataPeer(), False, [AnyPeer()], ()),
    (OUT, MetadataPeer(), True, [MetadataPeer()], ()),
    (IN, NetworkPeer("clients"), True, [NetworkPeer("clients")], ()),
    (IN, NetworkPeer("clients"), True, [PlanePeer(Plane.INFERENCE)], ()),
    (IN, NetworkPeer("clients"), True, [cidr("10.30.0.0/17"), cidr("10.30.128.0/17"), cidr("fd00::/16")], ()),
    (IN, NetworkPeer("clients"), False, [NetworkPeer("guests")], ()),
    (IN, NetworkPeer("clients"), False, [AnyPeer()], (NetworkPeer("clients"),)),
    (IN, NetworkPeer("gpu-lan"), True, [NetworkPeer("gpu-lan")], ()),
    (IN, NetworkPeer("gpu-lan"), True, [AnyPeer()], ()),
    (IN, NetworkPeer("gpu-lan"), False, [HostPeer(), cidr("127.0.0.0/8"), cidr("::1/128")], ()),
    (IN, PlanePeer(Plane.INFERENCE), True, [NetworkPeer("clients"), NetworkPeer("guests")], ()),
    (IN, CidrPeer(ip_network("10.30.4.0/24")), True, [NetworkPeer("clients")], ()),
    (IN, WorkloadPeer("gateway"), True, [WorkloadPeer("gateway")], ()),
    (IN, WorkloadPeer("other"), False, [WorkloadPeer("gateway"), HostPeer()], ()),
    (IN, HostPeer(), True, [HostPeer()], ()),
    (IN, HostPeer(), False, [WorkloadPeer("gateway"), NetworkPeer("clients")], ()),
    (IN, AnyPeer(), True, [AnyPeer()], ()),
    (IN, AnyPeer(), True, [cidr("0.0.0.0/0"), cidr("::/0")], ()),
    (IN, AnyPeer(), False, [], ()),
]


@pytest.mark.parametrize(("direction", "peer", "allow", "peers", "excepted"), HOLDS)
def test_what_holds_is_silent_and_its_contrary_is_told(
    direction: Direction,
    peer: Peer,
    allow: bool,
    peers: list[Peer],
    excepted: tuple[CidrPeer | NetworkPeer, ...],
) -> None:
    assert run(direction, peer, allow, *peers, excepted=excepted) == []
    (problem,) = run(direction, peer, not allow, *peers, excepted=excepted)
    assert (problem.place, problem.severity, problem.code) == (PLACE, "error", "test-failed")


FAILS = [
    # sentence about an area, expected answer, what the rule has, the address that shows it
    (NetworkPeer("clients"), True, [cidr("10.30.0.0/16")], (), "fd00:30::"),
    (NetworkPeer("clients"), True, [NetworkPeer("clients")], (cidr("10.30.7.0/24"),), "10.30.7.0"),
    (NetworkPeer("clients"), False, [address("10.30.5.5")], (), "10.30.5.5"),
    (NetworkPeer("clients"), False, [cidr("fd00:30::7:0/112")], (), "fd00:30::7:0"),
    # the gap between two rules, seen only where the first one ends
    (
        NetworkPeer("clients"),
        True,
        [cidr("10.30.0.0/17"), cidr("10.30.192.0/18"), cidr("fd00::/8")],
        (),
        "10.30.128.0",
    ),
    (PlanePeer(Plane.INFERENCE), True, [NetworkPeer("clients")], (), "10.31.0.0"),
    (PlanePeer(Plane.INFERENCE), False, [NetworkPeer("guests")], (), "10.31.0.0"),
    (AnyPeer(), True, [cidr("0.0.0.0/0")], (), "::"),
    (AnyPeer(), False, [HostPeer()], (), "127.0.0.0"),
    (NetworkPeer("gpu-lan"), False, [cidr("10.9.0.0/16")], (), "10.9.0.0"),
    (NetworkPeer("clients"), False, [PlanePeer(Plane.INFERENCE)], (), "10.30.0.0"),
]


@pytest.mark.parametrize(("peer", "allow", "peers", "excepted", "shown"), FAILS)
def test_an_area_answers_for_every_address(
    peer: Peer, allow: bool, peers: list[Peer], excepted: tuple[CidrPeer | NetworkPeer, ...], shown: str
) -> None:
    (problem,) = run(IN, peer, allow, *peers, excepted=excepted, text="ingress from X 80 deny")
    answer, expected = ("denied", "allow") if allow else ("allowed", "deny")
    assert problem.message == f"ingress from X 80 is {answer} for {shown}, the test expects {expected}"


@pytest.mark.parametrize("allow", [True, False])
@pytest.mark.parametrize(
    ("peers", "excepted"),
    [
        ([cidr("203.0.113.0/24")], ()),
        ([NetworkPeer("clients")], ()),
        ([cidr("10.0.0.0/8")], (cidr("10.0.0.0/9"),)),
    ],
)
def test_where_a_name_leads_that_others_answer_is_not_known(
    peers: list[Peer], excepted: tuple[CidrPeer, ...], allow: bool
) -> None:
    told = run(OUT, NamePeer("a.example"), allow, *peers, excepted=excepted, text="egress a.example:80 deny")
    (problem,) = told
    expected = "allow" if allow else "deny"
    assert problem.message == f"egress a.example:80 is neither allowed nor denied, the test expects {expected}"
    assert problem.hint is not None
    assert "ask about an address; nearest is rule r1 (" in problem.hint


def test_the_message_says_what_and_the_hint_why() -> None:
    (problem,) = run(OUT, address("10.0.0.9"), True, address("10.0.0.8"), text="egress 10.0.0.9:80 allow")
    assert problem.message == "egress 10.0.0.9:80 is denied, the test expects allow"
    assert problem.hint == "not in its rules; nearest is rule r1 (10.0.0.8:80): other destination"
    (problem,) = run(OUT, address("10.0.0.8"), False, address("10.0.0.8"), text="egress  10.0.0.8:80")
    assert problem.message == "egress 10.0.0.8:80 is allowed, the test expects deny"
    assert problem.hint == "rule r1 (10.0.0.8:80) allows it"


def test_a_plane_without_networks_says_nothing() -> None:
    for allow in (True, False):
        (problem,) = run(
            IN, PlanePeer(Plane.ADMIN), allow, AnyPeer(), text="ingress from plane:admin 80 deny"
        )
        assert "names no address" in problem.message


def test_echo_has_no_port() -> None:
    assert run(OUT, address("10.0.0.9"), False, address("10.0.0.9"), protocol="icmp") == []


def test_the_mode_is_not_under_test() -> None:
    assert run(OUT, address("10.0.0.9"), True, address("10.0.0.9"), mode=Mode.LOCK) == []


def test_time_is() -> None:
    (problem,) = run(OUT, address("10.0.0.9"), True, address("10.0.0.9"), expires=NOW)
    assert "expired" in problem.hint


def test_sentences_of_every_workload_in_order() -> None:
    def workload(name: str, *ports: int) -> Workload:
        sentences = tuple(
            Sentence("", OUT, address("10.0.0.1"), "tcp", port, True, Place(name, port, 1)) for port in ports
        )
        return Workload(name, Mode.ENFORCE, (), (), sentences=sentences)

    policy = Policy(workloads={"b": workload("b", 2, 1), "a": workload("a", 3)})
    assert [str(problem.place) for problem in failures(policy, NOW)] == ["b:2:1", "b:1:1", "a:3:1"]
