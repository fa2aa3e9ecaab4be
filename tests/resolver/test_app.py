"""The process: what it is told, what it survives, and its end."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dns.message
import pytest

from conftest import cannot_run
from penstock.core import resolver_wire as wire
from penstock.core.resolver_wire import THERE
from penstock.resolver import app, rights
from penstock.resolver.loop import Deadlines
from penstock.resolver.service import Service

from .running import (
    Resolver,
    Upstream,
    addresses,
    answering,
    ede,
    eventually,
    four,
    rcode,
    read_message,
    records,
    upstream,
)

HUB = answering(hub="192.0.2.1 2001:db8::1")


@pytest.fixture
def server() -> Iterator[Upstream]:
    with upstream(HUB) as made:
        yield made


def test_it_is_quiet_and_ends_with_its_link(server: Upstream) -> None:
    with Resolver() as resolver:
        resolver.configure("hub.example", upstreams=[server])
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
    # its status and what it said are looked at there


def test_it_ends_while_it_is_at_work(server: Upstream) -> None:
    server.answer = lambda *_: None
    with Resolver() as resolver:
        resolver.configure("*.cdn.example", upstreams=[server])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for number in range(50):
                question = dns.message.make_query(f"n{number}.cdn.example", "A")
                sock.sendto(question.to_wire(), ("127.0.0.1", resolver.ports["w"]))
            eventually(lambda: len(server.asked) >= 50)


SOON = 1.0
"""Seconds: that soon somebody is told that he gets no answer; a try at the upstream takes longer."""
WHILE = 3
"""Seconds that it outlives its daemon there."""


def test_without_the_daemon_look_ups_fail_at_once_and_some_seconds_later_it_ends(server: Upstream) -> None:
    question = dns.message.make_query("hub.example", "A").to_wire()
    with Resolver(there=WHILE) as resolver:
        resolver.configure("hub.example", upstreams=[server])
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
        there = "127.0.0.1", resolver.ports["w"]
        with socket.create_connection(there, timeout=5) as before:
            before.sendall(len(question).to_bytes(2) + question)
            assert addresses(dns.message.from_wire(read_message(before))) == ["192.0.2.1"]
            began = time.monotonic()
            resolver.link.shutdown(socket.SHUT_RDWR)
            for tcp in (False, True):
                for name in ("hub.example", "evil.example"):
                    asked = time.monotonic()
                    reply = resolver.ask(name, tcp=tcp)
                    assert time.monotonic() - asked < SOON
                    assert (rcode(reply), ede(reply), addresses(reply)) == ("SERVFAIL", [14], [])
            before.sendall(len(question).to_bytes(2) + question)
            assert rcode(dns.message.from_wire(read_message(before))) == "SERVFAIL"
        while time.monotonic() < began + WHILE - 1:
            assert rcode(resolver.ask("hub.example")) == "SERVFAIL"
            time.sleep(0.1)
        assert resolver.process.wait(3) == 0
        assert WHILE <= time.monotonic() - began < WHILE + 2
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(there, timeout=5)


def test_who_is_told_to_leave_does_so_at_once(server: Upstream) -> None:
    with Resolver(there=THERE) as resolver:
        resolver.configure("hub.example", upstreams=[server])
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
        resolver.daemon.say(wire.Leave())
        assert resolver.process.wait(1) == 0


class Alone:
    """The resolver in this process, for one round of its loop after the other, and alarms that it set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, there: float) -> None:
        self.alarms: list[float] = []
        monkeypatch.setattr(signal, "alarm", self.alarms.append)
        monkeypatch.setattr(app, "THERE", there)
        self.daemon, self.link = socket.socketpair()
        self.app = app.App(self.link)

    def end(self) -> float:
        """The daemon ends; how many seconds it is outlived."""
        self.daemon.close()
        began = time.monotonic()
        self.app.run()
        self.link.close()
        return time.monotonic() - began


def test_it_goes_on_for_so_long_without_the_daemon_and_not_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Alone(monkeypatch, 0.3)
    assert 0.3 <= alone.end() < 1
    assert alone.alarms == [0.6]


def test_a_fault_does_not_keep_it_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(service: Service) -> None:
        raise KeyError(service)

    monkeypatch.setattr(Service, "abandoned", fault)
    alone = Alone(monkeypatch, 0.1)
    limit: Deadlines[int] = alone.app._loop.deadlines(2, alone.app._end)
    limit.add(0, time.monotonic())
    assert alone.end() < 1
    assert alone.alarms == [0.2]


def test_who_hangs_is_ended_by_an_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    alarms: list[float] = []
    monkeypatch.setattr(signal, "alarm", alarms.append)
    app.outlive()
    assert alarms == [2 * THERE]


def test_nobody_listens_any_more_when_told_so(server: Upstream) -> None:
    with Resolver() as resolver:
        resolver.configure("hub.example", upstreams=[server])
        resolver.configure("hub.example", workload="v")
        port = resolver.ports["w"]
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
        resolver.daemon.say(wire.Unlisten("w"))
        resolver.daemon.say(wire.Unlisten("never"))
        assert addresses(resolver.ask("hub.example", workload="v")) == ["192.0.2.1"]
        for address in ("127.0.0.1", "::1"):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=5)
        resolver.listen("w")
        resolver.configure("hub.example")
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]


def test_other_sockets_take_the_place_of_those_before(server: Upstream) -> None:
    with Resolver() as resolver:
        resolver.configure("hub.example", upstreams=[server])
        first = resolver.ports["w"]
        assert resolver.listen("w") != first
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", first), timeout=5)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_sockets_are_a_trouble(server: Upstream, count: int) -> None:
    with Resolver() as resolver:
        sockets = four()
        resolver.daemon.say(wire.Listen("x"), [sock.fileno() for sock in sockets[:count]])
        for sock in sockets:
            sock.close()
        (trouble,) = resolver.daemon.waits_for(wire.Trouble)
        assert (trouble.code, trouble.workload) == ("listen", "x")
        resolver.configure("hub.example", upstreams=[server])
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]


def test_a_host_without_ipv6_has_two(server: Upstream) -> None:
    with Resolver() as resolver:
        sockets = four()
        resolver.ports["w"] = sockets[0].getsockname()[1]
        resolver.daemon.say(wire.Listen("w"), [sock.fileno() for sock in sockets[:2]])
        for sock in sockets:
            sock.close()
        resolver.configure("hub.example", upstreams=[server])
        for tcp in (False, True):
            assert addresses(resolver.ask("hub.example", tcp=tcp)) == ["192.0.2.1"]
        assert resolver.daemon.of(wire.Trouble) == []


def test_it_says_that_it_is_alive() -> None:
    with Resolver(constants={"app.ALIVE_EVERY": 1}) as resolver:
        assert resolver.daemon.waits_for(wire.Alive, 2)


@pytest.mark.root
def test_it_is_nobody() -> None:
    with Resolver() as resolver:
        resolver.configure("hub.example", upstreams=[])
        resolver.ask("evil.example")
        status = Path(f"/proc/{resolver.process.pid}/status").read_text()
        found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert found["Uid"].split() == found["Gid"].split() == [str(rights.ID)] * 4
        assert (found["CapEff"], found["CapPrm"], found["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")


# --- descriptors ---


def test_without_descriptors_it_fails_and_goes_on(server: Upstream) -> None:
    """Each look-up needs one, and there are fewer than look-ups."""
    if shutil.which("prlimit") is None:
        cannot_run("needs prlimit")
    server.answer = lambda *_: None
    with Resolver("prlimit", "--nofile=40") as resolver, ExitStack() as stack:
        names = [f"n{number}.example" for number in range(100)]
        resolver.configure(*names, "hub.example", upstreams=[server])
        sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.settimeout(10)
        for name in names:
            sock.sendto(dns.message.make_query(name, "A").to_wire(), ("127.0.0.1", resolver.ports["w"]))
        for _ in range(50):
            assert rcode(dns.message.from_wire(sock.recv(4096))) == "SERVFAIL"
        codes = {trouble.code for trouble in resolver.daemon.waits_for(wire.Trouble)}
        assert "descriptors" in codes
        held = [
            stack.enter_context(socket.create_connection(("127.0.0.1", resolver.ports["w"]))) for _ in range(20)
        ]
        eventually(lambda: "connections" in {trouble.code for trouble in resolver.daemon.of(wire.Trouble)})
        for other in held:
            other.close()
        server.answer = HUB
        assert eventually(lambda: addresses(resolver.ask("hub.example", tcp=True))) == ["192.0.2.1"]


def test_it_may_have_as_many_as_it_needs() -> None:
    with Resolver() as resolver:
        resolver.configure("hub.example", upstreams=[])
        resolver.ask("evil.example")
        limits = Path(f"/proc/{resolver.process.pid}/limits").read_text().splitlines()
        (line,) = (line for line in limits if line.startswith("Max open files"))
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        assert int(line.split()[3]) == min(hard, rights.MAX_FILES)


# --- whatever may come ---


def mutated(draw: random.Random, data: bytes) -> bytes:
    mutant = bytearray(data)
    for _ in range(draw.randrange(1, 5)):
        match draw.randrange(3):
            case 0:
                mutant[draw.randrange(len(mutant))] = draw.randrange(256)
            case 1 if len(mutant) > 1:
                del mutant[draw.randrange(1, len(mutant)) :]
            case _:
                at = draw.randrange(len(mutant))
                mutant[at:at] = draw.randbytes(draw.randrange(1, 20))
    return bytes(mutant)


def test_it_survives_whatever_clients_and_upstreams_send(server: Upstream, count: int) -> None:
    draw = random.Random(5)

    def answer(question: dns.message.Message, made: Upstream, who: object) -> Any:
        name = question.question[0].name.to_text()
        if name == "hub.example.":
            return HUB(question, made, who)
        texts = f"{name} CNAME b.test.", "b.test. A 192.0.2.1", f"{name} HTTPS 1 . ipv4hint=192.0.2.1 port=1"
        good = records(question, *texts).to_wire()
        return good if draw.random() < 0.2 else good[:2] + mutated(draw, good)[2:]

    server.answer = answer
    rounds, names = 20_000 // count, [f"n{number}.example" for number in range(2000)]
    with Resolver() as resolver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        resolver.configure("hub.example", *names, upstreams=[server])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.connect(("127.0.0.1", resolver.ports["w"]))
        for number in range(rounds):
            kind = draw.choice(("A", "A", "A", "A", "AAAA", "HTTPS", "SOA", "TXT"))
            question = dns.message.make_query(draw.choice(names), kind, use_edns=draw.choice((0, False))).to_wire()
            sock.send(question if draw.random() < 0.5 else mutated(draw, question))
            if number % 50 == 0:
                assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
                with contextlib.suppress(BlockingIOError):
                    while sock.recv(65535, socket.MSG_DONTWAIT):
                        pass
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
        assert len(server.asked) > rounds / 10
        learned = {learn.name for learn in resolver.daemon.of(wire.Learn)}
        assert len(learned) > rounds / 200
        assert learned <= {"hub.example", *names}


def test_ten_thousand_names_of_fifty_addresses_are_held_in_little(server: Upstream, count: int) -> None:
    """The upstream's answers are put together by hand: the library would take longer than all else."""

    def answer(question: dns.message.Message, made: Upstream, *_: object) -> bytes:
        asked = made.raw[-1]
        end = asked.index(b"\0", 12) + 5
        start = len(made.raw) * 50 % 60_000
        parts = [
            bytes.fromhex("c00c000100010000003c0004c633") + (start + number).to_bytes(2) for number in range(50)
        ]
        return asked[:2] + bytes.fromhex("81800001003200000000") + asked[12:end] + b"".join(parts)

    server.answer = answer
    names = [f"n{number}.hub.example" for number in range(10_000)]
    with Resolver() as resolver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        resolver.configure(*names, upstreams=[server])
        sock.settimeout(10)
        sock.connect(("127.0.0.1", resolver.ports["w"]))

        def ask(name: str) -> None:
            wanted = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
            sock.send(bytes.fromhex("000101000001000000000001") + wanted + bytes.fromhex("0000010001") + EDNS)
            reply = sock.recv(4096)
            assert reply[2:8] == bytes.fromhex("818000010032"), reply[:20]

        ask(names[0])
        before = _resident(resolver)
        for name in names[: 10_000 // count]:
            ask(name)
        assert _resident(resolver) - before < (48 << 20) // count
        assert _resident(resolver) < 96 << 20
        assert len(resolver.daemon.of(wire.Learn)) >= 10_000 // count


EDNS = bytes.fromhex("0000291000000000000000")


def _resident(resolver: Resolver) -> int:
    fields = Path(f"/proc/{resolver.process.pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
