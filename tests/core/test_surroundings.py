"""Rules beside what the host looks like: interfaces that are missing, administrators that are elsewhere."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from fake_host import START

from penstock.core.checking import examine
from penstock.core.parse import Parsed, parse
from penstock.core.policy import Policy
from penstock.core.surroundings import (
    Session,
    Surroundings,
    admin_ports,
    problems,
    refused_sessions,
    unless_confirmed,
)

ADMIN = "  admin: {cidr: [10.20.0.0/24, 'fd00:20::/64', 'fe80::/10'], plane: admin}\n"
TUNNEL = "  tunnel: {interface: wg0, plane: admin}\n"
CLIENTS = "  clients: {cidr: [10.30.0.0/16, 'fd00:30::/56', 'fe80::/10'], plane: inference}\n"
GUESTS = "  guests: {interface: eth1, plane: inference}\n"
PORTS = "host: {admin_ports: [22, 8443]}\n"


def policy(*networks: str, ports: str = PORTS) -> Policy:
    parsed = parse({"penstock.yaml": f"version: 1\nnetworks:\n{''.join(networks)}{ports}".encode()})
    assert parsed.policy, parsed.problems
    return parsed.policy


def session(address: str, port: int = 22, interface: str = "eth0") -> Session:
    return Session(ip_address(address), port, interface)


def at(*sessions: Session) -> Surroundings:
    return Surroundings(frozenset({"lo", "eth0", "eth1", "wg0"}), sessions)


def told(found: Policy, around: Surroundings) -> list[tuple[str, int, str]]:
    listed = problems(found, around)
    assert all(problem.severity == "warning" for problem in listed)
    return [(problem.code, problem.place.line, problem.message) for problem in listed]


# --- interfaces ---


def test_an_interface_that_is_not_there() -> None:
    found = policy(ADMIN, TUNNEL, GUESTS)
    around = Surroundings(frozenset({"lo", "eth0", "eth1", "wg1"}))
    (problem,) = problems(found, around)
    assert problem.line() == (
        "penstock.yaml:4:3: warning: there is no interface `wg0` on this host, or not yet; did you mean `wg1`?"
    )
    assert problem.code == "no-interface"
    assert "ip link" in problems(found, Surroundings(frozenset({"lo", "eth1", "enp3s0"})))[0].hint
    assert problems(found, at()) == []


def test_interfaces_that_are_not_known_are_not_missed() -> None:
    assert problems(policy(TUNNEL), Surroundings()) == []


# --- who administers the host ---


def test_no_session_comes_from_an_admin_network() -> None:
    found = policy(ADMIN, "  other: {cidr: 10.40.0.0/24, plane: admin}\n", CLIENTS)
    one = "the one session at port 22 does not come from it: 203.0.113.9"
    around = at(session("203.0.113.9"))
    assert told(found, around) == [("admin-session", 3, one), ("admin-session", 4, one)]
    many = [session(f"203.0.113.{n}", port) for n, port in ((1, 22), (2, 22), (2, 8443), (3, 22), (4, 22))]
    assert told(found, at(*many))[0][2] == (
        "none of the 5 sessions at ports 22, 8443 comes from it: 203.0.113.1, 203.0.113.2, 203.0.113.3 and 1 more"
    )


@pytest.mark.parametrize("address", ["10.20.0.7", "fd00:20::7", "fe80::7"])
def test_one_session_from_an_admin_network_is_enough(address: str) -> None:
    assert told(policy(ADMIN, TUNNEL), at(session("203.0.113.9"), session(address))) == []


def test_a_session_over_the_interface_of_an_admin_network() -> None:
    found = policy(TUNNEL)
    assert told(found, at(session("203.0.113.9", interface="wg0"))) == []
    assert [code for code, _, _ in told(found, at(session("203.0.113.9")))] == ["admin-session"]
    assert told(found, at(session("203.0.113.9", interface=""))) == [], "it may be that one"


def test_only_sessions_at_admin_ports_count() -> None:
    assert told(policy(ADMIN), at(session("203.0.113.9", 443))) == []
    assert told(policy(ADMIN, ports="host: {admin_ports: [8443]}\n"), at(session("203.0.113.9"))) == []
    assert told(policy(ADMIN), at()) == []


def test_without_admin_ports_it_is_that_of_ssh() -> None:
    found = policy(ADMIN, CLIENTS, ports="")
    assert [str(one) for one in admin_ports(found).ranges] == ["22"]
    assert [str(one) for one in admin_ports(policy(ADMIN)).ranges] == ["22", "8443"]
    assert [code for code, _, _ in told(found, at(session("10.30.0.9")))] == ["admin-session"]
    assert refused_sessions(found, at(session("10.30.0.9"))) == (), "nothing is refused"


# --- who would be refused ---


@pytest.mark.parametrize("address", ["10.30.0.9", "fd00:30::9", "fe80::9"])
def test_a_session_from_a_network_of_clients(address: str) -> None:
    found, one = policy(ADMIN.replace(", 'fe80::/10'", ""), CLIENTS), session(address)
    around = at(session("10.20.0.7"), one, session(address, 443), session("203.0.113.9"))
    assert refused_sessions(found, around) == (one,)
    assert told(found, around) == [
        (
            "admin-cut",
            4,
            f"new connections from network `clients` to port 22 are refused, and a session comes from there: "
            f"{address}",
        )
    ]


def test_a_session_over_the_interface_of_a_network_of_clients() -> None:
    found, one = policy(TUNNEL, GUESTS), session("203.0.113.9", 8443, "eth1")
    around = at(one, session("203.0.113.9", 8443, "wg0"), session("203.0.113.9", 8443, ""))
    assert refused_sessions(found, around) == (one,)
    assert ("admin-cut", 4) in [(code, line) for code, line, _ in told(found, around)]


def test_each_network_of_clients_has_its_own() -> None:
    around = at(session("10.30.0.9"), session("10.30.0.8"), session("203.0.113.9", 22, "eth1"))
    listed = told(policy(CLIENTS, GUESTS), around)
    assert [(code, line) for code, line, _ in listed] == [("admin-cut", 3), ("admin-cut", 4)]
    assert "2 sessions come from there: 10.30.0.9, 10.30.0.8" in listed[0][2]


# --- an apply that stays ---


def judged(*networks: str, around: Surroundings) -> Parsed:
    text = f"version: 1\nnetworks:\n{''.join(networks)}{PORTS}"
    return examine(parse({"penstock.yaml": text.encode()}), START, around)


def test_files_that_would_refuse_who_is_connected_are_refused() -> None:
    around = at(session("10.30.0.9"))
    parsed = judged(CLIENTS, around=around)
    assert parsed.policy, "with a warning"
    found = unless_confirmed(parsed, around, None)
    assert found.policy is None
    assert [(p.code, p.severity) for p in found.problems] == [("admin-cut", "error")]
    assert "penstock apply --confirm 60s" in found.problems[0].hint


def test_whoever_is_refused_already_is_no_reason() -> None:
    around = at(session("10.30.0.9"))
    parsed = judged(CLIENTS, GUESTS, around=around)
    assert unless_confirmed(parsed, around, policy(CLIENTS)) is parsed
    assert unless_confirmed(parsed, around, policy(GUESTS)).policy is None
    around = at(session("10.30.0.9"), session("203.0.113.9", 22, "eth1"))
    assert unless_confirmed(judged(CLIENTS, GUESTS, around=around), around, policy(CLIENTS)).policy is None


def test_files_that_refuse_nobody_who_is_connected_are_taken() -> None:
    around = at(session("10.20.0.7"), session("10.30.0.9", 443))
    parsed = judged(ADMIN.replace(", 'fe80::/10'", ""), CLIENTS, around=around)
    assert parsed.problems == () or all(p.code == "not-yet-enforced" for p in parsed.problems)
    assert unless_confirmed(parsed, around, None) is parsed
    wrong = Parsed(None, parsed.problems)
    assert unless_confirmed(wrong, at(session("10.30.0.9")), None) is wrong
