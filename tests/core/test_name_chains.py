"""What must hold of the chains for names, whatever the rules; what they do to packets is tested with packets."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from penstock.core import cgroup_maps, chains, name_chains
from penstock.core.base_chains import STALE, UNPROVEN, WORKLOAD
from penstock.core.chains import Plan
from penstock.core.label_bits import FIRST_LABEL, LABELS
from penstock.core.name_chains import FIRST_ZONE, NamePlan
from penstock.core.name_rules import Group
from penstock.core.policy import Mode, PortRange, Ports
from penstock.core.rule_parts import (
    AddressIn,
    AskedAt,
    Away,
    Before,
    Count,
    Detour,
    Dispatch,
    End,
    Final,
    FlowIn,
    ForeignSource,
    Goto,
    HasLabel,
    Hook,
    InCgroup,
    InSet,
    Jump,
    LinkLocalDestination,
    LocalDestination,
    Loopback,
    PortIn,
    Protocol,
    Redirect,
    Redirected,
    Remember,
    Reply,
    SetLabel,
    SetZone,
    TcpAnswer,
    TcpData,
    Tracked,
)
from penstock.core.ruleset import Chain, Rule

DEPTH, LEVELS = 4, (5, 6)
GOVERNED = InCgroup("penstock.slice", DEPTH)
END = datetime(2026, 4, 1, tzinfo=UTC)
TCP, UDP = PortRange("tcp", 443, 443), PortRange("udp", 8000, 8100)
OPEN, PRIVATE = Group(Ports((TCP, UDP))), Group(Ports((TCP,), icmp=True), private=True)
ENDING, PING = Group(Ports((UDP,)), expires=END), Group(Ports((), icmp=True))
GROUPS = (OPEN, PRIVATE, ENDING, PING)
A, MUTE = NamePlan("a", FIRST_LABEL, 40053, GROUPS), NamePlan("mute", FIRST_LABEL + 1, 0, (OPEN,))
B = NamePlan("b", FIRST_LABEL + 2, 40054, ())
NAMES = (A, MUTE, B)
PLANS = [Plan(n.workload, Mode.ENFORCE, n.label, echo=False, names=n) for n in NAMES]
PLANS.append(Plan("plain", Mode.ENFORCE, FIRST_LABEL + 3, echo=False))
BUILT = {chain.name: chain for chain in chains.build(PLANS, GOVERNED, LEVELS)}
WITHOUT = chains.build([Plan("plain", Mode.ENFORCE, FIRST_LABEL, echo=False)], GOVERNED, LEVELS)
RETURNING = (
    "ask_", "lookup_", "dns_", "zone_", "named", "strays", "inherited", "met_", "new_", "own_", "stale_",
    "told", "unproven", "not_own", "resolver_own",
)  # fmt: skip
"""Chains that are jumped to, and may come back."""


def rules(*names: str) -> list[Rule]:
    return [rule for name in names for rule in BUILT[name].rules]


def targets(chain: Chain) -> list[str]:
    return [action.chain for rule in chain.rules for action in rule.do if isinstance(action, Goto | Jump)]


def accepting(found: list[Rule]) -> list[Rule]:
    return [rule for rule in found if Final.ACCEPT in rule.do]


# --- the whole ---


def test_a_chain_stands_once_and_before_those_that_call_it() -> None:
    assert len(BUILT) == len(chains.build(PLANS, GOVERNED, LEVELS))
    seen: set[str] = set()
    for chain in BUILT.values():
        assert set(targets(chain)) <= seen, chain.name
        seen.add(chain.name)


def test_what_is_named_exists() -> None:
    sets = {s.name: s for plan in NAMES for s in name_chains.name_sets([plan])}
    assert len(sets) == sum(4 * len(plan.groups) for plan in NAMES)
    maps = cgroup_maps.maps(LEVELS, names=True)
    counters = chains.counters(PLANS)
    for rule in rules(*BUILT):
        for part in (*rule.when, *rule.do):
            match part:
                case AddressIn(name, family):
                    assert (sets[name].family, sets[name].flows) == (family, False)
                case FlowIn(name, family) | Remember(name, family):
                    assert (sets[name].family, sets[name].flows) == (family, True)
                case Dispatch(name):
                    assert name in maps
                case Count(name):
                    assert name in counters


def test_bindings_lead_to_chains() -> None:
    bound = [*cgroup_maps.RESOLVER_BINDINGS]
    for plan in NAMES:
        bound += [*cgroup_maps.name_bindings(plan.workload), *cgroup_maps.name_bindings(plan.workload, 5)]
    for name, verb, chain in bound:
        assert name in cgroup_maps.maps(LEVELS, names=True)
        assert verb in ("goto", "jump")
        assert chain in BUILT


def test_what_nobody_decides_is_refused_or_goes_back() -> None:
    for chain in BUILT.values():
        if chain.hook is None and not chain.name.startswith((*RETURNING, "deny_loopback_")):
            last = chain.rules[-1]
            assert last.when == (), chain.name
            assert isinstance(last.do[-1], Goto | Final), chain.name
            assert last.do[-1] is not Final.RETURN, chain.name


def test_a_host_without_names_pays_nothing_for_them() -> None:
    hooks = {chain.hook for chain in WITHOUT if chain.hook}
    assert hooks == {Hook.OUTPUT, Hook.INPUT}
    names = {chain.name for chain in WITHOUT}
    assert not any(name.startswith(("resolver", "lookups", "strays", "zone", "dns", "ask")) for name in names)
    assert cgroup_maps.maps(LEVELS) == (*cgroup_maps.MAPS, *(m for n in LEVELS for m in cgroup_maps.place_maps(n)))


def test_who_has_no_names_gets_no_rule_for_them() -> None:
    alone = {chain.name: chain for chain in WITHOUT}
    for name in ("out_plain", "in_plain", "answer_plain", "reply_plain"):
        assert BUILT[name] == alone[name]


def test_a_locked_workload_may_not_even_ask() -> None:
    (plan,) = [plan for plan in PLANS if plan.name == "b"]
    locked = Plan("b", Mode.LOCK, plan.label, echo=False)
    names = {chain.name for chain in chains.build([locked], GOVERNED)}
    assert not any(name.startswith(("dns_", "zone_", "ask_")) for name in names)


# --- look-ups ---


def test_look_ups_are_sent_where_their_workload_has_its_listener() -> None:
    for plan in (A, B):
        skipped, *redirects = rules(f"dns_{plan.workload}")
        assert skipped == Rule((LinkLocalDestination(),), (Final.RETURN,))
        assert [rule.do for rule in redirects] == [(Redirect(p, plan.port),) for p in ("udp", "tcp")]


def test_each_workload_has_a_zone_of_its_own_and_is_asked_no_further() -> None:
    for plan in (A, B):
        assert rules(f"zone_{plan.workload}") == [Rule((), (SetZone(plan.zone), Final.ACCEPT))]
    assert A.zone != B.zone
    assert FIRST_ZONE + LABELS < 2**16


def test_zones_are_for_udp_alone() -> None:
    for rule in rules("lookups"):
        assert rule.when == (PortIn("udp", rule.when[0].end, 53, 53),)  # type: ignore[union-attr]
    assert {rule.when[0].protocol for rule in rules("lookups_nat")} == {"udp", "tcp"}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["lookups", "lookups_nat"])
def test_the_slice_is_asked_first_then_the_deepest(name: str) -> None:
    which = 0 if name == "lookups" else 1
    levels: dict[str, list[tuple[str, int]]] = {}
    for rule in rules(name):
        (dispatch,) = rule.do
        assert isinstance(dispatch, Dispatch)
        levels.setdefault(str(rule.when), []).append((dispatch.map, dispatch.level))
    places = [(cgroup_maps.place_name_maps(level)[which], level) for level in (6, 5)]
    assert all(found == [(cgroup_maps.NAME_MAPS[which], DEPTH + 1), *places] for found in levels.values())


def test_base_chains_are_one_a_hook() -> None:
    assert sorted((chain.hook, chain.name) for chain in BUILT.values() if chain.hook) == sorted([
        (Hook.OUTPUT, "output"),
        (Hook.INPUT, "input"),
        (Hook.BEFORE_TRACKING, "lookups"),
        (Hook.NAT, "lookups_nat"),
        (Hook.LEAVING, "leaving"),
    ])


@pytest.mark.parametrize("plan", [A, B], ids=lambda plan: plan.workload)
def test_a_look_up_goes_only_to_our_listener_and_carries_its_labels(plan: NamePlan) -> None:
    name = plan.workload
    (ask,) = name_chains.asks(plan)
    assert ask == Rule((Redirected(),), (Jump(f"ask_{name}"),))
    for rule in rules(f"ask_{name}"):
        (port,) = rule.when
        assert isinstance(port, PortIn)
        assert port.first == port.last == plan.port
        assert rule.do == (Goto(f"lookup_{name}"),)
    labels = (SetLabel(WORKLOAD), SetLabel(plan.label), SetLabel(UNPROVEN))
    assert rules(f"lookup_{name}") == [
        Rule((Tracked.NEW, LocalDestination()), labels),
        Rule((HasLabel(STALE),), (Final.RETURN,)),
        Rule((HasLabel(UNPROVEN), LocalDestination()), (Final.ACCEPT,)),
    ]


def test_look_ups_are_asked_for_before_anything_is_allowed_and_behind_what_is_denied() -> None:
    (ask,) = name_chains.asks(A)
    assert rules("new_a")[0] == ask
    here = Rule((Tracked.NEW,), (Jump("new_a"),))
    chains_of_a = (("out_a", ask, (4, 6)), ("loopback_a", here, (4,)), ("loopback6_a", here, (6,)))
    for name, to_ask, families in chains_of_a:
        found = rules(name)
        place = found.index(to_ask)
        assert all(Final.ACCEPT not in rule.do for rule in found[:place])
        before = {condition for rule in found[:place] for condition in rule.when}
        assert {ForeignSource(), Reply(), *map(Detour, families)} <= before


def test_whose_listener_is_not_there_asks_nobody() -> None:
    assert name_chains.asks(MUTE) == []
    assert "ask_mute" not in BUILT
    for name in ("zone_mute", "dns_mute"):
        assert BUILT[name].rules == ()


def test_what_leaves_though_it_was_redirected_is_counted_and_dropped() -> None:
    assert rules("leaving") == [Rule((Away(), Redirected()), (Jump("strays"),))]
    strays = [(rule.when[0].first, *rule.do) for rule in rules("strays")]  # type: ignore[union-attr]
    expected = [(plan.port, Goto(f"stray_{plan.workload}")) for plan in (A, B) for _ in ("udp", "tcp")]
    assert strays == expected
    assert all(rule.when[1] == LocalDestination() for rule in rules("strays")), "others may use that port"
    for plan in (A, B):
        count, *_, last = rules(f"stray_{plan.workload}")
        assert count.do == (Count(f"denied_out_{plan.workload}"),)
        assert last.do == (Final.DROP,)


# --- the resolver ---

LOOKUPS = [(Protocol(p), Redirected(), AskedAt(53)) for p in ("udp", "tcp")]


def test_the_resolver_takes_look_ups_and_answers_of_its_servers() -> None:
    assert rules("resolver_own") == [Rule(lookup, (Final.ACCEPT,)) for lookup in LOOKUPS]
    for rule in accepting(rules("resolver_in")):
        reply, server = rule.when
        assert reply == Reply()
        assert isinstance(server, InSet)
        assert server.set in name_chains.UPSTREAM.values()


def test_the_resolver_answers_here_and_asks_its_servers() -> None:
    found = rules("resolver_out")
    answers, servers = accepting(found)[:2], accepting(found)[2:]
    assert [rule.when for rule in answers] == [(Loopback(Hook.OUTPUT), Reply(), *lookup) for lookup in LOOKUPS]
    assert {rule.when[0].set for rule in servers} == {"upstream4", "upstream6"}  # type: ignore[union-attr]
    first = found.index(servers[0])
    for condition in (ForeignSource(), Detour(4), Detour(6)):
        assert found.index(Rule((condition,), (Goto("resolver_denied"),))) < first


# --- what was learned ---


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
