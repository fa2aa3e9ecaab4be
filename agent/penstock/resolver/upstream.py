"""Asks the upstreams: a socket of its own for each question, with a port and an id that nobody can guess.

Only what comes from the asked server, to that port, with that id and question counts.  After a few packets that
are none of it somebody is guessing, and the next try has another port.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

from penstock.core import dns_codes as code
from penstock.core.dns import build_query
from penstock.core.dns_answers import Answer, parse_answer
from penstock.core.dns_names import Malformed, OverBound
from penstock.core.policy import Address
from penstock.resolver.loop import HUNG_UP, READ, WRITE, Deadlines, Loop
from penstock.resolver.troubles import Troubles

TRY, ALTOGETHER = 1.5, 4.5
"""Seconds that one try takes at most, and after which no other is begun."""

TRIES = 3
MAX_STRANGE = 8
"""Packets on one socket that are no answer to the question."""

LONGEST_DATAGRAM = 4096
RECEIVE = 16 << 10
DISTRESS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
NO_EDNS = frozenset({code.FORMERR, code.NOTIMP, code.BADVERS})
DONE = frozenset({code.NOERROR, code.NXDOMAIN})

SILENT, DESCRIPTORS, LONG = "upstream", "descriptors", "answer"
"""Codes of troubles."""

Server = tuple[Address, int]


class Question(NamedTuple):
    """All that goes out."""

    name: str
    qtype: int
    recursion: bool
    checking_disabled: bool
    authentic: bool
    dnssec: bool


Done = Callable[[Answer | None], object]
"""Gets the answer, with whatever rcode; None when there is none."""


class Upstreams:
    """The servers, in order.  The one that answered last comes first: a dead one is not waited for each time."""

    def __init__(self, loop: Loop, troubles: Troubles) -> None:
        self.loop = loop
        self.troubles = troubles
        self.servers: tuple[Server, ...] = ()
        self.configured: tuple[Server, ...] = ()
        self.waits: Deadlines[Exchange] = loop.deadlines(TRY, lambda exchange: exchange.next())

    def configure(self, servers: Sequence[Server]) -> None:
        """Ask these from now on."""
        if tuple(servers) != self.configured:
            self.servers = self.configured = tuple(servers)
            self.troubles.over(SILENT)  # of those before

    def ask(self, question: Question, done: Done) -> None:
        """Call `done`, once, now or later."""
        Exchange(self, question, done).next()

    def answered(self, server: Server) -> None:
        """It works."""
        if server not in self.configured:  # it was asked before these were
            return
        if server != self.servers[0]:
            self.servers = (server, *(other for other in self.servers if other != server))
        self.troubles.over(SILENT)

    def silent(self) -> None:
        """None works."""
        asked = ", ".join(f"{address} port {port}" for address, port in self.servers[:8])
        text = f"no answer from {asked}" if asked else "there is no server to ask"
        self.troubles.happened(self.loop.now, SILENT, "", text)


class Exchange:
    """One question, until it is answered or given up."""

    __slots__ = (
        "_all", "_among", "_answer", "_done", "_edns", "_id", "_in", "_left", "_out", "_question", "_server",
        "_sock", "_started", "_strange",
    )  # fmt: skip

    _server: Server  # the one that is asked, once one was

    def __init__(self, everything: Upstreams, question: Question, done: Done) -> None:
        self._all = everything
        self._question = question
        self._done = done
        self._started = everything.loop.now
        self._among = everything.configured
        servers = list(everything.servers)
        self._left = (servers * TRIES)[: max(TRIES, len(servers))]
        self._answer: Answer | None = None  # the best so far
        self._sock: socket.socket | None = None
        self._edns = True
        self._id = 0
        self._strange = 0
        self._in = bytearray()
        self._out = b""

    # --- tries ---

    def next(self) -> None:
        """Ask the next server, or give up."""
        loop = self._all.loop
        while self._left and loop.now - self._started < ALTOGETHER:
            self._server = self._left.pop(0)
            if self._begin(socket.SOCK_DGRAM):
                return
        self._give_up()

    def _give_up(self) -> None:
        if self._answer is None and self._among is self._all.configured:
            self._all.silent()
        self._finish(self._answer)

    def _elsewhere(self) -> None:
        """This server need not be asked again."""
        self._left = [server for server in self._left if server != self._server]
        self.next()

    def _begin(self, kind: socket.SocketKind) -> bool:
        """Ask `self._server`.  False when that cannot be done."""
        self._close()
        address, port = self._server
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        loop = self._all.loop
        try:
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        except OSError as e:
            self._distressed(e)
            return False
        self._sock = sock
        self._id = int.from_bytes(os.urandom(2))
        self._strange = 0
        self._out = self._packet()
        try:
            if kind == socket.SOCK_DGRAM:
                sock.connect((str(address), port))
                sock.send(self._out)
                loop.add(sock.fileno(), READ, self._datagrams)
            else:
                self._in.clear()
                if sock.connect_ex((str(address), port)) not in (0, errno.EINPROGRESS):
                    return False
                loop.add(sock.fileno(), WRITE, self._connected)
        except OSError as e:  # no route, or our own rules
            self._distressed(e)
            return False
        self._all.waits.add(self, loop.now)
        return True

    def _distressed(self, error: OSError) -> None:
        if error.errno in DISTRESS:
            self._left.clear()
            text = f"an upstream cannot be asked: {error.strerror}"
            self._all.troubles.happened(self._all.loop.now, DESCRIPTORS, "", text)

    def _packet(self) -> bytes:
        name, qtype, recursion, checking_disabled, authentic, dnssec = self._question
        return build_query(
            self._id,
            name,
            qtype,
            recursion=recursion,
            checking_disabled=checking_disabled,
            authentic=authentic,
            dnssec=dnssec,
            edns=self._edns,
        )

    # --- what comes back ---

    def _datagrams(self, events: int) -> None:
        while (sock := self._sock) is not None and sock.type == socket.SOCK_DGRAM:
            try:
                data = sock.recv(LONGEST_DATAGRAM + 1)
            except BlockingIOError:
                return
            except OSError:  # nobody is there
                self._elsewhere()
                return
            answer = self._parsed(data) if len(data) <= LONGEST_DATAGRAM else None
            if answer is not None:
                self._take(answer)
                return
            if self._is_ours(data):  # and broken
                self._elsewhere()
                return
            self._strange += 1
            if self._strange >= MAX_STRANGE:
                self.next()
                return

    def _parsed(self, data: bytes) -> Answer | None:
        try:
            return parse_answer(data, self._id, self._question.name, self._question.qtype)
        except OverBound:
            self._all.troubles.happened(self._all.loop.now, LONG, "", "an answer with more in it than is taken")
            return Answer(code.SERVFAIL, 0, (), ())
        except Malformed:
            return None

    def _is_ours(self, data: bytes) -> bool:
        """Whether it begins as the answer would: who can do that could have sent a good one."""
        end = len(self._out) - (len(code.NO_OPTIONS[False]) if self._edns else 0)
        asked = self._out[code.HEADER_SIZE : end]
        begins = data[:2] == self._out[:2] and data[2:3] >= b"\x80"
        return begins and data[code.HEADER_SIZE : end].lower() == asked.lower()

    def _take(self, answer: Answer) -> None:
        if answer.truncated and self._sock is not None and self._sock.type == socket.SOCK_DGRAM:
            if not self._begin(socket.SOCK_STREAM):
                self._elsewhere()
        elif answer.rcode in DONE and not answer.truncated:
            self._all.answered(self._server)
            self._finish(answer)
        elif answer.rcode in NO_EDNS and self._edns:
            self._edns = False
            if not self._begin(socket.SOCK_DGRAM):
                self._elsewhere()
        else:
            rcode = code.SERVFAIL if answer.truncated else answer.rcode  # over TCP it was cut off as well
            self._answer = self._answer or Answer(rcode, answer.flags, (), ())
            self._elsewhere()

    def _connected(self, events: int) -> None:
        sock = self._sock
        if sock is None or sock.type != socket.SOCK_STREAM:
            return
        message = len(self._out).to_bytes(2) + self._out
        try:
            if events & HUNG_UP or sock.send(message) != len(message):
                self._elsewhere()
                return
        except BlockingIOError:
            return
        except OSError:
            self._elsewhere()
            return
        self._all.loop.remove(sock.fileno())
        self._all.loop.add(sock.fileno(), READ, self._stream)

    def _stream(self, events: int) -> None:
        sock = self._sock
        if sock is None or sock.type != socket.SOCK_STREAM:
            return
        try:
            data = sock.recv(RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._in += data
        size = int.from_bytes(self._in[:2])
        if len(self._in) < 2 or len(self._in) - 2 < size:
            if not data:
                self._elsewhere()
            return
        answer = self._parsed(bytes(self._in[2 : 2 + size]))
        if answer is None:
            self._elsewhere()
        else:
            self._take(answer)

    # --- the end ---

    def _close(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._all.waits.discard(self)
            self._all.loop.forget(sock.fileno())
            sock.close()

    def _finish(self, answer: Answer | None) -> None:
        self._close()
        self._in.clear()
        self._left = []
        self._done(answer)
