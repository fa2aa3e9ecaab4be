"""What the resolver says, and what comes of it in the kernel: the engine on a host without one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from fake_host import Host, always, once, rules

from penstock.core import effects, events, naming
from penstock.core.blocks import Block, Process
from penstock.core.keeper import PATIENCE
from penstock.core.log_prefix import Kind, Refusal
from penstock.core.lookup_chains import LISTENING
from penstock.core.name_elements import Opened
from penstock.core.packets import Denied
from penstock.core.policy import Direction, Mode, Upstream
from penstock.core.resolver_wire import Learn, Observed, Refused, Trouble
from penstock.core.text import time_text

HUB, CDN, DB = "hub.example", "cdn.hub.example", "db.example"
NAMES = "[{to: [hub.example, '*.hub.example']}, {to: db.example, ports: [5432], private: true}]"
FILES = {"rules.d/a.yaml": rules("a", NAMES), "rules.d/b.yaml": rules("b", "[{to: hub.example}]")}
SERVER, OTHER = Upstream(ip_address("192.0.2.53")), Upstream(ip_address("2001:db8::53"))
FOUR, SIX, NEAR = "203.0.113.5", "2001:db8:5::5", "10.0.0.7"
Files = Mapping[str, bytes]


def running(files: Files = FILES, servers: tuple[Upstream, ...] = (SERVER,)) -> Host:
    host = Host(files)
    host.feed(events.UpstreamsRead(host.now, servers, ("corp.example",)))
    host.start()
    assert host.quit is None
    host.feed(events.ResolverChanged(host.now, True))
    return host.settle()


def say(host: Host, *messages: Any, askers: Mapping[int, Process] | None = None) -> Host:
    host.feed(events.FromResolver(host.now, messages, askers or {}))
    return host.settle()


def learn(
    host: Host, name: str, *addresses: str, workload: str = "a", ttl: int = 60, id: int = 1, generation: int = 0
) -> bool:
    """Whether the answer may be given."""
    number = generation or (host.configured.generation if host.configured else 0)
    found = tuple((ip_address(address), ttl) for address in addresses)
    host.settled.pop(id, None)
    say(host, Learn(id, number, workload, name, found))
    return host.settled[id]


def held(host: Host, workload: str = "a") -> set[tuple[str, str]]:
    """(name, address) of all that the kernel lets the workload out to by name."""
    return {
        (name, str(ip_address(address)))
        for set_name, elements in host.kernel.learned.items()
        if set_name.startswith((f"names4_{workload}_", f"names6_{workload}_"))
        for address, name in elements.items()
    }


def findings(host: Host) -> set[str]:
    return {found["code"] for found in host.status()["findings"]}


def test_learned_before_the_answer_and_for_nobody_else() -> None:
    host = running()
    assert learn(host, HUB, FOUR, SIX)
    assert held(host) == {(HUB, FOUR), (HUB, SIX)}
    assert held(host, "b") == set()
    order = [type(e) for e in host.done if isinstance(e, effects.Learn | effects.Settle)]
    assert order == [effects.Learn, effects.Settle]


def test_timeouts() -> None:
    host = running()
    learn(host, HUB, FOUR, ttl=30)
    learn(host, CDN, FOUR, ttl=3000)
    opened = [e.opened[0] for e in host.done if isinstance(e, effects.Learn)]
    assert [round(one.seconds) for one in opened] == [720, 3120]


@pytest.mark.parametrize(
    ("name", "address", "workload", "why"),
    [
        ("stranger.example", FOUR, "a", "no rule has it"),
        ("hub.example.evil.example", FOUR, "a", "no rule has it"),
        (CDN, FOUR, "b", "no rule of this workload has it"),
        (HUB, NEAR, "a", "private"),
        (HUB, "127.0.0.1", "a", "loopback"),
        (HUB, "169.254.169.254", "a", "metadata"),
        (DB, "169.254.169.254", "a", "metadata, though the rule takes private ones"),
        (DB, "fe80::1", "a", "link-local"),
        (HUB, "64:ff9b::a00:1", "a", "private, behind a translator"),
        (HUB, FOUR, "c", "there is no such workload"),
        ('x" } } ; # .hub.example', FOUR, "a", "it is no name"),
        ("..hub.example", FOUR, "a", "it is no name"),
        ("X.hub.example", FOUR, "a", "it is no name as it is asked"),
    ],
)
def test_what_the_resolver_cannot_make_us_learn(name: str, address: str, workload: str, why: str) -> None:
    host = running()
    assert not learn(host, name, address, workload=workload), why
    assert not any(host.kernel.learned.values())


def test_one_bad_address_spoils_the_answer() -> None:
    host = running()
    assert not learn(host, HUB, FOUR, NEAR)
    assert held(host) == set()


def test_private_where_the_rule_says_so() -> None:
    host = running()
    assert learn(host, DB, NEAR)
    assert held(host) == {(DB, NEAR)}


def test_an_answer_for_a_policy_that_is_over() -> None:
    host = running()
    assert host.configured
    before = host.configured.generation
    host.apply({**FILES, "rules.d/b.yaml": rules("b", "[{to: other.example}]")})
    assert not learn(host, HUB, FOUR, generation=before)
    assert learn(host, HUB, FOUR)


def test_the_kernel_does_not_take_it() -> None:
    host = running()
    host.failing = always("Learn", error="no room")
    assert not learn(host, HUB, FOUR)
    assert ("error", "no room") in host.journal


def test_a_rule_that_goes_takes_its_addresses_and_no_others() -> None:
    host = running()
    for name, address in ((HUB, FOUR), (CDN, SIX), (DB, NEAR)):
        assert learn(host, name, address)
    learn(host, HUB, FOUR, workload="b")
    host.apply({**FILES, "rules.d/a.yaml": rules("a", "[{to: hub.example}, {to: db.example, ports: [5432]}]")})
    # db.example lost `private`, and with it the address; *.hub.example went.
    assert held(host) == {(HUB, FOUR)}
    assert held(host, "b") == {(HUB, FOUR)}
    host.apply({"rules.d/a.yaml": rules("a")})
    assert not any(host.kernel.learned.values())


def denied(host: Host, address: str, port: int = 443) -> Block:
    """The block of a packet of `a` to there."""
    how = (Direction.OUT, Refusal.DENY, Mode.ENFORCE, Kind.RULES, 4, "tcp")
    packet = Denied("a", *how, ip_address(address), port, ip_address("192.0.2.1"), 40000, 0)
    host.feed(events.PacketsDenied(host.now, (packet,)))
    host.settle()
    return host.blocks[-1]


def test_of_a_name_whose_rule_is_gone_it_is_told_when_it_was_asked() -> None:
    host = running()
    learn(host, DB, NEAR)
    learn(host, CDN, FOUR)
    host.tick(13.0)
    host.apply({"rules.d/a.yaml": rules("a", "[{to: hub.example}, {to: 198.51.100.9, ports: [80]}]")})
    host.tick(20.0)
    block = denied(host, FOUR)
    assert (block.reason, block.name) == ("no-rule", CDN)
    assert block.text.startswith(f"asked {CDN} 33 s ago, not in its rules")
    assert block.allow == f'penstock grant a {CDN}:443 --for 8h --reason "..."'
    assert denied(host, NEAR, 5432).name == DB
    assert denied(host, SIX).text.startswith("literal address")
    host.apply({"rules.d/a.yaml": rules("a", NAMES)})
    block = denied(host, FOUR)
    assert block.text.endswith("s ago, and not since its rule is in force; a look-up opens it now")


def test_of_a_name_that_was_learned_before_a_lock_too() -> None:
    host = running()
    learn(host, HUB, FOUR, ttl=86400)
    host.apply({"rules.d/a.yaml": rules("a", NAMES, mode="lock")})
    host.apply({"rules.d/a.yaml": rules("a", NAMES)})
    assert denied(host, FOUR).text.startswith(f"asked {HUB} 0 s ago")
    when = host.ask("names", workload="a", name=FOUR)["asked"]["when"]
    assert when <= time_text(host.now)


def test_what_is_asked_since_then_is_not_told_as_what_was_asked_before() -> None:
    host = running({"rules.d/a.yaml": rules("a", NAMES, mode="observe")})
    learn(host, CDN, FOUR)
    host.tick()
    say(host, Observed("a", "stranger.example", (ip_address(FOUR),)))
    host.apply({"rules.d/a.yaml": rules("a", "[{to: hub.example}]")})
    assert denied(host, FOUR).name == "stranger.example"


def test_what_is_told_of_names_without_a_rule_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "MAX_OBSERVED", 2)
    host = running()
    for number in range(1, 5):
        learn(host, f"n{number}.hub.example", f"203.0.113.{number}")
        host.tick()
    host.apply({"rules.d/a.yaml": rules("a", "[{to: hub.example}]")})
    told = [denied(host, f"203.0.113.{number}").name for number in range(1, 5)]
    assert told == [None, None, "n3.hub.example", "n4.hub.example"]


def test_an_address_of_two_names_stays_while_one_of_them_has_a_rule() -> None:
    host = running()
    learn(host, HUB, FOUR)
    learn(host, CDN, FOUR)
    host.apply({"rules.d/a.yaml": rules("a", "[{to: '*.hub.example'}]")})
    assert [address for _, address in held(host)] == [FOUR]


def test_other_ports_open_to_what_was_learned() -> None:
    host = running()
    learn(host, HUB, FOUR)
    host.apply({"rules.d/a.yaml": rules("a", "[{to: hub.example, ports: [443, 8443]}]")})
    assert held(host) == {(HUB, FOUR)}


def test_a_name_is_learned_only_if_the_policy_that_comes_has_it_too() -> None:
    host = running()
    assert host.configured
    generation = host.configured.generation
    host.files = {"rules.d/a.yaml": rules("a", "[{to: '*.hub.example'}]")}
    host.command("apply")
    while not any(isinstance(e, effects.Load) and e.operation > 1 for e in host.done):
        assert host.step()
    say(host, Learn(8, generation, "a", HUB, ((ip_address(FOUR), 60),)))
    assert host.settled[8] is False
    assert held(host) == set()


@pytest.mark.parametrize(
    "egress", ["[{to: hub.example}, {to: x.example}]", "[{to: hub.example, ports: [8443]}, {to: x.example}]"]
)
def test_what_is_learned_while_a_policy_is_being_loaded_stays(egress: str) -> None:
    """Both have it, and it is answered; what goes with the load was found out before.  Then the new one counts."""
    host = running()
    assert host.configured
    generation = host.configured.generation
    learn(host, CDN, SIX)
    host.files = {"rules.d/a.yaml": rules("a", egress)}
    host.command("apply")
    while not any(isinstance(e, effects.StageState) and e.operation > 1 for e in host.done):
        assert host.step()
    host.feed(events.FromResolver(host.now, (Learn(8, generation, "a", HUB, ((ip_address(FOUR), 60),)),), {}))
    while 8 not in host.settled:
        host.step_last()
    host.settle()
    assert host.settled[8] is True
    assert held(host) == {(HUB, FOUR)}
    (learned,) = (e for e in host.done if isinstance(e, effects.Learn) and e.ids == (8,))
    assert learned.then
    assert {one.set for one in learned.then} == {name for name, found in host.kernel.learned.items() if found}


WAS = "[{to: hub.example, ports: [22]}, {to: db.example, ports: [22]}]"
OTHER_PORT = "[{to: hub.example, ports: [443]}, {to: db.example, ports: [22]}]"


def ports_of(host: Host) -> dict[int, set[tuple[str, str]]]:
    """What is held, by the first port that it opens."""
    return {
        rule.group.ports.ranges[0].first: {
            (name, str(ip_address(address)))
            for address, name in host.kernel.learned.get(f"names4_a_{rule.group.id}", {}).items()
        }
        for rule in host.engine._naming.names.rules["a"]
    }


def test_what_is_learned_behind_a_load_opens_what_was_loaded() -> None:
    """It was judged before, when the group of the old port still had it."""
    host = running({"rules.d/a.yaml": rules("a", WAS)})
    assert host.configured
    looks_up = iter([Learn(8, host.configured.generation, "a", HUB, ((ip_address(FOUR), 604_800),))])

    def look_up() -> None:
        for found in looks_up:
            host.feed(events.FromResolver(host.now, (found,), {}))
            while 8 not in host.settled:
                host.step_last()

    host.interfere = look_up
    host.apply({"rules.d/a.yaml": rules("a", OTHER_PORT)})
    assert host.settled[8] is True
    assert ports_of(host) == {443: {(HUB, FOUR)}, 22: set()}


@pytest.mark.parametrize("step", ["Load", "BindCgroups", "ReadKernel"])
def test_an_apply_of_names_that_ended_half_way_leaves_nothing_behind(step: str) -> None:
    """No shape tells it: both policies have the same groups."""
    wide = WAS.replace("hub.example, ports: [22]", "hub.example, ports: [443]")
    host = running({"rules.d/a.yaml": rules("a", wide)})
    assert learn(host, HUB, FOUR)
    host.files = {"rules.d/a.yaml": rules("a", wide.replace("]}]", "]}, {to: hub.example, ports: [22]}]"))}
    host.failing = once(step)
    number = host.command("apply")
    host.settle()
    assert number in host.refusals
    assert ports_of(host) == {443: {(HUB, FOUR)}, 22: set()}
    assert learn(host, DB, "203.0.113.9", id=7)
    assert learn(host, HUB, SIX, id=8)
    status = host.status()
    assert status["kernel"]["agrees"] is True
    assert "foreign-change" not in {finding["code"] for finding in status["findings"]}


def test_the_next_apply_may_be_what_mends_it() -> None:
    """Its names are those in force, and not what the kernel was left with."""
    files = {"rules.d/a.yaml": rules("a", WAS)}
    host = running(files)
    assert learn(host, HUB, FOUR)
    host.files = {"rules.d/a.yaml": rules("a", OTHER_PORT)}
    host.failing = lambda e: "no" if isinstance(e, effects.ReadKernel) else ""
    host.command("apply")
    host.settle()
    host.failing = lambda effect: ""
    host.apply({**files, "rules.d/b.yaml": rules("b")})
    assert ports_of(host) == {22: {(HUB, FOUR)}}


def test_what_ended_half_way_is_mended_though_all_else_agrees() -> None:
    """As when a unit was bound meanwhile, and its reading back agreed."""
    host = running()
    host.engine._operations.half_way = ["apply ended half-way"]
    host.tick()
    loads = [effect for effect in host.done if isinstance(effect, effects.Load)]
    assert len(loads) == 2
    assert len(loads[-1].retract) > 0
    host.tick()
    assert not host.engine._operations.half_way
    assert len([effect for effect in host.done if isinstance(effect, effects.Load)]) == 2


def test_what_is_not_renewed_while_another_policy_is_loaded_is_mended_behind_it() -> None:
    """That load took out only what its own changes ask for."""
    files = {**FILES, "rules.d/a.yaml": rules("a", NAMES)}
    host = running(files)
    assert learn(host, HUB, FOUR, workload="b")
    stranger, fails = ip_address("198.51.100.34").packed, iter([events.Failed(host.now, "Renew", "too late")])
    (name,) = [name for name, elements in host.kernel.learned.items() if elements]

    def interfere() -> None:
        for event in fails:
            host.kernel.learned[name][stranger] = ""
            host.feed(event)

    host.interfere = interfere
    host.apply({**files, "rules.d/a.yaml": rules("a", "[{to: hub.example}]")})
    host.tick()
    host.tick()
    assert held(host, "b") == {(HUB, FOUR)}


def test_a_check_that_was_lost_is_not_the_last_one() -> None:
    host = running()
    learn(host, HUB, FOUR)
    assert host.engine._operations.check(), "and nobody performs it"
    host.kernel.learned.clear()
    host.kernel.commit(touched=True, pid=77, comm="nft")
    for _ in range(PATIENCE + 2):
        host.tick()
    assert held(host) == {(HUB, FOUR)}


@pytest.mark.parametrize("fails", [("Load", "Renew"), ("Renew",)])
def test_what_cannot_be_put_right_is_tried_again_and_the_kernel_is_looked_at(fails: tuple[str, ...]) -> None:
    host = running()
    assert learn(host, HUB, FOUR)
    host.failing = lambda e: "no" if type(e).__name__ in fails else ""
    host.command("apply")
    host.kernel.learned.clear()
    host.kernel.commit(touched=True, pid=77, comm="nft")
    host.settle()
    host.failing = lambda effect: ""
    for _ in range(2):
        host.tick()
    assert held(host) == {(HUB, FOUR)}
    host.kernel.flush()
    host.settle()
    assert host.holds_policy()
    assert held(host) == {(HUB, FOUR)}


def test_why_nothing_is_learned_is_not_told_for_each_look_up() -> None:
    host = running()
    host.failing = always("Learn", error="no room")
    for id in range(50):
        assert not learn(host, HUB, FOUR, id=id + 1)
    assert [text for _, text in host.journal].count("no room") == 1
    host.tick(61)
    learn(host, HUB, FOUR)
    assert [text for _, text in host.journal].count("no room") == 2


def test_who_answers_is_no_trouble_any_more_when_nobody_looks_up() -> None:
    """A tick comes between the load that takes the sets away and its reading back."""
    host = running({"rules.d/a.yaml": rules("a", "[{to: hub.example}]")})

    def failing(effect: effects.Effect) -> str:
        sets = host.kernel.ruleset.set_names if host.kernel.ruleset else ()
        return "no such set" if isinstance(effect, effects.SayThere) and LISTENING not in sets else ""

    host.failing = failing
    ticks = iter([events.Ticked(host.now, 2.0, uptime=host.uptime)])

    def tick() -> None:
        for event in ticks:
            host.feed(event)
            while not isinstance(host.done[-1], effects.SayThere):
                host.step_last()

    host.interfere = tick
    host.apply({"rules.d/a.yaml": rules("a")})
    assert "SayThere" not in host.engine.view.troubles
    assert not list(ticks)


NARROW = {"rules.d/a.yaml": rules("a", "[{to: '*.hub.example'}]")}


def test_what_went_is_not_learned_while_the_policy_is_being_saved() -> None:
    host = running()
    assert host.configured
    assert host.engine.in_force
    before, generation = host.engine.in_force.policy, host.configured.generation
    host.files = dict(NARROW)
    host.command("apply")
    while host.engine.in_force.policy is before:
        assert host.step()
    say(host, *(Learn(8, number, "a", HUB, ((ip_address(FOUR), 60),)) for number in (generation, generation + 1)))
    assert host.settled[8] is False
    assert host.holds_policy()
    assert held(host) == set()


def test_what_went_is_not_learned_when_the_policy_could_not_be_saved() -> None:
    host = running()
    assert host.configured
    before = host.configured.generation
    host.files = dict(NARROW)
    host.failing = always("CommitState")
    host.command("apply")
    host.settle()
    for generation in (before, host.configured.generation):
        assert not learn(host, HUB, FOUR, generation=generation)
    assert held(host) == set()
    assert learn(host, CDN, FOUR)


def test_what_was_let_in_for_a_name_too_long_to_be_written_down_goes_when_nobody_knows_it() -> None:
    host = running()
    (name,) = (
        (s.name for s in host.kernel.ruleset.name_sets if s.name.startswith("names4_b_"))
        if (host.kernel.ruleset)
        else ("",)
    )
    again = Host(FILES, saved=host.state)
    again.kernel = host.kernel
    again.kernel.learned = {name: {ip_address(FOUR).packed: ""}}
    element = Opened(name, ip_address(FOUR).packed, "", 300.0)
    again.feed(events.Started(again.now, again.kernel.snapshot(again.now), again.state, 1, opened=(element,)))
    again.settle()
    assert held(again, "b") == set()
    (load,) = (e for e in again.done if isinstance(e, effects.Load))
    flows = {gone.set: gone.addresses for gone in load.retract if gone.set.startswith("flows4_b_")}
    assert list(flows.values()) == [{ip_address(FOUR).packed}]


def test_a_foreign_flush_brings_back_what_was_learned() -> None:
    host = running()
    learn(host, HUB, FOUR)
    host.kernel.flush()
    host.settle()
    assert host.holds_policy()
    assert held(host) == {(HUB, FOUR)}


def test_an_element_of_somebody_else_goes() -> None:
    host = running()
    learn(host, HUB, FOUR)
    (name,) = [name for name, elements in host.kernel.learned.items() if elements]
    host.kernel.learned[name][ip_address("198.51.100.34").packed] = ""
    host.kernel.learned[name].pop(ip_address(FOUR).packed)
    host.kernel.commit(touched=True, pid=77, comm="nft")
    host.settle()
    assert held(host) == {(HUB, FOUR)}


def next_daemon(host: Host, files: Files = FILES) -> Host:
    """It reads what the kernel holds, and with it the names that are not too long for it."""
    opened = tuple(
        Opened(set_name, address, name if len(name) < 127 else "", 300.0)
        for set_name, elements in host.kernel.learned.items()
        for address, name in elements.items()
    )
    host.feed(events.Stopping(host.now))
    host.settle()
    again = Host(files, saved=host.state)
    again.kernel = host.kernel
    again.now = host.now + timedelta(seconds=5)
    snapshot = again.kernel.snapshot(again.now)
    again.feed(events.UpstreamsRead(again.now, (SERVER,), ()))
    again.feed(events.Started(again.now, snapshot, again.state, 1, names=host.saved_names, opened=opened))
    return again.settle()


def test_the_next_daemon_reads_it_back() -> None:
    host = running()
    learn(host, HUB, FOUR)
    again = next_daemon(host)
    assert held(again) == {(HUB, FOUR)}
    again.apply({"rules.d/a.yaml": rules("a", "[{to: '*.hub.example'}]")})
    assert held(again) == set()


def test_saved_names_that_are_damaged_are_no_reason_not_to_start() -> None:
    host = Host(FILES)
    host.feed(events.Started(host.now, host.kernel.snapshot(host.now), None, 1, names=b"rubbish"))
    host.settle()
    assert host.holds_policy()
    assert "trouble" in findings(host)
    assert any("names is damaged" in text for level, text in host.journal if level == "error")
    for _ in range(naming.SAVE_EVERY):
        host.tick()
    assert host.saved_names
    assert "trouble" not in findings(host)


def test_what_was_damaged_is_written_anew_where_no_rule_has_names_any_more() -> None:
    host = Host({"rules.d/a.yaml": rules("a")})
    host.feed(events.Started(host.now, host.kernel.snapshot(host.now), None, 1, names=b"rubbish"))
    for _ in range(naming.SAVE_EVERY):
        host.tick()
    assert host.saved_names
    assert "trouble" not in findings(host)


def test_what_one_workload_looks_up_takes_nothing_from_another() -> None:
    """These begin with a dash: no rule can be written for them, but a wildcard stands for them."""
    files = {**FILES, "rules.d/b.yaml": rules("b", "[{to: ['*.b.example', '*.c.example']}]")}
    host = running(files)
    long, addresses = f"{'x' * 60}.{'y' * 60}.b.example", {"203.0.113.8", "203.0.113.9"}
    assert learn(host, long, "203.0.113.9", workload="b")
    for name in ("n1.b.example", "n2.c.example"):
        assert learn(host, name, "203.0.113.8", workload="b")
    for name in ("-x.hub.example", "-y.hub.example"):
        assert learn(host, name, FOUR)
    again = next_daemon(host, files)
    assert {address for _, address in held(again, "b")} == addresses
    assert {address for _, address in held(again)} == {FOUR}
    assert "trouble" not in findings(again)
    again.apply({**files, "rules.d/b.yaml": rules("b", "[{to: '*.b.example'}]")})
    assert {address for _, address in held(again, "b")} == addresses


def test_the_resolver_is_told_what_is_in_force_and_when_it_is_new() -> None:
    host = running()
    assert host.configured
    assert [names.workload for names in host.configured.workloads] == ["a", "b"]
    assert host.configured.upstreams == ((SERVER.address, 53),)
    assert host.configured.search == ("corp.example",)
    before = host.configured
    host.apply({**FILES, "rules.d/c.yaml": rules("c")})
    assert host.configured == before  # nothing changed for it
    host.feed(events.ResolverChanged(host.now, False, "the resolver ended"))
    host.settle()
    assert "resolver-down" in findings(host)
    host.feed(events.ResolverChanged(host.now, True))
    host.settle()
    assert host.configured != before  # what it settles is counted anew
    assert "resolver-down" not in findings(host)


def said_there(host: Host, seconds: float) -> set[str]:
    """Who was said to be there in the last of so many seconds."""
    for _ in range(int(seconds // 2)):
        host.there.clear()
        host.tick()
    return host.there


def test_that_somebody_is_there_is_said_again_and_again() -> None:
    host = running({**FILES, "rules.d/c.yaml": rules("c", "[{to: db.example}]", mode="observe")})
    assert host.there == {"listening", "answering"}
    assert said_there(host, 2) == {"listening", "answering"}
    host.apply({"rules.d/a.yaml": rules("a", NAMES)})
    assert said_there(host, 2) == {"listening"}


def test_a_resolver_that_ended_is_waited_for_but_not_for_long() -> None:
    """Who asks meanwhile is answered by the next one; unless there is none, which is better told."""
    host = running({**FILES, "rules.d/c.yaml": rules("c", "[{to: db.example}]", mode="observe")})
    for _ in range(2):
        host.feed(events.ResolverChanged(host.now, False, "the resolver ended"))
        assert said_there(host, 8) == {"listening"}
        host.feed(events.ResolverChanged(host.now, False, "the resolver cannot be started"))
        assert said_there(host, 4) == set()
        host.feed(events.ResolverChanged(host.now, True))
        host.settle()
        assert host.there == {"listening", "answering"}


def test_a_daemon_that_stops_says_so() -> None:
    host = running()
    host.feed(events.Stopping(host.now))
    host.settle()
    assert host.there == set()


def test_the_resolver_is_told_when_nobody_needs_it() -> None:
    host = running()
    host.apply({"rules.d/a.yaml": rules("a")})
    assert host.configured
    assert host.configured.workloads == ()
    before = host.configured
    host.apply({"rules.d/a.yaml": rules("a"), "rules.d/c.yaml": rules("c")})
    assert host.configured is before


def test_other_servers() -> None:
    host = running()
    host.feed(events.UpstreamsRead(host.now, (OTHER,), ()))
    host.settle()
    assert host.configured
    assert host.configured.upstreams == ((OTHER.address, 53),)
    assert {element.low for element in host.kernel.sets["upstream6"]} == {int(OTHER.address)}
    host.feed(events.UpstreamsRead(host.now, (), ()))
    host.settle()
    assert "no-upstream" in findings(host)


def test_nobody_can_listen() -> None:
    host = Host(FILES)
    host.deaf = "no loopback"
    host.start()
    assert host.holds_policy()
    assert "resolver-down" in findings(host)
    assert host.kernel.ruleset
    assert not any(chain.name == "divert_a" for chain in host.kernel.ruleset.chains)
    host.feed(events.UpstreamsRead(host.now, (), ()))
    host.settle()
    assert "resolver-down" in findings(host)
    host.deaf = ""
    host.feed(events.UpstreamsRead(host.now, (), ()))  # the daemon says so from time to time
    host.feed(events.ResolverChanged(host.now, True))
    host.settle()
    assert "resolver-down" not in findings(host)
    assert any(chain.name == "divert_a" for chain in host.kernel.ruleset.chains)
    done = len(host.done)
    host.feed(events.UpstreamsRead(host.now, (), ()))
    host.settle()
    assert len(host.done) == done, "nothing is loaded for no reason"


def test_a_host_without_rules_by_name_pays_nothing_for_names() -> None:
    host = Host({"rules.d/a.yaml": rules("a", "[{to: 203.0.113.5, ports: [443]}]")})
    host.start()
    assert not any(isinstance(e, effects.Listen | effects.Configure | effects.SaveNames) for e in host.done)
    assert host.kernel.ruleset
    assert not host.kernel.ruleset.name_sets
    assert {chain.hook for chain in host.kernel.ruleset.chains if chain.hook} == {"output", "input"}
    host.tick().tick()
    assert not any(isinstance(e, effects.SayThere) for e in host.done)


def refused(name: str = "stranger.example", id: int = 3, reason: str = "name", workload: str = "a") -> Refused:
    return Refused(id, workload, name, "A", reason, "udp", (ip_address("127.0.0.1"), 4711))


def test_a_refused_look_up_is_written_down_with_who_asked() -> None:
    host = running()
    say(host, refused(), askers={3: Process(12, "curl")})
    assert host.settled[3] is False
    (block,) = host.blocks
    assert (block.name, block.port, block.reason, block.verdict) == ("stranger.example", 53, "name", "deny")
    assert block.process == Process(12, "curl")
    assert "stranger.example" in (block.allow or "")
    host.ask("status")  # the books know nothing of it
    assert all(workload["denied"] == 0 for workload in host.status()["workloads"])


def test_what_is_refused_of_nobody_is_not_written_down() -> None:
    host = running()
    say(host, refused(workload="nobody"), refused("hub.example.corp.example", 4, "search"))
    assert host.blocks == []
    assert host.settled == {3: False, 4: False}


def test_answered_while_observed() -> None:
    host = running({"rules.d/a.yaml": rules("a", NAMES, mode="observe")})
    say(host, Observed("a", "stranger.example", (ip_address(FOUR),)))
    (block,) = host.blocks
    assert (block.verdict, block.name) == ("would-deny", "stranger.example")
    assert held(host) == set()


def test_troubles_of_the_resolver() -> None:
    host = running()
    say(host, Trouble("upstream", "", "nobody answers"), *(Trouble(f"t{n}", "a", "x") for n in range(1000)))
    told = [found for found in host.status()["findings"] if found["code"] == "lookups"]
    assert len(told) == 64
    say(host, Trouble("ok:upstream", "", ""))
    assert not any("nobody answers" in found["text"] for found in host.status()["findings"])


@pytest.mark.parametrize("after", [rules("a"), rules("a", NAMES, mode="lock"), None], ids=["none", "lock", "gone"])
def test_troubles_of_a_workload_that_looks_nothing_up_any_more(
    after: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.core.learned.MAX_ADDRESSES", 2)
    host = running()
    say(host, Trouble("rate", "a", "of a"), Trouble("rate", "b", "of b"), Trouble("upstream", "", "of none"))
    for workload in ("a", "b"):
        assert not learn(host, HUB, "203.0.113.1", "203.0.113.2", "203.0.113.3", workload=workload)
    assert {"a has", "b has", "rate: of a", "rate: of b", "upstream: of none"} <= troubles(host)
    host.apply({**FILES, "rules.d/a.yaml": rules("a", "[{to: hub.example}]")})
    assert {"a has", "rate: of a"} <= troubles(host)
    files = {"rules.d/b.yaml": FILES["rules.d/b.yaml"]}
    host.apply({**files, "rules.d/a.yaml": after} if after else files)
    assert troubles(host) == {"b has", "rate: of b", "upstream: of none"}


def troubles(host: Host) -> set[str]:
    """As the findings begin."""
    told = [found for found in host.status()["findings"] if found["code"] in ("lookups", "trouble")]
    return {found["text"].partition(" looked up")[0] for found in told}


def test_a_locked_workload_learns_nothing() -> None:
    host = running({"rules.d/a.yaml": rules("a", NAMES, mode="lock"), "rules.d/b.yaml": FILES["rules.d/b.yaml"]})
    assert not learn(host, HUB, FOUR)
    assert learn(host, HUB, FOUR, workload="b")


def test_what_a_policy_that_was_refused_would_take_away_stays() -> None:
    host = running()
    learn(host, HUB, FOUR)
    learn(host, CDN, SIX)
    host.failing = always("Load")
    host.files = dict(NARROW)
    host.command("apply")
    host.settle()
    host.failing = lambda effect: ""
    host.tick()
    assert host.holds_policy()
    assert held(host) == {(HUB, FOUR), (CDN, SIX)}
    assert learn(host, HUB, FOUR)


def test_a_load_that_fails_once_leaves_what_was_learned() -> None:
    host = running()
    learn(host, HUB, FOUR)
    host.failing = once("Load", "busy")
    host.command("apply")
    host.files = {**FILES, "rules.d/c.yaml": rules("c")}
    host.settle()
    host.tick()
    assert host.holds_policy()
    assert held(host) == {(HUB, FOUR)}
