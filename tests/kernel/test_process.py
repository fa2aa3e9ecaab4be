"""What /proc says of processes, among them some that lie."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from governed import eventually
from penstock.core.events import LookAlike
from penstock.demo.lab import Lab
from penstock.kernel import process

PR_SET_DUMPABLE, PR_SET_NAME = 4, 15


@contextmanager
def child(before: Callable[[], object] = lambda: None) -> Iterator[int]:
    """A process that did `before` and waits."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            before()
            os.write(writer, b"x")
            signal.pause()
        finally:
            os._exit(0)
    os.read(reader, 1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)


def prctl(option: int, value: object) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def leave_the_network() -> None:
    if ctypes.CDLL(None).unshare(0x40000000):  # CLONE_NEWNET
        os._exit(1)


def test_ourselves() -> None:
    seen = process.seen(os.getpid())
    assert seen
    assert (seen.pid, seen.uid) == (os.getpid(), os.geteuid())
    assert seen.started > 0
    assert seen.comm == Path("/proc/self/comm").read_text().rstrip("\n")


@pytest.mark.root
def test_a_process_in_another_network_namespace() -> None:
    with child() as here, child(leave_the_network) as there:
        found = [process.seen(pid) for pid in (here, there)]
        assert [one and one.elsewhere for one in found] == [False, True]


@pytest.mark.parametrize("name", [b") R 1 (", b"a b) c", b"\xff\x1b[31m", b"(((", b"x\ny"])
def test_any_name(name: bytes) -> None:
    with child(lambda: prctl(PR_SET_NAME, name)) as pid:
        seen, plain = process.seen(pid), process.seen(os.getpid())
        assert seen
        assert plain
        assert seen.comm == name.decode("utf-8", "replace")
        assert seen.started >= plain.started


@pytest.mark.root
def test_who_forbids_to_be_dumped_is_not_taken_for_root() -> None:
    def become() -> None:
        os.setuid(65534)
        prctl(PR_SET_DUMPABLE, 0)

    with child(become) as pid:
        assert Path(f"/proc/{pid}/stat").stat().st_uid == 0
        seen = process.seen(pid)
        assert seen
        assert seen.uid == 65534


def test_nobody() -> None:
    assert process.seen(4194305) is None
    assert process.cgroup_of(4194305) is None
    assert process.stray(4194305, 1, "w") is None
    assert process.seen(0) is None


def test_a_stray_is_the_same_process_and_alive() -> None:
    with child() as pid:
        seen = process.seen(pid)
        assert seen
        stray = process.stray(pid, seen.started, "w")
        assert stray
        assert (stray.pid, stray.workload, stray.cgroup) == (pid, "w", process.cgroup_of(pid))
        assert process.stray(pid, seen.started + 1, "w") is None, "another one with its pid"
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert process.stray(pid, seen.started, "w") is None, "a zombie does nothing"


@pytest.mark.root
def test_where_a_process_is(lab: Lab) -> None:
    """A zombie too is said to be where it was: it cannot leave a workload by dying."""

    def body() -> tuple[str | None, str | None]:
        place = process.cgroup_of(os.getpid())
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return place, process.cgroup_of(pid)

    alive, dead = lab.host.call_in("penstock.slice/x", body)
    assert alive is not None
    assert alive.endswith("/penstock.slice/x")
    assert dead == alive


SERVE = "import signal; signal.pause()"


@contextmanager
def called(*argv: str) -> Iterator[int]:
    """A process whose command line begins with `argv`."""
    child = subprocess.Popen([argv[0], "-c", SERVE, *argv[1:]], executable=sys.executable)
    try:
        eventually(lambda: Path(f"/proc/{child.pid}/cmdline").read_bytes().startswith(os.fsencode(argv[0])))
        yield child.pid
    finally:
        child.kill()
        child.wait()


def alike(governed: Callable[[str], bool] = lambda place: False) -> dict[int, LookAlike]:
    return {found.pid: found for found in process.look_alikes(governed)}


def test_a_server_that_nobody_governs() -> None:
    with called("/opt/llama-server") as pid, called("/opt/llama-serverx") as other:
        found = alike()
        assert found[pid].server == "llama-server"
        assert found[pid].cgroup == process.cgroup_of(pid)
        assert other not in found
        asked: list[str] = []

        def governed(place: str) -> bool:
            asked.append(place)
            return place == found[pid].cgroup

        assert pid not in alike(governed)
        assert found[pid].cgroup in asked


def test_no_more_are_told_of_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    with called("/opt/llama-server"), called("/opt/llama-server"):
        assert len(alike()) >= 2
        monkeypatch.setattr(process, "MAX_LOOK_ALIKES", 1)
        assert len(alike()) == 1
        monkeypatch.setattr(process, "MAX_AROUND", 0)
        assert alike() == {}


def test_command_lines_are_cut_and_those_of_the_gone_are_empty() -> None:
    with subprocess.Popen(["x" * 5000, "60"], executable="/bin/sleep") as child:  # Python minds such a name
        eventually(lambda: process.argv_of(child.pid) == ["x" * process.MAX_ARGV])
        child.kill()
    with called("a\udcffb") as pid:
        assert process.argv_of(pid)[:2] == ["a\ufffdb", "-c"]
    assert process.argv_of(4194305) == []
