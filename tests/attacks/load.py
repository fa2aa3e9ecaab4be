"""Load on this host's own addresses: a model server, its gateway at full rate, and strangers who try to get in.

Each function is what one process does, all at once; they meet in `TRAIL`, which is memory that all share.  Whoever
sends says who he is in what he sends, and both sides write down each connection by its port.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import itertools
import mmap
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from attacks import ops
from penstock.demo.lab import HOST_ADDRESSES

ADDRESSES = ("127.0.0.1", "::1", *HOST_ADDRESSES)
"""Those of the model server; elsewhere an address is its index in here."""

OF_THE_KERNEL = (36000, 60999)
"""Source ports that the kernel chooses among."""
CHOSEN = range(10000, 36000)
"""Source ports that the gateway binds, each once."""

GREETING, REPLY, GATEWAY = b"hello", b"ok", b"gw"
REQUEST = struct.Struct(">2sBxI")
HELD = 1000
"""Connections that a stranger keeps, to hear what comes."""
OPEN_FILES = 20_000
PATIENCE = 10.0


class End(enum.IntEnum):
    """How a use of a source port ended."""

    CLOSED = 0  # by the gateway: its port is in TIME_WAIT, and nobody's for a second
    RESET = 1  # by the gateway
    BY_SERVER = 2  # the model server closed first: TIME_WAIT is on its side
    DATAGRAM = 3


@dataclass(frozen=True, slots=True)
class Used:
    """A source port that the gateway had a moment ago."""

    end: End
    address: int
    port: int
    at: float


class Trail:
    """The source ports that the gateway has used, in order; one process writes.  And whether all shall stop."""

    _ENTRY = struct.Struct("=BBHd")
    _HEAD = struct.Struct("=II")
    ENTRIES = 1_000_000

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self._HEAD.size + self.ENTRIES * self._ENTRY.size)
        self._count = 0

    def clear(self) -> None:
        """Before anybody starts."""
        self._HEAD.pack_into(self._memory, 0, 0, 0)

    def stop(self) -> None:
        self._HEAD.pack_into(self._memory, 0, len(self), 1)

    @property
    def stopped(self) -> bool:
        return bool(self._HEAD.unpack_from(self._memory)[1])

    def __len__(self) -> int:
        count: int = self._HEAD.unpack_from(self._memory)[0]
        return count

    def append(self, end: End, address: int, port: int) -> None:
        """Its use is over."""
        count = len(self)
        self._ENTRY.pack_into(self._memory, self._place(count), end, address, port, time.monotonic())
        struct.pack_into("=I", self._memory, 0, count + 1)

    def __getitem__(self, number: int) -> Used:
        end, address, port, at = self._ENTRY.unpack_from(self._memory, self._place(number))
        return Used(End(end), address, port, at)

    def _place(self, number: int) -> int:
        return self._HEAD.size + number * self._ENTRY.size


TRAIL = Trail()

Call = tuple[int, int, bytes]
"""Address, port of the caller, and what he said first."""


# --- the model server ---


@dataclass
class Served:
    """What came to the model server."""

    connections: list[Call] = field(default_factory=list)
    datagrams: list[Call] = field(default_factory=list)
    requests: int = 0
    """Of the gateway, on whatever connection, and by datagram."""
    strange: list[bytes] = field(default_factory=list)
    """Data that the gateway did not send."""

    def note(self, data: bytes) -> bool:
        """Whether it is the gateway's."""
        if len(data) == REQUEST.size and data.startswith(GATEWAY):
            self.requests += 1
            return True
        self.strange.append(data)
        return False


@dataclass
class _Accepted:
    sock: socket.socket
    address: int
    port: int
    first: bytes = b""


class Server:
    """Greets whoever is accepted, and answers each request and each datagram, whoever sent it."""

    def __init__(self, port: int) -> None:
        self._epoll = select.epoll()
        self._listeners: dict[int, tuple[socket.socket, int]] = {}
        self._datagrams: dict[int, tuple[socket.socket, int]] = {}
        self._accepted: dict[int, _Accepted] = {}
        self.served = Served()
        for index, address in enumerate(ADDRESSES):
            listener = socket.socket(fileno=ops.listen(address, port, backlog=4096))
            receiver = socket.socket(fileno=ops.udp(address, port))
            for sock, table in ((listener, self._listeners), (receiver, self._datagrams)):
                sock.setblocking(False)
                self._epoll.register(sock, select.EPOLLIN)
                table[sock.fileno()] = sock, index

    def run(self) -> Served:
        """Until all shall stop and nothing comes any more."""
        while True:
            ready = self._epoll.poll(0.2)
            if not ready and TRAIL.stopped:
                break
            for descriptor, _ in ready:
                if descriptor in self._accepted:
                    self._read(self._accepted[descriptor])
                elif descriptor in self._listeners:
                    self._accept(*self._listeners[descriptor])
                else:
                    self._receive(*self._datagrams[descriptor])
        for accepted in list(self._accepted.values()):
            self._end(accepted)
        for sock, _ in (*self._listeners.values(), *self._datagrams.values()):
            sock.close()
        self._epoll.close()
        return self.served

    def _accept(self, listener: socket.socket, address: int) -> None:
        for _ in range(64):
            try:
                sock, peer = listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            self._epoll.register(sock, select.EPOLLIN)
            accepted = self._accepted[sock.fileno()] = _Accepted(sock, address, peer[1])
            self._say(accepted, GREETING)

    def _read(self, accepted: _Accepted) -> None:
        try:
            data = accepted.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(accepted)
            return
        accepted.first = accepted.first or data
        good = self.served.note(data)
        if self._say(accepted, REPLY) and good and data[len(GATEWAY)] == End.BY_SERVER:
            self._end(accepted)

    def _say(self, accepted: _Accepted, data: bytes) -> bool:
        try:
            accepted.sock.send(data)
        except OSError:
            self._end(accepted)
            return False
        return True

    def _end(self, accepted: _Accepted) -> None:
        self.served.connections.append((accepted.address, accepted.port, accepted.first))
        del self._accepted[accepted.sock.fileno()]
        accepted.sock.close()

    def _receive(self, sock: socket.socket, address: int) -> None:
        for _ in range(64):
            try:
                data, peer = sock.recvfrom(4096)
            except BlockingIOError:
                return
            except OSError:  # an error of what was sent before
                continue
            self.served.datagrams.append((address, peer[1], data))
            self.served.note(data)
            with contextlib.suppress(OSError):
                sock.sendto(REPLY, peer)


_server: list[Server] = []


def listen(port: int) -> None:
    """Before anybody calls; then `serve`."""
    _more_files()
    _server[:] = [Server(port)]


def serve() -> Served:
    """What came, once all have stopped."""
    return _server.pop().run()


# --- the gateway ---


@dataclass
class Made:
    """What the gateway did."""

    connections: list[Call] = field(default_factory=list)
    datagrams: list[Call] = field(default_factory=list)
    requests: int = 0
    errors: list[str] = field(default_factory=list)


def call_anew(port: int, ends: tuple[End, ...]) -> Made:
    """A new connection or a new datagram socket for each request, until all shall stop; `ends` take turns.

    No source port comes twice: once a stranger had it, it may be worth nothing to the gateway for a while.
    """
    made = Made()
    everywhere = range(len(ADDRESSES))
    datagrams = ((address, here) for here in CHOSEN for address in everywhere)
    connections = ((address, here) for here in CHOSEN for address in everywhere)
    for number, end in enumerate(itertools.cycle(ends)):
        if TRAIL.stopped:
            break
        address, here = next(datagrams if end is End.DATAGRAM else connections, (-1, 0))
        if address < 0:
            continue  # none left that was not used before
        request = REQUEST.pack(GATEWAY, end, number)
        call = _one_datagram if end is End.DATAGRAM else _one_connection
        try:
            call(address, here, port, request)
        except OSError as error:
            made.errors.append(f"{end.name} to {ADDRESSES[address]} from {here}: {ops.name_of(error)}")
            continue
        TRAIL.append(end, address, here)
        made.requests += 1
        (made.datagrams if end is End.DATAGRAM else made.connections).append((address, here, request))
    return made


def call_again(port: int) -> Made:
    """One connection and one datagram socket to each address, and requests on all of them until all shall stop."""
    made = Made()
    socks = []
    for address in range(len(ADDRESSES)):
        stream = _connect(address, port)
        if _receive(stream, len(GREETING)) != GREETING:
            made.errors.append("no greeting")
        socks.append((stream, address, made.connections))
        receiver = _socket(address, socket.SOCK_DGRAM)
        receiver.connect((ADDRESSES[address], port))
        socks.append((receiver, address, made.datagrams))
    first = True
    for number in itertools.count():
        if TRAIL.stopped:
            break
        request = REQUEST.pack(GATEWAY, End.CLOSED, number)
        for sock, address, calls in socks:
            try:
                _exchange(sock, request)
            except OSError as error:
                made.errors.append(f"kept, to {ADDRESSES[address]}: {ops.name_of(error)}")
            made.requests += 1
            if first or calls is made.datagrams:
                calls.append((address, sock.getsockname()[1], request))
        first = False
    for sock, _, _ in socks:
        sock.close()
    return made


def _one_connection(address: int, here: int, port: int, request: bytes) -> None:
    end = request[len(GATEWAY)]
    with _connect(address, port, here) as sock:
        _receive(sock, len(GREETING))
        _exchange(sock, request)
        if end == End.BY_SERVER and sock.recv(1):
            raise ConnectionAbortedError
        if end == End.RESET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _one_datagram(address: int, here: int, port: int, request: bytes) -> None:
    with _socket(address, socket.SOCK_DGRAM) as sock:
        sock.bind((ADDRESSES[address], here))
        sock.connect((ADDRESSES[address], port))
        _exchange(sock, request)


def _socket(address: int, kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(ops.family_of(ADDRESSES[address]), kind)
    sock.settimeout(PATIENCE)
    return sock


def _connect(address: int, port: int, here: int = 0) -> socket.socket:
    sock = _socket(address, socket.SOCK_STREAM)
    try:
        # The gateway too: else nobody could bind the port that it has in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if here:
            sock.bind((ADDRESSES[address], here))
        sock.connect((ADDRESSES[address], port))
    except OSError:
        sock.close()
        raise
    return sock


def _exchange(sock: socket.socket, request: bytes) -> None:
    sock.send(request)
    if _receive(sock, len(REPLY)) != REPLY:
        raise ConnectionAbortedError


def _receive(sock: socket.socket, size: int) -> bytes:
    return sock.recv(size, socket.MSG_WAITALL)


# --- a stranger ---


@dataclass
class Knocked:
    """What came of a stranger's attempts."""

    connections: int = 0
    datagrams: int = 0
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    """Protocol, whose port, and the error; those where nothing was sent (`NOT_SENT`) are no attempts."""
    entered: list[tuple[int, int]] = field(default_factory=list)
    """Address and own port of each connection that came about."""
    heard: list[bytes] = field(default_factory=list)


NOT_SENT = ("EADDRINUSE", "EADDRNOTAVAIL")


class Stranger:
    """Tries what the gateway just did, from a port of the kernel's choice and from the gateway's."""

    def __init__(self, name: str, port: int) -> None:
        self._said, self._port = name.encode(), port
        self._held: collections.deque[socket.socket] = collections.deque()
        self.knocked = Knocked()

    def knock(self, share: int, shares: int, attempts: int) -> None:
        """After each use that is his share: `shares` strangers divide all among them.

        `attempts`: so many of connections, and of datagrams too.
        """
        waiting: collections.deque[Used] = collections.deque()
        trail = _followed(share, shares)
        while min(self.knocked.connections, self.knocked.datagrams) < attempts:
            if waiting and waiting[0].at + 1.1 < time.monotonic():
                self._attempt(waiting.popleft(), taken=True)
                continue
            used = next(trail)
            self._attempt(used, taken=False)
            if used.end is End.CLOSED:
                waiting.append(used)
            else:
                self._attempt(used, taken=True)

    def leave(self) -> Knocked:
        """Hear what came meanwhile, and go."""
        while self._held:
            self._hear(self._held.popleft())
        return self.knocked

    def _attempt(self, used: Used, *, taken: bool) -> None:
        datagram = used.end is End.DATAGRAM
        what = "UDP" if datagram else "TCP"
        whose = f"the gateway's ({used.end.name.lower()})" if taken else "his own"
        attempt: Callable[[int, int], str] = self._send if datagram else self._connect
        try:
            outcome = attempt(used.address, used.port if taken else 0)
        except OSError as error:
            outcome = ops.name_of(error)
        self.knocked.outcomes[f"{what} from {whose}: {outcome}"] += 1
        self.knocked.connections += outcome not in NOT_SENT and not datagram
        self.knocked.datagrams += outcome not in NOT_SENT and datagram

    def _connect(self, address: int, here: int) -> str:
        sock = _connect(address, self._port, here)
        self.knocked.entered.append((address, sock.getsockname()[1]))
        sock.setblocking(False)
        self._held.append(sock)
        if len(self._held) > HELD:
            self._hear(self._held.popleft())
        # Half of them only listen: what is refused ends the connection, and nothing could come.
        if len(self.knocked.entered) % 2:
            sock.send(self._said)
        return "connected"

    def _send(self, address: int, here: int) -> str:
        with _socket(address, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            if here:
                sock.bind((ADDRESSES[address], here))
            sock.connect((ADDRESSES[address], self._port))
            sock.send(self._said)
            self.knocked.heard.append(sock.recv(4096))
        return "answered"

    def _hear(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            if data := sock.recv(4096):
                self.knocked.heard.append(data)


def _followed(share: int, shares: int) -> Iterator[Used]:
    for number in itertools.count():
        if number // len(End) % shares != share:  # in stretches, for uses take turns
            continue
        deadline = time.monotonic() + PATIENCE
        while len(TRAIL) <= number:
            if time.monotonic() > deadline:
                raise TimeoutError("the gateway does not go on")
            time.sleep(0.0002)
        yield TRAIL[number]


_stranger: list[Stranger] = []


def knock(name: str, port: int, share: int, shares: int, attempts: int) -> None:
    """See `Stranger`; then `leave`."""
    _more_files()
    _stranger[:] = [Stranger(name, port)]
    _stranger[0].knock(share, shares, attempts)


def leave() -> Knocked:
    """Once the server has done what it would do."""
    return _stranger.pop().leave()


def _more_files() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))
