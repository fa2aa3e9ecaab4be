"""The daemon starts, ends and starts again: what stays in force, who is refused, what it costs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.running import MIB, Running, hammering
from governed import Actor, eventually
from penstock.core.blocks import Process
from penstock.core.effects import Effect
from penstock.core.events import Event, UpstreamsRead
from penstock.core.policy import Mode, Policy, Upstream, Workload
from penstock.core.resolv_conf import ResolvConf
from penstock.core.resolver_wire import Refused
from penstock.core.slices import slice_of
from penstock.daemon import app, upstreams
from penstock.daemon.app import TICK, Daemon
from penstock.daemon.options import Options
from penstock.demo.lab import Lab
from penstock.demo.probe import tcp, udp
from penstock.demo.recorder import Recorder
from penstock.errors import PenstockError
from penstock.kernel.asker import Asker

pytestmark = pytest.mark.root

EXAMPLES = Path(__file__).parents[2] / "rules/examples"
TO_REGISTRY = '[{to: [198.51.100.10, "2001:db8:51::10"], ports: [80, 80/udp]}]'
FAMILIES = (4, 6)
PORT = 80


def test_start_to_enforcing(lab: Lab) -> None:
    """Alone on a machine it is half a second; one of three starts tells, without what others kept the CPU for."""

    def start() -> float:
        with Running(lab) as running:
            _write_examples(running)
            began = time.monotonic()
            running.up()
            seconds, queued = time.monotonic() - began, _queued(running)
        print(f"from the start to everything in force: {seconds:.2f} s, {queued:.2f} of them without a CPU")
        return seconds - queued

    assert any(start() < 2 for _ in range(3))


def _queued(running: Running) -> float:
    """Seconds that the daemon's threads could have run and had no CPU."""
    tasks = Path(f"/proc/{running.process.pid}/task").glob("*/schedstat")
    return sum(int(path.read_text().split()[1]) for path in tasks) / 1e9


def test_restart_loads_what_was_applied(running: Running) -> None:
    running.rules("a", TO_REGISTRY)
    running.up()
    applied = running.ask("status")["policy"]["hash"]
    assert running.stop() == 0
    running.rules("a", "[]")
    running.rules("b")
    running.up()
    policy = running.ask("status")["policy"]
    assert (policy["hash"], policy["pending_files"]) == (applied, 2)
    assert running.ask("apply")["changed"]
    assert running.ask("status")["policy"]["pending_files"] == 0


@pytest.mark.parametrize("same", ["run directory", "network namespace"])
def test_a_second_one_is_refused(same: str, lab: Lab, running: Running) -> None:
    running.rules("a")
    running.up()
    before = running.snapshot()
    with Running(lab, guest=True) as second:
        second.rules("a", TO_REGISTRY)
        if same == "run directory":
            second.run = running.run
        text = second.refused()
    assert text.count("\n") == 1
    assert "another" in text
    assert running.snapshot() == before
    assert running.status()["egress"] == "enforcing"


def test_the_end_leaves_all_in_force(lab: Lab, running: Running, stranger: Recorder) -> None:
    running.rules("a", TO_REGISTRY)
    running.up()
    before = running.snapshot()
    with running.actor() as workload:
        assert running.stop() == 0
        assert not (running.run / "control.sock").exists()
        assert running.snapshot() == before
        for family in FAMILIES:
            assert workload(tcp, lab.remote["stranger"].address(family), PORT).outcome == "ECONNREFUSED"
            assert workload(tcp, lab.remote["registry"].address(family), PORT).outcome == "ok"
    assert stranger.arrivals() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_no_instant_of_openness(
    number: int, count: int, lab: Lab, running: Running, stranger: Recorder
) -> None:
    """A process of the workload calls the stranger all the time, while the daemon comes and goes."""
    running.rules("a", TO_REGISTRY)
    addresses = [lab.remote["stranger"].address(family) for family in FAMILIES]
    with running.actor() as workload:
        for address in addresses:  # without rules he is reached
            assert workload(tcp, address, PORT).outcome == "ok"
            assert workload(udp, address, PORT).outcome == "ok"
        running.up()
        reached = len(stranger.arrivals())
        assert reached > 0
        cgroup, denied = running.cgroup_id(), 0
        with hammering(workload, lab.dir / "stop", _hammer, addresses) as calls:
            for _ in range(10 if count == 1 else 3):
                eventually(lambda: running.counter("denied_out_a") > denied)  # noqa: B023 - called at once
                denied = running.counter("denied_out_a")
                running.stop(number)
                running.up()
                assert running.counter("denied_out_a") >= denied
        print(f"{calls[0]} calls of the stranger while the daemon was restarted")
        assert running.cgroup_id() == cgroup
        assert len(stranger.arrivals()) == reached
        assert running.counter("denied_out_a") >= calls[0]


def test_memory_and_silence(lab: Lab, running: Running) -> None:
    """Packets that are allowed do not wake the daemon."""
    _write_examples(running)
    running.rules("a", TO_REGISTRY)
    running.up()
    eventually(lambda: running.findings() <= {"not-yet-enforced", "no-upstream"})
    registry = lab.remote["registry"]
    with running.actor() as workload, Actor(registry) as receiver:
        receiver(_open, registry.v4)
        seconds, busy = _switches_meanwhile(running, TICK, lambda: workload(_send, registry.v4, 20_000))
        _, idle = _switches_meanwhile(running, seconds, lambda: 0)  # the same time for both
        received = receiver(_drain)
    print(f"idle: {running.rss() / MIB:.1f} MiB; in {seconds:.1f} s it slept {idle} times,")
    print(f"{busy} with {received} packets")
    assert running.rss() < 60 * MIB
    assert received >= 19_000  # what the receiver's buffer lost is not the firewall's
    assert busy - idle < 30


@pytest.fixture
def stranger(lab: Lab) -> Iterator[Recorder]:
    host = lab.remote["stranger"]
    recorders = [
        Recorder(lab, host, ports=(PORT,), udp_ports=(PORT,)),
        Recorder(lab, lab.remote["registry"], ports=(PORT,), udp_ports=(PORT,)),
    ]
    yield recorders[0]
    for recorder in recorders:
        recorder.stop()


def _write_examples(running: Running) -> None:
    for path in EXAMPLES.glob("*.yaml"):
        (running.config / "rules.d").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, running.config if path.stem == "penstock" else running.config / "rules.d")


def _switches_meanwhile(running: Running, seconds: float, work: Any) -> tuple[float, int]:
    """While `work` was done, and for so long at least: the seconds, and how often the daemon went to sleep."""
    before, start = running.switches(), time.monotonic()
    work()
    time.sleep(max(0, start + seconds - time.monotonic()))
    return time.monotonic() - start, running.switches() - before


# --- in actors ---

_sockets: list[socket.socket] = []


def _hammer(stop: Path, addresses: list[str]) -> int:
    """Call the addresses by TCP and UDP as fast as may be; how often."""
    calls = 0
    while not stop.exists():
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                for _ in range(20):
                    with socket.socket(family, kind) as sock:
                        sock.setblocking(False)
                        if not sock.connect_ex((address, PORT)) and kind == socket.SOCK_DGRAM:
                            with contextlib.suppress(OSError):
                                sock.send(b"x")
                    calls += 1
    return calls


def _open(address: str) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    sock.bind((address, PORT))
    sock.setblocking(False)
    _sockets.append(sock)


def _drain() -> int:
    received = 0
    while True:
        try:
            _sockets[-1].recv(16)
        except BlockingIOError:
            return received
        received += 1


def _send(address: str, packets: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, PORT))
        for _ in range(packets):
            sock.send(b"x")
    os.sched_yield()


class Performer:
    """Takes what the engine wants, and does nothing."""

    def __init__(self) -> None:
        self.todo: list[Effect] = []

    def perform(self, todo: list[Effect]) -> None:
        self.todo += todo


def daemon_in(tmp_path: Path) -> Daemon:
    return Daemon(Options(*(tmp_path / name for name in ("config", "state", "run", "log"))), tmp_path, "/")


def test_nobody_is_looked_for_where_no_workload_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver may have been taken over: `a/../..` is a way to anywhere."""
    daemon, places = daemon_in(tmp_path), list[str]()

    def find(_: Asker, homes: Sequence[str], *__: Any) -> Process:
        places.extend(homes)
        return Process(7, "curl")

    monkeypatch.setattr(Asker, "find", find)
    asked = Refused(1, "a", "stranger.example", "A", "name", "udp", (ip_address("127.0.0.1"), 4711))
    assert daemon._asker(asked) is None
    policy = Policy(workloads={"a": Workload("a", Mode.ENFORCE, (), ())})
    bound = {"system.slice/a.service": "a", "system.slice/b.service": "b"}
    in_force = SimpleNamespace(policy=policy, places=bound)
    daemon._engine = SimpleNamespace(in_force=in_force)  # type: ignore[assignment]
    for workload in ("b", "", "a.slice/../../../../tmp/x"):
        assert daemon._asker(replace(asked, workload=workload)) is None
    assert places == []
    assert daemon._asker(asked) == Process(7, "curl")
    assert places == [slice_of("a"), "system.slice/a.service"]


def test_whom_the_host_asks_is_told_when_it_changes_and_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever found no port for a listener tries it again then."""
    daemon, server, fed = daemon_in(tmp_path), Upstream(ip_address("192.0.2.53")), list[Event]()
    monkeypatch.setattr(daemon, "_feed", fed.append)
    for seconds, servers, told in (
        (1000.0, (), 1),
        (1002.0, (), 1),
        (1004.0, (server,), 2),
        (1002 + app.AGAIN, (server,), 2),
        (1004 + app.AGAIN, (server,), 3),
        (1006 + app.AGAIN, (server,), 3),
    ):
        monkeypatch.setattr(app, "uptime", lambda at=seconds: at)
        monkeypatch.setattr(upstreams, "read", lambda found=servers: ResolvConf(found))
        daemon._follow_upstreams()
        assert len(fed) == told, seconds
    assert [event.servers for event in fed if isinstance(event, UpstreamsRead)] == [(), (server,), (server,)]


def test_cgroups_that_cannot_be_watched_end_nobody(tmp_path: Path) -> None:
    """Units are found by the self-check as well, only later."""
    daemon = daemon_in(tmp_path)
    performer = Performer()
    daemon._executor = performer  # type: ignore[assignment]

    def no_room() -> bool:
        raise PenstockError("a cgroup cannot be watched: No space left on device")

    for _ in range(2):
        daemon._read_watch(no_room)
    assert [type(effect).__name__ for effect in performer.todo] == ["Journal"], "said once"
    assert "SliceWatch" in daemon._engine.view.troubles
    assert daemon._changed.is_set(), "something came, or it would not have been read"
    daemon._read_watch(lambda: False)
    assert daemon._engine.view.troubles == {}
