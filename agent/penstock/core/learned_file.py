"""What is remembered of names, as a file: JSON, one list of answers with its workloads and names numbered.

It says nothing that opens anything by itself: an answer counts only if the kernel still holds its address.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from penstock.core.names import normalise
from penstock.core.state import LATEST

VERSION = 1
MOST = 200_000
"""Answers that are read."""

KERNEL_KEEPS = 100
"""Characters of a name that are sure to be kept with its address in the kernel."""

Saved = tuple[str, bytes, str, float]  # workload, address, name, end (seconds since the epoch)

_FRAME = 64  # bytes around it all, and some to spare


def encode(answers: Iterable[Saved], limit: int) -> bytes:
    """The file, with the first of `answers` that have room in `limit` bytes."""
    texts: dict[str, int] = {}
    rows: list[str] = []
    left = limit - _FRAME
    for workload, address, name, until in answers:
        whose = texts.get(workload, len(texts))
        where = whose if name == workload else texts.get(name, len(texts) + (whose == len(texts)))
        row = f'[{whose},"{address.hex()}",{where},{int(until)}]'
        left -= len(row) + 1
        if where >= len(texts) or whose >= len(texts):
            left -= len(workload) + len(name) + 6
        if left < 0 or len(rows) == MOST:
            break
        texts.setdefault(workload, whose)
        texts.setdefault(name, where)
        rows.append(row)
    head = f'{{"penstock-names":{VERSION},"texts":{json.dumps(list(texts), separators=(",", ":"))}'
    return f'{head},"answers":[{",".join(rows)}]}}'.encode()


def decode(data: bytes) -> list[Saved]:
    """The answers in `data`.  ValueError when it is no such file."""
    try:
        value: Any = json.loads(data)
        if value.keys() != {"penstock-names", "texts", "answers"} or value["penstock-names"] != VERSION:
            raise ValueError("of another version")
        if len(value["answers"]) > MOST:
            raise ValueError("too many answers")
        texts, names = value["texts"], [False] * len(value["texts"])
        return [_answer(row, texts, names) for row in value["answers"]]
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as e:
        raise ValueError(f"not a list of answers: {type(e).__name__}") from e


def _answer(row: Any, texts: list[Any], names: list[bool]) -> Saved:
    """`names` says which of `texts` are known to be names."""
    workload, address, name, until = row
    if not all(type(number) is int and number >= 0 for number in (workload, name, until)):
        raise ValueError("not a number")
    if not isinstance(texts[workload], str) or not isinstance(texts[name], str):
        raise ValueError("not text")
    if not names[name]:
        if normalise(texts[name]) != texts[name]:
            raise ValueError("not a name in its one form")
        names[name] = True
    packed = bytes.fromhex(address)
    if len(packed) not in (4, 16) or until >= LATEST:
        raise ValueError("no such address, or no such time")
    return texts[workload], packed, texts[name], float(until)
