"""A lab connects its hosts, stays apart from the real host, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.demo import namespaces, probe
from penstock.demo.host import CommandFailed
from penstock.demo.lab import Lab, assert_elsewhere
from penstock.demo.recorder import Recorder
from penstock.errors import PenstockError

pytestmark = pytest.mark.root

FAMILIES = [pytest.param(4, id="v4"), pytest.param(6, id="v6")]


def inode() -> int:
    return namespaces.net_inode()


def left_behind(name: str, netns: int) -> list[str]:
    """Everything of the lab `name` that still exists on the real host."""
    found = [str(p) for p in Path(tempfile.gettempdir()).glob(f"{name}*")]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.stat(entry / "ns/net").st_ino == netns or name in (entry / "cgroup").read_text():
                found.append(f"{entry} {(entry / 'cmdline').read_text()}")
        except OSError:
            continue
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
    with Lab(remotes={}) as other:
        found += other.host.call(lambda: [str(p) for p in Path("/sys/fs/cgroup").glob(name)])
    return found


def interfaces() -> list[str]:
    return sorted(name for _, name in socket.if_nameindex())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [probe.tcp, probe.udp])
def test_every_host_reaches_every_other(lab: Lab, family: int, kind: Callable[..., probe.Attempt]) -> None:
    stranger, registry = lab.remote["stranger"], lab.remote["registry"]
    recorder = Recorder(lab, stranger, ports=(80,), udp_ports=(80,))
    for source in (lab.host, registry):
        attempt = source.call(kind, stranger.address(family), 80)
        assert (attempt.outcome, attempt.reply) == ("ok", b"hello")
    peers = [a.peer for a in recorder.arrivals("data")]
    recorder.stop()
    assert peers == [lab.host.address(family), registry.address(family)]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_address_that_nobody_has_gives_no_answer(lab: Lab, family: int) -> None:
    nobody = {4: "203.0.113.99", 6: "2001:db8:99::99"}[family]
    assert lab.host.call(probe.tcp, nobody, 80, timeout=0.1).outcome == "timeout"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_recorder_sees_packets_that_no_socket_takes(lab: Lab, family: int) -> None:
    stranger = lab.remote["stranger"]
    recorder = Recorder(lab, stranger, packets=True)
    assert recorder.arrivals("connect") == []
    assert lab.host.call(probe.tcp, stranger.address(family), 81).outcome == "ECONNREFUSED"
    packets = recorder.arrivals("packet")
    recorder.stop()
    assert [(p.protocol, p.family, p.port) for p in packets] == [("tcp", family, 81)]


def test_a_lab_is_elsewhere_and_the_guard_tells(lab: Lab) -> None:
    assert lab.host.call(inode) == lab.netns_inode != inode() == lab.home_inode
    assert len({h.call(inode) for h in (lab.host, *lab.remote.values())}) == 3
    lab.host.call(assert_elsewhere, inode())
    with pytest.raises(PenstockError, match="refusing"):
        assert_elsewhere(lab.home_inode)


def test_a_program_is_born_in_the_cgroup_that_was_asked_for(lab: Lab) -> None:
    read = ["cat", "/proc/self/cgroup"]
    assert f"0::/{lab.name}/a.slice/b\n" in lab.host.run(read, cgroup="a.slice/b").stdout
    assert f"0::/{lab.name}/others.slice\n" in lab.host.run(read).stdout
    inside = lab.host.call_in("a.slice/c", Path("/proc/self/cgroup").read_text)
    assert f"0::/{lab.name}/a.slice/c\n" in inside
    assert lab.host.run(["test", "-d", str(lab.cgroup / "a.slice/c")]).returncode == 0


def test_run_is_as_another_user_and_reports_failure(lab: Lab) -> None:
    assert lab.host.run(["id", "-un"], user="nobody").stdout == "nobody\n"
    with pytest.raises(CommandFailed, match="sh: 1: nonsense: not found"):
        lab.host.run(["sh", "-c", "nonsense"])
    with pytest.raises(subprocess.TimeoutExpired):
        lab.host.run(["sleep", "60"], timeout=0.05)


def test_a_child_takes_signals_itself(lab: Lab) -> None:
    child = lab.host.popen(["sleep", "60"])
    child.terminate()
    assert child.wait(5) == -signal.SIGTERM


def test_call_returns_and_raises(lab: Lab) -> None:
    assert lab.host.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        lab.host.call(divmod, 7, 0)
    with pytest.raises(ChildProcessError):
        lab.host.call(os._exit, 3)


def test_names_are_pinned_inside_only(lab: Lab) -> None:
    lab.pin({"hub.example": ["203.0.113.66", "2001:db8:66::66"]})
    assert lab.host.run(["getent", "ahosts", "hub.example"]).stdout.startswith(("203.0.113.66", "2001:db8"))
    assert "hub.example" not in Path("/etc/hosts").read_text()
    lab.resolver("192.0.2.53")
    assert lab.host.run(["cat", "/etc/resolv.conf"]).stdout == "nameserver 192.0.2.53\n"
    assert "192.0.2.53" not in Path("/etc/resolv.conf").read_text()


def test_it_is_up_in_half_a_second_and_leaves_nothing() -> None:
    before = interfaces()
    start = time.monotonic()
    with Lab() as lab:
        took = time.monotonic() - start
        lab.host.popen(["sh", "-c", "sleep 60 & sleep 60"], cgroup="w.slice/x.scope")
    lab.close()
    assert left_behind(lab.name, lab.netns_inode) == []
    assert interfaces() == before
    assert took < 0.5


def test_a_failure_inside_leaves_nothing() -> None:
    lab = Lab()
    with pytest.raises(ZeroDivisionError), lab:
        lab.host.call(divmod, lab.host.popen(["sleep", "60"]).pid, 0)
    assert left_behind(lab.name, lab.netns_inode) == []


def test_a_lab_that_cannot_be_built_leaves_nothing() -> None:
    lab = Lab(remotes={"x": ["not-an-address"]})
    with pytest.raises(PenstockError, match="not-an-address"):
        lab.__enter__()
    assert left_behind(lab.name, 0) == []


OWNER = """
import sys, time
from penstock.demo.lab import Lab
with Lab() as lab:
    lab.host.popen(["sleep", "60"], cgroup="w.slice")
    print(lab.name, lab.netns_inode, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_owner_leaves_nothing_but_what_the_next_lab_removes(number: signal.Signals) -> None:
    env = {**os.environ, "PYTHONPATH": "agent"}
    argv = [sys.executable, "-c", OWNER]
    owner = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
    with owner:
        assert owner.stdout
        name, netns = owner.stdout.readline().split()
        owner.send_signal(number)
    deadline = time.monotonic() + 5
    while found := left_behind(name, int(netns)):
        assert time.monotonic() < deadline, found
