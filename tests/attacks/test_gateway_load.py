"""While the gateway sends at full rate, nobody else gets to the model server: counted there, not read from rules.

Every connection that the model server accepted must be one that the gateway made, port by port, with the gateway's
first request on it; no byte that anybody else sent may be there, and nobody else may hear a byte of it.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from attacks import load, ops
from attacks.load import OF_THE_KERNEL, TRAIL, Call, End, Knocked, Made, Served
from governed import Actor, Governed, rules

pytestmark = pytest.mark.root

ATTEMPTS = 100_000
OPENED = "8000-8999, 8000-8999/udp"
GATEWAY = rules("gw", egress=f"[{{to: 'workload:model', ports: [{OPENED}]}}]")
STRANGERS = ("by", "third")
_served = itertools.count(8000)


def model(*sources: str) -> str:
    return rules("model", ingress=f"[{{from: [{', '.join(map(repr, sources))}], ports: [{OPENED}]}}]")


@pytest.fixture(scope="module")
def actors(governed: Governed) -> Iterator[dict[str, Actor]]:
    governed.load(model("workload:gw"), GATEWAY, rules("third"))
    made = {name: governed.actor(name) for name in ("model", "gw", "third")}
    made |= {"gw2": governed.actor("gw"), "by": governed.actor()}
    # Strangers come round to the same ports, and take those in TIME_WAIT again.
    made["by"](
        ops.sysctl,
        net__ipv4__tcp_tw_reuse="1",
        net__ipv4__ip_local_port_range="{} {}".format(*OF_THE_KERNEL),
    )
    yield made
    for actor in made.values():
        actor.close()


@dataclass(frozen=True)
class Outcome:
    """What everybody wrote down."""

    served: Served
    fresh: Made
    kept: Made
    strangers: dict[str, Knocked]

    @property
    def made(self) -> Counter[Call]:
        """The gateway's connections."""
        return Counter([*self.fresh.connections, *self.kept.connections])

    @property
    def strange(self) -> Counter[Call]:
        """Connections that the model server accepted and the gateway did not make."""
        return Counter(self.served.connections) - self.made

    def of(self, name: str) -> Knocked:
        return self.strangers[name]


def play(actors: dict[str, Actor], attempts: int, *ends: End) -> Outcome:
    """The gateway works until the strangers have tried so many connections, and so many datagrams at least."""
    port = next(_served)
    TRAIL.clear()
    start = time.monotonic()
    actors["model"](load.listen, port)
    actors["model"].start(load.serve)
    actors["gw"].start(load.call_anew, port, ends)
    actors["gw2"].start(load.call_again, port)
    for share, name in enumerate(STRANGERS):
        actors[name].start(load.knock, name, port, share, len(STRANGERS), attempts // len(STRANGERS))
    try:
        for name in STRANGERS:
            actors[name].result()
        seconds = time.monotonic() - start
    finally:
        TRAIL.stop()
        fresh, kept, served = (actors[name].result() for name in ("gw", "gw2", "model"))
    found = Outcome(served, fresh, kept, {name: actors[name](load.leave) for name in STRANGERS})
    tell(found, seconds)
    return found


def tell(found: Outcome, seconds: float) -> None:
    """For whoever reads the test's output."""
    gateway = f"{len(found.fresh.connections):,} connections, {len(found.fresh.datagrams):,} datagram sockets"
    print(f"gateway: {gateway}, {found.kept.requests:,} requests on kept ones, in {seconds:.1f} s")
    for name, knocked in found.strangers.items():
        print(f"{name}: {knocked.connections:,} connections and {knocked.datagrams:,} datagrams tried")
        for outcome, count in sorted(knocked.outcomes.items()):
            print(f"  {count:7,}  {outcome}")
    print(f"accepted without the gateway: {found.strange.total():,}")


def assert_the_gateway_works(found: Outcome, attempts: int) -> None:
    """All its calls came and were answered.  The new ones, which strangers follow, are half as many as theirs."""
    assert found.fresh.errors == []
    assert found.kept.errors == []
    assert len(found.fresh.connections) >= attempts // 2
    assert len(found.fresh.datagrams) >= attempts // 2
    assert found.kept.requests > 0
    assert found.served.requests == found.fresh.requests + found.kept.requests
    assert found.made - Counter(found.served.connections) == Counter()
    assert {address for address, _, _ in found.made} == set(range(len(load.ADDRESSES)))


def assert_no_data(found: Outcome) -> None:
    """Neither from a stranger to the model server nor back."""
    assert found.served.strange == []
    assert Counter(found.served.datagrams) == Counter([*found.fresh.datagrams, *found.kept.datagrams])
    assert [knocked.heard for knocked in found.strangers.values()] == [[], []]


def denied(governed: Governed) -> dict[str, int]:
    """Packets by who was refused: who is no workload is refused by the receiver, a workload by itself."""
    counters = governed.counters()
    return {"by": counters["denied_in_model"], "third": counters["denied_out_third"]}


@pytest.mark.parametrize(
    "ends",
    [
        pytest.param((End.CLOSED, End.DATAGRAM, End.RESET, End.DATAGRAM), id="the-gateway-closes"),
        pytest.param((End.BY_SERVER, End.DATAGRAM), id="the-server-closes"),
    ],
)
def test_nobody_gets_in(
    ends: tuple[End, ...], actors: dict[str, Actor], governed: Governed, count: int
) -> None:
    """Neither from ports of the kernel's choice nor from those that the gateway had just before."""
    before = denied(governed)
    found = play(actors, ATTEMPTS // count, *ends)
    after = denied(governed)
    assert_the_gateway_works(found, ATTEMPTS // count)
    assert_no_data(found)
    assert found.strange == Counter()
    for name in STRANGERS:
        knocked = found.of(name)
        assert knocked.entered == []
        assert after[name] - before[name] == knocked.connections + knocked.datagrams, "each is counted, once"


def test_the_count_sees_who_gets_in(actors: dict[str, Actor], governed: Governed) -> None:
    """The same with rules that let both strangers in."""
    governed.load(
        model("workload:gw", "workload:third", "host"), GATEWAY, GATEWAY.replace("workload: gw", "workload: third")
    )
    found = play(actors, 400, End.RESET, End.DATAGRAM)
    assert_the_gateway_works(found, 400)
    for name in STRANGERS:
        entered = found.of(name).entered
        assert len(entered) >= 90
        assert {(address, port) for address, port, _ in found.strange} >= set(entered)
        told = found.served.strange.count(name.encode())
        assert told > len(entered) // 2, "by every second connection, and by datagrams"
    assert found.of("by").heard.count(load.GREETING) > 0
