"""When the kernel is looked at and mended, and who is named."""

from __future__ import annotations

from datetime import timedelta

from fake_host import START, Host

from penstock.core.events import Commit, ReadBack, RulesetChanged
from penstock.core.keeper import PATIENCE, Keeper, differs, missing, summary
from penstock.core.questions import bindings
from penstock.core.slices import SLICE, slice_of
from penstock.core.view import View


def keeper() -> Keeper:
    made = Keeper(View(START))
    made.agree(START, 10)
    return made


def told(*commits: Commit, lost: bool = False) -> RulesetChanged:
    return RulesetChanged(START, commits, lost)


def test_our_own_and_others_tables_move_the_generation_on() -> None:
    kept = keeper()
    kept.announced(told(Commit(11, False, 1, "x"), Commit(12, False, 1, "x")))
    assert not kept.must_look
    assert kept.holds_still(START, 12)
    assert not kept.holds_still(START, 13)


def test_a_gap_in_the_announcements_is_looked_at_by_the_next_self_check() -> None:
    kept = keeper()
    kept.announced(told(Commit(12, False, 1, "x")))
    assert not kept.must_look
    assert not kept.holds_still(START, 12)


def test_what_is_known_already_is_no_news() -> None:
    kept = keeper()
    kept.announced(told(Commit(10, True, 1, "x")))
    assert not kept.must_look


def test_a_change_behind_what_was_read_is_looked_at_again() -> None:
    kept = keeper()
    kept.announced(told(Commit(12, True, 1, "x")))
    assert kept.must_look
    assert kept.agree(START, 11)
    assert kept.must_look
    assert not kept.agree(START, 12)
    assert not kept.must_look


def test_lost_announcements_are_looked_at_once() -> None:
    host = Host().start()
    assert host.engine.in_force
    kept = keeper()
    kept.announced(told(lost=True))
    kept.agree(START, 11)
    assert kept.must_look, "nobody knows whether they came before that"
    assert kept.check(host.engine.in_force)
    assert not kept.must_look


def test_who_changed_it_before_an_operation_of_ours_ended_half_way_is_nobody() -> None:
    view = View(START)
    kept = Keeper(view)
    kept.agree(START, 10)
    kept.announced(told(Commit(11, True, 1, "x")))
    kept.gave_up(START, "no room", mending=True)
    assert not kept.must_look
    kept.may_mend(START, "a map")
    assert not view.alarms


def test_who_interferes_with_a_load_is_named() -> None:
    view = View(START)
    kept = Keeper(view)
    kept.announced(told(Commit(11, True, 77, "nft")))
    assert "a map (by 'nft', pid 77)" in kept.interfered(START, "a map")
    assert view.alarms[-1] == (START, "a map (by 'nft', pid 77)")


def test_a_check_of_which_nothing_comes_is_not_the_last_one() -> None:
    host = Host().start()
    kept, in_force = keeper(), host.engine.in_force
    assert in_force
    assert kept.check(in_force)
    for _ in range(PATIENCE - 1):
        kept.ticked()
        assert not kept.check(in_force)
    kept.ticked()
    assert kept.check(in_force)


def test_one_check_at_a_time_and_it_must_be_about_what_is_in_force() -> None:
    host = Host().start()
    first = host.engine.in_force
    assert first
    kept = keeper()
    assert kept.check(first)
    assert kept.check(first) == []
    host.apply({**host.files, "penstock.yaml": b"version: 1\n"})
    assert not kept.answered(host.engine.in_force)
    assert kept.check(first)
    assert kept.answered(first)


def test_an_alarm_is_raised_once() -> None:
    view = View(START)
    kept = Keeper(view)
    kept.agree(START, 10)
    kept.announced(told(Commit(11, True, 7, "nft")))
    kept.may_mend(START, "chain x")
    kept.may_mend(START + timedelta(seconds=5), "chain x")
    assert [text for _, text in view.alarms] == ["chain x (by 'nft', pid 7)"]


def test_missing_slices_differ() -> None:
    host = Host().start()
    in_force = host.engine.in_force
    assert in_force
    assert missing(in_force.policy, {SLICE: 1}) == [f"{slice_of('a')} is missing"]
    del host.kernel.cgroups[slice_of("a")]
    host.kernel.bind(bindings(("a",), host._ids(["a"])))
    back = ReadBack(START, None, host.kernel.snapshot(START), host._ids(["a"]))
    assert differs(in_force.policy, in_force.ruleset, back, {}, 1) == [f"{slice_of('a')} is missing"]


def test_summary() -> None:
    assert summary(["a", "b"]) == "a, b"
    assert summary(list("abcde")) == "a, b, c and 2 more"
