"""Loopback: a workload may talk to itself, and to nobody else that no rule allows; the labels must not lie."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator

import pytest

from attacks import ops
from governed import Actor, Governed, eventually, rules, slice_of
from penstock.demo.lab import HOST_ADDRESSES, Lab

pytestmark = pytest.mark.root

LOOPBACKS = [pytest.param("127.0.0.1", id="v4"), pytest.param("::1", id="v6")]
HERE = [*LOOPBACKS, *(pytest.param(a, id=f"host-{'v6' if ':' in a else 'v4'}") for a in HOST_ADDRESSES)]
W, OTHER = rules("w"), rules("other")
_ports = itertools.count(20000)


def fresh() -> int:
    """A port that no test used before: conntrack remembers."""
    return next(_ports)


@pytest.fixture(scope="module")
def actors(governed: Governed) -> Iterator[dict[str, Actor]]:
    governed.load(W, OTHER)
    made = {
        "w": governed.actor("w"),
        "w2": governed.actor("w"),
        "other": governed.actor("other"),
        "by": governed.actor(),
        "by2": governed.actor(),
    }
    yield made
    for actor in made.values():
        actor.close()


@pytest.fixture(autouse=True)
def policy(governed: Governed, actors: dict[str, Actor]) -> None:
    governed.load(W, OTHER)


def allow(address: str, *ports: int, protocol: str = "") -> str:
    """Egress rules for these ports of `address`."""
    listed = ", ".join(f"{port}{protocol}" for port in ports)
    return f"[{{to: '{address}', ports: [{listed}]}}]"


def reach(client: Actor, server: Actor, address: str) -> bool:
    """Whether a TCP connection comes about and carries data, both ways."""
    port = fresh()
    return reach_port(client, server, address, port)


def reach_port(client: Actor, server: Actor, address: str, port: int) -> bool:
    listener = server(ops.listen, address, port)
    made = client(ops.connect, address, port, timeout=1)
    good = isinstance(made, int)
    if good:
        accepted = server(ops.accept, listener)
        client(ops.send, made, b"ping")
        good = server(ops.receive, accepted) == b"ping"
        server(ops.send, accepted, b"pong")
        good = good and client(ops.receive, made) == b"pong"
        client(ops.close, made)
        server(ops.close, accepted)
    server(ops.close, listener)
    return good


def tell(client: Actor, server: Actor, address: str, ports: tuple[int, int]) -> bool:
    """Whether a datagram from ports[0] arrives at ports[1], and its answer comes back."""
    here, there = client(ops.udp, address, ports[0]), server(ops.udp, address, ports[1])
    client(ops.sendto, here, b"ping", address, ports[1])
    good = b"ping" in server(ops.pending, there)  # loopback delivers within the call
    if good:
        server(ops.sendto, there, b"pong", address, ports[0])
        good = b"pong" in client(ops.pending, here)
    client(ops.close, here)
    server(ops.close, there)
    return good


def only_the_asked_answers(asked: Actor, sharer: Actor, peer: Actor, address: str, ports: tuple[int, int]) -> None:
    """`peer` at ports[1] asks `asked` at ports[0]; `sharer` takes that port too, and may not answer."""
    here, there = ports
    by = asked(ops.udp, address, here, share=True)
    far = peer(ops.udp, address, there)
    peer(ops.sendto, far, b"question", address, here)
    assert asked(ops.pending, by) == [b"question"]
    other = sharer(ops.udp, address, here, share=True)
    sharer(ops.sendto, other, b"leak", address, there)
    assert peer(ops.pending, far) == []
    asked(ops.sendto, by, b"answer", address, there)
    assert peer(ops.pending, far) == [b"answer"]
    sharer(ops.close, other)
    asked(ops.close, by)
    peer(ops.close, far)


@pytest.mark.parametrize("address", HERE)
def test_a_workload_talks_to_itself(address: str, actors: dict[str, Actor]) -> None:
    assert reach(actors["w"], actors["w2"], address)
    assert tell(actors["w"], actors["w2"], address, (fresh(), fresh()))
    assert reach(actors["by"], actors["by2"], address)
    assert tell(actors["by"], actors["by2"], address, (fresh(), fresh()))


def many(address: str, port: int, count: int) -> list[str]:
    """Short connections; who closes first alternates (1 asks the server to)."""
    failures = []
    for number in range(count):
        try:
            with socket.create_connection((address, port), timeout=2) as s:
                s.sendall(bytes([number & 1]))
                if s.recv(10) != b"ok" or (number & 1 and s.recv(10)):
                    failures.append("wrong answer")
        except OSError as error:
            failures.append(ops.name_of(error))
    return failures


def serve(listener: int, count: int) -> list[str]:
    failures = []
    with ops.borrowed(listener) as server:
        server.settimeout(5)
        for _ in range(count):
            try:
                made, _ = server.accept()
                with made:
                    made.settimeout(2)
                    first = made.recv(1)
                    made.sendall(b"ok")
                    if first == b"\0":
                        made.recv(1)
            except OSError as error:
                failures.append(ops.name_of(error))
    return failures


@pytest.mark.parametrize("address", HERE)
def test_500_short_connections_to_itself(address: str, actors: dict[str, Actor]) -> None:
    port = fresh()
    listener = actors["w"](ops.listen, address, port)
    actors["w"].start(serve, listener, 500)
    assert actors["w2"](many, address, port, 500) == []
    assert actors["w"].result() == []
    actors["w"](ops.close, listener)
    closing = actors["by"](states, port)
    assert not closing & {"LAST-ACK", "CLOSE-WAIT", "FIN-WAIT-1", "FIN-WAIT-2"}, closing


def states(port: int) -> set[str]:
    names = ["", "ESTAB", "SYN-SENT", "SYN-RECV", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT", "CLOSE"]
    names += ["CLOSE-WAIT", "LAST-ACK", "LISTEN", "CLOSING"]
    found = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/net/{table}") as file:
            for line in file.readlines()[1:]:
                fields = line.split()
                if f":{port:04X}" in fields[1] + fields[2]:
                    found.add(names[int(fields[3], 16)])
    return found


@pytest.mark.parametrize("address", HERE)
@pytest.mark.parametrize(
    ("client", "server"), [("w", "by"), ("w", "other"), ("by", "w"), ("other", "w")]
)
def test_nobody_else_without_a_rule(
    client: str, server: str, address: str, actors: dict[str, Actor]
) -> None:
    assert not reach(actors[client], actors[server], address)
    assert not tell(actors[client], actors[server], address, (fresh(), fresh()))


@pytest.mark.parametrize("address", HERE)
def test_with_rules(address: str, actors: dict[str, Actor], governed: Governed) -> None:
    ports = [fresh() for _ in range(8)]
    tcp, udp = ports[:4], ports[4:]
    listed = ", ".join([*map(str, tcp), *(f"{p}/udp" for p in udp)])
    out, into = f"[{{to: '{address}', ports: [{listed}]}}]", f"[{{from: '{address}', ports: [{listed}]}}]"
    governed.load(rules("w", egress=out), rules("other", ingress=into))
    for number, (client, server) in enumerate((("w", "by"), ("by", "other"), ("w", "other"))):
        assert reach_port(actors[client], actors[server], address, tcp[number])
        assert tell(actors[client], actors[server], address, (fresh(), udp[number]))
    assert not reach_port(actors["other"], actors["by"], address, tcp[3])
    governed.load(W, rules("other", ingress=into))
    assert not reach_port(actors["w"], actors["other"], address, tcp[3]), "the sender needs a rule as well"
    assert not tell(actors["w"], actors["other"], address, (fresh(), udp[3]))


@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize("first", ["denied", "allowed", "self"])
@pytest.mark.parametrize("heir", ["by", "other"])
def test_the_heir_of_a_udp_port_is_himself(
    heir: str, first: str, address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    """Conntrack thinks that it is the workload's flow still.  The heir gains nothing and loses nothing."""
    here, there = fresh(), fresh()
    server = actors["w2"] if first == "self" else actors["by2"]
    if first == "allowed":
        governed.load(rules("w", egress=allow(address, there, protocol="/udp")), OTHER)
    assert tell(actors["w"], server, address, (here, there)) == (first != "denied")
    owners = [heir, "by2"], [heir, "w2"], [heir, heir], ["w", "w2"]
    expected = {"by": [True, False, True], "other": [False, False, True]}[heir]
    # Each of the heir's flows on its own port of the same history would need its own; the order is the attack.
    for (client, listener), good in zip(owners, expected, strict=False):
        if client == listener == "other":
            continue  # talking to itself over an inherited flow fails closed until it is forgotten
        assert tell(actors[client], actors[listener], address, (here, there)) == good, (client, listener)
    assert not tell(actors["w"], actors["by"], address, (here, there)) or first == "allowed"


@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize("answered", [False, True])
def test_a_listener_that_changes_hands(address: str, answered: bool, actors: dict[str, Actor]) -> None:
    """The workload talks to itself, then a bystander takes the receiving port: the flow must end there."""
    here, there = fresh(), fresh()
    a, b = actors["w"](ops.udp, address, here), actors["w2"](ops.udp, address, there)
    actors["w"](ops.sendto, a, b"own", address, there)
    assert actors["w2"](ops.pending, b) == [b"own"]
    if answered:
        actors["w2"](ops.sendto, b, b"own", address, here)
        assert actors["w"](ops.pending, a) == [b"own"]
    actors["w2"](ops.close, b)
    c = actors["by"](ops.udp, address, there)
    actors["w"](ops.sendto, a, b"leak", address, there)
    assert actors["by"](ops.pending, c) == []
    actors["by"](ops.sendto, c, b"into", address, here)  # as an answer to what it never got
    assert b"into" not in actors["w"](ops.pending, a)
    actors["w"](ops.sendto, a, b"leak", address, there)
    assert actors["by"](ops.pending, c) == []
    actors["by"](ops.close, c)
    actors["w"](ops.close, a)


@pytest.mark.parametrize("address", LOOPBACKS)
def test_no_hole_is_punched(address: str, actors: dict[str, Actor]) -> None:
    """A refused datagram must not let the other side answer."""
    here, there = fresh(), fresh()
    a, b = actors["w"](ops.udp, address, here), actors["by"](ops.udp, address, there)
    actors["w"](ops.sendto, a, b"leak", address, there)
    actors["by"](ops.sendto, b, b"into", address, here)
    assert actors["by"](ops.pending, b) == []
    assert b"into" not in actors["w"](ops.pending, a)
    actors["w"](ops.close, a)
    actors["by"](ops.close, b)


@pytest.mark.parametrize("address", LOOPBACKS)
def test_a_shared_port(address: str, actors: dict[str, Actor]) -> None:
    """Conntrack calls the workload's datagrams answers to a bystander's, whose port it shares."""
    only_the_asked_answers(actors["by"], actors["w"], actors["by2"], address, (fresh(), fresh()))


@pytest.mark.parametrize("address", LOOPBACKS)
def test_connections_of_observe_end_with_enforce(
    address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    governed.load(rules("w", mode="observe"), OTHER)
    port = fresh()
    listener = actors["by"](ops.listen, address, port)
    made = actors["w"](ops.connect, address, port)
    accepted = actors["by"](ops.accept, listener)
    actors["w"](ops.send, made, b"seen")
    assert actors["by"](ops.receive, accepted) == b"seen"
    here, there = fresh(), fresh()
    a, b = actors["w"](ops.udp, address, here), actors["by"](ops.udp, address, there)
    actors["w"](ops.sendto, a, b"seen", address, there)
    assert actors["by"](ops.pending, b) == [b"seen"]
    governed.load(W, OTHER)
    actors["w"](ops.send, made, b"leak")
    actors["w"](ops.sendto, a, b"leak", address, there)
    assert actors["w"](ops.receive, made) == "ECONNRESET"
    assert actors["by"](ops.pending, accepted) == []
    assert actors["by"](ops.pending, b) == []
    actors["by"](ops.close, listener, accepted, b)
    actors["w"](ops.close, made, a)


@pytest.mark.parametrize("family", [4, 6])
def test_a_foreign_nat_of_a_local_address(
    family: int, lab: Lab, actors: dict[str, Actor], governed: Governed
) -> None:
    """Docker sends what is for a published port of this host away: judged is where it goes."""
    remote = lab.remote["stranger"]
    server = Actor(remote)
    target, port, ip = remote.address(family), fresh(), {4: "ip", 6: "ip6"}[family]
    here = lab.host.address(family)
    listener, receiver = server(ops.listen, target, port), server(ops.udp, target, port)
    to = f"[{target}]:{port}" if family == 6 else f"{target}:{port}"
    governed.nft(
        f"table {ip} docker {{ chain o {{ type nat hook output priority -100;"
        f" {ip} daddr {here} meta l4proto {{ tcp, udp }} th dport {port} dnat to {to}; }}\n}}"
    )
    assert isinstance(actors["by"](ops.connect, here, port), int), "a bystander's goes there"
    assert isinstance(server(ops.accept, listener), int)
    assert actors["w"](ops.connect, here, port) == "ECONNREFUSED"
    assert server(ops.accept, listener, 0.05) == "timeout"
    sender = actors["w"](ops.udp, here, 0)
    actors["w"](ops.sendto, sender, b"leak", here, port)
    assert server(ops.receive, receiver, 0.05) == "timeout"
    actors["w"](ops.close, sender)
    governed.nft(f"delete table {ip} docker")
    server.close()


@pytest.mark.parametrize("address", LOOPBACKS)
def test_udp_older_than_our_table(address: str) -> None:
    """Where another tool tracks connections, one that is older than our table has no room for labels."""
    with Lab(remotes={}) as lab:
        governed = Governed(lab)
        governed.nft("table inet foreign { chain o { type filter hook output priority 10; ct state new; }\n}")
        with Actor(lab.host, slice_of("w")) as w, governed.actor() as by:
            here, there = fresh(), fresh()
            a, b = w(ops.udp, address, here), by(ops.udp, address, there)
            w(ops.sendto, a, b"seen", address, there)
            assert by(ops.pending, b) == [b"seen"]
            governed.load(W)
            w(ops.sendto, a, b"leak", address, there)
            assert by(ops.pending, b) == []
        governed.close()


@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize("heir", ["by", "other"])
def test_an_unanswered_syn_gives_nothing_away(
    heir: str, address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    """A workload's SYN to its own full listener waits in conntrack; the next owner of its port is not it."""
    here, there = fresh(), fresh()
    listener = actors["w2"](ops.listen, address, there, backlog=0)
    filler = actors["w"](ops.connect, address, there)
    assert actors["w"](ops.connect, address, there, source=(address, here), timeout=0.1) == "timeout"
    accepted = actors["w2"](ops.accept, listener)  # and now there is room
    assert actors[heir](ops.connect, address, there, source=(address, here), timeout=0.3) == "ECONNREFUSED"
    assert actors["w2"](ops.accept, listener, 0.05) == "timeout"
    actors["w"](ops.close, filler)
    actors["w2"](ops.close, listener, accepted)


@pytest.mark.parametrize("address", LOOPBACKS)
def test_lock_stops_even_itself(address: str, actors: dict[str, Actor], governed: Governed) -> None:
    port = fresh()
    listener = actors["w2"](ops.listen, address, port)
    made = actors["w"](ops.connect, address, port)
    accepted = actors["w2"](ops.accept, listener)
    governed.load(rules("w", mode="lock"), OTHER)
    actors["w"](ops.send, made, b"late")
    eventually(lambda: actors["w"](ops.receive, made, 0.05) == "ECONNRESET")
    assert actors["w2"](ops.receive, accepted, 0.05) != b"late"
    assert not reach(actors["w"], actors["w2"], address)
    assert not tell(actors["w"], actors["w2"], address, (fresh(), fresh()))
    assert reach(actors["by"], actors["by2"], address)
    actors["w"](ops.close, made)
    actors["w2"](ops.close, accepted, listener)




@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize(("who", "ruled"), [("w", False), ("w", True), ("by", True)], ids=["self", "rule", "by"])
def test_a_source_port_whose_last_connection_the_server_closed(
    address: str, who: str, ruled: bool, actors: dict[str, Actor], governed: Governed
) -> None:
    """For a minute its next SYN meets a socket in TIME_WAIT, which has no cgroup: who listens cannot be known.

    So talking to oneself needs another port then, or a rule.  In the threat model.
    """
    here, there = fresh(), fresh()
    governed.load(rules("w", allow(address, there) if ruled else "[]"), OTHER)
    client, server = (actors["w"], actors["w2"]) if who == "w" else (actors["by"], actors["by2"])
    listener = server(ops.listen, address, there)
    made = client(ops.connect, address, there, source=(address, here))
    server(ops.close, server(ops.accept, listener))
    assert client(ops.receive, made, 1) == b""
    client(ops.close, made)
    again = client(ops.connect, address, there, source=(address, here))
    assert isinstance(again, int) is ruled, again
    if ruled:
        client(ops.close, again)
    server(ops.close, listener)
