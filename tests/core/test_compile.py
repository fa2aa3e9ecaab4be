"""What the sets hold for a policy; that they mean the same as the evaluator is in tests/differential."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core import cgroup_maps, chains
from penstock.core.compile import Live, compile_policy, rule_of
from penstock.core.conditions import InCgroup
from penstock.core.connection import Connection
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
    Plane,
    PlanePeer,
    Policy,
    PortRange,
    Ports,
    Rule,
    Workload,
    WorkloadPeer,
)
from penstock.core.ruleset import MARKER, AddressSet, Element, Ruleset
from penstock.core.verdict import Live as JudgeLive
from penstock.core.verdict import judge

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HTTPS = Ports((PortRange("tcp", 443, 443),))
NETWORKS = {
    "clients": Network("clients", (ip_network("10.30.0.0/16"), ip_network("fd00:30::/64")), plane=Plane.INFERENCE),
    "wire": Network("wire", interface="eno2"),
}


def out(*peers: Any, ports: Ports = HTTPS, number: int = 1, **more: Any) -> Rule:
    return Rule(f"out-{number}", Direction.OUT, peers, ports, **more)


def into(*peers: Any, ports: Ports = HTTPS, **more: Any) -> Rule:
    return Rule("in-1", Direction.IN, peers, ports, **more)


def policy(*rules: Rule) -> Policy:
    egress = tuple(rule for rule in rules if rule.direction is Direction.OUT)
    ingress = tuple(rule for rule in rules if rule.direction is Direction.IN)
    return Policy(networks=NETWORKS, workloads={"w": Workload("w", Mode.ENFORCE, egress, ingress)})


def compiled(*rules: Rule, now: datetime = NOW) -> Ruleset:
    return compile_policy(policy(*rules), Live(now, {"w": 3}, 1))


def sets(*rules: Rule) -> dict[str, AddressSet]:
    return {found.name: found for found in compiled(*rules).sets}


def listed(found: AddressSet) -> list[str]:
    """Elements as a person would write them."""
    address = IPv4Address if found.family == 4 else IPv6Address
    return [f"{address(e.low)}-{address(e.high)} {e.protocol} {e.first}-{e.last}" for e in sorted(found.elements)]


def test_two_families_in_two_directions_each() -> None:
    found = sets(out(CidrPeer(ip_network("10.1.2.0/31"))), into(AddressPeer(ip_address("::1"))))
    assert {name: listed(one) for name, one in found.items()} == {
        "out4_w": ["10.1.2.0-10.1.2.1 6 443-443"],
        "out6_w": [],
        "in4_w": [],
        "in6_w": ["::1-::1 6 443-443"],
    }


def test_a_network_brings_all_its_prefixes() -> None:
    found = sets(out(NetworkPeer("clients")))
    assert listed(found["out4_w"]) == ["10.30.0.0-10.30.255.255 6 443-443"]
    assert listed(found["out6_w"]) == ["fd00:30::-fd00:30::ffff:ffff:ffff:ffff 6 443-443"]


@pytest.mark.parametrize(
    "peer", [NamePeer("*.example.org"), PlanePeer(Plane.ADMIN), WorkloadPeer("w"), HostPeer(), NetworkPeer("wire")]
)
def test_what_is_not_enforced_yet_opens_nothing(peer: Any) -> None:
    assert not any(found.elements for found in sets(out(peer), into(peer)).values())


def test_an_exception_that_cannot_be_seen_closes_its_rule() -> None:
    closed = out(AnyPeer(), AddressPeer(METADATA[0]), excepted=(NetworkPeer("wire"),))
    other = out(AddressPeer(ip_address("10.0.0.1")), number=2)
    assert listed(sets(closed, other)["out4_w"]) == ["10.0.0.1-10.0.0.1 6 443-443"]
    assert not sets(closed, other)["out6_w"].elements


def covers(found: AddressSet, address: Any) -> bool:
    return any(element.low <= int(address) <= element.high for element in found.elements)


@pytest.mark.parametrize("wide", [(AnyPeer(),), (CidrPeer(ip_network("0.0.0.0/0")), CidrPeer(ip_network("::/0")))])
def test_wide_rules_open_no_metadata_and_no_link_local_going_out(wide: tuple[Any, ...]) -> None:
    found = sets(out(*wide), into(*wide))
    for cidr in (*LINK_LOCAL, *(ip_network(address) for address in METADATA)):
        for address in (
            cidr.network_address,
            cidr.broadcast_address,
            cidr.network_address - 1,
            cidr.broadcast_address + 1,
        ):
            closed = address in METADATA or any(address in link for link in LINK_LOCAL)
            assert covers(found[f"out{cidr.version}_w"], address) is not closed, address
            assert covers(found[f"in{cidr.version}_w"], address)


def test_metadata_is_exactly_its_addresses() -> None:
    found = sets(out(MetadataPeer()))
    for family in (4, 6):
        assert {e.low for e in found[f"out{family}_w"].elements} == {
            int(a) for a in METADATA if a.version == family
        }


def test_a_literal_opens_what_its_neighbour_rule_does_not() -> None:
    found = sets(out(CidrPeer(ip_network("169.254.0.0/16")), AddressPeer(METADATA[0])))
    assert listed(found["out4_w"]) == ["169.254.169.254-169.254.169.254 6 443-443"]


def test_an_exception_is_of_its_own_rule_only() -> None:
    found = sets(
        out(CidrPeer(ip_network("10.0.0.0/30")), excepted=(CidrPeer(ip_network("10.0.0.1/32")),)),
        out(AddressPeer(ip_address("10.0.0.1")), ports=Ports((PortRange("tcp", 80, 80),)), number=2),
    )
    assert listed(found["out4_w"]) == [
        "10.0.0.0-10.0.0.0 6 443-443",
        "10.0.0.1-10.0.0.1 6 80-80",
        "10.0.0.2-10.0.0.3 6 443-443",
    ]


def test_ports_and_echo() -> None:
    ports = Ports((PortRange("tcp", 80, 82), PortRange("tcp", 83, 90), PortRange("udp", 53, 53)), icmp=True)
    four, six = ip_address("10.0.0.1"), ip_address("fd00::1")
    found = sets(out(AddressPeer(four), AddressPeer(six), ports=ports), into(AddressPeer(four), ports=ports))
    assert [text.partition(" ")[2] for text in listed(found["out4_w"])] == ["1 0-65535", "6 80-90", "17 53-53"]
    assert [text.partition(" ")[2] for text in listed(found["out6_w"])] == ["6 80-90", "17 53-53", "58 0-65535"]
    assert [text.partition(" ")[2] for text in listed(found["in4_w"])] == ["6 80-90", "17 53-53"]


def test_every_port_includes_the_first_and_the_last() -> None:
    found = sets(into(AnyPeer(), ports=Ports(EVERY_PORT)))
    assert {(e.protocol, e.first, e.last) for e in found["in4_w"].elements} == {(6, 0, 65535), (17, 0, 65535)}


def test_going_out_every_port_leaves_out_control_ports() -> None:
    found = sets(out(AnyPeer(), ports=Ports(EVERY_PORT)))
    tcp = [(0, 2374), (2377, 10249), (10251, 16508), (16510, 16513), (16515, 65535)]
    elements = {(e.protocol, e.first, e.last) for e in found["out4_w"].elements}
    assert elements == {(17, 0, 65535), *((6, *ends) for ends in tcp)}


def test_a_control_port_is_opened_by_itself_and_then_joins_its_neighbours() -> None:
    peer = AddressPeer(ip_address("10.0.0.1"))
    ports = Ports((PortRange("tcp", 2370, 2380), PortRange("tcp", 2375, 2375)))
    found = sets(out(peer, ports=ports))
    assert [text.partition(" ")[2] for text in listed(found["out4_w"])] == ["6 2370-2375", "6 2377-2380"]


def test_a_rule_that_is_over_opens_nothing_and_one_that_will_be_carries_its_end() -> None:
    later = NOW + timedelta(seconds=1)
    peers = [AddressPeer(ip_address(f"10.0.0.{n}")) for n in range(3)]
    found = sets(out(peers[0], expires=NOW), out(peers[1], expires=later, number=2), out(peers[2], number=3))[
        "out4_w"
    ]
    assert listed(found) == ["10.0.0.1-10.0.0.1 6 443-443", "10.0.0.2-10.0.0.2 6 443-443"]
    assert found.expires == {Element(int(peers[1].address), int(peers[1].address), 6, 443, 443): later}


def test_what_two_rules_allow_lasts_as_long_as_the_longer() -> None:
    peer = AddressPeer(ip_address("10.0.0.1"))
    found = compiled(out(peer, expires=NOW + timedelta(hours=1)), out(peer, number=2))
    (element,) = found.sets[0].elements
    assert found.sets[0].expires == {}
    assert rule_of(found, "out4_w", element) == "out-2"
    with pytest.raises(KeyError):
        rule_of(found, "out4_w", element._replace(first=1))


def test_the_table_has_its_marker_counters_and_empty_maps() -> None:
    found = compiled()
    assert found.counters[0] == MARKER
    assert {"denied_out_w", "denied_in_w"} < set(found.counters)
    assert found.maps == cgroup_maps.MAPS


def test_levels_bring_maps_and_look_ups() -> None:
    found = compile_policy(policy(), Live(NOW, {"w": 3}, 1, levels=(2, 3)))
    assert found.maps == cgroup_maps.maps((2, 3))
    plan = chains.Plan("w", Mode.ENFORCE, 3, echo=False, in_place=True)
    assert found.chains == chains.build([plan], InCgroup("penstock.slice", 1), (2, 3))
    assert found.chains != compiled().chains


def test_no_workload_is_a_table_too() -> None:
    found = compile_policy(Policy(), Live(NOW, {}, 1))
    assert found.sets == ()
    assert "output" in {chain.name for chain in found.chains}


def test_a_workload_without_a_label_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(KeyError):
        compile_policy(policy(), Live(NOW, {}, 1))


# --- against the evaluator: the sets alone, on addresses around every end ---

SMALL = [
    ip_network(text) for text in ("10.0.0.0/29", "10.0.0.2/31", "10.0.0.4/32", "169.254.169.254/31", "0.0.0.0/0")
]
POINTS = [ip_address(text) for text in ("9.255.255.255", "169.254.169.253", "169.254.169.254", "169.254.169.255")]
POINTS += [ip_address("10.0.0.0") + n for n in range(9)]
peers_drawn = st.one_of(
    st.sampled_from(SMALL).map(CidrPeer), st.sampled_from(POINTS).map(AddressPeer), st.just(MetadataPeer())
)
rules_drawn = st.builds(
    lambda direction, peers, first, width, excepted, ends: Rule(
        f"{direction}",
        direction,
        tuple(peers),
        Ports((PortRange("tcp", *((first, first + width) if width < 3 else (2375, 2375 + first % 3))),)),
        tuple(excepted),
        expires=ends,
    ),
    st.sampled_from(Direction),
    st.lists(peers_drawn, min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(0, 3),
    st.lists(st.sampled_from(SMALL[:4]).map(CidrPeer), max_size=2),
    st.sampled_from([None, NOW, NOW + timedelta(hours=1)]),
)


@given(st.lists(rules_drawn, max_size=4))
def test_the_sets_say_what_the_evaluator_says(rules: list[Rule]) -> None:
    found = sets(*rules)
    said = policy(*rules)
    for direction in Direction:
        elements = found[f"{direction}4_w"].elements
        for address in POINTS:
            for port in (*range(8), *range(2374, 2379)):
                allowed = any(e.low <= int(address) <= e.high and e.first <= port <= e.last for e in elements)
                verdict = judge(said, JudgeLive(NOW), Connection("w", direction, "tcp", address, port))
                assert allowed is verdict.allow, (direction, address, port, verdict.text)
