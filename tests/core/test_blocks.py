"""The published form of a block: every key, in order, and nothing else is read back as one."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.blocks import Block, Process, from_json

BLOCK = Block(
    id="0199",
    first=1764036000.25,
    last=1764036010.5,
    workload="litellm",
    verdict="deny",
    mode="enforce",
    direction="out",
    protocol="tcp",
    family=4,
    address="192.0.2.9",
    port=5432,
    name=None,
    count=214,
    unlogged=3,
    rule=None,
    reason="no-rule",
    text="not in its rules",
    nearest="r2",
    process=Process(77, "python3"),
    policy="abc",
    allow="penstock grant litellm 192.0.2.9:5432 --for 8h",
)

TEXT = (
    '{"v":1,"id":"0199","first":"2025-11-25T02:00:00.250Z","last":"2025-11-25T02:00:10.500Z",'
    '"workload":"litellm","verdict":"deny","mode":"enforce","direction":"out","protocol":"tcp","family":4,'
    '"address":"192.0.2.9","port":5432,"name":null,"count":214,"unlogged":3,"rule":null,"reason":"no-rule",'
    '"text":"not in its rules","nearest":"r2","process":{"pid":77,"comm":"python3"},"policy":"abc",'
    '"allow":"penstock grant litellm 192.0.2.9:5432 --for 8h"}'
)


def test_the_published_form() -> None:
    assert BLOCK.as_json() == TEXT


def test_reads_back() -> None:
    assert from_json(TEXT) == BLOCK
    assert from_json(TEXT.encode()) == BLOCK


def test_unknown_is_null_never_missing() -> None:
    bare = replace(
        BLOCK, verdict=None, mode=None, protocol=None, family=None, address=None, port=None, process=Process()
    )
    fields = json.loads(bare.as_json())
    assert list(fields) == list(json.loads(TEXT))
    assert fields["process"] == {"pid": None, "comm": None}
    assert from_json(bare.as_json()) == bare


def test_text_cannot_break_the_line() -> None:
    line = replace(BLOCK, text="a\nb\x1b[2J\u202e\udcff").as_json()
    assert line.isascii()
    assert line.isprintable()


def test_keys_are_only_added() -> None:
    assert from_json(TEXT[:-1] + ',"later":[1]}') == BLOCK


def changed(**fields: Any) -> str:
    return json.dumps({**json.loads(TEXT), **fields})


@pytest.mark.parametrize(
    "line",
    [
        "",
        "null",
        "[]",
        TEXT[:-1],
        TEXT.replace('"reason"', '"raison"'),
        changed(v=2),
        changed(count="1"),
        changed(count=True),
        changed(count=-1),
        changed(count=1 << 70),
        changed(first="2025-11-25T02:00:00"),
        changed(first="yesterday"),
        changed(first="0001-01-01T00:00:00+23:00", last="0001-01-01T00:00:00+23:00")[:-2],
        changed(direction="up"),
        changed(verdict="allow"),
        changed(family=5),
        changed(process=None),
        changed(process={"pid": 1}),
        "[" * 60_000,
        " " * 70_000 + TEXT,
        b"\xff" + TEXT.encode(),
    ],
)
def test_refuses(line: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(line)


@given(st.binary())
def test_any_bytes(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(line)


@given(
    st.sampled_from(sorted(json.loads(TEXT))),
    st.from_type(type(None)) | st.integers() | st.text() | st.floats(),
)
def test_any_value(key: str, value: Any) -> None:
    with suppress(ValueError):
        from_json(changed(**{key: value}))
