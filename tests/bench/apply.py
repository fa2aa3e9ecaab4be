"""How long an apply takes, by phase: python -m tests.bench.apply [--runs N] [--json]

Milliseconds of parsing the rule files, compiling, rendering, loading into a fresh kernel, reading everything back,
and of the same for a change of one rule.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from governed import DEPTH, Actor
from penstock.core import label_bits, render_nft
from penstock.core.compile import Live, compile_policy
from penstock.core.parse import parse
from penstock.core.render_nft import Present
from penstock.core.ruleset import TABLE
from penstock.demo.lab import Lab
from penstock.kernel import cgroup
from penstock.kernel.nft import Nft

from .variants import policy

SIZES = ((1, 10), (100, 10), (100, 1000))


@dataclass(slots=True)
class Watch:
    """Milliseconds by phase."""

    phases: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block."""
        start = time.perf_counter()
        yield
        self.phases[name] = (time.perf_counter() - start) * 1000


def apply(files: list[str], tree: Path) -> dict[str, float]:
    """Put `files` in force where nothing is, then with one rule less; in a process of its own namespace."""
    nft, watch, now = Nft(), Watch(), datetime.now(UTC)
    cgroup.make(tree, ())
    place = cgroup.slice_for_nft(tree)
    for change in ("", "change: "):
        if change:
            files = [files[0].replace("10.", "11.", 1), *files[1:]]
        with watch.phase(f"{change}parse"):
            parsed = parse({f"rules.d/{number}.yaml": text.encode() for number, text in enumerate(files)})
        assert parsed.policy, parsed.problems
        labels = {name: label_bits.FIRST_LABEL + i for i, name in enumerate(parsed.policy.workloads)}
        with watch.phase(f"{change}compile"):
            ruleset = compile_policy(parsed.policy, Live(now, labels, DEPTH, slice=place))
        with watch.phase(f"{change}render"):
            present = nft.snapshot().present if change else Present()
            script = render_nft.script(ruleset, present, now)
        with watch.phase(f"{change}load"):
            nft.load(script)
        with watch.phase(f"{change}read back"):
            snapshot = nft.snapshot()
        assert snapshot.sets == {s.name: s.elements.keys() for s in ruleset.sets}
    nft.load(f"delete table inet {TABLE}\n")
    nft.close()
    return watch.phases


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="apply", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {}
    with Lab() as lab, Actor(lab.host) as actor:
        for workloads, addresses in SIZES:
            files = policy(lab, workloads, addresses)
            runs = [actor(apply, files, lab.cgroup) for _ in range(options.runs)]
            medians = {phase: statistics.median(run[phase] for run in runs) for phase in runs[0]}
            found[f"{workloads} x {addresses:,}"] = medians
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"{'milliseconds':22}" + "".join(f"{size:>12}" for size in found))
    for phase in next(iter(found.values())):
        print(f"{phase:22}" + "".join(f"{phases[phase]:12.1f}" for phases in found.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
