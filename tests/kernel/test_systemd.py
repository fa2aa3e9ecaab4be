"""What systemd leaves in files, and what it wants to hear."""

from __future__ import annotations

import os
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.kernel import systemd
from penstock.kernel.systemd import PENDING, SLACK, dropin, notify, send, tell


class Host:
    """Directories of systemd."""

    def __init__(self, top: Path) -> None:
        self.settings, self.units = top / "etc", top / "run"
        self.units.mkdir()

    def put(self, unit: str, end: str = "") -> Path:
        """A drop-in of ours."""
        path = self.settings / f"{unit}.d" / f"50-penstock.conf{end}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    def started(self, unit: str, after: float) -> None:
        """So many seconds after now."""
        link = self.units / f"invocation:{unit}"
        link.symlink_to("0123456789abcdef")
        when = link.lstat().st_mtime + after
        os.utime(link, (when, when), follow_symlinks=False)

    def says(self, unit: str) -> str:
        return dropin(unit, self.settings, self.units)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_no_drop_in(host: Host) -> None:
    assert host.says("x.service") == "none"
    host.started("x.service", 60)
    host.put("y.service")
    (host.settings / "x.service.d").mkdir(parents=True)
    (host.settings / "x.service.d/override.conf").touch()
    assert host.says("x.service") == "none"


def test_one_that_waits_for_an_apply(host: Host) -> None:
    host.put("x.service", PENDING)
    host.started("x.service", 60)
    assert host.says("x.service") == "pending"


def test_armed_for_the_next_start(host: Host) -> None:
    host.put("x.service")
    assert host.says("x.service") == "armed", "nobody knows when it was started"
    host.started("x.service", -60)
    assert host.says("x.service") == "armed"


def test_started_since_and_elsewhere_all_the_same(host: Host) -> None:
    host.put("x.service")
    host.started("x.service", SLACK + 5)
    assert host.says("x.service") == "ignored"


def test_started_before_systemd_can_have_read_it(host: Host) -> None:
    host.put("x.service")
    host.started("x.service", SLACK - 2)
    assert host.says("x.service") == "armed"


def test_armed_by_a_rename_counts_from_then(host: Host) -> None:
    """The file is old; a rename changes its change time."""
    path = host.put("x.service", PENDING)
    os.utime(path, (1, 1))
    path.rename(path.with_name("50-penstock.conf"))
    host.started("x.service", -1)
    assert host.says("x.service") == "armed"


@pytest.mark.parametrize("unit", ["vllm@a.service", "vllm@a.b@c.service"])
def test_of_a_template(host: Host, unit: str) -> None:
    host.put("vllm@.service")
    assert host.says(unit) == "armed"
    assert host.says("vllm.service") == "none"
    host.started(unit, SLACK + 5)
    assert host.says(unit) == "ignored"
    host.started("vllm@z.service", SLACK + 5)
    assert host.says("vllm@z.service") == "ignored"


def test_of_one_instance(host: Host) -> None:
    host.put("vllm@a.service")
    assert host.says("vllm@a.service") == "armed"
    assert host.says("vllm@b.service") == "none"


# --- sd_notify ---


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"{short}/notify" if request.param == "path" else f"@penstock-test-{os.getpid()}"
        sock.bind(name.replace("@", "\0", 1) if name[0] == "@" else name)
        sock.settimeout(1)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


def test_the_service_manager_hears_it(manager: socket.socket) -> None:
    notify("READY=1\nSTATUS=good")
    assert manager.recv(100) == b"READY=1\nSTATUS=good"


def test_a_manager_that_does_not_listen_stops_nobody(manager: socket.socket) -> None:
    for _ in range(2_000):  # more than the queue holds
        notify("WATCHDOG=1")
    assert manager.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("name", [None, "", "relative", "/nowhere/at/all", "@nobody", "/" + "x" * 200])
def test_nobody_wants_to_hear_it(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if name is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", name)
    notify("READY=1")


def test_the_journal_gets_the_urgency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it takes no records."""
    monkeypatch.setattr(systemd, "JOURNAL", tmp_path / "nowhere")
    with (tmp_path / "journal").open("w+") as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            there = os.fstat(2)
            for stream in (f"{there.st_dev}:{there.st_ino}", "1:1", None):
                if stream is None:
                    monkeypatch.delenv("JOURNAL_STREAM")
                else:
                    monkeypatch.setenv("JOURNAL_STREAM", stream)
                with monkeypatch.context() as patch, os.fdopen(os.dup(2), "w") as stderr:
                    patch.setattr(sys, "stderr", stderr)
                    tell("error", "all is lost")
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    said = (tmp_path / "journal").read_text().splitlines()
    assert said == ["<3>penstock: error: all is lost", *["penstock: error: all is lost"] * 2]


# --- the journal's own protocol ---


@pytest.fixture
def journald(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """It takes records, and our stderr leads to it."""
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"{short}/socket")
        sock.settimeout(1)
        there = os.fstat(2)
        monkeypatch.setenv("JOURNAL_STREAM", f"{there.st_dev}:{there.st_ino}")
        monkeypatch.setattr(systemd, "JOURNAL", Path(short, "socket"))
        yield sock


def read_record(data: bytes) -> dict[str, bytes]:
    """As systemd-journald does."""
    found = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if equals:
            data = rest
        else:
            (size,) = struct.unpack("<Q", rest[:8])
            value, data = rest[8 : 8 + size], rest[8 + size + 1 :]
            assert rest[8 + size : 8 + size + 1] == b"\n"
        found[name.decode()] = value
    return found


def test_the_journal_gets_fields(journald: socket.socket, capsys: pytest.CaptureFixture[str]) -> None:
    tell("warning", "lent", {"PENSTOCK_WORKLOAD": "ollama", "PENSTOCK_REASON": "a=b\nMESSAGE=no\n"})
    assert read_record(journald.recv(10_000)) == {
        "PRIORITY": b"4",
        "SYSLOG_IDENTIFIER": b"penstock",
        "MESSAGE": b"lent",
        "PENSTOCK_WORKLOAD": b"ollama",
        "PENSTOCK_REASON": b"a=b\nMESSAGE=no\n",
    }
    assert capsys.readouterr().err == "", "not told twice"


def test_a_journal_that_is_not_ours_gets_none(journald: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")
    assert not send("info", {"MESSAGE": "x"})
    journald.setblocking(False)
    with pytest.raises(BlockingIOError):
        journald.recv(100)


def test_a_journal_that_does_not_read_stops_nobody(
    journald: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill() -> None:
        for _ in range(2_000):
            send("info", {"MESSAGE": "x"})

    with pytest.raises(BlockingIOError):
        fill()
    tell("error", "all is lost")
    assert capsys.readouterr().err == "<3>penstock: error: all is lost\n", "it is told in the old way"
