"""The resolver's process: where it is, what it holds, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from governed import eventually
from penstock.core import resolver_wire as wire
from penstock.core.slices import RESOLVER
from penstock.demo.lab import Lab
from penstock.errors import PenstockError
from penstock.kernel import cgroup
from penstock.kernel.process import cgroup_of
from penstock.kernel.resolver_process import LINK, ResolverProcess, spawn

pytestmark = pytest.mark.root

TELL = f"""
import json, os, signal, socket
fds = {{int(name): os.readlink("/proc/self/fd/" + name) for name in os.listdir("/proc/self/fd")
       if os.path.lexists("/proc/self/fd/" + name)}}
said = {{
    "cgroup": open("/proc/self/cgroup").read().strip().rpartition("::")[2],
    "fds": fds, "cwd": os.getcwd(), "env": dict(os.environ), "uid": os.getuid(),
    "blocked": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
}}
link = socket.socket(fileno={LINK})
link.sendall(json.dumps(said).encode() + b"\\n")
link.recv(1)
"""
STAY = f"import socket; link = socket.socket(fileno={LINK}); link.send(b'x'); link.recv(1)"


def program(text: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", text]


def said(process: ResolverProcess) -> dict[str, Any]:
    with process.link.dup().makefile("rb") as answer:
        found: dict[str, Any] = json.loads(answer.readline())
    return found


def is_gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


def test_it_is_in_its_cgroup_and_holds_the_link_and_nothing_else(lab: Lab) -> None:
    def work() -> None:
        cgroup.make(lab.cgroup, (), resolver=True)
        os.environ["SECRET"], os.environ["LC_ALL"] = "x", "C.UTF-8"
        os.dup2(2, 40)  # as one that the daemon was started with
        home, before = cgroup_of(os.getpid()), os.listdir("/proc/self/fd")
        process = spawn(lab.cgroup / RESOLVER, program(TELL))
        assert not process.link.get_inheritable()
        assert not os.get_inheritable(process.pidfd)
        found = said(process)
        process.close()
        assert str(found["cgroup"]).endswith(f"/{RESOLVER}")
        assert {k: v for k, v in found["fds"].items() if not str(v).startswith("/proc/")} == {
            "0": "/dev/null",
            "1": "/dev/null",
            "2": os.readlink("/proc/self/fd/2"),
            "3": found["fds"]["3"],
        }
        assert found["fds"]["3"].startswith("socket:")
        assert found["cwd"] == "/"
        assert found["uid"] == 0  # it gives its rights up itself
        assert found["env"].keys() - {"LC_CTYPE", "LANG", "TZ"} == {"PYTHONPATH", "LC_ALL"}
        assert found["blocked"] == []
        assert is_gone(process.pid)
        assert cgroup.own_processes(lab.cgroup / RESOLVER) == []
        assert cgroup_of(os.getpid()) == home
        assert len(os.listdir("/proc/self/fd")) == len(before)

    lab.host.call(work)


@pytest.mark.parametrize("missing", [(0,), (0, 1), (0, 1, 3)])
def test_the_numbers_are_right_whatever_the_daemon_has_open(lab: Lab, missing: tuple[int, ...]) -> None:
    def work() -> None:
        cgroup.make(lab.cgroup, (), resolver=True)
        os.closerange(3, 4)
        for descriptor in missing:
            os.closerange(descriptor, descriptor + 1)
        process = spawn(lab.cgroup / RESOLVER, program(TELL))
        found = said(process)
        process.close()
        assert (found["fds"]["0"], found["fds"]["1"]) == ("/dev/null", "/dev/null")
        assert found["fds"]["3"].startswith("socket:")

    lab.host.call(work)


def test_its_end_is_seen_at_the_link(lab: Lab) -> None:
    def work() -> None:
        cgroup.make(lab.cgroup, (), resolver=True)
        process = spawn(lab.cgroup / RESOLVER, program(STAY))
        assert process.link.recv(1) == b"x"
        os.kill(process.pid, signal.SIGKILL)
        assert select.select([process.link], [], [], 5)[0]
        assert process.link.recv(1) == b""
        process.close()
        assert is_gone(process.pid)

    lab.host.call(work)


def test_it_ends_when_the_link_is_closed(lab: Lab) -> None:
    def work() -> None:
        cgroup.make(lab.cgroup, (), resolver=True)
        process = spawn(lab.cgroup / RESOLVER, program(STAY))
        assert process.link.recv(1) == b"x"
        process.link.close()
        assert select.select([process.pidfd], [], [], 5)[0]
        process.close()

    lab.host.call(work)


def test_a_program_that_is_not_there_is_said(lab: Lab) -> None:
    def work() -> None:
        cgroup.make(lab.cgroup, (), resolver=True)
        before = os.listdir("/proc/self/fd")
        with pytest.raises(PenstockError, match=r"/nowhere: the resolver cannot be started: No such file"):
            spawn(lab.cgroup / RESOLVER, ["/nowhere"])
        assert os.listdir("/proc/self/fd") == before
        assert cgroup.own_processes(lab.cgroup / RESOLVER) == []

    lab.host.call(work)


def test_without_its_cgroup_nothing_is_started(lab: Lab) -> None:
    def work() -> None:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(PenstockError, match="cannot be entered"):
            spawn(lab.cgroup / "penstock.slice/nowhere", program(STAY))
        assert os.listdir("/proc/self/fd") == before

    lab.host.call(work)


def test_a_signal_to_the_child_is_none_to_the_daemon(lab: Lab) -> None:
    """The event loop of a daemon is woken by signals through a socket, which the child has too."""

    def work() -> None:
        cgroup.make(lab.cgroup, (), resolver=True)
        awake, wake = socket.socketpair()
        awake.setblocking(False)
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno())
        signal.signal(signal.SIGTERM, lambda *_: None)
        slow = "import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
        process = spawn(lab.cgroup / RESOLVER, program(slow))
        assert select.select([process.pidfd], [], [], 5)[0]  # the default again: it was ended
        process.close()
        with pytest.raises(BlockingIOError):
            awake.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)  # and ours are not blocked
        assert awake.recv(1) == bytes([signal.SIGTERM])

    lab.host.call(work)


def test_it_gives_its_rights_up_and_dies_with_the_thread_that_started_it(lab: Lab) -> None:
    def work() -> None:
        cgroup.make(lab.cgroup, (), resolver=True)
        started: list[ResolverProcess] = []
        leave = threading.Event()

        def live() -> None:
            # Imported before: as nobody it may not read it any more.
            text = f"import socket; from penstock.resolver import rights; rights.give_up(); {STAY}"
            started.append(spawn(lab.cgroup / RESOLVER, [sys.executable, "-s", "-P", "-c", text]))
            assert started[0].link.recv(1) == b"x"
            leave.wait(30)

        thread = threading.Thread(target=live)
        thread.start()
        eventually(lambda: bool(started) and uid_of(started[0].pid) == "61100")
        assert not select.select([started[0].pidfd], [], [], 0)[0]
        leave.set()
        thread.join()
        assert select.select([started[0].pidfd], [], [], 5)[0]
        started[0].close()

    lab.host.call(work)


def test_the_real_one_outlives_who_started_it_for_a_while_and_not_its_close(lab: Lab) -> None:
    def work() -> None:
        cgroup.make(lab.cgroup, (), resolver=True)
        started: list[ResolverProcess] = []

        def live() -> None:
            started.append(spawn(lab.cgroup / RESOLVER))
            started[0].link.sendall(wire.encode(wire.Listen("w")))
            assert started[0].link.recv(4096)  # a trouble: no sockets came

        thread = threading.Thread(target=live)
        thread.start()
        thread.join()
        assert not select.select([started[0].pidfd], [], [], 0.3)[0]
        started[0].close()
        assert is_gone(started[0].pid)

    lab.host.call(work)


def uid_of(pid: int) -> str:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return ""
    return next(line.split()[1] for line in lines if line.startswith("Uid:"))
