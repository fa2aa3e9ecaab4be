"""How soon the log answers: python -m tests.bench.blocks [--records N] [--rounds N] [--keep DIR]

Writes a log of N records, as the daemon would have in weeks of noise: 200 workloads that call a few places again
and again, and one that scans.  Then asks `penstock blocks` this and that, each in a process of its own as a shell
would, and prints seconds: the first build of the index, and the median and the worst of each question.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from penstock.core.blocks import Block, Process
from penstock.daemon.sinks import BlockLog

ROOT = Path(__file__).parents[2]
WORKLOADS = 200
PLACES = 40
SCANNED = 50_000
BATCH = 2000
SPAN = 14 * 86400.0

QUESTIONS = (
    (),
    ("--since", "10m", "--workload", "w-007"),
    ("--since", "7d"),
    ("--since", "7d", "--json", "--limit", "100"),
    ("--json", "--limit", "10"),
    ("--json", "--limit", "10", "--workload", "w-007", "--direction", "in"),
    ("--by", "destination"),
    ("--by", "destination", "--workload", "w-007"),
    ("--by", "workload", "--json"),
    ("--by", "process", "--limit", "20"),
)


def block(n: int, when: float, chance: random.Random) -> Block:
    """The n-th record: every tenth is the scanner's, every hundredth comes in."""
    scans, comes_in = n % 10 == 0, n % 100 == 1
    number = 0 if scans else chance.randrange(WORKLOADS)
    place = chance.randrange(SCANNED) if scans else number * PLACES + chance.randrange(PLACES)
    address = f"10.{place >> 16}.{place >> 8 & 255}.{place & 255}"
    name = f"host-{place}.example.org" if not scans and place % 3 == 0 else None
    workload = f"w-{number:03}"
    port = 11434 if comes_in else chance.choice((443, 5432, 8080))
    return Block(
        id=f"{int(when * 1000):012x}{n & 0xFFFFFF:06x}5eed5eed",
        first=when,
        last=when + chance.random() * 55,
        workload=workload,
        verdict="deny",
        mode="enforce",
        direction="in" if comes_in else "out",
        protocol="tcp",
        family=4,
        address=address,
        port=port,
        name=name,
        count=chance.randrange(1, 200),
        unlogged=0,
        rule=None,
        reason="no-rule",
        text="not in its rules; nearest is rule egress-9384ed1a (10.30.1.5:5432)",
        nearest="egress-9384ed1a",
        process=Process(number + 1000, f"python{number % 7}"),
        policy="0123456789abcdef" * 4,
        allow=f'penstock grant {workload} {address}:{port} --for 8h --reason "..."',
    )


def records(number: int) -> Iterator[list[Block]]:
    """In the order of time, up to now."""
    chance, begin = random.Random(7), time.time() - SPAN
    for start in range(0, number, BATCH):
        yield [block(n, begin + SPAN * n / number, chance) for n in range(start, min(start + BATCH, number))]


def asked(directory: Path, *arguments: str) -> float:
    """Seconds that the program took."""
    argv = [sys.executable, "-m", "penstock.cli.main", "blocks", "--log", str(directory), *arguments]
    begin = time.monotonic()
    subprocess.run(
        argv, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT / "agent")}
    )
    return time.monotonic() - begin


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="keep the log there, or use the one that is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.keep or Path(temporary) / "log"
        if not directory.exists():
            log = BlockLog(directory)
            for batch in records(options.records):
                log.append(batch)
            log.close()
        size = sum(path.stat().st_size for path in directory.glob("blocks.jsonl*"))
        print(f"log: {size >> 20} MiB")
        print(f"first: {asked(directory):.2f} s")
        print(f"index: {(directory / 'index/blocks.sqlite').stat().st_size >> 20} MiB")
        for question in QUESTIONS:
            took = [asked(directory, *question) for _ in range(options.rounds)]
            line = " ".join(("blocks", *question))
            print(f"{line:<70} {statistics.median(took):.2f} s, at worst {max(took):.2f} s")


if __name__ == "__main__":
    main()
