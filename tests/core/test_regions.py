"""Interval arithmetic against brute force on small spaces, and its worst cases."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pace import slow
from penstock.core.regions import Allowance, Interval, disjoint, merge, subtract
from penstock.core.ruleset import Element

NOW = datetime(2026, 3, 1, tzinfo=UTC)
TOP = 24  # of the small space


def intervals(top: int = TOP) -> st.SearchStrategy[list[Interval]]:
    pair = st.tuples(st.integers(0, top), st.integers(0, top))
    return st.lists(pair.map(lambda p: (min(p), max(p))), max_size=6)


def numbers(found: tuple[Interval, ...] | list[Interval]) -> set[int]:
    return {n for low, high in found for n in range(low, high + 1)}


def is_merged(found: tuple[Interval, ...]) -> bool:
    return all(low <= high for low, high in found) and all(one[1] + 1 < two[0] for one, two in pairwise(found))


@given(intervals())
def test_merge_keeps_the_numbers_and_nothing_touches(given_: list[Interval]) -> None:
    found = merge(given_)
    assert numbers(found) == numbers(given_)
    assert is_merged(found)


@given(intervals(), intervals())
def test_subtract_leaves_what_is_in_no_hole(given_: list[Interval], holes: list[Interval]) -> None:
    found = subtract(merge(given_), merge(holes))
    assert numbers(found) == numbers(given_) - numbers(holes)
    assert is_merged(found)


ENDS = st.sampled_from([None, NOW, NOW + timedelta(hours=1), NOW + timedelta(hours=2)])


@st.composite
def allowances(draw: st.DrawFn) -> list[Allowance]:
    """At most one of each order and protocol, as `compile` makes them."""
    result = []
    for order in range(draw(st.integers(0, 5))):
        for protocol in draw(st.sampled_from([(6,), (17,), (6, 17)])):
            found, ports = merge(draw(intervals())), merge(draw(intervals(8)))
            if found and ports:
                result.append(Allowance(order, f"r{order}", protocol, found, ports, draw(ENDS)))
    return result


def owners(allowed: list[Allowance]) -> dict[tuple[int, int, int], Allowance]:
    """Brute force: each single point, and whose it is."""
    result: dict[tuple[int, int, int], Allowance] = {}
    for one in allowed:
        for address in numbers(one.addresses):
            for port in numbers(one.ports):
                point = (address, one.protocol, port)
                result[point] = better(one, result[point]) if point in result else one
    return result


def better(one: Allowance, two: Allowance) -> Allowance:
    """Who lasts longer, else who is first."""
    forever = datetime.max.replace(tzinfo=UTC)
    ends = (one.expires or forever, two.expires or forever)
    if ends[0] != ends[1]:
        return one if ends[0] > ends[1] else two
    return min(one, two, key=lambda allowance: allowance.order)


def points(element: Element) -> set[tuple[int, int, int]]:
    return {
        (address, element.protocol, port)
        for address in range(element.low, element.high + 1)
        for port in range(element.first, element.last + 1)
    }


@given(allowances())
def test_elements_are_disjoint_and_say_exactly_what_is_allowed_by_whom(allowed: list[Allowance]) -> None:
    found: dict[tuple[int, int, int], Allowance] = {}
    for element, owner in disjoint(allowed).items():
        assert not points(element) & found.keys()
        found.update(dict.fromkeys(points(element), owner))
    assert found == owners(allowed)


@given(allowances())
def test_the_result_does_not_depend_on_the_order_of_asking(allowed: list[Allowance]) -> None:
    assert disjoint(reversed(allowed)) == disjoint(allowed)


def test_a_range_that_touches_is_one_element() -> None:
    ports = ((443, 443),)
    allowed = [Allowance(0, "r", 6, ((0, 7), (9, 9)), ports), Allowance(1, "s", 6, ((8, 8),), ports)]
    assert list(disjoint(allowed)) == [
        Element(0, 7, 6, 443, 443),
        Element(8, 8, 6, 443, 443),
        Element(9, 9, 6, 443, 443),
    ]
    assert list(disjoint(allowed[:1])) == [Element(0, 7, 6, 443, 443), Element(9, 9, 6, 443, 443)]


def test_the_ends_of_both_families_are_in_range() -> None:
    for top in (2**32 - 1, 2**128 - 1):
        every = Allowance(0, "any", 6, ((0, top),), ((0, 65535),))
        assert list(disjoint([every])) == [Element(0, top, 6, 0, 65535)]


def seconds(allowed: list[Allowance]) -> tuple[float, int]:
    start = time.perf_counter()
    count = len(disjoint(allowed))
    return time.perf_counter() - start, count


HTTPS, DNS = ((443, 443),), ((53, 53),)
EIGHT = (10 << 24, (11 << 24) - 1)


def test_a_wide_prefix_under_twenty_thousand_hosts_is_quick() -> None:
    hosts = tuple((EIGHT[0] + 2 * n, EIGHT[0] + 2 * n) for n in range(20_000))
    for extra in (
        [Allowance(1, "hosts", 6, hosts, DNS)],
        [Allowance(n + 1, f"host-{n}", 6, (host,), DNS) for n, host in enumerate(hosts)],
    ):
        took, count = seconds([Allowance(0, "wide", 6, (EIGHT,), HTTPS), *extra])
        assert count == 60_000  # each host twice, and the gap behind it
        assert took < slow(3)


def test_nested_prefixes_are_quick() -> None:
    nested = [Allowance(n, f"r{n}", 6, ((n, 2**32 - 1 - n),), ((n, n),)) for n in range(300)]
    took, count = seconds(nested)
    assert count == sum(range(1, 301)) * 2 - 300
    assert took < slow(3)
