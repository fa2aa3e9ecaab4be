"""The log prefix reads back as written, fits the kernel's limit, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.log_prefix import MAX_PREFIX, OF_NONE, Kind, Refusal, format_prefix, parse_prefix
from penstock.core.policy import Direction, Mode

PAIRS = [
    (Direction.OUT, Kind.RULES),
    (Direction.OUT, Kind.SOURCE),
    (Direction.OUT, Kind.LOOPBACK),
    (Direction.OUT, Kind.UNBOUND),
    (Direction.IN, Kind.RULES),
    (Direction.IN, Kind.REPLY),
    (Direction.IN, Kind.UNBOUND),
    (Direction.IN, Kind.ADMIN),
]


def test_words() -> None:
    assert (
        format_prefix("out", "deny", "enforce", "rules", "open-webui")
        == "ps1 out deny enforce rules open-webui"
    )
    assert (
        format_prefix("in", "would-deny", "observe", "unbound", "-") == "ps1 in would-deny observe unbound -"
    )


@given(
    st.sampled_from(PAIRS),
    st.sampled_from(Refusal),
    st.sampled_from(Mode),
    st.from_regex("[a-z][a-z0-9_-]{0,62}", fullmatch=True),
)
def test_reads_back(pair: tuple[Direction, Kind], verdict: Refusal, mode: Mode, name: str) -> None:
    direction, kind = pair
    workload = "-" if kind in OF_NONE else name
    text = format_prefix(direction, verdict, mode, kind, workload)
    assert len(text.encode()) <= MAX_PREFIX
    prefix = parse_prefix(text)
    assert (prefix.direction, prefix.verdict, prefix.mode, prefix.kind, prefix.workload) == (
        direction, verdict, mode, kind, workload,
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ps1",
        "ps2 out deny enforce rules w",
        "ps1 out deny enforce rules",
        "ps1 out deny enforce rules w w",
        "ps1  out deny enforce rules w",
        "ps1 out allow enforce rules w",
        "ps1 out deny enforced rules w",
        "ps1 sideways deny enforce rules w",
        "ps1 out deny enforce reply w",
        "ps1 in deny enforce source w",
        "ps1 out deny enforce rules -",
        "ps1 out deny enforce unbound w",
        "ps1 out deny enforce rules w\n",
        'ps1 out deny enforce rules w"',
        "ps1 out deny enforce rules " + "w" * 65,
    ],
)
def test_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_prefix(text)


@given(st.text())
def test_refuses_any_text(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_prefix(text)
