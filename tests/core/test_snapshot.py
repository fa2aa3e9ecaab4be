"""In what the kernel differs from what it should hold: each kind is seen, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from fake_host import START, Host, rules

from penstock.core.questions import bindings
from penstock.core.ruleset import MARKER, Element
from penstock.core.snapshot import EXPIRY_SLACK, Snapshot, differences

END = START + timedelta(minutes=1)
EXPIRING = rules("a", '[{to: 198.51.100.10, ports: [443], expires: "2026-03-01T12:01:00Z"}]')
EXTRA = Element(1, 1, 6, 1, 1)


def host() -> Host:
    return Host({"rules.d/a.yaml": EXPIRING}).start()


def compare(found: Host, snapshot: Snapshot, seconds: float = 0) -> list[str]:
    in_force = found.engine.in_force
    assert in_force
    wanted = bindings(("a",), in_force.cgroups)
    governed = in_force.cgroups["penstock.slice"]
    return differences(in_force.ruleset, wanted, governed, snapshot, START + timedelta(seconds=seconds))


def without(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}


def test_the_same_is_the_same() -> None:
    found = host()
    assert compare(found, found.kernel.snapshot(START)) == []


def test_each_kind_of_difference_is_named() -> None:
    found = host()
    good = found.kernel.snapshot(START)
    cases: dict[str, Snapshot] = {
        "the table is gone": Snapshot(9),
        "the table has lost its marker": replace(good, ours=False),
        "the table is dormant": replace(good, dormant=True),
        "chain out_a": replace(good, chains={**good.chains, "out_a": 99}),
        "chain told": replace(good, chains=without(good.chains, "told")),
        "chain theirs": replace(good, chains={**good.chains, "theirs": 0}),
        f"counter {MARKER}": replace(good, counters=good.counters - {MARKER}),
        "counter theirs": replace(good, counters=good.counters | {"theirs"}),
        "map out_cgroups": replace(good, bindings={**good.bindings, "out_cgroups": {}}),
        "map theirs": replace(good, bindings={**good.bindings, "theirs": {}}),
        "the slice in chain output": replace(good, slices={**good.slices, "output": 99}),
        "the slice in chain input": replace(good, slices=without(good.slices, "input")),
        "set in6_a": replace(good, sets=without(good.sets, "in6_a")),
        "set theirs": replace(good, sets={**good.sets, "theirs": frozenset()}),
        "elements of set out4_a": replace(
            good, sets={**good.sets, "out4_a": frozenset()}, timed={**good.timed, "out4_a": frozenset()}
        ),
        "ends of elements of set out4_a": replace(good, timed={**good.timed, "out4_a": frozenset()}),
        "elements of set in4_a": replace(good, sets={**good.sets, "in4_a": frozenset({EXTRA})}),
    }
    for phrase, snapshot in cases.items():
        assert compare(found, snapshot) == [phrase]


def test_a_slice_that_is_not_there_is_never_the_same() -> None:
    found = host()
    assert found.engine.in_force
    snapshot = replace(found.kernel.snapshot(START), slices={})
    wanted = bindings(("a",), found.engine.in_force.cgroups)
    assert len(differences(found.engine.in_force.ruleset, wanted, None, snapshot, START)) == 2


@pytest.mark.parametrize(
    ("seconds", "there", "agrees"),
    [
        (-10, True, True),
        (-10, False, False),
        (-1, False, True),  # the kernel's clock and ours differ a little
        (1, True, True),
        (10, True, False),
        (10, False, True),
    ],
)
def test_an_element_that_runs_out(seconds: float, there: bool, agrees: bool) -> None:
    found = host()
    good = found.kernel.snapshot(START)
    none: dict[str, frozenset[Element]] = {"out4_a": frozenset()}
    gone = replace(good, sets={**good.sets, **none}, timed={**good.timed, **none})
    snapshot = good if there else gone
    assert (compare(found, snapshot, 60 + seconds) == []) is agrees
    assert timedelta(seconds=1) < EXPIRY_SLACK < timedelta(seconds=10)


def test_present_is_what_was_found() -> None:
    good = host().kernel.snapshot(START)
    assert good.present.chains == good.chains.keys()
    assert good.present.maps == good.bindings.keys()
    assert good.present.sets == good.sets
    assert good.present.timed["out4_a"]
