"""The block log: whole lines only, whatever happens to the disk."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.core.blocks import LOG_KEPT, Block, Process, from_json
from penstock.daemon import sinks
from penstock.daemon.sinks import MAX_BYTES, BlockLog

BLOCK = Block(
    id="0",
    first=1764036000.0,
    last=1764036000.0,
    workload="w",
    verdict="deny",
    mode="enforce",
    direction="out",
    protocol="tcp",
    family=4,
    address="192.0.2.9",
    port=443,
    name=None,
    count=1,
    unlogged=0,
    rule=None,
    reason="no-rule",
    text="no rule",
    nearest=None,
    process=Process(),
    policy=None,
    allow=None,
)
LINE = len(BLOCK.as_json()) + 1


def blocks(*ids: int) -> list[Block]:
    return [replace(BLOCK, id=str(n)) for n in ids]


def ids(path: Path) -> list[str]:
    data = path.read_bytes()
    assert data.endswith(b"\n") or not data
    return [from_json(line).id for line in data.splitlines()]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file grows over `size`: the write that would is short, the next one fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_appends_with_the_right_mode(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        log = BlockLog(tmp_path / "a" / "b")
        log.append(blocks(1, 2))
        log.append(blocks(3))
    finally:
        os.umask(old)
    path = tmp_path / "a" / "b" / "blocks.jsonl"
    assert ids(path) == ["1", "2", "3"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_open_makes_an_empty_log(tmp_path: Path) -> None:
    BlockLog(tmp_path).append([])
    assert (tmp_path / "blocks.jsonl").read_bytes() == b""


def test_goes_on_after_a_restart_and_ends_a_half_line(tmp_path: Path) -> None:
    path = tmp_path / "blocks.jsonl"
    BlockLog(tmp_path).append(blocks(1))
    with path.open("ab") as f:
        f.write(b'{"v":1,"id"')
    BlockLog(tmp_path).append(blocks(2))
    first, half, second = path.read_bytes().splitlines()
    assert half == b'{"v":1,"id"'
    assert [from_json(first).id, from_json(second).id] == ["1", "2"]


def test_a_million_records_are_kept() -> None:
    assert (LOG_KEPT + 1) * MAX_BYTES >= 1_000_000 << 10


def test_rotates_and_keeps_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "LOG_KEPT", 5)
    log = BlockLog(tmp_path, max_bytes=2 * LINE)
    for n in range(0, 9 * 2, 2):
        log.append(blocks(n))
        log.append(blocks(n + 1))
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["blocks.jsonl", *(f"blocks.jsonl.{n}" for n in range(1, 6))]
    kept = [ids(tmp_path / name) for name in names]
    # two-digit ids are a byte longer, so one of them fills a file
    assert kept == [["17"], ["16"], ["15"], ["14"], ["13"], ["12"]]


def test_a_batch_larger_than_a_file_is_not_split(tmp_path: Path) -> None:
    log = BlockLog(tmp_path, max_bytes=LINE)
    log.append(blocks(1, 2, 3))
    log.append(blocks(4))
    assert ids(tmp_path / "blocks.jsonl.1") == ["1", "2", "3"]
    assert ids(tmp_path / "blocks.jsonl") == ["4"]


def test_a_removed_or_moved_file_is_made_again(tmp_path: Path) -> None:
    log = BlockLog(tmp_path)
    log.append(blocks(1))
    (tmp_path / "blocks.jsonl").unlink()
    log.append(blocks(2))
    (tmp_path / "blocks.jsonl").rename(tmp_path / "mine")
    log.append(blocks(3))
    assert (ids(tmp_path / "mine"), ids(tmp_path / "blocks.jsonl")) == (["2"], ["3"])


def test_full_disk_keeps_whole_lines_and_goes_on(tmp_path: Path) -> None:
    log = BlockLog(tmp_path)
    path = tmp_path / "blocks.jsonl"
    log.append(blocks(1))
    with file_size_limit(3 * LINE + 10):
        with pytest.raises(OSError, match="No space"):
            log.append(blocks(2, 3, 4, 5))  # two fit, and ten bytes of the third
        assert ids(path) == ["1", "2", "3"]
        assert log.unwritten == 2
        with pytest.raises(OSError, match="No space"):
            log.append(blocks(6))
        assert ids(path) == ["1", "2", "3"]
        assert log.unwritten == 3
    log.append(blocks(7))
    assert ids(path) == ["1", "2", "3", "7"]
    assert log.unwritten == 3


def test_no_room_at_all(tmp_path: Path) -> None:
    log = BlockLog(tmp_path)
    log.append(blocks(1))
    with file_size_limit(LINE), pytest.raises(OSError) as e:  # noqa: PT011
        log.append(blocks(2))
    assert e.value.errno == errno.EFBIG
    assert (ids(tmp_path / "blocks.jsonl"), log.unwritten) == (["1"], 1)


def test_unwritable_directory_is_told_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the directory should be")
    log = BlockLog(tmp_path / "log")
    for n in (1, 2):
        with pytest.raises(FileExistsError):
            log.append(blocks(n))
    assert log.unwritten == 2
    (tmp_path / "log").unlink()
    log.append(blocks(3))
    assert ids(tmp_path / "log" / "blocks.jsonl") == ["3"]


def test_does_not_follow_a_link_or_fill_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "blocks.jsonl").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        BlockLog(tmp_path).append(blocks(1))
    (tmp_path / "blocks.jsonl").unlink()
    os.mkfifo(tmp_path / "blocks.jsonl")
    with pytest.raises(OSError, match="not a regular file"):
        BlockLog(tmp_path).append(blocks(1))
    assert (tmp_path / "target").read_bytes() == b""
