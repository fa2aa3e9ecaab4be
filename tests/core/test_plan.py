"""The difference between two policies, in words."""

from __future__ import annotations

import json

import pytest

from penstock.core.parse import parse
from penstock.core.plan import Kind, Plan, as_json, difference
from penstock.core.policy import Policy

HOST = "version: 1\nnetworks:\n  clients: {cidr: 10.30.0.0/16, plane: inference}\n  spare: {cidr: 10.40.0.0/16}\n"
RULES = """\
version: 1
workload: w
mode: enforce
egress:
  - {to: 10.0.0.1, ports: [443], name: api}
ingress:
  - {from: clients, ports: [80], name: front}
  - {from: "plane:inference", ports: [81], name: plane}
"""


def policy(rules: str = RULES, host: str = HOST, **more: str) -> Policy:
    files = {"penstock.yaml": host, "rules.d/w.yaml": rules, **{f"rules.d/{k}.yaml": v for k, v in more.items()}}
    parsed = parse({name: text.encode() for name, text in files.items()})
    assert parsed.policy, parsed.problems
    return parsed.policy


def changed(old: str, new: str) -> Plan:
    return difference(policy(), policy(RULES.replace(old, new, 1)))


def test_the_same() -> None:
    assert difference(policy(), policy()).empty
    assert as_json(Plan()) == {"workloads": [], "networks": [], "host": []}


def test_what_changes_no_verdict_is_no_difference() -> None:
    lines = RULES.splitlines()
    moved = "\n".join(["# why", *lines[:6], lines[7], lines[6], "tests: [egress 10.0.0.1:443 allow]"])
    assert difference(policy(), policy(moved)).empty
    several = RULES.replace("10.0.0.1", "[10.0.0.1, 10.0.0.2]")
    turned = RULES.replace("10.0.0.1", "[10.0.0.2, 10.0.0.1]")
    assert difference(policy(several), policy(turned)).empty


@pytest.mark.parametrize(
    ("old", "new", "details"),
    [
        ("to: 10.0.0.1", "to: [10.0.0.2, 10.0.0.3]", "peers: + 10.0.0.2, 10.0.0.3; - 10.0.0.1"),
        ("[443]", "[443, 53/udp, icmp]", "ports: + 53/udp, icmp"),
        ("to: 10.0.0.1", "to: 10.0.0.1, except: spare", "except: + spare"),
        ("name: api", "name: api, reason: billing", "reason: billing"),
        ("name: api", 'name: api, expires: "2030-01-02T03:04:05Z"', "expires never -> 2030-01-02T03:04:05+00:00"),
    ],
)
def test_a_rule_changes(old: str, new: str, details: str) -> None:
    (workload,) = changed(old, new).workloads
    (rule,) = workload.rules
    assert (workload.kind, rule.kind, rule.id, rule.details) == (Kind.CHANGED, Kind.CHANGED, "api", (details,))


def test_an_override_comes_and_goes() -> None:
    ray = "  - {from: any, ports: [8265], name: ray, reason: lab"
    with_it, without = f"{RULES}{ray}, override: admin-port}}\n", f"{RULES}{ray}}}\n"
    for old, new, kind, details in (
        (RULES, with_it, Kind.ADDED, ("overrides admin-port: lab",)),
        (without, with_it, Kind.CHANGED, ("override: + admin-port",)),
        (with_it, without, Kind.CHANGED, ("override: - admin-port",)),
    ):
        (workload,) = difference(policy(old), policy(new)).workloads
        assert [(rule.kind, rule.details) for rule in workload.rules] == [(kind, details)]


def test_rules_come_and_go() -> None:
    (workload,) = changed("name: api", "name: other, expires: 2030-01-01").workloads
    assert [(rule.kind, rule.id, rule.direction, rule.text) for rule in workload.rules] == [
        (Kind.ADDED, "other", "out", "10.0.0.1:443"),
        (Kind.REMOVED, "api", "out", "10.0.0.1:443"),
    ]
    assert workload.rules[0].details[0].startswith("until 2030-01-")
    assert (workload.rules[0].place.file, workload.rules[0].place.line) == ("rules.d/w.yaml", 5)


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("observe", "mode enforce -> observe: nothing is refused, only recorded"),
        ("lock", "mode enforce -> lock: everything is refused"),
    ],
)
def test_a_mode_changes(mode: str, text: str) -> None:
    (workload,) = changed("enforce", mode).workloads
    assert workload.details == (text,)
    assert workload.rules == ()


LOOKS_UP = """\
version: 1
workload: w
mode: enforce
egress:
  - {to: 198.51.100.10, ports: [53, 53/udp]}
ingress: []
"""
SERVES = b"""\
version: 1
preset: serves
title: Opens nothing
source: measured
date: 2026-01-01
egress: []
known: [{name: calls.example, kind: telemetry, text: usage reports}]
"""


def serving(rules: str, preset: bytes = SERVES) -> Policy:
    parsed = parse({"rules.d/w.yaml": rules.encode()}, {"serves.yaml": preset})
    assert parsed.policy, parsed.problems
    return parsed.policy


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("enforce", "names that no rule has do not exist for it"),
        ("observe", "what no rule names is answered, and recorded"),
        ("lock", "no name exists for it"),
    ],
)
@pytest.mark.parametrize("entry", ["use: serves", "to: first.example"])
def test_who_answers_look_ups_changes(mode: str, text: str, entry: str) -> None:
    old = LOOKS_UP.replace("enforce", mode)
    new = old.replace("ingress", f"  - {{{entry}}}\ningress")
    (there,), (back,) = (difference(serving(a), serving(b)).workloads for a, b in ((old, new), (new, old)))
    assert there.details[0] == f"its look-ups go to penstock's resolver from then on: {text}"
    assert back.details[0] == "penstock's resolver takes its look-ups no more: they go where its rules let them"


def test_a_second_rule_by_name_changes_nothing_about_look_ups() -> None:
    one, two = (LOOKS_UP.replace("ingress", f"  - to: {name}\ningress") for name in ("a.example", "b.example"))
    (workload,) = difference(policy(one), policy(two)).workloads
    assert workload.details == ()


def test_what_a_preset_knows_changes() -> None:
    rules = LOOKS_UP.replace("ingress", "  - use: serves\ningress")
    other = SERVES.replace(b"calls.example", b"home.example")
    (workload,) = difference(serving(rules), serving(rules, other)).workloads
    assert workload.details == ("known and left closed: + home.example; - calls.example",)
    other = SERVES.replace(b"usage reports", b"crash reports")
    (workload,) = difference(serving(rules), serving(rules, other)).workloads
    assert workload.details == ("what presets say of the names that they leave closed",)


def test_workloads_come_and_go() -> None:
    other = RULES.replace("workload: w", "workload: v")
    (added,) = difference(policy(), policy(v=other)).workloads
    assert (added.kind, added.name, len(added.rules)) == (Kind.ADDED, "v", 3)
    assert added.details == ("mode enforce: what no rule allows is refused",)
    (removed,) = difference(policy(v=other), policy()).workloads
    assert (removed.kind, removed.name) == (Kind.REMOVED, "v")
    assert {rule.kind for rule in removed.rules} == {Kind.REMOVED}


def test_from_nothing_everything_is_new() -> None:
    plan = difference(None, policy())
    assert [(w.kind, w.name) for w in plan.workloads] == [(Kind.ADDED, "w")]
    assert [(n.kind, n.name) for n in plan.networks] == [(Kind.ADDED, "clients"), (Kind.ADDED, "spare")]


@pytest.mark.parametrize(
    ("old", "new", "details", "touches"),
    [
        ("10.30.0.0/16", "10.31.0.0/16", "cidr: + 10.31.0.0/16; - 10.30.0.0/16", ["front", "plane"]),
        (", plane: inference", "", "plane inference -> none", ["front", "plane"]),
        ("10.40.0.0/16", "[10.40.0.0/16, 10.41.0.0/16]", "cidr: + 10.41.0.0/16", []),
    ],
)
def test_networks(old: str, new: str, details: str, touches: list[str]) -> None:
    plan = difference(policy(), policy(host=HOST.replace(old, new)))
    (network,) = plan.networks
    assert network.details == (details,)
    assert network.touches == tuple(("w", rule) for rule in touches)
    assert plan.workloads == ()


def test_a_network_of_an_exception_touches_its_rule() -> None:
    rules = RULES.replace("ports: [443]", "ports: [443], except: spare")
    plan = difference(policy(rules), policy(rules, HOST.replace("10.40.0.0/16", "10.41.0.0/16")))
    assert plan.networks[0].touches == (("w", "api"),)


def test_the_host() -> None:
    first = HOST + "host: {admin_ports: [22]}\ndns: {upstream: [192.0.2.1, 192.0.2.2]}\n"
    plan = difference(policy(), policy(host=first))
    assert plan.host == ("admin ports: + 22", "DNS servers: + 192.0.2.1 port 53, 192.0.2.2 port 53")
    turned = first.replace("192.0.2.1, 192.0.2.2", "192.0.2.2, 192.0.2.1")
    plan = difference(policy(host=first), policy(host=turned))
    assert plan.host == ("DNS servers are asked in this order: 192.0.2.2 port 53, 192.0.2.1 port 53",)


def test_many_are_not_all_spelled_out() -> None:
    many = ", ".join(f"10.0.1.{n}" for n in range(100))
    (workload,) = changed("to: 10.0.0.1", f"to: [10.0.0.1, {many}]").workloads
    shown = ", ".join(f"10.0.1.{n}" for n in range(8))
    assert workload.rules[0].details == (f"peers: + {shown} and 92 more",)


def test_json_can_be_written() -> None:
    said = as_json(changed("enforce", "lock"))
    assert json.loads(json.dumps(said)) == said
    assert said["workloads"][0]["change"] == "changed"
