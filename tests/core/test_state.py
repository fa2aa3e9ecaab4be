"""The saved state: what is written is read, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.state import Applied, decode, encode

GOOD = Applied("abc", 12.5, {"rules.d/a.yaml": b"x: \xc3\xa9"}, {"p.yaml": b""}, {"a": 3, "b": 4})


def test_what_is_written_is_read() -> None:
    assert decode(encode(GOOD)) == GOOD


def test_bytes_that_are_no_text_survive() -> None:
    applied = Applied("h", 0.0, {"f": bytes(range(256))})
    assert decode(encode(applied)) == applied


def test_another_version_is_said() -> None:
    with pytest.raises(ValueError, match="another version \\('9'\\)"):
        decode(json.dumps({"penstock": 9}).encode())


DAMAGE: dict[str, list[Any]] = {
    "at": ["x", -1, 1e300, float("nan"), float("inf"), 10**400, None],
    "labels": [{"a": 3, "b": 3}, {"a": float("inf")}, {"a": None}, [], "x"],
    "files": [{"a": 1}, [], None, {"a": "\ud800x"}],
    "presets": [None],
}


@pytest.mark.parametrize("change", [{key: value} for key, values in DAMAGE.items() for value in values])
def test_damage_is_called_damage(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the saved state is damaged"):
        decode(json.dumps({**json.loads(encode(GOOD)), **change}).encode())


@pytest.mark.parametrize("key", ["penstock", "hash", "at", "files", "presets", "labels"])
def test_a_missing_key_is_damage(key: str) -> None:
    value = json.loads(encode(GOOD))
    del value[key]
    with pytest.raises(ValueError, match="damaged"):
        decode(json.dumps(value).encode())


@given(st.binary(max_size=300))
def test_nothing_else_than_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="saved state"):
        decode(data)


def test_nested_too_deep() -> None:
    with pytest.raises(ValueError, match="damaged"):
        decode(b"[" * 200_000)
