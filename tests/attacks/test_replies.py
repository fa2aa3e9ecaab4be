"""Answers: conntrack's word that something is one is not enough, and what is revoked ends."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attacks import ops
from governed import Actor, Governed, rules
from penstock.demo.lab import Lab

pytestmark = pytest.mark.root

FAMILIES = [pytest.param(4, id="v4"), pytest.param(6, id="v6")]
QUICK, TOLD = 0.05, 5
"""Seconds within which a revoked flow must have ended, and within which a program must know.

What is sent to it is an answer: the first of it arrives, and the acknowledgement of that ends the connection.  The
program is told when a packet of it is refused, which may be the one that TCP repeats after 200 ms.
"""

NOW = struct.Struct("d")
_ports = itertools.count(21000)


@pytest.fixture(scope="module")
def far(lab: Lab) -> Iterator[Actor]:
    with Actor(lab.remote["stranger"]) as actor:
        yield actor


@pytest.fixture
def w(governed: Governed) -> Iterator[Actor]:
    governed.load(rules("w"))
    with governed.actor("w") as actor:
        yield actor


def both(lab: Lab) -> str:
    peer = lab.remote["stranger"]
    return f"[{peer.v4}, '{peer.v6}']"


def serving(lab: Lab, port: int) -> str:
    return rules("w", ingress=f"[{{from: {both(lab)}, ports: [{port}, {port}/udp]}}]")


def calling(lab: Lab, port: int) -> str:
    return rules("w", egress=f"[{{to: {both(lab)}, ports: [{port}, {port}/udp]}}]")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_port_shared_with_a_bystander(
    family: int, lab: Lab, governed: Governed, far: Actor, w: Actor
) -> None:
    """The stranger writes to the bystander; conntrack calls the workload's datagrams answers."""
    here, there, port = lab.host.address(family), lab.remote["stranger"].address(family), next(_ports)
    with governed.actor() as by:
        shared = by(ops.udp, here, port, share=True)
        remote = far(ops.udp, there, port)
        far(ops.sendto, remote, b"question", here, port)
        assert by(ops.receive, shared) == b"question"
        mine = w(ops.udp, here, port, share=True)
        w(ops.sendto, mine, b"leak", there, port)
        by(ops.sendto, shared, b"answer", there, port)
        assert far(ops.receive, remote) == b"answer"
        assert far(ops.pending, remote) == []
        w(ops.close, mine)
    far(ops.close, remote)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("allowed", [False, True])
def test_the_stranger_wrote_first(
    allowed: bool, family: int, lab: Lab, governed: Governed, far: Actor, w: Actor
) -> None:
    """To a closed port; then the workload binds it and "answers"."""
    here, there, port = lab.host.address(family), lab.remote["stranger"].address(family), next(_ports)
    if allowed:
        governed.load(serving(lab, port))
    remote = far(ops.udp, there, port)
    far(ops.sendto, remote, b"knock", here, port)
    assert far(ops.receive, remote, 0.05) == "timeout"  # an unconnected socket hears no error
    mine = w(ops.udp, here, port)
    w(ops.sendto, mine, b"leak", there, port)
    heard = [far(ops.receive, remote, 0.1)] if allowed else far(ops.pending, remote)
    assert heard == ([b"leak"] if allowed else [])
    w(ops.close, mine)
    far(ops.close, remote)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_serving_port_calls_nobody(family: int, lab: Lab, governed: Governed, far: Actor, w: Actor) -> None:
    """An ingress rule for 8000 lets answers go to where the question came from, not to other ports."""
    here, there, port = lab.host.address(family), lab.remote["stranger"].address(family), next(_ports)
    governed.load(serving(lab, port))
    client, other = far(ops.udp, there, port + 5000), far(ops.udp, there, port + 5001)
    listener = far(ops.listen, there, port + 5002)
    mine = w(ops.udp, here, port)
    far(ops.sendto, client, b"question", here, port)
    assert w(ops.receive, mine) == b"question"
    for number in (5000, 5001):
        w(ops.sendto, mine, b"answer", there, port + number)
    assert far(ops.receive, client) == b"answer"
    assert far(ops.pending, other) == []
    assert w(ops.connect, there, port + 5002, source=(here, port)) == "ECONNREFUSED"
    assert far(ops.accept, listener, 0.05) == "timeout"
    w(ops.close, mine)
    far(ops.close, client, other, listener)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_syn_is_no_answer(family: int, lab: Lab, governed: Governed, far: Actor, w: Actor) -> None:
    """A bystander's SYN gets no answer; the workload takes the port; the stranger's SYN looks like the answer."""
    here, there = lab.host.address(family), lab.remote["stranger"].address(family)
    port, theirs = next(_ports), next(_ports)
    chain = f"type filter hook input priority 0; tcp dport {theirs} drop;"
    drop = f"table inet t {{ chain i {{ {chain} }}\n}}"
    lab.remote["stranger"].run(["nft", drop])
    with governed.actor() as by:
        assert by(ops.connect, there, theirs, source=(here, port), timeout=0.05) == "timeout"
    lab.remote["stranger"].run(["nft", "delete table inet t"])
    listener = w(ops.listen, here, port)
    assert far(ops.connect, here, port, source=(there, theirs), timeout=0.5) == "ECONNREFUSED"
    assert w(ops.accept, listener, 0.05) == "timeout"
    governed.load(serving(lab, port))
    assert isinstance(far(ops.connect, here, port, timeout=0.5), int), "with a rule it arrives"
    w(ops.close, listener)


def drip(descriptor: int, stop: Path) -> str:
    """Send the time every millisecond until `stop` is there, an error, or both are overdue; say which."""
    end = ops.now() + TOLD
    while not stop.exists() and ops.now() < end:
        said = ops.send(descriptor, NOW.pack(ops.now()))
        if said != "ok":
            return said
        time.sleep(0.001)
    return "ok"


def last_arrival(descriptor: int, stop: Path) -> tuple[float, str]:
    """Read until `stop` is there; when the last that arrived had been sent, and how it ended."""
    found, over = b"", False
    while True:
        data = ops.receive(descriptor, 0.02)
        if data == "timeout" and not over:
            over = stop.exists()
        elif isinstance(data, bytes) and data:
            found += data
        else:
            (last,) = NOW.unpack(found[: len(found) // NOW.size * NOW.size][-NOW.size :])
            return last, "end" if data == b"" else str(data)


def flow(kind: str, client: Actor, server: Actor, address: str, port: int) -> tuple[int, int]:
    """An established flow: descriptors at the client and at the server."""
    if kind == "tcp":
        listener = server(ops.listen, address, port)
        made = client(ops.connect, address, port)
        accepted = server(ops.accept, listener)
        server(ops.close, listener)
        return made, accepted
    there = server(ops.udp, address, port)
    here = client(connected, address, port)
    client(ops.send, here, b"hello")
    _, peer, peer_port = server(ops.receive_from, there)
    server(connect_to, there, peer, peer_port)
    server(ops.send, there, b"hello")
    assert client(ops.receive, here) == b"hello"
    return here, there


def connected(address: str, port: int) -> int:
    descriptor = ops.udp("::" if ":" in address else "0.0.0.0")
    connect_to(descriptor, address, port)
    return descriptor


def connect_to(descriptor: int, address: str, port: int) -> None:
    with ops.borrowed(descriptor) as sock:
        sock.connect((address, port))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize("revoked", ["egress", "ingress"])
@pytest.mark.parametrize("talker", ["workload", "stranger"])
def test_revocation_ends_established_flows(
    talker: str, revoked: str, kind: str, family: int, lab: Lab, governed: Governed, far: Actor, w: Actor
) -> None:
    port = next(_ports)
    if revoked == "egress":
        governed.load(calling(lab, port))
        mine, theirs = flow(kind, w, far, lab.remote["stranger"].address(family), port)
    else:
        governed.load(serving(lab, port))
        theirs, mine = flow(kind, far, w, lab.host.address(family), port)
    stop = lab.dir / f"stop-{port}"
    (sender, out), (receiver, into) = [(w, mine), (far, theirs)][:: 1 if talker == "workload" else -1]
    receiver.start(last_arrival, into, stop)
    sender.start(drip, out, stop)
    time.sleep(0.05)  # it flows
    governed.load(rules("w"))
    revoked_at = time.monotonic()
    said = sender.result() if talker == "workload" else ""
    time.sleep(0.1)  # it would go on
    stop.touch()
    said = said or sender.result()
    last, ended = receiver.result()
    print(f"sent {1000 * (last - revoked_at):.1f} ms after revocation, and arrived last; sender {said}, {ended}")
    assert last < revoked_at + (QUICK if talker == "stranger" else 0)
    if talker == "workload":
        assert said != "ok", "the program is told"
    w(ops.close, mine)
    far(ops.close, theirs)
