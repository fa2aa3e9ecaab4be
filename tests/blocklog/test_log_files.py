"""The files of the log, line by line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.blocklog import log_files
from penstock.blocklog.log_files import line_at, lines_between
from penstock.core.blocks import MAX_LINE


@pytest.mark.parametrize("chunk", [1, 2, 7, 4096])
def test_lines_and_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(log_files, "_CHUNK", chunk)
    data = b"one\n\ntwo\n" + b"x" * 300 + b"\nfour\nhalf"
    (tmp_path / "f").write_bytes(data)
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    found = list(lines_between(fd, 0, len(data) - 4))
    assert found == [(0, b"one"), (5, b"two"), (9, b"x" * 300), (310, b"four")]
    assert [line_at(fd, place) for place, _ in found] == [line for _, line in found]
    assert list(lines_between(fd, 5, 310)) == found[1:3]
    assert list(lines_between(fd, 0, len(data) + 999)) == found
    os.close(fd)


def test_a_line_without_end_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "_CHUNK", 1000)
    long = 10 * MAX_LINE
    (tmp_path / "f").write_bytes(b"a\n" + b"x" * long + b"\nb\n")
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    (first, huge, last) = lines_between(fd, 0, long + 5)
    assert (first, last) == ((0, b"a"), (long + 3, b"b"))
    assert huge[0] == 2
    assert MAX_LINE < len(huge[1]) <= 2 * MAX_LINE
    assert len(line_at(fd, 2)) == MAX_LINE + 1
    os.close(fd)
