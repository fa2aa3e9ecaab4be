"""What a policy opens and closes beside another one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core import reach
from penstock.core.parse import parse
from penstock.core.policy import Direction, Policy
from penstock.core.reach import Opening, Reach, as_json, changes
from penstock.core.verdict import Connection, Live, judge

NOW = datetime(2026, 11, 25, 3, tzinfo=UTC)
HOST = """\
version: 1
networks:
  clients: {cidr: [10.30.0.0/16, "fd00:30::/64"], plane: inference}
  wire: {interface: eno2}
"""


def policy(*egress: str, ingress: str = "", mode: str = "enforce", host: str = HOST, name: str = "w") -> Policy:
    rules = "".join(f"\n  - {{{rule}}}" for rule in egress) or " []"
    inside = f"\n  - {{{ingress}}}" if ingress else " []"
    text = f"version: 1\nworkload: {name}\nmode: {mode}\negress:{rules}\ningress:{inside}\n"
    parsed = parse({"penstock.yaml": host.encode(), "rules.d/w.yaml": text.encode()})
    assert parsed.policy, parsed.problems
    return parsed.policy


def texts(openings: tuple[Opening, ...]) -> list[str]:
    return [f"{one.direction} {one.text}{'' if one.enforced else ' later'}" for one in openings]


def differ(old: Policy | None, new: Policy) -> tuple[list[str], list[str]]:
    found = changes(old, new, NOW)
    assert len(found) <= 1
    return (texts(found[0].allowed), texts(found[0].denied)) if found else ([], [])


API = "to: 10.0.0.1, ports: [443]"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([API], [API]),
        ([API], [f"{API}, name: api"]),
        (["to: [10.0.0.0, 10.0.0.1], ports: [443]"], ["to: 10.0.0.0/31, ports: [443]"]),
        (["to: 10.0.0.1, ports: [80-90]"], ["to: 10.0.0.1, ports: [80-84]", "to: 10.0.0.1, ports: [85-90]"]),
        (["to: 10.0.0.0/8, ports: [443]", API], ["to: 10.0.0.0/8, ports: [443]"]),
        (["to: [a.org, '*.b.org']"], ["to: ['*.b.org', x.y.b.org]", "to: a.org"]),
        (["to: any, ports: [443]"], ["to: any, ports: [443]", "to: a.org"]),
        (["to: a.org, ports: [2370-2374, 2377]"], ["to: a.org, ports: [2370-2377]"]),
        (["to: a.org, except: 10.0.0.0/8"], ["to: a.org"]),
        (["to: a.org"], ["to: a.org, except: [clients, 'fe80::/64']"]),
        ([API, f"{API.replace('.1', '.2')}, expires: 2020-01-01"], [API]),
    ],
)
def test_nothing_new(old: list[str], new: list[str]) -> None:
    assert differ(policy(*old), policy(*new)) == ([], [])


@pytest.mark.parametrize(
    ("old", "new", "allowed", "denied"),
    [
        ([API], ["to: 10.0.0.1, ports: [444]"], ["out 10.0.0.1:444"], ["out 10.0.0.1:443"]),
        ([API], [API.replace("[443]", "[443, 53/udp, icmp]")], ["out 10.0.0.1:53/udp, icmp"], []),
        ([API], ["to: 10.0.0.0/31, ports: [443]"], ["out 10.0.0.0:443"], []),
        (["to: 10.0.0.0/24, ports: [1-10]"], ["to: 10.0.0.0/25, ports: [1-5]"], [],
         ["out 10.0.0.0/25:6-10", "out 10.0.0.128/25:1-10"]),
        (["to: 'fd00::/64', ports: [1]"], ["to: 'fd00::1', ports: [1]"], [], ["out [fd00::/64]:1, in part"]),
        (["to: 'fd00::1', ports: [1]"], ["to: ['fd00::1', 'fd00::2'], ports: [1]"], ["out [fd00::2]:1"], []),
        ([API], [API, "to: [a.org, '*.b.org']"], ["out a.org, *.b.org; ports 443"], []),
        (["to: '*.b.org'"], ["to: a.b.org"], [], ["out *.b.org:443"]),
        (["to: a.org, ports: [443]"], ["to: a.org, ports: [443-444]"], ["out a.org:444"], []),
        (["to: [a.org, b.org]"], ["to: [b.org, c.org]"], ["out c.org:443"], ["out a.org:443"]),
        (["to: [a.org, 10.0.0.1], ports: [443]"], [], [], ["out a.org, 10.0.0.1; ports 443"]),
        (["to: 10.0.0.0/8, ports: [443]"], ["to: any, ports: [443]"], ["out any:443, in part"], []),
        (["to: 10.0.0.0/24, ports: [1]"], ["to: 10.0.0.0/24, except: 10.0.0.0/25, ports: [1]"], [],
         ["out 10.0.0.0/25:1"]),
        ([], ["to: 10.0.0.1, ports: [443], expires: 2020-01-01"], [], []),
        ([], ["to: metadata, ports: [80]"], ["out metadata:80"], []),
        (["to: a.org, ports: [2375-2377]"], ["to: a.org, ports: [2375, 2376-2377]"], ["out a.org:2375"], []),
        (["to: 10.0.0.1, ports: [any]"], ["to: 10.0.0.1, ports: [any]", "to: 10.0.0.1, ports: [2375]"],
         ["out 10.0.0.1:2375"], []),
        ([], ["to: wire, ports: [80]"], ["out wire:80"], []),
        (["to: wire, ports: [80]"], ["to: [wire, 10.0.0.1], ports: [80, 90]"],
         ["out 10.0.0.1:80, 90", "out wire:90"], []),
        (["to: wire, ports: [80]"], ["to: any, ports: [80]"], ["out any:80"], []),
        (["to: any, ports: [80]"], ["to: wire, ports: [80]"], [], ["out any:80"]),
        ([], ["to: wire, ports: [80], except: 10.0.0.0/8"], ["out wire:80 later"], []),
        (["to: wire, ports: [80], except: 10.0.0.0/8"], ["to: wire, ports: [80]"], ["out wire:80"],
         []),
        (["to: a.org"], ["to: a.org, private: true"], ["out a.org:443, at private addresses"], []),
        (["to: a.org, private: true"], ["to: a.org"], [], ["out a.org:443, at private addresses"]),
        (["to: a.org"], ["to: a.org, ports: [80], private: true"], ["out a.org:80"], ["out a.org:443"]),
        (["to: any, ports: [443]"], ["to: any, ports: [443]", "to: a.org, private: true"], [], []),
        (["to: '*.a.org'"], ["to: '*.a.org'", "to: x.a.org, private: true"],
         ["out x.a.org:443, at private addresses"], []),
        (["to: a.org"], ["to: a.org, except: 203.0.113.0/24"], [], ["out a.org:443, at 203.0.113.0/24"]),
        (["to: a.org, except: [203.0.113.0/25, clients], private: true"],
         ["to: a.org, except: 203.0.113.0/24, private: true"],
         ["out a.org:443, at 10.30.0.0/16", "out a.org:443, at fd00:30::/64"],
         ["out a.org:443, at 203.0.113.0/24"]),
        (["to: a.org, except: 203.0.113.0/24"], [], [], ["out a.org:443"]),
        (["to: a.org, except: 10.0.0.0/7"], ["to: a.org"], ["out a.org:443, at 10.0.0.0/7"], []),
        (["to: a.org, except: 10.0.0.0/8, private: true"], ["to: a.org, private: true"],
         ["out a.org:443, at 10.0.0.0/8"], []),
        (["to: a.org, except: 10.0.0.0/8, private: true"], ["to: a.org"], [],
         ["out a.org:443, at private addresses"]),
        (["to: a.org", "to: a.org, except: 10.0.0.0/8, private: true"], ["to: a.org, private: true"],
         ["out a.org:443, at 10.0.0.0/8"], []),
        (["to: any, ports: [443]", "to: a.org, except: 10.0.0.0/8, private: true"],
         ["to: any, ports: [443]", "to: a.org, private: true"], [], []),
    ],
)  # fmt: skip
def test_rules(old: list[str], new: list[str], allowed: list[str], denied: list[str]) -> None:
    assert differ(policy(*old), policy(*new)) == (allowed, denied)


def test_the_rule_is_named() -> None:
    (found,) = changes(policy(), policy(f"{API}, name: api"), NOW)
    assert found == Reach("w", (Opening("10.0.0.1:443", "out", "api"),), ())


def test_a_network_changes_what_its_rules_open() -> None:
    rule = "from: clients, ports: [80], name: front"
    wider = HOST.replace("10.30.0.0/16", "10.30.0.0/15")
    assert differ(policy(ingress=rule), policy(ingress=rule, host=wider)) == (["in 10.31.0.0/16 -> 80"], [])
    assert differ(policy(ingress=rule, host=wider), policy(ingress=rule)) == ([], ["in 10.31.0.0/16 -> 80"])


def test_a_network_that_joins_a_plane_changes_what_is_open_to_it() -> None:
    rule = "from: plane:inference, ports: [80], name: front"
    wider = HOST.replace("10.30.0.0/16", "10.30.0.0/15")
    assert differ(policy(), policy(ingress=rule)) == (["in plane:inference -> 80"], [])
    assert differ(policy(ingress=rule), policy(ingress=rule, host=wider)) == (["in 10.31.0.0/16 -> 80"], [])


OPENS, CLOSES = ["out 10.0.0.2:443"], ["out 10.0.0.1:443"]
RECORDED = " everything that its rules do not allow; what was recorded: penstock blocks --workload w"
NOT_REFUSED = " everything: nothing is refused, only recorded"


@pytest.mark.parametrize(
    ("old", "new", "allowed", "denied", "observed"),
    [
        ("enforce", "enforce", OPENS, CLOSES, False),
        ("observe", "observe", OPENS, CLOSES, True),
        ("observe", "enforce", [], [RECORDED], False),
        ("enforce", "observe", [NOT_REFUSED], [], False),
        ("lock", "observe", [NOT_REFUSED], [], False),
        ("lock", "enforce", OPENS, [], False),
        ("enforce", "lock", [], [" everything"], False),
        ("observe", "lock", [], [" everything"], False),
        (None, "enforce", OPENS, [" everything that its rules do not allow"], False),
        (None, "observe", OPENS, [], True),
        (None, "lock", [], [" everything"], False),
        ("enforce", None, [" " + reach.IN_PLACE], [" " + reach.IN_SLICE], False),
    ],
)
def test_modes(
    old: str | None, new: str | None, allowed: list[str], denied: list[str], observed: bool
) -> None:
    was = policy(API, mode=old) if old else None
    will = policy("to: 10.0.0.2, ports: [443]", mode=new) if new else Policy()
    (found,) = changes(was, will, NOW)
    assert (texts(found.allowed), texts(found.denied), found.observed) == (allowed, denied, observed)


def test_a_locked_workload_stays_locked() -> None:
    assert changes(policy(API, mode="lock"), policy(mode="lock"), NOW) == ()


def test_json() -> None:
    found = as_json(changes(policy("to: a.org, name: r"), policy(mode="lock"), NOW))
    assert json.loads(json.dumps(found)) == [
        {
            "workload": "w",
            "observed": False,
            "allowed": [],
            "denied": [{"direction": None, "text": "everything", "rule": None, "enforced": True}],
        }
    ]
    (one,) = as_json(changes(None, policy("to: a.org, name: r"), NOW))
    assert one["allowed"] == [{"direction": "out", "text": "a.org:443", "rule": "r", "enforced": True}]


# --- against the evaluator: an address and port are told as opened when the two policies judge them so ---

ADDRESSES = [f"10.0.0.{n}" for n in range(8)]
PREFIXES = st.sampled_from([*ADDRESSES, "10.0.0.0/30", "10.0.0.4/31", "10.0.0.0/29", "any"])
PORTS = st.sampled_from(["[1]", "[2]", "[1-3]", "[2-4]", "[1/udp]", "[any]"])
RULES = st.lists(st.builds("to: {}, ports: {}".format, PREFIXES, PORTS), max_size=4, unique=True)


@settings(max_examples=60, deadline=None)
@given(RULES, RULES)
def test_it_is_told_when_the_evaluator_sees_a_difference(old: list[str], new: list[str]) -> None:
    before, after = policy(*old), policy(*new)
    found = changes(before, after, NOW)
    opened = closed = False
    for address in [*ADDRESSES, "192.0.2.1", "fd00::1"]:
        for protocol, port in [("tcp", 1), ("tcp", 2), ("tcp", 3), ("tcp", 4), ("tcp", 5), ("udp", 1), ("udp", 2)]:
            asked = Connection("w", Direction.OUT, protocol, ip_address(address), port)
            was, will = (judge(each, Live(NOW), asked).allow for each in (before, after))
            opened, closed = opened or (will and not was), closed or (was and not will)
    assert (bool(found and found[0].allowed), bool(found and found[0].denied)) == (opened, closed)


def test_a_network_behind_another_interface_is_another_network() -> None:
    other = HOST.replace("eno2", "eno3")
    rule = "to: wire, ports: [80]"
    assert differ(policy(rule), policy(rule, host=other)) == (["out wire:80"], ["out wire:80"])
    lan = other.replace("  wire", "  lan: {interface: eno2}\n  wire")
    assert differ(policy(rule), policy("to: lan, ports: [80]", host=lan)) == ([], [])


def test_of_a_plane_what_is_by_interface_counts_too() -> None:
    rule = "from: plane:inference, ports: [80], name: front"
    wire = HOST.replace("eno2}", "eno2, plane: inference}")
    assert differ(policy(ingress=rule), policy(ingress=rule, host=wire)) == (["in plane:inference -> 80"], [])
