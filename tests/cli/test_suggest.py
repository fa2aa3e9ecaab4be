"""`penstock suggest`: what it shows, what it writes, and what it never writes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.conftest import Call
from cli.fake_daemon import FakeDaemon
from penstock.cli import evidence, rule_files
from penstock.cli import suggest as module
from penstock.core.blocks import Block, Process
from penstock.daemon.sinks import BlockLog
from penstock.errors import PenstockError

FILE = """\
# ours
version: 1
workload: litellm
mode: observe   # for a week
egress:
  - {to: 10.30.1.5, ports: [5432], name: db}
  # more to come
ingress: []  # nobody yet
"""
BLOCK = Block(
    *("0", 0.0, 0.0, "litellm", "would-deny", "observe", "out", "tcp", 4, "192.0.2.7", 443, None, 1, 0, None),
    *("no-rule", "not in its rules", None, Process(7, "python3"), "abc", None),
)


@pytest.fixture(autouse=True)
def _host(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(evidence, "addresses", frozenset)
    rules(daemon).write_text(FILE)


def rules(daemon: FakeDaemon) -> Path:
    return daemon.home / "config/rules.d/litellm.yaml"


def saw(daemon: FakeDaemon, *changes: dict[str, Any], age: float = 3600.0) -> None:
    """Each twice, an hour ago."""
    import time

    now = time.time() - age
    log = BlockLog(daemon.home / "log")
    blocks: Iterable[Block] = (
        replace(
            BLOCK, id=f"{n}-{minute}-{age}", **{"first": now + 60 * minute, "last": now + 60 * minute, **change}
        )
        for n, change in enumerate(changes)
        for minute in (0, 1)
    )
    log.append(list(blocks))
    log.close()


USUAL: tuple[dict[str, Any], ...] = (
    {"name": "api.example.org", "address": "198.51.100.9"},
    {"address": "169.254.169.254", "port": 80, "reason": "metadata"},
    {"direction": "in", "address": "10.30.7.7", "port": 4000},
)


def test_a_screen(daemon: FakeDaemon, call: Call) -> None:
    saw(daemon, *USUAL)
    done = call("suggest", "litellm")
    assert done.exit_code == 0
    # The path of the file is longer here than on a host, and never cut.
    home = str(daemon.run.parent)
    assert [line for line in done.stdout.splitlines() if len(line) > 80 and home not in line] == []
    assert "egress:\n  # egress-" in done.stdout
    assert "  - to: api.example.org\ningress:\n" in done.stdout
    assert "  - ports: [4000]\n    from: clients\n" in done.stdout
    assert "169.254.169.254:80  x2" in done.stdout
    assert "which hands out the credentials of" in done.stdout
    assert "by python3" in done.stdout
    assert "2 rules to add" in done.stderr
    assert set(yaml.safe_load(done.stdout.partition("\nnot proposed")[0])) == {"egress", "ingress"}
    assert rules(daemon).read_text() == FILE


def test_callers_that_no_network_has_are_told_of(daemon: FakeDaemon, call: Call) -> None:
    saw(daemon, *USUAL)
    assert "callers by address" not in call("suggest", "litellm").stderr
    saw(daemon, {"direction": "in", "address": "172.16.7.7", "port": 4000})
    done = call("suggest", "litellm")
    assert "from: 172.16.7.7\n" in done.stdout
    assert "callers by address: name their network in penstock.yaml" in done.stderr


def test_writing_changes_only_what_is_meant_and_only_once(daemon: FakeDaemon, call: Call) -> None:
    saw(daemon, *USUAL)
    rules(daemon).chmod(0o660)
    done = call("suggest", "litellm", "--write")
    assert (done.exit_code, "added 2 rules to" in done.stderr) == (0, True)
    written = rules(daemon).read_text()
    assert written == FILE.replace("name: db}\n", "name: db}\n  - to: api.example.org\n").replace(
        "ingress: []  # nobody yet\n", "ingress:  # nobody yet\n  - ports: [4000]\n    from: clients\n"
    )
    assert stat.S_IMODE(rules(daemon).stat().st_mode) == 0o660
    again = call("suggest", "litellm", "--write", "--json")
    assert json.loads(again.stdout)["written"] == 0
    assert rules(daemon).read_text() == written
    assert "nothing to add" in call("suggest", "litellm").stderr


def test_json(daemon: FakeDaemon, call: Call) -> None:
    saw(daemon, *USUAL)
    found = json.loads(call("suggest", "litellm", "--json").stdout)
    assert set(found) == {
        "v", "workload", "mode", "since", "file", "written",
        "proposed", "refused", "rejected", "allowed", "summed",
    }  # fmt: skip
    one = found["proposed"][0]
    assert set(one) == {"id", "direction", "yaml", "use", "notes", "seen"}
    assert one["yaml"] == "- to: api.example.org"
    assert set(found["refused"][0]) == {"id", "direction", "what", "code", "text", "seen"}
    seen = one["seen"][0]
    assert (seen["name"], seen["addresses"], seen["count"]) == ("api.example.org", ["198.51.100.9"], 2)
    assert set(seen) == {"name", "addresses", "protocol", "port", "count", "first", "last", "processes"}


def test_what_is_rejected_stays_away_until_it_is_forgotten(daemon: FakeDaemon, call: Call) -> None:
    saw(daemon, *USUAL)
    found = json.loads(call("suggest", "litellm", "--json").stdout)
    ids = [one["id"] for one in (found["proposed"][0], found["refused"][0])]
    done = call("suggest", "litellm", "--reject", ids[0], "--reject", ids[1], "--json")
    left = json.loads(done.stdout)
    assert ([one["yaml"] for one in left["proposed"]], left["refused"], left["rejected"]) == (
        ["- ports: [4000]\n  from: clients"],
        [],
        2,
    )
    assert "rejected before and left out: 2" in call("suggest", "litellm").stderr
    assert call("suggest", "litellm", "--reject", "nonsense").exit_code == 1
    assert call("check").exit_code == 0
    call("suggest", "litellm", "--forget")
    assert len(json.loads(call("suggest", "litellm", "--json").stdout)["proposed"]) == 2


def test_since(daemon: FakeDaemon, call: Call) -> None:
    saw(daemon, USUAL[0], age=10 * 86400)
    saw(daemon, USUAL[2])
    assert [p["direction"] for p in json.loads(call("suggest", "litellm", "--json").stdout)["proposed"]] == ["in"]
    both = json.loads(call("suggest", "litellm", "--json", "--since", "30d").stdout)["proposed"]
    assert [p["direction"] for p in both] == ["out", "in"]


def test_other_workloads_tell_who_called(daemon: FakeDaemon, call: Call) -> None:
    local: dict[str, Any] = {"address": "127.0.0.1", "port": 4000}
    saw(daemon, {**local, "direction": "in"}, {**local, "workload": "ollama"})
    assert "from: workload:ollama" in call("suggest", "litellm").stdout


def test_what_processes_and_names_say_cannot_move_the_cursor(daemon: FakeDaemon, call: Call) -> None:
    evil = "\x1b[2J\n- to: any"
    saw(daemon, {"name": evil, "address": "192.0.2.7", "process": Process(1, evil)})
    saw(daemon, {"address": "10.9.9.9", "process": Process(1, evil)})
    done = call("suggest", "litellm", "--write")
    assert "\x1b" not in done.stdout
    assert not any(line.startswith("- to: any") for line in done.stdout.splitlines())
    assert "any" not in rules(daemon).read_text()


def test_nothing_is_written_when_it_cannot_be_done_safely(
    daemon: FakeDaemon, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    saw(daemon, *USUAL)
    text = FILE.replace("ingress: []  # nobody yet", "ingress: [\n]")
    rules(daemon).write_text(text)
    done = call("suggest", "litellm", "--write")
    assert (done.exit_code, rules(daemon).read_text()) == (1, text)
    assert "cannot be changed in place" in done.stderr
    rules(daemon).write_text(FILE)
    real = rule_files.edited

    def late(*arguments: Any) -> bytes:
        found = real(*arguments)
        rules(daemon).write_text(FILE + "# somebody else\n")
        return found

    monkeypatch.setattr(module, "edited", late)
    done = call("suggest", "litellm", "--write")
    assert (done.exit_code, rules(daemon).read_text()) == (1, FILE + "# somebody else\n")
    assert "changed meanwhile" in done.stderr
    assert [path.name for path in rules(daemon).parent.iterdir()] == ["litellm.yaml", "ollama.yaml"]


def test_a_test_of_the_file_forbids_it(daemon: FakeDaemon, call: Call) -> None:
    saw(daemon, USUAL[0])
    text = FILE + "tests:\n  - egress api.example.org:443 deny\n"
    rules(daemon).write_text(text)
    done = call("suggest", "litellm", "--write")
    assert (done.exit_code, rules(daemon).read_text()) == (0, text)
    assert "the test expects deny" in " ".join(done.stdout.split())
    assert "take the test out (penstock edit litellm)" in call("suggest", "litellm").stderr


def test_what_would_not_pass_check_is_never_written(daemon: FakeDaemon) -> None:
    files = rule_files.read_rule_files(daemon.run)
    now = datetime.now(UTC)
    file = files.of("litellm", files.policy(now))
    with pytest.raises(PenstockError, match="the rule files have mistakes"):
        rule_files.write(files, file, FILE.replace("5432", "0").encode(), now)
    assert rules(daemon).read_text() == FILE


def test_what_cannot_be_told(daemon: FakeDaemon, call: Call) -> None:
    done = call("suggest", "litelm")
    assert (done.exit_code, "did you mean `litellm`" in done.stderr) == (2, True)
    assert call("suggest", "litellm").exit_code == 2  # there is no log
    saw(daemon, *USUAL)
    rules(daemon).write_text("nonsense\n")
    done = call("suggest", "litellm")
    assert (done.exit_code, "penstock check" in done.stderr) == (1, True)
    rules(daemon).write_text(FILE)
    (daemon.home / "config/rejected.json").write_text("[]")
    assert call("suggest", "litellm").exit_code == 1


@pytest.mark.root
def test_owner_and_link_stay(daemon: FakeDaemon, call: Call) -> None:
    saw(daemon, USUAL[0])
    real = daemon.home / "elsewhere.yaml"
    rules(daemon).rename(real)
    os.chown(real, 65534, 65534)
    rules(daemon).symlink_to(real)
    assert call("suggest", "litellm", "--write").exit_code == 0
    assert rules(daemon).is_symlink()
    assert (real.stat().st_uid, "api.example.org" in real.read_text()) == (65534, True)


def test_the_addresses_of_this_host() -> None:
    script = "from penstock.cli.evidence import addresses; print(*addresses())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True)
    assert "127.0.0.1" in done.stdout.split()
