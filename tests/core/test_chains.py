"""What must hold of the chains whatever the workloads; what they do to packets is tested with packets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from penstock.core import base_chains, cgroup_maps, chains
from penstock.core.actions import Count, Dispatch, Final, Goto, Jump, Log, SetLabel
from penstock.core.chains import Plan
from penstock.core.conditions import Condition, Echo, ForeignSource, Hook, InCgroup, InSet, Tracked
from penstock.core.label_bits import FIRST_LABEL, LABELS
from penstock.core.policy import Direction, Mode
from penstock.core.ruleset import Chain, Rule

DEPTH = 4
GOVERNED = InCgroup("penstock.slice", DEPTH)
PLANS = [
    Plan(f"{mode}-{'echo' if echo else 'mute'}", mode, FIRST_LABEL + 2 * number + echo, echo, in_place=True)
    for number, mode in enumerate(Mode)
    for echo in (False, True)
]
LEVELS = (5, 7, 6)
ALONE = {chain.name: chain for chain in chains.build([replace(p, in_place=False) for p in PLANS], GOVERNED)}
BUILT = {chain.name: chain for chain in chains.build(PLANS, GOVERNED, LEVELS)}
RETURNING = (
    *("elder_", "inherited", "met_", "new_", "own_", "stale_", "told"),
    *("met", "unproven", "not_own", "deny_loopback_"),
)
"""Chains that are jumped to, and may come back."""


def targets(chain: Chain) -> list[str]:
    return [action.chain for rule in chain.rules for action in rule.do if isinstance(action, Goto | Jump)]


def reached(start: str) -> set[str]:
    """Every chain that a packet in `start` may come to, bindings not counted."""
    found, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += targets(BUILT[name])
    return found


def rules(*names: str) -> Iterator[Rule]:
    return (rule for name in names for rule in BUILT[name].rules)


def actions(*names: str) -> list[object]:
    return [action for rule in rules(*names) for action in rule.do]


def test_names_are_unique() -> None:
    assert len(BUILT) == len(chains.build(PLANS, GOVERNED, LEVELS))


def test_a_chain_stands_before_those_that_call_it() -> None:
    seen: set[str] = set()
    for chain in BUILT.values():
        assert set(targets(chain)) <= seen, chain.name
        seen.add(chain.name)


def test_what_is_named_exists() -> None:
    sets = {chains.set_name(d, family, plan.name) for d in Direction for family in (4, 6) for plan in PLANS}
    counters = set(chains.counters(PLANS))
    for rule in rules(*BUILT):
        assert all(c.set in sets for c in rule.when if isinstance(c, InSet))
        assert all(a.counter in counters for a in rule.do if isinstance(a, Count))
        assert all(a.map in cgroup_maps.maps(LEVELS) for a in rule.do if isinstance(a, Dispatch))
        assert all(a.label < LABELS for a in rule.do if isinstance(a, SetLabel))


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_bindings_lead_to_chains(plan: Plan) -> None:
    for name, verb, chain in (*cgroup_maps.PROOF_BINDINGS, *cgroup_maps.bindings(plan.name)):
        assert name in cgroup_maps.MAPS
        assert verb in ("goto", "jump")
        assert chain in BUILT


def test_who_is_not_bound_in_place_pays_nothing_for_levels_that_are_not_in_use() -> None:
    assert cgroup_maps.maps() == cgroup_maps.MAPS
    assert {name for name in BUILT if name not in ALONE} == {
        f"elder_{plan.name}" for plan in PLANS if plan.mode is not Mode.LOCK
    }
    for name, chain in ALONE.items():
        places = [rule for rule in BUILT[name].rules if rule not in chain.rules]
        more = {"output": len(LEVELS), "input": len(LEVELS), "met": len(LEVELS)}
        assert len(places) == more.get(name, name.startswith("unlisted")), name
        assert [rule for rule in BUILT[name].rules if rule not in places] == list(chain.rules)


def test_there_is_one_base_chain_a_hook() -> None:
    assert {chain.name: chain.hook for chain in BUILT.values() if chain.hook} == {
        "output": Hook.OUTPUT,
        "input": Hook.INPUT,
    }


def test_what_nobody_decides_is_refused_not_accepted() -> None:
    for chain in BUILT.values():
        if chain.hook is None and not chain.name.startswith(RETURNING):
            last = chain.rules[-1]
            assert last.when == (), chain.name
            assert isinstance(last.do[-1], Goto | Final), chain.name
            assert last.do[-1] is not Final.RETURN, chain.name


def test_every_rule_does_something_and_decides_last() -> None:
    for rule in rules(*BUILT):
        assert rule.do
        assert all(isinstance(condition, Condition) for condition in rule.when)
        assert not any(isinstance(action, Goto | Final) for action in rule.do[:-1])


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_a_mode_does_what_it_says(plan: Plan, direction: Direction) -> None:
    way = reached(f"{direction}_{plan.name}")
    refusing = {"refuse_out", "refuse_in"} & way or {Final.DROP} & set(actions(*way))
    assert bool(refusing) is (plan.mode is not Mode.OBSERVE)
    accepts = [rule for rule in rules(*(way - {"told"})) if Final.ACCEPT in rule.do]
    assert bool(accepts) is (plan.mode is not Mode.LOCK)
    assert any(isinstance(c, InSet) for rule in accepts for c in rule.when) is (plan.mode is not Mode.LOCK)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_a_denied_packet_is_counted_before_its_log_may_be_limited(plan: Plan) -> None:
    for direction, name in (
        (Direction.OUT, f"deny_out_{plan.name}"),
        (Direction.IN, f"deny_reply_{plan.name}"),
        (Direction.IN, f"deny_in_{plan.name}"),
        (Direction.OUT, f"deny_loopback_{plan.name}"),
    ):
        found = actions(name)
        count = found.index(Count(chains.counter_name(direction, plan.name)))
        (log,) = (place for place, action in enumerate(found) if isinstance(action, Log))
        assert count < log < len(found) - 1
        assert all(len(rule.do) == 1 for rule in rules(name) if isinstance(rule.do[0], Log | Count))


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_only_echo_requests_are_looked_up_among_icmp(plan: Plan) -> None:
    name = f"echo_{plan.name}"
    assert (name in BUILT) is (plan.echo and plan.mode is not Mode.LOCK)
    if name in BUILT:
        *looked_up, denied = BUILT[name].rules
        for rule, family in zip(looked_up, (4, 6), strict=True):
            echo, asked = rule.when
            assert echo == Echo(family)
            assert isinstance(asked, InSet)
            assert asked.family == family
        assert denied == Rule((), (Goto(f"deny_out_{plan.name}"),))


def test_a_foreign_source_is_told_nothing() -> None:
    first = BUILT["refuse_out"].rules[0]
    assert first == Rule((ForeignSource(),), (Final.DROP,))


def test_nothing_is_accepted_for_being_established() -> None:
    for rule in rules(*BUILT):
        if Final.ACCEPT in rule.do:
            assert Tracked.ESTABLISHED not in rule.when


def test_each_workload_has_its_own_label() -> None:
    set_bits = {
        plan.name: {
            a.label for a in actions(f"new_{plan.name}", f"loopback_{plan.name}") if isinstance(a, SetLabel)
        }
        - {base_chains.UNPROVEN, base_chains.WORKLOAD}
        for plan in PLANS
        if plan.mode is not Mode.LOCK
    }
    assert set_bits == {plan.name: {plan.label} for plan in PLANS if plan.mode is not Mode.LOCK}


def test_without_workloads_the_slice_is_closed_all_the_same() -> None:
    alone = {chain.name: chain for chain in chains.build([], GOVERNED)}
    for name, refuse in (("governed_out", "refuse_out"), ("governed_in", "refuse_in")):
        assert alone[name].rules[-1] == Rule((), (Goto(refuse),))
