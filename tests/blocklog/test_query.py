"""What the index answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from blocklog.logs import T, block, write
from penstock.blocklog import index, query
from penstock.blocklog.index import Unusable, grow
from penstock.blocklog.log_files import Wanted
from penstock.blocklog.query import Index, Sum
from penstock.core.block_keys import endpoint


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five blocks in the index, and behind it one that grew and one that is new."""
    monkeypatch.setattr(index, "SMALL", 0)
    write(
        tmp_path,
        [
            block(1, count=5),
            block(2, address="192.0.2.2", workload="ollama", count=3),
            block(3, count=2, unlogged=1),
            block(4, direction="in", port=8000),
            block(5, address="192.0.2.2", workload="ollama"),
        ],
    )
    grow(tmp_path)
    write(tmp_path, [block(5, address="192.0.2.2", workload="ollama", count=50), block(6, address="192.0.2.9")])
    return tmp_path


def shown(found: Index, sums: list[Sum], by: str) -> list[tuple[str, int, int]]:
    return [(endpoint(found.newest_of(one, by).block), one.packets, one.unlogged) for one in sums]


@pytest.mark.parametrize("looked_at", [1, 3, 5000])
def test_rows_are_the_newest(log: Path, monkeypatch: pytest.MonkeyPatch, looked_at: int) -> None:
    monkeypatch.setattr(query, "_LOOKED_AT", looked_at)
    found = Index(log)
    sums = found.newest(Wanted(), 10)
    assert (sums.number, sums.packets) == (4, 63)
    assert shown(found, sums.first, "row") == [
        ("192.0.2.9:5432/tcp", 1, 0),
        ("192.0.2.2:5432/tcp", 53, 0),
        ("10.30.1.9 on 8000/tcp", 1, 0),
        ("10.30.1.9:5432/tcp", 8, 1),
    ]
    assert (sums.first[3].first, sums.first[3].last) == (T + 1, T + 3)
    two = found.newest(Wanted(), 2)
    assert (two.first, two.number, two.packets) == (sums.first[:2], 4, 63)
    own = found.newest(Wanted(workload="litellm", until=T + 4), 1)
    assert (shown(found, own.first, "row"), own.number, own.packets) == ([("10.30.1.9 on 8000/tcp", 1, 0)], 2, 9)
    assert found.newest(Wanted(since=T + 100), 9) == found.newest(Wanted(workload="none"), 1)
    found.close()


@pytest.mark.parametrize("few", [0, 1000])
def test_groups_are_the_largest(log: Path, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    monkeypatch.setattr(query, "_FEW", few)
    found = Index(log)
    sums = found.top("destination", Wanted(), 2)
    assert shown(found, sums.first, "destination") == [("192.0.2.2:5432/tcp", 53, 0), ("10.30.1.9:5432/tcp", 8, 1)]
    assert (sums.number, sums.packets) == (4, 63)
    assert [one.packets for one in found.top("workload", Wanted(), 9).first] == [53, 10]
    assert [one.packets for one in found.top("process", Wanted(direction="in"), 9).first] == [1]
    assert found.top("row", Wanted(since=T + 100), 9).first == []
    assert found.top("row", Wanted(), 9).packets == 63
    found.close()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(), [1, 2, 3, 4, 5, 6]),
        (Wanted(since=T + 5), [5, 6]),
        (Wanted(until=T + 2), [1, 2]),
        (Wanted(since=T + 2, until=T + 5, workload="ollama"), [2, 5]),
        (Wanted(workload="none"), []),
        (Wanted(direction="in"), [4]),
    ],
)
def test_what_was_asked_for(log: Path, wanted: Wanted, expected: list[int]) -> None:
    found = Index(log)
    for limit in (None, 1, 2, 100):
        numbers = [int(found.record(place).block.id[:12], 16) for place in found.places(wanted, limit)]
        assert numbers == expected[-limit if limit else 0 :]
    found.close()


def test_an_id_or_its_beginning(log: Path) -> None:
    found = Index(log)
    whole = block(2).id
    for prefix in (whole, whole[:14]):
        assert [found.record(place).block.id for place in found.with_id(prefix, 9)] == [whole]
    assert len(found.with_id("00000", 9)) == 6
    assert len(found.with_id("00000", 2)) == 2
    assert [found.record(place).block.count for place in found.with_id(block(5).id, 9)] == [50]
    assert found.with_id("g", 9) == found.with_id(whole + "0", 9) == []
    found.close()


def test_who_asks_holds_off_writers_only_until_release(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_PATIENCE", 0.0)
    found = Index(log)
    places = found.places(Wanted(), None)
    with pytest.raises(Unusable, match="locked"):
        grow(log)
    found.release()
    assert grow(log) == 0
    assert len([found.record(place) for place in places]) == 6
    found.close()


def test_one_that_is_far_behind_is_no_help(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.blocklog.query.MOST_UNINDEXED", 100)
    with pytest.raises(Unusable, match="behind"):
        Index(log)
