"""Label bits: a workload keeps its own, and one that is gone gives it up last."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.label_bits import FIRST_LABEL, LABELS
from penstock.core.labels import assign

ROOM = LABELS - FIRST_LABEL
NAMES = st.sets(st.sampled_from([f"w{n}" for n in range(ROOM + 20)]), max_size=ROOM)


def test_the_first_ones_in_order() -> None:
    assert assign(["b", "a"], {}) == {"a": FIRST_LABEL, "b": FIRST_LABEL + 1}


def test_one_that_is_gone_keeps_its_bit_while_there_is_room() -> None:
    labels = assign(["b"], {"a": 3})
    assert labels == {"a": 3, "b": 4}
    assert assign(["a"], labels) == labels


def test_the_one_that_has_been_gone_longest_gives_up_its_bit() -> None:
    full = assign([f"w{n:03}" for n in range(ROOM)], {})
    labels = assign([*(f"w{n:03}" for n in range(2, ROOM)), "new"], full)
    assert labels["new"] == full["w000"]
    assert labels["w001"] == full["w001"]


def test_more_than_there_are() -> None:
    with pytest.raises(ValueError, match="more than"):
        assign([f"w{n}" for n in range(ROOM + 1)], {})


@given(st.lists(NAMES, min_size=1, max_size=6))
def test_whoever_stays_keeps_his_bit_and_no_two_share_one(turns: list[set[str]]) -> None:
    labels: dict[str, int] = {}
    for wanted in turns:
        before, labels = labels, assign(wanted, labels)
        assert wanted <= labels.keys()
        assert len(set(labels.values())) == len(labels)
        assert all(FIRST_LABEL <= bit < LABELS for bit in labels.values())
        assert all(labels[name] == bit for name, bit in before.items() if name in wanted)
