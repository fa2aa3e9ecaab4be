"""What actors do with sockets: small functions that take and return descriptor numbers."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator


@contextlib.contextmanager
def borrowed(descriptor: int) -> Iterator[socket.socket]:
    """The socket of a descriptor, which stays open."""
    sock = socket.socket(fileno=descriptor)
    try:
        yield sock
    finally:
        sock.detach()


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def name_of(error: OSError) -> str:
    """ECONNREFUSED and so on; "timeout" for a timeout of ours."""
    return "timeout" if isinstance(error, TimeoutError) else errno.errorcode.get(error.errno or 0, str(error))


def udp(address: str, port: int = 0, *, share: bool = False) -> int:
    """A UDP socket bound there."""
    sock = socket.socket(family_of(address), socket.SOCK_DGRAM)
    if share:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((address, port))
    return sock.detach()


def listen(address: str, port: int = 0, backlog: int = 100) -> int:
    """A TCP listener."""
    return socket.create_server((address, port), family=family_of(address), backlog=backlog).detach()


def port_of(descriptor: int) -> int:
    with borrowed(descriptor) as sock:
        port: int = sock.getsockname()[1]
        return port


def connect(address: str, port: int, *, source: tuple[str, int] | None = None, timeout: float = 1) -> int | str:
    """A TCP connection, or the name of the error."""
    sock = socket.socket(family_of(address), socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        if source:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(source)
        _connect(sock, address, port)
    except OSError as error:
        sock.close()
        return name_of(error)
    return sock.detach()


def _connect(sock: socket.socket, address: str, port: int) -> None:
    """On a busy machine what had the source port last may still wait for its last ACK: then soon again."""
    deadline = time.monotonic() + 2
    while True:
        try:
            return sock.connect((address, port))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL or time.monotonic() > deadline:
                raise
        time.sleep(0.001)


def accept(descriptor: int, timeout: float = 2) -> int | str:
    """The next connection of a listener."""
    with borrowed(descriptor) as sock:
        sock.settimeout(timeout)
        try:
            return sock.accept()[0].detach()
        except OSError as error:
            return name_of(error)


def send(descriptor: int, data: bytes) -> str:
    """"ok" or the name of the error."""
    with borrowed(descriptor) as sock:
        try:
            sock.send(data)
        except OSError as error:
            return name_of(error)
    return "ok"


def sendto(descriptor: int, data: bytes, address: str, port: int) -> str:
    """"ok" or the name of the error."""
    with borrowed(descriptor) as sock:
        try:
            sock.sendto(data, (address, port))
        except OSError as error:
            return name_of(error)
    return "ok"


def receive(descriptor: int, timeout: float = 2) -> bytes | str:
    """What comes next, b"" at the end, or the name of the error."""
    with borrowed(descriptor) as sock:
        sock.settimeout(timeout)
        try:
            return sock.recv(65536)
        except OSError as error:
            return name_of(error)


def pending(descriptor: int) -> list[bytes]:
    """All datagrams, or all stream data, that are there now; errors are read and dropped."""
    found = []
    while select.select([descriptor], [], [], 0)[0]:
        data = receive(descriptor, 0.01)
        if isinstance(data, bytes):
            if not data:
                break
            found.append(data)
    return found


def receive_from(descriptor: int, timeout: float = 2) -> tuple[bytes, str, int]:
    """A datagram and its sender; raises TimeoutError."""
    with borrowed(descriptor) as sock:
        sock.settimeout(timeout)
        data, peer = sock.recvfrom(65536)
        return data, peer[0], peer[1]


def close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def sysctl(**values: str) -> None:
    """net.ipv4.x is written net__ipv4__x."""
    for name, value in values.items():
        with open("/proc/sys/" + name.replace("__", "/"), "w") as file:
            file.write(value)


def now() -> float:
    return time.monotonic()


def call(address: str) -> list[str]:
    """Try TCP and UDP; what became of each."""
    made = connect(address, 80, timeout=0.5)
    if isinstance(made, int):
        close(made)
    here = udp("::" if ":" in address else "0.0.0.0")
    sent = sendto(here, b"datagram", address, 80)
    close(here)
    return ["ok" if isinstance(made, int) else made, sent]


def forget_connections() -> None:
    """Let connection tracking forget all that it knows in this namespace (IPCTNL_MSG_CT_DELETE without a key)."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:  # NETLINK_NETFILTER
        sock.send(struct.pack("=IHHII", 20, (1 << 8) | 2, 5, 1, 0) + struct.pack("=BBH", 0, 0, 0))
        kind, error = struct.unpack_from("=H10xi", sock.recv(4096), 4)
        assert (kind, error) == (2, 0), (kind, os.strerror(-error))
