"""Which probes a policy calls for, and what may be said of what came of them."""

from __future__ import annotations

import errno
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from penstock.core import probes
from penstock.core.parse import parse
from penstock.core.policy import Policy
from penstock.core.probes import ALLOWED, DENIED, Probe, Tried, judge_allowed, judge_denied

NOW = datetime(2026, 11, 27, tzinfo=UTC)


def policy(egress: str) -> Policy:
    text = f"version: 1\nworkload: w\nmode: enforce\negress: {egress}\ningress: []\n"
    found = parse({"rules.d/w.yaml": text.encode()}).policy
    assert found is not None
    return found


def denied(egress: str) -> list[list[str]]:
    return [[str(probe.address) for probe in family] for family in probes.denied(policy(egress), "w", NOW)]


def allowed(egress: str) -> list[str]:
    return [str(probe) for probe in probes.allowed(policy(egress), "w", NOW)]


def test_what_is_denied_leads_nowhere_and_is_in_no_rule() -> None:
    assert denied("[]") == [["192.0.2.1", "198.51.100.1", "203.0.113.1", "127.0.0.1"], ["2001:db8::1", "::1"]]
    assert denied("[{to: [192.0.2.0/24, 127.0.0.1], ports: [9]}]")[0] == ["198.51.100.1", "203.0.113.1"]
    assert denied("[{to: any, ports: [any]}]") == [[], []]


def test_what_is_allowed_is_named_literally() -> None:
    rules = (
        '[{to: a.example.org}, {to: 10.0.0.0/8, ports: [1]}, {to: [10.0.0.7, "2001:db8::7"], ports: [5/udp, 7]}]'
    )
    assert allowed(rules) == ["10.0.0.7:7", "[2001:db8::7]:7"]
    assert allowed("[{to: [10.0.0.7, 10.0.0.8], ports: [7]}]") == ["10.0.0.7:7"]
    assert allowed("[{to: 10.0.0.7, ports: [7/udp, icmp]}, {to: metadata, ports: [80]}]") == []
    assert allowed("[{to: 169.254.169.254, ports: [80]}, {to: a.example.org}]") == []
    assert allowed("[{to: 10.0.0.7, ports: [7], expires: 2026-11-01}]") == []


GOING = Probe(DENIED, ip_address("192.0.2.1"), 9)
COMING = Probe(ALLOWED, ip_address("10.0.0.7"), 7, "r")


@pytest.mark.parametrize(
    ("number", "counted", "logged", "proven"),
    [
        (errno.ECONNREFUSED, True, True, True),
        (errno.ECONNREFUSED, True, False, True),
        (errno.EACCES, False, True, True),
        (errno.ECONNREFUSED, False, False, False),  # somebody else refused it
        (0, True, True, False),
        (None, True, True, False),
        (errno.ENETUNREACH, True, False, None),
    ],
)
def test_a_denial_is_proved_by_our_own_books(
    number: int | None, counted: bool, logged: bool, proven: bool | None
) -> None:
    assert judge_denied(GOING, Tried(number, 0.001), counted, logged).proven is proven


@pytest.mark.parametrize(
    ("number", "hits", "logged", "proven"),
    [
        (0, 3, False, True),
        (None, 1, False, True),  # nobody answers: that is not ours
        (errno.ECONNREFUSED, 1, False, True),
        (errno.ECONNREFUSED, 0, True, False),
        (0, 0, False, None),
        (0, None, False, None),
        (errno.ENETUNREACH, 0, False, None),
    ],
)
def test_passing_is_proved_by_the_rule(
    number: int | None, hits: int | None, logged: bool, proven: bool | None
) -> None:
    assert judge_allowed(COMING, Tried(number, 0.001), hits, logged).proven is proven


def test_words() -> None:
    assert judge_denied(GOING, Tried(errno.ECONNREFUSED, 0.0012), True, True).text == (
        "denied: ECONNREFUSED after 1 ms, counted and logged"
    )
    assert judge_allowed(COMING, Tried(None, 2.0), 1, False).text == "let through by rule r (no answer yet)"
    assert str(Probe(DENIED, ip_address("::1"), 9)) == "[::1]:9"
