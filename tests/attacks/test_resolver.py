"""The resolver reads what strangers send: who takes it over may answer look-ups, ask its servers, and no more."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from attacks import desk, ops
from attacks.conftest import Follower, Witness
from attacks.test_plain import ATTEMPTS, attempt
from governed import Actor, Governed, rules
from penstock.core.compile import Resolver
from penstock.core.policy import Upstream
from penstock.demo.lab import HOST_ADDRESSES, Lab

pytestmark = pytest.mark.root

KINDS = ["udp", "tcp"]
FAMILIES = [pytest.param(4, id="v4"), pytest.param(6, id="v6")]
LOOPBACKS = {4: "127.0.0.1", 6: "::1"}
STUB = {4: "127.0.0.53", 6: "2001:db8:2::10"}
PORT = 40053
UPSTREAMS = ("198.51.100.10", "2001:db8:51::10")
RESOLVER = Resolver({"w": PORT}, tuple(Upstream(ip_address(a)) for a in UPSTREAMS))
FILES = (rules("w", "[{to: hub.example}]"), rules("other"))
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75
_ports = itertools.count(26000)


@pytest.fixture(scope="module")
def wires(lab: Lab) -> dict[str, Witness]:
    return {name: Witness(Follower(lab, lab.remote[name], packets=True)) for name in ("registry", "stranger")}


@pytest.fixture(scope="module")
def actors(lab: Lab, governed: Governed) -> Iterator[dict[str, Actor]]:
    governed.load(*FILES, resolver=RESOLVER)
    with ExitStack() as stack:
        made = {name: stack.enter_context(governed.actor(name)) for name in ("w", "other")}
        made |= {name: stack.enter_context(governed.actor()) for name in ("by", "stub")}
        made |= {name: stack.enter_context(governed.resolver()) for name in ("resolver", "listener")}
        made["server"] = stack.enter_context(Actor(lab.remote["registry"]))
        made["far"] = stack.enter_context(Actor(lab.remote["stranger"]))
        made["listener"](desk.attend, "w", list(LOOPBACKS.values()), PORT)
        for name, host in (("server", "registry"), ("far", "stranger")):
            for port in (53, 54, 80):
                made[name](desk.attend, f"{name}{port}", lab.remote[host].addresses, port)
        yield made


@pytest.fixture(autouse=True)
def as_ever(governed: Governed, actors: dict[str, Actor], wires: dict[str, Witness]) -> None:
    governed.load(*FILES, resolver=RESOLVER)
    for wire in wires.values():
        wire.packets()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_asks_its_servers_and_nothing_else(
    family: int, kind: str, lab: Lab, governed: Governed, actors: dict[str, Actor], wires: dict[str, Witness]
) -> None:
    server, far = (lab.remote[name].address(family) for name in ("registry", "stranger"))
    assert actors["resolver"](desk.ask, kind, server) == "server53:x"
    wires["registry"].packets()
    before = governed.counters()["resolver_out"]
    refused = [(server, 54), (server, 80), (far, 53), (far, 80)]
    for address, port in refused:
        assert actors["by"](desk.ask, kind, address, port=port).endswith(f"{port}:x")
    for wire in wires.values():
        assert kind in wire.protocols()
    for address, port in refused:
        said, seconds = actors["resolver"](desk.quickly, kind, address, port=port)
        assert ":" not in said
        assert seconds < desk.PATIENCE / 2
    assert governed.counters()["resolver_out"] >= before + len(refused)
    for wire in wires.values():
        assert wire.protocols() == set()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("function", ATTEMPTS, ids=lambda f: f.__name__)
def test_no_other_way_leads_out(
    function: object, family: int, lab: Lab, actors: dict[str, Actor], wires: dict[str, Witness]
) -> None:
    """Also not what its user could not do."""
    actors["resolver"](attempt, function, lab.remote["stranger"].address(family))
    assert wires["stranger"].packets() == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_reaches_nothing_on_the_host(family: int, kind: str, lab: Lab, actors: dict[str, Actor]) -> None:
    for number, address in enumerate((LOOPBACKS[family], lab.host.address(family))):
        port = next(_ports)
        for who in ("by", "other"):
            actors[who](desk.attend, "here", [address], port)
            if who == "by":
                assert actors["stub"](desk.ask, kind, address, port=port) == "here:x"
                assert actors[who](desk.seen, "here") == ["x"]
            assert ":" not in actors["resolver"](desk.ask, kind, address, str(number), port=port)
            assert actors[who](desk.seen, "here") == []
            actors[who](desk.leave, "here")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_server_on_the_host_itself(family: int, kind: str, governed: Governed, actors: dict[str, Actor]) -> None:
    """A stub, at its port; a workload's look-up of the same goes to the workload's listener."""
    address = STUB[family]
    governed.load(*FILES, resolver=Resolver({"w": PORT}, (Upstream(ip_address(address)),)))
    actors["stub"](desk.attend, "stub", [address], 53)
    source = (HOST_ADDRESSES[family == 6], next(_ports))
    for who in ("w", "resolver", "w", "resolver"):
        expected = "stub" if who == "resolver" else "w"
        assert actors[who](desk.ask, kind, address, source=source) == f"{expected}:x"
    actors["stub"](desk.leave, "stub")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_workload_does_not_spoil_its_ports(
    family: int, kind: str, governed: Governed, actors: dict[str, Actor]
) -> None:
    """It sends from them to a server on the host itself, at another port than 53, and is refused."""
    address, port, source = STUB[family], next(_ports), (HOST_ADDRESSES[family == 6], next(_ports))
    governed.load(*FILES, resolver=Resolver({"w": PORT}, (Upstream(ip_address(address), port),)))
    actors["stub"](desk.attend, "stub", [address], port)
    for who, expected in (("w", False), ("resolver", True), ("w", False), ("resolver", True)):
        said = actors[who](desk.ask, kind, address, port=port, source=source)
        assert (said == "stub:x") is expected
    actors["stub"](desk.leave, "stub")


@pytest.mark.parametrize("family", FAMILIES)
def test_strangers_do_not_get_to_its_sockets(family: int, lab: Lab, actors: dict[str, Actor]) -> None:
    """Neither its listeners nor the sockets it asks with, of which it may have many that are not connected."""
    here, server = lab.host.address(family), lab.remote["registry"].address(family)
    port, theirs = next(_ports), next(_ports)
    asking = actors["resolver"](ops.udp, here, port)
    listener = actors["resolver"](ops.listen, here, port)
    actors["resolver"](ops.sendto, asking, b"question", server, 53)
    assert actors["resolver"](ops.receive, asking) == b"server53:question"
    for who in ("by", "other", "w", "far", "server"):
        sender = actors[who](ops.udp, "::" if family == 6 else "0.0.0.0", theirs if who in ("by", "far") else 0)
        actors[who](ops.sendto, sender, b"spoofed", here, port)
        assert not isinstance(actors[who](ops.connect, here, port, timeout=0.3), int)
        actors[who](ops.close, sender)
    assert actors["resolver"](ops.accept, listener, 0.05) == "timeout"
    actors["resolver"](ops.sendto, asking, b"question", server, 53)
    assert actors["resolver"](ops.receive, asking) == b"server53:question", "and nothing before it"
    assert actors["resolver"](ops.pending, asking) == []
    actors["resolver"](ops.close, asking, listener)


@pytest.mark.parametrize("family", FAMILIES)
def test_its_server_speaks_only_when_asked_and_from_its_port(
    family: int, lab: Lab, actors: dict[str, Actor]
) -> None:
    here, port, other = lab.host.address(family), next(_ports), next(_ports)
    waiting = actors["resolver"](ops.udp, here, port)
    sender = actors["server"](ops.udp, lab.remote["registry"].address(family), other)
    actors["server"](desk.say, "server53", "unasked", here, port)
    actors["server"](ops.sendto, sender, b"unasked", here, port)
    actors["resolver"](ops.sendto, waiting, b"question", lab.remote["registry"].address(family), 53)
    actors["server"](ops.sendto, sender, b"another port", here, port)
    assert actors["resolver"](ops.receive, waiting) == b"server53:question"
    assert actors["resolver"](ops.receive, waiting, 0.05) == "timeout"
    actors["server"](ops.close, sender)
    actors["resolver"](ops.close, waiting)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_go_to_who_was_redirected_here_only(
    family: int, lab: Lab, governed: Governed, actors: dict[str, Actor], wires: dict[str, Witness]
) -> None:
    """The host redirects strangers' look-ups to a server of its own; the resolver takes its port and "answers"."""
    ip, here, port, theirs = {4: "ip", 6: "ip6"}[family], lab.host.address(family), next(_ports), next(_ports)
    there = lab.remote["stranger"].address(family)
    governed.nft(
        f"table {ip} dns {{ chain p {{ type nat hook prerouting priority -100;"
        f" udp dport 53 redirect to :{port}; }}\n}}"
    )
    client = actors["far"](ops.udp, there, theirs)
    actors["far"](ops.sendto, client, b"to the host's own server", here, 53)
    wires["stranger"].packets()
    mine = actors["resolver"](ops.udp, here, port)
    actors["resolver"](ops.sendto, mine, b"leak", there, theirs)
    assert wires["stranger"].protocols() == set()
    assert actors["far"](ops.pending, client) == []
    actors["resolver"](ops.close, mine)
    actors["far"](ops.sendto, client, b"again", here, 53)
    by = actors["by"](ops.udp, here, port)
    actors["far"](ops.sendto, client, b"question", here, 53)
    assert actors["by"](ops.receive, by) == b"question"
    actors["by"](ops.sendto, by, b"answer", there, theirs)
    assert actors["far"](ops.receive, client) == b"answer", "as the host's own server does"
    actors["by"](ops.close, by)
    actors["far"](ops.close, client)
    governed.nft(f"delete table {ip} dns")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_look_up_is_what_was_redirected_and_asked_at_port_53(
    family: int, kind: str, lab: Lab, governed: Governed, actors: dict[str, Actor]
) -> None:
    """Not what others send to the listener from another port, nor what comes to a port 53 of the resolver."""
    ip, here = {4: "ip", 6: "ip6"}[family], lab.host.address(family)
    governed.nft(
        f"table {ip} theirs {{ chain o {{ type nat hook output priority -100;"
        f" {ip} daddr {here} meta l4proto {{ tcp, udp }} th dport 9999 redirect to :{PORT}; }}\n}}"
    )
    actors["listener"](desk.seen, "w")
    assert ":" not in actors["w"](desk.ask, kind, here, port=9999)
    assert actors["listener"](desk.seen, "w") == []
    governed.nft(f"delete table {ip} theirs")
    actors["listener"](desk.attend, "other53", [here], 53)
    governed.load(*FILES, resolver=Resolver({}, RESOLVER.upstreams))
    assert ":" not in actors["w"](desk.ask, kind, here)
    assert actors["listener"](desk.seen, "other53") == []
    actors["listener"](desk.leave, "other53")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["borrowed source", "route"])
def test_its_servers_pass_nothing_on(
    how: str, family: int, lab: Lab, actors: dict[str, Actor], wires: dict[str, Witness]
) -> None:
    """A server answers to whom a question names as its sender, and passes on what names it as the first stop."""
    server, far = (lab.remote[name].address(family) for name in ("registry", "stranger"))
    there, source, option = far, None, desk.by_way_of(far, server)
    if how == "borrowed source":
        there, source = server, (far, 0)
        option = (41, IPV6_TRANSPARENT, 1) if family == 6 else (0, IP_TRANSPARENT, 1)
    brief = {"source": source, "options": [option], "patience": desk.BRIEF}
    for kind in KINDS:
        actors["by"](desk.ask, kind, there, **brief)
    assert wires["registry"].packets() != []
    wires["stranger"].packets()
    for kind in KINDS:
        actors["resolver"](desk.ask, kind, there, **brief)
    for wire in wires.values():
        assert wire.packets() == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_path_with_a_smaller_mtu(family: int, kind: str, lab: Lab, actors: dict[str, Actor]) -> None:
    """Errors about its own packets reach it: here that nobody listens."""
    there = lab.remote["registry"].address(family)
    actors["server"](desk.leave, "server53")
    said, seconds = actors["resolver"](desk.quickly, kind, there)
    assert said == "ECONNREFUSED"
    assert seconds < desk.PATIENCE / 2
    actors["server"](desk.attend, "server53", lab.remote["registry"].addresses, 53)
    assert actors["resolver"](desk.ask, kind, there) == "server53:x"


# --- beside others ---

REDIRECT = """
table ip theirs {
  chain o { type nat hook output priority -100; meta l4proto { tcp, udp } th dport 53 redirect to :5300; }
}
table ip6 theirs {
  chain o { type nat hook output priority -100; meta l4proto { tcp, udp } th dport 53 redirect to :5300; }
}
"""
MASQUERADE = """
table inet theirs { chain p { type nat hook postrouting priority 100; masquerade; }
}
"""
MASQUERADE_WIRE = """
table inet theirs { chain p { type nat hook postrouting priority 100; oif != lo masquerade random; }
}
"""
STATEFUL = """
table inet theirs {
  chain i { type filter hook input priority 10; policy drop;
    ct state invalid drop
    iif lo accept
    ct state established,related accept
    ip6 nexthdr icmpv6 accept
  }
  chain o { type filter hook output priority 10; policy accept;
    ct state invalid drop
  }
}
"""
EARLY = """
table inet theirs {
  chain i { type filter hook input priority -150; policy accept; ct state invalid drop; }
  chain r { type filter hook prerouting priority -150; policy accept; ct state invalid drop; }
  chain p { type filter hook postrouting priority 300; policy accept; ct state invalid drop; }
}
"""
DOCKER = """
table ip theirs {
  chain o { type nat hook output priority -100; ip daddr != 127.0.0.0/8 fib daddr type local jump d; }
  chain d { tcp dport 8080 dnat to 198.51.100.10:80; udp dport 53 dnat to 198.51.100.10:53; }
  chain p { type nat hook postrouting priority 100; ip saddr 172.17.0.0/16 oif != lo masquerade; }
}
"""
ZONES = """
table inet theirs { chain o { type filter hook output priority -300; oifname "nothing" ct original zone set 5; }
  chain p { type filter hook prerouting priority -300; iifname "nothing" ct original zone set 5; }
}
"""
FOREIGN = {
    "redirect": REDIRECT, "masquerade": MASQUERADE, "masquerade-wire": MASQUERADE_WIRE, "stateful": STATEFUL,
    "early": EARLY, "docker": DOCKER, "zones": ZONES,
}  # fmt: skip


@pytest.fixture(params=FOREIGN)
def foreign(request: pytest.FixtureRequest, governed: Governed) -> Iterator[str]:
    script = FOREIGN[request.param]
    governed.nft(script)
    yield request.param
    for line in script.splitlines():
        if line.startswith("table"):
            governed.nft(f"delete {line.partition('{')[0]}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_beside_the_rules_of_others(
    family: int, kind: str, foreign: str, lab: Lab, governed: Governed, actors: dict[str, Actor]
) -> None:
    """Look-ups come to their listener, the resolver gets to its servers, bystanders to where others send them."""
    far, server = (lab.remote[name].address(family) for name in ("stranger", "registry"))
    actors["by"](desk.attend, "theirs", list(LOOPBACKS.values()), 5300)
    actors["by"](desk.seen, "theirs")
    expected = "theirs" if foreign == "redirect" else "far53"
    source = (lab.host.address(family), next(_ports))
    for number, who in enumerate(("w", "stub", "w", "stub", "w")):
        said = actors[who](desk.ask, kind, far, str(number), source=source)
        assert said == f"{'w' if who == 'w' else expected}:{number}"
    for address in (*STUB.values(), LOOPBACKS[family]):
        assert actors["w"](desk.ask, kind, address) == "w:x"
    said = actors["resolver"](desk.ask, kind, server)
    assert said == "server53:x" if foreign != "redirect" else ":" not in said, "judged by where it goes"
    actors["by"](desk.leave, "theirs")
    named(family, kind, far, governed, actors)


def named(family: int, kind: str, far: str, governed: Governed, actors: dict[str, Actor]) -> None:
    """What was learned is reached, and its flow outlives the answer."""
    port = 54
    governed.load(rules("w", f"[{{to: hub.example, ports: [{port}, {port}/udp]}}]"), resolver=RESOLVER)
    assert ":" not in actors["w"](desk.ask, kind, far, port=port)
    governed.learn("w", "hub.example", far)
    actors["w"](desk.keep, "flow", kind, far, None, port)
    assert actors["w"](desk.again, "flow", far, "one", port) == "far54:one"
    governed.run_out("w", "hub.example", far)
    assert ":" not in actors["w"](desk.ask, kind, far, port=port)
    assert actors["w"](desk.again, "flow", far, "two", port) == "far54:two"
    governed.retract("w", far)
    assert ":" not in actors["w"](desk.again, "flow", far, "three", port)
    actors["w"](desk.drop, "flow")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_where_look_ups_are_not_tracked_ours_are(
    family: int, kind: str, lab: Lab, governed: Governed, actors: dict[str, Actor], wires: dict[str, Witness]
) -> None:
    """A host that takes port 53 out of connection tracking: what we divert goes elsewhere before."""
    far = lab.remote["stranger"].address(family)
    governed.nft(
        "table inet theirs { chain o { type filter hook output priority -301;"
        " meta l4proto { tcp, udp } th dport 53 notrack; }\n}"
    )
    try:
        assert actors["w"](desk.ask, kind, far) == "w:x"
        assert [p for p in wires["stranger"].packets() if p.port == 53] == []
        assert actors["stub"](desk.ask, kind, far) == "far53:x"
    finally:
        governed.nft("delete table inet theirs")
    assert actors["w"](desk.ask, kind, far) == "w:x"


# --- units bound in place ---

PLACES = ("ai.service", "system.slice/llama.service", "system.slice/system-vllm.slice/vllm@a.service")
NEIGHBOUR = "system.slice/other.service"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", PLACES)
def test_a_unit_that_is_bound_in_place(
    place: str, family: int, kind: str, lab: Lab, governed: Governed, actors: dict[str, Actor]
) -> None:
    far, port = lab.remote["stranger"].address(family), 54
    named_rule = f"[{{to: hub.example, ports: [{port}, {port}/udp]}}]"
    governed.load(
        rules("w", named_rule), rules("other"), places={place: "w", "third.service": "other"}, resolver=RESOLVER
    )
    source = (lab.host.address(family), next(_ports))
    with Actor(lab.host, place) as unit, Actor(lab.host, f"{place}/below") as below, ExitStack() as stack:
        by = stack.enter_context(Actor(lab.host, NEIGHBOUR))
        third = stack.enter_context(Actor(lab.host, "third.service"))
        expected = (unit, "w"), (by, "far53"), (below, "w"), (actors["w"], "w"), (by, "far53"), (unit, "w")
        for who, said in expected:
            assert who(desk.ask, kind, far, source=source) == f"{said}:x"
        assert ":" not in third(desk.ask, kind, far)
        assert ":" not in unit(desk.ask, kind, far, port=port)
        governed.learn("w", "hub.example", far)
        assert unit(desk.ask, kind, far, port=port) == below(desk.ask, kind, far, port=port) == "far54:x"
        assert ":" not in third(desk.ask, kind, far, port=port)
        assert ":" not in unit(desk.ask, kind, far, port=80)
        governed.retract("w", far)
        assert ":" not in unit(desk.ask, kind, far, port=port)


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_within_another_asks_for_itself(
    kind: str, lab: Lab, governed: Governed, actors: dict[str, Actor]
) -> None:
    """Bound at two levels, of two workloads: it is the deeper one's, its zone and its listener."""
    outer, inner = "system.slice/outer.slice", "system.slice/outer.slice/inner.service"
    named_rule = "[{to: hub.example}]"
    ports = Resolver({"w": PORT, "other": PORT + 1}, RESOLVER.upstreams)
    governed.load(
        rules("w", named_rule), rules("other", named_rule), places={outer: "other", inner: "w"}, resolver=ports
    )
    actors["listener"](desk.attend, "other", list(LOOPBACKS.values()), PORT + 1)
    source = (HOST_ADDRESSES[0], next(_ports))
    with Actor(lab.host, inner) as one, Actor(lab.host, f"{outer}/else.service") as two:
        for who, said in ((one, "w"), (two, "other"), (one, "w"), (two, "other")):
            assert who(desk.ask, kind, "203.0.113.66", source=source) == f"{said}:x"
    actors["listener"](desk.leave, "other")
