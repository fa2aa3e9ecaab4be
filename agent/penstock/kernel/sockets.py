"""Making the sockets of processes useless for ever: a socket keeps the cgroup, and so the rules, of its birth.

The kernel can destroy TCP and UDP sockets (sock_diag(7)), and the program sees an error at once.  That alone is
not the end: the descriptor stays, and a program may connect or send over it again, still under the old cgroup.  So
each socket is also taken over for a moment (pidfd_getfd(2)) and given what its owner cannot take back:

* a filter that drops everything it receives, locked (SO_LOCK_FILTER), so that no answer ever arrives;
* an interface that does not exist, so that nothing finds a way out: CAP_NET_RAW may change that (a SYN leaves
  then, and its answer meets the filter), and for UDP a disconnect;
* a shutdown for sending, which on UDP and ping sockets nothing undoes.

Whoever calls this has stopped the processes, or they open others meanwhile.  Out of reach are sockets that only
exist in a message under way (SCM_RIGHTS) or in another process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from penstock.kernel.diagnosis import CLOSED, Diagnosis

FAMILIES = {int(socket.AF_INET): "IPv4", int(socket.AF_INET6): "IPv6"}
DESTROYABLE = (socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_UDPLITE)
KNOWN = {
    (socket.SOCK_STREAM, socket.IPPROTO_TCP): "TCP",
    (socket.SOCK_STREAM, socket.IPPROTO_MPTCP): "MPTCP",
    (socket.SOCK_DGRAM, socket.IPPROTO_UDP): "UDP",
    (socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE): "UDP-Lite",
    (socket.SOCK_DGRAM, socket.IPPROTO_ICMP): "ping",
    (socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6): "ping",
}
"""What was seen to stay dead.  Raw sockets do not: they send after a disconnect."""
HARMLESS = {int(socket.AF_UNIX), int(socket.AF_NETLINK), int(socket.AF_ALG)}
"""Families that send no packets to a network."""
NAMES = {int(socket.AF_PACKET): "packet", 44: "XDP", 40: "vsock", 43: "SMC", 30: "TIPC", 21: "RDS", 29: "CAN"}

SO_ATTACH_FILTER, SO_LOCK_FILTER, SO_BINDTOIFINDEX, SO_NETNS_COOKIE = 26, 44, 62, 71
NO_INTERFACE = 0x7FFFFFFF
SYS_PIDFD_GETFD = 438  # on every architecture but alpha

_SOCKET = re.compile(r"socket:\[(\d+)\]\Z")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many sockets are dead now, and those that are not, each in words for a person."""

    dead: int
    left: tuple[str, ...]


def kill(pids: Collection[int]) -> Outcome:
    """Make every network socket that these processes hold useless.  OSError when the kernel cannot be asked."""
    held = {pid: _descriptors(pid) for pid in pids}
    places = {inode: (pid, fd) for pid, found in held.items() for fd, inode in found.items()}
    left = [text for pid in pids for text in (*_of_threads(pid, places), *_of_rings(pid))]
    with Diagnosis() as diagnosis:
        for one in diagnosis.listed(DESTROYABLE):
            if one.inode in places:
                diagnosis.destroy(one)
        dead = 0
        for pid, fd in places.values():
            said = _poison(pid, fd)
            dead += said == ""
            if said:
                left.append(f"process {pid}, descriptor {fd}: {said}")
        for one in diagnosis.listed(DESTROYABLE):
            if one.inode in places and one.protocol == socket.IPPROTO_TCP and one.state != CLOSED:
                pid, fd = places[one.inode]
                left.append(f"process {pid}, descriptor {fd}: a TCP connection that the kernel does not destroy")
    return Outcome(dead, tuple(left))


def _descriptors(pid: int, task: str = "") -> dict[int, int]:
    """Descriptor -> inode, of the sockets of a process, or of one thread."""
    found = {}
    directory = f"/proc/{pid}{task}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):
                if match := _SOCKET.match(os.readlink(f"{directory}/{name}")):
                    found[int(name)] = int(match[1])
    return found


def _of_threads(pid: int, places: Collection[int]) -> Iterator[str]:
    """Sockets that only one thread has, in a table of its own: they cannot be taken over."""
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for fd, inode in _descriptors(pid, f"/task/{task}").items() if task != str(pid) else ():
                if inode not in places:
                    yield f"process {pid}, thread {task}, descriptor {fd}: a socket of that thread alone"


def _of_rings(pid: int) -> Iterator[str]:
    """io_uring may hold sockets that have no descriptor."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}") == "anon_inode:[io_uring]":
                    about = Path(f"/proc/{pid}/fdinfo/{name}").read_text()
                    count = re.search(r"^UserFiles:\s*(\d+)", about, re.MULTILINE)
                    if count and int(count[1]):
                        yield f"process {pid}, descriptor {name}: an io_uring with {count[1]} files in it"


def _poison(pid: int, fd: int) -> str | None:
    """Take a socket over and make it useless: "" when it is, None when it is no network's, else what it is."""
    try:
        copy = socket.socket(fileno=_take(pid, fd))
    except OSError as e:
        if e.errno in (errno.ESRCH, errno.EBADF, errno.ENOTSOCK):
            return None  # gone meanwhile
        return f"a socket that cannot be taken over: {os.strerror(e.errno or 0)}"
    with copy:
        family, kind = int(copy.family), copy.type
        if family in HARMLESS:
            return None
        known = KNOWN.get((kind, copy.proto)) if family in FAMILIES else None
        trouble = _make_useless(copy, filtered=known != "MPTCP")
        if known == "MPTCP" and _may_rebind(pid):
            trouble = trouble or "the process has CAP_NET_RAW"
        name = NAMES.get(family, f"family {family}")
        if family in FAMILIES:
            what = "raw" if kind == socket.SOCK_RAW else f"protocol {copy.proto}"
            name = f"{FAMILIES[family]} {known or what}"
        if known is None or trouble:
            return f"a socket that cannot be destroyed ({name}){f': {trouble}' if trouble else ''}"
        return "" if _is_ours(copy) else f"a socket of another network namespace ({name})"


def _take(pid: int, fd: int) -> int:
    pidfd = os.pidfd_open(pid)
    try:
        copy = _libc.syscall(SYS_PIDFD_GETFD, pidfd, fd, 0)
        if copy < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return int(copy)
    finally:
        os.close(pidfd)


def _make_useless(copy: socket.socket, *, filtered: bool) -> str:
    """All three ways; the reason of the first that failed, or nothing.  MPTCP takes no filter."""
    drop = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))  # BPF: return 0, keep nothing
    program = struct.pack("@HP", 1, ctypes.addressof(drop))
    index = struct.pack("=i", NO_INTERFACE)
    trouble = ""
    options = [(SO_ATTACH_FILTER, program), (SO_LOCK_FILTER, struct.pack("=i", 1))] if filtered else []
    for option, value in (*options, (SO_BINDTOIFINDEX, index)):
        try:
            copy.setsockopt(socket.SOL_SOCKET, option, value)
        except OSError as e:
            trouble = trouble or os.strerror(e.errno or 0)
    with contextlib.suppress(OSError):  # ENOTCONN is said of sockets that are shut down all the same
        copy.shutdown(socket.SHUT_RDWR)
    return trouble


def _may_rebind(pid: int) -> bool:
    """Whether the process has CAP_NET_RAW."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
        held = re.search(r"^CapPrm:\s*([0-9a-f]+)", status, re.MULTILINE)
        return held is None or bool(int(held[1], 16) >> 13 & 1)
    return False


def _is_ours(copy: socket.socket) -> bool:
    """Whether it is of this network namespace; unknown before Linux 5.14, then yes."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            mine, its = (one.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8) for one in (own, copy))
    except OSError:
        return True
    return mine == its
