"""What is told of names when a packet is denied."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest

from penstock.core.asked import Asked
from penstock.core.blocks import Explanation
from penstock.core.explain import explain
from penstock.core.learned import FLOOR, SLACK, Learned
from penstock.core.log_prefix import Kind, Refusal
from penstock.core.packets import Denied
from penstock.core.parse import parse
from penstock.core.policy import Direction, Known, Mode, Policy

NOW = datetime(2026, 11, 25, 2, 15, tzinfo=UTC)
T = NOW.timestamp()
PACKET = Denied(
    *("a", Direction.OUT, Refusal.DENY, Mode.ENFORCE, Kind.RULES, 4, "tcp"),
    *(ip_address("198.51.100.11"), 443, ip_address("192.0.2.1"), 40000, 0),
)
V6 = replace(PACKET, remote=ip_address("2001:db8::11"), family=6)
RULES = """[{to: "*.hf.co", name: hub}, {to: 10.30.1.5, ports: [5432], name: db}]"""


KNOWN = (Known("*.stats.example", "telemetry", "usage statistics", "vllm"),)


def policy(rules: str = RULES, mode: str = "enforce", known: tuple[Known, ...] = KNOWN) -> Policy:
    text = f"version: 1\nworkload: a\nmode: {mode}\negress: {rules}\ningress: []\n"
    parsed = parse({"rules.d/a.yaml": text.encode()})
    assert parsed.policy, parsed.problems
    return replace(parsed.policy, workloads={"a": replace(parsed.policy.workloads["a"], known=known)})


def told(packet: Denied = PACKET, rules: Policy | None = None, *, learned: Learned | None = None) -> Explanation:
    return explain(rules or policy(), packet, NOW, learned or Learned(), Asked())


def learnt(name: str = "cdn.hf.co", ago: float = 0, packet: Denied = PACKET) -> Learned:
    learned = Learned()
    assert learned.learn("a", name, [(packet.remote.packed, 60)], T - ago)
    return learned


def observed(name: str, ago: float = 2) -> Asked:
    asked = Asked()
    asked.observed("a", name, [PACKET.remote.packed], T - ago)
    return asked


# --- nobody asked ---


@pytest.mark.parametrize("packet", [PACKET, V6])
def test_an_address_that_nobody_looked_up_for_a_port_that_names_open(packet: Denied) -> None:
    why = told(packet)
    assert (why.reason, why.name) == ("literal", None)
    assert why.text.startswith("literal address, never looked up; not in its rules")
    assert why.allow
    assert str(packet.remote) in why.allow


def test_where_no_rule_by_name_opens_the_port_the_reason_is_as_ever() -> None:
    why = told(replace(PACKET, port=5432, remote=ip_address("10.30.1.9")))
    assert (why.reason, why.nearest) == ("no-rule", "db")
    assert why.text.startswith("literal address, never looked up; not in its rules; nearest is rule db")


@pytest.mark.parametrize(
    ("packet", "rules"),
    [
        (PACKET, policy("[{to: 10.30.1.5, ports: [5432]}]", known=())),
        (replace(PACKET, remote=ip_address("169.254.169.254"), port=80), policy()),
        (replace(PACKET, remote=ip_address("127.0.0.1")), policy()),
        (replace(PACKET, remote=ip_address("224.0.0.251"), protocol="udp", port=5353), policy()),
        (replace(PACKET, direction=Direction.IN), policy()),
        (PACKET, policy(mode="lock")),
        (PACKET, Policy()),
    ],
    ids=["no-names", "metadata", "loopback", "multicast", "in", "lock", "gone"],
)
def test_where_names_have_no_part_nothing_is_said_of_them(packet: Denied, rules: Policy) -> None:
    plain = explain(rules, packet, NOW)
    assert explain(rules, packet, NOW, learnt(ago=5000, packet=packet), observed("x.example")) == plain
    assert "look" not in plain.text


def test_without_a_memory_nothing_is_said_of_names() -> None:
    assert "look" not in explain(policy(), PACKET, NOW).text


# --- learned ---


def test_an_answer_that_is_over() -> None:
    why = told(learned=learnt(ago=FLOOR + SLACK + 185))
    assert (why.reason, why.name, why.nearest) == ("expired-name", "cdn.hf.co", "hub")
    assert why.text == "learned for cdn.hf.co, expired 3 min ago; a look-up opens it again"
    assert why.allow is None


@pytest.mark.parametrize("here", [False, True])
def test_an_answer_that_is_over_and_would_open_nothing_now(here: bool) -> None:
    """The rule was `private` once."""
    packet = replace(PACKET, kind=Kind.LOOPBACK) if here else replace(PACKET, remote=ip_address("10.0.0.7"))
    why = told(packet, learned=learnt(ago=FLOOR + SLACK + 185, packet=packet))
    reason, rest = ("private-answer", ", which leads to this host") if here else ("no-rule", "; not in its rules")
    assert (why.reason, why.name, why.nearest) == (reason, "cdn.hf.co", "hub")
    assert why.text.startswith(f"learned for cdn.hf.co, expired 3 min ago{rest}")
    private = policy('[{to: "*.hf.co", private: true}]')
    assert told(packet, private, learned=learnt(ago=5000, packet=packet)).reason == "expired-name"


def test_the_rule_of_the_name_opens_other_ports() -> None:
    why = told(replace(PACKET, port=8443), learned=learnt())
    assert (why.reason, why.name, why.nearest) == ("wrong-port", "cdn.hf.co", "hub")
    assert why.text == "learned for cdn.hf.co, whose rule opens other ports; nearest is rule hub (*.hf.co:443)"
    assert why.allow == 'penstock grant a cdn.hf.co:8443 --for 8h --reason "..."'
    over = told(replace(PACKET, port=8443), learned=learnt(ago=FLOOR + SLACK + 40))
    assert over.text.startswith("learned for cdn.hf.co, expired 40 s ago, and its rule opens other ports; nearest")
    assert over.reason == "wrong-port"


def test_a_name_of_a_rule_that_is_gone_or_over() -> None:
    why = told(rules=policy("[{to: other.example}]"), learned=learnt())
    assert (why.reason, why.name) == ("no-rule", "cdn.hf.co")
    assert why.text.startswith("learned for cdn.hf.co; not in its rules")
    over = policy('[{to: "*.hf.co", expires: "2026-01-01T00:00:00Z"}]')
    why = told(rules=over, learned=learnt())
    assert why.reason == "expired"
    assert why.text.startswith("learned for cdn.hf.co; the rule that allowed it has expired")


def test_what_was_learned_since_is_allowed_now() -> None:
    why = told(learned=learnt())
    assert (why.reason, why.name) == ("changed", "cdn.hf.co")
    assert why.text == "denied then; learned for cdn.hf.co since, and allowed now"


def test_a_name_that_leads_to_this_host() -> None:
    here = replace(PACKET, kind=Kind.LOOPBACK)
    why = told(here, learned=learnt())
    assert (why.reason, why.name, why.nearest) == ("private-answer", "cdn.hf.co", "hub")
    assert why.text.startswith("learned for cdn.hf.co, which leads to this host; `private: true` in rule hub")
    assert why.allow is None
    assert told(here).reason == "no-rule"
    assert told(replace(here, port=80), learned=learnt()).reason == "wrong-port"


def test_of_several_names_the_one_that_ends_last_is_told() -> None:
    learned = learnt(ago=2000)
    learned.learn("a", "new.hf.co", [(PACKET.remote.packed, 60)], T - 1000)
    assert told(learned=learned).name == "new.hf.co"


@pytest.mark.parametrize("ago", [0, 3000])
def test_of_several_names_the_one_whose_rule_opens_the_port_is_told(ago: int) -> None:
    rules = policy("[{to: a.example, name: a}, {to: b.example, ports: [8443], name: b}]")
    learned = learnt("b.example", 3000)
    learned.learn("a", "a.example", [(PACKET.remote.packed, 60)], T - ago)
    why = told(replace(PACKET, port=8443), rules, learned=learned)
    assert (why.reason, why.name, why.nearest, why.allow) == ("expired-name", "b.example", "b", None)
    assert why.text == "learned for b.example, expired 38 min ago; a look-up opens it again"


def test_what_another_workload_learned_is_nothing_to_this_one() -> None:
    learned = Learned()
    learned.learn("b", "cdn.hf.co", [(PACKET.remote.packed, 60)], T)
    assert told(learned=learned).reason == "literal"


# --- observed ---


def test_a_name_without_a_rule_that_was_answered() -> None:
    why = explain(policy(mode="observe"), PACKET, NOW, Learned(), observed("registry.example"))
    assert (why.reason, why.name) == ("no-rule", "registry.example")
    assert why.text.startswith("asked registry.example 2 s ago, not in its rules")
    assert why.allow
    assert "- {to: registry.example, ports: [443]}" in why.allow


def test_a_name_that_has_a_rule_since() -> None:
    why = explain(policy(), PACKET, NOW, Learned(), observed("cdn.hf.co", 200))
    assert (why.reason, why.name) == ("name", "cdn.hf.co")
    assert why.text == "asked cdn.hf.co 3 min ago, and not since its rule is in force; a look-up opens it now"


def test_a_name_whose_rule_does_not_take_the_address() -> None:
    packet, asked = replace(PACKET, remote=ip_address("10.0.0.7")), Asked()
    asked.observed("a", "cdn.hf.co", [packet.remote.packed], T - 200)
    why = explain(policy(), packet, NOW, Learned(), asked)
    assert (why.reason, why.name, why.nearest) == ("no-rule", "cdn.hf.co", "hub")
    assert why.text.startswith("asked cdn.hf.co 3 min ago, whose rule does not take this address; not in its")
    private = policy('[{to: "*.hf.co", private: true}]')
    assert explain(private, packet, NOW, Learned(), asked).reason == "name"


def test_telemetry_is_told_as_such() -> None:
    why = explain(policy(mode="observe"), PACKET, NOW, Learned(), observed("x.stats.example"))
    assert (why.reason, why.name, why.allow) == ("telemetry", "x.stats.example", None)
    assert "telemetry, which preset vllm leaves closed: usage statistics" in why.text


def test_names_are_told_safely_and_times_never_backwards() -> None:
    earlier = NOW - timedelta(seconds=9)
    why = explain(policy(mode="observe"), PACKET, earlier, Learned(), observed("x\x1b[2J.example"))
    assert why.text.startswith("asked x\\x1b[2J.example 0 s ago")
    assert why.allow is None
