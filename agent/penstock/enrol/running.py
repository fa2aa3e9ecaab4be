"""What runs in a unit now: its processes, and the ports they listen on.  Everything here is text of theirs."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import psutil

from penstock.errors import PenstockError
from penstock.kernel import cgroup
from penstock.kernel.process import seen

MAX_CMDLINE = 64 << 10
MAX_PROCESSES = 1000


@dataclass(frozen=True, slots=True)
class Process:
    """One process; `exe` is empty when it cannot be told."""

    pid: int
    exe: str
    comm: str
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """A port that somebody may connect to.  `local`: only from this host."""

    port: int
    protocol: str
    local: bool


def of_unit(control_group: str, main_pid: str) -> tuple[Process, ...]:
    """The processes of a unit, the main one first; as systemd tells its cgroup and main pid."""
    main = int(main_pid) if main_pid.isdecimal() else 0
    pids = []
    if control_group.startswith("/") and control_group != "/":
        try:
            pids = cgroup.processes(cgroup.default_tree() / control_group[1:])[:MAX_PROCESSES]
        except PenstockError:  # two hierarchies: the daemon says it, here the main process must do
            pids = [main] if main else []
    ordered = sorted(set(pids), key=lambda pid: (pid != main, pid))
    return tuple(found for pid in ordered if (found := process(pid)) is not None)


def process(pid: int) -> Process | None:
    """A process by its pid; None when it is gone."""
    found = seen(pid)
    if found is None:
        return None
    try:
        exe = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    except OSError:
        exe = ""
    return Process(pid, exe, found.comm, argv_of(pid))


def argv_of(pid: int) -> tuple[str, ...]:
    """Its arguments as it shows them, at most 64 KiB."""
    try:
        with Path(f"/proc/{pid}/cmdline").open("rb") as file:
            text = file.read(MAX_CMDLINE).decode("utf-8", "replace")
    except OSError:
        return ()
    return tuple(text.rstrip("\0").split("\0")) if text.strip("\0") else ()


def listeners(pids: Collection[int]) -> tuple[Listener, ...]:
    """The ports on which these processes take connections: TCP that listens, UDP that is no passing port."""
    if not pids:
        return ()
    found: dict[tuple[int, str], bool] = {}
    passing = _passing_ports()
    for one in psutil.net_connections("inet"):
        if one.pid not in pids or not one.laddr:
            continue
        address, port = one.laddr
        tcp = one.type == socket.SOCK_STREAM
        if one.status == psutil.CONN_LISTEN if tcp else not one.raddr and port not in passing:
            key = (port, "tcp" if tcp else "udp")
            found[key] = found.get(key, True) and ip_address(address.partition("%")[0]).is_loopback
    return tuple(sorted(Listener(port, protocol, local) for (port, protocol), local in found.items()))


def _passing_ports() -> range:
    """Ports that the kernel gives to whoever asks for none."""
    try:
        first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        first, last = 32768, 60999
    return range(first, last + 1)
