"""Upstreams: honest, slow, silent, broken, and others who only say that they are one."""

from __future__ import annotations

import errno
import itertools
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from select import select
from types import SimpleNamespace
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import pytest

from conftest import cannot_run
from penstock.core import dns_codes as wire_code
from penstock.core import resolver_wire as wire
from penstock.core.dns_answers import MAX_RECORDS, Answer
from penstock.core.dns_records import MAX_PARAMETERS
from penstock.core.policy import Address
from penstock.resolver import loop as loop_module
from penstock.resolver import upstream as upstream_module
from penstock.resolver.loop import Deadlines, Loop
from penstock.resolver.troubles import Troubles
from penstock.resolver.upstream import (
    AGAIN,
    ALTOGETHER,
    LATELY,
    MAX_STRANGE,
    TRIES,
    TRY,
    Question,
    Share,
    Upstreams,
)

from .running import (
    AS_IT_IS,
    PATIENCE,
    Answers,
    Resolver,
    Upstream,
    addresses,
    answering,
    ede,
    eventually,
    rcode,
    records,
    upstream,
)

HUB = answering(hub="192.0.2.1 2001:db8::1")
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
LONG = 9.0
PATIENT = {"upstream.TRY": LONG}
"""Then nothing is asked twice, nor elsewhere, because a machine is slow."""


@contextmanager
def asking(
    *upstreams: Upstream,
    rules: tuple[str, ...] = ("hub.example", "*.cdn.example"),
    constants: Mapping[str, float] = AS_IT_IS,
) -> Iterator[Resolver]:
    with Resolver(constants=constants) as resolver:
        resolver.configure(*rules, upstreams=upstreams)
        yield resolver


def failing(code: str) -> Answers:
    def answer(question: dns.message.Message, *_: Any) -> bytes:
        reply = records(question)
        reply.set_rcode(dns.rcode.from_text(code))
        return reply.to_wire()

    return answer


def silent(question: dns.message.Message, *_: Any) -> None:
    return None


def good(question: dns.message.Message, address: str = "192.0.2.1") -> bytes:
    return records(question, f"{question.question[0].name} A {address}").to_wire()


def with_id(data: bytes, id: int) -> bytes:
    return (id & 0xFFFF).to_bytes(2) + data[2:]


# --- what goes out ---


@pytest.mark.parametrize("version", [4, 6])
def test_an_upstream_may_be_of_either_family(version: int) -> None:
    with upstream(HUB, LOOPBACK[version]) as made, asking(made) as resolver:
        assert addresses(resolver.ask("hub.example", "AAAA")) == ["2001:db8::1"]


def test_nothing_of_a_client_goes_out_but_the_question() -> None:
    """Neither the case of its letters, nor its id, nor what its EDNS says."""
    with upstream(HUB) as made, asking(made) as resolver:
        options = [
            dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"cookie!!"),
            dns.edns.GenericOption(dns.edns.OptionType.PADDING, b"secret" * 20),
        ]
        reply = resolver.ask("hUb.ExAmPlE", use_edns=0, options=options, payload=4000, id=1)
        plain = resolver.ask("hub.example", use_edns=False)
    assert reply.question[0].name.to_text() == "hUb.ExAmPlE."
    assert addresses(reply) == addresses(plain) == ["192.0.2.1"]
    assert (plain.edns, reply.edns) == (-1, 0)
    first, second = made.raw
    assert first[2:] == second[2:]
    assert b"\3hub\7example\0" in first
    asked = made.asked[0]
    assert (asked.options, asked.payload, asked.ednsflags) == ((), 1232, 0)


@pytest.mark.parametrize("flags", ["RD", "RD CD", "RD AD", "", "RD CD AD"])
@pytest.mark.parametrize("dnssec", [False, True])
@pytest.mark.parametrize("kind", ["A", "AAAA", "HTTPS"])
def test_the_bits_of_dnssec_are_passed(flags: str, dnssec: bool, kind: str) -> None:
    """But for CD where addresses are asked for."""
    wanted = dns.flags.from_text(flags)
    with upstream(HUB) as made, asking(made) as resolver:
        question = dns.message.make_query("hub.example", kind, want_dnssec=dnssec)
        question.flags = wanted
        reply = dns.query.udp(question, "127.0.0.1", 10, resolver.ports["w"])
    assert reply.flags & dns.flags.CD == wanted & dns.flags.CD
    assert made.asked[0].flags == (wanted & ~dns.flags.CD if kind in ("A", "AAAA") else wanted)
    assert bool(made.asked[0].ednsflags & dns.flags.DO) is dnssec


def test_a_client_cannot_have_forged_addresses_opened() -> None:
    """A server that validates gives them to who says CD."""

    def validating(question: dns.message.Message, *rest: Any) -> bytes:
        answer = good(question) if question.flags & dns.flags.CD else failing("SERVFAIL")(question, *rest)
        assert isinstance(answer, bytes)
        return answer

    with upstream(validating) as made, asking(made) as resolver:
        reply = resolver.ask("hub.example", flags=dns.flags.RD | dns.flags.CD)
        assert (rcode(reply), addresses(reply), ede(reply)) == ("SERVFAIL", [], [23])
        assert resolver.daemon.of(wire.Learn) == []


def test_ports_and_ids_cannot_be_guessed() -> None:
    count = 200
    with upstream(HUB) as made, asking(made) as resolver:
        for _ in range(count):
            resolver.ask("hub.example")
    ports, ids = [who[1] for who in made.askers], [asked.id for asked in made.asked]
    for found in (ports, ids):
        assert len(set(found)) > 0.9 * count
        steps = {(b - a) % 65536 for a, b in itertools.pairwise(found)}
        assert len(steps) > 0.9 * count


def test_the_same_question_of_many_is_asked_once() -> None:
    """Else who sends false answers would need to guess only one of many ids."""
    count = 100
    with upstream(silent) as made, asking(made, constants=PATIENT) as resolver:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.connect(("127.0.0.1", resolver.ports["w"]))
            for number in range(count):
                sock.send(dns.message.make_query("hub.example", "A", id=number, use_edns=0).to_wire())
            eventually(lambda: made.asked)
            resolver.ask("evil.example")  # all before it have been read
            assert len(made.asked) == 1
            made.udp.sendto(good(made.asked[0]), made.askers[0])
            replies = [dns.message.from_wire(sock.recv(4096)) for _ in range(count)]
        assert {reply.id for reply in replies} == set(range(count))
        assert all(addresses(reply) == ["192.0.2.1"] for reply in replies)
        assert len(resolver.daemon.of(wire.Learn)) == 1


# --- what comes back ---


def test_false_answers_are_not_believed() -> None:
    """Before the true one: another id, another question, no answer at all, and one from another port."""
    stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def answer(question: dns.message.Message, made: Upstream, who: Any) -> list[bytes]:
        false = good(question, "198.51.100.66")
        stranger.sendto(false, who)
        other = dns.message.make_query("other.example", "A", id=question.id)
        kind = dns.message.make_query("hub.example", "AAAA", id=question.id)
        return [
            with_id(false, question.id + 1),
            records(other, "other.example. A 198.51.100.66").to_wire(),
            records(kind, "hub.example. AAAA 2001:db8::66").to_wire(),
            question.to_wire(),
            b"",
            b"x" * 5000,
            good(question),
        ]

    with stranger, upstream(answer) as made, asking(made) as resolver:
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
        assert [learn.addresses for learn in resolver.daemon.of(wire.Learn)] == [((ip_address("192.0.2.1"), 60),)]


def test_who_guesses_meets_another_port() -> None:
    def answer(question: dns.message.Message, made: Upstream, who: Any) -> list[bytes]:
        if len(made.asked) > 1:
            return [good(question)]
        guesses = [with_id(good(question, "198.51.100.66"), question.id + n) for n in range(1, MAX_STRANGE + 1)]
        return [*guesses, good(question, "198.51.100.66")]

    with upstream(answer) as made, asking(made, constants=PATIENT) as resolver:
        began = time.monotonic()
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
        assert time.monotonic() - began < LONG
    assert made.askers[0] != made.askers[1]
    assert made.asked[0].id != made.asked[1].id


def broken(question: dns.message.Message, *_: Any) -> bytes:
    return good(question)[:-3]


@pytest.mark.parametrize("answer", [broken, failing("SERVFAIL"), failing("REFUSED"), failing("NOTAUTH")])
def test_the_next_server_is_asked_when_one_fails(answer: Answers) -> None:
    """For each name anew: what it says of one says nothing of others."""
    with (
        upstream(answer) as bad,
        upstream(HUB) as made,
        asking(bad, made, rules=("hub.example", "corp.example"), constants=PATIENT) as resolver,
    ):
        began = time.monotonic()
        for _ in range(2):
            assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
        bad.answer = answering(corp="192.0.2.7")
        assert addresses(resolver.ask("corp.example")) == ["192.0.2.7"]
        assert time.monotonic() - began < LONG
    assert (len(bad.asked), len(made.asked)) == (3, 2)


@pytest.mark.parametrize(("answer", "code"), [(broken, 22), (failing("SERVFAIL"), 23), (failing("REFUSED"), 23)])
def test_when_all_fail_so_does_the_answer(answer: Answers, code: int) -> None:
    with upstream(answer) as bad, asking(bad, constants=PATIENT) as resolver:
        began = time.monotonic()
        reply = resolver.ask("hub.example")
        assert time.monotonic() - began < LONG
    assert (rcode(reply), ede(reply)) == ("SERVFAIL", [code])


@contextmanager
def nobody() -> Iterator[tuple[Address, int]]:
    """A port of 127.0.0.1 that nobody else gets, and where nobody takes anything: it is for one sender only."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock, socket.socket() as tcp:
        for each in (sock, tcp):  # a program that says the same may bind there all the same
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(("127.0.0.1", 0))  # first: many a port is in TIME_WAIT
        port: int = tcp.getsockname()[1]
        sock.bind(("127.0.0.1", port))
        sock.connect(("127.0.0.1", 1))
        yield ip_address("127.0.0.1"), port


def test_where_nobody_is_nobody_is_waited_for() -> None:
    with (
        upstream(HUB) as made,
        upstream(HUB) as gone,
        nobody() as gone.server,
        asking(gone, made, constants=PATIENT) as resolver,
    ):
        began = time.monotonic()
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
        resolver.configure("hub.example", upstreams=[gone])
        reply = resolver.ask("hub.example")
        assert (rcode(reply), ede(reply)) == ("SERVFAIL", [22])
        resolver.configure("hub.example", upstreams=[])
        assert rcode(resolver.ask("hub.example")) == "SERVFAIL"
        assert time.monotonic() - began < LONG


def test_silence_is_a_trouble_and_its_end_is_told() -> None:
    each = 0.5
    with upstream(silent) as made, asking(made, constants={"upstream.TRY": each}) as resolver:
        began = time.monotonic()
        reply = resolver.ask("hub.example")
        assert time.monotonic() - began >= TRIES * each
        assert (rcode(reply), ede(reply)) == ("SERVFAIL", [22])
        (trouble,) = resolver.daemon.waits_for(wire.Trouble)
        assert trouble == wire.Trouble("upstream", "", f"no answer from 127.0.0.1 port {made.server[1]}")
        assert len(made.asked) == TRIES
        assert len(set(made.askers)) == TRIES
        made.answer = HUB
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
        assert resolver.daemon.waits_for(wire.Trouble, 2)[1] == wire.Trouble("ok:upstream", "", "")


def test_what_was_told_of_servers_ends_with_them() -> None:
    with upstream(HUB) as made, asking() as resolver:
        assert rcode(resolver.ask("hub.example")) == "SERVFAIL"
        assert resolver.daemon.waits_for(wire.Trouble)[0].text == "there is no server to ask"
        resolver.configure("hub.example", upstreams=[made])
        assert resolver.daemon.waits_for(wire.Trouble, 2)[1] == wire.Trouble("ok:upstream", "", "")
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
        assert len(resolver.daemon.of(wire.Trouble)) == 2


def test_an_answer_of_a_server_that_is_none_any_more_counts() -> None:
    udp = socket.SOCK_DGRAM
    with upstream(silent) as made, asking(made, constants=PATIENT) as resolver, socket.socket(type=udp) as sock:
        sock.settimeout(10)
        sock.connect(("127.0.0.1", resolver.ports["w"]))
        sock.send(dns.message.make_query("hub.example", "A").to_wire())
        eventually(lambda: made.asked)
        resolver.configure("hub.example", upstreams=[])
        assert rcode(resolver.ask("hub.example", "AAAA")) == "SERVFAIL"
        made.udp.sendto(good(made.asked[0]), made.askers[0])
        assert addresses(dns.message.from_wire(sock.recv(4096))) == ["192.0.2.1"]


def test_a_late_answer_to_a_try_that_is_over_counts_for_nothing() -> None:
    with upstream(silent) as made, asking(made) as resolver:

        def late(question: dns.message.Message, made: Upstream, who: Any) -> bytes | None:
            if len(made.asked) < 2:
                return None
            made.udp.sendto(good(made.asked[0], "198.51.100.66"), made.askers[0])
            return good(question)

        made.answer = late
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]


@pytest.mark.parametrize("code", ["FORMERR", "NOTIMP"])
@pytest.mark.parametrize("header_only", [False, True])
def test_a_server_without_edns_is_asked_without(code: str, header_only: bool) -> None:
    def answer(question: dns.message.Message, *_: Any) -> bytes:
        if question.edns < 0:
            return good(question)
        data = failing(code)(question, made, None)
        assert isinstance(data, bytes)
        return data[:4] + bytes(8) if header_only else data

    with upstream(answer) as made, asking(made) as resolver:
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
    assert [asked.edns for asked in made.asked] == [0, -1]


# --- whom to ask first ---


class Alone:
    """No process, a clock that only a test moves, and servers that say only what it says."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self.now = 1000.0
        self.said: list[wire.Trouble] = []
        self.faults: list[Exception] = []
        self.loop = Loop(self.faults.append)
        self._sockets = sockets
        self._questions: list[tuple[socket.socket, bytes, Any]] = []
        self._turns: Deadlines[int] = self.loop.deadlines(0, lambda key: None)
        self.shares = {workload: Share(workload) for workload in ("w", "v")}
        self.upstreams = Upstreams(self.loop, Troubles(self.said.append))
        self.configure(*(sock.getsockname() for sock in sockets))

    def configure(self, *servers: tuple[str, int]) -> None:
        self.upstreams.configure([(ip_address(address), port) for address, port in servers])

    def ask(self, name: str = "hub.example", workload: str = "w") -> list[Answer | None]:
        """What it is answered, once it is."""
        answers: list[Answer | None] = []
        self.loop.now = self.now
        question = Question(name, wire_code.A, True, False, False, False)
        self.upstreams.ask(question, answers.append, self.shares[workload])
        return answers

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self._turns.add(0, self.now)
        self.loop.step()

    def asked(self) -> list[int]:
        """Which servers got a question since this was last looked at: one at least."""
        readable = select(self._sockets, [], [], PATIENCE)[0]
        self._questions = [(sock, *sock.recvfrom(4096)) for sock in readable]
        return [self._sockets.index(sock) for sock in readable]

    def answer(self, code: str = "NOERROR", flags: str = "") -> None:
        """For those that were asked when that was last looked at."""
        for sock, data, who in self._questions:
            reply = records(dns.message.from_wire(data))
            reply.set_rcode(dns.rcode.from_text(code))
            reply.flags |= dns.flags.from_text(flags)
            sock.sendto(reply.to_wire(), who)
            self.loop.step()  # its clock stands, so it waits for the packet

    def tried(self) -> list[int]:
        """Whom a look-up asks that nobody answers; it has ended then."""
        answers, servers = self.ask(), list[int]()
        while not answers:
            servers += self.asked()
            self.passes(TRY)
        assert answers == [None]
        return servers


@contextmanager
def alone(monkeypatch: pytest.MonkeyPatch, count: int) -> Iterator[Alone]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        made: list[Alone] = []
        clock = SimpleNamespace(monotonic=lambda: made[0].now if made else 1000.0)
        monkeypatch.setattr(loop_module, "time", clock)
        made.append(Alone(sockets))
        yield made[0]
        assert made[0].faults == []


def test_no_rcode_moves_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else who has a name for which one fails could have all others asked of the next."""
    with alone(monkeypatch, 2) as made:
        for code in ("SERVFAIL", "REFUSED", "NOTAUTH"):
            answers = made.ask("evil.example")
            assert made.asked() == [0]
            made.answer(code)
            assert made.asked() == [1]
            made.answer()
            assert [answer and answer.rcode for answer in answers] == [wire_code.NOERROR]
            made.ask()
            assert made.asked() == [0]


def test_who_is_silent_comes_after_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more of them than one look-up can try, too: the next begins with those that were not."""
    with alone(monkeypatch, 5) as made:
        assert made.tried() == [0, 1, 2]
        answers = made.ask()
        assert made.asked() == [3]
        made.passes(TRY)
        assert made.asked() == [4]
        made.answer()
        assert answers != [None]
        made.ask()
        assert made.asked() == [4]
        made.answer("SERVFAIL")  # the others follow, first those that were asked longest ago
        assert made.asked() == [0]


def test_when_all_are_silent_all_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    with alone(monkeypatch, 8) as made:
        assert [server for _ in range(8) for server in made.tried()] == [*range(8)] * 3


def test_the_order_is_as_configured_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    with alone(monkeypatch, 3) as made:

        def first_and_good(server: int) -> None:
            answers = made.ask()
            assert made.asked() == [server]
            made.answer()
            assert answers != [None]

        made.ask()
        assert made.asked() == [0]
        made.passes(TRY)
        assert made.asked() == [1]
        made.answer()
        made.passes(AGAIN - 1)
        first_and_good(1)
        made.passes(1)
        made.ask()
        assert made.asked() == [0]  # one look-up finds out that it still is, for all
        first_and_good(1)
        made.passes(TRY)
        assert made.asked() == [1]
        made.answer()
        first_and_good(1)
        made.passes(AGAIN)
        first_and_good(0)
        first_and_good(0)


def test_a_look_up_tries_but_one_that_was_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    with alone(monkeypatch, 3) as made:
        made.ask()
        for server in range(3):
            assert made.asked() == [server]
            if server < 2:
                made.passes(TRY)
        made.answer()
        made.passes(AGAIN)
        for server in (0, 1):
            made.ask()
            assert made.asked() == [server]
            made.passes(TRY)
            assert made.asked() == [2]
            made.answer()
        made.ask()
        assert made.asked() == [2]


def test_who_answers_others_meanwhile_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that name that is slow, as whoever has a zone can make it."""
    with alone(monkeypatch, 2) as made:
        made.ask("slow.evil.example")
        assert made.asked() == [0]
        made.ask()
        assert made.asked() == [0]
        made.answer()
        made.passes(TRY)
        assert made.asked() == [1]
        made.ask()
        assert made.asked() == [0]


def test_a_slow_name_of_one_workload_moves_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody else asks anything meanwhile, so that no answer shows that the server lives."""
    with alone(monkeypatch, 2) as made:
        made.ask("slow.evil.example")
        assert made.asked() == [0]
        made.passes(TRY)
        assert made.asked() == [1]
        made.ask(workload="v")
        assert made.asked() == [0]
        made.answer()
        made.ask()
        assert made.asked() == [0], "whoever it answered"


def test_of_servers_that_are_no_more_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with alone(monkeypatch, 2) as made:
        made.tried()
        assert len(made.shares["w"].silent) == 2
        made.configure(made.upstreams.servers[1].where)
        made.ask()
        assert made.asked() == [1]
        assert not made.shares["w"].silent


def test_who_cannot_be_reached_comes_after_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """No route, as the broadcast address has none for us; or an ICMP error."""
    with alone(monkeypatch, 1) as made, nobody() as (address, port):
        made.configure(
            ("255.255.255.255", 53), (str(address), port), ("127.0.0.1", made.upstreams.configured[0][1])
        )
        made.ask()
        made.loop.step()
        assert made.asked() == [0]
        assert [server in made.shares["w"].silent for server in made.upstreams.servers] == [True, True, False]
        made.ask()
        assert made.asked() == [0]


# --- what is told ---


@pytest.mark.parametrize(("code", "flags"), [("SERVFAIL", ""), ("NOERROR", "TC"), ("FORMERR", "")])
def test_of_who_answers_no_silence_is_told(monkeypatch: pytest.MonkeyPatch, code: str, flags: str) -> None:
    """Truncated, and then nobody takes TCP; or nothing comes when it is asked without EDNS."""
    monkeypatch.setattr(upstream_module, "LATELY", 0.0)  # whatever others were answered
    with alone(monkeypatch, 1) as made:
        answers = made.ask()
        assert made.asked() == [0]
        made.answer(code, flags)
        while not answers:
            made.passes(TRY)
        assert made.said == []
        assert not made.shares["w"].silent


def test_a_slow_name_is_no_silence_of_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    with alone(monkeypatch, 1) as made:
        made.ask()
        made.asked()
        made.answer()
        made.tried()
        assert made.said == []
        made.passes(LATELY - ALTOGETHER)
        made.tried()
        where = made.upstreams.configured[0][1]
        assert made.said == [wire.Trouble("upstream", "", f"no answer from 127.0.0.1 port {where}")]
        made.ask()
        made.asked()
        made.answer("SERVFAIL")
        assert made.said[1:] == [wire.Trouble("ok:upstream", "", "")]


def test_who_was_not_asked_is_not_said_to_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    with alone(monkeypatch, 4) as made:
        made.tried()
        ports = [port for _, port in made.upstreams.configured[:3]]
        assert made.said[0].text == "no answer from " + ", ".join(f"127.0.0.1 port {port}" for port in ports)


def test_without_descriptors_nobody_is_said_to_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: Any) -> None:
        raise OSError(errno.EMFILE, "none left")

    with alone(monkeypatch, 2) as made:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", none_left)
            assert made.ask() == [None]
        assert made.said == [wire.Trouble("descriptors", "", "an upstream cannot be asked: none left")]
        assert not made.shares["w"].silent


def test_others_are_not_said_to_be_silent_for_those_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with alone(monkeypatch, 1) as made:
        answers = made.ask()
        made.configure()
        while not answers:
            made.passes(TRY)
        assert (answers, made.said) == ([None], [])


# --- truncated, and over TCP ---


def truncated(question: dns.message.Message, *_: Any) -> bytes:
    reply = records(question)
    reply.flags |= dns.flags.TC
    return reply.to_wire()


MANY = [f"192.0.2.{number}" for number in range(1, 61)]


def many(question: dns.message.Message, *_: Any) -> bytes:
    return records(question, *(f"hub.example. A {address}" for address in MANY)).to_wire()


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_truncated_is_asked_again_over_tcp(version: int) -> None:
    with upstream(truncated, LOOPBACK[version], tcp=many) as made, asking(made) as resolver:
        reply = resolver.ask("hub.example", use_edns=0, payload=4096)
        assert addresses(reply) == sorted(MANY)
        short = resolver.ask("hub.example", use_edns=False)
        assert (addresses(short), short.flags & dns.flags.TC) == ([], dns.flags.TC)
        assert len(short.to_wire()) <= 512
        assert addresses(resolver.ask("hub.example", tcp=True, use_edns=False)) == sorted(MANY)
    assert made.over_tcp == 3
    assert len({asked.id for asked in made.asked}) > 3


@pytest.mark.parametrize(
    "over_tcp", [truncated, broken, silent, failing("SERVFAIL"), lambda q, *_: [with_id(good(q), q.id + 1)]]
)
def test_over_tcp_too_the_next_server_is_asked(over_tcp: Answers) -> None:
    with upstream(truncated, tcp=over_tcp) as bad, upstream(HUB) as made, asking(bad, made) as resolver:
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]


def test_what_is_truncated_over_tcp_too_is_no_answer() -> None:
    """Who got it would take it for a name without addresses."""
    with upstream(truncated) as made, asking(made) as resolver:
        for tcp in (False, True):
            reply = resolver.ask("hub.example", tcp=tcp)
            assert (rcode(reply), ede(reply)) == ("SERVFAIL", [23])
    assert made.over_tcp == 2


def records_beyond(question: dns.message.Message, *_: Any) -> bytes:
    return records(question, *["hub.example. A 192.0.2.1"] * (MAX_RECORDS + 1)).to_wire(max_size=65535)


def parameters_beyond(question: dns.message.Message, *_: Any) -> bytes:
    keys = " ".join(f"key{100 + number}" for number in range(MAX_PARAMETERS + 1))
    return records(question, f"hub.example. HTTPS 1 . {keys}").to_wire()


@pytest.mark.parametrize(("kind", "over_tcp"), [("A", records_beyond), ("HTTPS", parameters_beyond)])
def test_an_answer_over_a_bound_of_ours_fails_and_is_told(kind: str, over_tcp: Answers) -> None:
    with upstream(truncated, tcp=over_tcp) as made, asking(made) as resolver:
        reply = resolver.ask("hub.example", kind)
        assert (rcode(reply), ede(reply)) == ("SERVFAIL", [23])
        (trouble,) = resolver.daemon.waits_for(wire.Trouble)
        assert (trouble.code, trouble.workload) == ("answer", "")
        assert resolver.daemon.of(wire.Learn) == []


def test_a_server_without_tcp_fails_at_once() -> None:
    with upstream(truncated) as made, asking(made, constants=PATIENT) as resolver:
        made.tcp.shutdown(socket.SHUT_RDWR)  # it stays bound
        began = time.monotonic()
        assert rcode(resolver.ask("hub.example")) == "SERVFAIL"
        assert time.monotonic() - began < LONG


def test_an_answer_over_tcp_may_be_long_and_come_in_pieces() -> None:
    def pieces(question: dns.message.Message, *_: Any) -> bytes:
        name = "_big.cdn.example."
        return records(question, *(f'{name} TXT "{"x" * 200}{n}"' for n in range(250))).to_wire(max_size=65535)

    with upstream(truncated, tcp=pieces) as made, asking(made, rules=("_big.cdn.example",)) as resolver:
        reply = resolver.ask("_big.cdn.example", "TXT", tcp=True)
    assert sum(len(rrset) for rrset in reply.answer) == 250
    assert len(reply.to_wire()) > 50_000


# --- a real one ---


@pytest.fixture(scope="module")
def dnsmasq() -> Iterator[tuple[Address, int]]:
    program = shutil.which("dnsmasq", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        cannot_run("needs dnsmasq")
    with nobody() as where, served(program, where):
        yield where


@contextmanager
def served(program: str, where: tuple[Address, int]) -> Iterator[None]:
    options = [
        "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file=", "--user=",
        "--bind-interfaces", "--listen-address=127.0.0.1", f"--port={where[1]}", "--local=/example/",
        "--host-record=hub.example,192.0.2.1,2001:db8::1", "--cname=www.example,hub.example",
        *(f"--host-record=many.example,{address}" for address in MANY),
        "--txt-record=_sip.example,some text", "--srv-host=_sip._udp.example,hub.example,5060",
    ]  # fmt: skip
    process = subprocess.Popen([program, *options], stderr=subprocess.DEVNULL)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            eventually(lambda: sock.connect_ex((str(where[0]), where[1])) == 0)
        yield
    finally:
        process.kill()
        process.wait()


def test_with_a_real_server(dnsmasq: tuple[Address, int]) -> None:
    rules = ("hub.example", "www.example", "many.example", "none.example", "_sip.example", "_sip._udp.example")
    with upstream(silent) as made:
        made.server = dnsmasq
        with asking(made, rules=rules) as resolver:
            for tcp in (False, True):
                assert addresses(resolver.ask("hub.example", "A", tcp=tcp)) == ["192.0.2.1"]
                assert addresses(resolver.ask("hub.example", "AAAA", tcp=tcp)) == ["2001:db8::1"]
                assert addresses(resolver.ask("www.example", "A", tcp=tcp)) == ["192.0.2.1"]
                assert rcode(resolver.ask("none.example", tcp=tcp)) == "NXDOMAIN"
                assert rcode(resolver.ask("elsewhere.example", tcp=tcp)) == "NXDOMAIN"
            assert addresses(resolver.ask("many.example", payload=4096)) == sorted(MANY)
            reply = resolver.ask("_sip.example", "TXT")
            assert reply.answer[0][0].to_text() == '"some text"'
            reply = resolver.ask("_sip._udp.example", "SRV")
            assert reply.answer[0][0].target == dns.name.from_text("hub.example")
            assert rcode(resolver.ask("hub.example", "TXT")) == "NOERROR"
            assert {learn.name for learn in resolver.daemon.of(wire.Learn)} == {
                "hub.example", "www.example", "many.example",
            }  # fmt: skip
