"""Look-ups go to the listener of who asks, whatever server they were for; and nobody else gets there."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from ipaddress import ip_address

import pytest

from attacks import desk, ops
from attacks.conftest import Follower, Witness, until_soon
from governed import Actor, Governed, eventually, rules
from penstock.core.compile import Resolver
from penstock.core.lookup_chains import MOMENT
from penstock.core.policy import Policy, Upstream
from penstock.demo.lab import HOST_ADDRESSES, Lab

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
QUIET = 0.1
"""Seconds in which nothing arrives, where something would within a millisecond."""

SO_PRIORITY, MARK = 12, 0x70730000
AT_ONCE = 0.3
"""Seconds within which a look-up fails when it fails at once, on a busy machine."""

IP_FREEBIND, IP_TRANSPARENT, IPV6_TRANSPARENT, IPV6_FREEBIND = 15, 19, 75, 78
_sources = itertools.count(24000)


@pytest.fixture(scope="module")
def wire(lab: Lab) -> Witness:
    """What comes over the wire to the stranger."""
    return Witness(Follower(lab, lab.remote["stranger"], packets=True))


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


@pytest.fixture(scope="module")
def usual() -> list[Policy]:
    """What `nothing_yet` put in force last, as it was parsed."""
    return []


@pytest.fixture(autouse=True)
def nothing_yet(governed: Governed, actors: dict[str, Actor], wire: Witness, usual: list[Policy]) -> None:
    if not usual or governed.policy is not usual[0]:  # a test loaded something else
        governed.load(*FILES, resolver=RESOLVER)
        usual[:] = [governed.policy]
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
            said = actors[who](desk.ask, kind, address, port=port, connected=connected, patience=desk.BRIEF)
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
@pytest.mark.parametrize("heir", ["by", "other", "plain"])
def test_the_heir_of_a_source_port_gets_no_answer_to_what_was_asked_before(
    heir: str, address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    """Who asked chooses what it says, and it would come as from the heir's own server."""
    listening, source = next(_sources), (own(address), next(_sources))
    governed.load(*FILES, resolver=Resolver({**PORTS, "w": listening}, UPSTREAMS))
    listener = actors["resolver"](ops.udp, loopback(address), listening)
    for who, got in (("w", "b'forged'"), (heir, "'timeout'")):
        actors["w"](desk.keep, "asked", "udp", address, source)
        actors["w"](tell, "asked")
        _, peer, port = actors["resolver"](ops.receive_from, listener)
        if who != "w":
            actors["w"](desk.drop, "asked")
            actors[who](desk.keep, "asked", "udp", address, source)
        assert actors["resolver"](ops.sendto, listener, b"forged", peer, port) == "ok"
        assert actors[who](hear, "asked") == got
        actors[who](desk.drop, "asked")
    actors["resolver"](ops.close, listener)


def tell(name: str) -> None:
    desk._kept[name].send(b"asked")


def hear(name: str) -> str:
    """What comes within a moment, or the name of the error."""
    desk._kept[name].settimeout(QUIET)
    try:
        return repr(desk._kept[name].recv(100))
    except OSError as e:
        return repr(ops.name_of(e))


@pytest.mark.parametrize("address", REACHED)
def test_a_connection_from_before_asks_nobody_when_nobody_is_there(
    address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    """Although a rule opens the server: with names in force it is without effect."""
    rule = f"{{to: '{address}', ports: [53]}}"
    governed.load(rules("w", f"[{rule}]"), *FILES[1:], resolver=RESOLVER)
    actors["w"](desk.keep, "kept", "tcp", address, None, 53)
    assert actors["w"](desk.again, "kept", address, "one", 53) == f"{server_of(address)}:one"
    governed.load(rules("w", f"[{{to: hub.example}}, {rule}]"), *FILES[1:], resolver=RESOLVER)
    governed.nobody_is_there()
    assert ":" not in actors["w"](desk.again, "kept", address, "two", 53)
    assert seen(actors) == {server_of(address): ["one"]}
    actors["w"](desk.drop, "kept")


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
def test_a_syn_without_answer_diverts_nobody_else(
    address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    """Its listener does not keep up; the kernel still has that connection when somebody else gets the port."""
    source, port = (own(address), next(_sources)), next(_sources)
    full = Resolver({**PORTS, "w": port}, UPSTREAMS)
    governed.load(*FILES, resolver=full)
    listener = actors["resolver"](ops.listen, loopback(address), port, 0)
    filler = actors["w"](ops.connect, address, 53)
    assert isinstance(filler, int)
    assert actors["w"](ops.connect, address, 53, source=source, timeout=0.1) == "timeout"
    accepted = actors["resolver"](ops.accept, listener)
    assert actors["other"](desk.ask, "tcp", address, "other", source=source) == "other:other"
    assert actors["by"](desk.ask, "tcp", address, "by", source=source) == f"{server_of(address)}:by"
    assert actors["resolver"](ops.accept, listener, 0.05) == "timeout"
    actors["w"](ops.close, filler)
    actors["resolver"](ops.close, listener, accepted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("address", [pytest.param(a, id=a) for a in LOCAL])
def test_who_asked_a_listener_directly_leaves_nothing_behind(
    address: str, kind: str, actors: dict[str, Actor]
) -> None:
    """The flow that was refused has the ports that the answer to a look-up will have."""
    source = (loopback(address), next(_sources))
    direct = {"port": PORTS["w"], "source": source, "patience": desk.BRIEF}
    for who in ("by", "w", "other", "w"):
        assert ":" not in actors[who](desk.ask, kind, loopback(address), **direct)
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
    assert ":" not in actors["w"](desk.ask, kind, here, port=9999, patience=desk.BRIEF)
    assert wire.protocols() == set()
    actors["by"](desk.ask, kind, here, port=9999)
    assert wire.protocols() == {kind}
    governed.nft(f"delete table {ip} docker")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [4, 6])
def test_a_foreign_nat_of_what_was_diverted_takes_it_nowhere(
    family: int, kind: str, lab: Lab, actors: dict[str, Actor], wire: Witness, governed: Governed
) -> None:
    ip, here, far = {4: "ip", 6: "ip6"}[family], lab.host.address(family), lab.remote["stranger"].address(family)
    governed.nft(
        f"table {ip} theirs {{ chain o {{ type nat hook output priority -100;"
        f" meta l4proto {{ tcp, udp }} th dport {PORTS['w']} dnat to {far}; }}\n}}"
    )
    assert ":" not in actors["w"](desk.ask, kind, REMOTE[family == 6], patience=desk.BRIEF)
    assert wire.protocols() == set()
    actors["by"](desk.ask, kind, here, port=PORTS["w"])
    assert wire.protocols() == {kind}
    governed.nft(f"delete table {ip} theirs")


@pytest.mark.parametrize("n", [0, 1], ids=["v4", "v6"])
def test_the_resolver_answers_who_asked_it_and_nobody_with_his_port(n: int, actors: dict[str, Actor]) -> None:
    source = HOST_ADDRESSES[n], next(_sources)
    assert actors["w"](desk.ask, "udp", REMOTE[n], source=source) == "w:x"
    other = actors["by"](ops.udp, LOOPBACKS[n], source[1])
    with pytest.raises(PermissionError):
        actors["resolver"](desk.say, "w", "unasked", LOOPBACKS[n], source[1])
    assert actors["by"](ops.receive, other, QUIET) == "timeout"
    actors["by"](ops.close, other)


@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("address", REACHED)
def test_who_has_no_names_inside_of_one_that_has_asks_as_his_own_rules_say(
    address: str, kind: str, mode: str, lab: Lab, actors: dict[str, Actor], governed: Governed
) -> None:
    """Both are bound where they run; and the other way round."""
    outer, inner = "system.slice/outer.slice", "system.slice/outer.slice/inner.service"
    own_rule = rules("plain", f"[{{to: '{address}', ports: [53, 53/udp]}}]", mode=mode)
    for places in ({outer: "w", inner: "plain"}, {outer: "plain", inner: "w"}):
        governed.load(*FILES[:2], own_rule, places=places, resolver=RESOLVER)
        for place, whose in places.items():
            with Actor(lab.host, place) as one:
                expected = "w" if whose == "w" else server_of(address)
                assert one(desk.ask, kind, address, whose) == f"{expected}:{whose}"


# --- nobody listens ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("address", SERVERS)
def test_without_a_listener_look_ups_fail_at_once(
    address: str, kind: str, actors: dict[str, Actor], wire: Witness, governed: Governed
) -> None:
    """Nobody is there although that was said a moment ago, which a datagram is not told; or nobody said so."""
    governed.load(*FILES, resolver=Resolver({**PORTS, "w": next(_sources)}, UPSTREAMS))
    patience = desk.PATIENCE if kind == "tcp" else desk.BRIEF
    said, seconds = actors["w"](desk.quickly, kind, address, patience=patience)
    assert said == ("ECONNREFUSED" if kind == "tcp" else "timeout")
    assert seconds < AT_ONCE or kind == "udp"
    assert seen(actors) == {}
    assert wire.protocols() == set()
    governed.load(*FILES, resolver=RESOLVER)
    assert actors["w"](desk.ask, kind, address) == "w:x"
    for egress in (NAMED, f"[{{to: hub.example}}, {{to: '{address}', ports: [53, 53/udp]}}]"):
        governed.load(rules("w", egress), FILES[1], resolver=RESOLVER)
        governed.nobody_is_there()
        said, seconds = actors["w"](desk.quickly, kind, address)
        assert ":" not in said
        assert said != "timeout"
        assert seconds < AT_ONCE
    assert seen(actors) == {"w": ["x"]}
    assert wire.protocols() == set()
    for egress in (NAMED, f"[{{to: hub.example}}, {{to: '{address}', ports: [53, 53/udp]}}]"):
        governed.load(rules("w", egress), FILES[1], resolver=Resolver({"other": PORTS["other"]}, UPSTREAMS))
        said, seconds = actors["w"](desk.quickly, kind, address)
        assert ":" not in said, "nobody can listen for it"
        assert said != "timeout"
        assert seconds < AT_ONCE
    assert seen(actors) == {}
    assert wire.protocols() == set()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("address", [pytest.param(a, id=a) for a in REMOTE])
def test_who_was_observed_for_a_time_asks_past_nobody_when_it_is_over(
    address: str, kind: str, actors: dict[str, Actor], wire: Witness, governed: Governed
) -> None:
    """With a rule for the server, and all dead who could tell the kernel."""
    egress = f"[{{to: hub.example}}, {{to: '{address}', ports: [53, 53/udp]}}]"

    def observe(until: datetime) -> None:
        governed.load(rules("w", egress, mode="observe"), FILES[1], resolver=RESOLVER, until=until)
        governed.nobody_is_there()
        assert actors["w"](desk.ask, kind, address) == "far:x", "the control"
        wire.packets()

    until_soon(observe)
    said, seconds = actors["w"](desk.quickly, kind, address)
    assert ":" not in said
    assert seconds < AT_ONCE
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
        patience = desk.PATIENCE if kind == "tcp" else desk.BRIEF
        said, seconds = actors["w"](desk.quickly, kind, address, "secret", patience=patience)
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
        assert "into" not in actors["w"](desk.again, "open", address, "secret", patience=desk.BRIEF)
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


@pytest.mark.parametrize("n", [0, 1], ids=["v4", "v6"])
def test_one_socket_asks_many_servers(n: int, actors: dict[str, Actor]) -> None:
    """All at once, as musl does, which takes an answer of any of them: each comes from one of them.

    With a pause between, each answer comes from who was asked.
    """
    addresses = (REMOTE[n], NOBODY[n], REMOTE[n], LOCAL[n])
    answers = actors["w"](from_one_socket, addresses)
    assert len(answers) == len(addresses)
    assert set(answers) <= {f"w:x@{address}" for address in addresses}
    source = (own(REMOTE[n]), next(_sources))
    for number, address in enumerate((*addresses[:2], *addresses[:2])):
        time.sleep(1.5 * MOMENT / 1000 if number else 0)
        for _ in range(3):
            assert actors["w"](desk.ask, "udp", address, source=source) == "w:x"


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
    """With a reset, as the resolver does: in TIME_WAIT it would have no cgroup.  The same port comes again."""
    port, source = next(_sources), (own(address), next(_sources))
    governed.load(*FILES, resolver=Resolver({**PORTS, "w": port}, UPSTREAMS))
    listener = actors["resolver"](ops.listen, loopback(address), port)
    for _ in range(3):
        made = actors["w"](ops.connect, address, 53, source=source)
        accepted = actors["resolver"](ops.accept, listener)
        assert isinstance(accepted, int)
        actors["resolver"](desk.reset, accepted)
        assert actors["w"](ops.receive, made) == "ECONNRESET"
        actors["w"](ops.close, made)
        # Who is nobody's does not get in with the same ports.
        mine = (loopback(address), source[1])
        direct = actors["by"](ops.connect, loopback(address), port, source=mine, timeout=desk.BRIEF)
        assert direct in ("ECONNREFUSED", "timeout"), "a refusal may be taken for one of the look-up"
        assert actors["resolver"](ops.accept, listener, 0.02) == "timeout"
    actors["resolver"](ops.close, listener)


# --- the asker is gone ---


@pytest.mark.parametrize("n", [0, 1], ids=["v4", "v6"])
def test_an_answer_that_nobody_takes_is_not_quoted_to_whom_he_asked(
    n: int, lab: Lab, actors: dict[str, Actor], wire: Witness, governed: Governed
) -> None:
    port, here = next(_sources), HOST_ADDRESSES[n]
    governed.load(*FILES, resolver=Resolver({**PORTS, "w": port}, UPSTREAMS))
    answering = actors["resolver"](ops.udp, LOOPBACKS[n], port)
    for gone in (False, True):
        asking = actors["w"](ops.udp, here)
        actors["w"](ops.sendto, asking, b"secret", REMOTE[n], 53)
        _, *peer = actors["resolver"](ops.receive_from, answering)
        if gone:
            actors["w"](ops.close, asking)
        actors["resolver"](ops.sendto, answering, b"secret", *peer)
        if not gone:
            assert actors["w"](ops.receive_from, asking) == (b"secret", REMOTE[n], 53)
            actors["w"](ops.close, asking)
    time.sleep(QUIET)
    assert wire.packets() == []
    actors["far"](desk.say, "far", "answer", here, next(_sources))
    eventually(lambda: wire.packets() != [], timeout=1)  # the control: what nobody here asked for is answered so
    actors["resolver"](ops.close, answering)


@pytest.mark.parametrize("n", [0, 1], ids=["v4", "v6"])
@pytest.mark.parametrize("how", ["last word", "data", "reset"])
def test_what_the_kernel_says_for_who_is_gone_does_not_leave(
    how: str, n: int, actors: dict[str, Actor], wire: Witness, governed: Governed
) -> None:
    """From TIME_WAIT, and for sockets that are closed."""
    port = next(_sources)
    governed.load(*FILES, resolver=Resolver({**PORTS, "w": port}, UPSTREAMS))
    listener = actors["resolver"](ops.listen, LOOPBACKS[n], port)
    asking = actors["w"](ops.connect, REMOTE[n], 53)
    accepted = actors["resolver"](ops.accept, listener)
    assert isinstance(accepted, int)
    actors["w"](desk.reset if how == "reset" else ops.close, asking)
    if how == "last word":
        assert actors["resolver"](ops.receive, accepted) == b""
        time.sleep(QUIET)  # until its end was acknowledged, and waits for the other one
    else:
        for _ in range(3):
            actors["resolver"](ops.send, accepted, b"too late")
    actors["resolver"](ops.close, accepted, listener)
    time.sleep(QUIET)
    assert wire.packets() == []


@pytest.mark.parametrize("n", [0, 1], ids=["v4", "v6"])
def test_what_it_says_for_bystanders_does(n: int, actors: dict[str, Actor]) -> None:
    """The control, with the source port of a look-up a moment ago."""
    source = HOST_ADDRESSES[n], next(_sources)
    assert actors["w"](desk.ask, "tcp", REMOTE[n], source=source) == "w:x"
    assert actors["by"](desk.ask, "tcp", REMOTE[n], source=source, options=[]) == "far:x"
    eventually(lambda: not actors["far"](states_of, source[1]) & {"LAST_ACK", "CLOSE_WAIT"}, timeout=1)


def marked(address: str, port: int, priority: int) -> str:
    """What a program may mark its packets with, and who takes them."""
    options: list[desk.Option] = [(socket.SOL_SOCKET, SO_PRIORITY, priority)]
    return desk.ask("udp", address, "marked", port=port, options=options, patience=desk.BRIEF)


@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize("who", ["other", "plain", "w"])
def test_who_may_mark_packets_asks_for_nobody_else(address: str, who: str, actors: dict[str, Actor]) -> None:
    """Root may."""
    for name, port in PORTS.items():
        said = actors[who](marked, address, port, MARK)
        assert ":marked" not in said or name == who
    assert set(seen(actors)) <= {who}


def test_nobody_without_rights_may(lab: Lab) -> None:
    with Actor(lab.host, user="nobody") as nobody:
        assert nobody(marked, LOOPBACKS[0], PORTS["w"], MARK) == "EPERM"


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
        said = actors["w"](
            desk.ask, kind, address, source=(source, 0), options=options, patience=desk.BRIEF
        )
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
    brief = {"options": [option], "patience": desk.BRIEF}
    assert actors["by"](desk.ask, "udp", address, "by", **brief) != "EINVAL"
    for kind in KINDS:
        assert ":" not in actors["w"](desk.ask, kind, address, "secret", **brief)
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
    brief = {"options": [TO_WIRE], "patience": desk.BRIEF}
    for kind in KINDS:
        assert actors["by"](desk.ask, kind, address, **brief) != ""
        assert actors["w"](desk.ask, kind, address, "secret", **brief) in ("EPERM", "timeout")
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
    brief = {"options": [broadcast], "connected": False, "patience": desk.BRIEF}
    actors["by"](desk.ask, "udp", address, **brief)
    assert wire.protocols() == {"udp"}
    actors["w"](desk.ask, "udp", address, **brief)
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
