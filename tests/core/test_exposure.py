"""Who reaches an open port."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from governed import policy_of, rules
from penstock.core import exposure
from penstock.core.events import Listener
from penstock.core.exposure import Exposure, Exposures
from penstock.core.policy import Direction, Policy
from penstock.core.verdict import Connection, Live, judge

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOST = """\
version: 1
networks:
  clients: {cidr: [10.30.0.0/16, "fd00:30::/64"], plane: inference}
  four: {cidr: [10.40.0.0/16]}
  admin: {cidr: [10.20.0.0/24], plane: admin}
  wire: {interface: eno2}
  guests: {interface: eno3, plane: inference}
host: {admin_ports: [22, 8888]}
"""
GATEWAY = rules("gateway", egress="[{to: 'workload:w', ports: [1-65535]}]")


def policy(ingress: str, mode: str = "enforce") -> Policy:
    return policy_of(rules("w", ingress=ingress, mode=mode), GATEWAY, host=HOST)


def listener(address: str = "0.0.0.0", port: int = 80, **more: object) -> Listener:
    return replace(Listener("w", "tcp", ip_address(address), port), **more)  # type: ignore[arg-type]


def exposed(ingress: str, one: Listener, mode: str = "enforce") -> Exposure:
    said = policy(ingress, mode)
    return Exposures(said, said.workloads["w"], NOW).of(one)


def reached(sources: str, one: Listener, more: str = "", mode: str = "enforce") -> list[str]:
    ingress = f"[{{from: [{sources}], ports: [22, 80, 8888, 53/udp]{more}, name: r}}]"
    return list(exposed(ingress, one, mode).reached_by)


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ("clients", ["clients (inference)"]),
        ("four", ["four"]),
        ("10.0.0.0/8", ["10.0.0.0/8"]),
        ("'fd00::1'", []),
        ("any", ["everyone"]),
        ("0.0.0.0/0", ["everyone (0.0.0.0/0)"]),
        ("'::/0'", []),
        ("127.0.0.0/8", ["this host (127.0.0.0/8)"]),
        ("'::1'", []),
        ("'workload:gateway', host", ["workload:gateway", "host"]),
        ("'plane:admin'", ["plane:admin"]),
        ("wire", ["wire"]),
        ("clients, 10.0.0.1, clients", ["clients (inference)", "10.0.0.1"]),
        ("", []),
    ],
)
def test_of_a_port_that_is_open_to_every_ipv4_address(sources: str, told: list[str]) -> None:
    if sources.count("clients") > 1:
        ingress = "[{from: [clients, 10.0.0.1], ports: [80]}, {from: clients, ports: [80-81]}]"
        assert list(exposed(ingress, listener()).reached_by) == told
    else:
        assert reached(sources, listener()) == told


@pytest.mark.parametrize(
    ("one", "told"),
    [
        (listener("10.30.0.1"), ["clients (inference)", "four", "everyone", "this host (127.0.0.1)"]),
        (listener("fd00::1"), ["clients (inference)", "everyone", "this host (::1)"]),
        (listener("::", v6only=True), ["clients (inference)", "everyone", "this host (::1)"]),
        (
            listener("::", v6only=False),
            ["clients (inference)", "four", "everyone", "this host (127.0.0.1)", "this host (::1)"],
        ),
        (listener("::"), ["clients (inference)", "four", "everyone", "this host (127.0.0.1)", "this host (::1)"]),
        (listener("::ffff:10.30.0.1"), ["clients (inference)", "four", "everyone", "this host (127.0.0.1)"]),
        (listener("127.0.0.1"), ["everyone on this host", "this host (127.0.0.1)"]),
        (listener("127.0.0.53"), ["everyone on this host", "this host (127.0.0.1)"]),
        (listener("::1"), ["everyone on this host", "this host (::1)"]),
        (listener("0.0.0.0", interface="lo"), ["everyone on this host", "this host (127.0.0.1)"]),
        (listener("::ffff:127.0.0.1"), ["everyone on this host", "this host (127.0.0.1)"]),
    ],
)
def test_where_it_is_bound_counts(one: Listener, told: list[str]) -> None:
    assert reached("clients, four, any, 127.0.0.1, '::1'", one) == told


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_who_is_called_by_name_reaches_loopback_and_no_interface_does(address: str) -> None:
    assert reached("wire, clients, 'workload:gateway', host", listener(address)) == ["workload:gateway", "host"]


@pytest.mark.parametrize(
    ("sources", "excepted", "told"),
    [
        ("clients", "10.30.0.0/24", ["clients (inference) except 10.30.0.0/24"]),
        ("clients", "clients", []),
        ("'workload:gateway', host, wire", "10.0.0.0/8", []),
        ("clients", "wire", []),
        ("any", "127.0.0.0/8", ["everyone except 127.0.0.0/8"]),
    ],
)
def test_exceptions(sources: str, excepted: str, told: list[str]) -> None:
    assert reached(sources, listener(), f", except: [{excepted}]") == told


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ("clients", []),
        ("guests", []),
        ("10.30.0.0/24", []),
        ("admin", ["admin (admin)"]),
        ("10.0.0.0/8", ["10.0.0.0/8 except networks of clients"]),
        ("any", ["everyone except networks of clients, workloads"]),
        ("wire", ["wire"]),
        ("'workload:gateway', host", ["host"]),
        ("127.0.0.1", ["this host (127.0.0.1) except workloads"]),
    ],
)
def test_an_admin_port_is_closed_to_clients_and_workloads(sources: str, told: list[str]) -> None:
    assert reached(sources, listener(port=22)) == told


def test_of_one_rule_an_admin_port_and_others_are_told_apart() -> None:
    said = policy("[{from: [clients, any], ports: [20-90]}]")
    found = exposure.of_workloads(said, [listener(port=port) for port in (21, 22, 23)], NOW)["w"]
    closed = ("everyone except networks of clients, workloads",)
    assert [one.reached_by for one in found[1:]] == [closed, found[0].reached_by]
    assert found[0].reached_by == ("clients (inference)", "everyone")


def test_modes() -> None:
    for mode, told in (("observe", ["everyone (observe)"]), ("lock", []), ("enforce", ["clients (inference)"])):
        assert reached("clients", listener(), mode=mode) == told
    assert reached("clients", listener("127.0.0.1"), mode="observe") == ["everyone on this host (observe)"]


def test_rules_are_those_about_the_port() -> None:
    ingress = (
        "[{from: clients, ports: [80], name: a}, {from: [], ports: [80-90], name: b}, "
        "{from: admin, ports: [80/udp, 81], name: c}, "
        "{from: any, ports: [80], name: d, expires: '2026-03-01T12:00:00Z'}]"
    )
    assert exposed(ingress, listener()).rules == ("a", "b")
    assert exposed(ingress, listener(port=80, protocol="udp")).rules == ("c",)
    nobody = exposed(ingress, listener(port=91))
    assert (nobody.rules, nobody.reached_by) == ((), ())


def test_what_only_asks_others_is_told_of_where_a_rule_opens_its_port() -> None:
    client = listener(port=40000, protocol="udp", client=True)
    closed = policy("[{from: clients, ports: [80, 53/udp]}]")
    assert exposure.of_workloads(closed, [client], NOW) == {"w": [], "gateway": []}
    opened = policy("[{from: clients, ports: [any]}]")
    (found,) = exposure.of_workloads(opened, [client], NOW)["w"]
    assert found.reached_by == ("clients (inference)",)


def test_in_order_and_of_workloads_of_the_policy_only() -> None:
    some = [listener("::1", 90), listener(port=90), listener(port=80, protocol="udp"), listener(port=80)]
    found = exposure.of_workloads(policy("[]"), [*some, replace(some[0], workload="gone")], NOW)
    assert [one.listener for one in found["w"]] == [some[3], some[2], some[1], some[0]]
    assert [one.port for one in found["w"]] == ["80", "80/udp", "90", "90"]


def test_of_a_rule_with_many_sources_some_are_told_and_ports_do_not_cost_anew() -> None:
    many = ", ".join(f"10.1.{n // 250}.{n % 250}" for n in range(2000))
    said = policy(f"[{{from: [{many}], ports: [1-65535], name: r}}]")
    found = exposure.of_workloads(said, [listener(port=port) for port in range(1, 900)], NOW)["w"]
    assert found[0].reached_by[-2:] == ("10.1.0.7", "1992 more of rule r")
    assert len({id(one.reached_by[0]) for one in found if one.port not in ("22", "8888")}) == 1


def test_what_a_workload_opens_without_end_is_cut_and_so_are_rules() -> None:
    many = ", ".join(f"{{from: 10.1.{n}.0/24, ports: [1-65535], name: r{n}}}" for n in range(60))
    found = exposure.of_workloads(policy(f"[{many}]"), [listener(port=port) for port in range(1, 2000)], NOW)["w"]
    assert [len(found), len(found[0].rules), found[-1].listener.port] == [1000, 50, 1000]


def test_text_of_others_is_made_safe() -> None:
    one = exposed("[]", listener(interface="eno2", comm="\x1b[2Jx"))
    assert one.as_json() == {
        "protocol": "tcp",
        "address": "0.0.0.0%eno2",
        "port": 80,
        "process": "\\x1b[2Jx",
        "reached_by": [],
        "rules": [],
    }


# --- against the evaluator ---

PEERS = (
    *("clients", "four", "admin", "wire", "guests", "any", "10.0.0.0/8", "'::/0'", "10.30.0.7", "127.0.0.0/8"),
    *("'::1'", "'workload:gateway'", "host", "'plane:inference'", "'plane:admin'"),
)
EXCEPTED = ("", "10.30.0.0/24", "clients", "127.0.0.0/8", "wire", "'::/0'")
OUTSIDE = ("10.20.0.1", "10.30.0.7", "10.30.9.9", "10.40.0.1", "10.1.1.1", "11.0.0.1", "fd00:30::1", "fd00::1")
HERE = ("127.0.0.1", "::1")


def callers(here: bool) -> Iterator[Connection]:
    """One of each kind; to a port that is bound to loopback from this host alone."""
    base = Connection("w", Direction.IN, "tcp", None)
    for text in HERE:
        for who in ("", "gateway"):
            yield replace(base, remote=ip_address(text), peer_workload=who, here=True)
    if not here:
        for text in OUTSIDE:
            for interface in ("eno1", "eno2", "eno3"):
                yield replace(base, remote=ip_address(text), peer_workload="?", interface=interface)


@pytest.mark.parametrize("excepted", EXCEPTED)
@pytest.mark.parametrize("source", PEERS)
def test_somebody_is_told_of_where_the_evaluator_lets_somebody_in(source: str, excepted: str) -> None:
    more = f", except: [{excepted}]" if excepted else ""
    said = policy(f"[{{from: {source}, ports: [22, 80]{more}, name: r}}]")
    for address in ("0.0.0.0", "::", "127.0.0.1", "::1"):
        for port in (22, 80):
            one = listener(address, port, v6only=True)
            calls = [replace(call, port=port) for call in callers(one.address.is_loopback)]
            same = [call for call in calls if call.remote and call.remote.version == one.address.version]
            allowed = any(judge(said, Live(NOW), call).allow for call in same)
            told = Exposures(said, said.workloads["w"], NOW).of(one).reached_by
            assert bool(told) is allowed, (address, port, told)
