"""What must hold of the chains for learned addresses, whatever the rules; packets are for the attacks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from penstock.core import chains, name_chains
from penstock.core.actions import Final, Remember
from penstock.core.chains import Plan
from penstock.core.conditions import (
    AddressIn,
    Away,
    Before,
    End,
    FlowIn,
    InCgroup,
    PortIn,
    Protocol,
    TcpAnswer,
    TcpData,
)
from penstock.core.label_bits import FIRST_LABEL
from penstock.core.name_chains import NamePlan
from penstock.core.name_rules import Group
from penstock.core.policy import Mode, PortRange, Ports
from penstock.core.ruleset import Holds, Rule

END = datetime(2026, 4, 1, tzinfo=UTC)
TCP, UDP = PortRange("tcp", 443, 443), PortRange("udp", 8000, 8100)
OPEN, PRIVATE = Group(Ports((TCP, UDP))), Group(Ports((TCP,), icmp=True), private=True)
ENDING, PING = Group(Ports((UDP,)), expires=END), Group(Ports((), icmp=True))
GROUPS = (OPEN, PRIVATE, ENDING, PING)
A, MUTE = NamePlan("a", FIRST_LABEL, 40053, GROUPS), NamePlan("mute", FIRST_LABEL + 1, 0, (OPEN,))
PLANS = [Plan(n.workload, Mode.ENFORCE, n.label, echo=False, names=n) for n in (A, MUTE)]
BUILT = {chain.name: chain for chain in chains.build(PLANS, InCgroup("penstock.slice", 4))}


def rules(*names: str) -> list[Rule]:
    return [rule for name in names for rule in BUILT[name].rules]


def all_of(plan: NamePlan) -> Iterator[Rule]:
    for here in (True, False):
        yield from name_chains.learned(plan, here=here)
        yield from name_chains.flows(plan, here=here)
    yield from name_chains.answered(plan)
    yield from name_chains.echoes(plan)


def test_each_rule_ends_with_its_group() -> None:
    for rule in all_of(A):
        sets = [part.set for part in rule.when if isinstance(part, AddressIn | FlowIn)]
        assert len(sets) == 1
        assert (Before(END) in rule.when) is (ENDING.id in sets[0])


def test_on_loopback_only_private_groups_count() -> None:
    for found in (name_chains.learned(A, here=True), name_chains.flows(A, here=True)):
        sets = {part.set for rule in found for part in rule.when if isinstance(part, AddressIn | FlowIn)}
        assert sets
        assert all(PRIVATE.id in name for name in sets)
    for rule in name_chains.echoes(A):
        private = any(isinstance(part, AddressIn) and PRIVATE.id in part.set for part in rule.when)
        assert (Away() in rule.when) is not private


def test_a_flow_goes_on_and_does_not_begin() -> None:
    for rule in name_chains.flows(A, here=False):
        (flow,) = (part for part in rule.when if isinstance(part, FlowIn))
        (remember, last) = rule.do
        assert isinstance(remember, Remember)
        assert (remember.set, last) == (flow.set, Final.ACCEPT)
        assert not flow.answer
        tcp = [part for part in rule.when if not isinstance(part, FlowIn | Before | Protocol)]
        assert tcp or Protocol("udp") in rule.when
        if remember.seconds == name_chains.LONG:
            assert TcpAnswer() in rule.when, "a SYN is none of it"


def test_none_goes_on_to_an_address_that_was_revoked() -> None:
    declared = {(s.name, s.family) for s in name_chains.name_sets([A]) if s.holds is Holds.REVOKED}
    rules = [*name_chains.flows(A, here=False), *name_chains.answered(A)]
    flows = [part for rule in rules for part in rule.when if isinstance(part, FlowIn)]
    assert {(flow.revoked, flow.family) for flow in flows} <= declared
    assert all(flow.revoked == name_chains.revoked_of(flow.set) for flow in flows)
    learned = [s.name for s in name_chains.name_sets([A]) if s.holds is Holds.LEARNED]
    assert {name_chains.revoked_of(name) for name in learned} == {name for name, _ in declared}


def test_a_connection_is_remembered_with_its_data_and_not_anew() -> None:
    for family in (4, 6):
        found = rules(f"pass{family}_a_{OPEN.id}")
        held = name_chains.flow_set("a", OPEN.id, family)
        assert Rule((TcpData(),), (Remember(held, family, name_chains.LONG, anew=False), Final.ACCEPT)) in found
        assert found[-1] == Rule((), (Final.ACCEPT,)), "and is let through when there is no room"
        parts = [part for rule in found for part in (*rule.when, *rule.do)]
        assert {part.family for part in parts if isinstance(part, FlowIn | Remember)} == {family}


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.id)
def test_only_the_ports_of_the_rule_lead_on(group: Group) -> None:
    for family in (4, 6):
        found = [rule.when[0] for rule in rules(f"named{family}_a_{group.id}")]
        opened = {PortRange(p.protocol, p.first, p.last) for p in found if isinstance(p, PortIn)}
        assert opened == set(group.ports.ranges)


def test_a_range_leads_past_control_ports() -> None:
    group = Group(Ports((PortRange("tcp", 2375, 2378),)))
    found = {chain.name: chain for chain in name_chains.own_chains(NamePlan("a", FIRST_LABEL, 0, (group,)))}
    asked = [rule.when for rule in found[f"named4_a_{group.id}"].rules]
    assert asked == [(PortIn("tcp", End.DESTINATION, 2377, 2378),)]


def test_answers_are_of_flows() -> None:
    found = name_chains.answered(A)
    assert found
    for rule in found:
        (flow,) = (part for part in rule.when if isinstance(part, FlowIn))
        assert flow.answer
        assert Protocol("udp") in rule.when


def test_echo_is_for_who_has_it() -> None:
    assert (A.echo, MUTE.echo) == (True, False)
    assert "echo_a" in BUILT
    assert "echo_mute" not in BUILT
