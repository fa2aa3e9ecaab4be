"""Whose a packet is: the slice first, then what is bound in place, and everybody else goes on."""

from __future__ import annotations

import pytest

from penstock.core import base_chains, cgroup_maps
from penstock.core.actions import Count, Dispatch, Final, Goto, Jump, Log, SetLabel
from penstock.core.base_chains import STALE, UNPROVEN, WORKLOAD
from penstock.core.conditions import (
    FullSocket,
    HasLabel,
    Hook,
    InCgroup,
    Loopback,
    Marked,
    Original,
    Protocol,
    Tracked,
)
from penstock.core.label_bits import FIRST_LABEL
from penstock.core.ruleset import Chain, Rule

DEPTH, LEVELS = 4, (5, 7, 6)
GOVERNED = InCgroup("penstock.slice", DEPTH)
LABELS = [("a", FIRST_LABEL), ("b", FIRST_LABEL + 1)]
SURELY, LOOKUP = Rule((Marked(0),), (Goto("met"),)), Rule((Marked(0),), (Final.RETURN,))
SENT = Rule((Protocol("icmp"),), (Jump("errors"),))


def built(*levels: int, names: bool = False) -> dict[str, Chain]:
    chains = base_chains.shared(LABELS, DEPTH, levels, *(([SURELY], [LOOKUP]) if names else ()))
    base = base_chains.base(GOVERNED, levels, sent=[SENT] if names else ())
    return {chain.name: chain for chain in (*chains, *base)}


def dispatches(chain: Chain) -> list[tuple[str, int]]:
    """In their order."""
    found = (action for rule in chain.rules for action in rule.do)
    return [(action.map, action.level) for action in found if isinstance(action, Dispatch)]


def test_the_slice_is_compared_with_and_workloads_are_looked_up_below_it() -> None:
    governed = {name: chain.rules for name, chain in built().items() if chain.hook}
    assert Rule((GOVERNED,), (Goto("governed_out"),)) in governed["output"]
    assert Rule((GOVERNED,), (Goto("governed_in"),)) in governed["input"]
    assert {name: found for name, chain in built().items() if (found := dispatches(chain))} == {
        "governed_out": [(cgroup_maps.OUT, DEPTH + 1)],
        "governed_in": [(cgroup_maps.IN, DEPTH + 1)],
        "met": [(cgroup_maps.OWN, DEPTH + 1)],
    }


def test_in_place_is_looked_up_after_the_slice_and_the_deepest_first() -> None:
    chains = built(*LEVELS)
    for name, place in (("output", "out_place"), ("input", "in_place")):
        assert dispatches(chains[name]) == [(f"{place}{n}", n) for n in (7, 6, 5)]
        rules = chains[name].rules
        slice_at = next(i for i, rule in enumerate(rules) if GOVERNED in rule.when)
        assert not any(isinstance(action, Dispatch) for rule in rules[:slice_at] for action in rule.do)
    owners = [(cgroup_maps.OWN, DEPTH + 1), *((f"own_place{n}", n) for n in (7, 6, 5))]
    assert dispatches(chains["met"]) == owners
    assert chains["unproven"].rules[-1] == Rule((), (Goto("met"),))


def test_what_is_bound_in_place_is_no_bystander() -> None:
    """The part of the base chain that is for those whom nobody governs is behind all look-ups."""
    chains = built(*LEVELS)
    first, *looked_up, new, udp = chains["output"].rules
    assert first.when == (GOVERNED,)
    assert all(isinstance(rule.do[0], Dispatch) and not rule.when for rule in looked_up)
    assert new.do == udp.do == (Jump("inherited"),)
    met = list(chains["met"].rules)
    no_owner = met.index(Rule((FullSocket(),), (Goto("not_own"),)))
    assert met.index(Rule((), (Dispatch("own_place5", 5),))) < no_owner


def test_there_is_one_base_chain_a_hook() -> None:
    hooks = {chain.name: chain.hook for chain in built(*LEVELS).values() if chain.hook}
    assert hooks == {"output": Hook.OUTPUT, "input": Hook.INPUT}


def test_bystanders_are_asked_for_labels_on_loopback_only() -> None:
    asked = [rule.when for rule in built()["output"].rules[-2:]]
    here = Loopback(Hook.OUTPUT)
    assert asked == [(here, which, HasLabel(WORKLOAD)) for which in (Tracked.NEW, Protocol("udp"))]


def test_what_is_sent_for_look_ups_is_looked_at_behind_all_that_is_governed() -> None:
    assert built(*LEVELS, names=True)["output"].rules == (*built(*LEVELS)["output"].rules, SENT)


def test_a_look_up_is_unproven_whatever_is_said_of_its_connection() -> None:
    assert built(names=True)["unproven"].rules == (SURELY, *built()["unproven"].rules)
    assert built()["unproven"].rules[0] == Rule((HasLabel(STALE),), (Final.RETURN,))


def test_nobody_is_marked_who_was_not_asked() -> None:
    """What `inherited` is about is new, or a datagram."""
    for rule in built()["inherited"].rules:
        assert Tracked.NEW in rule.when or Protocol("udp") in rule.when


def test_who_is_nobodys_marks_what_he_inherits() -> None:
    for rule in built()["inherited"].rules:
        assert rule.do == (SetLabel(STALE),)
        assert rule.when, "and nothing else"


def test_what_no_socket_takes_is_a_look_up_or_not_begun() -> None:
    """Look-ups come back behind whatever has a socket: that one is somebody's who must not have them."""
    rules = list(built(names=True)["met"].rules)
    place = rules.index(LOOKUP)
    assert rules[place - 1] == Rule((FullSocket(),), (Goto("not_own"),))
    assert rules[place + 1 :] == [Rule((Tracked.NEW,), (Goto("not_own"),))]
    assert LOOKUP not in built()["met"].rules


def test_each_label_leads_to_the_workload_that_sends() -> None:
    assert built()["not_own"].rules == tuple(
        Rule((HasLabel(label),), (Goto(f"deny_loopback_{name}"),)) for name, label in LABELS
    )
    assert built()["input"].rules[0].when == (Loopback(Hook.INPUT), Original(), HasLabel(UNPROVEN))


@pytest.mark.parametrize(("name", "refuse"), [("governed_out", "refuse_out"), ("governed_in", "refuse_in")])
def test_who_is_in_the_slice_and_nobodys_is_denied(name: str, refuse: str) -> None:
    actions = [action for rule in built()[name].rules for action in rule.do]
    assert actions[-1] == Goto(refuse)
    kinds = [type(action) for action in actions]
    assert kinds.index(Dispatch) < kinds.index(Count) < kinds.index(Log)
    assert Final.ACCEPT not in actions


def test_what_proves_that_cgroups_are_matched_goes_nowhere() -> None:
    for name in (cgroup_maps.PROOF_OUT, cgroup_maps.PROOF_IN):
        assert built()[name].rules == (Rule((), (Count(name),)), Rule((), (Final.DROP,)))
