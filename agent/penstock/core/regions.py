"""Arithmetic of address and port intervals: many overlapping allowances -> disjoint set elements.

An interval-concatenation set of nftables refuses overlapping elements, depending on the order in which they
come, so what goes into one set is made disjoint here first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from penstock.core.ruleset import Element

Interval = tuple[int, int]  # first and last, both included
Piece = tuple[int, int, "Allowance"]  # first port, last port, and whose it is


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one rule allows for one protocol: any of `addresses` with any of `ports` (each disjoint)."""

    order: int
    rule: str
    protocol: int
    addresses: tuple[Interval, ...]
    ports: tuple[Interval, ...]
    expires: datetime | None = None


def merge(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """Return the same numbers as sorted intervals that neither overlap nor touch."""
    merged: list[Interval] = []
    for low, high in sorted(intervals):
        if merged and low <= merged[-1][1] + 1:
            if high > merged[-1][1]:
                merged[-1] = (merged[-1][0], high)
        else:
            merged.append((low, high))
    return tuple(merged)


def subtract(intervals: Sequence[Interval], holes: Sequence[Interval]) -> tuple[Interval, ...]:
    """Return `intervals` without the numbers in `holes`; both must be merged."""
    left: list[Interval] = []
    start = 0
    for low, high in intervals:
        while start < len(holes) and holes[start][1] < low:
            start += 1
        at, rest = start, low
        while at < len(holes) and holes[at][0] <= high:
            if holes[at][0] > rest:
                left.append((rest, holes[at][0] - 1))
            rest = holes[at][1] + 1
            at += 1
        if rest <= high:
            left.append((rest, high))
    return tuple(left)


def disjoint(allowances: Iterable[Allowance]) -> dict[Element, Allowance]:
    """Return elements that together allow exactly what `allowances` allow, no two of them overlapping.

    Where several rules allow one thing, the element belongs to the one that lasts longest, and among those
    to the first in order.
    """
    by_protocol: dict[int, list[Allowance]] = defaultdict(list)
    for allowance in allowances:
        by_protocol[allowance.protocol].append(allowance)
    elements: dict[Element, Allowance] = {}
    for protocol, group in by_protocol.items():
        for low, high, pieces in _segments(group):
            for first, last, owner in pieces:
                elements[Element(low, high, protocol, first, last)] = owner
    return elements


def _segments(group: Sequence[Allowance]) -> list[tuple[int, int, tuple[Piece, ...]]]:
    """Sweep over the addresses: each stretch between two boundaries, with the port pieces allowed there."""
    starts: dict[int, list[Allowance]] = defaultdict(list)
    ends: dict[int, list[Allowance]] = defaultdict(list)
    for allowance in group:
        for low, high in allowance.addresses:
            starts[low].append(allowance)
            ends[high + 1].append(allowance)
    active: dict[int, Allowance] = {}
    cache: dict[tuple[int, ...], tuple[Piece, ...]] = {}
    segments: list[tuple[int, int, tuple[Piece, ...]]] = []
    boundaries = sorted(starts.keys() | ends.keys())
    for here, after in pairwise(boundaries):
        for allowance in ends.get(here, ()):
            del active[allowance.order]
        for allowance in starts.get(here, ()):
            active[allowance.order] = allowance
        if not active:
            continue
        key = tuple(sorted(active))
        if key not in cache:
            cache[key] = _port_pieces(active.values())
        pieces = cache[key]
        if segments and segments[-1][1] == here - 1 and segments[-1][2] == pieces:
            segments[-1] = (segments[-1][0], after - 1, pieces)
        else:
            segments.append((here, after - 1, pieces))
    return segments


def _port_pieces(active: Iterable[Allowance]) -> tuple[Piece, ...]:
    """Divide the ports that `active` allow among them, each port to one."""
    taken: tuple[Interval, ...] = ()
    pieces: list[Piece] = []
    for allowance in sorted(active, key=_precedence):
        pieces.extend((first, last, allowance) for first, last in subtract(allowance.ports, taken))
        taken = merge((*taken, *allowance.ports))
    return tuple(sorted(pieces, key=lambda piece: piece[0]))


def _precedence(allowance: Allowance) -> tuple[bool, float, int]:
    lasts = allowance.expires
    return (lasts is not None, -lasts.timestamp() if lasts else 0.0, allowance.order)
