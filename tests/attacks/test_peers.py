"""`from: workload:gw`: only the gateway's processes get through on this host, whatever port anybody has."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import datetime

import pytest

from attacks import ops
from attacks.conftest import until_soon
from attacks.test_loopback import HERE, LOOPBACKS, only_the_asked_answers, reach_port, tell
from governed import Actor, Governed, rules

pytestmark = pytest.mark.root

_ports = itertools.count(26000)
OPENED = "8000-8999, 8000-8999/udp"
TO = f"[{{to: 'workload:model', ports: [{OPENED}]}}]"
FROM = f"[{{from: 'workload:gw', ports: [{OPENED}]}}]"
_served = itertools.count(8000)


def fresh() -> int:
    """A source port that no test used before: conntrack remembers."""
    return next(_ports)


def served() -> int:
    """A port of the model server that no test used before."""
    return next(_served)


def load(governed: Governed, *, to: str = TO, from_: str = FROM) -> None:
    governed.load(rules("model", ingress=from_), rules("gw", egress=to), rules("third"))


@pytest.fixture(scope="module")
def actors(governed: Governed) -> Iterator[dict[str, Actor]]:
    load(governed)
    made = {name: governed.actor(name) for name in ("model", "gw", "third")} | {"by": governed.actor()}
    yield made
    for actor in made.values():
        actor.close()


@pytest.fixture(autouse=True)
def policy(governed: Governed, actors: dict[str, Actor]) -> None:
    load(governed)


def talks(client: Actor, server: Actor, address: str) -> tuple[bool, bool]:
    """Whether TCP and UDP get there and back."""
    return reach_port(client, server, address, served()), tell(client, server, address, (fresh(), served()))


BOTH, NEITHER = (True, True), (False, False)


@pytest.mark.parametrize("address", HERE)
def test_the_gateway_and_nobody_else(address: str, actors: dict[str, Actor]) -> None:
    assert talks(actors["gw"], actors["model"], address) == BOTH
    assert talks(actors["model"], actors["model"], address) == BOTH
    for other in ("third", "by"):
        assert talks(actors[other], actors["model"], address) == NEITHER, other
    assert talks(actors["model"], actors["gw"], address) == NEITHER, "the way back needs rules of its own"
    assert talks(actors["gw"], actors["third"], address) == NEITHER
    assert talks(actors["gw"], actors["by"], address) == NEITHER, "not who happens to listen there"
    assert not reach_port(actors["gw"], actors["model"], address, 9000)
    assert not tell(actors["gw"], actors["model"], address, (fresh(), 9000))


@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize("missing", ["to", "from_"])
def test_it_takes_a_rule_of_each(missing: str, address: str, actors: dict[str, Actor], governed: Governed) -> None:
    load(governed, **{missing: "[]"})
    assert talks(actors["gw"], actors["model"], address) == NEITHER
    load(governed)
    assert talks(actors["gw"], actors["model"], address) == BOTH


@pytest.mark.parametrize("address", LOOPBACKS)
def test_a_rule_by_address_is_as_good_on_either_side(
    address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    load(governed, to=TO.replace("workload:model", address))
    assert talks(actors["gw"], actors["model"], address) == BOTH
    assert talks(actors["third"], actors["model"], address) == NEITHER
    load(governed, from_=FROM.replace("workload:gw", address))
    assert talks(actors["gw"], actors["model"], address) == BOTH


@pytest.mark.parametrize("address", HERE)
def test_who_is_no_workload(address: str, actors: dict[str, Actor], governed: Governed) -> None:
    load(governed, from_=FROM.replace("workload:gw", "host"))
    assert talks(actors["by"], actors["model"], address) == BOTH
    for other in ("gw", "third"):
        assert talks(actors[other], actors["model"], address) == NEITHER, other
    governed.load(
        rules("model", ingress=FROM.replace("workload:gw", "host")),
        rules("gw", egress=f"[{{to: '{address}', ports: [{OPENED}]}}]"),
    )
    assert talks(actors["gw"], actors["model"], address) == NEITHER, "not even with a rule of its own"
    load(governed)
    assert talks(actors["by"], actors["model"], address) == NEITHER


@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize("answered", [False, True])
def test_a_bystanders_source_port_makes_nobody_a_bystander(
    answered: bool, address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    """The heir is a workload that may call the address: `host` is not for him."""
    governed.load(
        rules("model", ingress=FROM.replace("workload:gw", "host")),
        rules("gw", egress=f"[{{to: '{address}', ports: [{OPENED}]}}]"),
    )
    by, gw, model = actors["by"], actors["gw"], actors["model"]
    here, there = fresh(), served()
    a, b = by(ops.udp, address, here), model(ops.udp, address, there)
    by(ops.sendto, a, b"one", address, there)
    assert model(ops.pending, b) == [b"one"]
    if answered:
        model(ops.sendto, b, b"answer", address, here)
        assert by(ops.pending, a) == [b"answer"]
    by(ops.close, a)
    c = gw(ops.udp, address, here)
    for _ in range(2):
        gw(ops.sendto, c, b"two", address, there)
        assert model(ops.pending, b) == []
    gw(ops.close, c)
    model(ops.close, b)


@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize("missing", ["to", "from_"])
def test_taking_a_rule_back_ends_what_it_let_in(
    missing: str, address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    """Also what comes back: neither side hears the other any more."""
    gw, model = actors["gw"], actors["model"]
    port, here, there = served(), fresh(), served()
    listener = model(ops.listen, address, port)
    made = gw(ops.connect, address, port)
    accepted = model(ops.accept, listener)
    a, b = gw(ops.udp, address, here), model(ops.udp, address, there)
    gw(ops.send, made, b"one")
    assert model(ops.receive, accepted) == b"one"
    gw(ops.sendto, a, b"one", address, there)
    assert model(ops.pending, b) == [b"one"]
    somebody = FROM.replace("workload:gw", "workload:third")
    load(governed, **({"to": "[]"} if missing == "to" else {"from_": somebody}))
    gw(ops.sendto, a, b"two", address, there)
    gw(ops.send, made, b"two")
    if missing == "from_":
        model(ops.sendto, b, b"back", address, here)
        assert gw(ops.pending, a) == []
    assert model(ops.pending, b) == []
    assert b"two" not in model(ops.pending, accepted)
    assert gw(ops.receive, made) == "ECONNRESET"
    gw(ops.close, made, a)
    model(ops.close, accepted, listener, b)


@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize("heir", ["by", "third"])
def test_the_gateways_source_port_is_worth_nothing(heir: str, address: str, actors: dict[str, Actor]) -> None:
    """The heir binds the port that the gateway used a moment ago: over UDP that is the gateway's flow still."""
    gw, model, other = actors["gw"], actors["model"], actors[heir]
    port, here, there = served(), fresh(), served()
    listener = model(ops.listen, address, port)
    for closes_first in (gw, model):
        source = fresh()
        made = gw(ops.connect, address, port, source=(address, source))
        assert isinstance(made, int)
        accepted = model(ops.accept, listener)
        ends = {gw: made, model: accepted}
        closes_first(ops.close, ends.pop(closes_first))
        for actor, end in ends.items():
            actor(ops.close, end)
        # Where the model server closed first, a socket in TIME_WAIT takes the SYN: it has no cgroup.
        assert other(ops.connect, address, port, source=(address, source), timeout=5) == "ECONNREFUSED"
        assert model(ops.accept, listener, 0.02) == "timeout"
    model(ops.close, listener)
    assert tell(gw, model, address, (here, there))
    for _ in range(2):
        assert not tell(other, model, address, (here, there))


@pytest.mark.parametrize("address", LOOPBACKS)
def test_from_a_port_that_the_server_closed_it_is_as_from_any_other(
    address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    """There TIME_WAIT takes the SYN: whoever has a right comes back, whoever lost it does not."""
    model, port = actors["model"], served()
    listener = model(ops.listen, address, port)

    def call(who: str, source: int) -> bool:
        made = actors[who](ops.connect, address, port, source=(address, source), timeout=5)
        if not isinstance(made, int):
            assert made == "ECONNREFUSED"
            return False
        model(ops.close, model(ops.accept, listener))
        assert actors[who](ops.receive, made) == b""
        actors[who](ops.close, made)
        return True

    itself, gateway, host = fresh(), fresh(), fresh()
    for _ in range(3):
        assert call("gw", gateway)
        assert call("model", itself)
    load(governed, from_=FROM.replace("workload:gw", "host"))
    for _ in range(3):
        assert call("by", host)
        assert not call("gw", gateway)
    load(governed, from_=FROM.replace("'workload:gw'", f"['{address}', 'workload:third']"))
    for who, source in (("by", host), ("gw", gateway), ("by", host), ("gw", gateway)):
        assert call(who, source), "the address has a rule, whoever calls from there"
    load(governed, to="[]")
    assert not call("gw", gateway)
    load(governed)
    assert not call("by", host)
    assert call("gw", gateway)
    model(ops.close, listener)


@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize("heir", ["by", "third"])
def test_who_takes_the_models_port_gets_nothing(heir: str, address: str, actors: dict[str, Actor]) -> None:
    gw, model, other = actors["gw"], actors["model"], actors[heir]
    here, there = fresh(), served()
    a, b = gw(ops.udp, address, here), model(ops.udp, address, there)
    gw(ops.sendto, a, b"prompt", address, there)
    assert model(ops.pending, b) == [b"prompt"]
    model(ops.close, b)
    c = other(ops.udp, address, there)
    gw(ops.sendto, a, b"prompt", address, there)
    assert other(ops.pending, c) == []
    other(ops.sendto, c, b"answer", address, here)
    assert b"answer" not in gw(ops.pending, a)
    gw(ops.close, a)
    other(ops.close, c)


@pytest.mark.parametrize("address", LOOPBACKS)
def test_who_is_called_may_not_call(address: str, actors: dict[str, Actor]) -> None:
    """A datagram of the model server to the gateway is an answer, or refused."""
    gw, model = actors["gw"], actors["model"]
    here, there = fresh(), served()
    a, b = gw(ops.udp, address, here), model(ops.udp, address, there)
    model(ops.sendto, b, b"call", address, here)
    assert gw(ops.pending, a) == []
    gw(ops.close, a)
    model(ops.close, b)


@pytest.mark.parametrize("address", LOOPBACKS)
def test_a_shared_port(address: str, actors: dict[str, Actor], governed: Governed) -> None:
    """Conntrack calls the model server's datagrams answers to a bystander's, whose port it shares."""
    with governed.actor() as peer:
        only_the_asked_answers(actors["by"], actors["model"], peer, address, (served(), fresh()))


@pytest.mark.parametrize("address", LOOPBACKS)
def test_a_gateway_that_starts_again_keeps_its_right(
    address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    with governed.actor("gw") as again:
        assert talks(again, actors["model"], address) == BOTH


@pytest.mark.parametrize("address", LOOPBACKS)
def test_a_workload_that_is_locked_calls_nobody_and_is_called_by_nobody(
    address: str, actors: dict[str, Actor], governed: Governed
) -> None:
    for locked in ("gw", "model"):
        modes = {name: "lock" if name == locked else "enforce" for name in ("gw", "model")}
        governed.load(rules("model", ingress=FROM, mode=modes["model"]), rules("gw", TO, mode=modes["gw"]))
        assert talks(actors["gw"], actors["model"], address) == NEITHER


@pytest.mark.parametrize("address", LOOPBACKS)
def test_in_observe_mode_nothing_is_refused(address: str, actors: dict[str, Actor], governed: Governed) -> None:
    for gw, model, from_, expected in (
        ("observe", "enforce", FROM, BOTH),
        ("observe", "enforce", "[]", NEITHER),
        ("enforce", "observe", "[]", NEITHER),
        ("observe", "observe", "[]", BOTH),
    ):
        governed.load(rules("model", ingress=from_, mode=model), rules("gw", mode=gw))
        assert talks(actors["gw"], actors["model"], address) == expected, (gw, model, from_)


@pytest.mark.parametrize("address", LOOPBACKS)
def test_a_rule_with_an_end(address: str, actors: dict[str, Actor], governed: Governed) -> None:
    """The kernel ends it by itself, for what is connected too."""
    gw, model, port = actors["gw"], actors["model"], served()
    listener = model(ops.listen, address, port)
    connections: list[tuple[int, int]] = []

    def begin(end: datetime) -> None:
        until = f", expires: '{end.isoformat()}', reason: a test}}"
        load(governed, from_=FROM.replace("}", until))
        made = gw(ops.connect, address, port)
        assert isinstance(made, int)
        accepted = model(ops.accept, listener)
        gw(ops.send, made, b"one")
        assert model(ops.receive, accepted) == b"one"
        connections.append((made, accepted))

    until_soon(begin)
    made, accepted = connections[-1]
    assert not reach_port(gw, model, address, served())
    gw(ops.send, made, b"two")
    assert gw(ops.receive, made) == "ECONNRESET"
    gw(ops.close, made)
    model(ops.close, accepted, listener)
