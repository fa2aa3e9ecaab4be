"""`penstock grants`: the list, without a daemon too, and what the log says."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from cli.conftest import Call
from cli.fake_daemon import FakeDaemon, lent
from cli.test_lent import saved, write
from penstock.core.grants import LOG_NAME


def test_the_list(daemon: FakeDaemon, call: Call) -> None:
    until = (datetime.now(UTC) + timedelta(minutes=80, seconds=-1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    daemon.replies["grants"] = {"grants": [lent(until=until, reason="why\x1b"), lent(workload="ollama")]}
    done = call("grants", "litellm")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("grant-1a2b3c4d  litellm, 10.30.1.9:5432: 1 h 19 min left,")
    assert lines[-1] == " " * 16 + "anna: why\\x1b"
    assert all(len(line) <= 80 for line in lines)
    found = json.loads(call("grants", "--json").stdout)["grants"]
    assert [one["workload"] for one in found] == ["litellm", "ollama"]


def test_nothing(daemon: FakeDaemon, call: Call) -> None:
    daemon.replies["grants"] = {"grants": []}
    assert (call("grants").stdout, call("grants").exit_code) == ("nothing is lent\n", 0)


def test_without_a_daemon_it_is_what_was_saved(daemon: FakeDaemon, call: Call) -> None:
    daemon.close()
    write(daemon, saved())
    done = call("grants")
    assert done.exit_code == 2
    assert done.stdout.startswith("grant-1a2b3c4d  litellm, 10.30.1.9:5432: ")
    assert "what was saved last" in done.stderr
    write(daemon)
    (daemon.home / "state" / "grants.json").write_bytes(b"{")
    done = call("grants")
    assert (done.exit_code, done.stdout) == (2, "")


def record(event: str, **changes: object) -> bytes:
    said = {"v": 1, "time": "2026-03-01T12:00:00Z", "event": event, "by": None, "why": None}
    return json.dumps({**said, **lent(), **changes}).encode()


def test_the_past(daemon: FakeDaemon, call: Call) -> None:
    log = daemon.home / "log"
    (log / f"{LOG_NAME}.1").write_bytes(record("made") + b"\n")
    (log / LOG_NAME).write_bytes(
        record("revoked", by="bob\x1b") + b"\n" + b'{"v": 1\n[]\n7\n' + record("made", workload="ollama") + b"\n"
    )
    words = " ".join(call("grants", "--past").stdout.split())
    assert words.count("grant-1a2b3c4d") == 3
    assert "made grant-1a2b3c4d litellm, 10.30.1.9:5432, anna: to see " in words
    assert "revoked grant-1a2b3c4d litellm, 10.30.1.9:5432, anna: to see (by bob\\x1b)" in words
    found = [json.loads(line) for line in call("grants", "litellm", "--past", "--json").stdout.splitlines()]
    assert [one["event"] for one in found] == ["made", "revoked"]
