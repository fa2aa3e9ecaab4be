"""Look-ups go to the listener of who asks, whatever server they were for; and nobody else gets there."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from attacks import desk, ops
from attacks.conftest import Witness
from governed import Actor, Governed, eventually, rules
from penstock.core.compile import Resolver
from penstock.core.policy import Upstream
from penstock.demo.lab import HOST_ADDRESSES, Lab
from penstock.demo.recorder import Recorder

pytestmark = pytest.mark.root

KINDS = ["udp", "tcp"]
LOOPBACKS = ("127.0.0.1", "::1")
REMOTE = ("203.0.113.66", "2001:db8:66::66")
"""The stranger: a server that answers whoever gets to it."""

LOCAL = ("127.0.0.53", "::1")
"""A stub of the host that does so too."""

NOBODY = ("192.0.2.53", "2001:db8::53", "169.254.169.254")
SERVERS = [pytest.param(a, id=a) for a in (*REMOTE, *LOCAL, *NOBODY)]
REACHED = [pytest.param(a, id=a) for a in (*REMOTE, *LOCAL)]
PORTS = {"w": 40053, "other": 40054}
UPSTREAMS = (Upstream(ip_address("198.51.100.10")), Upstream(ip_address("2001:db8:51::10")))
RESOLVER = Resolver(PORTS, UPSTREAMS)
NAMED = "[{to: hub.example}, {to: 203.0.113.200, ports: [80]}]"
FILES = (rules("w", NAMED), rules("other", NAMED), rules("plain"))
AT_ONCE = 0.3
"""Seconds within which a look-up fails when it fails at once, on a busy machine."""

IP_FREEBIND, IP_TRANSPARENT, IPV6_TRANSPARENT, IPV6_FREEBIND = 15, 19, 75, 78
_sources = itertools.count(24000)


@pytest.fixture(scope="module")
def wire(lab: Lab) -> Witness:
    """What comes over the wire to the stranger."""
    return Witness(Recorder(lab, lab.remote["stranger"], packets=True))


@pytest.fixture(scope="module")
def actors(lab: Lab, governed: Governed) -> Iterator[dict[str, Actor]]:
    """The resolver with a listener for each, a server afar and one here, and those who ask."""
    governed.load(*FILES, resolver=RESOLVER)
    with ExitStack() as stack:
        made = {name: stack.enter_context(governed.actor(name)) for name in ("w", "other", "plain")}
        made |= {name: stack.enter_context(governed.actor()) for name in ("by", "stub")}
        made["resolver"] = stack.enter_context(governed.resolver())
        made["far"] = stack.enter_context(Actor(lab.remote["stranger"]))
        made["near"] = stack.enter_context(Actor(lab.remote["registry"]))
        for name, port in PORTS.items():
            made["resolver"](desk.attend, name, LOOPBACKS, port)
        made["far"](desk.attend, "far", REMOTE)
        made["near"](desk.attend, "near", lab.remote["registry"].addresses)
        made["stub"](desk.attend, "stub", LOCAL)
        yield made


@pytest.fixture(autouse=True)
def nothing_yet(governed: Governed, actors: dict[str, Actor], wire: Witness) -> None:
    governed.load(*FILES, resolver=RESOLVER)
    seen(actors)
    wire.packets()


def seen(actors: dict[str, Actor]) -> dict[str, list[str]]:
    """What was asked, by the desk where it arrived; only desks where something did."""
    found = {name: actors["resolver"](desk.seen, name) for name in PORTS}
    found |= {name: actors[name](desk.seen, name) for name in ("far", "near", "stub")}
    return {name: asked for name, asked in found.items() if asked}


def server_of(address: str) -> str:
    """Whose that server is."""
    return "far" if address in REMOTE else "stub"


def loopback(address: str) -> str:
    return "::1" if ":" in address else "127.0.0.1"


def own(address: str) -> str:
    """The address that a packet to `address` comes from."""
    if address in LOCAL:
        return loopback(address)
    return next(a for a in HOST_ADDRESSES if (":" in a) == (":" in address))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("address", SERVERS)
def test_a_look_up_comes_to_the_listener_of_who_asks(
    address: str, kind: str, actors: dict[str, Actor], wire: Witness
) -> None:
    for connected in (True, False):
        assert actors["w"](desk.ask, kind, address, "one", connected=connected) == "w:one"
        assert actors["other"](desk.ask, kind, address, "two", connected=connected) == "other:two"
        assert seen(actors) == {"w": ["one"], "other": ["two"]}
    assert wire.protocols() == set()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("address", REACHED)
def test_those_of_others_go_where_they_went(
    address: str, kind: str, actors: dict[str, Actor], governed: Governed
) -> None:
    there = server_of(address)
    assert actors["by"](desk.ask, kind, address, "by") == f"{there}:by"
    assert ":" not in actors["plain"](desk.ask, kind, address, "denied")
    assert seen(actors) == {there: ["by"]}
    listed = f"[{{to: '{address}', ports: [53, 53/udp]}}]"
    governed.load(*FILES[:2], rules("plain", listed), resolver=RESOLVER)
    assert actors["plain"](desk.ask, kind, address, "allowed") == f"{there}:allowed"
    governed.load(rules("w", listed), rules("other", NAMED), resolver=RESOLVER)
    assert actors["w"](desk.ask, kind, address, "no name in its rules") == f"{there}:no name in its rules"
    governed.load(rules("w", f"[{{to: hub.example}}, {listed[1:]}"), rules("other", NAMED), resolver=RESOLVER)
    assert actors["w"](desk.ask, kind, address, "all its look-ups") == "w:all its look-ups"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("who", ["w", "other", "plain", "by", "resolver"])
@pytest.mark.parametrize("address", LOOPBACKS)
def test_nobody_asks_a_listener_directly(address: str, who: str, kind: str, actors: dict[str, Actor]) -> None:
    for port in PORTS.values():
        assert actors[who](desk.ask, kind, address, port=port) == "ECONNREFUSED" if kind == "tcp" else True
        for connected in (True, False):
            said, _ = actors[who](desk.quickly, kind, address, "x", port=port, connected=connected)
            assert ":x" not in said
    assert seen(actors) == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("address", REACHED)
@pytest.mark.parametrize("heir", ["by", "other", "plain"])
def test_the_heir_of_a_source_port_is_himself(
    heir: str, address: str, kind: str, actors: dict[str, Actor], governed: Governed
) -> None:
    """At once, and again after who had it before: conntrack still knows the redirect of the one before."""
    source = (own(address), next(_sources))
    governed.load(
        *FILES[:2], rules("plain", f"[{{to: '{address}', ports: [53, 53/udp]}}]"), resolver=RESOLVER
    )
    expected = {"w": "w", "other": "other", "by": server_of(address), "plain": server_of(address)}
    for number, who in enumerate(("w", heir, "w", "w", heir, heir, "w")):
        said = actors[who](desk.ask, kind, address, str(number), source=source)
        assert said == f"{expected[who]}:{number}", (number, who)


@pytest.mark.parametrize("address", REACHED)
def test_the_heir_of_a_connection_that_was_closed(
    address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    """As above, where conntrack saw it end in peace; a second later Linux gives such ports away."""
    governed.agent(ops.sysctl, net__ipv4__tcp_tw_reuse="1")
    source = (own(address), next(_sources))
    for who, server in (("w", "w"), ("by", server_of(address)), ("w", "w"), ("other", "other")):
        assert actors[who](patiently, address, source) == f"{server}:x"


def patiently(address: str, source: tuple[str, int]) -> str:
    """Ask as soon as the source port is free."""
    said: list[str] = []

    def free() -> bool:
        said.append(desk.ask("tcp", address, source=source, options=[]))
        return said[-1] != "EADDRNOTAVAIL"

    eventually(free)
    return said[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [4, 6])
def test_the_resolver_on_a_port_that_a_workload_had(
    family: int, kind: str, lab: Lab, actors: dict[str, Actor]
) -> None:
    """Its own question to its server is not sent back to itself."""
    upstream, source = lab.remote["registry"].address(family), (lab.host.address(family), next(_sources))
    for number, who in enumerate(("w", "resolver", "w", "resolver")):
        expected = "near" if who == "resolver" else "w"
        assert actors[who](desk.ask, kind, upstream, str(number), source=source) == f"{expected}:{number}"


@pytest.mark.parametrize("address", REACHED)
def test_a_syn_without_answer_lends_the_redirect_to_nobody(
    address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    """Its listener does not keep up; conntrack hands the redirect to who gets the source port next."""
    source, port = (own(address), next(_sources)), next(_sources)
    full = Resolver({**PORTS, "w": port}, UPSTREAMS)
    governed.load(*FILES, resolver=full)
    listener = actors["resolver"](ops.listen, loopback(address), port, 0)
    filler = actors["w"](ops.connect, address, 53)
    assert isinstance(filler, int)
    assert actors["w"](ops.connect, address, 53, source=source, timeout=0.1) == "timeout"
    accepted = actors["resolver"](ops.accept, listener)
    assert actors["other"](desk.ask, "tcp", address, "other", source=source) == "ECONNREFUSED"
    assert actors["resolver"](ops.accept, listener, 0.05) == "timeout"
    assert actors["by"](desk.ask, "tcp", address, "by", source=source) == "ECONNREFUSED", "his next port is good"
    assert actors["resolver"](ops.accept, listener, 0.05) == "timeout"
    assert actors["by"](desk.ask, "tcp", address, "by") == f"{server_of(address)}:by"
    actors["w"](ops.close, filler)
    actors["resolver"](ops.close, listener, accepted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("address", [pytest.param(a, id=a) for a in LOCAL])
def test_who_asked_a_listener_directly_leaves_nothing_behind(
    address: str, kind: str, actors: dict[str, Actor]
) -> None:
    """The flow that was refused has the ports that the answer to a look-up will have."""
    source = (loopback(address), next(_sources))
    for who in ("by", "w", "other", "w"):
        assert ":" not in actors[who](desk.ask, kind, loopback(address), port=PORTS["w"], source=source)
        assert actors["w"](desk.ask, kind, address, "one", source=source) == "w:one"
    assert actors["by"](desk.ask, kind, address, "two", source=source) == f"{server_of(address)}:two"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [4, 6])
def test_a_foreign_nat_to_the_port_of_a_listener_opens_nothing(
    family: int, kind: str, lab: Lab, actors: dict[str, Actor], wire: Witness, governed: Governed
) -> None:
    """As Docker does for published ports: the same port, and another host."""
    ip, here, far = {4: "ip", 6: "ip6"}[family], lab.host.address(family), lab.remote["stranger"].address(family)
    to = f"[{far}]:{PORTS['w']}" if family == 6 else f"{far}:{PORTS['w']}"
    governed.nft(
        f"table {ip} docker {{ chain o {{ type nat hook output priority -100;"
        f" {ip} daddr {here} meta l4proto {{ tcp, udp }} th dport 9999 dnat to {to}; }}\n}}"
    )
    assert ":" not in actors["w"](desk.ask, kind, here, port=9999)
    assert wire.protocols() == set()
    actors["by"](desk.ask, kind, here, port=9999)
    assert wire.protocols() == {kind}
    governed.nft(f"delete table {ip} docker")


# --- nobody listens ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("address", SERVERS)
def test_without_a_listener_look_ups_fail_at_once(
    address: str, kind: str, actors: dict[str, Actor], wire: Witness, governed: Governed
) -> None:
    governed.load(*FILES, resolver=Resolver({**PORTS, "w": next(_sources)}, UPSTREAMS))
    said, seconds = actors["w"](desk.quickly, kind, address)
    assert said == "ECONNREFUSED"
    assert seconds < AT_ONCE
    assert seen(actors) == {}
    assert wire.protocols() == set()
    governed.load(*FILES, resolver=Resolver({"other": PORTS["other"]}, UPSTREAMS))
    said, seconds = actors["w"](desk.quickly, kind, address)
    assert ":" not in said, "nobody can listen for it"
    assert seen(actors) == {}
    assert wire.protocols() == set()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("squatter", ["by", "other", "plain"])
@pytest.mark.parametrize("address", [pytest.param(a, id=a) for a in (*REMOTE, *LOCAL)])
def test_who_gets_the_port_gets_no_look_up(
    address: str, squatter: str, kind: str, actors: dict[str, Actor], governed: Governed
) -> None:
    port = next(_sources)
    governed.load(*FILES, resolver=Resolver({**PORTS, "w": port}, UPSTREAMS))
    actors[squatter](desk.attend, "squatter", LOOPBACKS, port)
    try:
        said, seconds = actors["w"](desk.quickly, kind, address, "secret")
        assert ":secret" not in said
        assert seconds < AT_ONCE or said == "timeout"
        assert actors[squatter](desk.seen, "squatter") == []
    finally:
        actors[squatter](desk.leave, "squatter")
    actors["resolver"](desk.attend, "back", LOOPBACKS, port)
    assert actors["w"](desk.ask, kind, address, "again") == "back:again"
    actors["resolver"](desk.leave, "back")


@pytest.mark.parametrize("address", [pytest.param(a, id=a) for a in (*REMOTE, *LOCAL)])
def test_who_gets_the_port_does_not_take_over_what_was_begun(
    address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    """A UDP socket of the workload was answered; then the squatter speaks first, as if he answered too."""
    port, near = next(_sources), loopback(address)
    governed.load(*FILES, resolver=Resolver({**PORTS, "w": port}, UPSTREAMS))
    source = (own(address), next(_sources))
    actors["resolver"](desk.attend, "short", LOOPBACKS, port)
    actors["w"](desk.keep, "open", "udp", address, source)
    assert actors["w"](desk.again, "open", address, "one") == "short:one"
    actors["resolver"](desk.leave, "short")
    squat = actors["by"](ops.udp, near, port)
    for _ in range(3):
        actors["by"](ops.sendto, squat, b"into", *source)
        assert "into" not in actors["w"](desk.again, "open", address, "secret")
        assert b"secret" not in actors["by"](ops.pending, squat)
    actors["by"](ops.close, squat)
    actors["w"](desk.drop, "open")


# --- how sockets may be used ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("address", SERVERS)
def test_many_look_ups_by_one_socket(address: str, connected: bool, kind: str, actors: dict[str, Actor]) -> None:
    assert actors["w"](desk.many, kind, address, 30, connected=connected) == [f"w:q{n}" for n in range(30)]


def from_one_socket(addresses: tuple[str, ...]) -> list[str]:
    with desk.asker("udp", addresses[0]) as sock:
        found = []
        for address in addresses:
            sock.sendto(b"x", (address, desk.PORT))
        for _ in addresses:
            answer, peer = sock.recvfrom(100)
            found.append(f"{answer.decode()}@{peer[0]}")
        return found


def test_one_socket_asks_many_servers(actors: dict[str, Actor]) -> None:
    for addresses in ((REMOTE[0], NOBODY[0], REMOTE[0]), (REMOTE[1], NOBODY[1], REMOTE[1])):
        assert actors["w"](from_one_socket, addresses) == [f"w:x@{address}" for address in addresses]


def one_after_the_other(address: str, source: tuple[str, int], count: int) -> list[str]:
    """TCP look-ups from one source port, which a reset leaves free."""
    found = []
    for number in range(count):
        with desk.asker("tcp", address, source, [desk.RESET]) as sock:
            sock.connect((address, desk.PORT))
            found.append(desk.asked(sock, str(number), address))
    return found


@pytest.mark.parametrize("address", REACHED)
def test_a_source_port_again_and_again(address: str, actors: dict[str, Actor]) -> None:
    source = (own(address), next(_sources))
    assert actors["w"](one_after_the_other, address, source, 20) == [f"w:{n}" for n in range(20)]
    states = actors["by"](states_of, source[1])
    assert not states & {"LAST_ACK", "CLOSE_WAIT", "FIN_WAIT1", "FIN_WAIT2"}, states


NAMES = (
    "", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT",
    "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV",
)  # fmt: skip


def states_of(port: int) -> set[str]:
    """The states of TCP sockets at that port."""
    found = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/net/{table}") as file:
            for line in file.readlines()[1:]:
                fields = line.split()
                if f":{port:04X}" in fields[1] + fields[2]:
                    found.add(NAMES[int(fields[3], 16)])
    return found


@pytest.mark.parametrize("address", REACHED)
def test_the_server_closes_first(address: str, actors: dict[str, Actor], governed: Governed) -> None:
    """Then its end of the connection is in TIME_WAIT, which has no cgroup; the same source port comes again."""
    port, source = next(_sources), (own(address), next(_sources))
    governed.load(*FILES, resolver=Resolver({**PORTS, "w": port}, UPSTREAMS))
    listener = actors["resolver"](ops.listen, loopback(address), port)
    for _ in range(3):
        made = actors["w"](ops.connect, address, 53, source=source)
        accepted = actors["resolver"](ops.accept, listener)
        assert isinstance(accepted, int)
        actors["resolver"](ops.close, accepted)
        assert actors["w"](ops.receive, made) == b""
        actors["w"](ops.close, made)
        # Who is nobody's does not get in with the same ports.
        direct = actors["by"](ops.connect, loopback(address), port, source=(loopback(address), source[1]))
        assert direct == "ECONNREFUSED"
        assert actors["resolver"](ops.accept, listener, 0.02) == "timeout"
    actors["resolver"](ops.close, listener)


def shares(address: str, source: tuple[str, int]) -> int:
    sock = socket.socket(ops.family_of(address), socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(source)
    sock.connect((address, desk.PORT))
    return sock.detach()


@pytest.mark.parametrize("address", REACHED)
def test_a_source_port_that_two_share_at_the_same_time(address: str, actors: dict[str, Actor]) -> None:
    source = (own(address), next(_sources))
    mine, theirs = (actors[who](shares, address, source) for who in ("w", "by"))
    for number in range(3):
        actors["w"](ops.send, mine, f"w{number}".encode())
        actors["by"](ops.send, theirs, f"by{number}".encode())
    found = seen(actors)
    assert found == {"w": ["w0", "w1", "w2"], server_of(address): ["by0", "by1", "by2"]}
    actors["w"](ops.close, mine)
    actors["by"](ops.close, theirs)


BORROWED = {4: ("203.0.113.199", (0, IP_FREEBIND, 1)), 6: ("2001:db8:66::199", (41, IPV6_FREEBIND, 1))}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("address", REACHED)
def test_with_a_borrowed_source_nothing_is_asked(
    address: str, kind: str, actors: dict[str, Actor], wire: Witness
) -> None:
    """The answer would go to the stranger whose address it is."""
    source, option = BORROWED[6 if ":" in address else 4]
    transparent = (41, IPV6_TRANSPARENT, 1) if ":" in address else (0, IP_TRANSPARENT, 1)
    for options in ([option], [transparent]):
        said = actors["w"](desk.ask, kind, address, source=(source, 0), options=options)
        assert ":x" not in said
        assert seen(actors) == {}
        assert wire.protocols() == set()


def in_fragments(address: str, size: int) -> str:
    with desk.asker("udp", address) as sock:
        sock.connect((address, desk.PORT))
        sock.send(b"f" * size)
        return sock.recv(1000).decode()


@pytest.mark.parametrize("size", [4000, 60000])
@pytest.mark.parametrize("address", SERVERS)
def test_a_look_up_larger_than_a_packet(
    address: str, size: int, actors: dict[str, Actor], wire: Witness
) -> None:
    assert actors["w"](in_fragments, address, size) == "w:" + "f" * 100
    assert wire.packets() == []


@pytest.mark.parametrize("address", [pytest.param(a, id=a) for a in REMOTE])
def test_with_a_route_of_its_own_nothing_is_asked(
    address: str, lab: Lab, actors: dict[str, Actor], wire: Witness
) -> None:
    """The first stop may be a server that some rule allows."""
    via = lab.remote["registry"].address(6 if ":" in address else 4)
    option = desk.by_way_of(address, via)
    assert actors["by"](desk.ask, "udp", address, "by", options=[option]) != "EINVAL"
    for kind in KINDS:
        assert ":" not in actors["w"](desk.ask, kind, address, "secret", options=[option])
    assert all("secret" not in asked for asked in seen(actors).values())
    assert wire.packets() == []


# --- which way they leave ---

SO_BINDTODEVICE = 25
TO_WIRE: desk.Option = (socket.SOL_SOCKET, SO_BINDTODEVICE, b"eth0\0")


@pytest.fixture
def neighbours(lab: Lab) -> Iterator[None]:
    """Somebody on the link says that the loopback addresses are his."""
    mac = lab.remote["stranger"].run(["ip", "-br", "link", "show", "eth0"]).stdout.split()[2]
    for address in LOOPBACKS:
        lab.host.run(["ip", "neigh", "replace", address, "lladdr", mac, "dev", "eth0"])
    yield
    for address in LOOPBACKS:
        lab.host.run(["ip", "neigh", "del", address, "dev", "eth0"])


@pytest.mark.usefixtures("neighbours")
@pytest.mark.parametrize("address", [pytest.param(a, id=a) for a in (*REMOTE, *NOBODY)])
def test_a_socket_bound_to_a_device_does_not_send_there(
    address: str, actors: dict[str, Actor], wire: Witness, governed: Governed
) -> None:
    """Its packets go there whatever destination they are given.  Everybody may bind one."""
    for kind in KINDS:
        assert actors["by"](desk.ask, kind, address, options=[TO_WIRE]) != ""
        assert actors["w"](desk.ask, kind, address, "secret", options=[TO_WIRE]) in ("EPERM", "timeout")
    wire.packets()
    before = governed.counters()["denied_out_w"]
    assert actors["w"](desk.ask, "udp", address, "secret", options=[TO_WIRE]) == "EPERM"
    actors["w"](desk.keep, "late", "udp", address)
    assert actors["w"](desk.again, "late", address, "one") == "w:one"
    actors["w"](desk.option, "late", *TO_WIRE)
    assert actors["w"](desk.again, "late", address, "secret") == "EPERM"
    actors["w"](desk.drop, "late")
    assert wire.protocols() == set()
    assert governed.counters()["denied_out_w"] == before + 2
    assert seen(actors)["w"] == ["one"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_a_link_local_server_is_not_redirected(
    mode: str, kind: str, lab: Lab, actors: dict[str, Actor], wire: Witness, governed: Governed
) -> None:
    """A socket that talks to it is bound to its interface."""
    stranger = lab.remote["stranger"]
    found = stranger.run(["ip", "-br", "-6", "addr", "show", "eth0", "scope", "link"]).stdout
    address = next(word for word in found.split() if word.startswith("fe80")).partition("/")[0] + "%eth0"
    governed.load(rules("w", NAMED, mode=mode), resolver=RESOLVER)
    with Actor(stranger) as server:
        server(desk.attend, "link", [], 53)
        server(listen_there, address)
        expected = "link:x" if mode == "observe" else None
        for connected in (True, False):
            said, seconds = actors["w"](desk.quickly, kind, address, connected=connected)
            assert said == expected if expected else ":x" not in said
            assert expected or seconds < AT_ONCE or not connected
        assert server(desk.seen, "link") == (["x", "x"] if expected else [])
        assert actors["by"](desk.ask, kind, address) == "link:x"
    assert (wire.protocols() == set()) is False
    assert seen(actors) == {}


def listen_there(address: str) -> None:
    """Let the desk `link` have that address, which only some sockets can bind."""
    there = desk.at(address, desk.PORT)
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        made = socket.socket(socket.AF_INET6, kind)
        made.bind(there)
        if kind == socket.SOCK_STREAM:
            made.listen()
        desk._desks["link"]._add(made, listens=kind == socket.SOCK_STREAM)


MANY = ("224.0.0.251", "255.255.255.255", "ff02::fb%eth0", "ff05::1")


@pytest.mark.parametrize("address", MANY)
def test_nothing_goes_to_many(address: str, actors: dict[str, Actor], wire: Witness) -> None:
    broadcast: desk.Option = (socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    actors["by"](desk.ask, "udp", address, options=[broadcast], connected=False)
    assert wire.protocols() == {"udp"}
    actors["w"](desk.ask, "udp", address, options=[broadcast], connected=False)
    assert wire.protocols() == set()


def odd(kind: str, address: str) -> str:
    """Other protocols, other ways to begin."""
    family = ops.family_of(address)
    types = {"udplite": (socket.SOCK_DGRAM, 136), "sctp": (socket.SOCK_STREAM, 132), "dccp": (6, 33)}
    try:
        if kind == "fastopen":
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.settimeout(0.3)
                sock.sendto(b"x", 0x20000000, (address, 53))
                return sock.recv(100).decode()
        if kind == "dontroute":
            return desk.ask("udp", address, options=[(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)])
        with socket.socket(family, *types[kind]) as sock:
            sock.settimeout(0.3)
            sock.connect((address, 53))
            sock.send(b"x")
            return sock.recv(100).decode()
    except OSError as error:
        return ops.name_of(error)


@pytest.mark.parametrize("kind", ["udplite", "sctp", "dccp", "fastopen", "dontroute"])
@pytest.mark.parametrize("address", [pytest.param(a, id=a) for a in REMOTE])
def test_other_ways_to_port_53(address: str, kind: str, actors: dict[str, Actor], wire: Witness) -> None:
    said = actors["w"](odd, kind, address)
    assert ":x" not in said or said == "w:x"
    assert set(seen(actors)) <= {"w"}
    assert wire.packets() == []
