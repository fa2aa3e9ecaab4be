"""Logs to make an index of, written by the daemon's own writer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from penstock.core.blocks import Block, Process
from penstock.daemon.sinks import BlockLog

T = 1_764_036_000.0  # 2025-11-25 02:00:00 UTC

BLOCK = Block(
    id="0",
    first=T,
    last=T,
    workload="litellm",
    verdict="deny",
    mode="enforce",
    direction="out",
    protocol="tcp",
    family=4,
    address="10.30.1.9",
    port=5432,
    name=None,
    count=1,
    unlogged=0,
    rule=None,
    reason="no-rule",
    text="not in its rules",
    nearest=None,
    process=Process(7, "python3"),
    policy="abc",
    allow=None,
)


def block(n: int, **changes: object) -> Block:
    return replace(BLOCK, id=f"{n:012x}00000a5eed5eed", first=T + n, last=T + n, **changes)  # type: ignore[arg-type]


def noise(seed: int, number: int) -> Iterator[Block]:
    """Blocks of all sorts, some of them told again soon, as the daemon tells what grows; times mostly in order."""
    chance = random.Random(seed)
    told: list[Block] = []
    for n in range(number):
        if told and chance.random() < 0.3:
            old = chance.choice(told[-5:])
            again = replace(old, last=old.last + chance.randrange(9), count=old.count + chance.randrange(5))
            told = [again if one is old else one for one in told]
            yield again
            continue
        lookup = chance.random() < 0.1
        made = block(
            n + chance.randrange(-3, 3) * (chance.random() < 0.1),
            workload=chance.choice(("litellm", "ollama", "a\x1b[2Jb")),
            direction=chance.choice(("in", "out")),
            verdict=chance.choice(("deny", "would-deny", None)),
            address=None if lookup else f"192.0.2.{chance.randrange(6)}",
            port=53 if lookup else chance.choice((443, 53, None)),
            name=chance.choice((None, "a.example", "b.example", "\udcff")),
            protocol=chance.choice(("tcp", "udp")),
            process=chance.choice((Process(), Process(1, "curl"), Process(2, ""))),
            count=chance.randrange(1, 100),
            unlogged=chance.choice((0, 0, 7)),
        )
        made = replace(made, id=f"{n:012x}00000a5eed5eed")
        told.append(made)
        yield made


def write(directory: Path, blocks: list[Block], max_bytes: int = 1 << 30) -> None:
    """Append them, one call a block, so that files rotate anywhere."""
    log = BlockLog(directory, max_bytes)
    for one in blocks:
        log.append([one])
    log.close()
