"""What left each host, taken from the wire: the witness that a packet was not sent.

The far end of every host's cable is in one namespace; a program there writes down each IP packet that comes in
from a host, whatever its destination, protocol or sender's address: to the outside, to another host, to nobody.
Whether a packet came is so a matter of the cable and not of the address that it claims to come from.

Neighbour discovery, multicast listener reports and router solicitations are not written down: a link needs them.

    python -m hosts.wire FILE PREFIX        # interfaces PREFIX<host>
"""

from __future__ import annotations

import contextlib
import json
import secrets
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.demo.recorder import on_each_processor

BARRIER = 0x88B5
"""An Ethernet type for local experiments: no packet filter that knows IP sees it."""
PREFIX = "v-"
"""Of the interfaces at the far ends."""

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
_NEIGHBOUR_DISCOVERY = range(130, 144)  # ICMPv6 types, listener reports included
_EXTENSIONS = (0, 43, 44, 60)  # hop-by-hop, routing, fragment, destination options: another header follows
_PACKET_IGNORE_OUTGOING = 23
_PACKET_STATISTICS = 6
_SOL_PACKET = 263
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 64 << 20
_AT_ONCE = 1000
SYN = 0x02
ACK = 0x10


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet that a host sent.  Addresses as text; ports 0 and flags 0 where there are none."""

    time: float  # time.monotonic(), one clock for the whole machine
    host: str  # whose cable it came from
    protocol: str  # tcp, udp, icmp, icmpv6, or a number
    source: str
    source_port: int
    destination: str
    port: int
    flags: int  # of TCP
    size: int  # of the whole IP packet, in bytes

    @property
    def opens(self) -> bool:
        """Whether it asks for a new TCP connection."""
        return self.protocol == "tcp" and self.flags & (SYN | ACK) == SYN


class Wire:
    """Reads what the recorder wrote.

    `running` names the hosts that are on; `in_network(host, f)` is f() in the network namespace of a host.
    """

    def __init__(
        self,
        file: Path,
        process: subprocess.Popen[Any],
        running: Callable[[], list[str]],
        in_network: Callable[[str, Callable[[], Any]], Any],
    ) -> None:
        self._file = file.open("rb")
        self._process = process
        self._running = running
        self._in_network = in_network
        self._rest = b""
        self._packets: list[Packet] = []
        self._barriers: list[str] = []
        self._wait_ready()

    def mark(self) -> int:
        """A point in time for `seen`: all that was sent before is behind it."""
        return len(self.all())

    def all(self) -> list[Packet]:
        """Every packet of every host so far; whatever was sent before the call is among them."""
        for host in self._running():
            self.barrier(host)
        return list(self._packets)

    def seen(
        self,
        host: str | None = None,
        to: str | None = None,
        port: int | None = None,
        protocol: str | None = None,
        since: int = 0,
        opens: bool = False,
    ) -> list[Packet]:
        """The packets that match: sent by `host`, to that address and port, with that protocol, after `since`.

        With `opens` only the first packets of TCP connections.  Raises AssertionError when the recorder lost any.
        """
        return [
            p
            for p in self.all()[since:]
            if host in (None, p.host)
            and (to is None or p.destination == _same_text(to))
            and port in (None, p.port)
            and protocol in (None, p.protocol)
            and (p.opens or not opens)
        ]

    def wait_for(self, count: int = 1, timeout: float = 10, **which: Any) -> list[Packet]:
        """Wait until at least `count` packets were seen (arguments as of `seen`), else AssertionError."""
        deadline = time.monotonic() + timeout
        while len(found := self.seen(**which)) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} packets: {which}"
            time.sleep(0.02)
        return found

    def barrier(self, host: str) -> None:
        """Return when all that `host` sent until now is read.  Its rules cannot hold the barrier back."""
        token = secrets.token_bytes(8)
        sent = self._in_network(host, lambda: _send_barrier(token))  # 0 without a link yet: it has sent nothing
        deadline = time.monotonic() + 60
        while self._barriers.count(token.hex()) < sent:
            self._read()
            assert time.monotonic() < deadline, f"the recorder did not see the end of what {host} sent"
            time.sleep(0.001)
        self._barriers.clear()

    def close(self) -> None:
        """Stop reading; the recorder ends with its lab."""
        self._file.close()

    def _read(self) -> None:
        data = self._rest + self._file.read()
        whole, _, self._rest = data.rpartition(b"\n")
        for line in whole.splitlines():
            fields = json.loads(line)
            if fields[0] == "barrier":
                self._barriers.append(fields[1])
                continue
            assert fields[0] != "lost", f"the recorder lost {fields[1]} packets"
            self._packets.append(Packet(*fields))

    def _wait_ready(self) -> None:
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], 20)
        assert ready, "the recorder did not start"
        assert self._process.stdout.readline() == "ready\n", "the recorder did not start"
        self._process.stdout.close()


def _send_barrier(token: bytes) -> int:
    """Put frames on the cable from inside the host; how many, 0 when there is no cable yet."""
    frame = bytes(12) + struct.pack("!H", BARRIER) + token.ljust(46, b"\0")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        try:
            sender.bind(("eth0", BARRIER))
            return on_each_processor(lambda: sender.send(frame))
        except OSError:
            return 0


def parse(data: bytes) -> tuple[str, str, int, str, int, int, int] | None:
    """(protocol, source, its port, destination, its port, TCP flags, size) of an IP packet; None for others."""
    if len(data) >= 20 and data[0] >> 4 == 4:
        number, source, destination = data[9], data[12:16], data[16:20]
        fragment = struct.unpack_from("!H", data, 6)[0] & 0x1FFF
        rest = data[(data[0] & 15) * 4 :] if not fragment else b""
    elif len(data) >= 40 and data[0] >> 4 == 6:
        source, destination = data[8:24], data[24:40]
        number, rest = _upper_layer(data)
        if number == 58 and rest and rest[0] in _NEIGHBOUR_DISCOVERY:
            return None
    else:
        return None
    ports = struct.unpack_from("!HH", rest) if number in (6, 17) and len(rest) >= 4 else (0, 0)
    flags = rest[13] if number == 6 and len(rest) >= 14 else 0
    family = socket.AF_INET if len(source) == 4 else socket.AF_INET6
    ends = socket.inet_ntop(family, source), socket.inet_ntop(family, destination)
    return _PROTOCOLS.get(number, str(number)), ends[0], ports[0], ends[1], ports[1], flags, len(data)


def _same_text(address: str) -> str:
    """The address in the words of `parse`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_ntop(family, socket.inet_pton(family, address))


def _upper_layer(data: bytes) -> tuple[int, bytes]:
    number, rest = data[6], data[40:]
    while number in _EXTENSIONS and len(rest) >= 8:
        if number == 44 and struct.unpack_from("!H", rest, 2)[0] & 0xFFF8:
            return rest[0], b""  # not the first fragment
        length = 8 if number == 44 else (rest[1] + 1) * 8
        number, rest = rest[0], rest[length:]
    return number, rest


def _lost(sniffer: socket.socket) -> int:
    """Packets that the kernel could not hand over since the last call."""
    return int(struct.unpack("II", sniffer.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1])


def main() -> None:
    """The recorder."""
    every = socket.htons(0x0003)  # all protocols, all interfaces, those to come as well
    with open(sys.argv[1], "ab") as file, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, every) as sniffer:
        sniffer.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        sniffer.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        print("ready", flush=True)
        while True:
            select.select([sniffer], [], [])
            # One write for many packets: none of a flood may be lost.
            frames = _waiting(sniffer)
            lines = [line for frame, where in frames for line in _lines(frame, where, sniffer, sys.argv[2])]
            file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
            file.flush()


def _waiting(sniffer: socket.socket) -> Iterator[tuple[bytes, Any]]:
    """Frames that are there already, at most so many that whoever waits for one gets it soon."""
    with contextlib.suppress(BlockingIOError):
        for _ in range(_AT_ONCE):
            yield sniffer.recvfrom(65600, socket.MSG_DONTWAIT)


def _lines(frame: bytes, where: Any, sniffer: socket.socket, prefix: str) -> Iterator[list[Any]]:
    """What is to be written down of a frame."""
    if not where[0].startswith(prefix):
        return
    if where[1] == BARRIER:
        if lost := _lost(sniffer):
            yield ["lost", lost]
        yield ["barrier", frame[14:22].hex()]
    elif parsed := parse(frame[14:]):
        yield [time.monotonic(), where[0].removeprefix(prefix), *parsed]


if __name__ == "__main__":
    main()
