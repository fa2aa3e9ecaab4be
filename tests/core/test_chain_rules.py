"""Which rules in chains open something."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from governed import policy_of, rules
from penstock.core.chain_rules import opening, question
from penstock.core.compile import Live, compile_policy
from penstock.core.policy import Policy

NOW = datetime(2026, 3, 1, tzinfo=UTC)
END = NOW + timedelta(hours=1)
LABELS = {"model": 3, "gw": 4, "ui": 5}
HOST = "version: 1\nnetworks: {lan: {interface: eno2}, other: {interface: eno3}}\n"
UNTIL = f"expires: '{END.isoformat()}', reason: x"


def policy() -> Policy:
    return policy_of(
        rules(
            "model",
            f"[{{to: lan, ports: [443, icmp], name: calls}}, {{to: 10.0.0.1, ports: [any], name: set, {UNTIL}}}]",
            f"[{{from: ['workload:gw', lan], ports: [8000-8001], name: front}},"
            f" {{from: host, ports: [9000/udp], name: here}}, {{from: lan, ports: [7000], name: brief, {UNTIL}}},"
            " {from: lan, ports: [6000/udp], name: group}]",
        ),
        rules("gw", "[{to: 'workload:model', ports: [8000], name: model}]"),
        rules("ui"),
        host=HOST,
    )


@pytest.mark.parametrize(
    ("workload", "direction", "protocol", "port", "far", "expected"),
    [
        ("model", "in", "tcp", 8000, "workload:gw", ("front",)),
        ("model", "in", "tcp", 8001, "workload:gw", ("front",)),
        ("model", "in", "tcp", 8002, "workload:gw", ()),
        ("model", "in", "udp", 8000, "workload:gw", ()),
        ("model", "in", "tcp", 8000, "workload:ui", ()),
        ("model", "in", "tcp", 8000, "workload:nobody", ()),
        ("model", "in", "tcp", 8000, "host", ()),
        ("model", "in", "udp", 9000, "host", ("here",)),
        ("model", "in", "udp", 9000, "workload:gw", ()),
        ("model", "in", "tcp", 8000, "interface:eno2", ("front",)),
        ("model", "in", "tcp", 8000, "interface:eno3", ()),
        ("model", "in", "tcp", 443, "interface:eno2", ()),
        ("model", "in", "udp", 6000, "interface:eno2", ("group",)),
        ("model", "in", "tcp", 7000, "interface:eno2", ("brief",)),
        ("model", "out", "tcp", 443, "interface:eno2", ("calls",)),
        ("model", "out", "icmp", 0, "interface:eno2", ("calls",)),
        ("model", "out", "tcp", 8000, "interface:eno2", ()),
        ("model", "out", "tcp", 8000, "workload:gw", ()),
        ("model", "out", "tcp", 9000, "host", ()),
        ("gw", "out", "tcp", 8000, "workload:model", ("model",)),
        ("gw", "out", "tcp", 8001, "workload:model", ()),
        ("ui", "out", "tcp", 8000, "workload:model", ()),
        ("gw", "in", "tcp", 8000, "workload:model", ()),
    ],
)
def test_what_opens_it(
    workload: str, direction: str, protocol: str, port: int, far: str, expected: tuple[str, ...]
) -> None:
    ruleset = compile_policy(policy(), Live(NOW, LABELS, 1))
    assert opening(ruleset, LABELS, question(workload, direction, protocol, port, far), NOW) == expected


def test_a_rule_that_is_over_opens_nothing_though_it_is_there() -> None:
    ruleset = compile_policy(policy(), Live(NOW, LABELS, 1))
    asked = question("model", "in", "tcp", 7000, "interface:eno2")
    assert opening(ruleset, LABELS, asked, END - timedelta(seconds=1)) == ("brief",)
    assert opening(ruleset, LABELS, asked, END) == ()


@pytest.mark.parametrize(
    ("direction", "protocol", "port", "far"),
    [
        ("up", "tcp", 1, "host"),
        ("in", "sctp", 1, "host"),
        ("in", "tcp", 65536, "host"),
        ("in", "tcp", 1, "host:x"),
        ("in", "tcp", 1, "workload:"),
        ("in", "tcp", 1, "interface"),
        ("in", "tcp", 1, ""),
    ],
)
def test_no_question(direction: str, protocol: str, port: int, far: str) -> None:
    with pytest.raises(ValueError, match=r"must be|not a valid"):
        question("w", direction, protocol, port, far)
