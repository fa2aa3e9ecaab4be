"""The kernel's list of TCP and UDP sockets (sock_diag(7)) of this thread's network namespace."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

from penstock.kernel import nfnetlink as nl

NETLINK_SOCK_DIAG = 4
BY_FAMILY, DESTROY = 20, 21
REQUEST = "=BBBxI48s"  # struct inet_diag_req_v2
MESSAGE = struct.Struct("=BBBB48s12xII")  # struct inet_diag_msg: family, state, ..., identity, ..., uid, inode
CLOSED = 7  # TCP_CLOSE: bound or not, no connection and no listener
LISTENING = 10  # TCP_LISTEN
EVERY_STATE = 0xFFFFFFFF
FAMILIES = (int(socket.AF_INET), int(socket.AF_INET6))
V6ONLY = 11  # INET_DIAG_SKV6ONLY, of IPv6 sockets that are LISTENING or CLOSED
CGROUP_ID = 21  # INET_DIAG_CGROUP_ID, since Linux 5.7
BYTECODE = 1  # INET_DIAG_REQ_BYTECODE
AT_LEAST, AT_MOST = 2, 3  # INET_DIAG_BC_S_GE, _LE: of the local port
_IDENTITY = struct.Struct(">HH16s")  # of struct inet_diag_sockid: ports, and the local address
_INTERFACE, _INTERFACE_AT = struct.Struct("=I"), 36  # behind the other end's address


@dataclass(frozen=True, slots=True)
class Live:
    """A socket as the kernel lists it.  `identity` is struct inet_diag_sockid; a socket of MPTCP has several.

    `cgroup`: the id of that in which it was made, None where the kernel does not say it.  `v6only`: None where it
    makes no difference.
    """

    inode: int
    family: int
    protocol: int
    state: int
    identity: bytes
    uid: int
    cgroup: int | None
    v6only: bool | None = None

    @property
    def port(self) -> int:
        """Its local port."""
        return int(_IDENTITY.unpack_from(self.identity)[0])

    @property
    def address(self) -> bytes:
        """Its local address, 4 or 16 bytes."""
        packed: bytes = _IDENTITY.unpack_from(self.identity)[2]
        return packed[:4] if self.family == socket.AF_INET else packed

    @property
    def interface(self) -> int:
        """The index of the one that it is bound to, 0 if it is to none."""
        return int(_INTERFACE.unpack_from(self.identity, _INTERFACE_AT)[0])


class Diagnosis:
    """A connection to the kernel's list."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
        self._socket.settimeout(10)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._sequence = 0

    def __enter__(self) -> Diagnosis:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def listed(self, protocols: Iterable[int], port: int | None = None) -> list[Live]:
        """All that have an inode, or those at a local port.  What is neither bound nor connected is in no list."""
        asked = [(family, protocol) for family in FAMILIES for protocol in protocols]
        return [one for what in asked for one in self._dump(*what, EVERY_STATE, _at(port))]

    def open_ports(self, most: int) -> list[Live]:
        """What takes calls: TCP that listens, UDP that is connected to nobody.  At most so many are looked at."""
        asked = ((socket.IPPROTO_TCP, LISTENING), (socket.IPPROTO_UDP, CLOSED))
        dumps = (self._dump(f, protocol, 1 << state) for protocol, state in asked for f in FAMILIES)
        return list(islice(chain.from_iterable(dumps), most))

    def _dump(self, family: int, protocol: int, states: int, bytecode: bytes = b"") -> Iterator[Live]:
        body = struct.pack(REQUEST, family, protocol, 0, states, bytes(48)) + bytecode
        try:
            for data in self._ask(BY_FAMILY, nl.F_REQUEST | nl.F_DUMP, body):
                its, state, _, _, identity, uid, inode = MESSAGE.unpack_from(data)
                if inode:
                    said = nl.attribute_map(data, MESSAGE.size)
                    cgroup, only = said.get(CGROUP_ID), said.get(V6ONLY)
                    number = struct.unpack("=Q", cgroup)[0] if cgroup else None
                    yield Live(inode, its, protocol, state, identity, uid, number, bool(only[0]) if only else None)
        except OSError as e:
            if e.errno not in (errno.ENOENT, errno.EOPNOTSUPP):  # a protocol that this kernel lacks
                raise

    def destroy(self, one: Live) -> None:
        """Best effort: what it leaves is found by looking again."""
        body = struct.pack(REQUEST, one.family, one.protocol, 0, EVERY_STATE, one.identity)
        with contextlib.suppress(OSError):
            for _ in self._ask(DESTROY, nl.F_REQUEST | nl.F_ACK, body):
                pass

    def _ask(self, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
        self._sequence += 1
        self._socket.send(struct.pack("=IHHII", 16 + len(body), kind, flags, self._sequence, 0) + body)
        while True:
            for got, _, number, _, payload in nl.messages(self._socket.recv(nl.RECEIVE)):
                if number != self._sequence:
                    continue
                if got in (nl.NLMSG_ERROR, nl.NLMSG_DONE):
                    code = -struct.unpack_from("=i", payload)[0] if len(payload) >= 4 else 0
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                yield payload


def _at(port: int | None) -> bytes:
    """The filter that the kernel runs: where the next step is, in bytes, and if it is not so, beyond the end."""
    if port is None:
        return b""
    steps = struct.pack("=BBHHHBBHHH", AT_LEAST, 8, 20, 0, port, AT_MOST, 8, 12, 0, port)
    return nl.attribute(BYTECODE, steps)
