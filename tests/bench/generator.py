"""Load: `Place` is a process that calls and the sockets that it calls, anywhere in a lab.

One thread is both ends, on one CPU: a socket belongs to the namespace and to the cgroup in which it was made, so
the process makes the called sockets at one place and then moves to the other.  In C when there is a compiler;
in Python the load itself costs so much that every ratio looks better than it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from governed import Actor
from penstock.demo import namespaces
from penstock.demo.host import Host

OPERATIONS = ("connects", "requests", "echoes")
SETTINGS = {
    "ipv4/tcp_tw_reuse": "1",
    "ipv4/ip_local_port_range": "30000 40000",
    "netfilter/nf_conntrack_tcp_timeout_time_wait": "1",
}
"""Connections that are over are soon forgotten: else a million of them fill the tables that all variants share."""

Operation = Callable[[int, str, int, int], float]
_library: list[ctypes.CDLL] = []
_called: dict[str, int] = {}


def build() -> bool:
    """Compile the generator for the processes that are forked after this; false without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return False
    source = Path(__file__).with_name("generator.c")
    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory, "generator.so")
        subprocess.run([compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", made, source], check=True)
        library = ctypes.CDLL(str(made))
    for name in OPERATIONS:
        function = getattr(library, name)
        function.restype = ctypes.c_double
        function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_int)
    _library[:] = [library]
    return True


class Place:
    """Calls from `caller` to `called`, where somebody answers at `port`; each is a host and a cgroup there."""

    def __init__(self, caller: tuple[Host, Path], called: tuple[Host, Path], port: int, cpu: int) -> None:
        self._actor = Actor(caller[0])
        self._port = port
        self._actor(_join, str(called[1]))
        self._actor(_prepare, caller[0]._net, called[0]._net, port, cpu)
        self._actor(_join, str(caller[1]))

    def run(self, operation: str, address: str, count: int) -> float:
        """CPU nanoseconds of one operation."""
        taken: float = self._actor(_run, operation, address, self._port, count)
        if taken < 0:
            raise OSError(int(-taken), f"{operation} to {address}: {os.strerror(int(-taken))}")
        return taken

    def close(self) -> None:
        """End the process."""
        self._actor.close()


# --- in the process ---


def _prepare(home: int, called: int, port: int, cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    namespaces.setns(called, namespaces.CLONE_NEWNET)
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1000)
    echoer = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    echoer.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    echoer.bind(("::", port))
    _called.update(connects=listener.fileno(), requests=listener.detach(), echoes=echoer.detach())
    namespaces.setns(home, namespaces.CLONE_NEWNET)
    for name, value in SETTINGS.items():
        with contextlib.suppress(FileNotFoundError):  # conntrack's, where it is not loaded
            Path("/proc/sys/net", name).write_text(value)


def _join(cgroup: str) -> None:
    os.makedirs(cgroup, exist_ok=True)
    Path(cgroup, "cgroup.procs").write_text("0")


def _run(operation: str, address: str, port: int, count: int) -> float:
    if _library:
        return float(getattr(_library[0], operation)(_called[operation], *_sockaddr(address, port), count))
    return IN_PYTHON[operation](_called[operation], address, port, count)


def _sockaddr(address: str, port: int) -> tuple[bytes, int]:
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address)
        made = struct.pack("=H", socket.AF_INET6) + struct.pack(">HI", port, 0) + packed + bytes(4)
    else:
        made = struct.pack("=H", socket.AF_INET) + struct.pack(">H", port) + socket.inet_aton(address) + bytes(8)
    return made, len(made)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _connects(called: int, address: str, port: int, count: int) -> float:
    with socket.socket(fileno=os.dup(called)) as listener:
        start = time.thread_time_ns()
        for _ in range(count):
            near = socket.socket(_family(address), socket.SOCK_STREAM)
            near.connect((address, port))
            far, _ = listener.accept()
            near.close()
            far.close()
        return (time.thread_time_ns() - start) / count


def _requests(called: int, address: str, port: int, count: int) -> float:
    with socket.socket(fileno=os.dup(called)) as listener, socket.create_connection((address, port)) as near:
        far, _ = listener.accept()
        with far:
            start = time.thread_time_ns()
            for _ in range(count):
                near.send(bytes(64))
                far.recv(64)
                far.send(bytes(64))
                near.recv(64)
            return (time.thread_time_ns() - start) / count


def _echoes(called: int, address: str, port: int, count: int) -> float:
    with socket.socket(fileno=os.dup(called)) as far, socket.socket(_family(address), socket.SOCK_DGRAM) as near:
        near.connect((address, port))
        start = time.thread_time_ns()
        for _ in range(count):
            near.send(bytes(64))
            data, sender = far.recvfrom(64)
            far.sendto(data, sender)
            near.recv(64)
        return (time.thread_time_ns() - start) / count


IN_PYTHON: dict[str, Operation] = {"connects": _connects, "requests": _requests, "echoes": _echoes}
