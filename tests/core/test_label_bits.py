"""No label is to be taken for another, whatever is added to a connection."""

from __future__ import annotations

from itertools import combinations

from penstock.core.label_bits import FIRST_LABEL, LABELS, MAX_WORKLOADS, SHARED, bits

WORKLOADS = [frozenset(bits(label)) for label in range(FIRST_LABEL, LABELS)]


def test_each_has_its_own_within_what_the_kernel_keeps() -> None:
    assert len(set(WORKLOADS)) == MAX_WORKLOADS
    assert all(label <= set(SHARED) for label in WORKLOADS)
    assert all(bits(label) == (label,) for label in range(FIRST_LABEL))
    assert set(SHARED).isdisjoint(range(FIRST_LABEL))
    assert max(SHARED) < 128


def test_two_together_are_nobodys() -> None:
    known = set(WORKLOADS)
    assert not any(one | other in known for one, other in combinations(WORKLOADS, 2))
