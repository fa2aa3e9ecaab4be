"""Grants beside a policy, and as a file that is read with suspicion."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from penstock.core import grants
from penstock.core.compile import Live, compile_policy
from penstock.core.connection import Connection
from penstock.core.grants import Grant, Saved, with_grants
from penstock.core.language.parse_peer import peer
from penstock.core.language.parse_ports import port_range
from penstock.core.parse import parse
from penstock.core.policy import EVERY_PORT, CidrPeer, Direction, NetworkPeer, Policy, Ports, Rule
from penstock.core.verdict import Live as Now
from penstock.core.verdict import Reason, judge

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def policy() -> Policy:
    found = parse(
        {
            "penstock.yaml": b"version: 1\nnetworks:\n  clients: {cidr: 10.30.0.0/16}\n",
            "rules.d/a.yaml": b"version: 1\nworkload: a\nmode: enforce\negress: []\ningress: []\n",
            "rules.d/b.yaml": b"version: 1\nworkload: b\nmode: enforce\negress: []\ningress: []\n",
        }
    ).policy
    assert found
    return found


def rule(word: str, *ports: str, direction: Direction = Direction.OUT, **more: Any) -> Rule:
    ranges = tuple(port_range(port) for port in ports if port != "icmp")
    return Rule("grant-00000001", direction, (peer(word, direction),), Ports(ranges, "icmp" in ports), **more)


def granted(*rules: Rule, workload: str = "a", until: datetime = NOW + HOUR, **more: Any) -> Grant:
    values: dict[str, Any] = {"owner": "anna", "reason": "to see", "made": NOW, "ends": 4600.5} | more
    return Grant("grant-00000001", workload, "words", rules, until, **values)


def verdict(
    policy: Policy, address: str, port: int, now: datetime, direction: Direction = Direction.OUT
) -> Reason:
    return judge(policy, Now(now), Connection("a", direction, "tcp", ip_address(address), port)).reason


# --- beside a policy ---


@pytest.mark.parametrize("address", ["198.51.100.1", "2001:db8::1"])
def test_it_is_allowed_until_then_and_the_hash_stays(address: str) -> None:
    before = policy()
    after = with_grants(before, [granted(rule(address, "443"))], NOW)
    assert after.hash == before.hash
    assert verdict(before, address, 443, NOW) is Reason.NO_RULES
    assert verdict(after, address, 443, NOW) is Reason.RULE
    assert verdict(after, address, 443, NOW + HOUR) is Reason.EXPIRED
    ruleset = compile_policy(after, Live(NOW, {"a": 3, "b": 4}, 1))
    ends = {s.name: list(s.expires.values()) for s in ruleset.sets if s.elements}
    assert ends == {f"out{ip_address(address).version}_a": [NOW + HOUR]}


def test_it_says_whose_it_is() -> None:
    after = with_grants(policy(), [granted(rule("198.51.100.1", "443"))], NOW)
    (lent,) = after.workloads["a"].egress
    assert (lent.id, lent.reason, lent.expires) == ("grant-00000001", "anna: to see", NOW + HOUR)


def test_ingress_and_several() -> None:
    inward = granted(rule("clients", "8000", direction=Direction.IN))
    after = with_grants(policy(), [inward, granted(rule("198.51.100.1", "1"))], NOW)
    assert verdict(after, "10.30.0.7", 8000, NOW, Direction.IN) is Reason.RULE
    assert verdict(after, "198.51.100.1", 1, NOW) is Reason.RULE


@pytest.mark.parametrize(
    "nothing",
    [
        granted(rule("198.51.100.1", "1"), until=NOW),
        granted(rule("198.51.100.1", "1"), workload="gone"),
        granted(rule("elsewhere", "1")),
        granted(rule("workload:gone", "1")),
        granted(rule("10.0.0.0/8", "1", excepted=(NetworkPeer("elsewhere"),))),
    ],
    ids=["over", "workload", "network", "peer", "exception"],
)
def test_what_is_over_or_about_nothing_changes_nothing(nothing: Grant) -> None:
    before = policy()
    assert with_grants(before, [nothing], NOW) is before
    if nothing.at(NOW):
        assert grants.missing(before, nothing)


# --- the file ---

PRESET = (
    Rule(
        "grant-00000001/egress-1", Direction.OUT, (peer("*.hf.co", Direction.OUT), peer("hf.co", Direction.OUT)),
        Ports((port_range("443"), port_range("443/udp"))), preset="huggingface", private=True,
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    "rules",
    [
        (rule("198.51.100.1", "443"),),
        (rule("2001:db8::/48", "8000-8100", "53/udp", "icmp"),),
        (rule("clients", "8000", direction=Direction.IN),),
        (rule("plane:admin", "8000", direction=Direction.IN),),
        (rule("workload:b", "8000"),),
        (rule("metadata", "80"),),
        (Rule("grant-00000001", Direction.OUT, (peer("any", Direction.OUT),), Ports(EVERY_PORT)),),
        (rule("10.0.0.0/8", "1", excepted=(NetworkPeer("clients"), CidrPeer(ip_network("10.1.0.0/16")))),),
        PRESET,
    ],
)  # fmt: skip
def test_what_was_saved_is_read_again(rules: tuple[Rule, ...]) -> None:
    saved = Saved(NOW, "boot", (granted(*rules, preset=rules[0].preset, reason="\\x1b[2J ü"),))
    assert grants.decode(grants.encode(saved)) == saved


def changed(change: Callable[[Any], object]) -> bytes:
    value = json.loads(grants.encode(Saved(NOW, "boot", (granted(rule("198.51.100.1", "443")),))))
    change(value)
    return json.dumps(value).encode()


def one(**changes: Any) -> bytes:
    return changed(lambda value: value["grants"][0].update(changes))


def of_rule(**changes: Any) -> bytes:
    return changed(lambda value: value["grants"][0]["rules"][0].update(changes))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'"' + b"x" * grants.MAX_BYTES + b'"',
        changed(lambda value: value.update(penstock=2)),
        changed(lambda value: value.update(at="now")),
        changed(lambda value: value.update(at=float("nan"))),
        changed(lambda value: value.update(at=1e300)),
        changed(lambda value: value["grants"].append(value["grants"][0])),
        changed(lambda value: value.update(grants=value["grants"] * (grants.MAX_ALL + 1))),
        one(id="grant-1"),
        one(workload="../a"),
        one(until=(NOW + timedelta(days=40)).timestamp()),
        one(ends=True),
        one(owner="anna\x1b[2J"),
        one(reason=7),
        one(rules=[]),
        of_rule(peers=[]),
        of_rule(ports=[]),
        of_rule(ports=["0-65535"]),
        of_rule(peers=["198.51.100.999"]),
        of_rule(direction="up"),
        of_rule(private=1),
        of_rule(name="x"),
        of_rule(**{"except": ["a.example"]}),
    ],
    ids=lambda data: data[:0].decode(),
)
def test_what_is_not_as_it_was_written_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="what was saved of grants is damaged"):
        grants.decode(data)


def test_all_keys_are_needed() -> None:
    value = json.loads(grants.encode(Saved(NOW, "boot", (granted(rule("198.51.100.1", "443")),))))
    for place in (value, value["grants"][0], value["grants"][0]["rules"][0]):
        for key in list(place):
            kept = place.pop(key)
            with pytest.raises(ValueError, match="damaged"):
                grants.decode(json.dumps(value).encode())
            place[key] = kept
    grants.decode(json.dumps(value).encode())
