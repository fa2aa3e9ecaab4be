"""A resolver with a daemon that is made up, an upstream that says what a test wants, and clients.

All of it on loopback, with sockets of its own: nothing but the resolver listens anywhere for long.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from types import TracebackType
from typing import Any, TypeVar

import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset

from penstock.core import resolver_wire as wire
from penstock.core.policy import Address
from penstock.core.resolver_wire import NameRuleText, Names

PATIENCE = 10.0
AS_IT_IS: Mapping[str, float] = {}
M = TypeVar("M")
Server = tuple[str, int]


def eventually(what: Callable[[], M], seconds: float = PATIENCE) -> M:
    """The first thing that `what` returns and that is true."""
    end = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


# --- the daemon ---


class Daemon:
    """The other end of the link.  `settle` says whether look-ups may be answered; None: nothing is said."""

    def __init__(self, sock: socket.socket) -> None:
        self.said: list[wire.FromResolver] = []
        self.settle: Callable[[wire.Learn | wire.Refused], bool | None] = lambda message: True
        self._sock = sock
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def say(self, message: wire.ToResolver, descriptors: Sequence[int] = ()) -> None:
        """Send it, whole."""
        frame = wire.encode(message)
        with self._lock:
            sent = socket.send_fds(self._sock, [frame], list(descriptors)) if descriptors else 0
            self._sock.sendall(frame[sent:])

    def of(self, kind: type[M]) -> list[M]:
        """The messages of that kind so far."""
        return [message for message in self.said if isinstance(message, kind)]

    def waits_for(self, kind: type[M], count: int = 1) -> list[M]:
        """At least so many of them."""
        return eventually(lambda: found if len(found := self.of(kind)) >= count else [])

    def _read(self) -> None:
        frames = wire.Frames(wire.MAX_TO_DAEMON)
        with contextlib.suppress(OSError):
            while data := self._sock.recv(1 << 20):
                messages = [wire.decode_from_resolver(frame) for frame in frames.feed(data)]
                self.said += messages
                self._answer(messages)

    def _answer(self, messages: Sequence[wire.FromResolver]) -> None:
        verdicts: dict[bool, list[int]] = {}
        for message in messages:
            if isinstance(message, wire.Learn | wire.Refused) and message.id:
                verdict = self.settle(message)
                if verdict is not None:
                    verdicts.setdefault(verdict, []).append(message.id)
        for ok, ids in verdicts.items():
            self.say(wire.Settled(tuple(ids), ok))


# --- upstreams ---

Answers = Callable[[dns.message.Message, "Upstream", Any], bytes | Sequence[bytes] | None]
"""(question, the upstream, who asked) -> what is sent back, over the way it came."""


def records(question: dns.message.Message, *texts: str, ttl: int = 60) -> dns.message.Message:
    """A good answer: records as `NAME TYPE DATA`."""
    reply = dns.message.make_response(question, recursion_available=True)
    for text in texts:
        name, kind, data = text.split(" ", 2)
        reply.answer.append(dns.rrset.from_text(name, ttl, "IN", kind, data))
    return reply


def answering(**names: str) -> Answers:
    """Addresses by the first label of the name; NXDOMAIN for others."""

    def answer(question: dns.message.Message, upstream: Upstream, who: Any) -> bytes:
        asked = question.question[0]
        name = asked.name.to_text()
        kind = dns.rdatatype.to_text(asked.rdtype)
        family = {"A": 4, "AAAA": 6}.get(kind)
        found = names.get(name.split(".")[0].replace("-", "_"))
        if found is None:
            reply = records(question)
            reply.set_rcode(dns.rcode.NXDOMAIN)
            return reply.to_wire()
        those = [a for a in found.split() if ip_address(a).version == family]
        return records(question, *(f"{name} {kind} {a}" for a in those)).to_wire()

    return answer


def two(address: str) -> tuple[socket.socket, socket.socket]:
    """UDP and TCP, at one port that has been free for both."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for _ in range(50):
        udp, tcp = socket.socket(family, socket.SOCK_DGRAM), socket.socket(family, socket.SOCK_STREAM)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            udp.bind((address, 0))
            tcp.bind((address, udp.getsockname()[1]))
            tcp.listen(64)
            return udp, tcp
        except OSError:
            udp.close()
            tcp.close()
    raise AssertionError("no port is free for both")


class Upstream:
    """UDP and TCP at one port of 127.0.0.1, or of ::1."""

    def __init__(self, answer: Answers, address: str = "127.0.0.1", tcp: Answers | None = None) -> None:
        self.answer = answer
        self.tcp_answer = tcp
        self.asked: list[dns.message.Message] = []
        self.raw: list[bytes] = []
        self.askers: list[Any] = []
        self.over_tcp = 0
        self.udp, self.tcp = two(address)
        self.server: tuple[Address, int] = ip_address(address), self.udp.getsockname()[1]
        for work in (self._datagrams, self._connections):
            threading.Thread(target=work, daemon=True).start()

    def _take(self, data: bytes, who: Any, answer: Answers) -> list[bytes]:
        question = dns.message.from_wire(data)
        self.raw.append(data)
        self.asked.append(question)
        self.askers.append(who)
        replies = answer(question, self, who)
        return [] if replies is None else [replies] if isinstance(replies, bytes) else list(replies)

    def _datagrams(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, who = self.udp.recvfrom(65535)
                if not data:  # it was shut down
                    return
                for reply in self._take(data, who, self.answer):
                    self.udp.sendto(reply, who)

    def _connections(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, who = self.tcp.accept()
                self.over_tcp += 1
                threading.Thread(target=self._connection, args=(sock, who), daemon=True).start()

    def _connection(self, sock: socket.socket, who: Any) -> None:
        with sock, contextlib.suppress(OSError, ValueError):
            while data := read_message(sock):
                for reply in self._take(data, who, self.tcp_answer or self.answer):
                    sock.sendall(len(reply).to_bytes(2) + reply)

    def close(self) -> None:
        for sock in (self.udp, self.tcp):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def read_message(sock: socket.socket) -> bytes:
    """One message of a TCP connection; empty at its end."""
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2]):
        wanted = 2 - len(data) if len(data) < 2 else 2 + int.from_bytes(data[:2]) - len(data)
        more = sock.recv(wanted)
        if not more:
            return b""
        data += more
    return data[2:]


# --- the resolver ---


def four(address4: str = "127.0.0.1", address6: str = "::1") -> list[socket.socket]:
    """UDP and TCP of each, all at one port."""
    for _ in range(50):
        sockets: list[socket.socket] = []
        port = 0
        try:
            for family, address in ((socket.AF_INET, address4), (socket.AF_INET6, address6)):
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                    sockets.append(socket.socket(family, kind))
                    sockets[-1].bind((address, port))
                    port = sockets[-1].getsockname()[1]
                    if kind == socket.SOCK_STREAM:
                        sockets[-1].listen(128)
                    else:
                        sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            return sockets
        except OSError:
            for sock in sockets:
                sock.close()
    raise AssertionError("no port is free for all four")


def command(there: int, constants: Mapping[str, float] = AS_IT_IS) -> list[str]:
    """The resolver, which outlives its daemon by so many seconds; with other constants, by MODULE.NAME."""
    others = "; ".join(f"{name} = {value}" for name, value in constants.items())
    program = f"""
import sys
from penstock.resolver import __main__, app, clients, service, upstream
app.THERE = {there}
{others}
sys.exit(__main__.main(sys.argv[1:]))
"""
    return [sys.executable, "-I", "-c", program]


class Resolver:
    """The real process, and a daemon that is made up.  It ends with its link, or `there` seconds later."""

    def __init__(self, *prefix: str, there: int = 0, constants: Mapping[str, float] = AS_IT_IS) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [*prefix, *command(there, constants), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        self.link = ours
        self.daemon = Daemon(ours)
        self.generation = 0
        self.status = 0  # with which it ends
        self.ports: dict[str, int] = {}
        self._search: tuple[str, ...] = ()
        self._names: dict[str, Names] = {}
        self._upstreams: tuple[tuple[Address, int], ...] = ()

    def listen(self, workload: str = "w") -> int:
        """Pass it listeners for a workload; their port."""
        sockets = four()
        self.ports[workload] = sockets[0].getsockname()[1]
        self.daemon.say(wire.Listen(workload), [sock.fileno() for sock in sockets])
        for sock in sockets:
            sock.close()
        return self.ports[workload]

    def configure(
        self,
        *rules: str | NameRuleText,
        workload: str = "w",
        mode: str = "enforce",
        upstreams: Sequence[Upstream] | None = None,
        search: tuple[str, ...] | None = None,
        wait: bool = True,
    ) -> None:
        """What one workload may ask; what was said of others, and of upstreams, stays.

        The resolver goes by it then, unless nobody is to wait for that: what is asked next may be read before.
        """
        texts = tuple(rule if isinstance(rule, NameRuleText) else NameRuleText(rule, False) for rule in rules)
        self._names[workload] = Names(workload, mode, texts)
        if upstreams is not None:
            self._upstreams = tuple(upstream.server for upstream in upstreams)
        if search is not None:
            self._search = search
        self._say(wait)
        if workload not in self.ports:
            self.listen(workload)

    def leave_out(self, workload: str) -> None:
        """Say what the others may ask, and nothing of this one; its listeners stay."""
        del self._names[workload]
        self._say()

    def _say(self, wait: bool = True) -> None:
        self.generation += 1
        everybody = tuple(self._names.values())
        self.daemon.say(wire.Configure(self.generation, self._upstreams, self._search, everybody))
        if wait:
            eventually(lambda: wire.Configured(self.generation) in self.daemon.of(wire.Configured))

    def ask(
        self,
        name: str,
        kind: str = "A",
        *,
        workload: str = "w",
        tcp: bool = False,
        address: str = "127.0.0.1",
        timeout: float = PATIENCE,
        **options: Any,
    ) -> dns.message.Message:
        """Ask as a client of that workload."""
        options.setdefault("use_edns", 0)
        question = dns.message.make_query(name, kind, **options)
        ask = dns.query.tcp if tcp else dns.query.udp
        return ask(question, address, timeout, self.ports[workload])

    def __enter__(self) -> Resolver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.link.shutdown(socket.SHUT_RDWR)
        try:
            status = self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.link.close()
        said = self.process.stderr.read() if self.process.stderr else b""
        if self.process.stderr:
            self.process.stderr.close()
        if kind is None:
            assert (status, said) == (self.status, b"")
            faults = [t for t in self.daemon.of(wire.Trouble) if t.code == "fault"]
            assert not faults


@contextlib.contextmanager
def upstream(answer: Answers, address: str = "127.0.0.1", tcp: Answers | None = None) -> Iterator[Upstream]:
    """One, closed afterwards."""
    made = Upstream(answer, address, tcp)
    try:
        yield made
    finally:
        made.close()


def addresses(reply: dns.message.Message) -> list[str]:
    """Those in its answer section."""
    return sorted(
        rdata.address
        for rrset in reply.answer
        for rdata in rrset
        if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA)
    )


def rcode(reply: dns.message.Message) -> str:
    """As text."""
    return dns.rcode.to_text(reply.rcode())


def ede(reply: dns.message.Message) -> list[int]:
    """Codes of its extended errors."""
    return [int(option.code) for option in reply.options if isinstance(option, dns.edns.EDEOption)]
