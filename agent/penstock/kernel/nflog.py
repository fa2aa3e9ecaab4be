"""The kernel's packet log: a netlink socket that our rules' log statements write to.

One reader per group and network namespace; the kernel says who lost (sequence numbers), so what was not
read is counted exactly.  A gap shows with the next record that arrives: losses at the very end of a burst
are told with the first record after it.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from penstock.core.log_prefix import LOG_GROUP
from penstock.core.packets import NFULA_SEQ, attributes
from penstock.errors import PenstockError

SNAP_LENGTH = 128  # bytes of each packet: IPv6 with extension headers and the ports
RECEIVE_BUFFER = 8 << 20  # bytes; nothing was lost with it at 214,000 records a second
DATAGRAMS_PER_READ = 64  # each up to 64 records: some 15 ms of parsing before others get a turn

_CAP_NET_ADMIN = 12
_NETLINK_NETFILTER = 12
_SO_RCVBUFFORCE = 33
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_NLMSG_ERROR = 2
_MSG_PACKET = 4 << 8  # NFNL_SUBSYS_ULOG, NFULNL_MSG_PACKET
_MSG_CONFIG = 4 << 8 | 1
_CFG_CMD, _CFG_MODE, _CFG_NLBUFSIZ, _CFG_TIMEOUT, _CFG_QTHRESH, _CFG_FLAGS = 1, 2, 3, 4, 5, 6
_CMD_BIND, _COPY_PACKET, _FLAG_SEQ = 1, 2, 1
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
_NFGENMSG = struct.Struct(">BBH")  # family, version, resource id: the group
_BODY = _HEADER.size + _NFGENMSG.size
_ANSWER_SECONDS = 5.0

_NO_MODULE = frozenset(  # nfnetlink answers EINVAL where no module has registered the subsystem
    {errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT}
)


@dataclass(frozen=True, slots=True)
class NflogBatch:
    """`records`: the netlink attributes of each message, for `core.packets.parse_nflog`.
    `lost`: how many records the kernel made that no read will return."""

    records: list[bytes]
    lost: int


class NflogReader:
    """Reads one NFLOG group of the network namespace of the calling thread.  PenstockError if it cannot."""

    def __init__(self, group: int = LOG_GROUP, receive_buffer: int = RECEIVE_BUFFER) -> None:
        self._group = group
        self._buffer = bytearray(1 << 20)
        self._early: deque[bytes] = deque()  # records that came while we waited for an acknowledgement
        self._expected = 0  # a new listener counts from 0
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        except OSError as e:
            raise self._refused(e) from e
        try:
            self._configure(receive_buffer)
        except OSError as e:
            self._socket.close()
            raise self._refused(e) from e

    def fileno(self) -> int:
        """Readable when `read` has something to return."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop; the kernel frees the group.  May be repeated."""
        self._socket.close()

    def __enter__(self) -> NflogReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self) -> NflogBatch:
        """Return what is there now, without waiting, from at most `DATAGRAMS_PER_READ` datagrams."""
        records, lost = [], 0
        for _ in range(DATAGRAMS_PER_READ):
            try:
                datagram = self._receive()
            except BlockingIOError:
                break
            except OSError as e:
                if e.errno != errno.ENOBUFS:  # it says once that records were lost; the gaps say how many
                    raise
                continue
            self._early.extend(body for kind, body in _messages(datagram) if kind == _MSG_PACKET)
        while self._early:
            record = self._early.popleft()
            lost += self._gap(record)
            records.append(record)
        return NflogBatch(records, lost)

    def _gap(self, record: bytes) -> int:
        sequence = _sequence(record)
        if sequence is None:  # made before the kernel was told to number them: not lost
            return 0
        gap = (sequence - self._expected) & 0xFFFFFFFF
        self._expected = (sequence + 1) & 0xFFFFFFFF
        return gap

    def _configure(self, receive_buffer: int) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer)
        except PermissionError:  # root of a user namespace: as much as net.core.rmem_max allows
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.bind((0, 0))
        self._socket.settimeout(_ANSWER_SECONDS)
        requests = (
            (_CFG_CMD, struct.pack("=B", _CMD_BIND)),
            (_CFG_FLAGS, struct.pack(">H", _FLAG_SEQ)),
            (_CFG_MODE, struct.pack(">IBB", SNAP_LENGTH, _COPY_PACKET, 0)),
            (_CFG_NLBUFSIZ, struct.pack(">I", 64 << 10)),
            (_CFG_QTHRESH, struct.pack(">I", 64)),
            (_CFG_TIMEOUT, struct.pack(">I", 10)),  # 1/100 s
        )
        for sequence, (attribute, value) in enumerate(requests, start=1):
            self._request(sequence, attribute, value)
        self._socket.setblocking(False)

    def _request(self, sequence: int, attribute: int, value: bytes) -> None:
        padded = value + bytes(-len(value) % 4)
        body = _NFGENMSG.pack(0, 0, self._group) + struct.pack("=HH", 4 + len(value), attribute) + padded
        flags = _NLM_F_REQUEST | _NLM_F_ACK
        header = _HEADER.pack(_HEADER.size + len(body), _MSG_CONFIG, flags, sequence, 0)
        self._socket.sendto(header + body, (0, 0))
        while True:
            for kind, content in _messages(self._receive()):
                if kind == _MSG_PACKET:
                    self._early.append(content)
                elif kind == _NLMSG_ERROR and _answers(content, sequence):
                    return

    def _receive(self) -> memoryview:
        """The next datagram of the kernel; empty for one that somebody else sent."""
        length, _, _, sender = self._socket.recvmsg_into([self._buffer])
        return memoryview(self._buffer)[: length if sender[0] == 0 else 0]

    def _refused(self, e: OSError) -> PenstockError:
        where = f"packet log group {self._group}"
        if e.errno in _NO_MODULE:
            return PenstockError("the kernel has no packet log", where=where, hint="modprobe nfnetlink_log")
        # The kernel says EPERM of a group that another socket has bound, as it does without the capability.
        if e.errno == errno.EBUSY or (e.errno == errno.EPERM and _may_administer()):
            return PenstockError(
                "another process reads it",
                where=where,
                hint="is a second penstock (or a ulogd of that group) running in this network namespace?",
            )
        if e.errno in (errno.EPERM, errno.EACCES):
            return PenstockError("not permitted", where=where, hint="run as root, with CAP_NET_ADMIN")
        return PenstockError(f"cannot listen: {e.strerror or e}", where=where)


def _may_administer() -> bool:
    for line in Path("/proc/thread-self/status").read_bytes().splitlines():
        if line.startswith(b"CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_NET_ADMIN & 1)
    return False


def _messages(datagram: memoryview) -> list[tuple[int, bytes]]:
    """(type, content) of each message; content of packets is what follows nfgenmsg, else the header."""
    messages = []
    offset = 0
    while len(datagram) - offset >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size or length > len(datagram) - offset:
            break
        start = _BODY if kind == _MSG_PACKET else _HEADER.size
        messages.append((kind, bytes(datagram[offset + start : offset + length])))
        offset += (length + 3) & ~3
    return messages


def _answers(content: bytes, sequence: int) -> bool:
    """Whether an NLMSG_ERROR is the yes to our request; OSError when it is the no."""
    if len(content) < 4 + _HEADER.size:
        return False
    error = struct.unpack_from("=i", content)[0]
    if _HEADER.unpack_from(content, 4)[3] != sequence:
        return False
    if error:
        raise OSError(-error, "netlink")
    return True


def _sequence(record: bytes) -> int | None:
    try:
        for kind, value in attributes(record):
            if kind == NFULA_SEQ and len(value) == 4:
                return int.from_bytes(value, "big")
    except ValueError:  # the parser will say so
        pass
    return None
