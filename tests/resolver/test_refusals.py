"""Refused questions: the daemon is told before the client, and a flood costs it little."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import dns.message
import pytest

from penstock.core import resolver_wire as wire
from penstock.resolver.refusals import MAX_TOLD, PATIENCE

from .running import Resolver, ede, eventually, rcode, read_message


@contextmanager
def asking(*rules: str, search: tuple[str, ...] = ()) -> Iterator[Resolver]:
    with Resolver() as resolver:
        resolver.configure(*(rules or ("hub.example",)), upstreams=[], search=search)
        yield resolver


def told(resolver: Resolver, count: int) -> list[wire.Refused]:
    """What the daemon heard, once that stands for so many questions."""
    heard = resolver.daemon.of
    eventually(lambda: sum(refused.count for refused in heard(wire.Refused)) >= count)
    assert sum(refused.count for refused in heard(wire.Refused)) == count
    return heard(wire.Refused)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("tcp", [False, True])
def test_the_daemon_can_see_who_asks(address: str, tcp: bool) -> None:
    """While the client waits, its socket is there, at the address that the daemon is told."""
    with asking() as resolver:
        resolver.daemon.settle = lambda message: None
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.connect((address, resolver.ports["w"]))
            data = dns.message.make_query("evil.example", "A").to_wire()
            sock.send(len(data).to_bytes(2) + data if tcp else data)
            (refused,) = resolver.daemon.waits_for(wire.Refused)
            resolver.daemon.say(wire.Settled((refused.id,), True))
            assert sock.recv(4096)
            assert (str(refused.client[0]), refused.client[1]) == sock.getsockname()[:2]
            assert refused.protocol == ("tcp" if tcp else "udp")


def test_the_client_waits_for_the_daemon_but_not_long() -> None:
    with asking() as resolver:
        resolver.daemon.settle = lambda message: None
        began = time.monotonic()
        assert rcode(resolver.ask("evil.example")) == "NXDOMAIN"
        assert time.monotonic() - began >= PATIENCE
        (refused,) = resolver.daemon.of(wire.Refused)
        resolver.daemon.say(wire.Settled((refused.id,), True))  # too late
        resolver.daemon.settle = lambda message: True
        assert rcode(resolver.ask("worse.example")) == "NXDOMAIN"


def test_what_is_alike_within_a_second_is_counted() -> None:
    with asking() as resolver:
        began = time.monotonic()
        for number in range(20):
            kind = "AAAA" if number % 2 else "A"
            reply = resolver.ask("evil.example", kind)
            assert (rcode(reply), ede(reply)) == ("NXDOMAIN", [15])
        seconds = int(time.monotonic() - began) + 2  # those in which it may have been asked
        first, *later = told(resolver, 20)
        assert (first.count, first.id > 0) == (1, True)
        assert {(r.id, r.name, r.reason) for r in later if r.id == 0} == {(0, "evil.example", "name")}
        assert 1 + len(later) <= 2 * seconds


def test_a_flood_of_names_is_told_in_few_messages() -> None:
    count = 3000
    with asking() as resolver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.connect(("127.0.0.1", resolver.ports["w"]))
        for number in range(count):
            sock.send(dns.message.make_query(f"n{number}.evil.example", "A").to_wire())
            if number % 100 == 99:
                for _ in range(100):
                    sock.recv(4096)
        said = told(resolver, count)
        assert all(r.name.endswith(".evil.example") for r in said if r.reason == "name")
        rest = [r for r in said if r.reason != "name"]
        assert {(r.name, r.reason, r.id) for r in rest} == {("", "overflow", 0)}
        assert len(said) < count / 2
        assert len(said) - len(rest) >= MAX_TOLD


def test_a_list_of_suffixes_makes_no_noise() -> None:
    with asking(search=("corp.example", "lan")) as resolver:
        for name in ("hub.example.corp.example", "hub.example.lan"):
            reply = resolver.ask(name)
            assert (rcode(reply), ede(reply)) == ("NXDOMAIN", [15])
        resolver.ask("evil.example")
        assert [r.name for r in resolver.daemon.waits_for(wire.Refused)] == ["evil.example"]


def test_strange_names_come_as_plain_text() -> None:
    with asking() as resolver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.connect(("127.0.0.1", resolver.ports["w"]))
        for label in (b"\x1b[31m\n.\xff\0", bytes(range(128, 190))):
            name = (bytes([len(label)]) + label) * 3 + b"\3hub\7example\0"
            sock.send(bytes.fromhex("000101000001000000000000") + name + b"\0\1\0\1")
            reply = sock.recv(4096)
            assert (reply[3] & 15, reply[12 : 12 + len(name)]) == (3, name)
        first, second = resolver.daemon.waits_for(wire.Refused, 2)
        assert first.name == ".".join([r"\027\09131m\010\046\255\000"] * 3) + ".hub.example"
        assert len(second.name) == 253


def test_when_too_many_wait_the_others_do_not() -> None:
    """They are answered at once, and told all the same."""
    count = 600
    with asking() as resolver, socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        resolver.daemon.settle = lambda message: None
        sock.settimeout(10)
        sock.connect(("127.0.0.1", resolver.ports["w"]))
        began = time.monotonic()
        for number in range(count):
            data = dns.message.make_query(f"n{number}.example", "A").to_wire()
            sock.sendall(len(data).to_bytes(2) + data)
        for _ in range(count):
            assert read_message(sock)
        assert time.monotonic() - began < count * PATIENCE / 2
        assert len(told(resolver, count)) <= count
