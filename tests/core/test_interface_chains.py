"""What networks by `interface:` are in the chains."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from governed import policy_of, rules
from penstock.core import chains
from penstock.core.actions import Count
from penstock.core.compile import NEVER, Live, compile_policy
from penstock.core.conditions import Echo, InCgroup, Interface
from penstock.core.interface_chains import CLOSED, Link, Links, links
from penstock.core.policy import Mode, Policy, PortRange
from penstock.core.render_rule import rule_text
from penstock.core.ruleset import Ruleset

NOW = datetime(2026, 3, 1, tzinfo=UTC)
HOST = """\
version: 1
networks:
  lan: {interface: eno2, plane: admin}
  mgmt: {interface: br-7, plane: admin}
  net: {cidr: 10.0.0.0/8, plane: admin}
"""
WEB, DNS = PortRange("tcp", 8000, 8001), PortRange("udp", 53, 53)


def policy(egress: str = "[]", ingress: str = "[]", mode: str = "enforce") -> Policy:
    return policy_of(rules("w", egress, ingress, mode), host=HOST)


def found(egress: str = "[]", ingress: str = "[]", now: datetime = NOW) -> Links:
    made = policy(egress, ingress)
    return links(made, made.workloads["w"], now)


def compiled(egress: str = "[]", ingress: str = "[]", mode: str = "enforce") -> Ruleset:
    return compile_policy(policy(egress, ingress, mode), Live(NOW, {"w": 3}, 1))


def texts(ruleset: Ruleset) -> dict[str, list[str]]:
    return {chain.name: [rule_text(rule) for rule in chain.rules] for chain in ruleset.chains}


def over(link: Link) -> tuple[str, tuple[PortRange, ...]]:
    return link.interface, link.ports.ranges


def test_networks_and_planes() -> None:
    made = found(
        "[{to: [lan, net, 10.1.1.1], ports: [8000-8001, 53/udp]}]", "[{from: 'plane:admin', ports: [80]}]"
    )
    assert [over(link) for link in made.out] == [("eno2", (WEB, DNS))]
    assert [over(link) for link in made.in_] == [(name, (PortRange("tcp", 80, 80),)) for name in ("eno2", "br-7")]
    assert len(made.counters) == 2


@pytest.mark.parametrize(
    ("more", "there"),
    [
        ("", True),
        (", expires: '2026-03-02T00:00:00Z', reason: x", True),
        (", expires: '2026-03-01T00:00:00Z', reason: x", False),
        (", except: [10.0.0.0/8]", False),
        (", except: [lan]", False),
    ],
)
def test_what_is_over_or_has_an_exception_opens_nothing(more: str, there: bool) -> None:
    made = found(f"[{{to: lan, ports: [8000]{more}}}]", f"[{{from: lan, ports: [8000]{more}}}]")
    assert (bool(made.out), bool(made.in_)) == (there, there)


def test_control_ports_leave_only_by_name() -> None:
    made = found("[{to: lan, ports: [2374-2376]}, {to: mgmt, ports: [2375]}]", "[{from: lan, ports: [2374-2376]}]")
    assert [[str(r) for r in link.ports.ranges] for link in made.out] == [["2374"], ["2375"]]
    assert [str(r) for r in made.in_[0].ports.ranges] == ["2374-2376"]


def test_the_chains_of_a_workload() -> None:
    made = texts(compiled("[{to: lan, ports: [8000-8001, 53/udp, icmp], name: out}]",
                          "[{from: lan, ports: [443], name: in}]"))  # fmt: skip
    hits_in, hits_out = "counter name hits_w_in accept", "counter name hits_w_out accept"
    assert made["in_w"].count(f'iifname "eno2" tcp dport 443 {hits_in}') == 1
    assert made["reply_w"].count(f'oifname "eno2" tcp sport 443 {hits_in}') == 1
    assert made["out_w"][-2] == 'oifname "eno2" jump over_w'
    assert made["echo_w"][-2] == 'oifname "eno2" jump over_w'
    assert made["answer_w"].count('iifname "eno2" jump heard_w') == 1
    four, six = made["over_w"][:2]
    assert (four.partition("{")[0], six.partition("{")[0]) == ("ip daddr ", "ip6 daddr ")
    assert four.endswith("} return")
    assert made["over_w"][2:] == [
        f'oifname "eno2" tcp dport 8000-8001 {hits_out}',
        f'oifname "eno2" udp dport 53 {hits_out}',
        f'oifname "eno2" icmp type echo-request {hits_out}',
        f'oifname "eno2" icmpv6 type echo-request {hits_out}',
    ]
    assert made["heard_w"] == [
        *(text.replace("daddr", "saddr") for text in made["over_w"][:2]),
        f'iifname "eno2" udp sport 53 {hits_out}',
    ]
    assert not any("eno2" in text for name in made if name.startswith("loopback") for text in made[name])


def test_datagrams_of_this_host_are_no_calls() -> None:
    """It gets what it sends to a multicast group, as if over the interface; TCP knows no groups."""
    made = texts(compiled(ingress="[{from: lan, ports: [80, 80/udp]}]"))
    asks = [text.partition(" counter")[0] for text in made["in_w"] if "eno2" in text]
    assert asks == ['iifname "eno2" tcp dport 80', 'iifname "eno2" udp dport 80 fib saddr type != local']
    assert not any("fib" in text for text in made["reply_w"])


def test_nothing_is_there_without_such_rules() -> None:
    made = compiled("[{to: net, ports: [80, icmp]}]", "[{from: 'plane:inference', ports: [80]}]")
    assert not {"over_w", "heard_w"} & {chain.name for chain in made.chains}
    assert not any(isinstance(when, Interface) for c in made.chains for rule in c.rules for when in rule.when)
    assert not any(name.startswith("hits_") for name in made.counters)


def test_only_what_is_declared_is_counted() -> None:
    for mode in Mode:
        made = compiled("[{to: lan, ports: [80, 80/udp, icmp]}]", "[{from: lan, ports: [80]}]", mode)
        counted = {do.counter for c in made.chains for rule in c.rules for do in rule.do if isinstance(do, Count)}
        assert counted <= set(made.counters)
        assert sum(name.startswith("hits_w_") for name in made.counters) == 2, "also while it is locked"


def test_a_rule_without_datagrams_hears_none() -> None:
    made = texts(compiled("[{to: lan, ports: [80]}, {to: mgmt, ports: [icmp]}]"))
    assert "heard_w" not in made
    assert not any("iifname" in text for text in made["answer_w"])


def test_an_end_is_asked_for_in_the_kernel() -> None:
    end = NOW + timedelta(hours=1)
    until = f", expires: '{end.isoformat()}', reason: x"
    egress, ingress = f"[{{to: lan, ports: [80, 80/udp, icmp]{until}}}]", f"[{{from: lan, ports: [80]{until}}}]"
    made = texts(compiled(egress, ingress))
    asked = f"meta time < {int(end.timestamp())} "
    opened = [text for chain in made.values() for text in chain if "counter name hits_" in text]
    assert len(opened) == 7
    assert all(text.startswith(asked) for text in opened)


def test_what_is_closed_unless_literal_is_what_sets_close() -> None:
    for family in (4, 6):
        held = sorted((int(c.network_address), int(c.broadcast_address)) for c in CLOSED[family])
        assert tuple(held) == NEVER[family]


def test_echo_needs_icmp() -> None:
    made = compiled("[{to: lan, ports: [80]}]")
    assert not any(isinstance(when, Echo) for c in made.chains for rule in c.rules for when in rule.when)
    plan = chains.Plan("w", Mode.ENFORCE, 3, echo=False, links=found("[{to: lan, ports: [80]}]"))
    assert "echo_w" not in {c.name for c in chains.build([plan], InCgroup("penstock.slice", 1))}
