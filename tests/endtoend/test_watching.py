"""What others are told of a host: the file for node_exporter, and the journal's records; with the real daemon."""

from __future__ import annotations

import os
import signal
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attacks import ops
from daemon.running import Running
from exposition import Family, parse, value
from governed import Actor, eventually
from penstock.core.journal import MESSAGE_IDS
from penstock.core.metrics import FILE

pytestmark = pytest.mark.root

PERIOD = 20.0
"""Seconds within which there is a new file."""

OFTEN = 1.0
"""Seconds between two measurements, so that a test need not wait: there is one with each look of the daemon."""


def path_of(running: Running) -> Path:
    return running.home / "run-metrics" / FILE


def written(running: Running, after: float = 0.0) -> dict[str, Family]:
    """The file, once there is one that was written after that moment."""
    path = path_of(running)
    eventually(lambda: path.exists() and path.stat().st_mtime > after, PERIOD)
    return parse(path.read_bytes())


@pytest.fixture
def traffic(running: Running) -> Iterator[Running]:
    """Two packets that pass and three that do not, in both families."""
    running.measures_every = OFTEN
    hub, stranger = running.lab.remote["registry"], running.lab.remote["stranger"]
    running.rules("a", f'[{{to: [{hub.v4}, "{hub.v6}"], ports: [7000/udp], name: up}}]')
    running.up()
    with running.actor("a") as workload:
        for address, far, count in (
            *(("0.0.0.0", hub.v4, 1), ("::", hub.v6, 1)),
            *(("0.0.0.0", stranger.v4, 2), ("::", stranger.v6, 1)),
        ):
            here = workload(ops.udp, address)
            for _ in range(count):
                workload(ops.sendto, here, b"x" * 100, far, 7000)
        yield running


def test_metrics(traffic: Running) -> None:
    written(traffic, time.time())  # which may say what was counted a moment before
    found = written(traffic, path_of(traffic).stat().st_mtime)
    assert value(found, "penstock_denied_packets_total", workload="a", direction="out") == 3
    assert value(found, "penstock_denied_bytes_total", workload="a", direction="out") == 2 * 128 + 148
    assert value(found, "penstock_denied_packets_total", workload="a", direction="in") == 0
    assert value(found, "penstock_rule_packets_total", workload="a", direction="out", rule="up") == 2
    assert value(found, "penstock_rule_bytes_total", rule="up") == 128 + 148
    assert value(found, "penstock_kernel_agrees") == 1
    assert value(found, "penstock_workload_info", workload="a", mode="enforce", state="enforcing") == 1
    status = traffic.ask("status")
    assert value(found, "penstock_policy_info", hash=status["policy"]["hash"]) == 1
    assert abs(value(found, "penstock_written_time_seconds") - time.time()) < PERIOD
    assert value(found, "penstock_unlogged_packets_total", workload="a") == status["workloads"][0]["unlogged"]


def test_everybody_may_read_them(traffic: Running) -> None:
    written(traffic)
    path = path_of(traffic)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    with Actor(traffic.lab.host, user="nobody") as somebody:
        assert parse(somebody(_in_directory, path.parent)), "as node_exporter does"


def test_what_is_not_looked_at_is_not_told(running: Running) -> None:
    running.rules("a")
    running.up()
    written(running)
    running.stop(signal.SIGKILL)
    assert path_of(running).exists(), "its age tells"
    began = time.time()
    running.up()
    written(running, began)
    assert running.stop() == 0
    assert not path_of(running).exists()


def test_metrics_that_cannot_be_written_stop_nothing(running: Running) -> None:
    running.measures_every = OFTEN
    running.rules("a")
    path_of(running).parent.parent.mkdir(parents=True, exist_ok=True)
    path_of(running).parent.write_text("in the way")
    running.up()
    eventually(lambda: "metrics-unwritable" in running.findings(), PERIOD)
    assert running.status()["egress"] == "enforcing"
    path_of(running).parent.unlink()
    eventually(lambda: "metrics-unwritable" not in running.findings(), PERIOD)
    assert written(running)
    said = [line for line in running.messages().splitlines() if "cannot be written" in line]
    assert len(said) == 2, "once when it failed, once as a finding"
    assert "metrics-unwritable" in said[1]


def test_the_journal(running: Running) -> None:
    """Somebody plays journald, where the daemon's messages lead."""
    running.measures_every = OFTEN
    stranger = running.lab.remote["stranger"].v4
    running.rules("a")
    running.asker(_play_journald)
    running.home.mkdir(exist_ok=True)
    messages = running.lab.dir / f"{running.home.name}.stderr"
    messages.touch()
    there = messages.stat()
    running.start(env={**os.environ, "JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"})
    running.wait_in_force()
    with running.actor("a") as workload:
        here = workload(ops.udp, "0.0.0.0")
        for _ in range(3):
            workload(ops.sendto, here, b"x", stranger, 7000)
        records: list[dict[str, str]] = []

        def told(event: str) -> bool:
            records.extend(running.asker(_records))
            return any(record.get("PENSTOCK_EVENT") == event for record in records)

        eventually(lambda: told("denied") and told("applied"))
        running.nft("flush table inet penstock")
        eventually(lambda: told("foreign-change") and told("repaired"))
        eventually(lambda: told("finding"), PERIOD)
    assert all(record.get("MESSAGE_ID") == MESSAGE_IDS.get(record.get("PENSTOCK_EVENT", "")) for record in records)
    [denied] = [record for record in records if record.get("PENSTOCK_EVENT") == "denied"]
    assert denied["PENSTOCK_WORKLOAD"] == "a"
    assert denied["PENSTOCK_DESTINATION"] == f"{stranger}:7000/udp"
    assert denied["PRIORITY"] == "5"
    assert denied["SYSLOG_IDENTIFIER"] == "penstock"
    found = {record.get("PENSTOCK_FINDING") for record in records}
    assert "foreign-change" in found
    assert running.stop() == 0
    [last] = [record for record in running.asker(_records) if record.get("PENSTOCK_EVENT") == "denied"]
    assert (last["PENSTOCK_BLOCK"], last["PENSTOCK_COUNT"]) == (denied["PENSTOCK_BLOCK"], "3")
    assert running.messages() == "", "nothing is told twice"


# --- in actors ---

_journald: list[socket.socket] = []


def _in_directory(directory: Path) -> bytes:
    """The one file in it that a textfile collector takes."""
    os.chdir(directory)
    [name] = [name for name in os.listdir() if name.endswith(".prom")]
    return Path(name).read_bytes()


def _play_journald() -> None:
    path = Path("/run/systemd/journal/socket")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(str(path))
    _journald.append(sock)


def _records() -> list[dict[str, str]]:
    """All that came since; every field by its name."""
    found: list[dict[str, str]] = []
    while True:
        try:
            data = _journald[-1].recv(1 << 16)
        except BlockingIOError:
            return found
        record: dict[str, str] = {}
        while data:
            line, _, rest = data.partition(b"\n")
            name, equals, text = line.partition(b"=")
            if not equals:
                (size,) = struct.unpack("<Q", rest[:8])
                text, rest = rest[8 : 8 + size], rest[9 + size :]
            record[name.decode()], data = text.decode(), rest
        found.append(record)
