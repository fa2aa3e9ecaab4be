"""Where questions come from: datagrams and connections, and what a client cannot do to others."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.message
import pytest

from penstock.core import resolver_wire as wire
from penstock.resolver import clients
from penstock.resolver.clients import Caller, Connections, Listeners
from penstock.resolver.loop import Deadlines, Loop

from .running import Resolver, Upstream, addresses, answering, four, read_message, records, upstream

NAMES = answering(hub="192.0.2.1 2001:db8::1")
LOOPBACK = {4: "127.0.0.1", 6: "::1"}


def wire_query(name: str, id: int, kind: str = "A") -> bytes:
    question = dns.message.make_query(name, kind, id=id)
    return question.to_wire()


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    with upstream(NAMES) as made:
        yield made


@pytest.fixture(scope="module")
def shared(server: Upstream) -> Iterator[Resolver]:
    with Resolver() as made:
        made.configure("hub.example", "*.cdn.example", upstreams=[server])
        yield made


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_both_protocols_of_both_families_are_answered(
    shared: Resolver, version: int, tcp: bool, kind: str
) -> None:
    reply = shared.ask("hub.example", kind, tcp=tcp, address=LOOPBACK[version])
    assert addresses(reply) == [{"A": "192.0.2.1", "AAAA": "2001:db8::1"}[kind]]


@pytest.mark.parametrize("version", [4, 6])
def test_a_datagram_comes_back_from_where_it_went(shared: Resolver, version: int) -> None:
    there = LOOPBACK[version], shared.ports["w"]
    with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.sendto(wire_query("hub.example", 7), there)
        data, sender = sock.recvfrom(4096)
    assert sender[:2] == there
    assert data[:2] == (7).to_bytes(2)


def is_over(sock: socket.socket) -> bool:
    """Nothing more comes, whichever way it ended."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def connected(resolver: Resolver, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((address, resolver.ports["w"]), timeout=10)


def test_questions_of_one_connection_need_not_wait_for_each_other(shared: Resolver) -> None:
    """So many that more are asked than may wait; some are refused, and those are answered first."""
    count = 3 * clients.MAX_WAITING
    names = ["hub.example" if number % 3 else "evil.example" for number in range(count)]
    with connected(shared) as sock:
        sock.sendall(b"".join(framed(wire_query(name, id)) for id, name in enumerate(names)))
        replies = [dns.message.from_wire(read_message(sock)) for _ in range(count)]
    assert sorted(reply.id for reply in replies) == list(range(count))
    for reply in replies:
        assert reply.question[0].name.to_text() == names[reply.id] + "."
        assert addresses(reply) == (["192.0.2.1"] if reply.id % 3 else [])


def test_a_question_may_come_in_pieces_and_a_client_may_say_no_more(shared: Resolver) -> None:
    with connected(shared) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in framed(wire_query("hub.example", 1)) + framed(wire_query("hub.example", 2)):
            sock.send(bytes([byte]))
        sock.shutdown(socket.SHUT_WR)
        assert {read_message(sock)[:2] for _ in range(2)} == {b"\0\1", b"\0\2"}
        assert is_over(sock)


@pytest.mark.parametrize("data", [framed(b""), framed(b"\0" * 11), framed(b"\xff" * 100), b"\xff\xff" + b"x" * 9])
def test_a_connection_with_something_else_is_closed(shared: Resolver, data: bytes) -> None:
    with connected(shared) as sock:
        sock.sendall(data)
        assert is_over(sock)


def test_what_is_no_question_gets_no_answer_or_a_short_one(server: Upstream) -> None:
    with Resolver() as resolver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        resolver.configure("hub.example", upstreams=[server])
        sock.settimeout(5)
        sock.connect(("127.0.0.1", resolver.ports["w"]))
        answer = bytearray(wire_query("hub.example", 8))
        answer[2] |= 0x80
        for nothing in (b"", b"x", bytes(answer), wire_query("hub.example", 9) + b"x" * 5000):
            sock.send(nothing)
        sock.send(bytes.fromhex("000a 2800 0001 0000 0000 0000"))  # an update
        sock.send(wire_query("hub.example", 11))
        assert sock.recv(4096)[:4] == bytes.fromhex("000a a884")
        assert sock.recv(4096)[:2] == (11).to_bytes(2)
        assert not [m for m in resolver.daemon.said if isinstance(m, wire.Trouble | wire.Refused)]


def memory(resolver: Resolver) -> int:
    fields = Path(f"/proc/{resolver.process.pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def test_malformed_packets_leave_nothing_behind(server: Upstream, count: int) -> None:
    packet = bytearray(wire_query("a" * 60 + ".hub.example", 1))

    def flood(port: int, rounds: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect(("127.0.0.1", port))
            for number in range(rounds):
                packet[14:18] = number.to_bytes(4)
                packet[5] = 2 + number % 3
                sock.send(packet)
                sock.recv(4096)

    with Resolver() as resolver:  # of which nothing can be left that others asked
        resolver.configure("hub.example", "*.cdn.example", upstreams=[server])
        flood(resolver.ports["w"], 1000)
        before, said = memory(resolver), len(resolver.daemon.said)
        flood(resolver.ports["w"], 100_000 // count)
        assert memory(resolver) - before < 1 << 20
        assert not [m for m in resolver.daemon.said[said:] if not isinstance(m, wire.Alive)]


def test_connections_are_bounded_and_others_still_served(shared: Resolver) -> None:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(shared)) for _ in range(clients.MAX_CONNECTIONS)]
        for sock in held:  # each was taken
            sock.sendall(framed(wire_query("hub.example", 1)))
            assert read_message(sock)
        late = stack.enter_context(connected(shared, "::1"))
        late.sendall(framed(wire_query("hub.example", 2)))
        late.settimeout(0.3)
        with pytest.raises(TimeoutError):
            late.recv(1)
        assert addresses(shared.ask("hub.example")) == ["192.0.2.1"]
        trouble = shared.daemon.waits_for(wire.Trouble)
        assert ("connections", "w") in {(t.code, t.workload) for t in trouble}
        held[0].close()
        late.settimeout(5)
        assert read_message(late)[:2] == b"\0\2"


def test_a_client_that_takes_no_answers_gets_no_more(server: Upstream) -> None:
    """Nor kept, when more come than he has room for."""
    big = [f"hub.example. A 192.0.2.{n}" for n in range(1, 60)]
    with (
        upstream(lambda question, *_: records(question, *big).to_wire()) as made,
        Resolver(constants={"clients.IDLE": 2.0}) as resolver,
    ):
        resolver.configure("hub.example", upstreams=[made])
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(0.5)
            sock.connect(("127.0.0.1", resolver.ports["w"]))
            data, sent = framed(wire_query("hub.example", 1)), 0
            with contextlib.suppress(TimeoutError, ConnectionError):
                while sent < 100_000:
                    sock.sendall(data)
                    sent += 1
            assert sent < 100_000
            assert memory(resolver) < 64 << 20
            assert addresses(resolver.ask("hub.example", tcp=True, address="::1"))
            sock.settimeout(2 * clients.IDLE)
            with contextlib.suppress(ConnectionError):  # in the end it is closed
                while sock.send(data):
                    time.sleep(0.05)


# --- in this process, with shorter times ---


class Served:
    """Listeners in this process whose questions are answered by a function."""

    def __init__(self, answer: Callable[[Caller, bytes], bool]) -> None:
        self.faults: list[Exception] = []
        self.loop = Loop(self.faults.append)
        self.full: list[tuple[str, str]] = []
        self.group = Connections(self.loop, lambda workload, text: self.full.append((workload, text)))
        self.sockets = four()
        self.port = self.sockets[0].getsockname()[1]
        self.listeners = Listeners(self.group, "w", [os.dup(s.fileno()) for s in self.sockets], answer)
        self._turns: Deadlines[int] = self.loop.deadlines(0.01, lambda key: None)

    def until(self, condition: Callable[[], Any], seconds: float = 5) -> None:
        """Go on until it is so."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            self.turn()

    def turn(self) -> None:
        """A round that ends soon, whatever happens."""
        self._turns.add(1, self.loop.now)
        self.loop.step()

    def client(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=5)

    def close(self) -> None:
        self.listeners.close()
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "IDLE", 0.1)
    monkeypatch.setattr(clients, "PAUSE", 0.05)


@pytest.mark.usefixtures("quick")
def test_who_says_nothing_is_not_kept() -> None:
    served = Served(lambda caller, data: True)
    with served.client() as silent, served.client() as slow:
        served.until(lambda: served.group.open == 2)
        began = time.monotonic()
        slow.send(b"\x0f")
        while served.group.open:
            with contextlib.suppress(OSError):
                slow.send(b"\0")  # a byte now and then is no question
            served.turn()
            assert time.monotonic() < began + 5
        assert is_over(silent)
    served.close()
    assert served.faults == []
    assert served.loop.descriptors == 0


@pytest.mark.usefixtures("quick")
def test_who_waits_for_an_answer_is_kept_for_a_while() -> None:
    taken: list[Caller] = []
    served = Served(lambda caller, data: taken.append(caller) or True)  # type: ignore[func-returns-value]
    with served.client() as sock:
        sock.sendall(framed(b"question"))
        served.until(lambda: taken)
        began = time.monotonic()
        served.until(lambda: time.monotonic() > began + 0.2)
        taken[0].way.reply(taken[0].address, b"answer")
        assert read_message(sock) == b"answer"
        sock.sendall(framed(b"question"))  # and this one is never answered
        served.until(lambda: not served.group.open)
        taken[1].way.reply(taken[1].address, b"too late")
    served.close()
    assert served.faults == []


@pytest.mark.usefixtures("quick")
def test_without_descriptors_connections_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(lambda caller, data: caller.way.reply(caller.address, data) or True)  # type: ignore[func-returns-value]
    with served.client() as sock:
        monkeypatch.setattr(socket.socket, "accept", _no_descriptors)
        served.until(lambda: served.full)
        assert served.full == [("w", "no connection can be taken: Too many open files")]
        monkeypatch.undo()
        sock.sendall(framed(b"question"))
        served.until(lambda: _readable(sock))
        assert read_message(sock) == b"question"
    served.close()
    assert served.faults == []


def _no_descriptors(sock: socket.socket) -> Any:
    raise OSError(24, os.strerror(24))


def _readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def test_connections_end_with_their_workload() -> None:
    taken: list[Caller] = []
    served = Served(lambda caller, data: taken.append(caller) or True)  # type: ignore[func-returns-value]
    with served.client() as sock:
        sock.sendall(framed(b"question"))
        served.until(lambda: taken)
        served.close()
        assert is_over(sock)
        taken[0].way.reply(taken[0].address, b"nobody takes it")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("127.0.0.1", served.port))  # and nobody has the port
    assert (served.group.open, served.loop.descriptors, served.faults) == (0, 0, [])


def test_a_fault_in_a_question_ends_its_connection_only() -> None:
    def fault(caller: Caller, data: bytes) -> bool:
        raise KeyError(data)

    served = Served(fault)
    with served.client() as sock:
        sock.sendall(framed(b"question"))
        served.until(lambda: served.faults)
        assert is_over(sock)
    assert served.group.open == 0
    served.close()


# --- one client and others ---

LONGEST = random.Random(7).randbytes(clients.LONGEST_ANSWER)


def answered(data: bytes) -> Callable[[Caller, bytes], bool]:
    """Whatever is asked, that is the answer."""

    def answer(caller: Caller, question: bytes) -> bool:
        caller.way.reply(caller.address, data)
        return True

    return answer


def test_who_asks_much_over_one_connection_does_not_keep_others_waiting() -> None:
    """However much he has sent, it is a few questions a round, and a round has those of all."""
    taken: list[bytes] = []

    def take(caller: Caller, data: bytes) -> bool:
        taken.append(data)
        return answered(b"answer")(caller, data)

    served = Served(take)
    with served.client() as flood, served.client() as other, socket.socket(type=socket.SOCK_DGRAM) as datagram:
        served.until(lambda: served.group.open == 2)
        flood.sendall(framed(b"flood" * 4) * 1000)
        other.sendall(framed(b"other"))
        datagram.sendto(b"datagram", ("127.0.0.1", served.port))
        rounds = 0
        while not {b"other", b"datagram"} < set(taken):
            served.turn()
            rounds += 1
        assert 0 < taken.count(b"flood" * 4) < 10 * rounds < 500
        served.until(lambda: len(taken) == 1002)
    served.close()
    assert served.faults == []


def waiting(served: Served, taken: list[Caller], client: socket.socket) -> None:
    """As many questions of one connection as may be unanswered."""
    client.sendall(framed(b"question") * clients.MAX_WAITING)
    served.until(lambda: len(taken) == clients.MAX_WAITING)


@pytest.mark.parametrize("reads", [False, True])
def test_a_client_has_room_for_so_many_answers(reads: bool) -> None:
    """The longest to all that he may ask at once are four megabytes; he is not kept for that who takes none."""
    taken: list[Caller] = []
    served = Served(lambda caller, data: taken.append(caller) or True)  # type: ignore[func-returns-value]
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(5)
        sock.connect(("127.0.0.1", served.port))
        waiting(served, taken, sock)
        held, got = [], bytearray()
        sock.setblocking(False)
        for caller in taken:
            caller.way.reply(caller.address, LONGEST)
            held.append(len(caller.way._out))  # type: ignore[attr-defined]
            if reads:
                served.until(lambda: _got(sock, got) >= len(held) * (2 + len(LONGEST)))
        assert max(held) <= clients.MAX_UNREAD + 2 + len(LONGEST)
        assert served.group.open == reads
        if reads:
            assert got == framed(LONGEST) * clients.MAX_WAITING
    served.close()
    assert served.faults == []


def _got(sock: socket.socket, got: bytearray) -> int:
    """Read what is there; how much it is by now."""
    with contextlib.suppress(BlockingIOError):
        while data := sock.recv(1 << 20):
            got += data
    return len(got)


def test_who_reads_late_is_read_no_further_until_then() -> None:
    """Where answers come at once."""
    taken = 0

    def take(caller: Caller, data: bytes) -> bool:
        nonlocal taken
        taken += 1
        return answered(LONGEST)(caller, data)

    count = 200
    served = Served(take)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(5)
        sock.connect(("127.0.0.1", served.port))
        sock.sendall(framed(b"question") * count)
        began = time.monotonic()
        served.until(lambda: time.monotonic() > began + 0.2)
        assert 0 < taken < count
        assert served.group.open == 1
        got = bytearray()
        sock.setblocking(False)
        served.until(lambda: _got(sock, got) >= count * (2 + len(LONGEST)), 20)
        assert got == framed(LONGEST) * count
    served.close()
    assert served.faults == []


# --- the end of a connection ---


def left(*ports: int) -> list[list[str]]:
    """Ends, state and queues of connections between these two ports."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()]
    wanted = {f"{port:04X}" for port in ports}
    return [line[1:5] for line in lines if {end.rpartition(":")[2] for end in line[1:3]} == wanted]


@pytest.mark.parametrize("ends", ["with his last question", "when he is idle", "with his workload"])
def test_who_has_no_room_for_an_answer_loses_nothing_of_it(ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What he has not got yet is the kernel's to bring, whoever ended the connection."""
    monkeypatch.setattr(clients, "IDLE", 0.1)
    served = Served(answered(LONGEST))
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(5)
        sock.connect(("127.0.0.1", served.port))
        sock.sendall(framed(b"question"))
        served.until(lambda: _readable(sock))
        if ends == "with his last question":
            sock.shutdown(socket.SHUT_WR)
        if ends == "with his workload":
            served.listeners.close()
        served.until(lambda: not served.group.open)
        assert read_message(sock) == LONGEST
        assert is_over(sock)
    served.close()
    assert served.faults == []


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("ends", ["the client", "his shutdown", "idle", "the workload", "rubbish"])
def test_nothing_is_left_of_a_connection_that_ended(
    ends: str, family: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No LAST_ACK that waits for a word that does not get here, and no TIME_WAIT at a port of ours."""
    monkeypatch.setattr(clients, "IDLE", 1.0 if ends == "idle" else 5)
    served = Served(lambda caller, data: data == b"question" and answered(b"answer")(caller, data))
    with socket.create_connection((LOOPBACK[family], served.port), timeout=5) as sock:
        sock.sendall(framed(b"question"))
        served.until(lambda: _readable(sock))
        assert read_message(sock) == b"answer"
        ports = served.port, sock.getsockname()[1]
        assert len(left(*ports)) == 2
        served.until(lambda: _acknowledged(*ports))
        match ends:
            case "the client":
                sock.close()
            case "his shutdown":
                sock.shutdown(socket.SHUT_WR)
            case "the workload":
                served.listeners.close()
            case "rubbish":
                sock.sendall(framed(b"rubbish"))
        served.until(lambda: not served.group.open)
        assert left(*ports) == []
    served.close()
    assert left(*ports) == []
    assert served.faults == []


def _acknowledged(*ports: int) -> bool:
    """Nothing waits in the queues of a connection."""
    return all(queues == f"{0:08X}:{0:08X}" for _, _, _, queues in left(*ports))
