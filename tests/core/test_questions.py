"""Words of a policy and objects of the kernel."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import pytest
from fake_host import TWO, Host

from governed import policy_of
from penstock.core import cgroup_maps, questions
from penstock.core.name_chains import learned_set
from penstock.core.name_rules import name_rules
from penstock.core.policy import Policy
from penstock.core.ruleset import Element
from penstock.core.slices import SLICE, slice_of

HOLDS = {
    "workload": "w", "direction": "out", "address": "192.0.2.1", "protocol": "tcp", "port": 443, "here": 0,
}  # fmt: skip
NOW = datetime(2026, 3, 1, tzinfo=UTC)
NAMED = """\
- {to: a.example}
- {to: b.example, ports: [80, 443/udp, icmp], private: true}
- {to: c.example, ports: [8000-60000], expires: 2026-02-01}
- {to: "*.d.example", ports: [8000-60000]}
"""


def test_each_workload_is_bound() -> None:
    wanted = questions.bindings(("a",), {SLICE: 1, slice_of("a"): 2})
    assert wanted.keys() == set(cgroup_maps.MAPS)
    assert wanted[cgroup_maps.OUT] == {2: ("goto", "out_a")}
    assert wanted[cgroup_maps.OWN] == {2: ("jump", "met_a")}


def test_what_has_no_cgroup_is_left_out() -> None:
    assert not any(questions.bindings(("a",), {slice_of("b"): 2}).values())


LLAMA, VLLM = "system.slice/llama.service", "system.slice/system-vllm.slice/vllm@a.service"


def test_levels_count_from_that_of_the_slice() -> None:
    assert questions.level(SLICE, 4) == 4
    assert questions.level(slice_of("a"), 4) == 5
    assert questions.levels([VLLM, LLAMA, "system.slice/b.service"], 4) == (5, 6)
    assert questions.levels([], 4) == ()


def test_a_workload_is_bound_in_its_slice_and_in_place() -> None:
    cgroups = {SLICE: 1, slice_of("a"): 2, LLAMA: 7, VLLM: 8}
    wanted = questions.bindings(("a", "b"), cgroups, {LLAMA: "a", VLLM: "b"}, 4)
    assert wanted.keys() == set(cgroup_maps.maps((5, 6)))
    assert wanted[cgroup_maps.OUT] == {2: ("goto", "out_a")}
    assert wanted["out_place5"] == {7: ("goto", "out_a")}
    assert wanted["in_place6"] == {8: ("goto", "in_b")}
    assert wanted["own_place6"] == {8: ("jump", "met_b")}


def test_a_place_that_is_gone_or_nobodys_is_left_out_and_its_maps_are_emptied() -> None:
    wanted = questions.bindings(("a",), {SLICE: 1, LLAMA: 7}, {LLAMA: "gone", VLLM: "a"}, 4, in_use=(5, 9))
    assert wanted.keys() == set(cgroup_maps.maps((5, 6, 9)))
    assert not any(found for name, found in wanted.items() if "place" in name)


def test_look_ups_of_whom_a_place_is_decide_and_not_those_of_whom_is_around_it() -> None:
    cgroups = {SLICE: 1, slice_of("a"): 2, slice_of("b"): 3, LLAMA: 4, VLLM: 5}
    wanted = questions.bindings(("a", "b"), cgroups, {LLAMA: "a", VLLM: "b"}, 4, by_name=("a",))
    assert wanted[cgroup_maps.ASKS] == {2: ("goto", "dns_a")}
    places = [cgroup_maps.place_name_map(questions.level(path, 4)) for path in (LLAMA, VLLM)]
    assert wanted[places[0]][4] == ("goto", "dns_a")
    assert wanted[places[1]][5] == ("goto", cgroup_maps.OWN_LOOKUPS)


def test_what_rules_by_name_let_through_is_not_known() -> None:
    text = b"version: 1\nworkload: a\nmode: enforce\negress: [{to: [a.example, b.example]}]\ningress: []\n"
    in_force = Host({"rules.d/a.yaml": text}).start().engine.in_force
    assert in_force
    assert questions.hits_by_rule(in_force, "a", {}) == {}


def test_hits_are_summed_by_rule_and_strangers_are_nobodys() -> None:
    in_force = Host(TWO).start().engine.in_force
    assert in_force
    [element] = next(s.elements for s in in_force.ruleset.sets if s.name == "out4_a")
    [rule] = in_force.policy.workloads["a"].rules
    counted = {
        "out4_a": {element: (5, 300), Element(1, 1, 6, 1, 1): (9, 540)},
        "out6_a": {},
        "theirs": {element: (7, 420)},
    }
    assert questions.hits_by_rule(in_force, "a", counted) == {rule.id: 5}
    counters = {f"hits_a_{rule.id}": (2, 120), "hits_a_gone": (4, 240), f"hits_b_{rule.id}": (8, 480)}
    assert questions.hits_by_rule(in_force, "a", counted, counters) == {rule.id: 7}


@pytest.mark.parametrize(
    ("change", "set_name", "protocol"),
    [
        ({}, "out4_w", 6),
        ({"protocol": "udp", "direction": "in"}, "in4_w", 17),
        ({"protocol": "icmp", "port": 0}, "out4_w", 1),
        ({"protocol": "icmp", "port": 0, "address": "2001:db8::1"}, "out6_w", 58),
    ],
)
def test_which_set_is_asked(change: dict[str, Any], set_name: str, protocol: int) -> None:
    arguments = {**HOLDS, **change}
    question = questions.to_kernel(7, arguments, Policy(), NOW)
    assert (question.request, question.set, question.protocol) == (7, set_name, protocol)
    assert question.address == ip_address(arguments["address"]).packed


@pytest.mark.parametrize(
    "change", [{"direction": "up"}, {"address": "x"}, {"protocol": "gre"}, {"port": -1}, {"port": 65536}]
)
def test_what_makes_no_sense(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        questions.to_kernel(7, {**HOLDS, **change}, Policy(), NOW)


@pytest.mark.parametrize(
    ("change", "patterns"),
    [
        ({}, ["a.example"]),
        ({"address": "2001:db8::1"}, ["a.example"]),
        ({"here": 1}, []),
        ({"port": 80}, ["b.example"]),
        ({"port": 80, "here": 1}, ["b.example"]),
        ({"port": 80, "address": "127.0.0.1"}, ["b.example"]),
        ({"address": "127.0.0.1"}, []),
        ({"protocol": "udp"}, ["b.example"]),
        ({"protocol": "icmp", "port": 0}, ["b.example"]),
        ({"port": 9000}, ["*.d.example"]),  # the other one is over
        ({"port": 11434}, ["*.d.example"]),
        ({"port": 22}, []),
        ({"port": 10250}, []),  # a control port, in a range
        ({"direction": "in"}, []),
        ({"workload": "x"}, []),
    ],
)
def test_which_sets_of_learned_addresses_are_asked(change: dict[str, Any], patterns: list[str]) -> None:
    arguments = {**HOLDS, **change}
    for mode in ("enforce", "observe", "lock"):
        policy = policy_of(f"version: 1\nworkload: w\nmode: {mode}\negress:\n{NAMED}ingress: []\n")
        found = name_rules(policy, policy.workloads["w"], NOW)
        family = ip_address(arguments["address"]).version
        expected = [learned_set("w", one.group.id, family) for one in found if one.pattern in patterns]
        learned = questions.to_kernel(7, arguments, policy, NOW).learned
        assert sorted(learned) == sorted(expected if mode != "lock" else [])
