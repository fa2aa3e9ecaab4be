"""What is remembered of names, as a file: JSON, one list of answers with its workloads and names numbered.

It says nothing that opens anything by itself: an answer counts only if the kernel still holds its address.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from penstock.core.dns_names import is_plain
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
    """The answers in `data`, without those that make no sense.  ValueError when it is no such file.

    What one workload looked up must not take from the others what they know.
    """
    try:
        value: Any = json.loads(data)
    except RecursionError as e:
        raise ValueError("not a list of answers") from e
    if not isinstance(value, dict) or value.keys() != {"penstock-names", "texts", "answers"}:
        raise ValueError("not a list of answers")
    texts, rows = value["texts"], value["answers"]
    if value["penstock-names"] != VERSION or not isinstance(texts, list) or not isinstance(rows, list):
        raise ValueError("of another version")
    if len(rows) > MOST:
        raise ValueError("too many answers")
    plain = [isinstance(text, str) and is_plain(text) for text in texts]
    return [answer for row in rows if (answer := _answer(row, texts, plain)) is not None]


def _answer(row: Any, texts: list[Any], plain: list[bool]) -> Saved | None:
    """`plain` says which of `texts` the resolver may have said."""
    try:
        workload, address, name, until = row
        whose, text, packed = texts[workload], texts[name], bytes.fromhex(address)
        good = all(type(number) is int and number >= 0 for number in (workload, name, until))
        if not good or not isinstance(whose, str) or not plain[name]:
            return None
    except (ValueError, TypeError, IndexError):
        return None
    return (whose, packed, text, float(until)) if len(packed) in (4, 16) and until < LATEST else None
