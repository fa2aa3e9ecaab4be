"""`penstock blocks` on files as the daemon writes them, and on what is left of them after a bad day."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from penstock.cli import block_log, block_text
from penstock.cli.blocks import blocks
from penstock.cli.context import Context, find_daemon_json
from penstock.core import block_keys
from penstock.core.blocks import Block, Process
from penstock.daemon.sinks import BlockLog

T = 1_764_036_000.0  # 2025-11-25 02:00:00 UTC
BLOCK = Block(
    id="0",
    first=T,
    last=T,
    workload="litellm",
    verdict="deny",
    mode="enforce",
    direction="out",
    protocol="tcp",
    family=4,
    address="10.30.1.9",
    port=5432,
    name=None,
    count=1,
    unlogged=0,
    rule=None,
    reason="no-rule",
    text="not in its rules; nearest is rule 2 (10.30.1.5:5432)",
    nearest="r2",
    process=Process(7, "python3"),
    policy="abc",
    allow="penstock grant litellm 10.30.1.9:5432 --for 8h",
)


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def block(n: int, **changes: Any) -> Block:
    return replace(BLOCK, id=f"{n:04}", first=T + n, last=T + n, **changes)


def run(*args: str, obj: Context | None = None) -> Result:
    return CliRunner().invoke(blocks, list(args), obj=obj)


def ids(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return [json.loads(line)["id"] for line in result.stdout.splitlines()]


def test_a_row_as_people_read_it(tmp_path: Path) -> None:
    log = BlockLog(tmp_path)
    log.append([block(1, count=200), block(131, count=14)])
    log.append(
        [block(140, direction="in", address="2001:db8::7", family=6, port=11434, allow=None, verdict="would-deny")]
    )
    result = run("--log", str(tmp_path))
    assert result.exit_code == 0
    assert result.stderr == ""
    text = "not in its rules; nearest is rule 2 (10.30.1.5:5432); by python3[7]"
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        f"2025-11-25 02:02:11 UTC  DENY        litellm  -> 10.30.1.9:5432/tcp        x214   {text}",
        "          allow until morning:  penstock grant litellm 10.30.1.9:5432 --for 8h",
        f"2025-11-25 02:02:20 UTC  WOULD-DENY  litellm  <- 2001:db8::7 on 11434/tcp  x1     {text}",
    ]


LOOKUP: dict[str, Any] = {
    "name": "registry.example",
    "address": None,
    "family": None,
    "port": 53,
    "protocol": "udp",
    "reason": "name",
    "text": "not in its rules",
    "process": Process(),
}


def test_a_refused_look_up_as_people_read_it(tmp_path: Path) -> None:
    again = {**LOOKUP, "protocol": "tcp"}
    named = {"name": "cdn.example.org", "text": "learned for cdn.example.org, expired 3 min ago"}
    packets = [block(3, **named, allow=None), block(4, **named, address="10.30.1.10", allow=None)]
    BlockLog(tmp_path).append([block(1, **LOOKUP, count=2), block(2, **again), *packets])
    text = run("--log", str(tmp_path)).stdout
    assert [line.rstrip() for line in text.splitlines()] == [
        "2025-11-25 02:00:02 UTC  DENY  litellm  asked registry.example                    x3     "
        "not in its rules",
        "          allow until morning:  penstock grant litellm 10.30.1.9:5432 --for 8h",
        "2025-11-25 02:00:04 UTC  DENY  litellm  -> cdn.example.org:5432/tcp (10.30.1.10)  x2     learned for"
        " cdn.example.org, expired 3 min ago; by python3[7]",
    ]
    text = run("--log", str(tmp_path), "--by", "destination").stdout
    assert re.search(r"x3 +litellm +asked registry\.example ", text)


def test_a_look_up_is_no_connection_to_the_same_name(tmp_path: Path) -> None:
    connection = {**LOOKUP, "address": "192.0.2.53", "family": 4}
    BlockLog(tmp_path).append([block(1, **LOOKUP), block(2, **connection)])
    text = run("--log", str(tmp_path)).stdout
    assert "asked registry.example " in text
    assert "-> registry.example:53/udp (192.0.2.53) " in text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (LOOKUP, "asked registry.example"),
        ({**LOOKUP, "name": "a\x1b[2J.example"}, "asked a\\x1b[2J.example"),
        ({**LOOKUP, "name": None}, "asked (not kept apart)"),
        ({}, "10.30.1.9:5432/tcp"),
        ({"name": "db.example.org"}, "db.example.org:5432/tcp (10.30.1.9)"),
        ({"name": "db.example.org", "address": None, "port": None, "protocol": "udp"}, "db.example.org/udp"),
        ({"address": "2001:db8::1"}, "[2001:db8::1]:5432/tcp"),
        ({"protocol": "icmp", "port": None}, "10.30.1.9/icmp"),
        ({"address": None, "port": None, "protocol": None}, "(not kept apart)"),
        ({"name": "a\x1b[2J"}, "a\\x1b[2J:5432/tcp (10.30.1.9)"),
    ],
)
def test_endpoint(changes: dict[str, Any], text: str) -> None:
    assert block_keys.endpoint(replace(BLOCK, **changes)) == text


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    BlockLog(tmp_path).append([block(1, text="a\x1b[2Jb", workload="w\x07", allow="c\rd", name="n\u202e")])
    for args in ((), ("--json",), ("--by", "destination"), ("--by", "workload")):
        out = run("--log", str(tmp_path), *args).stdout
        assert all(line.isprintable() for line in out.splitlines())


def test_json_is_the_log(tmp_path: Path) -> None:
    BlockLog(tmp_path).append([block(1), block(2)])
    result = run("--log", str(tmp_path), "--json")
    assert result.stdout == (tmp_path / "blocks.jsonl").read_text()


def test_the_last_line_of_an_id_wins_also_across_files(tmp_path: Path) -> None:
    log = BlockLog(tmp_path, max_bytes=1200)  # two lines a file
    log.append([block(1), block(2)])
    log.append([block(3)])
    log.append([replace(block(2), last=T + 9, count=5)])
    assert (tmp_path / "blocks.jsonl.1").exists()
    result = run("--log", str(tmp_path), "--json")
    assert ids(result) == ["0001", "0003", "0002"]
    assert json.loads(result.stdout.splitlines()[-1])["count"] == 5


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), "1 2 3 4"),
        (("--limit", "2"), "3 4"),
        (("--workload", "ollama"), "3"),
        (("--direction", "in"), "4"),
        (("--since", "2025-11-25T02:00:03Z"), "3 4"),
        (("--until", "2025-11-25T02:00:02Z"), "1 2"),
        (("--since", "2025-11-25T02:00:02Z", "--until", "2025-11-25T02:00:03Z", "--limit", "1"), "3"),
    ],
)
def test_what_is_asked_for(tmp_path: Path, args: tuple[str, ...], expected: str) -> None:
    BlockLog(tmp_path).append([block(1), block(2), block(3, workload="ollama"), block(4, direction="in")])
    assert ids(run("--log", str(tmp_path), "--json", *args)) == [f"000{n}" for n in expected.split()]


def test_by(tmp_path: Path) -> None:
    other = {"address": "10.30.1.8", "process": Process()}
    BlockLog(tmp_path).append([block(1, count=3, unlogged=4), block(2, count=2, **other), block(3, workload="v")])

    def summed(by: str, *args: str) -> list[tuple[str, str, int]]:
        result = run("--log", str(tmp_path), "--json", "--by", by, *args)
        found = [json.loads(line) for line in result.stdout.splitlines()]
        assert all(list(f) == ["v", "by", "key", "workload", "count", "first", "last"] for f in found)
        return [(f["key"], f["workload"], f["count"]) for f in found]

    assert summed("workload") == [("litellm", "litellm", 9), ("v", "v", 1)]
    assert summed("destination") == [
        ("10.30.1.9:5432/tcp", "litellm", 7),
        ("10.30.1.8:5432/tcp", "litellm", 2),
        ("10.30.1.9:5432/tcp", "v", 1),
    ]
    assert summed("process", "--limit", "2") == [("python3", "litellm", 7), (None, "litellm", 2)]
    text = run("--log", str(tmp_path), "--by", "process").stdout
    assert "(unknown)" in text
    assert "grant" not in text


def test_by_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_text, "MAX_GROUPS", 3)
    BlockLog(tmp_path).append([block(n, address=f"192.0.2.{n}") for n in range(1, 10)])
    result = run("--log", str(tmp_path), "--json", "--by", "destination")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(group["key"], group["count"]) for group in found] == [
        (None, 6),
        *((f"192.0.2.{n}:5432/tcp", 1) for n in (7, 8, 9)),
    ]


def test_malformed_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    BlockLog(tmp_path).append([block(1)])
    with (tmp_path / "blocks.jsonl").open("ab") as f:
        f.write(b"\xff\xfe\nnull\n" + b"x" * 700_000 + b"\n")
    BlockLog(tmp_path).append([block(2)])
    with (tmp_path / "blocks.jsonl").open("ab") as f:
        f.write(b'{"v":1,"id":"half')  # being written right now: not malformed
    result = run("--log", str(tmp_path), "--json")
    assert ids(result) == ["0001", "0002"]
    assert result.stderr == "skipped 3 malformed lines\n"


def test_lines_that_lie_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BlockLog(tmp_path).append([block(n) for n in range(30)])
    for size in (1, 7, 500, 501, 512, 4096):
        monkeypatch.setattr(block_log, "_CHUNK", size)
        assert ids(run("--log", str(tmp_path), "--json")) == [f"{n:04}" for n in range(30)]


def test_old_blocks_end_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_log, "_TOO_OLD", 3)
    BlockLog(tmp_path).append([block(90)])  # so far back that it is not read
    BlockLog(tmp_path).append([block(1), block(2), block(3), block(91), block(5), block(6), block(92)])
    assert ids(run("--log", str(tmp_path), "--json", "--since", "2025-11-25T02:01:00Z")) == ["0091", "0092"]


def test_nothing_blocked_is_not_a_failure(tmp_path: Path) -> None:
    BlockLog(tmp_path).append([])
    for args, since in (((), "the log began"), (("--since", "2025-11-25T02:00:00Z"), "2025-11-25 02:00:00 UTC")):
        result = run("--log", str(tmp_path), *args)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"no blocks since {since}\n")


def test_no_log_is_2_and_says_where(tmp_path: Path) -> None:
    result = run("--log", str(tmp_path / "nowhere"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert str(tmp_path / "nowhere") in result.stderr


def test_the_dead_daemon_says_where_its_log_is(tmp_path: Path) -> None:
    BlockLog(tmp_path / "log").append([block(1)])
    (tmp_path / "daemon.json").write_text(json.dumps({"log": str(tmp_path / "log")}))
    assert ids(run("--json", obj=Context(tmp_path))) == ["0001"]


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 50_000, "\udcff"])
def test_daemon_json_that_makes_no_sense(tmp_path: Path, text: str) -> None:
    (tmp_path / "daemon.json").write_text(text, errors="surrogateescape")
    assert find_daemon_json(tmp_path) is None


@pytest.mark.parametrize(
    "args",
    [
        ("--limit", "0"),
        ("--since", "soon"),
        ("--direction", "up"),
        ("--by", "x"),
        ("-f", "--by", "process"),
        ("x",),
    ],
)
def test_usage(tmp_path: Path, args: tuple[str, ...]) -> None:
    BlockLog(tmp_path).append([])
    assert run("--log", str(tmp_path), *args).exit_code == 2


# --- following ---


class Follower:
    """`blocks -f` in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._rest = b""

    def line(self) -> str:
        """The next line; fails after 10 s."""
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            assert select.select([self.process.stdout], [], [], 10)[0], "nothing was printed"
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, "ended early"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def id(self) -> str:
        return str(json.loads(self.line())["id"])


@contextmanager
def following(directory: Path, *args: str) -> Iterator[Follower]:
    agent = str(Path(__file__).parents[2] / "agent")
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from penstock.cli.blocks import blocks; blocks()",
            "-f",
            "--log",
            str(directory),
            *args,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": agent},
    ) as process:
        try:
            yield Follower(process)
        finally:
            process.kill()


def test_follows_across_rotation_truncation_and_half_lines(tmp_path: Path) -> None:
    log = BlockLog(tmp_path, max_bytes=2000)  # three lines
    path = tmp_path / "blocks.jsonl"
    log.append([block(1)])
    with following(tmp_path, "--json") as follower:
        assert follower.id() == "0001"
        for n in range(2, 8):
            log.append([block(n)])
            assert follower.id() == f"{n:04}"
        line = block(8).as_json()
        with path.open("a") as f:
            f.write(line[:100])
            f.flush()
            time.sleep(0.5)  # not to synchronise: gives it the chance to print half a line
            f.write(line[100:] + "\n")
        assert follower.line() == line
        os.truncate(path, 0)
        time.sleep(0.5)  # a truncation that is refilled between two looks cannot be seen
        log.append([block(9)])
        assert follower.id() == "0009"


def test_a_follower_that_was_stopped_misses_no_rotation(tmp_path: Path) -> None:
    log = BlockLog(tmp_path, max_bytes=600)  # one line a file
    log.append([block(1)])
    with following(tmp_path, "--json") as follower:
        assert follower.id() == "0001"
        os.kill(follower.process.pid, signal.SIGSTOP)
        for n in range(2, 6):
            log.append([block(n)])
        os.kill(follower.process.pid, signal.SIGCONT)
        assert [follower.id() for _ in range(4)] == ["0002", "0003", "0004", "0005"]


def test_a_block_that_grew_is_told_again_without_its_hint(tmp_path: Path) -> None:
    log = BlockLog(tmp_path)
    log.append([block(1)])
    with following(tmp_path) as follower:
        assert " x1 " in follower.line()
        assert "grant" in follower.line()
        log.append([replace(block(1), count=9)])
        assert " x9 " in follower.line()
        log.append([block(2, address="192.0.2.1")])
        assert "192.0.2.1" in follower.line()


def test_ctrl_c_ends_it_well(tmp_path: Path) -> None:
    BlockLog(tmp_path).append([block(1)])
    with following(tmp_path, "--json") as follower:
        follower.line()
        follower.process.send_signal(signal.SIGINT)
        assert follower.process.wait(10) == 0
        assert follower.process.stderr is not None
        assert follower.process.stderr.read() == b""


def test_a_reader_that_goes_away_ends_it_at_once(tmp_path: Path) -> None:
    BlockLog(tmp_path).append([block(1)])
    with following(tmp_path, "--json") as follower:
        follower.line()
        assert follower.process.stdout is not None
        follower.process.stdout.close()
        assert follower.process.wait(10) == 0
        assert follower.process.stderr is not None
        assert follower.process.stderr.read() == b""


def test_colours_are_for_terminals(tmp_path: Path) -> None:
    row = block_text.Row(BLOCK, 1, 0)
    (plain,) = block_text.lines(row, block_text.Widths(), block_text.Look("2025-11-25"), hint=False)
    (coloured,) = block_text.lines(
        row, block_text.Widths(), block_text.Look("2025-11-25", colour=True), hint=False
    )
    assert plain.startswith("02:00:00  DENY  litellm ")
    assert re.sub(r"\x1b\[\d+m", "", coloured) == plain != coloured


def test_narrow_terminals_get_the_text_on_lines_of_its_own() -> None:
    told = block_text.lines(
        block_text.Row(BLOCK, 214, 3), block_text.Widths(), block_text.Look("", columns=80), hint=False
    )
    assert " ".join(map(str.strip, told[1:])) == f"{BLOCK.text}; by python3[7]; 3 of them counted, not logged"
    assert all(len(line) <= 80 for line in told)


@pytest.mark.parametrize(("verdict", "told"), [("would-deny", True), ("deny", False)])
def test_who_only_observes_is_told_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, told: bool
) -> None:
    BlockLog(tmp_path).append([replace(BLOCK, verdict=verdict)])
    assert "penstock suggest" not in run("--log", str(tmp_path)).stdout  # programs read that
    module = sys.modules["penstock.cli.blocks"]
    plain = module._output
    terminal = lambda *args: replace(plain(*args), look=block_text.Look("", columns=80))  # noqa: E731
    monkeypatch.setattr(module, "_output", terminal)
    said = run("--log", str(tmp_path)).stdout
    assert ("penstock suggest litellm" in said, "penstock grant litellm" in said) == (told, not told)


@pytest.mark.parametrize("far", ["10.30.1.9", "--from 2001:db8:5::a --port 11434"])
def test_a_command_is_never_broken(far: str) -> None:
    command = f'penstock grant litellm {far} --for 8h --reason "..."'
    assert len(command) <= 80
    row = block_text.Row(replace(BLOCK, allow=command), 1, 0)
    *_, label, last = block_text.lines(row, block_text.Widths(), block_text.Look("", columns=80), hint=True)
    assert (label.strip(), last.strip()) == ("allow until morning:", command)
    assert len(last) <= 80
    text = "add to egress in rules.d/litellm.yaml:  - {to: 10.30.1.9, ports: [5432]}  then: penstock apply"
    row = block_text.Row(replace(BLOCK, allow=text), 1, 0)
    told = block_text.lines(row, block_text.Widths(), block_text.Look("", columns=80), hint=True)
    assert all(len(line) <= 80 for line in told)
