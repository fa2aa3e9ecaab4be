"""Which questions go out, what the others are told, and what a wildcard lets out."""

from __future__ import annotations

import time
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core import dns_codes as code
from penstock.core import names, resolver_rules
from penstock.core.resolver_rules import (
    BURST,
    LOCKED,
    MAX_NAMES,
    NAME,
    NO_DATA,
    NO_TYPE,
    OBSERVED,
    PER_MINUTE,
    PRIVATE,
    RATE,
    SEARCH,
    UNFIT,
    Forward,
    Habits,
    Questions,
    Refusal,
)
from penstock.core.resolver_wire import NameRuleText, Names

NOW, CLOCK = 1_800_000_000.0, 50_000.0


def questions(
    *patterns: str | NameRuleText,
    mode: str = "enforce",
    search: tuple[str, ...] = (),
    habits: Habits | None = None,
) -> Questions:
    rules = tuple(p if isinstance(p, NameRuleText) else NameRuleText(p, False) for p in patterns)
    return Questions(Names("w", mode, rules), search, habits or Habits())


def ask(
    asked: Questions, name: str, qtype: int = code.A, *, plain: bool = True, now: float = NOW, clock: float = CLOCK
) -> Forward | Refusal:
    return asked.decide(name, plain, qtype, now, clock)


def patterns_of(decision: Forward | Refusal) -> list[str]:
    assert isinstance(decision, Forward), decision
    return [rule.said.pattern for rule in decision.rules]


def test_names_of_rules_go_out_and_no_others() -> None:
    asked = questions("hub.example", "*.cdn.example", "*.a.cdn.example", "x.a.cdn.example")
    assert patterns_of(ask(asked, "hub.example")) == ["hub.example"]
    assert patterns_of(ask(asked, "x.a.cdn.example")) == ["x.a.cdn.example", "*.a.cdn.example", "*.cdn.example"]
    assert patterns_of(ask(asked, "y.z.cdn.example")) == ["*.cdn.example"]
    for name in (
        "cdn.example",
        "example",
        "",
        "x.hub.example",
        "xhub.example",
        "evil.example",
        "cdn.example.evil",
    ):
        assert ask(asked, name) == NAME


@given(st.lists(st.sampled_from(["a.b", "*.b", "*.a.b", "c.a.b", "*.c.a.b"])), st.from_regex(r"([abc]\.){1,4}b"))
def test_a_decision_is_what_the_patterns_say(patterns: list[str], name: str) -> None:
    decision = ask(questions(*patterns), name)
    wanted = [pattern for pattern in patterns if names.matches(pattern, name)]
    found = patterns_of(decision) if isinstance(decision, Forward) else []
    assert sorted(found) == sorted(wanted)


def test_a_name_of_strange_bytes_is_no_name_of_a_rule() -> None:
    asked = questions("hub.example")
    assert ask(asked, "hub.example", plain=False) == NAME
    assert ask(questions("hub.example", mode="observe"), "a\\032b.example", plain=False) == NAME


def test_a_rule_ends_at_its_time() -> None:
    asked = questions(NameRuleText("hub.example", False, (), NOW + 10), NameRuleText("hub.example", True, (), NOW))
    assert patterns_of(ask(asked, "hub.example", now=NOW - 1)) == ["hub.example"] * 2
    assert patterns_of(ask(asked, "hub.example", now=NOW)) == ["hub.example"]
    assert ask(asked, "hub.example", now=NOW + 10) == NAME


@pytest.mark.parametrize("qtype", [code.ANY, code.AXFR, code.IXFR, code.NULL, code.OPT, 0, 128, 249, 255])
@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_transfers_and_the_like_are_refused_always(qtype: int, mode: str) -> None:
    assert ask(questions("hub.example", mode=mode), "hub.example", qtype) == NO_TYPE


@pytest.mark.parametrize(
    ("pattern", "name", "more"),
    [
        ("hub.example", "hub.example", set()),
        ("*.example", "_x._tcp.example", set()),
        ("_db._tcp.example", "_db._tcp.example", {code.TXT, code.SRV}),
        ("*.2.0.192.in-addr.arpa", "1.2.0.192.in-addr.arpa", {code.PTR}),
        ("x.notin-addr.arpa", "x.notin-addr.arpa", set()),
    ],
)
def test_types_are_those_that_connecting_needs(pattern: str, name: str, more: set[int]) -> None:
    given = {code.A, code.AAAA, code.HTTPS, code.SVCB, code.CNAME, code.SOA} | more
    types = {1, 2, 5, 6, 12, 13, 15, 16, 28, 33, 35, 43, 46, 47, 48, 64, 65, 99, 257, 65280}
    asked, observed = questions(pattern), questions(pattern, mode="observe")
    assert {qtype for qtype in types if isinstance(ask(asked, name, qtype), Forward)} == given
    assert {ask(asked, name, qtype) for qtype in types - given} == {NO_DATA}
    assert {qtype for qtype in types if isinstance(ask(observed, name, qtype), Forward)} == types


def test_modes() -> None:
    assert ask(questions("hub.example", mode="lock"), "hub.example") == LOCKED
    assert ask(questions("hub.example", mode="lock"), "evil.example", code.ANY) == LOCKED
    assert ask(questions("hub.example", mode="observe"), "evil.example") == OBSERVED
    assert patterns_of(ask(questions("hub.example", mode="observe"), "hub.example")) == ["hub.example"]


def test_what_a_list_of_suffixes_made_is_told_apart() -> None:
    asked = questions("hub.example", "*.cdn.example", search=("corp.example.", "Lan", ".", ""))
    assert ask(asked, "hub.example.corp.example") == SEARCH
    assert ask(asked, "x.cdn.example.lan") == SEARCH
    assert ask(asked, "evil.test.lan") == NAME  # nobody asked for evil.test before
    assert ask(asked, "other.test") == NAME
    assert ask(asked, "other.test.lan") == SEARCH
    assert ask(asked, "other.test.corp.example") == SEARCH
    assert ask(asked, "other.test.lan", clock=CLOCK + resolver_rules.RECENT) == NAME
    assert ask(asked, "lan") == NAME
    assert ask(asked, "hubxexamplexlan") == NAME


def test_a_name_that_a_rule_has_is_no_probe() -> None:
    assert isinstance(ask(questions("hub.example", "*.lan", search=("lan",)), "hub.example.lan"), Forward)


def test_few_refused_names_are_remembered() -> None:
    asked = questions("hub.example", search=("lan",))
    for number in range(resolver_rules.MAX_RECENT + 1):
        ask(asked, f"n{number}.test")
    assert ask(asked, "n1.test.lan") == SEARCH
    assert ask(asked, "n0.test.lan") == NAME


# --- what a wildcard lets out ---


def admitted(asked: Questions, count: int, clock: float, prefix: str = "n", zone: str = "cdn.example") -> int:
    results = [ask(asked, f"{prefix}{number}.{zone}", clock=clock) for number in range(count)]
    assert all(isinstance(result, Forward) or result == RATE for result in results)
    return sum(isinstance(result, Forward) for result in results)


def test_new_names_under_a_wildcard_cost() -> None:
    asked = questions("*.cdn.example", "*.other.example", "exact.cdn.example")
    assert admitted(asked, 1000, CLOCK) == BURST
    assert admitted(asked, BURST, CLOCK) == BURST  # those are known now
    assert ask(asked, "new.cdn.example", code.AAAA) == RATE
    assert isinstance(ask(asked, "exact.cdn.example"), Forward)
    assert isinstance(ask(asked, "new.other.example"), Forward)
    assert admitted(asked, 1000, CLOCK + 60, "later") == PER_MINUTE
    assert admitted(asked, 1000, CLOCK + 100_000, "much-later") == BURST


def test_types_and_letters_of_one_name_cost_once() -> None:
    asked = questions("*.cdn.example")
    for number in range(BURST):
        for qtype in (code.A, code.AAAA, code.HTTPS):
            assert isinstance(ask(asked, f"n{number}.cdn.example", qtype), Forward)
    assert ask(asked, "one-more.cdn.example") == RATE


def test_a_new_configuration_is_no_fresh_start() -> None:
    habits = Habits()
    assert admitted(questions("*.cdn.example", habits=habits), 1000, CLOCK) == BURST
    assert admitted(questions("*.cdn.example", "*.b.example", habits=habits), 1000, CLOCK, "again") == 0


def test_nobody_pays_while_only_observed() -> None:
    assert admitted(questions("*.cdn.example", mode="observe"), 1000, CLOCK) == 1000


def test_known_names_are_bounded_and_forgotten() -> None:
    patterns = [f"*.z{zone}.example" for zone in range(MAX_NAMES // BURST + 2)]
    asked = questions(*patterns)
    total = sum(admitted(asked, BURST, CLOCK, zone=pattern[2:]) for pattern in patterns)
    assert total == MAX_NAMES
    last = patterns[-1][2:]
    assert ask(asked, f"new.{last}", clock=CLOCK + resolver_rules.FORGOTTEN - 1) == RATE
    assert isinstance(ask(asked, "n0.z0.example", clock=CLOCK + resolver_rules.FORGOTTEN - 1), Forward)
    assert isinstance(ask(asked, f"new.{last}", clock=CLOCK + resolver_rules.FORGOTTEN), Forward)


def test_a_name_that_was_not_asked_for_long_is_new() -> None:
    asked = questions("*.cdn.example")
    assert admitted(asked, BURST, CLOCK) == BURST
    later = CLOCK + resolver_rules.FORGOTTEN
    assert isinstance(ask(asked, "n0.cdn.example", clock=later - 1), Forward)
    assert admitted(asked, BURST, later, "other") == BURST
    assert isinstance(ask(asked, "n0.cdn.example", clock=later), Forward)
    assert ask(asked, "n1.cdn.example", clock=later) == RATE


# --- addresses ---


def test_an_address_counts_when_one_rule_takes_it() -> None:
    inside = ip_network("192.0.2.0/24")
    strict = NameRuleText("hub.example", False, (inside,))
    decision = ask(questions(strict, NameRuleText("*.example", True)), "hub.example")
    assert isinstance(decision, Forward)
    assert decision.admits(ip_address("192.0.2.1"))
    assert decision.admits(ip_address("10.0.0.1"))
    assert not decision.admits(ip_address("169.254.169.254"))
    decision = ask(questions(strict), "hub.example")
    assert isinstance(decision, Forward)
    assert decision.admits(ip_address("198.51.100.1"))
    assert not decision.admits(ip_address("192.0.2.1"))
    assert not decision.admits(ip_address("10.0.0.1"))
    assert not OBSERVED.admits(ip_address("198.51.100.1"))


@pytest.mark.parametrize(
    ("addresses", "refusal"),
    [
        (["10.0.0.1"], PRIVATE),
        (["127.0.0.1"], PRIVATE),
        (["169.254.169.254", "fd00::1"], PRIVATE),
        (["169.254.169.254"], UNFIT),
        (["fe80::1", "224.0.0.1"], UNFIT),
        (["10.9.0.1"], UNFIT),
    ],
)
def test_of_an_answer_that_no_rule_takes_it_is_told_whether_private_helps(
    addresses: list[str], refusal: Refusal
) -> None:
    strict = NameRuleText("hub.example", False, (ip_network("10.9.0.0/16"),))
    decision = ask(questions(strict), "hub.example")
    assert isinstance(decision, Forward)
    assert decision.refusal(map(ip_address, addresses)) == refusal


def test_many_names_cost_no_more_than_few() -> None:
    def seconds(asked: Questions) -> float:
        def once() -> float:
            start = time.perf_counter()
            for _ in range(3000):
                ask(asked, "a.b.c.n1.example")
                ask(asked, "a.b.c.d.evil.test")
            return time.perf_counter() - start

        return min(once() for _ in range(5))

    few = questions("n1.example", "*.n1.example")
    many = questions(*(f"n{i}.example" for i in range(10_000)), *(f"*.n{i}.example" for i in range(10_000)))
    assert seconds(many) < 5 * seconds(few)
