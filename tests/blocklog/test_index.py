"""The index is made of the log alone: it grows with it, forgets with it, and is made anew when in doubt."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from blocklog.logs import BLOCK, block, noise, write
from penstock.blocklog import index, schema
from penstock.blocklog.index import Unusable, grow, may_write, path_in
from penstock.blocklog.log_files import Wanted
from penstock.blocklog.query import Index
from penstock.core.blocks import LOG_NAME, from_json

ALL = Wanted()
AGENT = Path(index.__file__).parents[2]


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SMALL", 0)


def told(directory: Path) -> list[tuple[str, int]]:
    """The blocks that the index and the log's end have, oldest first, with their counts."""
    found = Index(directory)
    try:
        places = found.places(ALL, None)
        return [(b.id, b.count) for b in (found.record(place).block for place in places)]
    finally:
        found.close()


def expected(directory: Path) -> list[tuple[str, int]]:
    """The same, read from the files by hand: the last line of each id counts."""
    names = [LOG_NAME, *(f"{LOG_NAME}.{n}" for n in range(1, 16))]
    files = [directory / name for name in reversed(names) if (directory / name).exists()]
    last: dict[str, int] = {}
    for path in files:
        for line in path.read_bytes().splitlines():
            one = from_json(line)
            last.pop(one.id, None)
            last[one.id] = one.count
    return list(last.items())


def inode(directory: Path) -> int:
    return path_in(directory).stat().st_ino


def test_it_grows_with_the_log_and_across_rotations(tmp_path: Path) -> None:
    blocks = list(noise(1, 600))
    for start in range(0, 600, 60):
        write(tmp_path, blocks[start : start + 60], max_bytes=12_000)
        before = inode(tmp_path) if start else None
        assert grow(tmp_path) == 0
        assert before in (None, inode(tmp_path)), "made anew"
        assert told(tmp_path) == expected(tmp_path)
    assert len(list(tmp_path.glob("blocks.jsonl.*"))) == 15


def test_what_was_rotated_out_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, [block(n, address=f"10.0.{n >> 8}.{n & 255}") for n in range(100)], max_bytes=5000)
    grow(tmp_path)
    before = inode(tmp_path)
    for start in range(1000, 1300, 20):
        write(tmp_path, [block(start + n) for n in range(20)], max_bytes=5000)
        grow(tmp_path)
    assert inode(tmp_path) == before, "made anew"
    with closing(sqlite3.connect(path_in(tmp_path))) as db:
        assert db.execute("SELECT COUNT(*) FROM kinds").fetchone() == (1,)
        assert db.execute("SELECT COUNT(*) FROM blocks").fetchone() == (len(expected(tmp_path)),)
        assert db.execute("SELECT COUNT(*) FROM segments").fetchone() == (16,)


def test_the_end_of_the_log_counts_though_it_is_not_in_it(tmp_path: Path) -> None:
    """A block that the index has may be told anew there, in the same file or in one that came since."""
    blocks = list(noise(2, 300))
    for end in (100, 130, 300):
        write(tmp_path, blocks[:100])
        grow(tmp_path)
        write(tmp_path, blocks[100:end], max_bytes=60_000)
        assert told(tmp_path) == expected(tmp_path)
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


def test_files_that_are_gone_count_no_more_before_the_index_knows(tmp_path: Path) -> None:
    write(tmp_path, list(noise(3, 300)), max_bytes=20_000)
    grow(tmp_path)
    max(tmp_path.glob("blocks.jsonl.*"), key=lambda path: int(path.suffix[1:])).unlink()
    assert told(tmp_path) == expected(tmp_path)


def _emptied(log: Path) -> None:
    log.write_bytes(b"")
    write(log.parent, [block(7), block(8)])


def _edited(log: Path) -> None:
    """In place, same size, at its end."""
    lines = log.read_bytes().splitlines(keepends=True)
    with log.open("r+b") as f:
        f.write(b"".join(lines[:-1]) + lines[-1].replace(b'"count":1,', b'"count":9,'))


def _edited_at_the_beginning(log: Path) -> None:
    with log.open("r+b") as f:
        f.write(log.read_bytes().replace(b'"count":1,', b'"count":9,', 1))


def _copied(log: Path) -> None:
    shutil.copy(log, log.with_suffix(".new"))
    log.with_suffix(".new").rename(log)


def _older_came_back(log: Path) -> None:
    write(log.parent / "other", [block(500)])
    (log.parent / "other" / LOG_NAME).rename(log.with_name(f"{LOG_NAME}.9"))


@pytest.mark.parametrize("change", [_emptied, _edited, _edited_at_the_beginning, _copied, _older_came_back])
def test_other_files_make_it_anew(tmp_path: Path, change: Callable[[Path], None]) -> None:
    write(tmp_path, [block(n) for n in range(40)])
    grow(tmp_path)
    change(tmp_path / LOG_NAME)
    with pytest.raises(Unusable):
        Index(tmp_path)
    grow(tmp_path)
    assert told(tmp_path) == expected(tmp_path)


def _garbage(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + os.urandom(9000))


def _holed(path: Path) -> None:
    """Pages in the middle are lost."""
    data = bytearray(path.read_bytes())
    data[8192:] = bytes(len(data) - 8192)
    path.write_bytes(data)


def _sql(*statements: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path)) as db:
            for statement in statements:
                db.execute(statement)
            db.commit()

    return change


@pytest.mark.parametrize(
    "damage",
    [
        _garbage,
        _holed,
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: path.chmod(0o666),
        _sql("PRAGMA user_version = 999"),
        _sql("PRAGMA application_id = 1"),
        _sql("DELETE FROM secret"),
        _sql("UPDATE secret SET key = 'text'"),
        _sql("UPDATE segments SET tail = 5"),
        _sql("DROP TABLE segments"),
    ],
)
def test_a_damaged_index_is_not_used_and_is_made_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    write(tmp_path, list(noise(4, 300)))
    grow(tmp_path)
    damage(path_in(tmp_path))
    with pytest.raises(Unusable):
        Index(tmp_path).newest(ALL, 5)
    for _ in range(2):  # damage in its middle shows when that is read
        grow(tmp_path)
    assert told(tmp_path) == expected(tmp_path)


@pytest.mark.parametrize(
    "moved", ["place + 1", "place + (1 << 41)", "(SELECT MIN(place) + MAX(place) FROM blocks) - place"]
)
def test_places_that_do_not_fit_the_log_are_noticed(tmp_path: Path, moved: str) -> None:
    write(tmp_path, [block(n, address=f"192.0.2.{n}") for n in range(8)])
    grow(tmp_path)
    _sql(
        f"CREATE TABLE moved AS SELECT {moved} AS place, id, kind, first, last, count, unlogged FROM blocks",
        "DELETE FROM blocks",
        "INSERT INTO blocks SELECT * FROM moved",
    )(path_in(tmp_path))
    found = Index(tmp_path)
    sums = found.newest(ALL, 1)
    with pytest.raises(Unusable):
        found.newest_of(sums.first[0], "row")
    found.close()


def test_a_writer_that_is_killed_leaves_what_it_had_committed(tmp_path: Path) -> None:
    blocks = list(noise(5, 3000))
    write(tmp_path, blocks)
    script = (
        "import os, signal, sys, pathlib\n"
        "from penstock.blocklog import index\n"
        "index.SMALL, index.PORTION, index._BATCH = 0, 100_000, 10\n"
        "seen = 0\n"
        "def take(self, part, end, inner=index.Writer.take):\n"
        "    global seen\n"
        "    seen += 1\n"
        "    inner(self, part, end)\n"
        "    if seen == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return 0\n"
        "index.Writer.take = take\n"
        "index.grow(pathlib.Path(sys.argv[1]), cache=0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(AGENT)}, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    before = inode(tmp_path)
    assert grow(tmp_path) == 0
    assert inode(tmp_path) == before
    assert told(tmp_path) == expected(tmp_path)


def test_a_budget_is_kept(tmp_path: Path) -> None:
    write(tmp_path, list(noise(6, 300)), max_bytes=50_000)
    size = sum(path.stat().st_size for path in tmp_path.glob("blocks.jsonl*"))
    left = grow(tmp_path, budget=10_000)
    assert size - 12_000 < left <= size - 10_000
    while left:
        left, before = grow(tmp_path, budget=10_000), left
        assert before - 12_000 < left < before
    assert told(tmp_path) == expected(tmp_path)


def test_too_little_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path, [BLOCK])
    size = (tmp_path / LOG_NAME).stat().st_size
    assert grow(tmp_path, least=size + 1) == size
    assert grow(tmp_path, least=size) == 0


def test_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "PORTION", 20_000)
    write(tmp_path, list(noise(8, 200)))
    said: list[tuple[int, int]] = []
    grow(tmp_path, told=lambda done, whole: said.append((done, whole)))
    size = (tmp_path / LOG_NAME).stat().st_size
    assert [whole for _, whole in said] == [size] * len(said)
    assert said == sorted(said)
    assert len(said) > 3
    assert said[-1][0] == size


def test_one_writes_at_a_time(tmp_path: Path) -> None:
    write(tmp_path, [BLOCK])
    with index._locked(tmp_path, 0), pytest.raises(Unusable, match="somebody else writes"):
        grow(tmp_path)
    assert grow(tmp_path) == 0


def test_a_small_log_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SMALL", 10_000)
    write(tmp_path, [BLOCK])
    assert grow(tmp_path) == 0
    assert not path_in(tmp_path).parent.exists()


def test_who_may_read_the_log_may_read_the_index(tmp_path: Path) -> None:
    write(tmp_path, [BLOCK])
    if os.geteuid() == 0:
        os.chown(tmp_path / LOG_NAME, -1, 4)
    old = os.umask(0o077)
    try:
        grow(tmp_path)
    finally:
        os.umask(old)
    path = path_in(tmp_path)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o640, 0o750)
    assert path.stat().st_gid == path.parent.stat().st_gid == (tmp_path / LOG_NAME).stat().st_gid


def test_a_directory_that_others_can_write_gets_none(tmp_path: Path) -> None:
    """Else they could have root follow a link."""
    write(tmp_path, [BLOCK])
    tmp_path.chmod(0o777)
    assert not may_write(tmp_path)
    with pytest.raises(Unusable, match="somebody else's"):
        grow(tmp_path)
    assert not path_in(tmp_path).parent.exists()
    tmp_path.chmod(0o700)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "index").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unusable, match="somebody else's"):
        grow(tmp_path)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_no_text_of_the_log_is_in_it(tmp_path: Path) -> None:
    write(tmp_path, [block(1, name="secret.example", process=BLOCK.process)])
    grow(tmp_path)
    data = path_in(tmp_path).read_bytes()
    assert b"secret.example" not in data
    assert b"python3" not in data


def test_a_secret_of_each_index_keeps_keys_apart() -> None:
    one, other = schema.Keys(b"1" * schema.KEY_SIZE), schema.Keys(b"2" * schema.KEY_SIZE)
    assert one.group(BLOCK, "row") != other.group(BLOCK, "row")
    assert one.group(BLOCK, "row") == one.group(BLOCK, "row")
