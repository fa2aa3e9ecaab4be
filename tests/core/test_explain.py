"""Why a packet was denied, and what is offered."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from fake_host import START

from penstock.core.explain import explain
from penstock.core.log_prefix import Kind, Refusal
from penstock.core.packets import Denied
from penstock.core.parse import parse
from penstock.core.policy import Direction, Mode, Policy, PortRange, Ports

PACKET = Denied(
    *("a", Direction.OUT, Refusal.DENY, Mode.ENFORCE, Kind.RULES, 4, "tcp"),
    *(ip_address("198.51.100.11"), 443, ip_address("192.0.2.1"), 40000, 0),
)
RULES = "[{to: 198.51.100.10, ports: [443]}]"


def policy(mode: str = "enforce", ingress: str = "[]", egress: str = RULES) -> Policy:
    text = f"version: 1\nworkload: a\nmode: {mode}\negress: {egress}\ningress: {ingress}\n"
    found = parse({"rules.d/a.yaml": text.encode()}).policy
    assert found
    return found


def test_a_packet_that_no_rule_allows_gets_its_rule_offered() -> None:
    why = explain(policy(), PACKET, START)
    assert why.reason == "no-rule" or why.nearest
    assert why.nearest == policy().workloads["a"].egress[0].id
    assert why.allow == 'penstock grant a 198.51.100.11:443 --for 8h --reason "..."'


def test_the_rule_that_is_offered_while_nothing_is_denied_would_allow_it() -> None:
    for remote, protocol in (("198.51.100.11", "tcp"), ("2001:db8::9", "udp")):
        packet = replace(PACKET, remote=ip_address(remote), protocol=protocol)
        allow = explain(policy("observe"), packet, START).allow
        assert allow
        line = allow.split(":  ", 1)[1].split("  then:")[0]
        text = f"version: 1\nworkload: a\nmode: enforce\negress:\n{line}\ningress: []\n"
        parsed = parse({"rules.d/a.yaml": text.encode()})
        assert parsed.policy, parsed.problems
        assert explain(parsed.policy, packet, START).reason == "changed"


def test_ingress_is_offered_for_what_comes_in() -> None:
    packet = replace(PACKET, direction=Direction.IN, port=11434)
    allow = explain(policy(), packet, START).allow
    assert allow == 'penstock grant a --from 198.51.100.11 --port 11434 --for 8h --reason "..."'
    assert "{from: 198.51.100.11, ports: [11434]}" in str(explain(policy("observe"), packet, START).allow)


def test_who_was_refused_where_the_host_is_let_in_was_no_bystander() -> None:
    text = b"version: 1\nworkload: a\nmode: enforce\negress: []\ningress: [{from: host, ports: [11434]}]\n"
    found = parse({"rules.d/a.yaml": text}).policy
    assert found
    packet = replace(PACKET, direction=Direction.IN, port=11434, remote=ip_address("127.0.0.1"))
    assert explain(found, packet, START).reason == "no-rule", "and not that it would be allowed now"


def test_metadata_lock_and_what_has_no_port_get_no_offer() -> None:
    metadata = replace(PACKET, remote=ip_address("169.254.169.254"), port=80)
    assert explain(policy(), metadata, START).allow is None
    assert explain(policy("lock"), PACKET, START).allow is None
    assert explain(policy(), replace(PACKET, port=None, protocol="icmp"), START).allow is None
    assert explain(policy(), replace(PACKET, port=None, protocol="132"), START).allow is None


def test_what_would_be_allowed_now_has_changed() -> None:
    assert explain(policy(), replace(PACKET, remote=ip_address("198.51.100.10")), START).reason == "changed"


@pytest.mark.parametrize("far", ["192.0.2.1", "2001:db8::1"])
def test_a_probe_of_ours_is_told_and_gets_no_offer(far: str) -> None:
    packet = replace(PACKET, remote=ip_address(far), port=9)
    why = explain(policy(), packet, START)
    assert why.text.endswith("`penstock enforce` tries it")
    assert why.allow is None
    for other in (replace(packet, port=10), replace(packet, direction=Direction.IN)):
        assert "penstock enforce" not in explain(policy(), other, START).text


def test_fixed_kinds_and_replies() -> None:
    assert explain(policy(), replace(PACKET, kind=Kind.SOURCE), START).reason == "foreign-source"
    unbound = replace(PACKET, kind=Kind.UNBOUND, workload="-")
    assert explain(policy(), unbound, START).reason == "unbound"
    assert explain(policy(), replace(unbound, kind=Kind.ADMIN), START).reason == "admin-port"
    reply = replace(PACKET, kind=Kind.REPLY, direction=Direction.IN, port=80)
    assert explain(policy(), reply, START).reason == "reply"
    assert explain(policy(ingress="[{from: any, ports: [80]}]"), reply, START).reason == "reply"


def test_a_workload_that_is_not_there_any_more() -> None:
    why = explain(Policy(), PACKET, START)
    assert why.allow is None
    assert why.text


@pytest.mark.parametrize("more", [{"kind": Kind.LOOPBACK}, {"interface": "lo"}, {}])
def test_an_admin_port_of_this_host_whichever_of_its_addresses(more: dict[str, Any]) -> None:
    """A connection that was there when the port was closed is denied where its rule was asked for."""
    ports = Ports((PortRange("tcp", 22, 22),))
    found = replace(policy(egress="[{to: 192.0.2.10, ports: [22]}]"), admin_ports=ports)
    packet = replace(PACKET, remote=ip_address("192.0.2.10"), port=22, **more)
    why = explain(found, packet, START)
    assert (why.reason, why.allow) == ("admin-port" if more else "changed", None)
