"""Which ports are closed to whom, and that nobody pays for it who does not ask for it."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from governed import policy_of, rules
from penstock.core.actions import Final
from penstock.core.admin_chains import OPEN, Barred, at_listeners, barred, without
from penstock.core.compile import Live, compile_policy
from penstock.core.conditions import End, InSet, Interface, PortIn
from penstock.core.policy import Policy, PortRange
from penstock.core.ruleset import Ruleset

CLIENTS = 'clients: {cidr: [10.30.0.0/16, 10.31.0.0/16, "fd00:30::/56"], plane: inference}'
WIRE = "wire: {interface: eno2, plane: inference}"
ADMIN = "admin: {cidr: 10.20.0.0/24, plane: admin}"
ALL = "[{from: [any, clients, 'workload:other', host], ports: [20-30, 22/udp]}]"


def host(ports: str = "[22, 2375-2376]", *networks: str) -> str:
    return f"version: 1\nnetworks: {{{', '.join(networks or (CLIENTS, ADMIN))}}}\nhost: {{admin_ports: {ports}}}\n"


def policy(text: str, ingress: str = "[]") -> Policy:
    return policy_of(rules("w", ingress=ingress), rules("other"), host=text)


def compiled(found: Policy) -> Ruleset:
    return compile_policy(found, Live(datetime(2026, 3, 1, tzinfo=UTC), {"w": 3, "other": 4}, 2))


def tcp(first: int, last: int = 0) -> PortRange:
    return PortRange("tcp", first, last or first)


def test_what_is_closed_and_to_whom() -> None:
    found = barred(policy(host("[22, 23, 2375-2376, 22/udp]", CLIENTS, ADMIN, WIRE)))
    assert found.ports == (tcp(22, 23), tcp(2375, 2376), PortRange("udp", 22, 22))
    assert [str(cidr) for cidr in found.cidrs] == ["10.30.0.0/16", "10.31.0.0/16", "fd00:30::/56"]
    assert found.interfaces == ("eno2",)
    assert found.clients


@pytest.mark.parametrize("text", ["version: 1\n", f"version: 1\nnetworks: {{{CLIENTS}}}\n"])
def test_without_admin_ports_nothing_is_there(text: str) -> None:
    assert barred(policy(text)) == OPEN
    ruleset = compiled(policy(text))
    assert not any("admin" in name or "client" in name for name in (*ruleset.counters, *ruleset.set_names))
    assert not any("admin" in chain.name or chain.name in ("passing", "clients") for chain in ruleset.chains)


def test_without_clients_only_workloads_ask() -> None:
    """What arrives at others, or passes, is as before."""
    with_, before = (
        compiled(policy(text)) for text in (host("[22]", ADMIN), f"version: 1\nnetworks: {{{ADMIN}}}\n")
    )
    changed = {a.name for a, b in zip(with_.chains, before.chains, strict=True) if a != b}
    assert changed == {f"{chain}_{name}" for chain in ("loopback", "loopback6") for name in ("w", "other")}
    assert (with_.counters, with_.sets) == (before.counters, before.sets)


def test_ranges_without_the_closed_ones() -> None:
    closed = Barred((tcp(22), tcp(2375, 2376)))
    assert without([tcp(22)], closed) == ()
    assert without([tcp(20, 24), PortRange("udp", 22, 22)], closed) == (
        tcp(20, 21),
        tcp(23, 24),
        PortRange("udp", 22, 22),
    )
    assert without([tcp(20, 24), tcp(20, 24)], OPEN) == (tcp(20, 24), tcp(20, 24))


def holds(ruleset: Ruleset, address: str, port: int, protocol: int = 6) -> bool:
    ip = ip_address(address)
    [found] = [s for s in ruleset.sets if s.name == f"in{ip.version}_w"]
    return any(
        low <= int(ip) <= high and number == protocol and first <= port <= last
        for low, high, number, first, last in found.elements
    )


@pytest.mark.parametrize("client", ["10.30.0.1", "fd00:30::1"])
def test_a_workload_that_listens_on_one(client: str) -> None:
    ruleset = compiled(policy(host("[22]"), ALL))
    for stranger in ("10.20.0.1", "192.0.2.1", "2001:db8::1"):
        assert all(holds(ruleset, stranger, port) for port in (20, 21, 22, 23, 30))
    assert [port for port in range(18, 33) if holds(ruleset, client, port)] == [20, 21, *range(23, 31)]
    assert holds(ruleset, client, 22, 17)
    taken = next(chain for chain in ruleset.chains if chain.name == "callers_w")
    said = [(part.first, part.last) for rule in taken.rules for part in rule.when if isinstance(part, PortIn)]
    assert said == [(20, 21), (23, 30), (22, 22), (20, 30), (22, 22)], "of workloads, then of whoever is none"


@pytest.mark.parametrize(("ports", "expected"), [("[22]", 1), ("[22, 25-40, 21-23/udp]", 3), ("[31]", 0)])
def test_an_interface_of_clients_is_asked_for_only_where_ports_meet(ports: str, expected: int) -> None:
    found = barred(policy(host(ports, WIRE)))
    opened = policy(host(ports, CLIENTS), ALL).workloads["w"].ingress[0].ports.ranges
    for peer in End:
        made = at_listeners(found, opened, ["eno2", "eno3"], peer, Final.RETURN)
        assert len(made) == expected
        assert {part.name for rule in made for part in rule.when if isinstance(part, Interface)} <= {"eno2"}


def test_clients_by_address_find_it_closed_over_any_interface() -> None:
    found = barred(policy(host("[22]", CLIENTS)))
    made = at_listeners(found, [tcp(20, 30)], ["eno3"], End.SOURCE, Final.RETURN)
    closed = PortIn("tcp", End.DESTINATION, 22, 22)
    assert [rule.when for rule in made] == [
        (Interface("eno3", End.SOURCE), closed, InSet(f"clients{family}", family, End.SOURCE, End.DESTINATION))
        for family in (4, 6)
    ]
    assert at_listeners(found, [tcp(23)], ["eno3"], End.SOURCE, Final.RETURN) == []
    assert at_listeners(found, [tcp(22)], [], End.SOURCE, Final.RETURN) == []
