"""How soon commands answer: python -m tests.bench.commands [--workloads N] [--rules N] [--rounds N]

With a policy of so many workloads, each with so many rules, and a daemon that answers at once: what is measured is
the program's own part.  Prints the median and the worst of the seconds from start to end.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cli.fake_daemon import FILES, FakeDaemon, in_force, status, workload

ROOT = Path(__file__).parents[2]


def files(workloads: int, rules: int) -> dict[str, bytes]:
    """A configuration."""
    made = {"penstock.yaml": FILES["penstock.yaml"]}
    for n in range(workloads):
        egress = "\n".join(f"  - {{to: 10.{n}.{r}.5, ports: [5432, 8000-8100]}}" for r in range(rules))
        made[f"rules.d/w{n}.yaml"] = (
            f"version: 1\nworkload: w{n}\nmode: enforce\nmatch: {{unit: w{n}.service}}\negress:\n{egress}\n"
            "ingress:\n  - {from: clients, ports: [8000]}\n"
        ).encode()
    return made


def took(run: Path, *arguments: str) -> float:
    """Seconds of one call, whatever its status."""
    argv = [sys.executable, "-m", "penstock.cli.main", "--run", str(run), *arguments]
    begin = time.monotonic()
    env = {**os.environ, "PYTHONPATH": str(ROOT / "agent")}
    subprocess.run(argv, check=False, stdout=subprocess.DEVNULL, env=env)
    return time.monotonic() - begin


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", type=int, default=200)
    parser.add_argument("--rules", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        replies = in_force()
        replies["status"] = status(*(workload(f"w{n}") for n in range(options.workloads)))
        replies["hits"] = {"rules": {}}
        with FakeDaemon(Path(home), replies) as daemon:
            daemon.write(files(options.workloads, options.rules))
            for line in (
                "--help",
                "status",
                "status w7",
                "status --json",
                "why w7 10.7.3.5:5432",
                "why w7 10.9.9.9:1",
            ):
                times = [took(daemon.run, *line.split()) for _ in range(options.rounds)]
                print(f"penstock {line:<24} {statistics.median(times):.3f} s, at worst {max(times):.3f} s")


if __name__ == "__main__":
    main()
