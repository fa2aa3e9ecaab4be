"""What the rules cost each connection: python -m tests.bench.datapath [--rounds N] [--only TEXT] [--json]

Operations per CPU second: of a workload that is allowed and of a bystander, over a veth link and loopback, and
of a remote host that a workload or a bystander serves.  Each variant is in a lab of its own; all take turns in
every round, and a ratio is taken within its round.  Printed are the median of the rounds (the quartiles, the
extremes) and the median CPU time of an operation.  1.000 is the same host with nothing but conntrack switched on.

What admin ports and a gateway cost bystanders: `--variants penstock --only bystander`; "planes apart against
without" is the same rules without these.  Egress against ingress plus egress is `tests.bench.ingress`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TypeVar

from governed import Governed, slice_of
from penstock.demo.lab import OTHERS, REMOTES, Lab

from .generator import OPERATIONS, Place, build
from .variants import APART, CALLER, CONNTRACK, HUNDRED, NOTHING, ONE, PORT, SERVED, VARIANTS, Variant

COUNTS = {"connects": 200, "requests": 400, "echoes": 500}
"""Operations at a stretch: some milliseconds, so that all variants see the same moods of the machine."""

PLACES = tuple((r, link) for r in ("workload", "bystander") for link in ("veth", "loopback"))
SERVED_BY, BESIDE = ("served by a workload", "veth"), ("served by a bystander", "veth")
LOOPBACK = {4: "127.0.0.1", 6: "::1"}


@dataclass(frozen=True, slots=True)
class Cell:
    """What is measured of each variant."""

    operation: str
    role: str
    link: str
    family: int

    def __str__(self) -> str:
        return f"{self.operation} v{self.family}, {self.role}, {self.link}"


CELLS = [Cell(o, role, link, f) for o in OPERATIONS for f in (4, 6) for role, link in PLACES]
CELLS += [Cell(o, *SERVED_BY, f) for o in ("connects", "requests") for f in (4, 6)]
CELLS += [Cell(o, *BESIDE, f) for o in OPERATIONS for f in (4, 6)]


class Stand:
    """One variant in its lab, and whoever calls there."""

    def __init__(self, variant: Variant, cpu: int) -> None:
        self._stack = ExitStack()
        with ExitStack() as stack:
            lab = stack.enter_context(Lab(remotes={"registry": REMOTES["registry"]}))
            governed = stack.enter_context(closing(Governed(lab)))
            variant.load(governed, lab)
            self._host, self._remote = lab.host, lab.remote["registry"]
            workload, others = lab.cgroup / slice_of(CALLER), lab.cgroup / OTHERS
            places = {
                SERVED_BY: Place((self._remote, others), (self._host, workload), SERVED, cpu),
                BESIDE: Place((self._remote, others), (self._host, others), SERVED + 1, cpu),
            }
            for role, link in PLACES:
                caller = (self._host, workload if role == "workload" else others)
                called = (self._host if link == "loopback" else self._remote, others)
                places[role, link] = Place(caller, called, PORT + (role == "bystander"), cpu)
            for place in places.values():
                stack.enter_context(closing(place))
            self._places = places
            self._stack = stack.pop_all()

    def run(self, cell: Cell, count: int) -> float:
        """CPU nanoseconds of one operation."""
        place = cell.role, cell.link
        called = self._remote if place in PLACES else self._host
        address = LOOPBACK[cell.family] if cell.link == "loopback" else called.address(cell.family)
        return self._places[place].run(cell.operation, address, count)

    def close(self) -> None:
        """End the lab."""
        self._stack.close()


T = TypeVar("T")
Times = dict[Cell, dict[str, list[float]]]


def measure(cells: Sequence[Cell], rounds: int, cpu: int, variants: Sequence[Variant]) -> Times:
    """CPU nanoseconds by cell and variant, one of each round."""
    times: Times = {cell: {v.name: [] for v in variants if v.complete or _is_simple(cell)} for cell in cells}
    with ExitStack() as stack:
        stands = {v.name: stack.enter_context(closing(Stand(v, cpu))) for v in variants}
        for number in range(-1, rounds):  # the first warms up
            for cell, taken in times.items():
                for name in turned(list(taken), number):
                    stands[name].run(cell, COUNTS[cell.operation] // 4)
                    value = stands[name].run(cell, COUNTS[cell.operation])
                    if number >= 0:
                        taken[name].append(value)
            print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return times


def _is_simple(cell: Cell) -> bool:
    """Whether also the variants can be measured that only know who is called, and only IPv4."""
    return cell.family == 4 and (cell.role, cell.link) in PLACES


def turned(names: list[T], by: int) -> list[T]:
    """`names`, begun with another one each time."""
    by %= len(names)
    return names[by:] + names[:by]


def ratios(base: Sequence[float], other: Sequence[float]) -> list[float]:
    """Operations of `other` to those of `base`, in each round."""
    return [b / o for b, o in zip(base, other, strict=True)]


def figures(times: Times) -> Iterator[tuple[Cell, str, float, list[float]]]:
    """Cell, variant, median microseconds of an operation, ratios against conntrack alone."""
    for cell, taken in times.items():
        for name, values in taken.items():
            yield cell, name, statistics.median(values) / 1000, ratios(taken[CONNTRACK], values)
        for name, said in ((HUNDRED, "100 x 1,000 against 1 x 10"), (APART, "planes apart against without")):
            if ONE in taken and name in taken:
                values = taken[name]
                yield cell, said, statistics.median(values) / 1000, ratios(taken[ONE], values)


def show(times: Times) -> None:
    """Print one table a cell."""
    before = None
    for cell, name, microseconds, found in figures(times):
        if cell != before:
            print(f"\n{cell}")
            before = cell
        print(f"  {name:32} {spread(found)}  {microseconds:7.2f} us")


def spread(found: Sequence[float]) -> str:
    """Median, quartiles and extremes."""
    low, middle, high = statistics.quantiles(found, n=4)
    return f"{middle:5.3f}  ({low:.3f} to {high:.3f}, all {min(found):.2f} to {max(found):.2f})"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="datapath", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", default="", metavar="TEXT", help="only what has this in its name")
    parser.add_argument("--variants", default="", metavar="TEXT", help="besides conntrack, only those with this")
    parser.add_argument("--cpu", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cells = [cell for cell in CELLS if options.only in str(cell)]
    variants = [v for v in VARIANTS if v.name in (NOTHING, CONNTRACK) or options.variants in v.name]
    if not build():
        print("no C compiler: the load is generated in Python, which hides much of what rules cost")
    times = measure(cells, options.rounds, options.cpu, variants)
    if options.json:
        rows = [
            {"what": str(cell), "variant": name, "us": us, "ratio": statistics.median(found), "ratios": found}
            for cell, name, us, found in figures(times)
        ]
        print(json.dumps(rows, indent=1))
    else:
        show(times)
    return 0


if __name__ == "__main__":
    sys.exit(main())
