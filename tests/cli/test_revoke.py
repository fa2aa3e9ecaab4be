"""`penstock revoke`."""

from __future__ import annotations

import json

import pytest

from cli.conftest import Call
from cli.fake_daemon import FakeDaemon, lent
from penstock.core.wire import Message


def test_revoked(daemon: FakeDaemon, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "anna")
    daemon.replies["revoke"] = {"grant": lent(reason="a\x1b")}
    done = call("revoke", "1a2b")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == "revoked grant-1a2b3c4d: litellm, 10.30.1.9:5432, anna: a\\x1b\n"
    assert daemon.requests == [Message("revoke", {"id": "1a2b", "user": "anna"})]
    assert json.loads(call("revoke", "1a2b", "--json").stdout)["grant"]["id"] == "grant-1a2b3c4d"


def test_failures(daemon: FakeDaemon, call: Call) -> None:
    daemon.replies["revoke"] = ("no grant `x` is live", "see: penstock grants")
    done = call("revoke", "x")
    assert (done.exit_code, done.stderr) == (1, "penstock: no grant `x` is live; see: penstock grants\n")
    daemon.close()
    assert call("revoke", "x").exit_code == 2
