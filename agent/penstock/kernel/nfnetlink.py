"""Messages to and from nfnetlink (linux/netfilter/nfnetlink.h), as bytes; and the socket that carries them.

Only what penstock needs of the protocol: building attributes, walking them, one request with its dump or its
acknowledgement, one batch.  Netlink is host byte order; nf_tables' own numbers are big-endian.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterable, Iterator

from penstock.errors import PenstockError

NETLINK_NETFILTER = 12
SUBSYS_NFTABLES = 10
NLMSG_ERROR, NLMSG_DONE = 2, 3
BATCH_BEGIN, BATCH_END = 16, 17
F_REQUEST, F_ACK, F_DUMP, F_CREATE = 0x1, 0x4, 0x300, 0x400
F_DUMP_INTR = 0x10
ATTRIBUTE_TYPE = 0x3FFF  # without the flags NLA_F_NESTED and NLA_F_NET_BYTEORDER
NESTED = 0x8000
RECEIVE = 1 << 20
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
BUFFER = 4 << 20
"""Bytes that a batch, or its acknowledgements, may fill: for the asking hosts give some 200 KiB."""

Attribute = tuple[int, bytes]


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def nested(kind: int, *inner: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | NESTED, b"".join(inner))


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes, offset: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int]]:
    """Walk attributes: (type, start of value, end of value) within `data`.  ValueError when malformed."""
    stop = len(data) if end is None else end
    while offset + 4 <= stop:
        size, kind = struct.unpack_from("=HH", data, offset)
        if size < 4 or offset + size > stop:
            raise ValueError("malformed netlink attribute")
        yield kind & ATTRIBUTE_TYPE, offset + 4, offset + size
        offset += (size + 3) & ~3


def attribute_map(data: bytes, offset: int = 0, end: int | None = None) -> dict[int, bytes]:
    """The attributes as a dictionary; of repeated ones the last stays."""
    return {kind: data[start:stop] for kind, start, stop in attributes(data, offset, end)}


def string(value: bytes) -> str:
    """A string attribute's text."""
    return value.split(b"\0", 1)[0].decode("utf-8", "replace")


def message(kind: int, flags: int, sequence: int, family: int, body: bytes, resource: int = 0) -> bytes:
    """One nfnetlink message: header, nfgenmsg, attributes."""
    header = struct.pack("=IHHII", 20 + len(body), kind, flags, sequence, 0)
    return header + struct.pack(">BBH", family, 0, resource) + body


def messages(data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Split a datagram: (type, flags, sequence, port, payload) of each message."""
    offset = 0
    while offset + 16 <= len(data):
        size, kind, flags, sequence, port = struct.unpack_from("=IHHII", data, offset)
        if size < 16 or offset + size > len(data):
            raise ValueError("malformed netlink message")
        yield kind, flags, sequence, port, data[offset + 16 : offset + size]
        offset += (size + 3) & ~3


class Interrupted(Exception):
    """The kernel's list changed while it was being dumped: ask again."""


class Channel:
    """A request socket in the network namespace of the calling thread."""

    def __init__(self, *, timeout: float = 10.0) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
            )
        except OSError as e:
            raise PenstockError(
                "this kernel has no nfnetlink", hint="load it with: modprobe nfnetlink"
            ) from e
        self._socket.settimeout(timeout)
        for option, forced in ((socket.SO_SNDBUF, SO_SNDBUFFORCE), (socket.SO_RCVBUF, SO_RCVBUFFORCE)):
            self._socket.setsockopt(socket.SOL_SOCKET, option, BUFFER)
            with contextlib.suppress(PermissionError):  # the host's limit stands
                self._socket.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
        self._socket.bind((0, 0))
        self._sequence = 0

        self.port: int = self._socket.getsockname()[0]
        """Names this socket in the kernel's announcements."""

    def close(self) -> None:
        self._socket.close()

    def dump(self, kind: int, family: int, body: bytes = b"") -> Iterator[bytes]:
        """Ask for a list; yields the payload of each message behind its nfgenmsg.

        Raises OSError with the kernel's errno (ENOENT: no such table), Interrupted when the list changed.
        """
        sequence = self._send(kind, F_REQUEST | F_DUMP, family, body)
        interrupted = False
        while True:
            for got, flags, number, _, payload in messages(self._socket.recv(RECEIVE)):
                if number != sequence:
                    continue
                interrupted = interrupted or bool(flags & F_DUMP_INTR)
                if got in (NLMSG_ERROR, NLMSG_DONE):
                    if len(payload) >= 4:
                        _check(payload)
                    if interrupted:
                        raise Interrupted
                    return
                yield payload[4:]

    def get(self, kind: int, family: int, body: bytes = b"") -> bytes:
        """Ask for one object; returns its payload behind nfgenmsg.  OSError: ENOENT and others."""
        sequence = self._send(kind, F_REQUEST, family, body)
        while True:
            for got, _, number, _, payload in messages(self._socket.recv(RECEIVE)):
                if number != sequence:
                    continue
                if got == NLMSG_ERROR:
                    _check(payload)
                return payload[4:]

    def batch(self, parts: Iterable[tuple[int, int, int, bytes]]) -> None:
        """Send (type, flags, family, body) messages as one transaction; OSError of the first that failed."""
        begin = self._next()
        data = [message(BATCH_BEGIN, F_REQUEST, begin, 0, b"", SUBSYS_NFTABLES)]
        waiting = set()
        for kind, flags, family, body in parts:
            number = self._next()
            waiting.add(number)
            data.append(message(kind, F_REQUEST | F_ACK | flags, number, family, body))
        data.append(message(BATCH_END, F_REQUEST, self._next(), 0, b"", SUBSYS_NFTABLES))
        self._socket.send(b"".join(data))
        while waiting:
            for got, _, number, _, payload in messages(self._socket.recv(RECEIVE)):
                if number == begin or number in waiting:
                    waiting.discard(number)
                    if got == NLMSG_ERROR:
                        self._check_batch(payload)

    def _check_batch(self, payload: bytes) -> None:
        try:
            _check(payload)
        except OSError:
            self._drain()
            raise

    def _drain(self) -> None:
        """Forget answers that belong to a batch that has failed already."""
        self._socket.setblocking(False)
        try:
            while self._socket.recv(RECEIVE):
                pass
        except BlockingIOError:
            pass
        finally:
            self._socket.settimeout(10.0)

    def _send(self, kind: int, flags: int, family: int, body: bytes) -> int:
        number = self._next()
        self._socket.send(message(kind, flags, number, family, body))
        return number

    def _next(self) -> int:
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        return self._sequence


def _check(payload: bytes) -> None:
    code = -struct.unpack_from("=i", payload)[0]
    if code:
        raise OSError(code, os.strerror(code))
