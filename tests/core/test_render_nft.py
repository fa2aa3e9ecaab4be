"""Rules as text, and the smallest transaction from what is there to what shall be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest

from penstock.core.actions import Count, Final
from penstock.core.conditions import Hook
from penstock.core.render_nft import BATCH, Present, headed, retimed, script
from penstock.core.ruleset import CATCH_ALL, AddressSet, Chain, Element, Rule, Ruleset

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def host(text: str, port: int = 443, protocol: int = 6) -> Element:
    address = int(ip_address(text))
    return Element(address, address, protocol, port, port)


A, B, C = host("10.0.0.1"), host("10.0.0.2"), host("10.0.0.3")
RANGE = Element(int(ip_address("10.1.0.0")), int(ip_address("10.1.0.9")), 17, 8000, 8100)


def ruleset(*elements: Element, family: int = 4, **expires: Any) -> Ruleset:
    """One set, one chain; `expires` by name of an element."""
    named = {"a": A, "b": B, "c": C}
    found = AddressSet(
        f"out{family}_w",
        family,
        dict.fromkeys(elements, "rule"),
        {named[name]: end for name, end in expires.items()},
    )
    rules = (Rule((), (Count("denied"),)), Rule((), (Final.DROP,)))
    return Ruleset(("denied",), ("cgroups",), (found,), (Chain("w", rules), Chain("output", (), Hook.OUTPUT)))


def lines(wanted: Ruleset, present: Present = Present(), now: datetime = NOW) -> list[str]:  # noqa: B008
    text = script(wanted, present, now)
    assert text.endswith("\n")
    return text.splitlines()


def changes(wanted: Ruleset, present: Present, now: datetime = NOW) -> list[str]:
    """The lines about elements."""
    return [line for line in lines(wanted, present, now) if " element " in line]


# --- rules as text ---

def test_for_people_it_is_the_same_script_with_headings_and_an_element_a_line() -> None:
    plain = script(ruleset(A, B), Present(), NOW)
    found = headed(plain)
    assert "add element inet penstock out4_w {\n\t10.0.0.1 . 6 . 443,\n\t10.0.0.2 . 6 . 443 }\n" in found
    assert [line for line in found.splitlines() if line.startswith("#")] == [
        *("# counters", "# maps: cgroups are bound while the table is in force"),
        *("# sets: what is allowed, as address . protocol . port", "# chains", "# w"),
    ]
    without = "".join(line for line in found.splitlines(keepends=True) if line != "\n" and line[0] != "#")
    assert without.split() == plain.split()


# --- from nothing ---


def test_the_whole_table() -> None:
    assert lines(ruleset(A, RANGE)) == [
        "add table inet penstock",
        "add counter inet penstock denied",
        "add map inet penstock cgroups { type cgroupsv2 : verdict ; }",
        "add set inet penstock out4_w { type ipv4_addr . inet_proto . inet_service"
        " ; flags interval, timeout ; counter ; }",
        "add element inet penstock out4_w { 10.0.0.1 . 6 . 443, 10.1.0.0-10.1.0.9 . 17 . 8000-8100 }",
        "add chain inet penstock w",
        "add chain inet penstock output { type filter hook output priority 0 ; policy accept ; }",
        "add rule inet penstock w counter name denied",
        "add rule inet penstock w drop",
    ]


def test_ipv6_and_whole_ranges() -> None:
    whole = Element(0, 2**128 - 1, 58, 0, 65535)
    (line,) = changes(ruleset(whole, host("fd00::1"), family=6), Present())
    whole_text = "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff . 58 . 0-65535"
    assert line == f"add element inet penstock out6_w {{ {whole_text}, fd00::1 . 6 . 443 }}"


# --- from what is there ---


def test_what_is_there_stays_and_chains_are_refilled() -> None:
    wanted = ruleset(A, B)
    assert lines(wanted, Present.of(wanted, NOW)) == [
        "add table inet penstock",
        "flush chain inet penstock output",
        "flush chain inet penstock w",
        "add chain inet penstock w",
        "add chain inet penstock output { type filter hook output priority 0 ; policy accept ; }",
        "add rule inet penstock w counter name denied",
        "add rule inet penstock w drop",
    ]


def test_only_elements_that_differ_are_deleted_and_added() -> None:
    assert changes(ruleset(B, C), Present.of(ruleset(A, B), NOW)) == [
        "delete element inet penstock out4_w { 10.0.0.1 . 6 . 443 }",
        "add element inet penstock out4_w { 10.0.0.3 . 6 . 443 }",
    ]


def test_a_catch_all_of_somebody_else_is_deleted() -> None:
    present = Present(sets={"out4_w": frozenset({A, CATCH_ALL})})
    assert changes(ruleset(A), present) == ["delete element inet penstock out4_w { * }"]


def test_what_is_not_wanted_goes_last() -> None:
    present = Present(
        chains=frozenset({"w", "output", "old"}),
        counters=frozenset({"denied", "old_counter"}),
        maps=frozenset({"cgroups", "old_map"}),
        sets={"out4_w": frozenset({A}), "old_set": frozenset({B})},
    )
    text = lines(ruleset(A), present)
    assert text[-4:] == [
        "delete map inet penstock old_map",
        "delete chain inet penstock old",
        "delete set inet penstock old_set",
        "delete counter inet penstock old_counter",
    ]
    assert "flush chain inet penstock old" in text


# --- what runs out ---


def test_a_long_timeout_is_in_days_and_ends_in_a_century() -> None:
    for left, text in (
        (timedelta(days=1, seconds=-1), "86399s"),
        (timedelta(days=1), "1d"),
        (timedelta(days=1, microseconds=1), "1d1ms"),
        (timedelta(days=20_000, seconds=7), "20000d7s"),
        (datetime.max.replace(tzinfo=UTC) - NOW, "36500d"),
    ):
        (added,) = changes(ruleset(A, a=NOW + left), Present())
        assert f" timeout {text} }}" in added


def test_a_timeout_is_milliseconds_upwards() -> None:
    for left, text in ((HOUR, "3600s"), (timedelta(seconds=1.2), "1s200ms"), (timedelta(microseconds=1), "1ms")):
        assert changes(ruleset(A, a=NOW + left), Present()) == [
            f"add element inet penstock out4_w {{ 10.0.0.1 . 6 . 443 timeout {text} }}"
        ]


def test_what_has_run_out_is_neither_added_nor_believed_to_be_there() -> None:
    wanted = ruleset(A, B, a=NOW)
    assert changes(wanted, Present()) == ["add element inet penstock out4_w { 10.0.0.2 . 6 . 443 }"]
    assert Present.of(wanted, NOW).sets == {"out4_w": frozenset({B})}
    assert Present.of(wanted, NOW - HOUR).sets == {"out4_w": frozenset({A, B})}
    assert Present.of(wanted, NOW - HOUR).timed == {"out4_w": frozenset({A})}


KEY = "10.0.0.1 . 6 . 443"
RENEWED = [
    f"delete element inet penstock out4_w {{ {KEY} }}",
    f"add element inet penstock out4_w {{ {KEY} timeout 3600s }}",
]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param({}, {}, [], id="never"),
        pytest.param({}, {"a": NOW + HOUR}, RENEWED, id="gets-an-end"),
        pytest.param({"a": NOW + 2 * HOUR}, {"a": NOW + HOUR}, RENEWED, id="ends-sooner"),
        pytest.param(
            {"a": NOW + HOUR},
            {},
            [RENEWED[0], f"add element inet penstock out4_w {{ {KEY} }}"],
            id="loses-its-end",
        ),
    ],
)
def test_an_element_whose_end_changes_is_replaced(
    before: dict[str, Any], after: dict[str, Any], expected: list[str]
) -> None:
    assert changes(ruleset(A, B, **after), Present.of(ruleset(A, B, **before), NOW)) == expected


# --- many ---


@pytest.mark.parametrize(("count", "batches"), [(0, []), (1, [1]), (BATCH, [BATCH]), (BATCH + 1, [BATCH, 1])])
def test_elements_come_in_batches(count: int, batches: list[int]) -> None:
    many = ruleset(*(Element(n, n, 6, 1, 1) for n in range(count)))
    assert [line.count(" . 6 . 1") for line in changes(many, Present())] == batches
    gone = changes(ruleset(), Present.of(many, NOW))
    assert [line.count(" . 6 . 1") for line in gone] == batches
    assert all(line.startswith("delete element") for line in gone)


def test_retimed_is_about_what_ends_and_takes_out_what_has() -> None:
    rest = ruleset(A, B, a=NOW + HOUR)
    assert retimed(rest, NOW).splitlines() == [RENEWED[1], *RENEWED]
    assert retimed(rest, NOW + timedelta(milliseconds=100)).splitlines()[-1].endswith(" timeout 3599s900ms }")
    assert retimed(rest, NOW + HOUR).splitlines() == [RENEWED[1].replace("3600s", "1ms"), RENEWED[0]]
    assert retimed(ruleset(A, B), NOW) == ""
