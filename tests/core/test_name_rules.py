"""The rules by name: which patterns a workload has, and which of them share sets in the kernel."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governed import policy_of
from penstock.core import names
from penstock.core.name_rules import Group, Index, NameRule, groups, name_rules, resolves
from penstock.core.policy import Policy, PortRange, Ports

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HTTPS = Ports((PortRange("tcp", 443, 443),))
NETWORKS = """version: 1
networks:
  lan: {cidr: [10.0.0.0/8, "fd00::/8"], plane: inference}
  wire: {interface: eno2}
"""


def policy(egress: str) -> Policy:
    files = f"version: 1\nworkload: w\nmode: enforce\negress: [{egress}]\ningress: []\n"
    return policy_of(files, host=NETWORKS)


def found(egress: str, now: datetime = NOW) -> tuple[NameRule, ...]:
    parsed = policy(egress)
    return name_rules(parsed, parsed.workloads["w"], now)


def test_a_pattern_each_in_the_order_of_the_file() -> None:
    two = "{to: 192.0.2.1, ports: [80]}, {to: [192.0.2.2, c.example], ports: [80]}"
    rules = found(f"{{to: [b.example, '*.a.example']}}, {two}")
    assert [rule.pattern for rule in rules] == ["b.example", "*.a.example", "c.example"]
    assert rules[0].rule == rules[1].rule != rules[2].rule
    assert rules[0].group == Group(HTTPS), "443 unless said otherwise"


def test_equal_ports_are_one_group_however_they_are_written() -> None:
    one, same, other = "ports: [80, 443, icmp]", "ports: [icmp, 443, 80]", "ports: [80]"
    rules = found(f"{{to: a.example, {one}}}, {{to: b.example, {same}}}, {{to: c.example, {other}}}")
    assert rules[0].group == rules[1].group
    assert rules[0].group.id == rules[1].group.id
    assert len(groups(rules)) == 2
    assert groups(rules) == groups(tuple(reversed(rules)))


@pytest.mark.parametrize(
    "other",
    ["ports: [443/udp]", "ports: [443, 444]", "ports: [443, icmp]", "private: true", "expires: 2026-04-01"],
)
def test_what_opens_otherwise_is_another_group(other: str) -> None:
    one, two = found(f"{{to: a.example}}, {{to: b.example, {other}}}")
    assert one.group != two.group
    assert one.group.id != two.group.id
    assert len(groups((one, two))) == 2


def test_equal_groups_have_equal_ids() -> None:
    """Of equal ones, any names the sets."""
    written = "2026-04-01T00:00:00+00:00", "2026-04-01T02:00:00+02:00"
    rules = found(", ".join(f"{{to: n{n}.example, expires: '{time}'}}" for n, time in enumerate(written)))
    assert rules[0].group == rules[1].group
    assert rules[0].group.id == rules[1].group.id


def test_a_rule_that_is_over_has_no_pattern() -> None:
    end = datetime(2026, 3, 1, 14, 0, tzinfo=timezone(timedelta(hours=2)))
    egress = f"{{to: a.example, expires: '{end.isoformat()}'}}, {{to: b.example}}"
    assert [rule.pattern for rule in found(egress, NOW - timedelta(seconds=1))] == ["a.example", "b.example"]
    assert [rule.pattern for rule in found(egress, NOW)] == ["b.example"]


def test_exceptions_are_prefixes() -> None:
    (rule,) = found("{to: a.example, private: true, except: [192.0.2.0/24, lan]}")
    expected = ("192.0.2.0/24", "10.0.0.0/8", "fd00::/8")
    assert set(rule.excepted) == set(map(ip_network, expected))


def test_an_exception_that_cannot_be_taken_out_closes_the_rule() -> None:
    assert found("{to: a.example, except: [wire]}") == ()


def test_who_has_a_name_resolves() -> None:
    for egress, expected in (
        ("", False),
        ("{to: 192.0.2.1, ports: [80]}", False),
        ("{to: a.example}", True),
        ("{to: [192.0.2.1, a.example], ports: [80]}", True),
        ("{to: a.example, expires: 2020-01-01}", True),
    ):
        assert resolves(policy(egress).workloads["w"]) is expected


LABELS = st.sampled_from(["a", "b", "c", "example"])
NAMES = st.lists(LABELS, min_size=1, max_size=5).map(".".join)
PATTERNS = st.tuples(st.booleans(), NAMES).map(lambda pair: ("*." if pair[0] else "") + pair[1])


@given(st.lists(PATTERNS, max_size=12), NAMES)
def test_the_index_finds_what_each_pattern_by_itself_would(patterns: Iterable[str], name: str) -> None:
    rules = [NameRule(pattern, Group(HTTPS), f"out-{number}") for number, pattern in enumerate(patterns)]
    expected = {rule.rule for rule in rules if names.matches(rule.pattern, name)}
    of = Index(rules).of(name)
    assert {rule.rule for rule in of} == expected
    assert len(of) == len(expected)
