"""Rules about who is at the far end, with the real daemon: hits, blocks, and what `why` says of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from attacks import ops
from daemon.running import Running
from governed import Actor, eventually

pytestmark = pytest.mark.root

MODEL = (
    "[{from: 'workload:gw', ports: [8000], name: front}, {from: host, ports: [8001], name: here},"
    " {from: lan, ports: [8002], name: lan}, {from: unplugged, ports: [8003], name: dark}]"
)
GW = "[{to: 'workload:model', ports: [8000], name: model}, {to: lan, ports: [7000/udp], name: out}]"


class Site:
    """A model server, its gateway, a bystander and a host far away, under those rules."""

    def __init__(self, running: Running) -> None:
        self.running, lab = running, running.lab
        running.write(
            "penstock.yaml", "version: 1\nnetworks: {lan: {interface: eth0}, unplugged: {interface: eth9}}\n"
        )
        running.rules("model", ingress=MODEL)
        running.rules("gw", GW)
        running.up()
        self.actors = {
            "model": running.actor("model"),
            "gw": running.actor("gw"),
            "by": running.actor(None),
            "far": Actor(lab.remote["stranger"]),
        }
        self.listeners = [self.actors["model"](ops.listen, "0.0.0.0", port) for port in range(8000, 8004)]

    def calls(self, who: str, port: int) -> bool:
        """Whether somebody gets through to the model server."""
        host = self.running.lab.host.v4
        made = self.actors[who](ops.connect, host if who == "far" else "127.0.0.1", port, timeout=1)
        if not isinstance(made, int):
            return False
        accepted = self.actors["model"](ops.accept, self.listeners[port - 8000])
        self.actors[who](ops.send, made, b"ping")
        good: bool = self.actors["model"](ops.receive, accepted) == b"ping"
        self.actors[who](ops.close, made)
        self.actors["model"](ops.close, accepted)
        return good

    def hits(self) -> dict[str, int]:
        """By rule, of both workloads."""
        asked = (self.running.ask("hits", workload=name)["rules"] for name in ("model", "gw"))
        return {rule: count for found in asked for rule, count in found.items()}

    def close(self) -> None:
        for actor in self.actors.values():
            actor.close()


@pytest.fixture
def site(running: Running) -> Iterator[Site]:
    made = Site(running)
    yield made
    made.close()


def test_hits(site: Site) -> None:
    assert set(site.hits().values()) == {0}
    for who, port, expected in (
        ("gw", 8000, {"front", "model"}),
        ("by", 8001, {"here"}),
        ("far", 8002, {"lan"}),
    ):
        before = site.hits()
        assert site.calls(who, port)
        after = site.hits()
        assert {rule for rule in after if after[rule] > before[rule]} == expected
    before = site.hits()
    for who, port in (("gw", 8001), ("by", 8000), ("far", 8003), ("far", 8000)):
        assert not site.calls(who, port)
    assert site.hits() == before
    here = site.actors["gw"](ops.udp, "0.0.0.0")
    site.actors["gw"](ops.sendto, here, b"out", site.running.lab.remote["stranger"].v4, 7000)
    after = site.hits()
    assert after["out"] == before["out"] + 1
    site.running.rules("gw", GW.replace("7000/udp", "7000/udp, 7001"))
    assert site.running.ask("apply")["changed"]
    assert site.hits() == after, "a load forgets nothing"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("model", "--from", "workload:gw", "8000"), 0),
        (("model", "--from", "workload:gw", "8001"), 1),
        (("gw", "workload:model:8000"), 0),
        (("gw", "workload:model:8001"), 1),
        (("model", "--from", "host", "8001"), 0),
        (("model", "--from", "host", "8000"), 1),
        (("model", "--from", "lan", "8002"), 0),
        (("model", "--from", "lan", "8003"), 1),
        (("model", "--from", "unplugged", "8003"), 0),
        (("model", "--from", "10.0.0.1", "8002"), 2),
    ],
)
def test_the_kernel_is_asked(site: Site, words: tuple[str, ...], status: int) -> None:
    code, said = site.running.why(*words)
    assert (code, said["kernel"]) == (status, "agrees"), said


def test_blocks_know_the_interface(site: Site) -> None:
    """Who came over it may call another port, and that is what his block says."""
    assert not site.calls("far", 8003)
    assert not site.calls("far", 8000)

    def told() -> dict[int, dict[str, Any]]:
        return {block["port"]: block for block in site.running.blocks() if block["direction"] == "in"}

    eventually(lambda: {8000, 8003} <= told().keys(), timeout=15)
    found = told()
    assert found[8003]["reason"] == "wrong-port", found[8003]
    assert found[8003]["nearest"] == "lan"
    assert found[8000]["reason"] == "wrong-port"
