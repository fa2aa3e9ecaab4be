"""The log of what was lent: read as it is, or a sentence that says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.fake_daemon import FakeDaemon
from cli.test_grants import record
from penstock.cli.context import CannotTell
from penstock.cli.lent_log import MAX_LINE, read
from penstock.core.grants import LOG_NAME


def test_the_oldest_first_and_only_what_is_ours(daemon: FakeDaemon) -> None:
    log = daemon.home / "log"
    assert list(read(daemon.run, None)) == []
    for number in (1, 3):
        (log / f"{LOG_NAME}.{number}").write_bytes(record("made", reason=str(number)) + b"\n")
    (log / LOG_NAME).write_bytes(b"x" * (2 * MAX_LINE) + b"\n" + record("ended", reason="0") + b"\n")
    assert [one["reason"] for one in read(daemon.run, None)] == ["3", "1", "0"]


def test_where_nothing_can_be_read(daemon: FakeDaemon) -> None:
    with pytest.raises(CannotTell, match="no daemon has run here"):
        list(read(Path("/nowhere"), None))
    (daemon.home / "log" / LOG_NAME).mkdir()
    with pytest.raises(CannotTell, match="cannot be read"):
        list(read(daemon.run, None))
