"""A program that sends packets with its very first instructions: for a unit that would be first at any price.

No interpreter and no loader are that early.  So these are the bytes of a static program, which the tests write
themselves: it goes through its shots (a TCP connection begun, or a datagram), then becomes another program, or
waits for its end.
"""

from __future__ import annotations

import platform
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

BASE = 0x400000
_HEADERS = 64 + 56
_SOCKET, _CONNECT, _SENDTO, _PAUSE, _EXECVE = 41, 42, 44, 34, 59
_EAX, _EDX, _ESI, _EDI = b"\xb8", b"\xba", b"\xbe", b"\xbf"
_R8, _R9, _R10 = b"\x41\xb8", b"\x41\xb9", b"\x41\xba"
_SYSCALL = b"\x0f\x05"
_EDI_FROM_EAX = b"\x89\xc7"


@dataclass(frozen=True, slots=True)
class Shot:
    """One attempt: `protocol` tcp or udp, to a numeric address."""

    protocol: str
    address: str
    port: int

    @property
    def family(self) -> socket.AddressFamily:
        """Of the address."""
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET

    def sockaddr(self) -> bytes:
        """As the kernel wants it."""
        address, port = socket.inet_pton(self.family, self.address), struct.pack("!H", self.port)
        kind = struct.pack("<H", self.family)
        if self.family == socket.AF_INET:
            return kind + port + address + bytes(8)
        return kind + port + bytes(4) + address + bytes(4)


def can() -> bool:
    """Whether this machine runs such programs."""
    return platform.machine() == "x86_64"


def program(shots: Sequence[Shot], then: Sequence[str] = (), payload: bytes = b"first") -> bytes:
    """An executable file: the shots in that order, then the program `then` (argv, path first), or waiting."""
    data: list[bytes] = []
    # The code's length does not depend on addresses: the first pass only measures it.
    length = len(_code(shots, then, payload, 0, data))
    data.clear()
    code = _code(shots, then, payload, BASE + _HEADERS + length, data)
    body = code + b"".join(data)
    size = _HEADERS + len(body)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    head += struct.pack("<IIQQQQQQ", 1, 7, 0, BASE, BASE, size, size, 0x1000)
    return head + body


def _code(shots: Sequence[Shot], then: Sequence[str], payload: bytes, at: int, data: list[bytes]) -> bytes:
    """The instructions; what they point to is added to `data`, which will stand at address `at`."""

    def put(value: bytes) -> int:
        where = at + sum(map(len, data))
        data.append(value)
        return where

    text = put(payload)
    code = b""
    for shot in shots:
        kind = (socket.SOCK_DGRAM if shot.protocol == "udp" else socket.SOCK_STREAM) | socket.SOCK_NONBLOCK
        code += _call(_SOCKET, (_EDI, shot.family), (_ESI, kind | socket.SOCK_CLOEXEC), (_EDX, 0)) + _EDI_FROM_EAX
        address = shot.sockaddr()
        where = put(address)
        if shot.protocol == "udp":
            to = ((_R10, 0), (_R8, where), (_R9, len(address)))
            code += _call(_SENDTO, (_ESI, text), (_EDX, len(payload)), *to)
        else:
            code += _call(_CONNECT, (_ESI, where), (_EDX, len(address)))
    if then:
        words = [put(word.encode() + b"\0") for word in then]
        argv = put(struct.pack(f"<{len(words) + 1}Q", *words, 0))
        code += _call(_EXECVE, (_EDI, words[0]), (_ESI, argv), (_EDX, argv + 8 * len(words)))
    pause = _call(_PAUSE)
    return code + pause + b"\xeb" + struct.pack("b", -len(pause) - 2)  # and again, should a signal come


def _call(number: int, *arguments: tuple[bytes, int]) -> bytes:
    """A system call with these registers."""
    moves = b"".join(register + struct.pack("<I", value) for register, value in arguments)
    return moves + _EAX + struct.pack("<I", number) + _SYSCALL
