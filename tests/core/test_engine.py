"""What the daemon decides, with a host without a kernel: each failure at each step, and any order of events."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address

import pytest
from fake_host import BROKEN, ONE, START, TWO, Host, always, applied, once, rules
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core import effects, events, state
from penstock.core.events import Seen, Stray
from penstock.core.log_prefix import Kind, Refusal
from penstock.core.operations import TRIES
from penstock.core.packets import Denied
from penstock.core.parse import parse
from penstock.core.policy import Direction, Mode
from penstock.core.resolver_wire import Refused
from penstock.core.slices import SLICE, slice_of
from penstock.core.surroundings import Session, Surroundings

THREE = {**TWO, "rules.d/c.yaml": rules("c", mode="observe")}
KEYS = {
    "": "v time daemon policy kernel workloads implicit grants findings",
    "daemon": "running pid version since",
    "policy": "hash applied pending_files confirm_until",
    "kernel": "backend agrees checked",
    "workloads": "name mode until egress ingress enrolment processes outside denied unlogged blocks_1h units "
    "listening",
    "findings": "code severity workload text remedy",
}
STEPS = ["StageState", "MakeCgroups", "Load", "BindCgroups", "ReadKernel", "Compile"]


@pytest.fixture
def packet() -> Denied:
    return Denied(
        *("a", Direction.OUT, Refusal.DENY, Mode.ENFORCE, Kind.RULES, 4, "tcp"),
        *(ip_address("203.0.113.9"), 443, ip_address("192.0.2.1"), 40000, 0),
    )


def running(files: dict[str, bytes] | None = None, seed: int | None = None) -> Host:
    host = Host(files, seed=seed).start()
    assert host.quit is None
    assert host.engine.in_force
    return host


def hash_of(files: dict[str, bytes]) -> str:
    policy = parse(files).policy
    assert policy
    return policy.hash


def codes(status: object) -> list[str]:
    assert isinstance(status, dict)
    return [finding["code"] for finding in status["findings"]]


def words(host: Host) -> set[str]:
    """What status calls the workloads."""
    return {w[side] for w in host.status()["workloads"] for side in ("egress", "ingress")}


# --- start ---


def test_the_first_start_applies_the_configuration() -> None:
    host = running(TWO)
    assert host.holds_policy()
    assert host.state is not None
    assert state.decode(host.state).files == TWO
    status = host.status()
    assert status["policy"]["hash"] == hash_of(TWO)
    assert status["policy"]["pending_files"] == 0
    assert status["kernel"]["agrees"] is True
    assert words(host) == {"enforcing"}


def test_the_order_of_a_start() -> None:
    assert running().names() == [
        *["ReadConfig", "Compile", "StageState", "MakeCgroups", "Load", "BindCgroups", "ReadKernel"],
        *["CommitState", "EndTrial", "Journal", "Notify", "Prove"],
    ]


def test_a_later_start_applies_the_saved_state_and_not_the_files() -> None:
    host = Host(TWO, saved=applied(ONE, {"a": 5})).start()
    assert host.engine.in_force
    assert list(host.engine.in_force.policy.workloads) == ["a"]
    assert host.engine.in_force.applied.labels == {"a": 5}
    assert "ReadConfig" not in host.names()
    assert "StageState" not in host.names(), "what is saved is not saved again: a full disk changes nothing"
    assert host.status()["policy"]["pending_files"] == 1


def test_a_saved_state_without_a_label_gets_one_and_is_saved_again() -> None:
    host = Host(TWO, saved=applied(TWO, {"a": 5})).start()
    assert host.engine.in_force
    labels = dict(host.engine.in_force.applied.labels)
    assert labels["a"] == 5
    assert labels["b"] != 5
    assert host.state
    assert state.decode(host.state).labels == labels


def test_a_broken_configuration_at_the_first_start_ends_the_daemon_with_every_mistake() -> None:
    host = Host(BROKEN).start()
    assert host.quit
    assert host.quit.status == 1
    assert "rules.d/a.yaml:3:" in host.quit.text
    assert "rules.d/a.yaml:4:" in host.quit.text
    assert host.kernel.ruleset is None
    assert host.state is None


@pytest.mark.parametrize("saved", [b"", b"{", b"[]", b'{"penstock": 9}', b"\xff"])
def test_a_damaged_state_is_told_and_the_configuration_read(saved: bytes) -> None:
    host = Host(saved=saved).start()
    assert host.journal[0][0] == "error"
    assert "saved state" in host.journal[0][1]
    assert host.holds_policy()


def test_a_state_that_this_version_does_not_understand_ends_the_daemon() -> None:
    saved = state.encode(state.Applied("x", 0.0, BROKEN))
    host = Host(saved=saved).start()
    assert host.quit
    assert "not understood" in host.quit.text
    assert "rules.d/a.yaml:3:" in host.quit.text


def test_a_table_of_that_name_that_is_not_ours_ends_the_daemon() -> None:
    other = running()
    host = Host()
    host.kernel.ruleset, host.kernel.ours = other.kernel.ruleset, False
    host.start()
    assert host.quit
    assert "not ours" in host.quit.text
    assert host.names() == ["Quit"]


@pytest.mark.parametrize("step", ["ReadConfig", *STEPS])
def test_a_start_that_fails_ends_the_daemon_and_says_why(step: str) -> None:
    host = Host()
    host.failing = always(step, error=f"no {step}")
    host.start()
    assert host.quit == effects.Quit(1, f"no {step}")
    assert host.state is None


def test_whoever_asks_before_the_start_is_over_is_answered_after_it() -> None:
    host = Host()
    host.feed(events.Started(START, host.kernel.snapshot(START), None, 1))
    number = host.command("apply")
    assert not host.ask("ready", workload="a")["ready"] or host.engine.in_force
    host.settle()
    assert host.answers[number]["changed"] is False
    assert host.unanswered == []


# --- apply ---


def test_apply() -> None:
    host = running()
    answer = host.apply(TWO)
    assert answer == {
        "changed": True,
        "hash": hash_of(TWO),
        "workloads": 2,
        "problems": [],
        "seconds": answer["seconds"],
        "confirm_until": None,
    }
    assert answer["seconds"] > 0
    assert host.holds_policy()
    assert host.state
    assert state.decode(host.state).hash == hash_of(TWO)


def test_apply_of_the_same_loads_nothing() -> None:
    host = running()
    before = len(host.done)
    answer = host.apply()
    assert answer["changed"] is False
    assert answer["hash"] == hash_of(ONE)
    assert host.names(before) == ["ReadConfig", "Answer"]


PRESET = b"version: 1\npreset: newer\ntitle: x\nsource: measured\ndate: 2026-01-01\negress: [{to: n.example}]\n"


def test_a_preset_that_no_rule_uses_can_be_lent_after_an_apply() -> None:
    host = running()
    said = {"workload": "a", "direction": "out", "peer": "newer", "ports": "", "seconds": 60, "until": 0}
    said |= {"reason": "to see", "wide": 0, "user": ""}
    host.presets["newer.yaml"] = PRESET
    number = host.command("grant", **said)
    host.settle()
    assert host.refusals[number].hint == "see: penstock presets; a new one can be lent after: penstock apply"
    answer = host.apply(confirm=10)
    assert (answer["changed"], answer["confirm_until"], answer["hash"]) == (False, None, hash_of(ONE))
    assert host.state
    assert state.decode(host.state).presets == {"newer.yaml": PRESET}
    assert host.ask("grant", **said)["grant"]["preset"] == "newer"
    before = len(host.done)
    assert host.apply()["changed"] is False
    assert host.names(before) == ["ReadConfig", "Answer"]


def test_apply_of_the_same_mends_what_does_not_agree() -> None:
    host = running()
    host.failing = always("ReadKernel")
    host.kernel.tamper()
    host.settle()
    assert host.status()["kernel"]["agrees"] is None
    host.failing = lambda effect: ""
    assert host.apply()["changed"] is True
    assert host.holds_policy()


def test_apply_with_mistakes_changes_nothing_and_says_all_of_them() -> None:
    host = running()
    held, saved = host.kernel.generation, host.state
    answer = host.apply(BROKEN)
    assert answer["refused"] is True
    assert answer["changed"] is False
    assert answer["hash"] == hash_of(ONE)
    assert len(answer["problems"]) >= 2
    assert (host.kernel.generation, host.state) == (held, saved)
    assert host.holds_policy()


GUARDED = {
    **ONE,
    "penstock.yaml": b"""version: 1
networks: {clients: {cidr: 10.30.0.0/16, plane: inference}}
host: {admin_ports: [22]}
""",
}
ANNA = Session(ip_address("10.30.0.9"), 22, "eth0")


def test_an_apply_that_would_refuse_who_is_connected_wants_to_be_confirmed() -> None:
    host = running()
    held, saved = host.kernel.generation, host.state
    host.around = Surroundings(frozenset({"lo", "eth0"}), (ANNA,))
    answer = host.apply(GUARDED)
    assert answer["refused"] is True
    told = [(p["severity"], p["line"], "10.30.0.9" in p["message"], "--confirm" in p["hint"])
            for p in answer["problems"] if p["code"] == "admin-cut"]  # fmt: skip
    assert told == [("error", 2, True, True)]
    assert (host.kernel.generation, host.state) == (held, saved)
    answer = host.apply(GUARDED, confirm=60)
    assert (answer["changed"], answer["confirm_until"] is None) == (True, False)
    assert [p["severity"] for p in answer["problems"] if p["code"] == "admin-cut"] == ["warning"]
    assert host.ask("confirm")["confirmed"] is True
    # Who is refused by what is in force is no news, and holds up no other change.
    answer = host.apply({**TWO, **GUARDED})
    assert answer["changed"] is True
    assert host.holds_policy()


def test_an_apply_that_refuses_nobody_who_is_connected_needs_no_confirmation() -> None:
    host = running()
    host.around = Surroundings(frozenset({"lo"}), (replace(ANNA, address=ip_address("10.20.0.9")),))
    assert host.apply(GUARDED)["changed"] is True
    assert host.holds_policy()


def test_a_first_start_waits_for_nobody() -> None:
    host = Host(GUARDED)
    host.around = Surroundings(frozenset({"lo"}), (ANNA,))
    assert host.start().quit is None
    assert host.holds_policy()


def test_a_workload_keeps_its_label_when_others_come_and_go() -> None:
    host = running(TWO)
    assert host.engine.in_force
    before = dict(host.engine.in_force.applied.labels)
    host.apply(ONE)
    host.apply(THREE)
    after = host.engine.in_force.applied.labels
    assert {name: after[name] for name in before} == before
    assert after["c"] not in before.values()


@pytest.mark.parametrize("seed", range(20))
def test_those_who_apply_at_once_are_all_answered(seed: int) -> None:
    host = running(seed=seed)
    host.files = dict(TWO)
    numbers = [host.command("apply") for _ in range(5)]
    for _ in range(seed):
        host.step()
    host.files = dict(THREE)
    numbers.append(host.command("apply"))
    host.settle()
    assert [n for n in numbers if n not in host.answers] == []
    assert host.answers[numbers[-1]]["hash"] == hash_of(THREE)
    assert host.holds_policy()


@pytest.mark.parametrize("step", STEPS)
def test_an_apply_that_fails_is_told_and_the_last_good_policy_comes_back(step: str) -> None:
    host = running()
    saved = host.state
    host.files = dict(TWO)
    host.failing = once(step, f"no {step}")
    number, waiting = host.command("apply"), host.command("status")
    host.settle()
    assert host.refusals[number].message == f"no {step}"
    assert "last good policy" in host.refusals[number].hint
    assert waiting in host.answers
    assert host.state == saved
    host.tick()
    host.tick()
    assert host.holds_policy()
    status = host.status()
    assert status["policy"]["hash"] == hash_of(ONE)
    assert status["kernel"]["agrees"] is True
    assert words(host) == {"enforcing"}
    assert "foreign-change" not in codes(status), "what we left half-way is nobody else's work"
    assert host.apply()["hash"] == hash_of(TWO)
    assert host.holds_policy()


def test_an_apply_that_cannot_be_saved_is_in_force_and_refused() -> None:
    host = running()
    saved = host.state
    host.files = dict(TWO)
    host.failing = always("CommitState", error="disk full")
    number = host.command("apply")
    host.settle()
    assert "in force, but it could not be saved: disk full" in host.refusals[number].message
    assert host.state == saved
    assert host.holds_policy()
    assert "state-unwritable" in codes(host.status())
    host.failing = lambda effect: ""
    assert host.apply()["changed"] is True
    assert host.state
    assert state.decode(host.state).hash == hash_of(TWO)
    assert "state-unwritable" not in codes(host.status())


def test_a_configuration_that_cannot_be_read_is_told_to_who_asked() -> None:
    host = running()
    host.failing = once("ReadConfig", "no such directory")
    first, second = host.command("apply"), host.command("apply")
    host.settle()
    assert host.refusals[first].message == "no such directory"
    assert second in host.answers


def test_an_apply_that_meets_a_repair_is_answered_after_it() -> None:
    host = running()
    host.files = dict(TWO)
    number = host.command("apply")
    del host.kernel.cgroups[slice_of("a")]
    host.feed(events.Ticked(host.now))
    host.settle()
    assert host.answers[number]["changed"] is True
    assert host.holds_policy()


def test_one_who_waits_behind_a_failed_proof_is_served() -> None:
    host = running()
    host.failing = always("Prove")
    host.files = dict(TWO)
    host.engine.view.proven = False
    numbers = [host.command("apply"), host.command("apply")]
    host.settle()
    assert all(n in host.answers for n in numbers)


# --- read back ---


def test_what_is_read_back_must_be_what_was_loaded_and_three_times_is_enough() -> None:
    host = running()
    host.files = dict(TWO)

    def drop_a_counter() -> None:
        host.kernel.counters.pop("proof_out", None)
        assert host.kernel.ruleset
        host.kernel.bindings = {}
        host.kernel.sets = {name: frozenset() for name in host.kernel.sets}

    host.interfere = drop_a_counter
    before = len(host.done)
    number = host.command("apply")
    while number not in host.refusals:
        assert host.step()
    assert host.names(before).count("Load") == TRIES
    assert "does not hold what was loaded: elements of set out4_a" in host.refusals[number].message
    host.interfere = lambda: None
    host.settle().tick().tick()
    assert host.engine.in_force
    assert host.engine.in_force.policy.hash == hash_of(ONE)
    assert host.holds_policy()


def test_somebody_who_changes_the_ruleset_while_it_is_loaded_makes_us_load_again() -> None:
    host = running()
    left = [1]

    def once_only() -> None:
        if left:
            left.pop()
            host.kernel.commit(touched=False, pid=9, comm="dockerd")

    host.interfere = once_only
    before = len(host.done)
    assert host.apply(TWO)["changed"] is True
    assert host.names(before).count("Load") == 2


def test_on_a_host_that_is_never_still_what_was_read_twice_alike_counts() -> None:
    host = running()
    host.interfere = lambda: host.kernel.commit(touched=False, pid=9, comm="dockerd")
    host.files = dict(TWO)
    assert host.ask("apply")["changed"] is True
    assert host.holds_policy()


def test_somebody_who_never_stops_is_the_reason_that_is_given() -> None:
    host = running()
    digests = itertools.count()

    def another_rule_each_time() -> None:
        host.kernel.commit(touched=False, pid=9, comm="dockerd")
        host.kernel.tampered = str(next(digests))

    host.interfere = another_rule_each_time
    host.files = dict(TWO)
    number = host.command("apply")
    host.settle()
    assert "somebody else changed the ruleset" in host.refusals[number].message


# --- foreign changes ---


def test_a_foreign_change_is_repaired_at_once_and_its_author_named() -> None:
    host = running()
    host.kernel.flush("fire\x1bwalld", 4711)
    host.settle()
    assert host.holds_policy()
    status = host.status()
    assert status["kernel"]["agrees"] is True
    [text] = [f["text"] for f in status["findings"] if f["code"] == "foreign-change"]
    assert "the table is gone" in text
    assert "pid 4711" in text
    assert "\x1b" not in text
    assert any("repairing" in line for _, line in host.journal)
    host.tick(3601)
    assert "foreign-change" not in codes(host.status())


def test_a_rule_exchanged_for_another_is_seen() -> None:
    host = running()
    host.kernel.tamper()
    host.settle()
    assert host.holds_policy()
    assert "a rule was changed" in host.journal[-2][1]


def test_who_keeps_changing_it_does_not_keep_us_busy() -> None:
    host = running()
    for _ in range(20):
        host.kernel.flush()
        host.settle()
    assert host.kernel.ruleset is None
    assert host.names().count("Load") < 10
    assert host.status()["kernel"]["agrees"] is False
    assert words(host) == {"degraded"}
    host.tick()
    assert host.holds_policy()


def test_a_clock_that_is_set_back_does_not_stop_repairs() -> None:
    host = running()
    for _ in range(20):
        host.kernel.flush()
        host.settle()
    host.now -= timedelta(hours=5)
    host.kernel.flush()
    host.settle().tick()
    assert host.holds_policy()


def test_a_change_without_an_announcement_is_found_by_the_next_tick() -> None:
    host = running()
    host.kernel.flush()
    host.kernel.announcements.clear()
    host.tick()
    assert host.holds_policy()


def test_lost_announcements_make_us_look() -> None:
    host = running()
    before = len(host.done)
    host.feed(events.RulesetChanged(host.now, (), lost=True))
    host.settle()
    assert host.names(before) == ["ReadKernel"]


def test_a_change_to_other_tables_is_not_looked_at() -> None:
    host = running()
    host.settle()
    before = len(host.done)
    host.kernel.commit(touched=False, pid=5, comm="dockerd")
    host.settle().tick()
    assert "ReadKernel" not in host.names(before)


def test_a_change_that_comes_while_we_look_is_looked_at_too() -> None:
    host = running()
    host.kernel.tamper()
    host.announce()
    while host.names()[-1] != "ReadKernel":
        host.step()
    host.kernel.flush("late", 99)  # behind the snapshot that is on its way
    host.announce()
    host.settle()
    assert host.engine.view.alarms[-1][1].endswith("(by 'late', pid 99)") or not host.holds_policy()
    host.tick()
    assert host.holds_policy()


def test_nobody_is_blamed_for_what_he_did_before() -> None:
    host = running()
    host.kernel.commit(touched=True, pid=55, comm="harmless")
    host.settle()
    assert host.status()["kernel"]["agrees"] is True
    del host.kernel.cgroups[slice_of("a")]
    host.tick()
    assert "harmless" not in host.engine.view.alarms[-1][1]


def test_a_slice_that_was_made_again_is_bound_again() -> None:
    host = running()
    old = host.kernel.cgroups.pop(slice_of("a"))
    host.kernel.mkdir(slice_of("a"))
    assert host.kernel.cgroups[slice_of("a")] != old
    host.tick()
    assert host.holds_policy()
    assert "slice was removed or made again" in host.engine.view.alarms[-1][1]


def test_a_look_from_before_an_operation_alarms_nobody() -> None:
    host = running()
    stale = events.Examined(host.now, None, host.kernel.generation, {}, host._ids(["a"]), {"a": ()}, ())
    host.apply(TWO)
    host.feed(stale)
    host.settle()
    assert not host.engine.view.alarms
    assert host.holds_policy()


def test_a_kernel_that_cannot_be_looked_at_is_not_called_enforcing() -> None:
    host = running()
    host.failing = always("Examine", error="netlink is mute")
    host.tick()
    assert host.ask("ready", workload="a") == {
        "ready": False,
        "reason": "the kernel does not agree: netlink is mute",
    }
    host.failing = lambda effect: ""
    host.tick()
    assert words(host) == {"enforcing"}


def test_a_check_that_fails_is_told_once_and_tried_again() -> None:
    host = running()
    host.failing = always("ReadKernel", error="netlink is mute")
    host.kernel.flush()
    host.settle().tick().tick()
    assert [line for line in host.journal if line[1] == "netlink is mute"] == [("error", "netlink is mute")]
    assert "kernel-unknown" in codes(host.status())
    host.failing = lambda effect: ""
    host.tick()
    assert host.holds_policy()


# --- rules that are over ---


def test_a_rule_that_is_over_is_removed() -> None:
    expiring = rules("a", '[{to: 198.51.100.10, ports: [443], expires: "2026-03-01T12:00:30Z"}]')
    host = running({"rules.d/a.yaml": expiring})
    assert host.kernel.sets["out4_a"]
    host.tick(40)
    assert host.kernel.ruleset
    assert not any(s.elements for s in host.kernel.ruleset.sets)
    assert host.journal[-1] == ("info", host.journal[-1][1])
    assert "over" in host.journal[-1][1]
    host.tick()  # what waited meanwhile: metrics
    before = len(host.done)
    host.tick()
    assert host.names(before) == ["Examine", "ScanUnits"]
    assert not host.engine.view.alarms


EXPIRING = {"rules.d/a.yaml": rules("a", '[{to: 198.51.100.10, ports: [443], expires: "2026-03-01T13:00:00Z"}]')}


def timed_anew(host: Host, before: int) -> bool:
    """Whether the kernel's timeouts were set by the clock as it is."""
    return "Load" in host.names(before)


@pytest.mark.parametrize("hours", [-30 * 8766, -1, 1, 30 * 8766])
def test_a_clock_that_jumps_times_rules_anew_and_closes_what_is_over(hours: int) -> None:
    host = running(EXPIRING).tick()
    before = len(host.done)
    host.now += timedelta(hours=hours)
    host.tick()
    assert timed_anew(host, before)
    assert host.holds_policy()
    assert host.kernel.ruleset
    assert any(s.elements for s in host.kernel.ruleset.sets) == (hours < 0)
    assert not host.engine.view.alarms
    before = len(host.done)
    host.tick().tick()
    assert not timed_anew(host, before)


def test_after_a_suspend_a_rule_does_not_outlive_its_end_in_the_kernel() -> None:
    """Its timeout stood still meanwhile, and the agent may die before that is over."""
    host = running(EXPIRING).tick()
    before = len(host.done)
    host.now += timedelta(minutes=30)
    host.feed(events.Ticked(host.now, 1800.0, slept=1798.0))
    host.settle()
    assert timed_anew(host, before)
    assert host.journal[-1] == ("info", "the clock jumped: rules with an end were timed anew")


def test_a_clock_that_runs_as_time_does_times_nothing_anew() -> None:
    """Slow ticks, small corrections, and jumps without a rule that ends."""
    host = running(EXPIRING).tick()
    before = len(host.done)
    host.tick(600)
    host.now += timedelta(seconds=0.3)
    host.tick()
    assert not timed_anew(host, before)
    host = running().tick()
    before = len(host.done)
    host.now += timedelta(hours=9)
    host.tick()
    assert not timed_anew(host, before)


# --- proof and processes ---


def test_without_proof_nothing_is_called_enforcing_and_it_is_tried_again() -> None:
    host = Host(TWO)
    host.failing = always("Prove", error="lo is down")
    host.start().tick().tick()
    assert words(host) == {"degraded"}
    assert "not-proven" in codes(host.status())
    assert host.ask("ready", workload="a")["reason"] == "matching by cgroup is not proven: lo is down"
    assert sum("lo is down" in line for _, line in host.journal) == 1
    host.failing = lambda effect: ""
    host.tick()
    assert words(host) == {"enforcing"}


def test_a_process_that_strays_degrades_its_workload_until_it_ends() -> None:
    host = running(TWO)
    host.processes["a"] = [Seen(9, 100, "ev\x1bil", 0)]
    host.tick()
    host.processes["a"] = []
    host.strays = [Stray(9, 100, "ev\x1bil", "a", "/user.slice")]
    host.tick()
    status = host.status()
    by_name = {w["name"]: w for w in status["workloads"]}
    assert by_name["a"]["egress"] == "degraded"
    assert by_name["a"]["outside"] == 1
    assert by_name["b"]["egress"] == "enforcing"
    [found] = [f for f in status["findings"] if f["code"] == "outside"]
    assert found["workload"] == "a"
    assert "\x1b" not in found["text"]
    host.tick()
    assert words(host) == {"degraded", "enforcing"}, "it is watched on"
    host.strays = []
    host.tick()
    assert words(host) == {"enforcing"}


def test_a_process_of_a_removed_workload_has_not_strayed() -> None:
    host = running(TWO)
    host.processes["b"] = [Seen(9, 100, "x", 0)]
    host.tick()
    host.apply(ONE)
    host.strays = [Stray(9, 100, "x", "b", f"/{slice_of('b')}")]
    host.tick()
    assert "outside" not in codes(host.status())


def test_root_in_a_workload_is_a_finding() -> None:
    host = running()
    host.processes["a"] = [Seen(9, 100, "x", 0)]
    host.tick()
    status = host.status()
    assert "root" in codes(status)
    assert status["workloads"][0]["enrolment"] == "run"
    assert status["workloads"][0]["processes"] == 1


# --- questions ---


def test_status_has_exactly_the_published_keys() -> None:
    host = running(TWO)
    host.kernel.flush()
    host.settle()
    status = host.status()
    assert status.keys() == set(KEYS[""].split())
    for part in ("daemon", "policy", "kernel"):
        assert status[part].keys() == set(KEYS[part].split())
    for part in ("workloads", "findings"):
        assert status[part]
        for item in status[part]:
            assert item.keys() == set(KEYS[part].split())


def test_a_status_that_cannot_be_had_is_refused() -> None:
    host = running()
    host.failing = always("Examine", error="netlink is mute")
    number = host.command("status")
    host.settle()
    assert host.refusals[number].message == "netlink is mute"


def test_a_status_is_given_although_the_check_that_it_brings_fails() -> None:
    host = running()
    host.kernel.tamper()
    host.kernel.announcements.clear()
    host.failing = always("ReadKernel")
    number = host.command("status")
    host.settle()
    assert number in host.answers


def test_ready() -> None:
    host = running()
    assert host.ask("ready", workload="a") == {"ready": True, "reason": ""}
    assert host.ask("ready", workload="z")["reason"] == "the applied policy has no such workload"
    del host.kernel.cgroups[slice_of("a")]
    host.failing = always("Compile", "MakeCgroups")
    host.tick()
    assert host.ask("ready", workload="a")["ready"] is False
    fresh = Host()
    assert fresh.ask("ready", workload="a")["reason"] == "no policy is in force yet"


def test_hits_by_rule() -> None:
    host = running(TWO)
    assert host.engine.in_force
    [rule] = host.engine.in_force.policy.workloads["a"].egress
    assert host.ask("hits", workload="a") == {"rules": {rule.id: 3}, "names": {}}
    number = host.command("hits", workload="z")
    host.settle()
    assert "no such workload" in host.refusals[number].message


def test_hits_of_a_workload_that_goes_meanwhile_are_refused() -> None:
    host = running(TWO)
    number = host.command("hits", workload="b")
    while host.names()[-1] != "CountHits":
        host.step()
    assert host.engine.in_force
    workloads = host.engine.in_force.policy.workloads
    assert isinstance(workloads, dict)
    del workloads["b"]
    host.settle()
    assert "changed" in host.refusals[number].message


def test_a_count_that_fails_is_refused_and_forgotten() -> None:
    host = running()
    host.failing = always("CountHits", error="no")
    number = host.command("hits", workload="a")
    host.settle()
    assert host.refusals[number].message == "no"
    assert host.engine._commands._asked == {}


def test_holds_asks_the_kernel() -> None:
    host = running()
    ask = {"workload": "a", "direction": "out", "address": "198.51.100.10", "protocol": "tcp", "port": 443}
    ask["here"] = 0
    assert host.ask("holds", **ask) == {"holds": True, "learned": False}
    assert host.ask("holds", **{**ask, "port": 80}) == {"holds": False, "learned": False}
    assert host.ask("holds", **{**ask, "workload": "z"}) == {"holds": None, "learned": None}
    for key, value in (("address", "x"), ("direction", "up"), ("protocol", "sctp"), ("port", 70000)):
        number = host.command("holds", **{**ask, key: value})
        host.settle()
        assert number in host.refusals, key


# --- denied packets ---


def test_denied_packets_are_recorded_once_and_folded(packet: Denied) -> None:
    host = running()
    host.feed(events.PacketsDenied(host.now, (packet, packet, packet)))
    host.settle()
    assert len(host.blocks) == 1
    assert host.blocks[0].policy == hash_of(ONE)
    host.tick(3)
    assert [b.id for b in host.blocks] == [host.blocks[0].id] * 2
    assert host.blocks[-1].count == 3


def test_the_process_is_named_when_only_one_can_have_sent_it(packet: Denied) -> None:
    host = running()
    seen = {"a": (Seen(9, 100, "llama", 0), Seen(10, 100, "other", 1000))}
    host.feed(events.PacketsDenied(host.now, (packet,), processes=seen))
    host.settle()
    assert (host.blocks[0].process.pid, host.blocks[0].process.comm) == (9, "llama")


def test_packets_of_an_unknown_workload_or_before_any_policy_are_recorded(packet: Denied) -> None:
    host = Host()
    host.feed(events.PacketsDenied(host.now, (packet,)))
    host.settle()
    assert host.blocks[0].policy is None


def test_what_the_kernel_counted_and_nobody_logged_is_told_and_saved() -> None:
    host = running()
    host.kernel.counters["denied_out_a"] = 7
    host.tick().tick(3).tick(3)
    assert sum(b.unlogged for b in {b.id: b for b in host.blocks}.values()) == 7
    assert host.status()["workloads"][0]["unlogged"] == 7
    assert host.status()["workloads"][0]["denied"] == 7
    assert host.status()["workloads"][0]["blocks_1h"] == 7
    assert host.books is not None
    again = Host(saved=host.state, books=host.books)
    again.kernel = host.kernel
    again.now = host.now
    again.start().tick().tick(3)
    assert again.blocks == [], "told before the restart"


def test_a_look_up_that_was_refused_counts_in_the_last_hour() -> None:
    host = running()
    client = (ip_address("192.0.2.1"), 4000)
    host.feed(events.FromResolver(host.now, (Refused(1, "a", "x.example", "A", "name", "udp", client, 3),), {}))
    assert (host.settle().status()["workloads"][0]["blocks_1h"], host.blocks[0].count) == (3, 3)


def test_lost_records_are_a_finding() -> None:
    host = running()
    host.feed(events.PacketsDenied(host.now, (), lost=3, malformed=2))
    host.settle()
    assert "log-loss" in codes(host.status())
    assert host.engine.view.malformed == 2


def test_a_log_that_cannot_be_written_is_a_finding_until_it_works_again(packet: Denied) -> None:
    host = running()
    host.failing = always("Record", error="disk full")
    for _ in range(3):
        host.feed(events.PacketsDenied(host.now, (packet,)))
        host.settle().tick(61)
    assert "log-unwritable" in codes(host.status())
    assert host.journal.count(("error", "disk full")) == 1
    assert words(host) == {"enforcing"}, "a full disk opens and closes nothing"
    host.failing = lambda effect: ""
    host.feed(events.PacketsDenied(host.now, (packet,)))
    host.settle()
    assert "log-unwritable" not in codes(host.status())


def test_the_end_gives_out_what_is_left_and_leaves_the_kernel_alone(packet: Denied) -> None:
    host = running()
    host.feed(events.PacketsDenied(host.now, (packet, packet)))
    host.settle()
    generation = host.kernel.generation
    host.feed(events.Stopping(host.now))
    host.settle()
    assert host.blocks[-1].count == 2
    assert host.kernel.generation == generation
    assert host.holds_policy()


# --- any order, any failure ---

FAILABLE = [
    *STEPS,
    *["CommitState", "ReadConfig", "Prove", "Examine", "AskKernel", "CountHits", "Record", "SaveBooks", "Journal"],
    *["ReadHistory", "MarkTrial", "EndTrial", "ScanUnits", "KeepFloor", "Notify"],
]
UNITS = {**TWO, "rules.d/c.yaml": rules("c") + b"match: [{unit: c.service}, {unit: 'c@*.service'}]\n"}
CHOICES = [ONE, TWO, THREE, UNITS, BROKEN]
PLACES = ["system.slice/c.service", "system.slice/system-c.slice/c@1.service", "ai.slice/other.service"]


def turn(host: Host, choose: random.Random) -> None:
    """One thing that happens to the host."""
    match choose.randrange(12):
        case 0 | 1:
            host.files = dict(choose.choice(CHOICES))
            host.command("apply", confirm=choose.choice([0, 0, 5]))
        case 9:
            host.command("confirm")
            host.command("rollback", to="")
        case 10 | 11:
            turn_units(host, choose)
        case 2:
            host.kernel.flush()
        case 3:
            host.kernel.tamper()
        case 4:
            name = choose.choice([SLICE, slice_of("a"), slice_of("b")])
            if host.kernel.cgroups.pop(name, None) and choose.random() < 0.5:
                host.kernel.mkdir(name)
        case 5:
            host.now += timedelta(seconds=choose.choice([-30, 0.1, 2]))
            host.feed(events.Ticked(host.now, 2.0))
        case 6:
            host.command("status")
            host.command("hits", workload="a")
        case 7:
            host.kernel.counters["denied_out_a"] = host.kernel.counters.get("denied_out_a", 0) + 5
        case _:
            host.kernel.commit(touched=False, pid=5, comm="dockerd")
    for _ in range(choose.randrange(12)):
        host.step()
        agrees_means_agrees(host)


def turn_units(host: Host, choose: random.Random) -> None:
    """A unit is started, started again or stopped, and the daemon hears of it or not."""
    path = choose.choice(PLACES)
    (host.unit if choose.random() < 0.7 else host.stop_unit)(path)
    if choose.random() < 0.8:
        host.watch_later()


def agrees_means_agrees(host: Host) -> None:
    """Nobody has touched the table since it was read, and no operation is under way: then `agrees` is true."""
    engine = host.engine
    settled = not host._tasks and not host._events and not host.kernel.announcements
    if settled and engine._operations.current is None and engine.view.agrees and engine.in_force:
        in_step = host.kernel.generation == engine._keeper._generation
        found = host._ids(list(engine.in_force.policy.workloads), engine.in_force.places)
        bound = dict(engine.in_force.cgroups) == found
        assert not (in_step and bound) or host.holds_policy()


def any_sequence(seed: int) -> None:
    choose = random.Random(seed)
    broken: set[str] = set()
    host = Host(ONE, seed=seed)
    host.kernel.recognised = choose.random() < 0.5
    host.failing = lambda effect: "it broke" if type(effect).__name__ in broken and choose.random() < 0.7 else ""
    host.start()
    for _ in range(25):
        broken = set(choose.sample(FAILABLE, choose.randrange(4)))
        turn(host, choose)
    broken = set()
    host.settle()
    for _ in range(8):
        host.tick()
    assert host.quit is None
    assert host.engine._operations.trial is None
    assert host.unanswered == []
    assert host.engine.in_force
    assert host.engine.view.agrees is True
    assert host.engine.view.proven
    assert host.holds_policy()
    wanted = {p for p in PLACES[:2] if p in host.kernel.cgroups and "c" in host.engine.in_force.policy.workloads}
    matched = wanted if host.engine.in_force.policy.hash == hash_of(UNITS) else set()
    assert host.engine.in_force.places.keys() == matched
    assert host.state
    if not host.engine.view.troubles.get("CommitState"):
        assert state.decode(host.state).hash == host.engine.in_force.policy.hash
    host.files = dict(TWO)
    answer = host.ask("apply", confirm=0)
    assert answer["hash"] == hash_of(TWO)
    assert host.holds_policy()
    assert state.decode(host.state).hash == hash_of(TWO)
    assert words(host) == {"enforcing"}
    # A log that could not be written is known to work when there is something to write.
    assert set(codes(host.status())) <= {"foreign-change", "log-unwritable", "trouble"}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_after_any_sequence_all_are_answered_and_the_kernel_holds_what_is_in_force(seed: int) -> None:
    any_sequence(seed)
