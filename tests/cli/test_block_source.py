"""The index and the log give the same answers, and the log gives them whenever the index cannot."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from blocklog.logs import block, noise, write
from penstock.blocklog import index, query
from penstock.blocklog.index import path_in
from penstock.cli import block_source
from penstock.cli.blocks import blocks
from penstock.errors import PenstockError

QUESTIONS = (
    (),
    ("--all",),
    ("--direction", "in"),
    ("--until", "2025-11-25T02:03:00Z"),
    ("--limit", "7"),
    ("--json",),
    ("--json", "--limit", "9"),
    ("--json", "--workload", "litellm", "--direction", "in"),
    ("--json", "--since", "2025-11-25T02:03:00Z", "--until", "2025-11-25T02:05:00Z"),
    ("--since", "2025-11-25T02:03:00Z", "--workload", "ollama"),
    *(("--by", by, *more) for by in ("destination", "workload", "process") for more in ((), ("--json",))),
    ("--by", "destination", "--limit", "3", "--json", "--direction", "out"),
)


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def run(directory: Path, *args: str) -> Result:
    result = CliRunner().invoke(blocks, ["--log", str(directory), *args])
    assert result.exit_code == 0, result.output
    return result


def without_index(directory: Path, *args: str) -> str:
    """What the log alone says."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(block_source, "is_small", lambda _: True)
        return comparable(run(directory, *args))


def comparable(result: Result) -> str:
    """Groups with as many packets come in any order."""
    lines = result.stdout.splitlines()
    if lines and '"by":' in lines[0]:
        found = sorted((-json.loads(line)["count"], line) for line in lines)
        lines = [line for _, line in found]
    elif lines and lines[0].startswith("x"):
        lines.sort()
    return "\n".join(lines) + result.stderr


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In several files, with something malformed."""
    monkeypatch.setattr(index, "SMALL", 0)
    write(tmp_path, list(noise(11, 700)), max_bytes=60_000)
    with (tmp_path / "blocks.jsonl").open("ab") as f:
        f.write(b"nonsense\n")
    return tmp_path


@pytest.mark.parametrize("question", QUESTIONS, ids=" ".join)
def test_both_say_the_same(log: Path, monkeypatch: pytest.MonkeyPatch, question: tuple[str, ...]) -> None:
    # Of groups with as many packets either may be left out.
    monkeypatch.setattr("penstock.cli.blocks.MOST_ROWS", 1000 if "--by" in question else 5)
    monkeypatch.setattr(block_source, "SMALL", 1 << 20)  # so that an end of the log is left beside the index
    run(log, "--limit", "1")
    write(log, list(noise(12, 40)), max_bytes=60_000)
    wanted = without_index(log, *question)
    monkeypatch.setattr(block_source, "Scanned", None)  # the index alone answers
    said = comparable(run(log, *question))
    if "--limit" in question and "--by" not in question:  # so far back the log alone is not read
        said = said.replace("skipped 1 malformed line\n", "")
    else:
        assert "skipped 1 malformed line\n" in wanted
    assert said == wanted


def test_root_brings_it_up_to_date(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_source, "SMALL", 0)
    run(log)
    before = path_in(log).stat()
    write(log, [block(9999)])
    run(log, "--limit", "1")
    assert path_in(log).stat().st_mtime_ns > before.st_mtime_ns
    assert path_in(log).stat().st_ino == before.st_ino


def test_a_wrong_index_is_thrown_away_and_the_log_answers(log: Path) -> None:
    wanted = without_index(log)
    run(log)
    data = bytearray(path_in(log).read_bytes())
    for start in range(8192, len(data) - 8192, 8192):  # its tables are there, and hold nothing that makes sense
        data[start + 8 : start + 8192] = bytes(8184)
    path_in(log).write_bytes(data)
    assert comparable(run(log)) == wanted
    monkeypatched = run(log)
    assert comparable(monkeypatched) == wanted


def test_lines_that_are_gone_when_they_are_shown(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places of another log: the index was made of these files, and does not fit them all the same."""
    run(log)
    wanted = without_index(log, "--json")
    monkeypatch.setattr(query, "line_at", lambda *_: b"other")
    assert comparable(run(log, "--json")) == wanted
    assert not path_in(log).exists()


def test_a_full_disk_fails_nothing(log: Path) -> None:
    """Whatever was written of the index by then."""
    wanted = without_index(log)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, 4096, 20_000, 40_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            assert comparable(run(log)) == wanted
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert comparable(run(log)) == wanted
    assert path_in(log).stat().st_size > 40_000


@pytest.mark.parametrize("error", ["directory", "lock", "disk"])
def test_an_index_that_cannot_be_made_fails_nothing(
    log: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    if error == "directory":
        log.chmod(0o777)  # others might have made it
    elif error == "lock":
        monkeypatch.setattr(index, "_lock", lambda *_: (_ for _ in ()).throw(index.Unusable("somebody")))
    else:
        (log / "index").write_text("")
    for question in QUESTIONS:
        assert comparable(run(log, *question)) == without_index(log, *question)
    assert not path_in(log).exists()


def test_a_log_that_may_not_be_read_is_said(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no matter of the index."""

    def refuse(_: Path) -> bool:
        raise PenstockError("cannot be read")

    monkeypatch.setattr(block_source, "is_small", refuse)
    result = CliRunner().invoke(blocks, ["--log", str(log)])
    assert isinstance(result.exception, PenstockError)


def test_a_terminal_is_told(log: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(index, "PORTION", 30_000)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    said: list[str] = []
    monkeypatch.setattr("builtins.print", lambda *texts, **_: said.append(str(texts[0])))
    block_source._open(log).close()
    assert said[0].startswith("\rindexing the log: ")
    assert said[-1].endswith("\r\x1b[K")
    os.rename(log / "index", log / "gone")
    log.chmod(0o777)
    with pytest.raises(index.Unusable):
        block_source._open(log)
    assert said[-1].startswith("all of the log is read")


def test_a_summary_says_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [block(n, address=f"192.0.2.{n}", count=2) for n in range(50)])
    for small in (1 << 20, 0):
        monkeypatch.setattr(index, "SMALL", small)
        lines = run(tmp_path).stdout.splitlines()
        assert len(lines) == 41
        assert " 192.0.2.49:5432/tcp " in lines[39]
        assert lines[40] == (
            "the newest 40 of 50 destinations, 80 of 100 packets; sums: --by destination, every one: --all"
        )
        assert len(run(tmp_path, "--all").stdout.splitlines()) == 50
        assert len(run(tmp_path, "--limit", "45").stdout.splitlines()) == 45
        groups = run(tmp_path, "--by", "destination").stdout.splitlines()
        assert (len(groups), groups[40]) == (41, "the largest 40 of 50, 80 of 100 packets; every one: --all")
        assert len(run(tmp_path, "--by", "destination", "--all").stdout.splitlines()) == 50
        assert len(run(tmp_path, "--by", "destination", "--limit", "4").stdout.splitlines()) == 4
        assert len(run(tmp_path, "--by", "destination", "--json").stdout.splitlines()) == 50
        assert len(run(tmp_path, "--by", "workload").stdout.splitlines()) == 1
    assert CliRunner().invoke(blocks, ["--log", str(tmp_path), "--all", "--limit", "3"]).exit_code == 2
