"""`host.admin_ports`: closed to networks of clients and to every workload, open to everybody else as before."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from attacks import ops
from attacks.test_loopback import HERE, LOOPBACKS
from governed import Actor, Governed, rules
from penstock.demo.lab import HOST_ADDRESSES, REMOTES, Lab

pytestmark = pytest.mark.root

ADMIN, PLAIN = 2022, 9022
PORTS = "[2022, 2022/udp]"
BY_ADDRESS = f"""version: 1
networks:
  clients: {{cidr: ["{REMOTES["stranger"][0]}/32", "{REMOTES["stranger"][1]}/128"], plane: inference}}
  admin: {{cidr: ["{REMOTES["registry"][0]}/32", "{REMOTES["registry"][1]}/128"], plane: admin}}
"""
BY_INTERFACE = """version: 1
networks: {wire: {interface: eth0, plane: inference}}
"""
CLOSED = f"host: {{admin_ports: {PORTS}}}\n"
EVERYWHERE = "[{to: any, ports: [any]}]"
FROM_ALL = "[{from: any, ports: [2022, 2022/udp, 9022, 9022/udp]}]"
FAMILIES = [pytest.param(address, id=f"v{6 if ':' in address else 4}") for address in HOST_ADDRESSES]
_ports = itertools.count(31000)
BOTH, NEITHER = (True, True), (False, False)


def load(governed: Governed, *workloads: str, host: str = BY_ADDRESS + CLOSED) -> None:
    governed.load(*workloads, host=host)


@pytest.fixture(scope="module")
def actors(governed: Governed, lab: Lab) -> Iterator[dict[str, Actor]]:
    load(governed, rules("w"), rules("other"))
    made = {name: governed.actor(name) for name in ("w", "other")}
    made |= {"by": governed.actor(), "sshd": governed.actor()}
    made |= {"client": Actor(lab.remote["stranger"]), "admin": Actor(lab.remote["registry"])}
    yield made
    for actor in made.values():
        actor.close()


def reaches(
    client: Actor, server: Actor, address: str, port: int, *, at: int | None = None, patience: float = 1
) -> tuple[bool, bool]:
    """Whether TCP and UDP to `port` arrive at the server, which listens there, or at the port `at`."""
    at, source = at or port, next(_ports)
    listener, far = server(ops.listen, address, at), server(ops.udp, address, at)
    here = client(ops.udp, "::" if ":" in address else "0.0.0.0", source)
    client(ops.sendto, here, b"question", address, port)
    made = client(ops.connect, address, port, timeout=patience)
    accepted = server(ops.accept, listener, 2 if isinstance(made, int) else 0.05)
    tcp = isinstance(accepted, int)
    assert tcp == isinstance(made, int), (made, accepted)
    if tcp:
        client(ops.send, made, b"tcp")
        assert server(ops.receive, accepted) == b"tcp"
        client(ops.close, made)
        server(ops.close, accepted)
    try:
        udp = server(ops.receive_from, far, 2 if tcp else 0.15)[0] == b"question"
    except TimeoutError:
        udp = False
    client(ops.close, here)
    server(ops.close, listener, far)
    return tcp, udp


@pytest.mark.parametrize("address", FAMILIES)
def test_clients_are_refused_and_administrators_are_not(
    address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    client, admin, by, sshd = (actors[name] for name in ("client", "admin", "by", "sshd"))
    load(governed, host=BY_ADDRESS)
    assert reaches(client, sshd, address, ADMIN) == BOTH
    load(governed)
    before = governed.counters()["admin_in"]
    assert reaches(client, sshd, address, ADMIN) == NEITHER
    assert governed.counters()["admin_in"] >= before + 2
    assert client(ops.connect, address, ADMIN) == "ECONNREFUSED", "at once"
    assert reaches(client, sshd, address, PLAIN) == BOTH
    for other in (admin, by):
        assert reaches(other, sshd, address, ADMIN) == BOTH
    load(governed, host=BY_INTERFACE + CLOSED)
    for other in (client, admin):
        assert reaches(other, sshd, address, ADMIN) == NEITHER
        assert reaches(other, sshd, address, PLAIN) == BOTH
    assert reaches(by, sshd, address, ADMIN) == BOTH


@pytest.mark.parametrize("address", FAMILIES)
def test_who_is_on_this_host_is_no_client(address: str, actors: dict[str, Actor], governed: Governed) -> None:
    """Although the host has an address in a network of clients."""
    own = ", ".join(f'"{one}"' for one in HOST_ADDRESSES)
    load(governed, host=f"version: 1\nnetworks: {{clients: {{cidr: [{own}], plane: inference}}}}\n{CLOSED}")
    assert reaches(actors["by"], actors["sshd"], address, ADMIN) == BOTH


@pytest.mark.parametrize("address", FAMILIES)
def test_a_session_that_is_there_goes_on(address: str, actors: dict[str, Actor], governed: Governed) -> None:
    """Also when nobody knew of the connection: it is older than our table."""
    client, sshd = actors["client"], actors["sshd"]
    load(governed, host=BY_ADDRESS)
    listener = sshd(ops.listen, address, ADMIN)
    made = client(ops.connect, address, ADMIN)
    accepted = sshd(ops.accept, listener)
    for host in (BY_ADDRESS + CLOSED, BY_INTERFACE + CLOSED):
        load(governed, host=host)
        for forgotten in (False, True):
            if forgotten:
                governed.agent(ops.forget_connections)
            for one, other in ((client, made), (sshd, accepted)), ((sshd, accepted), (client, made)):
                assert one[0](ops.send, one[1], b"data") == "ok"
                assert other[0](ops.receive, other[1]) == b"data"
        assert client(ops.connect, address, ADMIN) == "ECONNREFUSED"
    client(ops.close, made)
    sshd(ops.close, accepted, listener)


@pytest.mark.parametrize("address", HERE)
def test_no_workload_reaches_them_on_this_host(
    address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    w, by, sshd = actors["w"], actors["by"], actors["sshd"]
    load(governed, rules("w", EVERYWHERE), host=BY_ADDRESS)
    assert reaches(w, sshd, address, ADMIN) == BOTH
    listener = sshd(ops.listen, address, ADMIN + 1)
    made = w(ops.connect, address, ADMIN + 1)
    accepted = sshd(ops.accept, listener)
    load(governed, rules("w", EVERYWHERE), host="version: 1\nhost: {admin_ports: [2022-2023, 2022/udp]}\n")
    assert reaches(w, sshd, address, ADMIN) == NEITHER
    assert w(ops.connect, address, ADMIN) == "ECONNREFUSED", "at once"
    w(ops.send, made, b"more")
    assert sshd(ops.pending, accepted) == [], "what was open is over"
    assert reaches(w, sshd, address, PLAIN) == BOTH
    assert reaches(by, sshd, address, ADMIN) == BOTH
    assert reaches(w, w, address, ADMIN) == BOTH, "its own listener"
    load(governed, rules("w", EVERYWHERE, mode="observe"))
    assert reaches(w, sshd, address, ADMIN) == BOTH
    w(ops.close, made)
    sshd(ops.close, accepted, listener)


@pytest.mark.parametrize("address", LOOPBACKS)
def test_nor_does_a_rule_by_the_name_of_a_workload(
    address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    w, other, by = actors["w"], actors["other"], actors["by"]
    to = "[{to: 'workload:other', ports: [2022, 2022/udp, 9022, 9022/udp]}]"
    from_ = to.replace("to: 'workload:other'", "from: ['workload:w', host]")
    load(governed, rules("w", to), rules("other", ingress=from_), host=BY_ADDRESS)
    assert reaches(w, other, address, ADMIN) == BOTH
    load(governed, rules("w", to), rules("other", ingress=from_))
    assert reaches(w, other, address, ADMIN) == NEITHER
    assert reaches(w, other, address, PLAIN) == BOTH
    assert reaches(by, other, address, ADMIN) == BOTH, "of this host, and no workload"


OVER_ONE = BY_ADDRESS + "  wire: {interface: eth0}\n"


@pytest.mark.parametrize("address", FAMILIES)
@pytest.mark.parametrize(
    ("host", "ingress"),
    [(BY_ADDRESS, FROM_ALL), (BY_INTERFACE, FROM_ALL), (OVER_ONE, FROM_ALL.replace("any", "wire"))],
    ids=["cidr", "interface", "both"],
)
def test_nor_a_client_a_workload_that_listens_on_one(
    host: str, ingress: str, address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    client, w = actors["client"], actors["w"]
    load(governed, rules("w", ingress=ingress), host=host)
    listener = w(ops.listen, address, ADMIN)
    made = client(ops.connect, address, ADMIN)
    accepted = w(ops.accept, listener)
    load(governed, rules("w", ingress=ingress), host=host + CLOSED)
    w(ops.send, accepted, b"answer")
    assert client(ops.receive, made, 0.2) == "timeout", "nor is he answered"
    client(ops.send, made, b"more")
    assert b"more" not in w(ops.pending, accepted)
    w(ops.close, accepted, listener)
    client(ops.close, made)
    assert reaches(client, w, address, ADMIN) == NEITHER
    assert reaches(client, w, address, PLAIN) == BOTH
    expected = NEITHER if host == BY_INTERFACE else BOTH
    assert reaches(actors["admin"], w, address, ADMIN) == expected


NAT = """table inet theirs {{
  chain p {{ type nat hook prerouting priority -100; {rules} }}
  chain o {{ type nat hook output priority -100; {rules} }}
  chain s {{ type nat hook postrouting priority 100; {after} }}
}}
"""


@pytest.fixture
def theirs(governed: Governed) -> Iterator[None]:
    yield
    governed.nft("delete table inet theirs\n")


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize("address", FAMILIES)
def test_the_port_that_the_client_used_counts(address: str, actors: dict[str, Actor], governed: Governed) -> None:
    """Somebody redirects: an admin port to a harmless one, and a harmless one to an admin port."""
    client, w, by, sshd = (actors[name] for name in ("client", "w", "by", "sshd"))
    pairs = ((ADMIN, PLAIN), (9023, ADMIN))
    moved = "".join(f"{p} dport {a} redirect to :{b};" for p in ("tcp", "udp") for a, b in pairs)
    governed.nft(NAT.format(rules=moved, after=""))
    load(governed, rules("w", EVERYWHERE))
    for actor, expected in ((client, NEITHER), (w, NEITHER), (by, BOTH)):
        # The output hook sends to loopback what is redirected there.
        local = address if actor is client else ("::1" if ":" in address else "127.0.0.1")
        assert reaches(actor, sshd, local, ADMIN, at=PLAIN) == expected
        assert reaches(actor, sshd, local, 9023, at=ADMIN) == BOTH


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize("address", FAMILIES)
def test_a_published_port_of_a_container(address: str, actors: dict[str, Actor], governed: Governed) -> None:
    """It is passed on to another address, as Docker does; the container is played by another host."""
    six = ":" in address
    container = REMOTES["registry"][six]
    to = f"[{container}]" if six else container
    family = "ip6" if six else "ip"
    moved = "".join(
        f"{family} daddr {address} {p} dport {a} dnat {family} to {to}:{PLAIN};"
        for p in ("tcp", "udp")
        for a in (ADMIN, 9023)
    )
    governed.nft(NAT.format(rules=moved, after=f"{family} daddr {container} masquerade;"))
    governed.agent(ops.sysctl, net__ipv4__ip_forward="1", net__ipv6__conf__all__forwarding="1")
    load(governed, rules("w", EVERYWHERE))
    server = actors["admin"]
    for actor, expected in (("client", NEITHER), ("w", NEITHER), ("by", BOTH)):
        assert published(actors[actor], server, address, ADMIN, container) == expected, actor
        assert published(actors[actor], server, address, 9023, container) == BOTH, actor


def published(client: Actor, server: Actor, address: str, port: int, container: str) -> tuple[bool, bool]:
    """As `reaches`; the server has another address."""
    listener, far = server(ops.listen, container, PLAIN), server(ops.udp, container, PLAIN)
    here = client(ops.udp, "::" if ":" in address else "0.0.0.0", next(_ports))
    client(ops.sendto, here, b"question", address, port)
    made = client(ops.connect, address, port, timeout=1)
    accepted = server(ops.accept, listener, 2 if isinstance(made, int) else 0.05)
    try:
        udp = server(ops.receive_from, far, 2 if isinstance(made, int) else 0.15)[0] == b"question"
    except TimeoutError:
        udp = False
    for actor, descriptor in ((client, made), (server, accepted)):
        if isinstance(descriptor, int):
            actor(ops.close, descriptor)
    client(ops.close, here)
    server(ops.close, listener, far)
    return isinstance(accepted, int), udp


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize("address", FAMILIES)
@pytest.mark.parametrize("host", [BY_ADDRESS, BY_INTERFACE], ids=["cidr", "interface"])
def test_what_somebody_does_not_let_be_tracked(
    host: str, address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    client, w, by, sshd = (actors[name] for name in ("client", "w", "by", "sshd"))
    skip = "".join(f"{p} {end}port {ADMIN} notrack;" for p in ("tcp", "udp") for end in "ds")
    governed.nft(
        "table inet theirs {\n"
        f"  chain p {{ type filter hook prerouting priority -300; {skip} }}\n"
        f"  chain o {{ type filter hook output priority -300; {skip} }}\n}}\n"
    )
    load(governed, rules("w", EVERYWHERE), host=host)
    assert reaches(client, sshd, address, ADMIN) == BOTH
    load(governed, rules("w", EVERYWHERE), host=host + CLOSED)
    assert reaches(client, sshd, address, ADMIN, patience=0.3) == NEITHER
    assert reaches(w, sshd, address, ADMIN, patience=0.3) == NEITHER
    assert reaches(by, sshd, address, ADMIN) == BOTH
