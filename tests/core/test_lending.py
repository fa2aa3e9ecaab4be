"""Grants in the engine: made, listed, over, revoked, kept through deaths, boots and clocks that are set."""

from __future__ import annotations

import random
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from fake_host import ONE, TWO, Host, always, applied, once, rules

from penstock.core import events, grants
from penstock.core.log_prefix import Kind, Refusal
from penstock.core.packets import Denied
from penstock.core.policy import Direction, Mode
from penstock.core.slices import SLICE

NETWORK = {"penstock.yaml": b"version: 1\nnetworks:\n  clients: {cidr: 10.30.0.0/16}\n"}
HOUR = 3600.0


def ask(host: Host, peer: str = "203.0.113.9", **changes: Any) -> int:
    said = {
        "workload": "a",
        "direction": "out",
        "peer": peer,
        "ports": "443",
        "seconds": 3600,
        "until": 0,
        "reason": "to see",
        "wide": 0,
        "user": "",
    }
    return host.command("grant", **(said | changes))


def grant(host: Host, peer: str = "203.0.113.9", **changes: Any) -> Any:
    number = ask(host, peer, **changes)
    host.settle()
    assert number not in host.refusals, host.refusals[number]
    return host.answers[number]["grant"]


def started(files: Any = ONE, **more: Any) -> Host:
    host = Host(files, **more).start()
    assert host.engine.in_force
    return host


def held(host: Host) -> int:
    """Elements that the kernel has for what is lent."""
    return sum(len(elements) for elements in host.kernel.snapshot(host.now).sets.values()) - 1


def listed(host: Host) -> list[str]:
    return [one["id"] for one in host.ask("grants")["grants"]]


def told(host: Host) -> list[str]:
    return [record["event"] for record in host.accounts]


# --- made ---


def test_it_is_on_disk_before_it_is_in_the_kernel_and_answered_when_that_was_read_back() -> None:
    host = started()
    before = len(host.done)
    made = grant(host)
    names = host.names(before)
    assert names[0] == "SaveGrants"
    assert names.index("SaveGrants") < names.index("Load") < names.index("ReadKernel") < names.index("Answer")
    assert held(host) == 1
    assert host.holds_policy()
    assert made["id"] in {one.id for one in grants.decode(host.grants or b"").grants}
    assert listed(host) == [made["id"]]
    assert host.status()["grants"] == [made]
    assert {k: made[k] for k in ("workload", "direction", "peer", "port", "protocol", "owner", "reason")} == {
        "workload": "a", "direction": "out", "peer": "203.0.113.9", "port": 443, "protocol": "tcp",
        "owner": "anna", "reason": "to see",
    }  # fmt: skip


def test_it_is_told_and_written_down() -> None:
    host = started()
    made = grant(host)
    (record,) = host.accounts
    assert record == {"v": 1, "time": "2026-03-01T12:00:00Z", "event": "made", "by": None, "why": None, **made}
    text = f"{made['id']} made: a, 203.0.113.9:443, until 2026-03-01T13:00:01Z, anna: to see"
    assert ("warning", text) in host.journal


def test_the_policy_the_floor_and_the_saved_state_know_nothing_of_it() -> None:
    host = started()
    before = (host.state, host.floor, host.status()["policy"]["hash"])
    grant(host)
    assert (host.state, host.floor, host.status()["policy"]["hash"]) == before
    host.apply(TWO)
    assert host.floored
    assert sum(len(s.elements) for s in host.floored.sets) == 2
    assert held(host) == 2  # the other one is of the policy


def test_a_word_that_makes_no_grant_changes_nothing() -> None:
    host = started()
    before = len(host.done)
    number = ask(host, "198.51.100.10")
    host.settle()
    assert "allowed already" in host.refusals[number].message
    assert host.names(before) == ["Refuse"]


@pytest.mark.parametrize("effect", ["SaveGrants", "Compile", "Load", "BindCgroups", "ReadKernel"])
def test_one_that_fails_is_refused_and_is_not_lent(effect: str) -> None:
    host = started()
    host.failing = once(effect)
    number = ask(host)
    host.settle()
    assert "it broke" in host.refusals[number].message
    assert listed(host) == []
    assert grants.decode(host.grants or b"").grants == ()
    host.tick()
    assert held(host) == 0
    assert host.holds_policy()
    assert told(host) == []


def test_while_another_operation_is_under_way_it_waits() -> None:
    host = started()
    host.files = dict(TWO)
    applying, asking = host.command("apply"), ask(host, "198.51.100.11", workload="b", ports="80")
    host.settle()
    assert host.answers[applying]["changed"] is True
    assert host.answers[asking]["grant"]["workload"] == "b"


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_all_are_answered_and_the_kernel_holds_what_is_listed(seed: int) -> None:
    host = Host(ONE, seed=seed).start()
    for n in range(6):
        ask(host, f"203.0.113.{n}", seconds=4)
        if n % 3 == 0:
            host.command("apply")
        if n % 2:
            host.kernel.flush()
    host.settle()
    assert host.unanswered == []
    assert len(listed(host)) == 6
    host.tick(2)
    assert held(host) == 6
    host.tick(6)
    host.tick()
    assert (held(host), listed(host), host.unanswered) == (0, [], [])


# --- over ---


def test_it_is_over_by_itself() -> None:
    host = started()
    made = grant(host, seconds=10)
    host.tick(9)
    assert (held(host), listed(host)) == (1, [made["id"]])
    host.now += timedelta(seconds=2.5)
    assert (held(host), listed(host), host.status()["grants"]) == (0, [], [])  # before anybody does anything
    host.tick()
    assert told(host) == ["made", "ended"]
    assert grants.decode(host.grants or b"").grants == ()
    assert host.engine.in_force
    assert host.engine.in_force.policy is host.engine.in_force.base
    assert host.holds_policy()


def test_what_is_lent_by_name_is_over_too() -> None:
    host = started()
    grant(host, "files.example.org", ports="", seconds=10)

    def by_name() -> tuple[str, ...]:
        assert host.engine.in_force
        return host.engine.in_force.ruleset.by_name

    assert by_name() == ("a",)
    host.tick(12)
    assert by_name() == ()


def test_a_block_after_it_says_so() -> None:
    host = started()
    grant(host, seconds=10)
    host.tick(12)
    assert host.engine.in_force
    policy = host.engine._lending.explaining(host.engine.in_force.policy)
    (own, over) = policy.workloads["a"].egress
    assert (own.id.startswith("egress-"), over.expires is not None and over.expires <= host.now) == (True, True)


# --- revoked ---


def test_revoked_it_is_off_the_disk_and_then_out_of_the_kernel() -> None:
    host = started()
    made, other = grant(host), grant(host, "203.0.113.10")
    host.login = "bob"
    before = len(host.done)
    assert host.ask("revoke", id=made["id"], user="") == {"grant": made}
    names = host.names(before)
    assert names.index("SaveGrants") < names.index("Load") < names.index("Answer")
    assert (held(host), listed(host)) == (1, [other["id"]])
    assert (told(host), host.accounts[-1]["by"]) == (["made", "made", "revoked"], "bob")
    assert host.journal[-1][1].endswith("anna: to see (by bob)")


def test_by_the_beginning_of_its_id_if_that_is_one() -> None:
    host = started()
    made, other = grant(host), grant(host, "203.0.113.10")
    for word, message in (
        ("grant-", "no grant `grant-` is live"),
        ("", "no grant `` is live"),
        ("zzzz\x1b", "no grant `zzzz\\x1b` is live"),
    ):
        number = host.command("revoke", id=word, user="")
        host.settle()
        assert host.refusals[number].message == message
    shortest = next(n for n in range(1, 9) if made["id"][6 : 6 + n] != other["id"][6 : 6 + n])
    assert host.ask("revoke", id=made["id"][6 : 6 + shortest], user="")["grant"] == made


def test_two_with_that_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    host = started()
    names = iter(("grant-0000000a", "grant-0000000b"))
    monkeypatch.setattr(host.engine._lending, "_name", lambda now: next(names))
    grant(host), grant(host, "203.0.113.10")
    number = host.command("revoke", id="0000", user="")
    host.settle()
    assert host.refusals[number].message == "`0000` is the beginning of 2 ids"
    assert host.ask("revoke", id="0000000b", user="")["grant"]["id"] == "grant-0000000b"


def test_a_revoke_that_fails_is_said_and_it_stays_lent() -> None:
    host = started()
    made = grant(host)
    host.failing = always("Load")
    number = host.command("revoke", id=made["id"], user="")
    host.settle()
    assert host.refusals[number].message == "it broke"
    host.failing = always()
    host.tick()
    assert (held(host), listed(host)) == (1, [made["id"]])
    assert [one.id for one in grants.decode(host.grants or b"").grants] == [made["id"]]


# --- other policies ---


def test_it_stays_through_apply_and_rollback() -> None:
    host = started()
    made = grant(host)
    host.apply(TWO)
    assert (held(host), listed(host)) == (2, [made["id"]])
    host.ask("rollback", to="")
    assert (held(host), listed(host)) == (1, [made["id"]])


@pytest.mark.parametrize(("peer", "files"), [("203.0.113.9", {"rules.d/b.yaml": rules("b")}), ("clients", ONE)])
def test_what_it_is_about_goes_and_it_is_dropped(peer: str, files: Any) -> None:
    host = started({**ONE, **NETWORK})
    grant(host, peer)
    host.apply(files)
    assert listed(host) == []
    assert told(host) == ["made", "dropped"]
    assert "the policy has no " in str(host.accounts[-1]["why"])
    assert host.holds_policy()


def test_on_trial_nothing_is_dropped_until_it_is_confirmed() -> None:
    host = started({**ONE, **NETWORK})
    made = grant(host, "clients")
    host.apply({"rules.d/b.yaml": rules("b")}, confirm=60)
    assert host.holds_policy()
    assert (listed(host), told(host)) == ([made["id"]], ["made"])
    host.ask("rollback", to="")
    assert (held(host), host.holds_policy()) == (1, True)
    assert host.engine.in_force
    assert len(host.engine.in_force.base.workloads["a"].rules) == 1
    host.apply({"rules.d/b.yaml": rules("b")}, confirm=60)
    host.ask("confirm")
    assert (listed(host), told(host)) == ([], ["made", "dropped"])


def test_while_a_policy_waits_to_be_confirmed_something_can_be_lent() -> None:
    host = started()
    host.apply(TWO, confirm=600)
    made = grant(host)
    assert host.status()["policy"]["confirm_until"] is not None
    host.ask("rollback", to="")
    assert (held(host), listed(host)) == (1, [made["id"]])


def test_a_mode_that_denies_everything_keeps_the_list() -> None:
    host = started()
    grant(host)
    host.apply({"rules.d/a.yaml": rules("a", mode="lock")})
    assert host.engine.in_force
    assert host.engine.in_force.policy.workloads["a"].mode is Mode.LOCK
    assert len(listed(host)) == 1


# --- deaths ---


def test_a_daemon_that_starts_puts_the_rest_in_force() -> None:
    host = started()
    made = grant(host)
    host.restart(away=600)
    assert listed(host) == [made["id"]]
    assert (held(host), host.holds_policy()) == (1, True)
    assert host.ask("grants")["grants"] == [made]
    host.restart(away=3600)
    assert (listed(host), held(host), told(host)) == ([], 0, ["made", "ended"])


@pytest.mark.parametrize("stop", ["SaveGrants", "Compile", "Load", "ReadKernel"])
def test_killed_in_between_it_is_listed_exactly_if_it_is_in_force(stop: str) -> None:
    host = started()
    ask(host)
    while host.names()[-1] != stop:
        assert host.step()
    host.restart()
    assert len(listed(host)) == held(host) == 1
    revoke = listed(host)[0]
    host.command("revoke", id=revoke, user="")
    before = len(host.done)
    while stop not in host.names(before):
        assert host.step()
    host.restart()
    assert (listed(host), held(host)) == ([], 0)


def test_a_file_that_is_damaged_lends_nothing_and_is_said() -> None:
    host = Host(ONE, saved=applied(ONE, {"a": 3}))
    host.grants = b"{"
    host.start()
    assert ("error", "what was saved of grants is damaged: nothing is lent any more") in host.journal
    assert (listed(host), held(host)) == ([], 0)
    assert grants.decode(host.grants).grants == ()


def test_a_disk_that_is_full_is_said_and_tried_again() -> None:
    host = started()
    grant(host, seconds=10)
    host.failing = always("KeepGrants", error="no space")
    host.tick(12)
    assert "state-unwritable" in {finding["code"] for finding in host.status()["findings"]}
    host.failing = always()
    host.tick()
    assert grants.decode(host.grants or b"").grants == ()
    assert "state-unwritable" not in {finding["code"] for finding in host.status()["findings"]}


# --- clocks ---


def test_a_clock_that_is_set_back_does_not_make_it_longer() -> None:
    host = started()
    made = grant(host, seconds=600)
    host.set_clock(-HOUR)
    host.tick()
    (now,) = host.ask("grants")["grants"]
    assert (made["until"], now["until"]) == ("2026-03-01T12:10:01Z", "2026-03-01T11:10:01Z")
    assert host.engine.in_force
    (end,) = (end for s in host.engine.in_force.ruleset.sets for end in s.expires.values())
    assert timedelta(seconds=590) < end - host.now < timedelta(seconds=600)
    host.tick(600)
    assert (listed(host), held(host), told(host)) == ([], 0, ["made", "ended"])


def test_nor_with_the_daemon_dead() -> None:
    host = started()
    grant(host, seconds=600)
    host.set_clock(-HOUR)
    host.restart(away=300)
    assert host.ask("grants")["grants"][0]["until"] == "2026-03-01T11:10:01Z"
    host.restart(away=400)
    assert listed(host) == []


def test_a_clock_that_is_set_forward_ends_it() -> None:
    host = started()
    grant(host, seconds=600)
    host.set_clock(500)
    host.tick()
    assert len(listed(host)) == 1
    host.set_clock(100)
    host.tick()
    assert (listed(host), held(host)) == ([], 0)
    host.set_clock(-HOUR)
    host.tick()
    assert (listed(host), held(host)) == ([], 0)


def test_forward_and_back_again_it_is_no_longer_than_it_was() -> None:
    host = started()
    grant(host, seconds=600)
    host.set_clock(300)
    host.tick()
    host.set_clock(-300)
    host.tick()
    assert host.ask("grants")["grants"][0]["until"] == "2026-03-01T12:10:01Z"


def test_lent_just_after_the_clock_was_set_it_is_as_long_as_was_said() -> None:
    host = started()
    host.tick()
    host.set_clock(-HOUR)
    made = grant(host, seconds=600)
    host.tick()
    assert host.ask("grants")["grants"] == [made]
    host.tick(590)
    assert len(listed(host)) == 1


def test_a_boot_leaves_the_rest_by_the_clock() -> None:
    host = started()
    made = grant(host, seconds=3600)
    host.restart(boot=True, away=1200)
    assert host.ask("grants")["grants"] == [made]
    host.tick(2395)
    assert len(listed(host)) == held(host) == 1
    host.tick(10)
    assert (listed(host), held(host)) == ([], 0)


def test_a_boot_behind_its_end_leaves_nothing() -> None:
    host = started()
    grant(host, seconds=3600)
    host.restart(boot=True, away=3700)
    assert (listed(host), held(host), told(host)) == ([], 0, ["made", "ended"])


def test_a_boot_with_a_clock_before_the_grant_drops_it() -> None:
    host = started()
    grant(host, seconds=3600)
    host.set_clock(-7200)
    host.restart(boot=True, away=60)
    assert (listed(host), held(host), told(host)) == ([], 0, ["made", "dropped"])
    assert host.accounts[-1]["why"] == "the clock is behind the time at which it was lent"


def test_set_back_less_than_that_it_is_seen_too() -> None:
    host = started()
    grant(host, seconds=3600)
    for _ in range(60):  # the newest time is saved again and again
        host.tick(20)
    host.set_clock(-300)
    host.restart(boot=True, away=200)
    assert (listed(host), held(host), told(host)) == ([], 0, ["made", "dropped"])


def test_nothing_of_penstock_is_left_of_it() -> None:
    host = started()
    made = grant(host)
    host.ask("revoke", id=made["id"], user="")
    assert host.holds_policy()
    assert set(host.kernel.cgroups) == {SLICE, f"{SLICE}/penstock-a.slice"}


def test_after_a_sleep_what_is_overdue_is_out_of_the_kernel_at_once() -> None:
    """The kernel's timeouts stood still, the clock went on, and so did the time since boot."""
    host = started()
    over, left = grant(host, seconds=600), grant(host, "203.0.113.10", seconds=7200)
    before = len(host.done)
    host.now += timedelta(hours=1)
    host.feed(events.Ticked(host.now, HOUR + 1, HOUR, host.uptime))
    host.settle()
    assert "Load" in host.names(before)
    assert host.engine.in_force
    ends = [end for s in host.engine.in_force.ruleset.sets for end in s.expires.values()]
    assert len(ends) == 1
    assert listed(host) == [left["id"]]
    assert [record["id"] for record in host.accounts if record["event"] == "ended"] == [over["id"]]


def test_small_steps_of_the_clock_add_up() -> None:
    host = started()
    grant(host, seconds=600)
    host.tick()
    before = len(host.done)
    for step in (0.3, 0.3):
        host.set_clock(step)
        host.feed(events.Ticked(host.now, 0.002, uptime=host.uptime))
        host.settle()
    assert host.names(before).count("Load") == 1
    assert host.holds_policy()


@pytest.mark.parametrize("remote", ["203.0.113.9", "2001:db8::9"])
def test_what_is_denied_behind_it_names_it(remote: str) -> None:
    host = started()
    made = grant(host, remote, seconds=10)
    address = ip_address(remote)
    packet = Denied(
        *("a", Direction.OUT, Refusal.DENY, Mode.ENFORCE, Kind.RULES, address.version, "tcp", address, 443),
        *(ip_address("192.0.2.1" if address.version == 4 else "2001:db8::1"), 40000, 0),
    )
    host.tick(12)
    host.feed(events.PacketsDenied(host.now, (packet,)))
    host.settle()
    (block,) = host.blocks
    assert (block.reason, block.nearest) == ("expired", made["id"])
    assert block.text.startswith(f"the rule that allowed it has expired; nearest is {made['id']} (")
    assert block.text.endswith(f", until {made['until']}, anna: to see")
    assert str(block.allow).startswith("penstock grant a ")


def test_what_was_over_while_another_failed_is_over_once() -> None:
    host = started()
    over = grant(host, seconds=10)
    host.failing = once("ReadKernel")
    number = ask(host, "203.0.113.10")
    while host.names()[-1] != "Load":
        assert host.step()
    host.now += timedelta(seconds=12)
    host.feed(events.Ticked(host.now, 12, uptime=host.uptime))
    host.settle()
    assert number in host.refusals
    host.tick().tick()
    assert {record["id"] for record in host.accounts} == {over["id"]}
    assert told(host) == ["made", "ended"]
    assert (listed(host), held(host)) == ([], 0)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_done_to_clocks_and_daemons_nothing_lasts_longer_than_it_was_lent_for(seed: int) -> None:
    chance = random.Random(seed)
    host = started()
    real = 0.0  # seconds that went by, whatever clocks say
    ends: dict[str, float] = {}

    def passes(seconds: float) -> None:
        nonlocal real
        real += seconds
        host.tick(seconds)

    for n in range(60):
        match chance.choice(["grant", "grant", "revoke", "tick", "tick", "set", "kill", "boot", "apply"]):
            case "grant":
                seconds = chance.choice([5, 60, 600, 3600])
                ends[grant(host, f"203.0.113.{n}", seconds=seconds)["id"]] = real + seconds + 1
            case "revoke" if listed(host):
                host.ask("revoke", id=chance.choice(listed(host)), user="")
            case "tick":
                passes(chance.choice([2.0, 30.0, 400.0]))
            case "set":
                host.set_clock(chance.choice([-86_400, -600, -3, 3, 600]))
                passes(2.0)
            case "apply":
                host.apply({**ONE, "rules.d/z.yaml": rules("z", mode=chance.choice(["enforce", "observe"]))})
            case kind:
                away = chance.choice([1.0, 90.0, 1000.0])
                real += away
                if chance.random() < 0.5:  # by nobody's leave; less than it was off, and nobody could tell
                    host.set_clock(chance.choice([-86_400, 600]))
                host.restart(boot=kind == "boot", away=away)
        passes(2.0)
        late = [id for id in listed(host) if real > ends[id] + 1]
        assert not late, f"{late} at step {n}"
        assert held(host) == len(listed(host))
        assert host.status()["kernel"]["agrees"] is True
