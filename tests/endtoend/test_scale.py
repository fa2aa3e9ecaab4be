"""A hundred workloads of a thousand addresses: how long `apply` takes, and that nobody notices it."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest

from daemon.running import MIB, Running, hammering, timed
from governed import Actor
from pace import slow

pytestmark = pytest.mark.root

WORKLOADS, ADDRESSES = 100, 1000
PORT = 80
Sent = dict[str, int]


@pytest.fixture
def large(running: Running, count: int) -> Running:
    """A daemon under the large policy; each workload may reach the registry."""
    _write_all(running, addresses=ADDRESSES // count)
    running.start()
    running.wait_in_force(60)
    return running


def test_apply(running: Running) -> None:
    """Seconds count from the parsed files to the kernel that was read back."""
    running.rules("a")
    running.up()
    print(f"\n{WORKLOADS} workloads of {ADDRESSES} addresses; idle before {running.rss() / MIB:.0f} MiB")
    _write_all(running, registry=False)
    first, _ = _apply(running, "from nothing")
    _write(running, 7, port=445)
    one, seconds = _apply(running, "one file changed")
    assert one - seconds < first / 2  # files that did not change are not parsed again
    status, _ = timed(running.ask, "status")
    print(f"then `status` after {status * 1000:.0f} ms, {running.rss() / MIB:.0f} MiB")
    assert not running.ask("apply")["changed"]


def _apply(running: Running, what: str) -> tuple[float, float]:
    """Seconds for whoever asked, and those that the daemon says."""
    whole, answer = timed(running.ask, "apply")
    seconds: float = answer["seconds"]
    print(f"{what}: {whole:.2f} s, of it {whole - seconds:.2f} s for the files and {seconds:.2f} s to the kernel")
    assert answer["changed"]
    assert seconds < slow(6)  # half of that on a machine that has nothing else to do
    return whole, seconds


def test_nothing_is_lost_during_apply(count: int, large: Running) -> None:
    """Allowed datagrams flow while the policy is applied again and again with changes."""
    registry, applies = large.lab.remote["registry"], 50 if count == 1 else 5
    with Actor(registry) as receiver, large.actor("w0") as sender:
        receiver(_open, registry.v4, registry.v6)
        addresses = (registry.v4, registry.v6)
        with hammering(sender, large.lab.dir / "stop", _stream, addresses) as result:
            for number in range(applies):
                _write(large, number % WORKLOADS, port=500 + number, addresses=ADDRESSES // count)
                assert large.ask("apply")["changed"]
        sent: Sent = result[0]
        received: Sent = receiver(_received, sent)
    print(f"\n{sum(sent.values())} datagrams sent during {applies} applies, {sum(received.values())} received")
    assert sum(sent.values()) > 100 * applies
    assert received == sent
    hits = large.ask("hits", workload="w0")["rules"]
    assert hits["registry"] == sum(sent.values())
    assert large.counter("denied_out_w0") == 0


def test_a_range_that_grows_loses_nothing(running: Running) -> None:
    """What the old element and the new one allow flows on, also when all else in the set changes."""
    registry = running.lab.remote["registry"]

    def write(number: int) -> None:
        others = ", ".join(f"10.0.{i // 125}.{i % 125 * 2}" for i in range(ADDRESSES))
        rules = f'{{to: [198.51.100.10, "2001:db8:51::10"], ports: [{PORT - number % 2}-{PORT + 1}/udp]}}'
        running.rules("w0", f"[{rules}, {{to: [{others}], ports: [{443 + number}]}}]")

    write(0)
    running.up()
    addresses = (registry.v4, registry.v6)
    with Actor(registry) as receiver, running.actor("w0") as sender:
        receiver(_open, *addresses)
        with hammering(sender, running.lab.dir / "stop", _stream, addresses, 0.0) as result:
            for number in range(1, 11):
                write(number)
                assert running.ask("apply")["changed"]
        assert receiver(_received, result[0]) == result[0]
    assert running.counter("denied_out_w0") == 0


def test_counters_survive_apply(count: int, large: Running) -> None:
    stranger, registry = large.lab.remote["stranger"], large.lab.remote["registry"]
    with large.actor("w1") as workload:
        for address in (stranger.v4, stranger.v6, registry.v4, registry.v6):
            workload(_send, address)
    denied, hits = large.counter("denied_out_w1"), large.ask("hits", workload="w1")["rules"]["registry"]
    assert (denied, hits) == (2, 2)
    _write(large, 1, port=446, addresses=ADDRESSES // count)
    assert large.ask("apply")["changed"]
    assert large.counter("denied_out_w1") == denied
    assert large.ask("hits", workload="w1")["rules"]["registry"] == hits


def _write_all(running: Running, registry: bool = True, addresses: int = ADDRESSES) -> None:
    for number in range(WORKLOADS):
        _write(running, number, registry=registry, addresses=addresses)


def _write(
    running: Running, number: int, port: int = 443, registry: bool = True, addresses: int = ADDRESSES
) -> None:
    """The file of a workload: addresses of its own, of which no two make a range, and perhaps the registry."""
    text = ", ".join(f"10.{number}.{i // 125}.{i % 125 * 2}" for i in range(addresses))
    rules = f"{{to: [{text}], ports: [{port}]}}"
    if registry:
        rules += f', {{name: registry, to: [198.51.100.10, "2001:db8:51::10"], ports: [{PORT}/udp]}}'
    running.rules(f"w{number}", f"[{rules}]")


# --- in actors ---

_receivers: list[socket.socket] = []


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _send(address: str) -> None:
    with socket.socket(_family(address), socket.SOCK_DGRAM) as sock, contextlib.suppress(PermissionError):
        sock.sendto(b"x", (address, PORT))


def _stream(stop: Path, addresses: tuple[str, ...], pause: float = 0.0005) -> Sent:
    """Send until told to stop; how many left, by address.  Without a `pause` the receiver's buffer fills soon."""
    sent = dict.fromkeys(addresses, 0)
    sockets = {address: socket.socket(_family(address), socket.SOCK_DGRAM) for address in addresses}
    while not stop.exists():
        for address, sock in sockets.items():
            with contextlib.suppress(OSError):  # one that was refused counts as sent: the receiver will miss it
                sock.sendto(b"x", (address, PORT))
            sent[address] += 1
        time.sleep(pause)
    return sent


def _open(*addresses: str) -> None:
    for address in addresses:
        sock = socket.socket(_family(address), socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE: it is read at the end only
        sock.bind((address, PORT))
        sock.settimeout(1)
        _receivers.append(sock)


def _received(wanted: Sent) -> Sent:
    """How many came, by address; waits for as many as are wanted."""
    received = dict.fromkeys(wanted, 0)
    for sock, address in zip(_receivers, wanted, strict=True):
        try:
            while received[address] < wanted[address]:
                sock.recv(16)
                received[address] += 1
        except TimeoutError:
            pass
    return received
