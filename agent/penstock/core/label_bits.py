"""How labels are written into the 128 bits that the kernel keeps with a connection.

A few labels have a meaning of their own, and a bit each.  A workload's label is three bits of those that come
next: bits are only ever added, and what two workloads added to one connection is the label of neither.
"""

from __future__ import annotations

from itertools import combinations

FIRST_LABEL = 3
"""Of workloads; those before it are bits."""

MAX_WORKLOADS = 500
"""On one host.  There are labels for a few more."""

LABELS = FIRST_LABEL + MAX_WORKLOADS

SHARED = tuple(range(FIRST_LABEL, FIRST_LABEL + 16))
"""The bits that labels of workloads are made of: each of these labels sets three of them and no other."""

_CODES = tuple(combinations(SHARED, 3))


def bits(label: int) -> tuple[int, ...]:
    """The bits of a label, 0 to LABELS - 1."""
    return (label,) if label < FIRST_LABEL else _CODES[label - FIRST_LABEL]
