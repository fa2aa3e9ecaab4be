"""Words for what others chose, and for times."""

from __future__ import annotations

import pytest

from penstock.core.text import duration, printable


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (0.9, "0 s"), (59.9, "59 s"), (60, "1 min"), (7200, "2 h"), (86_399, "23 h"), (200_000, "2 d")],
)
def test_a_duration_is_in_its_largest_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_is_not_plain_is_escaped_and_what_is_long_is_cut() -> None:
    assert printable("a\x1b[2J\u202eb") == "a\\x1b[2J\\u202eb"
    assert printable("x" * 300, 10) == "x" * 9 + "…"
