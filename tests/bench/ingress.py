"""What it costs that the server is a workload too: python -m tests.bench.ingress [--rounds N] [--only TEXT]

Operations per CPU second, both ends together, of connections that rules allow.  A workload calls a server that is
none, which is egress alone; the same server as a workload, whose ingress rules are asked as well, is compared with
that:

  loopback           ingress by address, and `from: workload:` with `to: workload:` on the caller's side
  veth, one host     a remote host without any firewall calls the workload: ingress alone against egress alone
  veth, both hosts   the remote host has the same rules, and its server is a bystander of it or a workload

What is compared is in one lab and takes turns in every round; a ratio is taken within its round.  Printed are the
median of the rounds (the quartiles, the extremes) and the median CPU time of an operation.  1.000 is egress alone;
"again" is egress alone a second time, and shows what a ratio is worth on this machine.  Takes some four minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from governed import Actor, Governed, slice_of
from penstock.demo.lab import OTHERS, REMOTES, Lab

from .datapath import COUNTS, LOOPBACK, ratios, spread, turned
from .generator import OPERATIONS, Place, build
from .variants import CALLER, policy

MODEL = "model"
PORT, AGAIN, LISTED, NAMED = 8000, 8001, 8200, 8201
"""Of a bystander, twice; of the model server, opened to addresses; and to the workload that calls."""

SIZES = ((2, 10), (100, 1000))
"""Workloads, and addresses that each may call."""


@dataclass(frozen=True, slots=True)
class Case:
    """Who calls whom: `near` is the host, `far` the remote host; a workload or None."""

    name: str
    link: str
    caller: tuple[str, str | None]
    called: tuple[str, str | None]
    port: int


ALONE = "egress alone"
ONE, BOTH = "veth, one host", "veth, both hosts"
CALLS, OTHER = ("near", CALLER), ("near", None)
CASES = (
    Case(ALONE, "loopback", CALLS, OTHER, PORT),
    Case("egress alone, again", "loopback", CALLS, OTHER, AGAIN),
    Case("plus ingress, by address", "loopback", CALLS, ("near", MODEL), LISTED),
    Case("plus ingress, by workload", "loopback", CALLS, ("near", MODEL), NAMED),
    Case(ALONE, ONE, CALLS, ("far", None), PORT),
    Case("egress alone, again", ONE, CALLS, ("far", None), AGAIN),
    Case("ingress alone", ONE, ("far", None), ("near", MODEL), LISTED),
    Case(ALONE, BOTH, CALLS, ("far", None), PORT),
    Case("plus ingress", BOTH, CALLS, ("far", MODEL), LISTED),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """What is compared with each other."""

    operation: str
    link: str
    family: int
    size: tuple[int, int]

    def __str__(self) -> str:
        workloads, addresses = self.size
        return f"{self.operation} v{self.family}, {self.link}, {workloads} x {addresses:,}"


LINKS = tuple(dict.fromkeys(case.link for case in CASES))
CELLS = [Cell(o, link, f, size) for o in OPERATIONS for link in LINKS for f in (4, 6) for size in SIZES]


def files(lab: Lab, workloads: int, addresses: int) -> list[str]:
    """Rule files of that many workloads: those of the other benches, and the model server."""
    addressed = (*lab.host.addresses, *lab.remote["registry"].addresses, *LOOPBACK.values())
    listed = ", ".join(f"'{address}'" for address in addressed)
    ports = f"[{AGAIN}, {AGAIN}/udp, {LISTED}, {LISTED}/udp]"
    named = f"[{NAMED}, {NAMED}/udp]"
    caller, *rest = policy(lab, workloads - 1, addresses)
    more = f"  - {{to: [{listed}], ports: {ports}}}\n  - {{to: 'workload:{MODEL}', ports: {named}}}\n"
    caller = caller.replace("ingress:", f"{more}ingress:")
    model = policy(lab, 1, addresses)[0].replace(f"workload: {CALLER}", f"workload: {MODEL}")
    model += f"  - {{from: [{listed}], ports: {ports}}}\n  - {{from: 'workload:{CALLER}', ports: {named}}}\n"
    return [caller, model, *rest]


class Stand:
    """A lab with the cases of one link."""

    def __init__(self, size: tuple[int, int], link: str, cpu: int) -> None:
        self._stack = ExitStack()
        with ExitStack() as stack:
            lab = stack.enter_context(Lab(remotes={"registry": REMOTES["registry"]}))
            self._hosts = {"near": lab.host, "far": lab.remote["registry"]}
            governed = [stack.enter_context(closing(Governed(lab)))]
            if link == BOTH:
                governed.append(stack.enter_context(closing(_on_the_far_host(lab))))
            for each in governed:
                each.load(*files(lab, *size))
            self._places = {}
            for case in _cases(link):
                caller, called = (
                    (self._hosts[host], lab.cgroup / (slice_of(workload) if workload else OTHERS))
                    for host, workload in (case.caller, case.called)
                )
                self._places[case] = stack.enter_context(closing(Place(caller, called, case.port, cpu)))
            self._stack = stack.pop_all()

    def run(self, case: Case, operation: str, family: int, count: int) -> float:
        """CPU nanoseconds of one operation."""
        called = self._hosts[case.called[0]].address(family)
        address = LOOPBACK[family] if case.link == "loopback" else called
        return self._places[case].run(operation, address, count)

    def close(self) -> None:
        """End the lab."""
        self._stack.close()


def _cases(link: str) -> list[Case]:
    return [case for case in CASES if case.link == link]


def _on_the_far_host(lab: Lab) -> Governed:
    governed = Governed(lab)
    governed.agent.close()
    governed.agent = Actor(lab.remote["registry"])
    return governed


Times = dict[Cell, dict[Case, list[float]]]


def measure(cells: Sequence[Cell], rounds: int, cpu: int) -> Times:
    """CPU nanoseconds by cell and case, one of each round."""
    times: Times = {cell: {case: [] for case in _cases(cell.link)} for cell in cells}
    with ExitStack() as stack:
        stands = {
            (size, link): stack.enter_context(closing(Stand(size, link, cpu)))
            for size, link in dict.fromkeys((cell.size, cell.link) for cell in cells)
        }
        for number in range(-1, rounds):  # the first warms up
            for cell, taken in times.items():
                stand, count = stands[cell.size, cell.link], COUNTS[cell.operation]
                for case in turned(list(taken), number):
                    stand.run(case, cell.operation, cell.family, count // 4)
                    value = stand.run(case, cell.operation, cell.family, count)
                    if number >= 0:
                        taken[case].append(value)
            print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return times


def figures(times: Times) -> Iterator[tuple[Cell, str, float, list[float]]]:
    """Cell, case, median microseconds of an operation, ratios against egress alone."""
    for cell, taken in times.items():
        (alone,) = (values for case, values in taken.items() if case.name == ALONE)
        for case, values in taken.items():
            yield cell, case.name, statistics.median(values) / 1000, ratios(alone, values)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="ingress", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", default="", metavar="TEXT", help="only what has this in its name")
    parser.add_argument("--cpu", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not build():
        print("no C compiler: the load is generated in Python, which hides much of what rules cost")
    times = measure([cell for cell in CELLS if options.only in str(cell)], options.rounds, options.cpu)
    if options.json:
        rows = [
            {"what": str(cell), "case": name, "us": us, "ratio": statistics.median(found), "ratios": found}
            for cell, name, us, found in figures(times)
        ]
        print(json.dumps(rows, indent=1))
        return 0
    before = None
    for cell, name, us, found in figures(times):
        if cell != before:
            print(f"\n{cell}")
            before = cell
        print(f"  {name:32} {spread(found)}  {us:7.2f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
