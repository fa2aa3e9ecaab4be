"""What changes the kernel's rules: on trial, confirmed, reverted, rolled back; and units bound where they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from fake_host import BROKEN, ONE, START, TWO, Host, always, applied, once, rules

from penstock.core import effects, events, state
from penstock.core.events import Seen, Stray
from penstock.core.operations import TRIES
from penstock.core.parse import parse
from penstock.core.slices import slice_of
from penstock.core.wire import Json

THREE = {**TWO, "rules.d/c.yaml": rules("c")}
EXPIRES = {"rules.d/a.yaml": rules("a", '[{to: 198.51.100.10, ports: [443], expires: "2026-03-01T12:00:30Z"}]')}
UNIT, DEEP = "system.slice/u.service", "system.slice/system-u.slice/u@1.service"
UNITS = {"rules.d/a.yaml": rules("a") + b"match: [{unit: u.service}, {unit: 'u@*.service'}]\n"}
OVER = {
    "rules.d/a.yaml": rules("a") + b"match: {unit: 'u*.service'}\n",
    "rules.d/b.yaml": rules("b") + b"match: {unit: '*u.service'}\n",
}


def running(files: dict[str, bytes] | None = None, *units: str) -> Host:
    host = Host(files)
    for unit in units:
        host.unit(unit)
    host.start()
    assert host.quit is None
    assert host.holds_policy()
    return host


def hash_of(files: dict[str, bytes]) -> str:
    policy = parse(files).policy
    assert policy
    return policy.hash


def in_force(host: Host) -> str:
    assert host.engine.in_force
    assert host.holds_policy()
    return host.engine.in_force.policy.hash


def saved(host: Host) -> str:
    assert host.state
    return state.decode(host.state).hash


def finding(host: Host, code: str) -> list[Json]:
    return [one for one in host.status()["findings"] if one["code"] == code]


def refused(host: Host, name: str, **arguments: Any) -> effects.Refuse:
    number = host.command(name, **arguments)
    host.settle()
    return host.refusals[number]


def restarted(host: Host) -> Host:
    """The daemon was killed, and comes again on the same host."""
    again = Host(host.files, saved=host.state)
    again.kernel, again.units, again.now = host.kernel, host.units, host.now
    again.history, again.floor, again.marked = host.history, host.floor, host.marked
    return again.start()


# --- on trial ---


def on_trial(seconds: int = 10, files: dict[str, bytes] = TWO) -> Host:
    host = running()
    answer = host.apply(files, confirm=seconds)
    assert (answer["changed"], answer["hash"]) == (True, hash_of(files))
    assert answer["confirm_until"] is not None
    return host


def test_what_waits_is_in_force_and_on_no_disk() -> None:
    host = running()
    before, floor = len(host.done), host.floor
    host.apply(TWO, confirm=10)
    assert host.names(before)[:5] == ["ReadConfig", "Compile", "MarkTrial", "MakeCgroups", "Load"]
    assert not {"StageState", "CommitState", "EndTrial"} & set(host.names(before))
    assert (in_force(host), saved(host), host.floor) == (hash_of(TWO), hash_of(ONE), floor)
    assert host.marked
    assert host.status()["policy"]["confirm_until"] == "2026-03-01T12:00:10Z"
    assert "not confirmed yet" in host.told[-1]


def test_confirmed_it_is_saved_with_its_floor() -> None:
    host = on_trial()
    before = len(host.done)
    assert host.ask("confirm") == {"confirmed": True, "hash": hash_of(TWO)}
    assert host.names(before) == ["StageState", "CommitState", "EndTrial", "Answer", "Journal", "Notify"]
    assert (in_force(host), saved(host)) == (hash_of(TWO), hash_of(TWO))
    assert host.floor == f"floor of {hash_of(TWO)}".encode()
    assert not host.marked
    host.tick(60)
    assert in_force(host) == hash_of(TWO)
    assert host.status()["policy"]["confirm_until"] is None


def test_it_reverts_once_when_its_time_is_over() -> None:
    host = on_trial(10)
    for _ in range(4):
        host.tick(2)
    assert in_force(host) == hash_of(TWO)
    before = len(host.done)
    host.tick(2)
    assert (in_force(host), saved(host), host.marked) == (hash_of(ONE), hash_of(ONE), False)
    for _ in range(5):
        host.tick(2)
    assert host.names(before).count("Load") == 1
    assert [text for _, text in host.journal if "nobody confirmed" in text] != []
    assert host.ask("confirm") == {"confirmed": False, "hash": hash_of(ONE)}


@pytest.mark.parametrize("years", [-30, 30])
def test_the_wall_clock_ends_no_trial_and_keeps_none(years: int) -> None:
    host = on_trial(10)
    host.now += timedelta(days=365 * years)
    host.tick(4).tick(4)
    assert in_force(host) == hash_of(TWO)
    host.now -= timedelta(days=365 * years)
    host.tick(4)
    assert in_force(host) == hash_of(ONE)


def test_a_suspend_counts() -> None:
    host = on_trial(10)
    host.feed(events.Ticked(host.now, 3600.0))
    host.settle()
    assert in_force(host) == hash_of(ONE)


def test_a_revert_that_fails_is_tried_again() -> None:
    host = on_trial(4)
    host.failing = once("Load")
    host.tick(4)
    assert in_force(host) == hash_of(TWO)
    assert host.engine.busy
    host.tick(2)
    assert (in_force(host), host.marked) == (hash_of(ONE), False)


def test_rollback_reverts_what_waits_at_once() -> None:
    host = on_trial(600)
    assert host.ask("rollback", to="") | {"seconds": 0} == {
        "changed": True,
        "hash": hash_of(ONE),
        "workloads": 1,
        "seconds": 0,
    }
    assert (in_force(host), saved(host), host.marked) == (hash_of(ONE), hash_of(ONE), False)
    assert not any("nobody" in text for _, text in host.journal)


def test_nothing_else_is_applied_meanwhile_and_all_are_answered_at_once() -> None:
    host = on_trial(600)
    host.files = dict(THREE)
    numbers = [host.command("apply"), host.command("rollback", to=hash_of(ONE)), host.command("apply")]
    host.settle()
    for number in numbers:
        assert "waits to be confirmed" in host.refusals[number].message
        assert host.refusals[number].hint == "penstock confirm, or penstock rollback"
    assert in_force(host) == hash_of(TWO)
    host.ask("confirm")
    assert host.apply()["hash"] == hash_of(THREE)


def test_several_may_ask_and_each_is_answered_in_his_turn() -> None:
    host = on_trial(600)
    host.files = dict(THREE)
    first, second, third = host.command("confirm"), host.command("confirm"), host.command("apply")
    host.settle()
    assert host.answers[first]["confirmed"]
    assert not host.answers[second]["confirmed"]
    assert host.answers[third]["hash"] == hash_of(THREE)


def test_there_is_nothing_to_confirm() -> None:
    host = running()
    before = len(host.done)
    assert host.ask("confirm") == {"confirmed": False, "hash": hash_of(ONE)}
    assert host.names(before) == ["Answer"]


@pytest.mark.parametrize("step", ["MarkTrial", "MakeCgroups", "Load", "BindCgroups", "ReadKernel", "Compile"])
def test_a_trial_that_fails_is_none(step: str) -> None:
    host = running()
    host.failing = once(step, f"no {step}")
    host.files = dict(TWO)
    answer = refused(host, "apply", confirm=10)
    assert answer.message == f"no {step}"
    assert not host.engine.busy
    host.tick().tick()
    assert (in_force(host), saved(host), host.marked) == (hash_of(ONE), hash_of(ONE), False)
    assert host.status()["policy"]["confirm_until"] is None


def test_a_trial_that_is_not_read_back_as_loaded_is_none() -> None:
    host = running()

    def drop() -> None:
        host.kernel.sets = {name: frozenset() for name in host.kernel.sets}

    host.interfere = drop
    host.files = dict(TWO)
    before = len(host.done)
    number = host.command("apply", confirm=10)
    while number not in host.refusals:
        assert host.step()
    assert host.names(before).count("Load") == TRIES
    host.interfere = lambda: None
    host.settle().tick().tick()
    assert (in_force(host), host.marked) == (hash_of(ONE), False)


@pytest.mark.parametrize("step", ["StageState", "CommitState"])
def test_a_confirm_that_cannot_be_saved_keeps_the_trial(step: str) -> None:
    host = on_trial(10)
    host.failing = once(step, "disk full")
    answer = refused(host, "confirm")
    assert answer.message == "not confirmed: it could not be saved: disk full"
    assert "penstock confirm" in answer.hint
    assert (in_force(host), saved(host), host.marked) == (hash_of(TWO), hash_of(ONE), True)
    assert host.status()["kernel"]["agrees"] is True
    assert host.status()["policy"]["confirm_until"] is not None
    host.tick(2)
    assert host.ask("confirm")["confirmed"]
    assert saved(host) == hash_of(TWO)


def test_a_confirm_that_cannot_be_saved_does_not_keep_it_for_ever() -> None:
    host = on_trial(10)
    host.failing = always("CommitState")
    refused(host, "confirm")
    host.tick(10)
    assert (in_force(host), saved(host)) == (hash_of(ONE), hash_of(ONE))


def test_a_daemon_that_comes_again_brings_back_what_was_saved() -> None:
    host = on_trial(600)
    again = restarted(host)
    assert (in_force(again), again.marked) == (hash_of(ONE), False)
    assert again.status()["policy"]["confirm_until"] is None
    assert again.ask("confirm")["confirmed"] is False


def test_a_daemon_that_leaves_takes_it_back() -> None:
    host = on_trial(600)
    host.feed(events.Leaving(host.now))
    host.settle()
    assert (in_force(host), host.marked, host.engine.busy) == (hash_of(ONE), False, False)
    before = len(host.done)
    host.feed(events.Leaving(host.now))
    assert host.names(before) == []


def test_repairs_and_expiries_are_of_the_policy_on_trial() -> None:
    host = on_trial(600, EXPIRES)
    host.kernel.flush()
    host.settle()
    assert in_force(host) == hash_of(EXPIRES)
    host.tick(40)
    assert in_force(host) == hash_of(EXPIRES)
    assert not host.kernel.sets["out4_a"]
    assert (saved(host), host.marked) == (hash_of(ONE), True)
    assert host.ask("confirm")["confirmed"]
    assert saved(host) == hash_of(EXPIRES)


def test_a_rule_that_ends_before_a_revert_does_not_come_back_with_it() -> None:
    host = running(EXPIRES)
    host.apply(ONE, confirm=20)
    host.tick(31)
    assert host.engine.in_force
    assert host.engine.in_force.policy.hash == hash_of(EXPIRES)
    assert host.kernel.sets["out4_a"] == frozenset()


def test_the_same_files_need_no_trial() -> None:
    host = running()
    answer = host.apply(ONE, confirm=10)
    assert (answer["changed"], answer["confirm_until"]) == (False, None)
    assert not host.engine.busy


# --- rollback ---


def test_rollback_goes_to_the_one_before_and_again_to_the_one_it_left() -> None:
    host = running(ONE)
    host.apply(TWO)
    answer = host.ask("rollback", to="")
    assert (answer["changed"], answer["hash"], in_force(host)) == (True, hash_of(ONE), hash_of(ONE))
    assert saved(host) == hash_of(ONE)
    assert host.floor == f"floor of {hash_of(ONE)}".encode()
    host.ask("rollback", to="")
    assert (in_force(host), saved(host)) == (hash_of(TWO), hash_of(TWO))


def test_rollback_by_the_beginning_of_a_hash() -> None:
    host = running(ONE)
    host.apply(TWO)
    host.apply(THREE)
    host.ask("rollback", to=hash_of(ONE)[:6])
    assert in_force(host) == hash_of(ONE)


def test_rollback_keeps_the_labels_that_are_in_use() -> None:
    host = running(TWO)
    assert host.engine.in_force
    first = dict(host.engine.in_force.applied.labels)
    host.apply({"rules.d/b.yaml": TWO["rules.d/b.yaml"]})
    host.apply(THREE)
    now = dict(host.engine.in_force.applied.labels)
    host.ask("rollback", to=hash_of(TWO))
    assert host.engine.in_force.applied.labels["b"] == now["b"] == first["b"]
    labels = list(host.engine.in_force.applied.labels.values())
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("to", ["", "zzzz"])
def test_there_is_nothing_to_go_back_to(to: str) -> None:
    host = running()
    answer = refused(host, "rollback", to=to)
    assert "is kept" in answer.message
    assert "rollback --list" in answer.hint
    assert in_force(host) == hash_of(ONE)


@pytest.mark.parametrize("step", ["StageState", "Load", "BindCgroups", "ReadKernel", "Compile", "ReadHistory"])
def test_a_rollback_that_fails_changes_nothing(step: str) -> None:
    host = running()
    host.apply(TWO)
    host.failing = once(step, f"no {step}")
    assert refused(host, "rollback", to="").message == f"no {step}"
    host.tick().tick()
    assert (in_force(host), saved(host)) == (hash_of(TWO), hash_of(TWO))
    host.ask("rollback", to="")
    assert in_force(host) == hash_of(ONE)


def test_a_rollback_that_meets_a_repair_is_answered_after_it() -> None:
    host = running()
    host.apply(TWO)
    number = host.command("rollback", to="")
    del host.kernel.cgroups[slice_of("a")]
    host.feed(events.Ticked(host.now))
    host.settle()
    assert host.answers[number]["hash"] == in_force(host) == hash_of(ONE)


# --- a state that is of no use ---

OLD = state.encode(state.Applied("x" * 12, 0.0, BROKEN))  # of a version that said things otherwise


@pytest.mark.parametrize("damaged", [b"{", OLD, None], ids=["damaged", "not understood", "missing"])
def test_the_newest_good_policy_is_used_loudly_until_somebody_applies(damaged: bytes | None) -> None:
    host = Host(THREE, saved=damaged)
    host.history = [b"\xff", applied(TWO, {"a": 5, "b": 6}), applied(ONE, {"a": 5})]
    host.start()
    assert in_force(host) == hash_of(TWO)
    assert host.engine.in_force
    assert host.engine.in_force.applied.labels == {"a": 5, "b": 6}
    level, text = host.journal[0]
    assert level == "error"
    assert hash_of(TWO) in text
    assert [one["severity"] for one in finding(host, "state-damaged")] == ["warning"]
    assert saved(host) == hash_of(TWO)
    host.tick().tick()
    assert finding(host, "state-damaged")
    host.apply(THREE, confirm=4)
    assert finding(host, "state-damaged"), "nobody has decided yet"
    host.ask("confirm")
    assert not finding(host, "state-damaged")


def test_whoever_applies_what_is_in_force_already_has_decided_too() -> None:
    host = Host(TWO, saved=b"{")
    host.history = [applied(TWO, {"a": 5, "b": 6})]
    host.start()
    assert finding(host, "state-damaged")
    assert host.apply()["changed"] is False
    assert not finding(host, "state-damaged")


def test_without_any_good_policy_the_configuration_is_used_loudly() -> None:
    host = Host(TWO, saved=b"{")
    host.history = [b"[]"]
    host.start()
    assert in_force(host) == hash_of(TWO)
    assert host.journal[0][0] == "error"
    assert finding(host, "state-damaged")


@pytest.mark.parametrize(("newest", "before"), [(OLD, b"{"), (b"{", OLD), (OLD, OLD)])
def test_a_policy_of_another_version_is_not_replaced_by_files_nobody_applied(newest: bytes, before: bytes) -> None:
    host = Host(TWO, saved=newest)
    host.history = [before]
    host.start()
    assert host.quit
    assert "not understood" in host.quit.text
    assert host.kernel.ruleset is None


# --- the start ---


def test_ready_is_said_once_and_after_the_kernel_was_read_back() -> None:
    host = running()
    names = host.names()
    assert names.index("Notify") > names.index("ReadKernel")
    host.apply(TWO)
    host.apply(ONE, confirm=10)
    host.ask("rollback", to="")
    host.kernel.flush()
    host.settle().tick().tick()
    ready = f"READY=1\nSTATUS=policy {hash_of(ONE)} is in force"
    assert [text for text in host.told if "READY=1" in text] == [ready]
    assert host.told[-1] == f"STATUS=policy {hash_of(TWO)} is in force"


@pytest.mark.parametrize("step", ["StageState", "MakeCgroups", "Load", "BindCgroups", "ReadKernel", "Compile"])
def test_a_start_that_fails_is_not_called_ready(step: str) -> None:
    host = Host()
    host.failing = once(step)
    host.start()
    assert host.quit
    assert host.told == []


def test_a_start_that_cannot_be_saved_is_ready_all_the_same() -> None:
    """It is in force; the service manager would kill it for its silence, and start it again, for ever."""
    host = Host()
    host.failing = always("CommitState", error="disk full")
    host.start()
    assert host.told == [f"READY=1\nSTATUS=policy {hash_of(ONE)} is in force"]
    assert finding(host, "state-unwritable")
    assert "EndTrial" in host.names()


def test_the_floor_is_kept_at_the_start_and_tried_again_when_that_fails() -> None:
    host = Host(saved=applied(ONE, {"a": 5}))
    host.failing = always("KeepFloor", error="disk full")
    host.start()
    assert host.holds_policy()
    assert finding(host, "floor-unwritable")
    host.failing = lambda effect: ""
    host.tick()
    assert host.floor == f"floor of {hash_of(ONE)}".encode()
    assert not finding(host, "floor-unwritable")
    before = len(host.done)
    host.tick()
    assert "KeepFloor" not in host.names(before)


def test_an_apply_writes_another_floor_so_the_old_one_is_not_tried_again() -> None:
    host = Host(saved=applied(ONE, {"a": 5}))
    host.failing = once("KeepFloor")
    host.start()
    host.apply(TWO)
    host.tick()
    assert host.floor == f"floor of {hash_of(TWO)}".encode()


# --- units, where they are ---


def bound(host: Host) -> dict[str, int]:
    """Cgroups at which a workload's chain begins, by path, as the kernel has them."""
    ids = {number for name, held in host.kernel.bindings.items() if "place" in name for number in held}
    return {path: number for path, number in host.kernel.cgroups.items() if number in ids}


def changes(host: Host, act: Callable[[], object]) -> list[str]:
    """What is done to the kernel because of it."""
    before = len(host.done)
    act()
    return [name for name in host.names(before) if name in ("Load", "BindCgroups", "MakeCgroups")]


def test_what_runs_already_is_bound_by_the_first_transaction() -> None:
    host = running(UNITS, UNIT, DEEP)
    assert bound(host).keys() == {UNIT, DEEP}
    assert host.names().count("Load") == 1
    assert host.status()["workloads"][0]["egress"] == "enforcing"


def test_the_daemon_comes_again_and_no_map_is_missing_for_a_moment() -> None:
    host = running(UNITS, UNIT, DEEP)
    before = {name: dict(held) for name, held in host.kernel.bindings.items()}
    again = Host(UNITS, saved=host.state)
    again.kernel, again.units, again.now = host.kernel, host.units, host.now
    seen: list[dict[str, dict[int, tuple[str, str]]]] = []
    again.interfere = lambda: seen.append({name: dict(held) for name, held in again.kernel.bindings.items()})
    again.start()
    assert seen == [before]
    assert again.holds_policy()
    assert again.names().count("Load") == 1


def test_a_unit_that_comes_is_bound_quickly_where_its_level_is_in_use() -> None:
    host = running(UNITS, UNIT)
    host.unit("ai.slice/u.service")
    assert changes(host, host.watch) == ["BindCgroups"]
    assert bound(host).keys() == {UNIT, "ai.slice/u.service"}
    assert not host.engine.view.alarms


def test_a_unit_at_a_new_level_needs_a_load_the_first_time() -> None:
    host = running(UNITS)
    host.unit(UNIT)
    assert changes(host, host.watch) == ["MakeCgroups", "Load", "BindCgroups"]
    host.stop_unit(UNIT)
    assert changes(host, host.watch) == ["BindCgroups"]
    assert bound(host) == {}
    host.unit(UNIT)
    assert changes(host, host.watch) == ["BindCgroups"]
    assert bound(host).keys() == {UNIT}
    host.kernel.flush()
    host.settle()
    assert host.holds_policy()
    assert bound(host).keys() == {UNIT}


def test_a_repair_keeps_the_levels_of_units_that_may_come_again() -> None:
    host = running(UNITS, UNIT)
    host.stop_unit(UNIT)
    host.watch()
    host.kernel.flush()
    host.settle()
    host.unit(UNIT)
    assert changes(host, host.watch) == ["BindCgroups"]
    assert bound(host).keys() == {UNIT}


def test_a_unit_started_again_is_bound_again_and_alarms_nobody() -> None:
    host = running(UNITS, UNIT)
    old = host.kernel.cgroups[UNIT]
    host.unit(UNIT)
    assert host.kernel.cgroups[UNIT] != old
    assert changes(host, host.watch) == ["BindCgroups"]
    assert bound(host) == {UNIT: host.kernel.cgroups[UNIT]}
    assert in_force(host)
    assert not host.engine.view.alarms


@pytest.mark.parametrize("act", ["again", "gone", "gone and come"])
def test_a_check_before_a_unit_is_seen_alarms_nobody(act: str) -> None:
    """Another table changed, so the kernel is read; that a unit is another one by now is no change by others."""
    host = running(UNITS, UNIT)
    host.stop_unit(UNIT)
    if act == "gone and come":
        host.watch()
    if act != "gone":
        host.unit(UNIT)
    host.feed(events.RulesetChanged(host.now, (), lost=True))
    host.settle()
    assert not host.engine.view.alarms
    host.watch()
    assert host.holds_policy()
    assert not host.engine.view.alarms


def test_a_unit_that_comes_and_goes_between_binding_and_reading_alarms_nobody() -> None:
    host = running(UNITS, UNIT)
    host.unit(UNIT)
    host.watch_later()
    while host.names()[-1] != "BindCgroups":
        host.step()
    host.unit(UNIT)
    host.settle()
    assert host.names().count("Load") == 1
    host.watch()
    assert host.holds_policy()
    assert not host.engine.view.alarms
    assert host.names().count("Load") == 1


def test_a_foreign_flush_brings_back_what_was_bound() -> None:
    host = running(UNITS, UNIT, DEEP)
    host.kernel.flush("firewalld", 4711)
    host.settle()
    assert host.holds_policy()
    assert bound(host).keys() == {UNIT, DEEP}
    assert "pid 4711" in host.engine.view.alarms[-1][1]


def stop_in_the_middle(host: Host, step: str) -> None:
    """A unit came; up to just before that step of its being bound."""
    host.unit("ai.slice/u.service")
    host.watch_later()
    while not (host._tasks and type(host._tasks[0][0]).__name__ == step):
        assert host.step()


def less(host: Host) -> None:
    host.kernel.sets["out4_a"] = frozenset()
    host.kernel.commit(touched=True, pid=77, comm="nft")


FOREIGN: dict[str, Callable[[Host], None]] = {
    "a rule exchanged": lambda host: host.kernel.tamper(),
    "everything flushed": lambda host: host.kernel.flush(),
    "an element less": less,
}
OPEN = {"rules.d/a.yaml": rules("a", "[{to: 198.51.100.10, ports: [443]}]") + b"match: {unit: u.service}\n"}


@pytest.mark.parametrize("step", ["BindCgroups", "ReadKernel"])
@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_change_while_a_unit_is_bound_is_repaired_and_not_swallowed(what: str, step: str) -> None:
    host = running(OPEN, UNIT)
    stop_in_the_middle(host, step)
    if what == "everything flushed" and step == "BindCgroups":
        host.failing = once("BindCgroups", "No such file or directory")
    FOREIGN[what](host)
    host.settle()
    assert host.holds_policy(), "without waiting for a tick"
    assert len(host.engine.view.alarms) == 1
    assert any("repairing" in text for _, text in host.journal)
    assert finding(host, "foreign-change")
    host.watch()
    assert bound(host).keys() == {UNIT, "ai.slice/u.service"}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_change_while_a_policy_is_saved_is_repaired_at_once(what: str) -> None:
    host = running()
    host.files = dict(OPEN)
    number = host.command("apply")
    while not (host._tasks and type(host._tasks[0][0]).__name__ == "CommitState"):
        assert host.step()
    FOREIGN[what](host)
    host.announce()
    host.settle()
    assert host.answers[number]["changed"]
    assert in_force(host) == hash_of(OPEN)
    assert "(by 'nft', pid 77)" in host.engine.view.alarms[-1][1]


@pytest.mark.parametrize("step", ["Load", "BindCgroups", "ReadKernel"])
def test_a_second_flush_that_makes_a_repair_fail_is_repaired_at_once(step: str) -> None:
    host = running(UNITS, UNIT)
    host.kernel.flush()
    while not (host._tasks and type(host._tasks[0][0]).__name__ == "MakeCgroups"):
        assert host.step()
    host.failing = once(step, "No such file or directory")
    host.kernel.flush("nft", 4712)
    host.announce()
    host.settle()
    assert host.holds_policy(), "without waiting for a tick"
    host.failing = always("BindCgroups", error="no room")
    before = len(host.done)
    host.kernel.flush()
    host.settle()
    assert host.names(before).count("Load") < 4, "what does not work for another reason waits"


def test_a_foreign_change_while_a_policy_is_loaded_raises_the_alarm() -> None:
    host = running()
    left = [1]

    def flush() -> None:
        if left:
            left.pop()
            less(host)

    host.interfere = flush
    assert host.apply(OPEN)["changed"]
    assert in_force(host) == hash_of(OPEN)
    assert "elements of set out4_a" in host.engine.view.alarms[-1][1]
    assert any("while the policy was loaded" in text for _, text in host.journal)


def test_a_storm_of_units_has_bounded_effects() -> None:
    host = running(UNITS, UNIT)
    for _ in range(200):
        host.unit(UNIT)
    assert changes(host, host.watch) == ["BindCgroups"]
    assert changes(host, host.watch) == []
    assert host.holds_policy()


@pytest.mark.parametrize("step", ["BindCgroups", "ReadKernel"])
def test_units_that_cannot_be_bound_are_tried_again_at_ticks_and_said_once(step: str) -> None:
    host = running(UNITS, UNIT)
    host.failing = always(step, error="no room")
    host.unit("ai.slice/u.service")
    before = len(host.done)
    for _ in range(20):
        host.watch()
    assert host.names(before).count("BindCgroups") == 1, "not once for each look"
    for _ in range(5):
        host.tick()
    assert host.names(before).count("BindCgroups") <= 6
    assert sum("enrol: no room" in text for _, text in host.journal) == 1
    host.failing = lambda effect: ""
    host.tick().tick()
    assert host.holds_policy()
    assert bound(host).keys() == {UNIT, "ai.slice/u.service"}
    assert {one["code"] for one in host.status()["findings"]} <= {"in-place"}


def test_a_unit_that_is_not_bound_yet_is_told() -> None:
    host = running(OVER, UNIT)
    host.unit("ai.slice/u.service")
    host.failing = always("BindCgroups", error="no room")
    host.watch()
    assert [one["workload"] for one in finding(host, "unbound-unit")] == ["a"]
    words = {one["name"]: one["egress"] for one in host.status()["workloads"]}
    assert words == {"a": "degraded", "b": "enforcing"}
    host.failing = lambda effect: ""
    host.tick()
    assert not finding(host, "unbound-unit")


def test_a_unit_that_two_workloads_match_is_bound_to_the_first_and_told() -> None:
    host = running(OVER, UNIT)
    assert host.engine.in_force
    assert host.engine.in_force.places == {UNIT: "a"}
    [found] = finding(host, "ambiguous")
    assert (found["workload"], found["severity"]) == ("a", "error")
    assert "a, b" in found["text"]


def test_penstocks_own_units_are_never_bound() -> None:
    files = {"rules.d/a.yaml": rules("a") + b"match: {unit: 'pen*.service'}\n"}
    host = running(files, "system.slice/penstock.service")
    assert bound(host) == {}
    host.unit("system.slice/penstock-floor.service")
    host.unit("system.slice/penny.service")
    host.watch()
    assert bound(host).keys() == {"system.slice/penny.service"}


def test_an_apply_lets_go_of_units_and_takes_others() -> None:
    host = running(UNITS, UNIT, "system.slice/v.service")
    host.apply({"rules.d/a.yaml": rules("a") + b"match: {unit: v.service}\n"})
    assert bound(host).keys() == {"system.slice/v.service"}
    host.apply({"rules.d/a.yaml": rules("a")})
    assert bound(host) == {}
    assert host.holds_policy()


def test_processes_of_a_unit_that_was_let_go_have_not_strayed() -> None:
    host = running(UNITS, UNIT)
    host.processes["a"] = [Seen(9, 100, "u", 1000)]
    host.tick()
    host.processes["a"] = []
    host.strays = [Stray(9, 100, "u", "a", f"/{UNIT}")]
    host.apply({"rules.d/a.yaml": rules("a")})
    host.tick()
    assert not finding(host, "outside")
    assert host.status()["workloads"][0]["egress"] == "enforcing"


def test_events_do_not_match_all_units_again(monkeypatch: pytest.MonkeyPatch) -> None:
    host = running(UNITS, UNIT)
    monkeypatch.setattr("penstock.core.operations.places", None)
    host.feed(events.PacketsDenied(host.now, (), lost=1))
    host.tick()
    assert host.engine.view.lost == 1


def test_an_old_read_back_means_nothing() -> None:
    host = running()
    held = host.engine.in_force
    stale = events.ReadBack(START, 99, replace(host.kernel.snapshot(START), exists=False), {})
    host.feed(stale)
    host.feed(events.Saved(START, 99))
    assert held
    host.feed(events.Compiled(START, 99, held.ruleset))
    assert host.engine.in_force is held
    assert host.settle().holds_policy()
