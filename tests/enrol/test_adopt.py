"""Adopting: real processes in a lab under real rules, with packets; and everything that is refused."""

from __future__ import annotations

import encodings.idna
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attacks.ops import accept, connect, listen, name_of, port_of, send
from governed import Actor, Governed, eventually, rules
from penstock.core.slices import SLICE
from penstock.demo.host import Host
from penstock.demo.lab import Lab
from penstock.demo.recorder import Recorder
from penstock.enrol import adopt
from penstock.enrol.adopt import Adopted, Row
from penstock.errors import PenstockError

assert encodings.idna  # loaded now: actors of other users cannot read our Python

PORT = 80
FAMILIES = pytest.mark.parametrize("family", [4, 6])


# --- which processes ---


def row(parent: int, group: int = 0, session: int = 0) -> Row:
    return Row(parent, group, session, 0, 0)


def test_descendants() -> None:
    table = {
        1: row(0, 1, 1),
        10: row(1, 10, 10),  # the shell
        20: row(10, 20, 10),  # adopted, a job of the shell
        21: row(20, 20, 10),
        22: row(21, 22, 22),
        30: row(1, 20, 10),  # lost its parent, still of the job
        31: row(1, 22, 22),  # of the session of 22
        32: row(30, 32, 10),
        40: row(10, 40, 10),  # another job of the shell
        50: row(1, 50, 50),
    }
    assert set(adopt.descendants(20, table)) == {20, 21, 22, 30, 31, 32}
    assert adopt.descendants(20, table)[0] == 20
    assert set(adopt.descendants(10, table)) == {10, 20, 21, 22, 30, 31, 32, 40}
    assert adopt.descendants(50, table) == (50,)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("/system.slice/ollama.service", "belongs to ollama.service; penstock protect ollama.service"),
        ("/system.slice/system-vllm.slice/vllm@a.service/sub", "belongs to vllm@a.service"),
        ("/system.slice/docker.service", "belongs to docker.service"),
        ("/penstock.slice/penstock-a.slice/x.scope", "is in /penstock.slice/penstock-a.slice/x.scope already"),
        ("/system.slice/docker-0123abcd.scope", "is in a container"),
        ("/docker/" + "0" * 64, "is in a container"),
        ("/kubepods.slice/kubepods-besteffort.slice/x", "is in a container"),
        ("/machine.slice/libpod-12ab.scope/container", "is in a container"),
        ("/machine.slice/machine-x.scope/payload", "is in a container"),
        ("/user.slice/user-0.slice/user@0.service/user.slice/libpod-77.scope", "is in a container"),
        ("/lxc.payload.web/init.scope", "is in a container"),
    ],
)
def test_processes_that_belong_to_somebody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str, text: str
) -> None:
    monkeypatch.setattr(adopt, "cgroup_of", lambda pid: place)
    monkeypatch.setattr("penstock.kernel.cgroup.path_of", lambda tree: "/")
    with pytest.raises(PenstockError) as caught:
        adopt._refuse_place(7, "process 7", tmp_path)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        "/user.slice/user-1000.slice/session-3.scope",
        "/user.slice/user-1000.slice/user@1000.service/app.slice/app-terminal.scope",
        "/user.slice/user-1000.slice/user@1000.service/app.slice/mine.service",
        "/init.scope",
        "/docker-like/x",
        "/",
    ],
)
def test_processes_that_are_loose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str) -> None:
    monkeypatch.setattr(adopt, "cgroup_of", lambda pid: place)
    monkeypatch.setattr("penstock.kernel.cgroup.path_of", lambda tree: "/")
    adopt._refuse_place(7, "process 7", tmp_path)


# --- in a lab ---


@pytest.fixture(scope="module")
def governed(lab: Lab) -> Iterator[Governed]:
    """One workload, `a`, which may talk to the registry and has one port open to it."""
    made = Governed(lab)
    registry = lab.remote["registry"].addresses
    addresses = ", ".join(f'"{address}"' for address in registry)
    made.load(
        rules("a", f"[{{to: [{addresses}], ports: [{PORT}]}}]", f"[{{ports: [9000], from: [{addresses}]}}]")
    )
    yield made
    made.close()


@pytest.fixture(scope="module")
def stranger(lab: Lab) -> Recorder:
    return Recorder(lab, lab.remote["stranger"], ports=(PORT,), udp_ports=(PORT,), packets=True)


@pytest.fixture(scope="module")
def registry(lab: Lab) -> Recorder:
    return Recorder(lab, lab.remote["registry"], ports=(PORT,))


@pytest.fixture
def somebody(lab: Lab, governed: Governed) -> Iterator[Actor]:
    """A loose process of an ordinary user."""
    with Actor(lab.host, user="nobody") as actor:
        yield actor


def take(pid: int, tree: Path, workload: str = "a") -> Adopted:
    return adopt.adopt(adopt.examine(pid, tree), workload, tree)


def adopted(lab: Lab, actor: Actor) -> Adopted:
    return lab.host.call(take, actor(os.getpid), lab.cgroup)


def where(pid: int | str = "self") -> str:
    return Path(f"/proc/{pid}/cgroup").read_text().rstrip("\n").rpartition("::")[2]


def reconnect(fd: int, address: str) -> str:
    """Over the same descriptor: "ok" or the name of the error."""
    sock = socket.socket(fileno=fd)
    try:
        sock.settimeout(1)
        for target in ((socket.AF_UNSPEC, None), (None, (address, PORT))):
            if target[1] is None:
                _disconnect(fd)
            else:
                sock.connect(target[1])
    except OSError as error:
        return name_of(error)
    finally:
        sock.detach()
    return "ok"


def _disconnect(fd: int) -> None:
    import ctypes

    ctypes.CDLL(None).connect(fd, bytes(16), 16)


@pytest.mark.root
@FAMILIES
def test_its_connections_end_and_its_new_ones_are_governed(
    lab: Lab, somebody: Actor, stranger: Recorder, registry: Recorder, family: int
) -> None:
    far, allowed = lab.remote["stranger"].address(family), lab.remote["registry"].address(family)
    held = somebody(connect, far, PORT)
    unused = somebody(_unused, family)
    before = len(stranger.arrivals("packet"))
    assert somebody(send, held, b"before") == "ok"
    eventually(lambda: any(a.data.endswith("before") for a in stranger.arrivals("packet")[before:]))
    done = adopted(lab, somebody)
    assert (done.closed, done.left, done.warnings) == (2, (), ())
    pid = somebody(os.getpid)
    assert done.scope == f"penstock.slice/penstock-a.slice/adopt-{pid}.scope"
    assert somebody(where) == f"/{lab.name}/{done.scope}"
    quiet = len(stranger.arrivals("packet"))
    assert somebody(send, held, b"after") in ("ECONNABORTED", "EPIPE")
    assert somebody(reconnect, held, far) != "ok"
    assert somebody(reconnect, unused, far) != "ok"
    assert somebody(connect, far, PORT) == "ECONNREFUSED"
    assert stranger.arrivals("packet")[quiet:] == []
    again = somebody(connect, allowed, PORT)
    assert isinstance(again, int), "what its rules allow works"
    assert somebody(send, again, b"allowed") == "ok"
    eventually(lambda: any(a.data == "allowed" for a in registry.arrivals("data")))


def _unused(family: int) -> int:
    return socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6).detach()


@pytest.mark.root
@FAMILIES
def test_its_listeners_end_and_its_new_ones_are_governed(lab: Lab, somebody: Actor, family: int) -> None:
    any_address = "0.0.0.0" if family == 4 else "::"
    near, stranger, registry = lab.host.address(family), lab.remote["stranger"], lab.remote["registry"]
    old = somebody(listen, any_address)
    port = somebody(port_of, old)
    assert isinstance(stranger.call(connect, near, port), int)
    assert adopted(lab, somebody).closed >= 1
    assert stranger.call(connect, near, port) == "ECONNREFUSED"
    new = somebody(listen, any_address, 9000)
    assert stranger.call(connect, near, 9000) == "ECONNREFUSED"
    assert isinstance(registry.call(connect, near, 9000), int)
    assert isinstance(somebody(accept, new), int)


TREE = """
import os, signal, socket, sys, time
def child(depth):
    if os.fork() == 0:
        if depth: child(depth - 1)
        s = socket.socket(); time.sleep(60); os._exit(0)
for _ in range(3): child(2)
if os.fork() == 0:          # one with a session of its own, and in it one whose parent ended
    os.setsid()
    if os.fork() == 0:
        if os.fork() == 0: time.sleep(60)
        os._exit(0)
    os.wait()
    time.sleep(60)
print("ready", flush=True)
while True:                 # and a storm of short ones
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0: time.sleep(0.01)
        os._exit(0)
    os.waitpid(pid, 0)
"""


@pytest.fixture
def storm(lab: Lab, governed: Governed) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A tree that grows; the process here, and its number in the lab."""
    argv = [sys.executable, "-S", "-c", TREE]
    child = lab.host.popen(argv, stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout
    assert child.stdout.readline() == "ready\n"
    inside = _inside(lab.host, child.pid)
    yield child, inside
    lab.host.call(_end_session, inside)
    child.kill()
    child.wait()
    child.stdout.close()


def _inside(host: Host, pid: int) -> int:
    """The number in the lab of one of our children there."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    raise AssertionError(host)


def _end_session(session: int) -> None:
    for _ in range(50):
        for pid, one in adopt.processes().items():
            if session in (one.session, one.group) or b"os.setsid" in _cmdline(pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.root
def test_a_whole_tree_that_grows(lab: Lab, storm: tuple[subprocess.Popen[str], int]) -> None:
    _, pid = storm
    done = lab.host.call(take, pid, lab.cgroup)
    assert len(done.processes) >= 10
    places = lab.host.call(_places_of_tree, pid)
    assert places.keys() == {f"/{lab.name}/{done.scope}"}, places
    first = lab.host.call(_count_children, pid)
    eventually(lambda: lab.host.call(_count_children, pid) != first, 10)  # it goes on, and is not left frozen


def _places_of_tree(pid: int) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for one in adopt.processes():
        if b"os.setsid" in _cmdline(one):
            try:
                found.setdefault(where(one), []).append(one)
            except OSError:
                continue
    assert pid in {one for places in found.values() for one in places}
    return found


def _count_children(pid: int) -> float:
    return sum(map(float, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[13:15]))


THREADS = """
import ctypes, os, sys, threading, time
def stay():
    print("ready", flush=True); time.sleep(60)
threading.Thread(target=stay).start()
ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)   # exit of the first thread alone
"""


@pytest.mark.root
def test_a_process_whose_first_thread_has_ended(lab: Lab, governed: Governed) -> None:
    """It looks dead, and is not."""
    child = lab.host.popen([sys.executable, "-S", "-c", THREADS], stdout=subprocess.PIPE)
    assert child.stdout
    assert child.stdout.readline() == "ready\n"
    pid = _inside(lab.host, child.pid)
    eventually(lambda: lab.host.call(adopt._stat, f"/proc/{pid}")[0] == "Z")
    done = lab.host.call(take, pid, lab.cgroup)
    places = lab.host.call(_places_of_threads, pid)
    child.kill()
    child.wait()
    child.stdout.close()
    assert places == {f"/{lab.name}/{done.scope}"}


def _places_of_threads(pid: int) -> set[str]:
    tasks = [f"{pid}/task/{name}" for name in os.listdir(f"/proc/{pid}/task") if int(name) != pid]
    return {where(task) for task in tasks}


@pytest.mark.root
def test_rights_that_stay_are_told(lab: Lab, governed: Governed) -> None:
    with Actor(lab.host) as actor:
        done = adopted(lab, actor)
    assert len(done.warnings) == 1
    assert "keeps CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN, and could get past its rules" in done.warnings[0]


@pytest.mark.root
def test_refusals(lab: Lab, governed: Governed, somebody: Actor) -> None:
    def refused(pid: int, host: Host = lab.host) -> str:
        with pytest.raises(PenstockError) as caught:
            host.call(take, pid, lab.cgroup)
        assert str(caught.value).isprintable()
        return str(caught.value)

    assert refused(4194304) == "there is no process 4194304; see: ps -e"
    assert "process 1 runs this host" in refused(1)
    with pytest.raises(PenstockError, match="is this command itself, or started it"):
        lab.host.call(_take_self, lab.cgroup)
    assert "is in another network namespace" in refused(somebody(os.getpid), lab.remote["registry"])
    adopted(lab, somebody)
    assert "already" in refused(somebody(os.getpid))
    with Actor(lab.host, cgroup="system.slice/x.service") as service:
        assert "belongs to x.service; penstock protect x.service" in refused(service(os.getpid))
    with Actor(lab.host) as parent:
        parent(_start_in, str(lab.cgroup / "system.slice/x.service"))
        assert "which descends from process" in refused(parent(os.getpid))
        assert parent(where) == f"/{lab.name}/others.slice", "nothing was moved"


def _take_self(tree: Path) -> None:
    take(os.getpid(), tree)


def _start_in(directory: str) -> None:
    """A child in another cgroup."""
    pid = os.fork()
    if pid == 0:
        Path(directory, "cgroup.procs").write_text("0")
        os.kill(os.getppid(), 0)
        time.sleep(60)
        os._exit(0)
    eventually(lambda: where(pid).endswith("x.service"))


@pytest.mark.root
def test_a_workload_without_a_slice(lab: Lab, somebody: Actor) -> None:
    with pytest.raises(PenstockError, match=f"cannot be moved: {os.strerror(errno.ENOENT)}"):
        lab.host.call(take, somebody(os.getpid), lab.cgroup, "none")
    assert SLICE not in somebody(where)


@pytest.mark.root
def test_a_process_that_ended_meanwhile(lab: Lab, governed: Governed, somebody: Actor) -> None:
    """Another one has its number: it is not taken for the first."""
    with pytest.raises(PenstockError, match="ended meanwhile"):
        lab.host.call(_take_late, somebody(os.getpid), lab.cgroup)
    assert somebody(os.getpid), "it is not left frozen"


def _take_late(pid: int, tree: Path) -> None:
    loose = adopt.examine(pid, tree)
    adopt.adopt(adopt.Loose(loose.process, loose.started - 1, loose.tree), "a", tree)
