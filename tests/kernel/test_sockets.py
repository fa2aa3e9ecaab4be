"""Sockets that were made useless: their owner tries everything, and a witness on the wire sees nothing."""

from __future__ import annotations

import contextlib
import ctypes
import encodings.idna
import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from attacks.ops import connect
from governed import Actor, eventually
from penstock.demo.lab import Lab
from penstock.demo.recorder import Recorder
from penstock.kernel import sockets

pytestmark = pytest.mark.root

assert encodings.idna  # loaded now: actors of other users cannot read our Python

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
ANY = {4: "0.0.0.0", 6: "::"}
PORT = 80
MPTCP = 262
KINDS: dict[str, tuple[int, int, str]] = {
    "tcp": (socket.SOCK_STREAM, 0, ""),
    "tcp bound": (socket.SOCK_STREAM, 0, "bound"),
    "tcp listening": (socket.SOCK_STREAM, 0, "listening"),
    "tcp connected": (socket.SOCK_STREAM, 0, "connected"),
    "mptcp": (socket.SOCK_STREAM, MPTCP, ""),
    "mptcp listening": (socket.SOCK_STREAM, MPTCP, "listening"),
    "mptcp connected": (socket.SOCK_STREAM, MPTCP, "connected"),
    "udp": (socket.SOCK_DGRAM, 0, ""),
    "udp bound": (socket.SOCK_DGRAM, 0, "bound"),
    "udp connected": (socket.SOCK_DGRAM, 0, "connected"),
    "udplite": (socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE, "bound"),
    "ping": (socket.SOCK_DGRAM, -1, ""),
}

_held: dict[int, socket.socket] = {}


def make(kind: str, family: int, address: str) -> int:
    """A socket in that state, kept by the actor."""
    number, protocol, state = KINDS[kind]
    if protocol == -1:
        protocol = int(socket.IPPROTO_ICMP if family == 4 else socket.IPPROTO_ICMPV6)
    made = socket.socket(FAMILIES[family], number, protocol)
    if state in ("bound", "listening"):
        made.bind((ANY[family], 0))
    if state == "listening":
        made.listen()
    if state == "connected":
        made.connect((address, PORT))
    made.setblocking(False)
    _held[made.fileno()] = made
    return made.fileno()


def revive(fd: int, family: int, address: str) -> dict[str, str]:
    """Try everything that might send a packet; by name, "ok" or the error."""
    sock, libc = _held[fd], ctypes.CDLL(None, use_errno=True)
    outside = next(index for index, name in socket.if_nameindex() if name != "lo")
    echo = b"\x08\0\0\0\0\0\0\0" if family == 4 else b"\x80\0\0\0\0\0\0\0"
    info = (socket.IPPROTO_IP, 8, struct.pack("=i8x", outside))
    if family == 6:
        info = (socket.IPPROTO_IPV6, 50, struct.pack("=16xi", outside))

    def disconnect() -> None:
        if libc.connect(fd, bytes(16), 16) < 0:
            raise OSError(ctypes.get_errno(), "")

    def send() -> None:
        sock.send(b"x")

    def to() -> None:
        sock.sendto(b"x", (address, PORT))

    attempts: list[tuple[str, Callable[[], object]]] = [
        ("send", send),
        ("sendto", to),
        ("sendto as it is", lambda: sock.sendto(echo, (address, PORT))),
        ("sendmsg", lambda: sock.sendmsg([b"x"], [info], 0, (address, PORT))),
        ("disconnect", disconnect),
        ("no filter", lambda: sock.setsockopt(socket.SOL_SOCKET, 27, 0)),
        ("no device", lambda: sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"")),
        ("no index", lambda: sock.setsockopt(socket.SOL_SOCKET, sockets.SO_BINDTOIFINDEX, 0)),
        ("connect", lambda: sock.connect((address, PORT))),
        ("send again", send),
        ("sendto again", to),
        ("sendto as it is, again", lambda: sock.sendto(echo, (address, PORT))),
        ("sendmsg again", lambda: sock.sendmsg([b"x"], [info], 0, (address, PORT))),
        ("bind", lambda: sock.bind((ANY[family], 0))),
        ("listen", sock.listen),
    ]
    results = {}
    for name, attempt in attempts:
        try:
            attempt()
            results[name] = "ok"
        except OSError as error:
            results[name] = errno.errorcode.get(error.errno or 0, str(error))
    return results


def port_of(fd: int) -> int:
    return int(_held[fd].getsockname()[1])


@pytest.fixture(scope="module")
def stranger(lab: Lab) -> Recorder:
    lab.host.run(["sh", "-c", "echo 0 65534 > /proc/sys/net/ipv4/ping_group_range"])
    return Recorder(lab, lab.remote["stranger"], ports=(PORT,), udp_ports=(PORT,), packets=True)


@pytest.fixture
def somebody(lab: Lab) -> Iterator[Actor]:
    """A process of an ordinary user."""
    with Actor(lab.host, user="nobody") as actor:
        yield actor


def kill(lab: Lab, actor: Actor) -> sockets.Outcome:
    return lab.host.call(sockets.kill, [actor(os.getpid)])


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_leaves_any_more(
    lab: Lab, stranger: Recorder, somebody: Actor, kind: str, family: int
) -> None:
    address = lab.remote["stranger"].address(family)
    start = len(stranger.arrivals("packet"))
    control = somebody(make, kind, family, address)
    somebody(revive, control, family, address)
    assert stranger.arrivals("packet")[start:], "as long as it lives it reaches the stranger"
    somebody(_close, control)
    victim = somebody(make, kind, family, address)
    assert kill(lab, somebody) == sockets.Outcome(dead=1, left=())
    quiet = len(stranger.arrivals("packet"))
    tried = somebody(revive, victim, family, address)
    assert stranger.arrivals("packet")[quiet:] == [], tried
    new = somebody(connect, address, PORT)
    assert isinstance(new, int), "what it opens from now on is as before"


def _close(fd: int) -> None:
    _held.pop(fd).close()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["tcp listening", "mptcp listening", "udp bound"])
def test_nothing_is_received_any_more(lab: Lab, somebody: Actor, kind: str, family: int) -> None:
    """Neither by the listener as it was, nor after its owner listens again."""
    address, far = lab.host.address(family), lab.remote["stranger"]
    fd = somebody(make, kind, family, address)
    port = somebody(port_of, fd)
    if kind == "udp bound":
        far.call(_datagram, family, address, port)
        eventually(lambda: somebody(_received, fd))
        kill(lab, somebody)
        far.call(_datagram, family, address, port)
        assert not somebody(_received, fd)
        return
    assert isinstance(far.call(connect, address, port), int)
    kill(lab, somebody)
    assert far.call(connect, address, port) == "ECONNREFUSED"
    again = somebody(_listen_again, fd, family, port)
    assert far.call(connect, address, port) in ("ECONNREFUSED", "timeout"), again


def _datagram(family: int, address: str, port: int) -> None:
    with socket.socket(FAMILIES[family], socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", (address, port))


def _received(fd: int) -> bool:
    try:
        return _held[fd].recv(10) == b"x"
    except OSError:
        return False


def _listen_again(fd: int, family: int, port: int) -> list[str]:
    said = []
    calls: list[Callable[[], object]] = [lambda: _held[fd].bind((ANY[family], port)), _held[fd].listen]
    for call in calls:
        try:
            call()
            said.append("ok")
        except OSError as error:
            said.append(errno.errorcode.get(error.errno or 0, ""))
    return said


def test_the_program_sees_it_at_once(lab: Lab, stranger: Recorder, somebody: Actor) -> None:
    fd = somebody(make, "tcp connected", 4, lab.remote["stranger"].v4)
    kill(lab, somebody)
    assert somebody(_error_of, fd) == errno.ECONNABORTED


def _error_of(fd: int) -> int:
    return _held[fd].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def test_what_stays_is_named(lab: Lab) -> None:
    with Actor(lab.host) as actor:
        pid = actor(os.getpid)
        actor(_hold, socket.AF_PACKET, socket.SOCK_RAW, 0)
        actor(_hold, socket.AF_INET, socket.SOCK_RAW, 253)
        actor(_hold, socket.AF_INET6, socket.SOCK_STREAM, MPTCP)
        outcome = kill(lab, actor)
    assert outcome.dead == 0
    said = [text.partition(": ")[2] for text in sorted(outcome.left)]
    assert all(text.startswith(f"process {pid}, descriptor ") for text in outcome.left)
    assert sorted(said) == [
        "a socket that cannot be destroyed (IPv4 raw)",
        "a socket that cannot be destroyed (IPv6 MPTCP): the process has CAP_NET_RAW",
        "a socket that cannot be destroyed (packet)",
    ]


def test_a_socket_of_another_network_is_named(lab: Lab) -> None:
    with Actor(lab.host) as actor:
        actor(_hold_elsewhere)
        outcome = kill(lab, actor)
    said = [text.partition(": ")[2] for text in outcome.left]
    assert said == ["a socket of another network namespace (IPv4 UDP)"]


def _hold_elsewhere() -> None:
    """A thread goes there, makes a socket, and comes back with it."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(0x40000000) == 0
    _hold(socket.AF_INET, socket.SOCK_DGRAM, 0)
    assert libc.setns(home, 0) == 0
    os.close(home)


def _hold(family: int, kind: int, protocol: int) -> None:
    made = socket.socket(family, kind, protocol)
    _held[made.fileno()] = made


def test_what_is_no_socket_of_a_network_stays(lab: Lab, somebody: Actor) -> None:
    somebody(_hold_pair)
    assert kill(lab, somebody) == sockets.Outcome(0, ())
    assert somebody(_pair_works)


def _hold_pair() -> None:
    for one in socket.socketpair():
        _held[one.fileno()] = one


def _pair_works() -> bool:
    one, other = _held.values()
    one.send(b"x")
    return other.recv(1) == b"x"


def test_a_socket_of_one_thread_is_named(lab: Lab) -> None:
    """A thread that gave up the common table of descriptors."""
    script = (
        "import ctypes, socket, sys, threading, time\n"
        "def alone():\n"
        "    assert ctypes.CDLL(None).unshare(0x400) == 0\n"
        "    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "    print('there', flush=True); sys.stdin.read()\n"
        "threading.Thread(target=alone).start()\n"
    )
    child = lab.host.popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout
    assert child.stdin
    assert child.stdout.readline() == "there\n"
    pid = lab.host.call(_pid_inside, script)
    outcome = lab.host.call(sockets.kill, [pid])
    child.stdin.close()
    child.wait(10)
    child.stdout.close()
    assert outcome.dead == 0
    assert len(outcome.left) == 1
    assert outcome.left[0].endswith("a socket of that thread alone")


def _pid_inside(script: str) -> int:
    """The process's number in the lab."""
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and script.encode() in open(f"/proc/{name}/cmdline", "rb").read():  # noqa: SIM115
                return int(name)
    raise AssertionError("it is not there")


def test_a_process_that_is_gone(lab: Lab) -> None:
    assert lab.host.call(sockets.kill, [4194304]) == sockets.Outcome(0, ())
