"""A learned address opens what its rule says, to its workload, while it counts; what it let in goes on."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from ipaddress import ip_address

import pytest

from attacks import desk, ops
from attacks.conftest import Follower, Witness, until_soon
from attacks.test_loopback import states
from attacks.test_plain import ATTEMPTS, attempt
from governed import Actor, Governed, eventually, rules
from penstock.core import render_nft
from penstock.core.compile import Resolver
from penstock.core.name_chains import DATAGRAMS, ENDED, LONG
from penstock.core.policy import Upstream
from penstock.demo.lab import HOST_ADDRESSES, Lab

pytestmark = pytest.mark.root

KINDS = ["udp", "tcp"]
FAMILIES = [pytest.param(4, id="v4"), pytest.param(6, id="v6")]
RESOLVER = Resolver({"w": 40053, "other": 40054}, (Upstream(ip_address("198.51.100.10")),))
NAME = "hub.example"
PORTS = (443, 444, 8000, 8010, 8011)
BOTH = f"[{{to: {NAME}, ports: [443, 443/udp]}}]"
W, OTHER, PLAIN = rules("w", BOTH), rules("other", BOTH), rules("plain")
QUICK = 0.05
"""Seconds within which a flow has ended."""
_sources = itertools.count(27000)


@pytest.fixture(scope="module")
def wire(lab: Lab) -> Witness:
    return Witness(Follower(lab, lab.remote["stranger"], packets=True))


@pytest.fixture(scope="module")
def actors(lab: Lab, governed: Governed) -> Iterator[dict[str, Actor]]:
    """Those who call, and who answers: on two hosts, and on the governed one."""
    governed.load(W, OTHER, PLAIN, resolver=RESOLVER)
    with ExitStack() as stack:
        made = {name: stack.enter_context(governed.actor(name)) for name in ("w", "w2", "other", "plain")}
        made["w2"].close()
        made["w2"] = stack.enter_context(governed.actor("w"))
        made |= {name: stack.enter_context(governed.actor()) for name in ("by", "here")}
        for name, host in (("far", "stranger"), ("near", "registry")):
            made[name] = stack.enter_context(Actor(lab.remote[host]))
            for port in PORTS:
                made[name](desk.attend, str(port), lab.remote[host].addresses, port)
        for address in (*HOST_ADDRESSES, "127.0.0.1", "::1"):
            made["here"](desk.attend, address, [address], 443)
        yield made


@pytest.fixture(autouse=True)
def nothing_learned(governed: Governed, actors: dict[str, Actor], wire: Witness) -> None:
    governed.load(PLAIN, resolver=RESOLVER)
    governed.load(W, OTHER, PLAIN, resolver=RESOLVER)
    wire.packets()


def far_of(lab: Lab, family: int) -> str:
    return lab.remote["stranger"].address(family)


def reaches(who: Actor, kind: str, address: str, port: int = 443, **more: object) -> bool:
    """Whether a new flow comes about, and is answered."""
    said: str = who(desk.ask, kind, address, port=port, **more)
    return said.endswith(":x")


def refused(who: Actor, wire: Witness, kind: str, address: str, port: int = 443, **more: object) -> bool:
    """Whether nothing of a new flow arrives, and who began it is told so."""
    wire.packets()
    said, seconds = who(desk.quickly, kind, address, port=port, **more)
    assert ":" not in said
    assert said != "timeout"
    assert seconds < desk.PATIENCE / 2 or ":" in address
    return not any(packet.protocol == kind and packet.port == port for packet in wire.packets())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_opens_its_port_to_its_workload(
    family: int, kind: str, lab: Lab, governed: Governed, actors: dict[str, Actor], wire: Witness
) -> None:
    far = far_of(lab, family)
    for who in ("w", "other", "plain"):
        assert refused(actors[who], wire, kind, far)
    governed.learn("w", NAME, far)
    assert reaches(actors["w"], kind, far)
    assert reaches(actors["w2"], kind, far)
    for port in PORTS[1:]:
        assert refused(actors["w"], wire, kind, far, port)
    for who in ("other", "plain"):
        assert refused(actors[who], wire, kind, far), "what is learned for one is learned for one"
    for port in PORTS:
        assert reaches(actors["by"], kind, far, port)
    governed.learn("other", NAME, far)
    assert reaches(actors["other"], kind, far)
    governed.retract("other", far)
    assert refused(actors["other"], wire, kind, far)
    assert reaches(actors["w"], kind, far)
    governed.run_out("w", NAME, far)
    assert refused(actors["w"], wire, kind, far)
    assert reaches(actors["by"], kind, far)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_opens_no_other_address_and_no_other_protocol(
    family: int, lab: Lab, governed: Governed, actors: dict[str, Actor], wire: Witness
) -> None:
    far, near = far_of(lab, family), lab.remote["registry"].address(family)
    governed.learn("w", NAME, near)
    for kind in KINDS:
        assert reaches(actors["w"], kind, near)
        assert refused(actors["w"], wire, kind, far)
    governed.learn("w", NAME, far)
    wire.packets()
    for protocol in ("ping", "udplite", "sctp"):
        actors["w"](other_protocol, protocol, far)
        assert wire.packets() == []
        actors["by"](other_protocol, protocol, far)
        assert wire.packets() != [] or protocol == "sctp"


def other_protocol(name: str, address: str) -> str:
    family = ops.family_of(address)
    icmp, echo = (socket.IPPROTO_ICMPV6, 128) if ":" in address else (socket.IPPROTO_ICMP, 8)
    made = {"ping": (socket.SOCK_RAW, icmp), "udplite": (socket.SOCK_DGRAM, 136), "sctp": (socket.SOCK_RAW, 132)}
    try:
        with socket.socket(family, *made[name]) as sock:
            sock.settimeout(0.3)
            if name == "ping":
                # The kernel fills in ICMPv6's checksum; that of this request is known.
                sock.sendto(struct.pack("!BBHHH", echo, 0, 0xF7FE if echo == 8 else 0, 0, 1), (address, 0))
                while True:
                    data = sock.recv(1000)
                    if data[-8] in (0, 129):
                        return "answered"
            sock.sendto(struct.pack("!HHII", 443, 443, 0, 0), (address, 443 if name == "udplite" else 0))
            return "sent"
    except OSError as error:
        return ops.name_of(error)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("function", ATTEMPTS, ids=lambda function: function.__name__)
def test_nothing_else_leaves_by_what_was_learned(
    function: Callable[[str], None],
    family: int,
    lab: Lab,
    governed: Governed,
    actors: dict[str, Actor],
    wire: Witness,
) -> None:
    """To an address that was learned, at a port that no rule has; and to one that was not."""
    for address, learned in ((far_of(lab, family), True), (far_of(lab, family), False)):
        if learned:
            governed.learn("w", NAME, address)
        else:
            governed.retract("w", address)
        wire.packets()
        actors["w"](attempt, function, address)
        assert wire.packets() == []
    actors["by"](attempt, function, address)


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_about_its_flows_arrive(
    family: int, lab: Lab, governed: Governed, actors: dict[str, Actor]
) -> None:
    """As long as the address counts, and behind it."""
    far, port = far_of(lab, family), next(_sources)
    actors["far"](ops.sysctl, net__ipv4__icmp_ratelimit="0", net__ipv6__icmp__ratelimit="0")
    governed.load(rules("w", f"[{{to: {NAME}, ports: [{port}/udp]}}]"), resolver=RESOLVER)
    governed.learn("w", NAME, far)
    actors["w"](desk.keep, "flow", "udp", far, None, port)
    assert actors["w"](desk.again, "flow", far, "x", port) == "ECONNREFUSED"
    governed.run_out("w", NAME, far)
    assert actors["w"](desk.again, "flow", far, "x", port) == "ECONNREFUSED"
    actors["w"](desk.drop, "flow")


@pytest.mark.parametrize("closes", ["workload", "server"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection_outlives_the_answer(
    closes: str, family: int, lab: Lab, governed: Governed, actors: dict[str, Actor], wire: Witness
) -> None:
    far, source, port = far_of(lab, family), next(_sources), next(_sources)
    governed.load(rules("w", f"[{{to: {NAME}, ports: [{port}]}}]"), resolver=RESOLVER)
    governed.learn("w", NAME, far)
    listener = actors["far"](ops.listen, far, port)
    made = actors["w"](ops.connect, far, port, source=(lab.host.address(family), source))
    accepted = actors["far"](ops.accept, listener)
    governed.run_out("w", NAME, far)
    assert refused(actors["w"], wire, "tcp", far, port)
    for _ in range(3):
        actors["w"](ops.send, made, b"question")
        assert actors["far"](ops.receive, accepted) == b"question"
        actors["far"](ops.send, accepted, b"answer" * 2000)
        assert len(actors["w"](receive_all, made, 12000)) == 12000
    (one, its), (two, other) = [("w", made), ("far", accepted)][:: 1 if closes == "workload" else -1]
    actors[one](ops.close, its)
    assert actors[two](ops.receive, other) == b""
    actors[two](ops.close, other)
    actors["far"](ops.close, listener)
    # Both ends are through with it: nobody waits for the last word of the other.
    for who in (actors["by"], actors["far"]):
        eventually(partial(is_over, who, source), 2)


def is_over(who: Actor, port: int) -> bool:
    left: set[str] = who(states, port)
    return not left - {"TIME-WAIT"}


def receive_all(descriptor: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = ops.receive(descriptor)
        if not isinstance(more, bytes) or not more:
            break
        data += more
    return data


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection_that_ends_is_not_remembered_for_long(
    family: int, lab: Lab, governed: Governed, actors: dict[str, Actor]
) -> None:
    far = far_of(lab, family)
    governed.learn("w", NAME, far)
    actors["w"](desk.keep, "long", "tcp", far, None, 443)
    assert LONG - 10 < governed.held("w", flows=True)[far] <= LONG
    actors["w"](desk.drop, "long")
    eventually(lambda: governed.held("w", flows=True)[far] <= ENDED)


@pytest.mark.parametrize("family", FAMILIES)
def test_nor_when_it_ends_after_the_answer(
    family: int, lab: Lab, governed: Governed, actors: dict[str, Actor]
) -> None:
    far, port = far_of(lab, family), next(_sources)
    governed.load(rules("w", f"[{{to: {NAME}, ports: [{port}]}}]"), resolver=RESOLVER)
    governed.learn("w", NAME, far)
    listener = actors["far"](ops.listen, far, port)
    made = actors["w"](ops.connect, far, port)
    accepted = actors["far"](ops.accept, listener)
    governed.run_out("w", NAME, far)
    actors["w"](ops.send, made, b"x")
    assert governed.held("w", flows=True)[far] > LONG - 10
    actors["w"](ops.close, made)
    assert governed.held("w", flows=True)[far] <= ENDED
    actors["far"](ops.close, accepted, listener)


@pytest.mark.parametrize("family", FAMILIES)
def test_who_is_not_answered_fills_no_memory(
    family: int, lab: Lab, governed: Governed, actors: dict[str, Actor]
) -> None:
    nobody = {4: "203.0.113.99", 6: "2001:db8:66::99"}[family]
    governed.learn("w", NAME, nobody, far_of(lab, family))
    assert actors["w"](ops.connect, nobody, 443, timeout=0.2) == "timeout"
    assert not isinstance(actors["w"](ops.connect, far_of(lab, family), 443, timeout=0.00001), bytes)
    assert nobody not in governed.held("w", flows=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_ports_begin_nothing_anew(
    family: int, lab: Lab, governed: Governed, actors: dict[str, Actor], wire: Witness
) -> None:
    """The connection is remembered still; a new one with its ports needs a learned address."""
    far, source = far_of(lab, family), (lab.host.address(family), next(_sources))
    governed.learn("w", NAME, far)
    assert reaches(actors["w"], "tcp", far, source=source)
    governed.run_out("w", NAME, far)
    assert far in governed.held("w", flows=True)
    assert refused(actors["w"], wire, "tcp", far, source=source)
    governed.learn("w", NAME, far)
    assert reaches(actors["w"], "tcp", far, source=source)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_datagram_flow_outlives_the_answer_while_it_talks(
    family: int, lab: Lab, governed: Governed, actors: dict[str, Actor], wire: Witness
) -> None:
    far = far_of(lab, family)
    governed.learn("w", NAME, far)
    actors["w"](desk.keep, "quic", "udp", far, None, 443)
    assert actors["w"](desk.again, "quic", far, "one", 443) == "443:one"
    governed.run_out("w", NAME, far)
    first = governed.held("w", flows=True)[far]
    assert first <= DATAGRAMS
    assert refused(actors["w"], wire, "udp", far)
    time.sleep(0.1)
    assert actors["w"](desk.again, "quic", far, "two", 443) == "443:two"
    assert governed.held("w", flows=True)[far] > first - 0.05, "each datagram lengthens it"
    # When it has run out:
    governed.retract("w", far)
    assert ":" not in actors["w"](desk.again, "quic", far, "three", 443)
    assert actors["far"](desk.seen, "443")[-1] == "two"
    actors["w"](desk.drop, "quic")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_who_takes_an_address_out_ends_its_flows_at_once_and_no_others(
    family: int, kind: str, lab: Lab, governed: Governed, actors: dict[str, Actor]
) -> None:
    far, near = far_of(lab, family), lab.remote["registry"].address(family)
    for workload in ("w", "other"):
        governed.learn(workload, NAME, far, near)
        actors[workload](desk.keep, "far", kind, far, None, 443)
        actors[workload](desk.keep, "near", kind, near, None, 443)
    for workload, address in itertools.product(("w", "other"), (far, near)):
        name = "far" if address == far else "near"
        assert actors[workload](desk.again, name, address, "one", 443) == "443:one"
    end = time.monotonic() + 5
    actors["w"].start(drip, "far", end)
    time.sleep(0.05)
    governed.retract("w", far)
    ended, retracted = actors["w"].result(), time.monotonic()
    assert ended < retracted + QUICK
    assert actors["w"](desk.again, "near", near, "two", 443) == "443:two"
    assert actors["other"](desk.again, "far", far, "two", 443) == "443:two"
    assert actors["other"](desk.again, "near", near, "two", 443) == "443:two"
    governed.run_out("w", NAME, near)
    assert actors["w"](desk.again, "near", near, "three", 443) == "443:three"
    for workload in ("w", "other"):
        for name in ("far", "near"):
            actors[workload](desk.drop, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_of_hundreds_of_busy_flows_none_goes_on(family: int, lab: Lab, governed: Governed) -> None:
    """Packets write their flows into the set while it is emptied."""
    far, port, count = far_of(lab, family), 8012, 200
    governed.load(rules("w", f"[{{to: {NAME}, ports: [{port}/udp]}}]"), resolver=RESOLVER)
    governed.learn("w", NAME, far)
    with Actor(lab.remote["stranger"]) as there, ExitStack() as stack:
        receiver = there(ops.udp, far, port)
        senders = [stack.enter_context(governed.actor("w")) for _ in range(2)]
        for attempt_number in range(3):
            for sender in senders:
                sender.start(hammer, far, port, count, time.monotonic() + 1)
            eventually(lambda: len(governed.flows("w", far)) == len(senders) * count)
            governed.retract("w", far)
            time.sleep(QUICK)
            assert there(ops.pending, receiver)
            time.sleep(0.2)
            assert there(ops.pending, receiver) == [], attempt_number
            assert min(sender.result() for sender in senders) > count
            governed.learn("w", NAME, far)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_revoked_ends_whatever_is_remembered_of_it_until_it_is_learned_again(
    family: int, kind: str, lab: Lab, governed: Governed, actors: dict[str, Actor]
) -> None:
    far, near = far_of(lab, family), lab.remote["registry"].address(family)
    governed.learn("w", NAME, far, near)
    for name, address in (("far", far), ("idle", far), ("near", near)):
        actors["w"](desk.keep, name, kind, address, None, 443)
        assert actors["w"](desk.again, name, address, "one", 443) == "443:one"
    governed.run_out("w", NAME, far, near)
    assert actors["w"](desk.again, "far", far, "two", 443) == "443:two"
    governed.revoke("w", far)
    assert len(governed.flows("w", far)) == 2
    assert ":" not in actors["w"](desk.again, "far", far, "three", 443)
    assert actors["far"](desk.seen, "443")[-1] == "two"
    assert actors["w"](desk.again, "near", near, "two", 443) == "443:two"
    governed.learn("w", NAME, far)
    governed.run_out("w", NAME, far)
    assert actors["w"](desk.again, "idle", far, "two", 443) == "443:two", "as if nothing had been"
    governed.retract("w", far)
    governed.learn("w", NAME, far)
    governed.run_out("w", NAME, far)
    assert ":" not in actors["w"](desk.again, "idle", far, "three", 443), "it was taken out"
    for name in ("far", "idle", "near"):
        actors["w"](desk.drop, name)


def hammer(address: str, port: int, count: int, until: float) -> int:
    """Send on so many flows, as fast as can be; how many went out."""
    socks = [socket.socket(ops.family_of(address), socket.SOCK_DGRAM) for _ in range(count)]
    sent = 0
    for sock in socks:
        sock.connect((address, port))
    while time.monotonic() < until:
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.send(b"x")
                sent += 1
    return sent


def drip(name: str, until: float) -> float:
    """Ask and ask until it fails; when that was."""
    sock = desk._kept[name]
    while time.monotonic() < until:
        try:
            sock.send(b"x")
            sock.recv(1000)
        except OSError:
            return time.monotonic()
        time.sleep(0.001)
    return until + 1000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_of_two_rules_with_one_address_each_has_its_own(
    family: int, kind: str, lab: Lab, governed: Governed, actors: dict[str, Actor], wire: Witness
) -> None:
    """Names of different ports at one address; a flow goes with the rule that let it in."""
    far = far_of(lab, family)
    two = "[{to: one.example, ports: [443, 443/udp]}, {to: two.example, ports: [444, 444/udp]}]"
    governed.load(rules("w", two), resolver=RESOLVER)
    governed.learn("w", "one.example", far)
    assert reaches(actors["w"], kind, far, 443)
    assert refused(actors["w"], wire, kind, far, 444)
    governed.learn("w", "two.example", far)
    for port in (443, 444):
        actors["w"](desk.keep, str(port), kind, far, None, port)
        assert actors["w"](desk.again, str(port), far, "one", port) == f"{port}:one"
    governed.load(rules("w", two[:-1].partition(", {to: two")[0] + "]"), resolver=RESOLVER)
    assert actors["w"](desk.again, "443", far, "two", 443) == "443:two"
    assert ":" not in actors["w"](desk.again, "444", far, "two", 444)
    assert refused(actors["w"], wire, kind, far, 444)
    for port in (443, 444):
        actors["w"](desk.drop, str(port))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("ports", "opened"),
    [
        ("any", {("tcp", p) for p in PORTS} | {("udp", p) for p in PORTS}),
        ("8000-8010", {("tcp", 8000), ("tcp", 8010)}),
        ("8000-8010/udp, 443", {("udp", 8000), ("udp", 8010), ("tcp", 443)}),
        ("icmp", {("icmp", 0)}),
        ("icmp, 444/udp", {("icmp", 0), ("udp", 444)}),
    ],
)
def test_ports_as_the_rule_says(
    ports: str, opened: set[tuple[str, int]], family: int, lab: Lab, governed: Governed, actors: dict[str, Actor]
) -> None:
    far, near = far_of(lab, family), lab.remote["registry"].address(family)
    governed.load(rules("w", f"[{{to: '*.example', ports: [{ports}]}}]"), resolver=RESOLVER)
    governed.learn("w", NAME, far)
    for address, expected in ((far, opened), (near, set())):
        found = {(kind, port) for kind in KINDS for port in PORTS if reaches(actors["w"], kind, address, port)}
        if actors["w"](other_protocol, "ping", address) == "answered":
            found.add(("icmp", 0))
        assert found == expected
    governed.run_out("w", NAME, far)
    assert actors["w"](other_protocol, "ping", far) != "answered"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_rule_ends_by_the_clock(
    family: int, kind: str, lab: Lab, governed: Governed, actors: dict[str, Actor], wire: Witness
) -> None:
    """Nobody touches the kernel: what it opened, and what goes on because of it, ends with it."""
    far = far_of(lab, family)

    def begin(end: datetime) -> None:
        ending = f"{{to: {NAME}, ports: [443, 443/udp], expires: '{end.isoformat()}'}}"
        governed.load(rules("w", f"[{ending}, {{to: two.example, ports: [444]}}]"), resolver=RESOLVER)
        governed.learn("w", NAME, far)
        governed.learn("w", "two.example", far)
        assert reaches(actors["w"], kind, far)
        actors["w"](desk.keep, "open", kind, far, None, 443)
        assert actors["w"](desk.again, "open", far, "one", 443) == "443:one"

    until_soon(begin)
    actors["far"](desk.seen, "443")
    assert refused(actors["w"], wire, kind, far)
    assert ":" not in actors["w"](desk.again, "open", far, "two", 443)
    assert "two" not in actors["far"](desk.seen, "443")
    assert reaches(actors["w"], "tcp", far, 444), "the rule without an end goes on"
    actors["w"](desk.drop, "open")


# --- addresses of the host itself ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("address", [*HOST_ADDRESSES, "127.0.0.1", "::1"])
def test_a_name_at_an_address_of_this_host(
    address: str, kind: str, governed: Governed, actors: dict[str, Actor]
) -> None:
    """It opens nobody's listener, unless the rule says `private`."""
    governed.load(rules("w", f"[{{to: {NAME}, ports: [443, 443/udp, icmp]}}]"), resolver=RESOLVER)
    governed.learn("w", NAME, address)
    actors["here"](desk.seen, address)
    assert ":" not in actors["w"](desk.ask, kind, address, port=443)
    assert actors["here"](desk.seen, address) == []
    assert actors["w"](other_protocol, "ping", address) != "answered"
    assert reaches(actors["by"], kind, address)
    private = rules("w", f"[{{to: {NAME}, ports: [443, 443/udp, icmp], private: true}}]")
    governed.load(private, resolver=RESOLVER)
    assert ":" not in actors["w"](desk.ask, kind, address, port=443), "not learned for that rule"
    governed.learn("w", NAME, address)
    assert reaches(actors["w"], kind, address)
    assert actors["w"](other_protocol, "ping", address) == "answered"
    actors["w"](desk.keep, "open", kind, address, None, 443)
    assert actors["w"](desk.again, "open", address, "one", 443).endswith(":one")
    governed.run_out("w", NAME, address)
    assert ":" not in actors["w"](desk.ask, kind, address, port=443)
    assert actors["w"](desk.again, "open", address, "two", 443).endswith(":two")
    governed.retract("w", address)
    actors["here"](desk.seen, address)
    assert ":" not in actors["w"](desk.again, "open", address, "three", 443)
    assert actors["here"](desk.seen, address) == []
    actors["w"](desk.drop, "open")


# --- modes ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_learned_while_observing_counts_when_it_is_enforced(
    family: int, kind: str, lab: Lab, governed: Governed, wire: Witness
) -> None:
    far, near = far_of(lab, family), lab.remote["registry"].address(family)
    name = f"seen{next(_sources)}"  # nothing of an earlier test is counted for it
    governed.load(rules(name, BOTH, mode="observe"), resolver=RESOLVER)
    governed.learn(name, NAME, far)
    with governed.actor(name) as seen:
        seen(desk.keep, "learned", kind, far, None, 443)
        assert seen(desk.again, "learned", far, "one", 443) == "443:one"
        assert governed.counters()[f"denied_out_{name}"] == 0, "a rule has it"
        seen(desk.keep, "stray", kind, near, None, 443)
        assert seen(desk.again, "stray", near, "one", 443) == "443:one"
        assert governed.counters()[f"denied_out_{name}"] > 0
        governed.load(rules(name, BOTH), resolver=RESOLVER)
        governed.run_out(name, NAME, far)
        assert seen(desk.again, "learned", far, "two", 443) == "443:two"
        assert ":" not in seen(desk.again, "stray", near, "two", 443)
        governed.load(rules(name, BOTH, mode="lock"), resolver=RESOLVER)
        assert ":" not in seen(desk.again, "learned", far, "three", 443)
        assert refused(seen, wire, kind, far)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection_from_before_it_was_governed_is_taken_in(
    family: int, kind: str, lab: Lab, governed: Governed, actors: dict[str, Actor]
) -> None:
    """As after another tool flushed the table: what was learned is written again, flows are remembered anew."""
    far = far_of(lab, family)
    governed.learn("w", NAME, far)
    actors["w"](desk.keep, "open", kind, far, None, 443)
    assert actors["w"](desk.again, "open", far, "one", 443) == "443:one"
    governed.nft("delete table inet penstock")
    governed.load(W, OTHER, resolver=RESOLVER)
    governed.learn("w", NAME, far)
    assert actors["w"](desk.again, "open", far, "two", 443) == "443:two"
    governed.run_out("w", NAME, far)
    assert actors["w"](desk.again, "open", far, "three", 443) == "443:three"
    actors["w"](desk.drop, "open")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_to_learn_again_leaves_no_gap(
    family: int, kind: str, lab: Lab, governed: Governed, actors: dict[str, Actor]
) -> None:
    """Answers come while the workload connects: 200 of them or more, and nothing is refused."""
    far = far_of(lab, family)
    governed.learn("w", NAME, far)
    end = time.monotonic() + 0.5
    actors["w"].start(calls, kind, far, 443, end, 101)
    for number in itertools.count():
        if number >= 200 and time.monotonic() > end:
            break
        governed.learn("w", NAME, far)
    made, failures = actors["w"].result()
    assert failures == []
    assert made > 100


def calls(kind: str, address: str, port: int, end: float, least: int) -> tuple[int, list[str]]:
    """New flows, one after the other, until then and so many at least; how many, and what went wrong."""
    made, failures = 0, []
    while time.monotonic() < end or made < least:
        said = desk.ask(kind, address, port=port)
        made += 1
        if not said.endswith(":x"):
            failures.append(said)
    return made, failures


@pytest.mark.parametrize("family", FAMILIES)
def test_when_the_memory_of_flows_is_full_the_address_decides(
    family: int, lab: Lab, governed: Governed, actors: dict[str, Actor]
) -> None:
    """A set that holds two: what is above ends with its address, not before."""
    far = far_of(lab, family)
    governed.load(PLAIN)
    governed.agent(hold_flows, 2)
    governed.load(W, resolver=RESOLVER)
    governed.agent(hold_flows, render_nft.FLOWS)
    governed.learn("w", NAME, far)
    for number in range(4):
        actors["w"](desk.keep, str(number), "tcp", far, None, 443)
        assert actors["w"](desk.again, str(number), far, "one", 443) == "443:one"
    governed.run_out("w", NAME, far)
    found = [actors["w"](desk.again, str(number), far, "two", 443) for number in range(4)]
    assert [said.endswith(":two") for said in found] == [True, True, False, False]
    for number in range(4):
        actors["w"](desk.drop, str(number))


def hold_flows(count: int) -> None:
    """Declare sets of flows with so much room from now on."""
    render_nft.FLOWS = count
