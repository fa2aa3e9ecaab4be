"""`penstock grant`: what is asked for, what is refused before anybody is asked, what is printed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from cli.conftest import Call
from cli.fake_daemon import FakeDaemon, lent

WHY = ("--reason", "to see")


def answer(daemon: FakeDaemon, *notes: str) -> None:
    until = datetime.now(UTC) + timedelta(minutes=30)
    daemon.replies["grant"] = {
        "grant": lent(until=until.strftime("%Y-%m-%dT%H:%M:%SZ")),
        "notes": list(notes),
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["10.0.0.5:443"], {"direction": "out", "peer": "10.0.0.5", "ports": "443"}),
        (["10.0.0.5", "--port", "443", "--port", "53/udp"], {"peer": "10.0.0.5", "ports": "443,53/udp"}),
        (["[2001:db8::5]:53/udp"], {"peer": "2001:db8::5", "ports": "53/udp"}),
        (["huggingface"], {"peer": "huggingface", "ports": ""}),
        (["--from", "clients", "--port", "8000"], {"direction": "in", "peer": "clients", "ports": "8000"}),
        (["any:80", "--yes-wide"], {"peer": "any", "wide": 1}),
    ],
)
def test_what_is_asked_for(
    daemon: FakeDaemon,
    call: Call,
    arguments: list[str],
    expected: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    answer(daemon)
    assert call("grant", "litellm", *arguments, "--for", "30m", *WHY).exit_code == 0
    said = daemon.requests[0].arguments
    usual = {"workload": "litellm", "seconds": 1800, "until": 0, "reason": "to see", "wide": 0, "user": ""}
    assert {key: said[key] for key in {**usual, **expected}} == {**usual, **expected}


def test_who_sudo_says_it_is(daemon: FakeDaemon, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(daemon)
    for said, expected in (("anna", "anna"), ("a\x1bb", ""), ("x" * 65, "")):
        monkeypatch.setenv("SUDO_USER", said)
        call("grant", "litellm", "10.0.0.5:443", "--for", "30m", *WHY)
        assert daemon.requests[-1].arguments["user"] == expected


def test_until_is_a_moment(daemon: FakeDaemon, call: Call) -> None:
    answer(daemon)
    then = (datetime.now(UTC) + timedelta(hours=2)).replace(microsecond=0)
    assert call("grant", "litellm", "10.0.0.5:443", "--until", then.isoformat(), *WHY).exit_code == 0
    assert {key: daemon.requests[0].arguments[key] for key in ("seconds", "until")} == {
        "seconds": 0,
        "until": int(then.timestamp()),
    }


def test_what_is_printed(daemon: FakeDaemon, call: Call) -> None:
    answer(daemon, "unwise\x1b")
    done = call("grant", "litellm", "10.30.1.9:5432", "--for", "30m", *WHY)
    first, what, last = done.stdout.splitlines()
    assert first.startswith("grant-1a2b3c4d until 20")
    assert first.endswith(" (30 min):")
    assert what == "  litellm, 10.30.1.9:5432"
    assert last == "end it sooner with: penstock revoke 1a2b3c4d"
    assert done.stderr == "penstock: unwise\\x1b\n"
    found = json.loads(call("grant", "litellm", "10.30.1.9:5432", "--for", "30m", *WHY, "--json").stdout)
    assert (found["v"], found["grant"]["id"], found["notes"]) == (1, "grant-1a2b3c4d", ["unwise\x1b"])


def test_refused_and_without_a_daemon(daemon: FakeDaemon, call: Call) -> None:
    daemon.replies["grant"] = ("it is allowed already, by rule db", "see: penstock status litellm")
    done = call("grant", "litellm", "10.30.1.9:5432", "--for", "30m", *WHY)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "penstock: it is allowed already, by rule db; see: penstock status litellm\n"
    daemon.close()
    done = call("grant", "litellm", "10.30.1.9:5432", "--for", "30m", *WHY)
    assert done.exit_code == 2
    assert "`blocks`, `why` and `check` work without it" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["10.0.0.5:443", "--for", "30m"], "say why: --reason"),
        (["10.0.0.5:443", "--for", "30m", "--reason", " "], "say why: --reason"),
        (["10.0.0.5:443", *WHY], "say how long: --for 30m or --until 18:00"),
        (["10.0.0.5:443", "--for", "30m", "--until", "18:00", *WHY], "say how long"),
        (["--for", "30m", *WHY], "name one of DEST and --from SOURCE"),
        (["10.0.0.5:443", "--from", "clients", "--for", "30m", *WHY], "name one of DEST and --from SOURCE"),
        (["10.0.0.5:443", "--port", "80", "--for", "30m", *WHY], "the port is there twice"),
        (["10.0.0.5:443", "--for", "0m", *WHY], "no time at all"),
        (["10.0.0.5:443", "--for", "31d", *WHY], "nothing is lent for more than 30 days"),
        (["10.0.0.5:443", "--for", "1y", *WHY], "write a number and a unit"),
        (["10.0.0.5:443", "--until", "2020-01-01", *WHY], "that is over already"),
        (["10.0.0.5:443", "--until", "2999-01-01", *WHY], "nothing is lent for more than 30 days"),
        (["10.0.0.5:443", "--until", "soon", *WHY], "write 18:00"),
    ],
    ids=str,
)
def test_nonsense_is_refused_before_anybody_is_asked(
    daemon: FakeDaemon, call: Call, arguments: list[str], message: str
) -> None:
    done = call("grant", "litellm", *arguments)
    assert (done.exit_code, done.stdout, daemon.requests) == (2, "", [])
    assert message in " ".join(done.stderr.split())
