"""Who may call whom on this host, as rules of both stand in the chains of the one who is called."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from governed import policy_of, rules
from penstock.core import peer_chains
from penstock.core.actions import Count, Final, Goto, Jump, Note
from penstock.core.base_chains import STALE, UNPROVEN, WORKLOAD
from penstock.core.chains import Plan, build
from penstock.core.compile import Live, compile_policy
from penstock.core.conditions import (
    AddressIn,
    AnySocket,
    Before,
    End,
    Family,
    FullSocket,
    HasLabel,
    Hook,
    InCgroup,
    InSet,
    Loopback,
    PortIn,
    TcpSyn,
)
from penstock.core.peer_chains import NOBODY, Call, Calls, calls
from penstock.core.policy import Mode, Policy, PortRange
from penstock.core.ruleset import Chain, Rule

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LABELS = {"model": 3, "gw": 4, "ui": 5}
WEB = PortRange("tcp", 8000, 8001)
CALL = Call(4, (WEB, PortRange("udp", 53, 53)), "hits_gw_x")


def policy(model: str = "[]", gw: str = "[]", ui: str = "[]") -> Policy:
    return policy_of(rules("model", ingress=model), rules("gw", egress=gw), rules("ui", egress=ui))


def chains(found: Calls) -> dict[str, Chain]:
    return {chain.name: chain for chain in peer_chains.build("model", found)}


def test_rules_of_both_sides_are_found_under_who_is_called() -> None:
    found = calls(
        policy(
            "[{from: ['workload:gw', 10.0.0.0/8], ports: [8000-8001], name: a}]",
            "[{to: 'workload:model', ports: [8000-8001, 53/udp], name: x}]",
            "[{to: ['workload:model', 'workload:gw'], ports: [8000-8001], name: b}]",
        ),
        LABELS,
        NOW,
    )
    ui = Call(5, (WEB,), "hits_ui_b")
    assert found["model"] == Calls(sent=(CALL, ui), taken=(Call(4, (WEB,), "hits_model_a"),))
    assert found["gw"] == Calls(sent=(ui,))
    assert found["ui"] == NOBODY
    assert found["model"].counters == ("hits_gw_x", "hits_ui_b", "hits_model_a")


def test_a_caller_names_a_control_port_by_itself() -> None:
    ingress = "[{from: 'workload:gw', ports: [2374-2376]}]"
    found = calls(policy(ingress, "[{to: 'workload:model', ports: [2374-2376, 2376]}]"), LABELS, NOW)["model"]
    assert [call.ports for call in found.sent] == [(PortRange("tcp", 2374, 2374), PortRange("tcp", 2376, 2376))]
    assert [call.ports for call in found.taken] == [(PortRange("tcp", 2374, 2376),)]


@pytest.mark.parametrize(
    ("more", "there"),
    [
        ("", True),
        (", expires: '2026-03-02T00:00:00Z', reason: x", True),
        (", expires: '2026-03-01T00:00:00Z', reason: x", False),
        (", except: [127.0.0.0/8]", False),  # who is called does not see from where
    ],
)
def test_what_is_over_or_has_an_exception_lets_nobody_in(more: str, there: bool) -> None:
    found = calls(
        policy(
            f"[{{from: 'workload:gw', ports: [8000]{more}}}]", f"[{{to: 'workload:model', ports: [8000]{more}}}]"
        ),
        LABELS,
        NOW,
    )["model"]
    assert (bool(found.sent), bool(found.taken)) == (there, there)


def test_an_end_is_asked_for_in_the_kernel() -> None:
    end = NOW + timedelta(hours=1)
    one = chains(Calls(taken=(replace(CALL, expires=end),)))
    assert all(one[name].rules[1].when[0] == Before(end) for name in ("callers_model", "called_model"))


def test_who_is_called_asks_for_label_and_port_and_believes_nothing_stale() -> None:
    found = chains(Calls((CALL,), (CALL,)))
    stale = Rule((HasLabel(STALE),), (Final.RETURN,))
    for name, end in (("callers_model", End.DESTINATION), ("called_model", End.SOURCE)):
        first, *rest = found[name].rules
        assert first == stale
        assert [rule.when for rule in rest] == [
            (PortIn("tcp", end, 8000, 8001), HasLabel(4)),
            (PortIn("udp", end, 53, 53), HasLabel(4)),
        ]
        assert {rule.do for rule in rest} == {(Count("hits_gw_x"), Final.ACCEPT)}


def test_who_is_no_workload_has_no_label() -> None:
    model = "[{from: [host, 'workload:gw'], ports: [8000-8001], name: both}]"
    found = calls(policy(model), LABELS, NOW)["model"]
    assert found.taken == (Call(None, (WEB,), "hits_model_both"), Call(4, (WEB,), "hits_model_both"))
    assert found.counters == ("hits_model_both",)
    for name in ("callers_model", "called_model"):
        stale, gw, workload, host = chains(found)[name].rules
        assert stale.do == workload.do == (Final.RETURN,)
        assert (HasLabel(4) in gw.when, workload.when) == (True, (HasLabel(WORKLOAD),))
        assert not any(isinstance(when, HasLabel) for when in host.when)
        assert host.do == gw.do == (Count("hits_model_both"), Final.ACCEPT)


@pytest.mark.parametrize(
    ("taken", "locked", "to"), [((), False, "in"), ((CALL,), False, "let"), ((CALL,), True, "in")]
)
def test_a_rule_of_the_caller_only_leads_to_what_the_called_one_lets_in(
    taken: tuple[Call, ...], locked: bool, to: str
) -> None:
    found = {chain.name: chain for chain in peer_chains.build("model", Calls((CALL,), taken), locked=locked)}
    first, *rest = found["met_model"].rules
    assert first == Rule((), (Jump("own_model"),))
    assert {rule.do for rule in rest} == {(Count("hits_gw_x"), Goto(f"{to}_model"))}
    assert not any(Final.ACCEPT in rule.do for rule in rest)
    if to == "let":
        assert [rule.do for rule in found["let_model"].rules] == [(Jump("callers_model"),), (Goto("in_model"),)]
    else:
        assert "let_model" not in found


def test_who_has_a_rule_about_another_asks_whether_it_is_his_own_before_his_sets() -> None:
    """Else each of its packets would be looked for in vain."""
    text = "[{to: ['workload:model', 127.0.0.1], ports: [80]}]"
    for egress, expected in ((text, True), (text.replace("'workload:model', ", ""), False)):
        made = compile_policy(policy(gw=egress), Live(NOW, LABELS, 1))
        rules_of = {chain.name: chain.rules for chain in made.chains}
        for chain in ("loopback_gw", "loopback6_gw"):
            asked = [w for r in rules_of[chain] for w in r.when if w == HasLabel(UNPROVEN) or isinstance(w, InSet)]
            assert [type(when) for when in asked] == [*([HasLabel] if expected else []), InSet]


@pytest.mark.parametrize("mode", [Mode.ENFORCE, Mode.OBSERVE])
def test_only_on_loopback_and_only_where_somebody_is_let_in(mode: Mode) -> None:
    for taken in ((), (CALL,)):
        plan = Plan("model", mode, 3, echo=False, calls=Calls((), taken))
        built = {chain.name: chain for chain in build([plan], InCgroup("penstock.slice", 1))}
        jumps = [
            (name, rule)
            for name, chain in built.items()
            for rule in chain.rules
            if rule.do in ((Jump("callers_model"),), (Jump("called_model"),))
        ]
        replies = ["reply_model"] if mode is Mode.ENFORCE else []
        assert sorted(name for name, _ in jumps) == (["in_model", *replies] if taken else [])
        assert all(isinstance(rule.when[0], Loopback) for _, rule in jumps)


def test_whatever_is_counted_is_declared() -> None:
    """Also while who calls, or is called, is locked: what was counted outlives that."""
    for mode in Mode:
        both = policy_of(
            rules("model", ingress="[{from: ['workload:gw', host], ports: [80]}]", mode=mode),
            rules("gw", egress="[{to: 'workload:model', ports: [80]}]"),
        )
        made = compile_policy(both, Live(NOW, LABELS, 1))
        counted = {do.counter for c in made.chains for rule in c.rules for do in rule.do if isinstance(do, Count)}
        assert counted <= set(made.counters)
        hits = sorted(name[:10] for name in made.counters if name.startswith("hits_"))
        assert hits == ["hits_gw_eg", "hits_model"]


@pytest.mark.parametrize(
    ("ingress", "mode", "notes"),
    [
        ("[{from: 'workload:gw', ports: [80]}]", Mode.ENFORCE, True),
        ("[{from: host, ports: [80]}]", Mode.ENFORCE, True),
        ("[{from: 127.0.0.1, ports: [80]}]", Mode.ENFORCE, False),
        ("[{from: 'workload:gw', ports: [80]}]", Mode.OBSERVE, False),
        ("[{from: 'workload:gw', ports: [80]}]", Mode.LOCK, False),
    ],
)
def test_who_serves_others_here_notes_where_it_ends_connections(ingress: str, mode: Mode, notes: bool) -> None:
    """And nobody else pays for it."""
    both = policy_of(
        rules("model", ingress=ingress, mode=mode), rules("gw", egress="[{to: 'workload:model', ports: [80]}]")
    )
    made = compile_policy(both, Live(NOW, LABELS, 1))
    noted = {do.set for chain in made.chains for rule in chain.rules for do in rule.do if isinstance(do, Note)}
    assert {name_set.name for name_set in made.name_sets} == noted
    assert noted == ({"served4", "served6", "served4_model", "served6_model"} if notes else set())
    rules_of = {chain.name: chain.rules for chain in made.chains}
    assert [rule.when for rule in rules_of["input"] if rule.do == (Jump("syn"),)] == (
        [(Loopback(Hook.INPUT), TcpSyn())] if notes else []
    )
    asked = [rule.do[-1] for rule in rules_of["met"]]
    assert asked[-1] == Goto("not_own")
    assert (Jump("unproven_syn") == asked[-2]) == notes


def test_a_syn_that_no_full_socket_takes_is_judged_by_who_served_there() -> None:
    found = {chain.name: chain.rules for chain in peer_chains.waiting(["a", "b"])}
    for family in (4, 6):
        for first in ("syn", "unproven_syn"):
            anybody = AddressIn(f"served{family}", family, End.DESTINATION, port=True)
            assert Rule((anybody,), (Jump(f"{first}{family}"),)) in found[first]
        there = [AddressIn(f"served{family}_{name}", family, End.DESTINATION, port=True) for name in ("a", "b")]
        assert found[f"unproven_syn{family}"] == tuple(
            Rule((at,), (Jump(f"met_{name}"),)) for name, at in zip("ab", there, strict=True)
        )
        assert found[f"syn{family}"] == (
            Rule((FullSocket(),), (Final.RETURN,)),  # a listener of somebody else
            *(Rule((at, AnySocket()), (Goto(f"in_{name}"),)) for name, at in zip("ab", there, strict=True)),
        )
        notes = [rule for rule in found["ending_a"] if rule.when == (Family(family),)]
        assert [do.set for rule in notes for do in rule.do if isinstance(do, Note)] == [
            f"served{family}_a",
            f"served{family}",
        ]
    assert peer_chains.waiting([]) == []
    assert peer_chains.served([]) == ()
