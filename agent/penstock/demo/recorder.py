"""A server on a remote host that writes down what arrives: the witness at the other end.

"Refused" is claimed only when a recorder saw nothing.  It answers TCP (an HTTP request with a small JSON
page, anything else with an echo) and UDP (echo), in both families, and can also write down each packet as
it comes from the wire, whatever its protocol, before any socket sees it.

    python -m penstock.demo.recorder FILE NAME [--tcp PORT]... [--udp PORT]... [--packets] ADDRESS...
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import select
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from penstock.demo.host import Host
from penstock.demo.lab import Lab
from penstock.errors import PenstockError

BARRIER_PORT = 9
"""UDP; what comes here is no arrival, see `Recorder.arrivals`."""

AT_ONCE = 1000
"""Packets that are written down before the sockets are served: under a flood there is always one more."""

_SO_RCVBUFFORCE = 33  # asm-generic/socket.h: not limited by net.core.rmem_max
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_IGNORE_OUTGOING = 263, 6, 23  # packet(7), linux/if_packet.h
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
_NEIGHBOUR_DISCOVERY = range(130, 144)  # ICMPv6 types that a link needs to work, MLD included


@dataclass(frozen=True, slots=True)
class Arrival:
    """Something that reached a remote host."""

    event: str  # "connect" (TCP accepted), "data" (TCP or UDP), "packet" (from the wire)
    protocol: str  # tcp, udp, icmp, icmpv6, a number, or "lost": `data` packets came too fast to write them down
    family: int
    peer: str
    peer_port: int
    port: int  # at the remote host; 0 where the protocol has none
    data: str  # the first 2048 bytes, latin-1
    time: float  # time.monotonic(), which is one clock for the whole machine


class Recorder:
    """Starts a recorder on a host of a lab; it ends with the lab, or with `stop`.

    `ports` and `udp_ports` are opened on every address of the host.  With `packets` each incoming IP packet
    is an arrival of its own as well, but for neighbour discovery.
    """

    def __init__(
        self,
        lab: Lab,
        host: Host,
        *,
        ports: tuple[int, ...] = (),
        udp_ports: tuple[int, ...] = (),
        packets: bool = False,
    ) -> None:
        self._lab = lab
        self.host = host
        self.file = lab.dir / f"recorder-{host.name}-{secrets.token_hex(4)}.jsonl"
        self.file.touch()
        self._sniffs = packets
        self._read_up_to = 0
        self._found: list[Arrival] = []
        argv = [sys.executable, "-m", "penstock.demo.recorder", str(self.file), host.name, *host.addresses]
        for port in ports:
            argv += ["--tcp", str(port)]
        for port in udp_ports:
            argv += ["--udp", str(port)]
        argv += ["--packets"] if packets else []
        self._process = host.popen(argv, stdout=subprocess.PIPE)
        self.wait_ready()

    def wait_ready(self, timeout: float = 10) -> None:
        """Return when every port is open."""
        stdout = self._process.stdout
        if stdout is None or stdout.closed:
            return
        ready, _, _ = select.select([stdout], [], [], timeout)
        if not ready or stdout.readline() != "ready\n":
            raise PenstockError(f"the recorder on {self.host.name} did not start")
        stdout.close()

    def arrivals(self, event: str | None = None) -> list[Arrival]:
        """All that arrived so far, oldest first.

        Whatever left the governed host before this call is included: datagrams from a bystander of that
        host, sent now over the same wire and waited for, are behind everything else.
        """
        self._barrier()
        return [a for a in self._read() if a.port != BARRIER_PORT and event in (None, a.event)]

    def wait_for(self, event: str, count: int = 1, timeout: float = 10) -> list[Arrival]:
        """Wait until `count` such arrivals were written down."""
        deadline = time.monotonic() + timeout
        while True:
            found = [a for a in self._read() if a.event == event and a.port != BARRIER_PORT]
            if len(found) >= count:
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(found)} of {count} arrivals at {self.host.name}: {found}")
            time.sleep(0.005)

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _barrier(self) -> None:
        deadline = time.monotonic() + 30
        while not self._arrives(secrets.token_hex(8)):  # behind a flood one may be lost
            if time.monotonic() > deadline:
                raise TimeoutError(f"a bystander's datagram did not reach {self.host.name}")

    def _arrives(self, token: str) -> bool:
        """Whether datagrams that are sent now do, within a second: to the socket, and to whoever sniffs."""
        before, deadline = len(self._found), time.monotonic() + 1
        wanted = {"data", "packet"} if self._sniffs else {"data"}
        sent = self._send(token.encode(), self.host.addresses[0], BARRIER_PORT)
        while time.monotonic() < deadline:
            found = Counter(a.event for a in self._read()[before:] if a.data.endswith(token))
            if all(found[event] >= sent for event in wanted):
                return True
            time.sleep(0.001)
        return False

    def _send(self, data: bytes, address: str, port: int) -> int:
        return self._lab.host.call(send_from_each_processor, data, address, port)

    def _read(self) -> list[Arrival]:
        with self.file.open("rb") as file:
            file.seek(self._read_up_to)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read_up_to += len(whole + newline)
        self._found += [Arrival(**json.loads(line)) for line in whole.splitlines()]
        return self._found


def on_each_processor(action: Callable[[], object]) -> int:
    """Call it once on each; return how often.

    A packet to another network namespace waits in a queue of the processor that sent it (netif_rx in
    net/core/dev.c): what is to come after everything else is sent from all of them.
    """
    ours = os.sched_getaffinity(0)
    try:
        for one in ours:
            os.sched_setaffinity(0, {one})
            action()
    finally:
        os.sched_setaffinity(0, ours)
    return len(ours)


def send_from_each_processor(data: bytes, address: str, port: int) -> int:
    """Send that many datagrams."""
    with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
        return on_each_processor(lambda: sock.sendto(data, (address, port)))


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class _Server:
    """The program on the remote host: one thread, one selector, one file."""

    def __init__(self, file: Path, name: str) -> None:
        self._name = name
        self._file = file.open("a", buffering=1)
        self._selector = selectors.DefaultSelector()

    def listen(self, address: str, tcp: list[int], udp: list[int]) -> None:
        """Open the ports on `address`: a UDP answer must come from the address that was asked."""
        for port in tcp:
            listener = socket.create_server((address, port), family=_family(address), backlog=1024)
            self._selector.register(listener, selectors.EVENT_READ, self._accept)
        for port in udp:
            receiver = socket.socket(_family(address), socket.SOCK_DGRAM)
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            receiver.bind((address, port))
            self._selector.register(receiver, selectors.EVENT_READ, self._datagram)

    def sniff(self) -> None:
        """Write down every incoming packet."""
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
        sniffer.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 22)
        sniffer.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self._selector.register(sniffer, selectors.EVENT_READ, self._packets)

    def serve(self) -> None:
        """Until killed."""
        while True:
            # A packet is written down before what it causes: the sniffer first, and what it has.
            ready = sorted(self._selector.select(), key=lambda pair: pair[0].data != self._packets)
            for key, _ in ready:
                key.data(key.fileobj)

    def _write(self, event: str, protocol: str, peer: Any, own: Any, data: bytes = b"") -> None:
        arrival = Arrival(
            event=event,
            protocol=protocol,
            family=6 if ":" in peer[0] else 4,
            peer=peer[0],
            peer_port=peer[1],
            port=own[1],
            data=data[:2048].decode("latin-1"),
            time=time.monotonic(),
        )
        self._file.write(json.dumps(asdict(arrival)) + "\n")

    def _accept(self, listener: socket.socket) -> None:
        connection, peer = listener.accept()
        self._write("connect", "tcp", peer, connection.getsockname())
        self._selector.register(connection, selectors.EVENT_READ, self._stream)

    def _stream(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(65536)
            if data:
                self._write("data", "tcp", connection.getpeername(), connection.getsockname(), data)
                connection.sendall(self._reply(data))
        except OSError:  # the peer reset it: what arrived is written down
            data = b""
        if not data:
            self._selector.unregister(connection)
            connection.close()

    def _reply(self, data: bytes) -> bytes:
        words = data.split(b" ", 2)
        if len(words) < 3 or not words[2].startswith(b"HTTP/1."):
            return data
        page = json.dumps({"server": self._name, "path": words[1].decode("latin-1")}).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(page)}\r\n\r\n"
        return head.encode() + page

    def _datagram(self, receiver: socket.socket) -> None:
        data, peer = receiver.recvfrom(65536)
        own = receiver.getsockname()
        self._write("data", "udp", peer, own, data)
        if own[1] != BARRIER_PORT:
            receiver.sendto(data, peer)

    def _packets(self, sniffer: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(AT_ONCE):
                self._packet(*sniffer.recvfrom(65536, socket.MSG_DONTWAIT))
        _, lost = struct.unpack("II", sniffer.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        if lost:
            self._write("packet", "lost", ("", 0), ("", 0), str(lost).encode())

    def _packet(self, data: bytes, where: tuple[str, int]) -> None:
        if where[0] == "eth0" and (parsed := parse_packet(data)):
            protocol, source, source_port, port, payload = parsed
            self._write("packet", protocol, (source, source_port), ("", port), payload)


def parse_packet(data: bytes) -> tuple[str, str, int, int, bytes] | None:
    """(protocol, source address, source port, destination port, what follows the IP header) of a packet.

    None for what is no IP, and for neighbour discovery.
    """
    if len(data) >= 20 and data[0] >> 4 == 4:
        number, source, rest = data[9], ip_address(data[12:16]), data[(data[0] & 15) * 4 :]
    elif len(data) >= 40 and data[0] >> 4 == 6:
        number, source, rest = data[6], ip_address(data[8:24]), data[40:]
    else:
        return None
    if number == 0 or (number == 58 and rest and rest[0] in _NEIGHBOUR_DISCOVERY):
        return None  # hop-by-hop options: multicast listener reports
    ports = struct.unpack_from("!HH", rest) if number in (6, 17) and len(rest) >= 4 else (0, 0)
    return _PROTOCOLS.get(number, str(number)), str(source), ports[0], ports[1], rest


def main() -> None:
    """The program on the remote host."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("name")
    parser.add_argument("addresses", nargs="+")
    parser.add_argument("--tcp", type=int, action="append", default=[])
    parser.add_argument("--udp", type=int, action="append", default=[])
    parser.add_argument("--packets", action="store_true")
    given = parser.parse_args()
    server = _Server(given.file, given.name)
    for address in given.addresses:
        server.listen(address, given.tcp, [*given.udp, BARRIER_PORT])
    if given.packets:
        server.sniff()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    server.serve()


if __name__ == "__main__":
    main()
