"""Asks the upstreams: a socket of its own for each question, with a port and an id that nobody can guess.

Only what comes from the asked server, to that port, with that id and question counts.  After a few packets that
are none of it somebody is guessing, and the next try has another port.
"""

from __future__ import annotations

import errno
import math
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

AGAIN = 30.0
"""Seconds that a server which was silent is asked after the others; then a look-up tries whether it still is."""

LATELY = 10.0
"""Seconds without any answer before it is told that there is none."""

TRIES = 3
MAX_STRANGE = 8
"""Packets on one socket that are no answer to the question."""

MAX_STREAMS = 64
"""TCP connections for one workload: to read what comes over one may take milliseconds, and others wait as long."""

LONGEST_DATAGRAM = 4096
RECEIVE = 16 << 10
DISTRESS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
NO_EDNS = frozenset({code.FORMERR, code.NOTIMP, code.BADVERS})
DONE = frozenset({code.NOERROR, code.NXDOMAIN})

SILENT, DESCRIPTORS, LONG, STREAMS = "upstream", "descriptors", "answer", "streams"
"""Codes of troubles."""


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


class Server:
    """One that is asked."""

    __slots__ = ("family", "heard", "where")

    def __init__(self, address: Address, port: int) -> None:
        self.where = str(address), port
        self.family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        self.heard = -math.inf  # when it last answered anybody, whatever it said


class Share:
    """What one workload has under way, and whom it asked in vain: a name that is slow for it moves nobody else."""

    __slots__ = ("silent", "streams", "workload")

    def __init__(self, workload: str) -> None:
        self.workload = workload
        self.streams = 0  # TCP connections
        self.silent: dict[Server, float] = {}  # when that was


class Upstreams:
    """The servers, in order, but who was silent lately behind the others: not each look-up of a workload waits.

    What a server says changes nothing: else one name would decide who is asked for all the others.
    """

    def __init__(self, loop: Loop, troubles: Troubles) -> None:
        self.loop = loop
        self.troubles = troubles
        self.configured: tuple[tuple[Address, int], ...] = ()
        self.servers: tuple[Server, ...] = ()
        self.waits: Deadlines[Exchange] = loop.deadlines(TRY, lambda exchange: exchange.over())
        self._heard = -math.inf  # any of them

    def configure(self, servers: Sequence[tuple[Address, int]]) -> None:
        """Ask these from now on."""
        if tuple(servers) != self.configured:
            self.configured = tuple(servers)
            self.servers = tuple(Server(address, port) for address, port in servers)
            self._heard = -math.inf
            self.troubles.over(SILENT)  # of those before

    def ask(self, question: Question, done: Done, share: Share) -> None:
        """Call `done`, once, now or later.  `share` is that of the workload that asks."""
        Exchange(self, question, done, share).next()

    def order(self, share: Share) -> list[Server]:
        """Whom to ask first, and then.

        One whose time is over comes in its place again, but one only: it may cost a try.  So does at once who has
        answered anybody since.
        """
        found = share.silent
        if not found:
            return list(self.servers)
        for server in [one for one in found if one.heard >= found[one] or one not in self.servers]:
            del found[server]
        long_ago = self.loop.now - AGAIN
        due = next((server for server in self.servers if found.get(server, math.inf) <= long_ago), None)
        return sorted(self.servers, key=lambda server: 0.0 if server is due else found.get(server, 0.0))

    def begins(self, server: Server, share: Share) -> None:
        """It is asked.  If it was silent, that finds out for all of the workload: others need not wait as well."""
        if server in share.silent:
            share.silent[server] = self.loop.now

    def answered(self, server: Server) -> None:
        """It works."""
        server.heard = self.loop.now
        if server in self.servers:  # else it was asked before these were
            self._heard = self.loop.now
            self.troubles.over(SILENT)

    def unanswered(self, server: Server, share: Share, since: float) -> None:
        """It was asked something, and there is no answer."""
        if server.heard < since:  # nor any other: else it is the name that is slow
            share.silent[server] = self.loop.now

    def silent(self, share: Share) -> None:
        """A look-up got no answer of any."""
        if self.loop.now - self._heard < LATELY:
            return
        silent = [server for server in self.servers if server in share.silent] or self.servers
        asked = ", ".join("{} port {}".format(*server.where) for server in silent[:8])
        text = f"no answer from {asked}" if asked else "there is no server to ask"
        self.troubles.happened(self.loop.now, SILENT, "", text)


class Exchange:
    """One question, until it is answered or given up."""

    __slots__ = (
        "_all", "_among", "_answer", "_done", "_edns", "_id", "_in", "_left", "_out", "_question",
        "_server", "_share", "_silent", "_sock", "_started", "_strange",
    )  # fmt: skip

    _server: Server  # the one that is asked, once one was

    def __init__(self, everything: Upstreams, question: Question, done: Done, share: Share) -> None:
        self._all = everything
        self._question = question
        self._done = done
        self._share = share
        self._started = everything.loop.now
        self._among = everything.servers
        servers = everything.order(share)
        self._left = (servers * TRIES)[: max(TRIES, len(servers))]
        self._answer: Answer | None = None  # the best so far
        self._silent = True  # nothing else was found so far
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
            self._all.begins(self._server, self._share)
            if self._begin(socket.SOCK_DGRAM):
                return
        if self._silent and self._among is self._all.servers:
            self._all.silent(self._share)
        self._finish(self._answer)

    def over(self) -> None:
        """A try took too long."""
        self._all.unanswered(self._server, self._share, self._started)
        self.next()

    def _elsewhere(self) -> None:
        """This server need not be asked again."""
        self._left = [server for server in self._left if server is not self._server]
        self.next()

    def _begin(self, kind: socket.SocketKind) -> bool:
        """Ask `self._server`.  False when that cannot be done."""
        self._close()
        loop, share = self._all.loop, self._share
        if kind == socket.SOCK_STREAM and share.streams >= MAX_STREAMS:
            self._left.clear()
            self._silent = False
            text = "more answers over TCP at once than are taken"
            self._all.troubles.happened(loop.now, STREAMS, share.workload, text)
            return False
        try:
            sock = socket.socket(self._server.family, kind | socket.SOCK_NONBLOCK)
        except OSError as e:
            self._failed(e)
            return False
        self._sock = sock
        share.streams += kind == socket.SOCK_STREAM
        self._id = int.from_bytes(os.urandom(2))
        self._strange = 0
        self._out = self._packet()
        try:
            if kind == socket.SOCK_DGRAM:
                sock.connect(self._server.where)
                sock.send(self._out)
                loop.add(sock.fileno(), READ, self._datagrams)
            else:
                self._in.clear()
                if sock.connect_ex(self._server.where) not in (0, errno.EINPROGRESS):
                    return False
                loop.add(sock.fileno(), WRITE, self._connected)
        except OSError as e:  # no route, or our own rules
            self._failed(e)
            return False
        self._all.waits.add(self, loop.now)
        return True

    def _failed(self, error: OSError) -> None:
        if error.errno not in DISTRESS:
            self._all.unanswered(self._server, self._share, self._started)
        else:
            self._left.clear()
            self._silent = False
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
                self._all.unanswered(self._server, self._share, self._started)
                self._elsewhere()
                return
            answer = self._parsed(data) if len(data) <= LONGEST_DATAGRAM else None
            if answer is not None:
                self._take(answer)
                return
            if self._is_ours(data):  # and broken
                self._heard()
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

    def _heard(self) -> None:
        self._silent = False
        self._all.answered(self._server)

    def _take(self, answer: Answer) -> None:
        self._heard()
        if answer.truncated and self._sock is not None and self._sock.type == socket.SOCK_DGRAM:
            if not self._begin(socket.SOCK_STREAM):
                self._elsewhere()
        elif answer.rcode in DONE and not answer.truncated:
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
            self._share.streams -= sock.type == socket.SOCK_STREAM
            self._all.loop.forget(sock.fileno())
            sock.close()

    def _finish(self, answer: Answer | None) -> None:
        self._close()
        self._in.clear()
        self._left = []
        self._done(answer)
