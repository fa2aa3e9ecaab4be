"""One process at one end of the probes: it sends them, answers them, and says what it saw.

It is started in a cgroup and network namespace of the lab and takes one JSON command a line.  All agents run
on one CPU: a packet sent after another then arrives after it, which is what the barrier relies on.

    python agent.py [--sniff] [--ports N,N,...] ADDRESS...
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from penstock.core.name_elements import Opened, Retract
from penstock.kernel.name_sets import NameSets
from penstock.kernel.nft import Nft

BARRIER_PORT = 9
SO_RCVBUFFORCE = 33
PATIENCE = 1.5  # seconds; nobody waits for it unless something is wrong
ECHO_REQUEST, ECHO_REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
NO_OPERATION = b"\1\1\1\1"  # IPv4 options that say nothing
FOREIGN = {4: "203.0.113.7", 6: "2001:db8:7::7"}  # nobody's
IP_OPTIONS, IP_TRANSPARENT, IPV6_FREEBIND = 4, 19, 78
IPV6_RECVPKTINFO, IPV6_PKTINFO, IP_PKTINFO = 49, 50, 8
OTHER_ICMP = {4: 13, 6: 129}  # a timestamp request; an echo reply that answers nothing
PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def endpoint(address: str, port: int) -> tuple[Any, ...]:
    """As bind and connect want it: link-local addresses need the interface."""
    if ":" not in address:
        return address, port
    return address, port, 0, socket.if_nametoindex("eth0") if address.startswith("fe80") else 0


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def sniffed(data: bytes) -> list[Any] | None:
    """[protocol, source, source port, destination, port] of a packet that opens something, else None."""
    if data[0] >> 4 == 4:
        number, addresses, rest = data[9], (data[12:16], data[16:20]), data[(data[0] & 15) * 4 :]
    else:
        number, addresses, rest = data[6], (data[8:24], data[24:40]), data[40:]
    source, destination = (str(ip_address(raw)) for raw in addresses)
    if number in (1, 58):
        family = 4 if number == 1 else 6
        name = {ECHO_REQUEST[family]: "icmp", OTHER_ICMP[family]: "other-icmp"}.get(rest[0])
        return [name, source, struct.unpack_from("!H", rest, 4)[0], destination, 0] if name else None
    if number not in PROTOCOLS or (number == 6 and rest[13] & 0x12 != 0x02):
        return None
    first, second = struct.unpack_from("!HH", rest)
    return [PROTOCOLS[number], source, first, destination, second]


class Agent:
    """See the module."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.heard: list[Any] = []  # what the listeners got
        self.wire: list[Any] = []  # what the sniffer got
        self.tokens: set[str] = set()
        self.pending: dict[int, float] = {}  # probe -> when it was sent
        self.outcomes: dict[int, tuple[str, float]] = {}
        self.held: dict[int, socket.socket] = {}
        self.keep: set[int] = set()
        self.sockets: dict[int, socket.socket] = {}  # of pending probes
        self.accepted: set[socket.socket] = set()
        self.squatting: dict[int, socket.socket] = {}
        self.raw: dict[int, socket.socket] = {}
        self.nft: Nft | None = None

    # --- what is registered with the selector ---

    def step(self, timeout: float) -> bool:
        """Let everybody who has something to do do it; False when nobody had."""
        ready = self.selector.select(timeout)
        for key, _ in ready:
            key.data(key.fileobj)
        return bool(ready)

    def watch(self, what: socket.socket, call: Callable[[Any], None], events: int = 1) -> None:
        what.setblocking(False)
        self.selector.register(what, events, call)

    def listen(self, address: str, ports: list[int]) -> None:
        family = family_of(address)
        for port in ports:
            stream = socket.socket(family, socket.SOCK_STREAM)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            datagram = socket.socket(family, socket.SOCK_DGRAM)
            if family is socket.AF_INET6:
                for one in (stream, datagram):
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                datagram.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
            else:
                datagram.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            stream.bind((address, port))
            stream.listen(1024)
            datagram.bind((address, port))
            self.watch(stream, self.accept)
            self.watch(datagram, self.datagram)

    def accept(self, listener: socket.socket) -> None:
        connection, peer = listener.accept()
        self.heard.append(["tcp", str(ip_address(peer[0].partition("%")[0])), peer[1], ""])
        self.accepted.add(connection)
        self.watch(connection, self.stream)

    def stream(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(4096)
            if data:
                peer = connection.getpeername()
                source = str(ip_address(peer[0].partition("%")[0]))
                self.heard.append(["data", source, peer[1], data.decode()])
                connection.send(data)
        except OSError:
            data = b""
        if not data:
            self.accepted.discard(connection)
            self.selector.unregister(connection)
            connection.close()

    def datagram(self, receiver: socket.socket) -> None:
        data, control, _, peer = receiver.recvmsg(4096, 256)
        text = data.decode()
        if receiver.getsockname()[1] == BARRIER_PORT:
            self.tokens.add(text)
            return
        self.heard.append(["udp", str(ip_address(peer[0].partition("%")[0])), peer[1], text])
        answer = []
        for level, kind, value in control:  # answer from the address that was asked
            if kind == IP_PKTINFO and level == socket.IPPROTO_IP:
                answer.append((level, IP_PKTINFO, bytes(4) + value[8:12] + bytes(4)))
            elif kind == IPV6_PKTINFO:
                answer.append((level, IPV6_PKTINFO, value))
        try:
            receiver.sendmsg([data], answer, 0, peer)
        except OSError as error:
            self.heard.append(["answer", errno.errorcode[error.errno or 0], peer[1], text])

    def sniff(self, sniffer: socket.socket) -> None:
        data, where = sniffer.recvfrom(4096)
        if where[2] != socket.PACKET_OUTGOING and where[1] in (0x0800, 0x86DD):
            opened = sniffed(data)
            if opened and opened[4] != BARRIER_PORT:
                self.wire.append(opened)

    # --- probes ---

    def done(self, number: int, outcome: str) -> None:
        if number in self.pending:
            self.outcomes[number] = (outcome, (time.monotonic() - self.pending.pop(number)) * 1000)

    def end(self, number: int, sock: socket.socket, outcome: str) -> None:
        self.done(number, outcome)
        self.sockets.pop(number, None)
        self.selector.unregister(sock)
        if outcome == "ok" and number in self.keep:
            self.held[number] = sock
        else:
            sock.close()

    def open(self, number: int, protocol: str, source: str, port: int, peer: str, peer_port: int) -> None:
        """Send one probe from (source, port) to (peer, peer_port); an empty source is any."""
        self.pending[number] = time.monotonic()
        if protocol in ("icmp", "other-icmp"):
            self.echo(number, protocol, port, peer)
            return
        if protocol in ("options", "foreign"):
            self.odd(number, protocol, port, peer, peer_port)
            return
        if protocol == "sctp":
            self.sctp(number, port, peer, peer_port)
            return
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        sock = socket.socket(family_of(peer), kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if protocol == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.bind(endpoint(source or ("::" if ":" in peer else "0.0.0.0"), port))
        payload = str(number).encode()
        self.sockets[number] = sock

        def advance(ready: socket.socket) -> None:
            try:
                if protocol == "tcp" and self.selector.get_key(ready).events & selectors.EVENT_WRITE:
                    if code := ready.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        raise OSError(code, "")
                    ready.send(payload)
                    self.selector.modify(ready, selectors.EVENT_READ, advance)
                    return
                self.end(number, ready, "ok" if ready.recv(4096) == payload else "other answer")
            except OSError as error:
                self.end(number, ready, errno.errorcode[error.errno or 0])

        tcp = protocol == "tcp"
        self.watch(sock, advance, selectors.EVENT_WRITE if tcp else selectors.EVENT_READ)
        try:
            sock.connect(endpoint(peer, peer_port))
            if not tcp:
                sock.send(payload)
        except BlockingIOError:
            pass
        except OSError as error:
            self.end(number, sock, errno.errorcode[error.errno or 0])

    def odd(self, number: int, name: str, port: int, peer: str, peer_port: int) -> None:
        """A datagram with IPv4 options, or one from an address of nobody."""
        source = "::" if ":" in peer else "0.0.0.0"
        with socket.socket(family_of(peer), socket.SOCK_DGRAM) as sock:
            if name == "options":
                sock.setsockopt(socket.IPPROTO_IP, IP_OPTIONS, NO_OPERATION)
            elif ":" in peer:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
                source = FOREIGN[6]
            else:
                sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
                source = FOREIGN[4]
            sock.bind((source, port))
            try:
                sock.sendto(str(number).encode(), endpoint(peer, peer_port))
                self.done(number, "sent")
            except OSError as error:
                self.done(number, errno.errorcode[error.errno or 0])

    def sctp(self, number: int, port: int, peer: str, peer_port: int) -> None:
        with socket.socket(family_of(peer), socket.SOCK_RAW, 132) as raw:
            try:
                raw.sendto(struct.pack("!HHII", port, peer_port, 0, 0), endpoint(peer, 0))
                self.done(number, "sent")
            except OSError as error:
                self.done(number, errno.errorcode[error.errno or 0])

    def echo(self, number: int, name: str, ident: int, peer: str) -> None:
        family = 6 if ":" in peer else 4
        if family not in self.raw:
            protocol = socket.IPPROTO_ICMPV6 if family == 6 else socket.IPPROTO_ICMP
            self.raw[family] = socket.socket(family_of(peer), socket.SOCK_RAW, protocol)
            self.watch(self.raw[family], lambda raw: self.echo_reply(raw, family))
        kind = (ECHO_REQUEST if name == "icmp" else OTHER_ICMP)[family]
        head = struct.pack("!BBHHI", kind, 0, 0, ident, number) + bytes(10)
        if family == 4:
            head = head[:2] + struct.pack("!H", checksum(head)) + head[4:]
        try:
            self.raw[family].sendto(head, endpoint(peer, 0))
            if name != "icmp":
                self.done(number, "sent")
        except OSError as error:
            self.done(number, errno.errorcode[error.errno or 0])

    def echo_reply(self, raw: socket.socket, family: int) -> None:
        data = raw.recv(4096)
        body = data[(data[0] & 15) * 4 :] if family == 4 else data
        if body[0] == ECHO_REPLY[family] and len(body) >= 10:
            self.done(struct.unpack_from("!I", body, 6)[0], "ok")

    # --- commands ---

    def do_send(self, probes: list[list[Any]], keep: list[int]) -> dict[int, tuple[str, float]]:
        """Send all probes; the outcome and the milliseconds until it of each."""
        self.outcomes, self.keep = {}, set(keep)
        for probe in probes:
            self.open(*probe)
            self.step(0)
        deadline = time.monotonic() + PATIENCE
        while self.pending and time.monotonic() < deadline:
            self.step(0.05)
        for number in list(self.pending):
            self.done(number, "timeout")
        for number, sock in list(self.sockets.items()):  # or it would be heard of later
            self.end(number, sock, "timeout")
        return self.outcomes

    def do_push(self, numbers: list[int]) -> None:
        """Send once more on connections that were kept."""
        for number in numbers:
            with contextlib.suppress(OSError):  # reset meanwhile
                self.held[number].send(f"push {number}".encode())

    def do_forget(self) -> None:
        """Close every connection."""
        for sock in self.held.values():
            sock.close()
        self.held = {}
        for sock in self.accepted:
            self.selector.unregister(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        self.accepted = set()

    def do_token(self, text: str, address: str) -> None:
        with socket.socket(family_of(address), socket.SOCK_DGRAM) as sock:
            sock.sendto(text.encode(), endpoint(address, BARRIER_PORT))

    def do_collect(self, token: str) -> dict[str, list[Any]]:
        """All that arrived before `token`."""
        deadline = time.monotonic() + PATIENCE
        while token not in self.tokens:
            self.step(0.05)
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {token}")
        self.tokens.discard(token)
        return self.do_drain()

    def do_drain(self) -> dict[str, list[Any]]:
        """All that waits in the sockets now."""
        while self.step(0):
            pass
        result = {"heard": self.heard, "wire": self.wire}
        self.heard, self.wire = [], []
        return result

    def do_squat(self, address: str, port: int) -> None:
        sock = socket.socket(family_of(address), socket.SOCK_DGRAM)
        sock.bind(endpoint(address, port))
        sock.settimeout(PATIENCE)
        self.squatting[port] = sock

    def do_leave(self, port: int) -> str:
        """What the squatter got; then its port is free."""
        with self.squatting.pop(port) as sock:
            return sock.recv(4096).decode()

    def do_datagram(self, source: str, port: int, peer: str, peer_port: int, text: str) -> str:
        """One datagram, no answer awaited."""
        with socket.socket(family_of(peer), socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(endpoint(source, port))
            try:
                sock.sendto(text.encode(), endpoint(peer, peer_port))
            except OSError as error:
                return errno.errorcode[error.errno or 0]
        return "ok"

    def do_load(
        self, script: str, bindings: dict[str, dict[str, Any]], gone: list[Any], opened: list[Any]
    ) -> None:
        """Load `script`, then bind {map: {path of a cgroup: verdict}}; nothing to load is fine.

        Before it `gone` goes out of sets of learned addresses and their flows, after it `opened` comes in.
        """
        self.nft = self.nft or Nft()
        retractions = [Retract(name, frozenset(map(bytes.fromhex, held)), others) for name, held, others in gone]
        NameSets(self.nft).retract(retractions)
        if script:
            self.nft.load(script)
        NameSets(self.nft).learn([Opened(name, bytes.fromhex(a), text, s) for name, a, text, s in opened])
        self.nft.bind(
            {
                name: {os.stat(path).st_ino: (verb, chain) for path, (verb, chain) in elements.items()}
                for name, elements in bindings.items()
            }
        )

    def do_counters(self) -> dict[str, int]:
        self.nft = self.nft or Nft()
        return {name: packets for name, (packets, _) in self.nft.counters().items()}

    def command(self, stream: Any) -> None:
        line = stream.readline()
        if not line:
            sys.exit(0)
        name, arguments = json.loads(line)
        try:
            answer = ["ok", getattr(self, f"do_{name}")(*arguments)]
        except Exception as error:  # noqa: BLE001 - a process boundary: the test raises it
            answer = ["error", f"{type(error).__name__}: {error}"]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def main(arguments: list[str]) -> None:
    """The program."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    agent = Agent()
    if "--sniff" in arguments:
        arguments.remove("--sniff")
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
        sniffer.bind(("eth0", 3))
        sniffer.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        agent.watch(sniffer, agent.sniff)
    ports = [int(word) for word in arguments[0].split(",")]
    for address in arguments[1:]:
        agent.listen(address, ports)
    waiting: list[Any] = []
    agent.selector.register(sys.stdin, selectors.EVENT_READ, waiting.append)
    sys.stdout.write('["ok", null]\n')
    sys.stdout.flush()
    while True:
        agent.step(60)
        while waiting:  # not inside `step`: a command calls it again
            agent.command(waiting.pop())


if __name__ == "__main__":
    Path("/proc/self/oom_score_adj").read_text()  # the lab's own /proc, or nothing works
    main(sys.argv[1:])
