"""Reads what the host looks like now, for `core.surroundings`: interfaces, and who is connected to admin ports.

It needs no root and no daemon.  What cannot be read is not known, and nobody fails because of it.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from penstock.core.advice import has_port
from penstock.core.policy import Address, Policy, Ports
from penstock.core.surroundings import Session, Surroundings, admin_ports

PROC = Path("/proc/self/net")
MAX_CONNECTIONS = 1_000_000
"""Lines of one file that are looked at."""
MAX_SESSIONS = 1000
PATIENCE = 2.0
"""Seconds that the kernel may take to name its addresses."""

_ESTABLISHED = "01"
_HEADER = struct.Struct("=IHHII")
_ADDRESS = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_RTM_GETADDR, _RTM_NEWADDR, _NLM_F_DUMP_REQUEST, _NLMSG_DONE, _NLMSG_ERROR = 22, 20, 0x301, 3, 2
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


def around(policy: Policy) -> Surroundings:
    """As far as that policy is about them."""
    return look(admin_ports(policy))


def look(ports: Ports, proc: Path = PROC) -> Surroundings:
    """The network that this process is in: its interfaces, and sessions from other hosts to these TCP ports."""
    try:
        interfaces = dict(socket.if_nameindex())
    except OSError:
        return Surroundings()
    own: Mapping[Address, str] = {}
    with suppress(OSError):
        own = addresses(interfaces)
    sessions = dict.fromkeys(
        Session(far, port, own.get(here, ""))
        for name in ("tcp", "tcp6")
        for here, port, far in connections(proc / name, ports)
        if not far.is_loopback and far not in own
    )
    return Surroundings(frozenset(interfaces.values()), tuple(sessions)[:MAX_SESSIONS])


def connections(path: Path, ports: Ports) -> Iterator[tuple[Address, int, Address]]:
    """Established ones to these ports, in a file like /proc/net/tcp: our address, our port, theirs."""
    with suppress(OSError, ValueError), path.open("r", encoding="ascii") as file:
        next(file, "")
        for number, line in enumerate(file):
            if number >= MAX_CONNECTIONS:
                return
            fields = line.split(None, 4)
            if len(fields) == 5 and fields[3] == _ESTABLISHED:
                here, _, port = fields[1].partition(":")
                if has_port(ports, int(port, 16)):
                    yield _address(here), int(port, 16), _address(fields[2].partition(":")[0])


def _address(text: str) -> Address:
    """Of 32-bit words, each written as a number of this machine; IPv4 in IPv6 is IPv4."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return _plain(ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words)))


def _plain(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def addresses(interfaces: Mapping[int, str]) -> dict[Address, str]:
    """This host's own addresses and the interface of each; empty where several have it.  OSError."""
    found: dict[Address, str] = {}
    request = _HEADER.pack(_HEADER.size + _ADDRESS.size, _RTM_GETADDR, _NLM_F_DUMP_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as link:
        link.settimeout(PATIENCE)
        link.send(request + _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
        while True:
            for kind, body in _messages(link.recv(1 << 16)):
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    return found
                if kind == _RTM_NEWADDR and (one := _own(body)):
                    address, index = one
                    name = interfaces.get(index, "")
                    found[address] = name if found.get(address, name) == name else ""


def own_addresses() -> frozenset[Address]:
    """This host's own addresses; none where they cannot be read."""
    with suppress(OSError):
        return frozenset(addresses({}))
    return frozenset()


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def _own(body: bytes) -> tuple[Address, int] | None:
    """The address of a message and the number of its interface.  A peer's address is not ours."""
    family, _, _, _, index = _ADDRESS.unpack_from(body)
    found: dict[int, bytes] = {}
    at = _ADDRESS.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = body[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
    data = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if data is None or family not in (socket.AF_INET, socket.AF_INET6):
        return None
    return (IPv4Address(data) if family == socket.AF_INET else IPv6Address(data)), index
