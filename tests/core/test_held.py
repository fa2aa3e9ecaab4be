"""What the kernel must hold; `test_asking` has more of it, and the command's tests ask a kernel."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from governed import policy_of, rules
from penstock.core.chain_rules import opening, question
from penstock.core.compile import Live, compile_policy
from penstock.core.connection import Connection
from penstock.core.held import in_chain, in_set
from penstock.core.policy import Direction, Mode

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LABELS = {"gw": 4, "model": 3}
HOST = """\
version: 1
host: {admin_ports: [22]}
networks:
  lan: {interface: eno2, plane: inference}
  mgmt: {interface: eno3, plane: admin}
  net: {cidr: 10.0.0.0/8, plane: admin}
"""
OPEN = "ports: [22, 80, 443/udp, icmp]"
POLICY = policy_of(
    rules(
        "model",
        f"[{{to: [lan, 'workload:gw', 169.254.169.254], {OPEN}}}, {{to: mgmt, ports: [80], except: net}}]",
        f"[{{from: ['plane:admin', lan, host, 'workload:gw', '::1'], {OPEN.replace(', icmp', '')}}}]",
    ),
    rules("gw"),
    host=HOST,
)


def connections() -> list[Connection]:
    plain = Connection("model", Direction.IN, "tcp", ip_address("192.0.2.1"))
    found = []
    for direction in Direction:
        for protocol, port in (("tcp", 22), ("tcp", 80), ("tcp", 81), ("udp", 443), ("icmp", None)):
            for address in ("192.0.2.1", "10.0.0.1", "127.0.0.1", "::1", "169.254.169.254", "fe80::1"):
                for far in ({}, {"interface": "eno2"}, {"interface": "eno3"}, {"interface": "eno4"},
                            {"peer_workload": "gw", "here": True}, {"here": True}):  # fmt: skip
                    if protocol == "icmp" and (direction is Direction.IN or "peer_workload" in far):
                        continue  # answered by the kernel, or judged by address
                    if "interface" in far and ip_address(address).is_loopback:
                        continue  # nobody there has it
                    one = replace(plain, direction=direction, protocol=protocol, port=port)
                    found.append(replace(one, remote=ip_address(address), **far))
    return found


def test_chains_hold_what_is_expected_of_them() -> None:
    """The evaluator says what is expected, the compiler what is there."""
    ruleset = compile_policy(POLICY, Live(NOW, LABELS, 1))
    asked = opened = 0
    for connection in connections():
        one = in_chain(POLICY, NOW, connection)
        if one is None:
            continue
        what = question("model", connection.direction, connection.protocol, connection.port or 0, one.far)
        assert bool(opening(ruleset, LABELS, what, NOW)) is one.opened, connection
        asked, opened = asked + 1, opened + one.opened
    assert 0 < opened < asked


@pytest.mark.parametrize(
    ("address", "far", "expected"),
    [
        ("::1", {}, True),
        ("10.0.0.1", {}, True),
        ("127.0.0.1", {}, False),
        ("192.0.2.1", {"interface": "eno2"}, False),
        ("127.0.0.1", {"peer_workload": "gw"}, False),
    ],
)
def test_sets_are_about_addresses(address: str, far: dict[str, str], expected: bool) -> None:
    connection = Connection("model", Direction.IN, "tcp", ip_address(address), 80, **far)  # type: ignore[arg-type]
    assert in_set(POLICY, NOW, connection) is expected


def test_the_chains_of_what_is_locked_are_not_asked() -> None:
    from_lan = Connection("model", Direction.IN, "tcp", ip_address("192.0.2.1"), 80, interface="eno3")
    found = in_chain(POLICY, NOW, from_lan)
    assert found
    assert found.opened
    locked = replace(POLICY.workloads["model"], mode=Mode.LOCK)
    assert in_chain(replace(POLICY, workloads={**POLICY.workloads, "model": locked}), NOW, from_lan) is None


def test_nobody_in_particular_is_in_no_chain() -> None:
    assert in_chain(POLICY, NOW, Connection("model", Direction.IN, "tcp", ip_address("10.0.0.1"), 80)) is None


