"""What is read of the host: real connections, and files as the kernel writes them."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from penstock import this_host
from penstock.core.parse import parse
from penstock.core.policy import PortRange, Ports
from penstock.core.surroundings import Session, Surroundings

SSH = Ports((PortRange("tcp", 22, 22),))
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


@contextmanager
def connected(family: int, listen: str, call: str) -> Iterator[int]:
    """A connection to a listener of ours: its port."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind((listen, 0))
        server.listen(1)
        port: int = server.getsockname()[1]
        stack.enter_context(socket.create_connection((call, port), timeout=10))
        stack.enter_context(server.accept()[0])
        yield port


@pytest.mark.parametrize(
    ("family", "file", "listen", "call"),
    [
        (socket.AF_INET, "tcp", "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "tcp6", "::1", "::1"),
        (socket.AF_INET6, "tcp6", "::", "127.0.0.1"),
    ],
)
def test_established_connections_of_this_machine(family: int, file: str, listen: str, call: str) -> None:
    """The last one is IPv4 at a listener for both."""
    with connected(family, listen, call) as port:
        ports = Ports((PortRange("tcp", port, port),))
        address = ip_address(call)
        assert list(this_host.connections(this_host.PROC / file, ports)) == [(address, port, address)]
        other = Ports((PortRange("tcp", port - 1, port - 1), PortRange("udp", port, port)))
        assert list(this_host.connections(this_host.PROC / file, other)) == []
        assert this_host.look(ports).sessions == (), "nobody from elsewhere"
    assert list(this_host.connections(this_host.PROC / file, ports)) == []


def test_addresses_and_interfaces_of_this_machine() -> None:
    names = dict(socket.if_nameindex())
    found = this_host.addresses(names)
    assert found[ip_address("127.0.0.1")] == "lo"
    assert set(found.values()) <= {*names.values(), ""}
    assert this_host.look(SSH).interfaces == frozenset(names.values())


def test_an_address_that_several_interfaces_have_is_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Link-local ones often are; a peer's address is not ours."""

    def said(index: int, *attributes: tuple[int, str]) -> bytes:
        body = struct.pack("=BBBBI", socket.AF_INET6, 64, 0, 0, index)
        packed = ((kind, ip_address(text).packed) for kind, text in attributes)
        return body + b"".join(struct.pack("=HH", 4 + len(data), kind) + data for kind, data in packed)

    twice = [said(1, (1, "fe80::1")), said(2, (1, "fe80::1")), said(2, (1, "fe80::2")), said(2, (1, "fe80::2"))]
    tunnel = said(3, (1, "fd00::9"), (2, "fd00::1"))
    messages = [(20, body) for body in (*twice, tunnel)]
    monkeypatch.setattr(this_host, "_messages", lambda data: iter([*messages, (3, b"")]))
    assert this_host.addresses({1: "eth0", 2: "eth1", 3: "tun0"}) == {
        ip_address("fe80::1"): "",
        ip_address("fe80::2"): "eth1",
        ip_address("fd00::1"): "tun0",
    }


# --- as the kernel of some other host writes it ---


def word(text: str) -> str:
    """An address as /proc/net/tcp has it."""
    data = ip_address(text).packed
    return "".join(f"{int.from_bytes(data[at : at + 4], sys.byteorder):08X}" for at in range(0, len(data), 4))


def line(here: str, port: int, far: str, state: str = "01") -> str:
    return f"   0: {word(here)}:{port:04X} {word(far)}:D431 {state} 00000000:00000000 00:00000000 00000000  0 0\n"


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    own = {ip_address("192.0.2.1"): "eth0", ip_address("2001:db8::1"): "eth1", ip_address("10.9.0.1"): ""}
    monkeypatch.setattr(this_host, "addresses", lambda interfaces: own)
    (tmp_path / "tcp").write_text(HEAD)
    (tmp_path / "tcp6").write_text(HEAD)
    return tmp_path


def test_who_is_connected(proc: Path) -> None:
    (proc / "tcp").write_text(
        HEAD
        + line("192.0.2.1", 22, "203.0.113.9")
        + line("192.0.2.1", 22, "203.0.113.9")
        + line("10.9.0.1", 22, "203.0.113.8")
        + line("192.0.2.1", 22, "203.0.113.7", state="06")
        + line("192.0.2.1", 443, "203.0.113.6")
        + line("192.0.2.1", 22, "192.0.2.1")
        + line("127.0.0.1", 22, "127.0.0.1")
    )
    (proc / "tcp6").write_text(
        HEAD
        + line("2001:db8::1", 22, "2001:db8::9")
        + line("::ffff:192.0.2.1", 22, "::ffff:203.0.113.5")
        + line("::1", 22, "::1")
    )
    assert this_host.look(SSH, proc).sessions == (
        Session(ip_address("203.0.113.9"), 22, "eth0"),
        Session(ip_address("203.0.113.8"), 22, ""),
        Session(ip_address("2001:db8::9"), 22, "eth1"),
        Session(ip_address("203.0.113.5"), 22, "eth0"),
    )


@pytest.mark.parametrize("text", ["", "nonsense\n" * 3, HEAD + "0: zz:0016 yy:0016 01 x\n", HEAD + "\x00\n"])
def test_what_makes_no_sense_is_nobody(proc: Path, text: str) -> None:
    (proc / "tcp").write_text(text)
    (proc / "tcp6").unlink()
    assert this_host.look(SSH, proc).sessions == ()


def test_what_is_looked_at_is_bounded(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line("192.0.2.1", 22, f"203.0.{n}.{m}") for n in range(10) for m in range(200)]
    (proc / "tcp").write_text(HEAD + "".join(lines))
    assert len(this_host.look(SSH, proc).sessions) == this_host.MAX_SESSIONS
    monkeypatch.setattr(this_host, "MAX_CONNECTIONS", 7)
    assert len(this_host.look(SSH, proc).sessions) == 7


def test_a_host_that_says_nothing(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> dict[object, str]:
        raise PermissionError

    (proc / "tcp").write_text(HEAD + line("192.0.2.1", 22, "203.0.113.9"))
    monkeypatch.setattr(this_host, "addresses", refuse)
    assert this_host.look(SSH, proc).sessions == (Session(ip_address("203.0.113.9"), 22),)
    monkeypatch.setattr(socket, "if_nameindex", refuse)
    assert this_host.look(SSH, proc) == Surroundings()


def test_only_ports_that_the_policy_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Ports] = []

    def look(ports: Ports) -> Surroundings:
        asked.append(ports)
        return Surroundings()

    monkeypatch.setattr(this_host, "look", look)
    policy = parse({"penstock.yaml": b"version: 1\nhost: {admin_ports: [2222]}\n"}).policy
    assert policy
    this_host.around(policy)
    assert asked == [Ports((PortRange("tcp", 2222, 2222),))]
