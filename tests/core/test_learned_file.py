"""What is remembered of names, written and read: exact, bounded, and rubbish is refused or left out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.learned_file import MOST, Saved, decode, encode

T = 1_764_036_000.0
ADDRESSES = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
NAMES = st.sampled_from(["a.example", "b.example", "_x.a-b.example", "9.example", "-x.example", "x-.example"])
ANSWERS = st.lists(
    st.tuples(
        st.sampled_from(["w", "open-webui", "a.example"]), ADDRESSES, NAMES, st.integers(0, 2 * int(T)).map(float)
    )
)


@given(ANSWERS)
def test_what_is_written_is_read(answers: list[Saved]) -> None:
    assert decode(encode(answers, 1 << 20)) == answers


@given(ANSWERS, st.integers(100, 400))
def test_it_fits_and_holds_the_first(answers: list[Saved], limit: int) -> None:
    data = encode(answers, limit)
    found = decode(data)
    assert len(data) <= limit
    assert found == answers[: len(found)]


def test_there_is_a_bound_of_answers() -> None:
    row: Saved = ("w", b"\xc0\x00\x02\x01", "a.example", T)
    assert len(decode(encode([row] * (MOST + 1), 1 << 30))) == MOST


GOOD: dict[str, Any] = {"penstock-names": 1, "texts": ["w", "a.example"], "answers": [[0, "c0000201", 1, 9]]}
GOOD_ANSWERS = [("w", b"\xc0\x00\x02\x01", "a.example", 9.0)]


def test_the_good_one_is_good() -> None:
    assert decode(json.dumps(GOOD).encode()) == GOOD_ANSWERS


@pytest.mark.parametrize(
    "change",
    [
        {"penstock-names": 2},
        {"more": 1},
        {"texts": 5},
        {"answers": 5},
        {"answers": {"0": 1}},
        {"answers": [0] * (MOST + 1)},
    ],
    ids=lambda change: str(change)[:40],
)
def test_rubbish_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(json.dumps(GOOD | change).encode())


@pytest.mark.parametrize(
    "name", ["A.example", "a.example\n", "*.example.org", "a..example", 'x"', "", "a." * 127, 5]
)
def test_an_answer_for_what_is_no_name_is_left_out(name: Any) -> None:
    rows = [[0, "c0000201", 1, 9], [0, "c0000202", 2, 9], [0, "c0000203", 1, 9]]
    data = json.dumps(GOOD | {"texts": ["w", "a.example", name], "answers": rows}).encode()
    assert [address[-1] for _, address, _, _ in decode(data)] == [1, 3]


@pytest.mark.parametrize(
    "row",
    [
        [0, "c0000201", 1],
        [0, "c00002", 1, 9],
        [0, "zz000201", 1, 9],
        [0, 5, 1, 9],
        [-1, "c0000201", 1, 9],
        [2, "c0000201", 1, 9],
        [0, "c0000201", 10**30, 9],
        [0, "c0000201", "1", 9],
        [0, "c0000201", True, 9],
        [0, "c0000201", 1, 9.5],
        [0, "c0000201", 1, "9"],
        [0, "c0000201", 1, 10**30],
        [0, "c0000201", 1, -1],
        5,
        None,
        "text",
        {},
    ],
    ids=str,
)
def test_an_answer_that_makes_no_sense_is_left_out(row: Any) -> None:
    assert decode(json.dumps(GOOD | {"answers": [row, *GOOD["answers"]]}).encode()) == GOOD_ANSWERS


@pytest.mark.parametrize("data", [b"", b"[]", b"5", b"\xff", b"[" * 100_000, b'{"penstock-names":1}'])
def test_what_is_no_such_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(data)
