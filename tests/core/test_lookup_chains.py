"""What must hold of the chains for look-ups, whatever the rules; packets are for the attacks."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from penstock.core import cgroup_maps, chains, lookup_chains, name_chains
from penstock.core.actions import (
    ByPort,
    Count,
    Dispatch,
    Divert,
    Final,
    Forget,
    Goto,
    Jump,
    NotePort,
    Remember,
    Restore,
    SetLabel,
    SetMark,
)
from penstock.core.base_chains import STALE, UNPROVEN, WORKLOAD
from penstock.core.chains import Plan
from penstock.core.conditions import (
    AddressIn,
    AnyPortIn,
    AskedLately,
    Away,
    Before,
    Detour,
    End,
    Family,
    FlowIn,
    ForeignSource,
    FullSocket,
    HasLabel,
    Hook,
    InCgroup,
    InSet,
    LinkLocalDestination,
    LocalDestination,
    Loopback,
    Marked,
    OfProcess,
    PortIn,
    PortKnown,
    Protocol,
    Reply,
    Tracked,
    Unreached,
)
from penstock.core.label_bits import FIRST_LABEL
from penstock.core.lookup_chains import ANSWERING, ASKERS, LISTENING, LOOKUP
from penstock.core.name_chains import NamePlan
from penstock.core.name_rules import Group
from penstock.core.policy import Mode, PortRange, Ports
from penstock.core.ruleset import Chain, Holds, Rule

DEPTH, LEVELS = 4, (5, 6)
GOVERNED = InCgroup("penstock.slice", DEPTH)
OPEN = Group(Ports((PortRange("tcp", 443, 443), PortRange("udp", 8000, 8100))))
A, MUTE = NamePlan("a", FIRST_LABEL, 40054, (OPEN,)), NamePlan("mute", FIRST_LABEL + 1, 0, (OPEN,))
B = NamePlan("b", FIRST_LABEL + 2, 40053, (), observed=True)
NAMES, LISTENING_FOR = (A, MUTE, B), (A, B)
PLANS = [Plan(n.workload, Mode.ENFORCE, n.label, echo=False, names=n) for n in NAMES]
PLANS.append(Plan("plain", Mode.ENFORCE, FIRST_LABEL + 3, echo=False))
BUILT = {chain.name: chain for chain in chains.build(PLANS, GOVERNED, LEVELS)}
WITHOUT = chains.build([Plan("plain", Mode.ENFORCE, FIRST_LABEL, echo=False)], GOVERNED, LEVELS)
SETS = {s.name: s for s in (*lookup_chains.sets(NAMES), *name_chains.name_sets(NAMES))}
MARK = Rule((), (SetMark(LOOKUP),))
RETURNING = (
    "back_", "dns_", "divert_", "errors", "inherited", "late", "lookup_", "met", "named", "new_", "not_own",
    "own_", "resolver_own", "restore", "stale_", "told", "unproven",
)  # fmt: skip
"""Chains that are jumped to, and may come back."""


def rules(*names: str) -> list[Rule]:
    return [rule for name in names for rule in BUILT[name].rules]


def targets(chain: Chain) -> list[str]:
    found: list[str] = []
    for action in (action for rule in chain.rules for action in rule.do):
        match action:
            case Goto(name) | Jump(name):
                found.append(name)
            case ByPort(_, ports):
                found += [name for _, name in ports]
    return found


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
    maps = cgroup_maps.maps(LEVELS, names=True)
    counters = chains.counters(PLANS)
    for rule in rules(*BUILT):
        for part in (*rule.when, *rule.do):
            match part:
                case AddressIn(name, family):
                    assert (SETS[name].family, SETS[name].holds) == (family, Holds.LEARNED)
                case FlowIn(name, family) | Remember(name, family):
                    assert (SETS[name].family, SETS[name].holds) == (family, Holds.FLOWS)
                case AskedLately(name, family):
                    assert (SETS[name].family, SETS[name].holds) == (family, Holds.LATELY)
                case Divert(name, family) | Restore(name, family):
                    assert (SETS[name].family, SETS[name].holds) == (family, Holds.ASKED)
                case Forget(name, lately, family):
                    assert (SETS[name].family, SETS[name].holds) == (family, Holds.ASKED)
                    assert (SETS[lately].family, SETS[lately].holds) == (family, Holds.LATELY)
                case NotePort(name):
                    assert SETS[name].holds is Holds.PORTS
                case PortKnown(name, end):
                    assert SETS[name].holds is (Holds.PORTS if end is End.SOURCE else Holds.SAID)
                case Dispatch(name):
                    assert name in maps
                case Count(name):
                    assert name in counters


def test_bindings_lead_to_chains() -> None:
    bound = [*cgroup_maps.RESOLVER_BINDINGS, *cgroup_maps.name_bindings(None, 5)]
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


def test_what_may_come_back_is_not_gone_to_by_the_resolver() -> None:
    """It would be accepted, as all is that nobody decides."""
    assert not any(isinstance(a, Goto) and a.chain == "restore" for r in rules("resolver_out") for a in r.do)
    assert rules("resolver_out")[-1] == Rule((), (Goto("resolver_denied"),))


def test_a_host_without_names_pays_nothing_for_them() -> None:
    hooks = {chain.hook for chain in WITHOUT if chain.hook}
    assert hooks == {Hook.OUTPUT, Hook.INPUT}
    names = {chain.name for chain in WITHOUT}
    ours = ("resolver", "lookup", "strays", "late", "errors", "of_listener", "restore", "dns", "divert", "back")
    assert not any(name.startswith(ours) for name in names)
    assert cgroup_maps.maps(LEVELS) == (*cgroup_maps.MAPS, *(m for n in LEVELS for m in cgroup_maps.place_maps(n)))


def test_who_has_no_names_gets_no_rule_for_them() -> None:
    alone = {chain.name: chain for chain in WITHOUT}
    for name in ("out_plain", "in_plain", "answer_plain", "reply_plain"):
        assert BUILT[name] == alone[name]


def test_a_locked_workload_may_not_even_ask() -> None:
    locked = Plan("b", Mode.LOCK, B.label, echo=False)
    names = {chain.name for chain in chains.build([locked], GOVERNED)}
    assert not any(name.startswith(("dns_", "divert_", "lookup_")) for name in names)


# --- look-ups ---


@pytest.mark.parametrize("plan", LISTENING_FOR, ids=lambda plan: plan.workload)
def test_a_look_up_is_diverted_to_the_listener_of_who_asks_while_that_is_there(plan: NamePlan) -> None:
    name = plan.workload
    assert rules(f"dns_{name}") == [
        Rule((LinkLocalDestination(),), (Final.RETURN,)),
        Rule((PortKnown(ANSWERING if plan.observed else LISTENING, End.DESTINATION),), (Goto(f"asked_{name}"),)),
        *([] if plan.observed else [MARK]),
    ]
    noted, *diverted = rules(f"divert_{name}")
    if not plan.observed:
        assert diverted.pop() == MARK, "and is refused when there is no room for it"
    assert noted == Rule((Protocol("tcp"),), (NotePort(ASKERS, lookup_chains.LATE),))
    assert diverted == [
        Rule(
            (Family(f), Protocol(p)),
            (Divert(f"asked{f}_{name}", f, p, plan.port, 30), SetMark(LOOKUP), Final.ACCEPT),
        )
        for f in (4, 6)
        for p in ("udp", "tcp")
    ]


def test_who_is_observed_for_a_time_asks_past_us_for_that_time() -> None:
    """The kernel goes over by itself: nobody may be there to tell it."""
    end = datetime(2026, 4, 1, tzinfo=UTC)
    made = {chain.name: chain.rules for chain in lookup_chains.own_chains(replace(B, until=end))}
    for name in ("dns_b", "divert_b"):
        assert made[name] == (*BUILT[name].rules, Rule((Before(end),), (Final.RETURN,)), MARK)


@pytest.mark.parametrize("plan", LISTENING_FOR, ids=lambda plan: plan.workload)
def test_an_answer_comes_from_who_was_asked_and_is_marked_as_its_workloads(plan: NamePlan) -> None:
    name = plan.workload
    assert rules(f"back_{name}") == [
        Rule(
            (Family(f), Protocol(p)),
            (Restore(f"asked{f}_{name}", f, p, 53), SetMark(plan.label), Final.ACCEPT),
        )
        for f in (4, 6)
        for p in ("udp", "tcp")
    ]
    assert plan.label != LOOKUP
    arriving = Rule((Loopback(Hook.INPUT), Protocol("udp"), Marked(plan.label)), (Final.ACCEPT,))
    assert arriving in rules(f"answer_{name}")


@pytest.mark.parametrize("plan", LISTENING_FOR, ids=lambda plan: plan.workload)
def test_whom_a_port_asked_is_forgotten_before_it_asks_somebody_else(plan: NamePlan) -> None:
    name = plan.workload
    *found, last = rules(f"asked_{name}")
    assert last == Rule((), (Goto(f"divert_{name}"),))
    for f, (lately, forget) in zip((4, 6), (found[:2], found[2:]), strict=True):
        assert lately == Rule((Family(f), AskedLately(f"lately{f}_{name}", f)), last.do)
        assert forget.do == (Forget(f"asked{f}_{name}", f"lately{f}_{name}", f, lookup_chains.MOMENT),)


def test_the_slice_is_asked_first_then_the_deepest() -> None:
    levels: dict[str, list[tuple[str, int]]] = {}
    *found, late = rules("lookups")
    for rule in found:
        (dispatch,) = rule.do
        assert isinstance(dispatch, Dispatch)
        levels.setdefault(str(rule.when), []).append((dispatch.map, dispatch.level))
    assert len(levels) == 2
    places = [(cgroup_maps.place_name_map(level), level) for level in (6, 5)]
    assert all(found == [(cgroup_maps.ASKS, DEPTH + 1), *places] for found in levels.values())
    assert late.when == (PortIn("tcp", End.DESTINATION, 53, 53), PortKnown(ASKERS, End.SOURCE))


def test_base_chains_are_one_a_hook() -> None:
    assert sorted((chain.hook, chain.name) for chain in BUILT.values() if chain.hook) == sorted(
        [
            (Hook.OUTPUT, "output"),
            (Hook.INPUT, "input"),
            (Hook.DIVERTING, "lookups"),
            (Hook.LEAVING, "leaving"),
        ]
    )


@pytest.mark.parametrize("plan", LISTENING_FOR, ids=lambda plan: plan.workload)
def test_a_look_up_goes_only_to_our_listener_and_carries_its_labels(plan: NamePlan) -> None:
    name = plan.workload
    assert lookup_chains.asks(plan) == [Rule((Marked(LOOKUP),), (Jump(f"lookup_{name}"),))]
    here = AnyPortIn(End.DESTINATION, plan.port, plan.port), LocalDestination()
    assert rules(f"lookup_{name}") == [
        Rule(here, (SetLabel(WORKLOAD), SetLabel(plan.label), SetLabel(UNPROVEN))),
        Rule((*here, HasLabel(UNPROVEN)), (Final.ACCEPT,)),
        Rule((), (Goto(f"deny_out_{name}"),)),
    ]


def test_look_ups_are_asked_for_before_anything_is_allowed_and_behind_what_is_denied() -> None:
    (ask,) = lookup_chains.asks(A)
    for name in ("new_a", "stale_a"):
        assert rules(name)[0] == ask
    here = Rule((Tracked.NEW,), (Jump("new_a"),))
    chains_of_a = (
        ("out_a", ask, (4, 6)),
        *(("loopback_a", to_ask, (4,)) for to_ask in (here, ask)),
        *(("loopback6_a", to_ask, (6,)) for to_ask in (here, ask)),
    )
    for name, to_ask, families in chains_of_a:
        found = rules(name)
        place = found.index(to_ask)
        assert all(Final.ACCEPT not in rule.do for rule in found[:place])
        before = {condition for rule in found[:place] for condition in rule.when}
        assert {ForeignSource(), Reply(), *map(Detour, families)} <= before


def test_who_is_marked_without_having_asked_gets_nowhere() -> None:
    for name in ("a", "plain"):
        found = rules(f"unlisted_{name}")
        denied = found.index(Rule((Marked(LOOKUP),), (Goto(f"deny_out_{name}"),)))
        assert denied == 0


def test_whose_listener_is_not_there_asks_nobody() -> None:
    """Nor the server, if a rule opens that; unless nothing is denied."""
    assert lookup_chains.answered(MUTE) == []
    assert BUILT["dns_mute"].rules == (MARK,)
    assert lookup_chains.asks(MUTE) == [Rule((Marked(LOOKUP),), (Jump("lookup_mute"),))]
    assert BUILT["lookup_mute"].rules == (Rule((), (Goto("deny_out_mute"),)),)
    observed = {chain.name: chain.rules for chain in lookup_chains.own_chains(replace(MUTE, observed=True))}
    assert observed["dns_mute"] == ()
    alone = {chain.name for chain in lookup_chains.base([MUTE], DEPTH, ())}
    assert alone == {"lookups"}
    assert lookup_chains.sent([MUTE]) == lookup_chains.unclaimed([MUTE]) == []
    assert lookup_chains.sets([MUTE]) == ()


def test_what_leaves_though_it_was_diverted_is_counted_and_dropped() -> None:
    assert rules("leaving") == [Rule((Away(), Marked(LOOKUP)), (Jump("strays"),))]
    ours, theirs, rest = rules("strays")
    listeners = tuple((plan.port, f"stray_{plan.workload}") for plan in LISTENING_FOR)
    assert ours == Rule((LocalDestination(),), (ByPort(End.DESTINATION, listeners),)), "others may use that port"
    assert theirs == Rule((Tracked.ESTABLISHED,), (Final.RETURN,))
    assert rest == Rule((), (Final.DROP,))
    for plan in LISTENING_FOR:
        count, *_, last = rules(f"stray_{plan.workload}")
        assert count.do == (Count(f"denied_out_{plan.workload}"),)
        assert last.do == (Final.DROP,)


def test_what_is_said_for_who_is_gone_is_marked_unless_a_process_says_it() -> None:
    assert rules("late") == [
        Rule((FullSocket(), OfProcess()), (Final.RETURN,)),
        Rule((), (SetMark(LOOKUP),)),
    ]


def test_errors_about_look_ups_do_not_leave() -> None:
    related, *errors = rules("errors")
    assert related == Rule((Tracked.RELATED,), (Final.RETURN,)), "those of others"
    assert errors == [Rule((Unreached(f, 53),), (Final.DROP,)) for f in (4, 6)]
    assert rules("output")[-1] == Rule((Away(), Protocol("icmp")), (Jump("errors"),))


# --- the resolver ---


def test_the_resolver_takes_look_ups_and_answers_of_its_servers() -> None:
    assert rules("resolver_own") == [Rule((Marked(LOOKUP),), (Final.ACCEPT,))]
    for rule in accepting(rules("resolver_in")):
        reply, server = rule.when
        assert reply == Reply()
        assert isinstance(server, InSet)
        assert server.set in lookup_chains.UPSTREAM.values()


def test_the_resolver_answers_here_and_asks_its_servers() -> None:
    found = rules("resolver_out")
    servers = accepting(found)
    assert {rule.when[0].set for rule in servers} == {"upstream4", "upstream6"}  # type: ignore[union-attr]
    answer = Rule((Loopback(Hook.OUTPUT), Reply(), HasLabel(UNPROVEN)), (Jump("restore"),))
    assert found.index(answer) < found.index(servers[0])
    for condition in (ForeignSource(), Detour(4), Detour(6)):
        assert found.index(Rule((condition,), (Goto("resolver_denied"),))) < found.index(answer)
    between = found[found.index(answer) + 1 : found.index(servers[0])]
    assert [rule.do for rule in between] == [(SetLabel(STALE),)] * 2
    assert all(HasLabel(WORKLOAD) in rule.when for rule in between)


def test_what_comes_from_a_listener_is_restored_for_its_workload() -> None:
    backs = tuple((plan.port, f"back_{plan.workload}") for plan in LISTENING_FOR)
    assert rules("restore") == [Rule((), (ByPort(End.SOURCE, backs),))]


def test_what_the_kernel_says_for_a_listener_is_restored_and_nobody_elses() -> None:
    jump = rules("output")[-2]
    assert jump.do == (Jump("of_listener"),)
    assert jump.when == (Loopback(Hook.OUTPUT), AnyPortIn(End.SOURCE, 40053, 40054), Reply(), HasLabel(UNPROVEN))
    assert rules("of_listener") == [
        Rule((FullSocket(), OfProcess()), (Final.RETURN,)),
        Rule((), (Goto("restore"),)),
    ]
