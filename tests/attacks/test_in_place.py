"""A unit that is bound where it runs is governed as in its slice, at whatever level; and nobody else is."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from attacks import ops
from attacks.conftest import Witness
from governed import Actor, Governed, rules, slice_of
from penstock.demo.lab import HOST_ADDRESSES, Lab

pytestmark = pytest.mark.root

FAMILIES = [pytest.param(4, id="v4"), pytest.param(6, id="v6")]
LOOPBACKS = [
    *(pytest.param(address, id=address) for address in ("127.0.0.1", "::1")),
    *(pytest.param(address, id=address) for address in HOST_ADDRESSES),
]
PLACES = ("ai.service", "system.slice/llama.service", "system.slice/system-vllm.slice/vllm@a.service")
"""At the level of penstock.slice, of a workload's slice, and one deeper."""
NEIGHBOURS = ("bi.service", "system.slice/other.service", "system.slice/system-vllm.slice/vllm@b.service")
"""Beside them, and of nobody."""
OPEN = "[{to: [198.51.100.10, '2001:db8:51::10'], ports: [80, 80/udp]}]"
INGRESS = "[{from: [203.0.113.66, '2001:db8:66::66'], ports: [21000, 21000/udp]}]"
W, OTHER = rules("w", OPEN, INGRESS), rules("other")
_ports = itertools.count(23000)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, governed: Governed) -> str:
    """A cgroup that is bound in place to `w`, while another is to `other`."""
    where = str(request.param)
    governed.load(W, OTHER, places={where: "w", "system.slice/third.service": "other"})
    return where


@pytest.fixture
def w(place: str, lab: Lab) -> Iterator[Actor]:
    with Actor(lab.host, place) as actor:
        yield actor


@pytest.mark.parametrize("family", FAMILIES)
def test_out(
    family: int, lab: Lab, governed: Governed, w: Actor, place: str, stranger: Witness, registry: Witness
) -> None:
    """Allowed arrives, denied does not, also from a cgroup below; a neighbour's packets all arrive."""
    allowed, denied = (lab.remote[name].address(family) for name in ("registry", "stranger"))
    stranger.protocols(), registry.protocols()
    with Actor(lab.host, f"{place}/below/deep") as below:
        for inside in (w, below):
            before = governed.counters()["denied_out_w"]
            assert inside(ops.call, allowed) == ["ok", "ok"]
            assert registry.protocols() == {"tcp", "udp"}
            assert inside(ops.call, denied)[0] == "ECONNREFUSED"
            assert stranger.protocols() == set()
            assert governed.counters()["denied_out_w"] == before + 2
    for neighbour in (*NEIGHBOURS, *(Path(p).parent.as_posix() for p in PLACES[1:])):
        with Actor(lab.host, neighbour) as by:
            assert by(ops.call, denied) == ["ok", "ok"]
            assert stranger.protocols() == {"tcp", "udp"}, neighbour


def arrives(far: Actor, here: Actor, address: str, port: int) -> set[str]:
    """What of TCP and UDP from `far` comes to a listener of `here`."""
    listener, receiver = here(ops.listen, address, port), here(ops.udp, address, port)
    sender = far(ops.udp, "::" if ":" in address else "0.0.0.0")
    far(ops.sendto, sender, b"datagram", address, port)
    made = far(ops.connect, address, port, timeout=0.5)  # what is said to it comes behind the datagram
    accepted = here(ops.accept, listener, 0.02)
    datagram = here(ops.receive, receiver, 0.3 if isinstance(made, int) else 0.02)
    found = {"udp"} if datagram == b"datagram" else set()
    if isinstance(accepted, int):
        found.add("tcp")
        here(ops.close, accepted)
    assert isinstance(made, int) == ("tcp" in found), made
    here(ops.close, listener, receiver)
    far(ops.close, sender, *([made] if isinstance(made, int) else []))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_in(family: int, lab: Lab, place: str, w: Actor) -> None:
    """An open port is open to whom it is for; a closed one is closed; a neighbour's is open to all."""
    here = lab.host.address(family)
    with Actor(lab.remote["stranger"]) as client, Actor(lab.remote["registry"]) as other:
        assert arrives(client, w, here, 21000) == {"tcp", "udp"}
        assert arrives(other, w, here, 21000) == set()
        assert arrives(client, w, here, 21001) == set()
        with Actor(lab.host, f"{place}/below") as below:
            assert arrives(client, below, here, 21002) == set()
        for neighbour in NEIGHBOURS:
            with Actor(lab.host, neighbour) as by:
                assert arrives(client, by, here, 21003) == {"tcp", "udp"}


@pytest.mark.parametrize("address", LOOPBACKS)
def test_on_loopback(address: str, lab: Lab, governed: Governed, place: str, w: Actor) -> None:
    """A workload talks to itself, also between where it runs and its slice, and to nobody else."""
    both: set[str] = {"tcp", "udp"}
    with (
        governed.actor("w") as in_slice,
        Actor(lab.host, place) as again,
        Actor(lab.host, "system.slice/third.service") as other,
        Actor(lab.host, NEIGHBOURS[0]) as by,
    ):
        for one, two in ((w, again), (w, in_slice), (in_slice, w)):
            assert arrives(one, two, address, next(_ports)) == both
        for stranger in (other, by):
            assert arrives(w, stranger, address, next(_ports)) == set()
            assert arrives(stranger, w, address, next(_ports)) == set()
        assert arrives(other, by, address, next(_ports)) == set()
        with governed.actor() as by_too:
            assert arrives(by, by_too, address, next(_ports)) == both


@pytest.mark.parametrize("family", FAMILIES)
def test_sockets_from_before(family: int, lab: Lab, governed: Governed, stranger: Witness) -> None:
    """A socket belongs to the cgroup it was made in: binding that governs what was open already."""
    place, target = PLACES[1], lab.remote["stranger"].address(family)
    governed.load(W)
    with Actor(lab.host, place) as w:
        made, datagrams = w(ops.connect, target, 80), w(ops.udp, "::" if family == 6 else "0.0.0.0")
        assert isinstance(made, int)
        assert w(ops.send, made, b"before") == w(ops.sendto, datagrams, b"x", target, 80) == "ok"
        assert stranger.protocols() == {"tcp", "udp"}
        assert w(ops.receive, made) == b"before"
        governed.load(W, places={place: "w"})
        stranger.packets()
        w(ops.send, made, b"after")
        w(ops.sendto, datagrams, b"x", target, 80)
        assert w(ops.receive, made) == "ECONNRESET"
        assert stranger.protocols() == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_place_that_is_made_again_is_nobodys_until_it_is_bound(
    family: int, lab: Lab, governed: Governed, stranger: Witness
) -> None:
    """Unlike a slice, which lies in one that denies everything: this is what the finding is about."""
    place, target = PLACES[1], lab.remote["stranger"].address(family)
    governed.load(W, places={place: "w"})
    stranger.packets()
    with Actor(lab.host, place) as w:
        assert w(ops.call, target)[0] == "ECONNREFUSED"
    assert stranger.protocols() == set()
    governed.agent(made_again, lab.cgroup / place)
    with Actor(lab.host, place) as w:
        assert w(ops.call, target) == ["ok", "ok"]
        assert stranger.protocols() == {"tcp", "udp"}, "the gap"
        governed.load(W, places={place: "w"})
        assert w(ops.call, target)[0] == "ECONNREFUSED"
        assert stranger.protocols() == set()


def made_again(path: Path) -> None:
    """Another cgroup of that name; the dead leave the old one a moment after they were reaped."""
    deadline = time.monotonic() + 5
    for below in sorted(path.glob("**/"), reverse=True):
        while True:
            try:
                below.rmdir()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.002)
    path.mkdir()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_unbound_is_free_and_the_slice_is_not(
    family: int, place: str, w: Actor, lab: Lab, governed: Governed, stranger: Witness
) -> None:
    target = lab.remote["stranger"].address(family)
    assert w(ops.call, target)[0] == "ECONNREFUSED"
    governed.load(W, OTHER)
    stranger.packets()
    assert w(ops.call, target) == ["ok", "ok"]
    assert stranger.protocols() == {"tcp", "udp"}
    assert "place" not in governed.nft("list table inet penstock")
    with governed.actor("w") as in_slice:
        assert in_slice(ops.call, target)[0] == "ECONNREFUSED"
    assert stranger.protocols() == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_in_the_slice_is_claimed_from_outside(
    family: int, lab: Lab, governed: Governed, registry: Witness
) -> None:
    """Whoever is in a workload's slice has its rules, whatever is bound below."""
    inside = f"{slice_of('other')}/x.service"
    target = lab.remote["registry"].address(family)
    governed.load(W, OTHER, places={inside: "w"})
    registry.packets()
    with Actor(lab.host, inside) as actor:
        assert actor(ops.call, target)[0] == "ECONNREFUSED"
    assert registry.protocols() == set()
    governed.load(W, OTHER)


BRIEF = 0.2
"""Seconds in which nothing arrives on a connection over loopback, where data does within a millisecond."""


def exchanged(one: Actor, here: int, two: Actor, there: int, patience: float = 2) -> bool:
    """Whether data goes over an open connection, both ways; `one` says something first."""
    one(ops.send, here, b"ping")
    if two(ops.receive, there, patience) != b"ping":
        return False
    two(ops.send, there, b"pong")
    return bool(one(ops.receive, here, patience) == b"pong")


@pytest.mark.parametrize("address", LOOPBACKS)
def test_connections_to_itself_from_before_go_on(address: str, lab: Lab, governed: Governed) -> None:
    """A model server in several processes would not survive it.  Those with others end."""
    place, third = PLACES[1], "system.slice/third.service"
    governed.load(W, OTHER, places={NEIGHBOURS[1]: "other"})
    with ExitStack() as stack:
        actors = [stack.enter_context(Actor(lab.host, path)) for path in (place, place, NEIGHBOURS[0], third)]
        w, again, by, other = actors
        made = []
        for client, server in ((w, again), (w, by), (w, other), (by, w), (other, w)):
            port = next(_ports)
            listener = server(ops.listen, address, port)
            here = client(ops.connect, address, port)
            there = server(ops.accept, listener)
            assert exchanged(client, here, server, there)
            made.append((client, here, server, there))
        governed.load(W, OTHER, places={place: "w", third: "other"})
        assert exchanged(*made[0])
        assert [exchanged(*connection, BRIEF) for connection in made[1:]] == [False] * 4
        assert exchanged(*made[0]), "and on"
        client, here, server, there = made[0]
        assert exchanged(server, there, client, here), "whoever says something first"


@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize("first", ["caller", "called"])
def test_connections_from_before_gain_nothing(address: str, first: str, lab: Lab, governed: Governed) -> None:
    """Whatever a workload says on a bystander's old connection, it does not let the bystander in."""
    place = PLACES[1]
    governed.load(W, places={NEIGHBOURS[1]: "w"})
    port = next(_ports)
    with Actor(lab.host, place) as w, Actor(lab.host, NEIGHBOURS[0]) as by:
        listener = w(ops.listen, address, port)
        here = by(ops.connect, address, port)
        there = w(ops.accept, listener)
        assert exchanged(by, here, w, there)
        governed.load(W, places={place: "w"})
        if first == "called":
            w(ops.send, there, b"label me")
        for _ in range(3):
            by(ops.send, here, b"into")
            w(ops.send, there, b"leak")
        assert w(ops.pending, there) == []
        assert by(ops.pending, here) == []


@pytest.mark.parametrize("address", LOOPBACKS)
def test_what_was_bound_to_observe_may_be_enforced(address: str, lab: Lab, governed: Governed) -> None:
    """Then it does not matter who says something first."""
    place, port = PLACES[1], next(_ports)
    governed.load(OTHER, places={NEIGHBOURS[1]: "other"})
    with Actor(lab.host, place) as w, Actor(lab.host, place) as again:
        listener = again(ops.listen, address, port)
        here = w(ops.connect, address, port)
        there = again(ops.accept, listener)
        governed.load(rules("w", mode="observe"), places={place: "w"})
        before = governed.counters()
        assert exchanged(again, there, w, here)
        assert governed.counters()["denied_out_w"] == before["denied_out_w"], "nothing would have been denied"
        governed.load(W, places={place: "w"})
        assert exchanged(again, there, w, here)


@pytest.mark.parametrize("address", LOOPBACKS[:2])
def test_where_another_tool_tracked_connections_before_our_table_they_end(address: str) -> None:
    """They have no room for labels: nobody knows who is at the other end, so all are closed, its own too."""
    place, port = PLACES[1], next(_ports)
    with Lab(remotes={}) as lab:
        governed = Governed(lab)
        governed.nft("table inet foreign { chain o { type filter hook output priority 10; ct state new; }\n}")
        with Actor(lab.host, place) as w, Actor(lab.host, place) as again, governed.actor() as by:
            for server, at in ((again, port), (by, next(_ports))):
                listener = server(ops.listen, address, at)
                here = w(ops.connect, address, at)
                there = server(ops.accept, listener)
                assert exchanged(w, here, server, there)
                governed.load(W, places={place: "w"})
                assert not exchanged(w, here, server, there, BRIEF)
                governed.nft("delete table inet penstock\n")
        governed.close()
