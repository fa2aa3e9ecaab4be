"""The rule that is offered: as it must be written."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.core.parse import parse
from penstock.core.policy import NOWHERE, Direction, Mode, Workload
from penstock.core.remedies import to_add, to_allow, to_lend, to_name


@pytest.fixture
def workload() -> Workload:
    found = parse({"rules.d/a.yaml": b"version: 1\nworkload: a\nmode: enforce\negress: []\ningress: []\n"}).policy
    assert found
    return found.workloads["a"]


@pytest.mark.parametrize(
    ("direction", "peer", "protocol", "port", "rule"),
    [
        (Direction.OUT, "192.0.2.1", "tcp", 443, "- {to: 192.0.2.1, ports: [443]}"),
        (Direction.OUT, "2001:db8::1", "udp", 53, '- {to: "2001:db8::1", ports: [53/udp]}'),
        (Direction.IN, "192.0.2.1", "tcp", 8000, "- {from: 192.0.2.1, ports: [8000]}"),
    ],
)
def test_a_rule_for_an_address(
    workload: Workload, direction: Direction, peer: str, protocol: str, port: int, rule: str
) -> None:
    text = to_add(workload, direction, peer, protocol, port)
    side = "egress" if direction is Direction.OUT else "ingress"
    assert text == f"add to {side} in rules.d/a.yaml:  {rule}  then: penstock apply"


REST = '--for 8h --reason "..."'


@pytest.mark.parametrize(
    ("direction", "peer", "protocol", "port", "words"),
    [
        (Direction.OUT, "192.0.2.1", "tcp", 443, "192.0.2.1:443"),
        (Direction.OUT, "2001:db8::1", "udp", 53, "[2001:db8::1]:53/udp"),
        (Direction.IN, "192.0.2.1", "tcp", 8000, "--from 192.0.2.1 --port 8000"),
        (Direction.IN, "2001:db8::1", "udp", 8000, "--from 2001:db8::1 --port 8000/udp"),
    ],
)
def test_a_grant_for_an_address(
    workload: Workload, direction: Direction, peer: str, protocol: str, port: int, words: str
) -> None:
    asked = (direction, peer, protocol, port)
    assert to_lend(workload, *asked) == to_allow(workload, *asked) == f"penstock grant a {words} {REST}"
    observed = replace(workload, mode=Mode.OBSERVE)
    assert to_allow(observed, *asked) == to_add(observed, *asked)


def test_a_workload_without_a_file_is_named(workload: Workload) -> None:
    assert "egress in a: " in to_add(replace(workload, place=NOWHERE), Direction.OUT, "192.0.2.1", "tcp", 1)


def test_a_rule_for_a_name(workload: Workload) -> None:
    assert to_name(workload, "a.example") == f"penstock grant a a.example:443 {REST}"
    observed = replace(workload, mode=Mode.OBSERVE)
    assert "- {to: a.example, ports: [443]}" in str(to_name(observed, "a.example"))
    assert "ports: [53/udp]" in str(to_name(observed, "a.example", "udp", 53))


@pytest.mark.parametrize("name", ["localhost", "A.example", "x\x1b.example", "a}.example", "*.example.org", ""])
def test_no_rule_for_what_no_rule_can_have(workload: Workload, name: str) -> None:
    assert to_name(workload, name) is None
