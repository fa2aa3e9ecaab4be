"""Everybody else reaches everything as before; observe denies nothing and counts; lock lets nothing through."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from attacks import ops
from attacks.conftest import Witness
from attacks.test_loopback import reach, tell
from attacks.test_plain import ATTEMPTS, attempt
from governed import Actor, Governed, rules
from penstock.core.compile import Resolver
from penstock.demo.lab import Lab

pytestmark = pytest.mark.root

FAMILIES = [pytest.param(4, id="v4"), pytest.param(6, id="v6")]
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
MODES = ["observe", "enforce", "lock"]
BY_NAME, RESOLVER = "[{to: hub.example}]", Resolver({"w": 40053})
_ports = itertools.count(23000)

FOREIGN = """
table inet other {
  set allowed { type ipv4_addr; flags timeout; elements = { 192.0.2.77 timeout 1h }; }
  counter seen { }
  chain output { type filter hook output priority 0; policy accept; ct state established counter accept; }
  chain nat { type nat hook postrouting priority 100; ip daddr 192.0.2.99 masquerade; }
}
"""


@pytest.fixture(scope="module", autouse=True)
def pings(governed: Governed, lab: Lab) -> None:
    governed.agent(ops.sysctl, net__ipv4__tcp_fastopen="1031", net__ipv4__ping_group_range="0 2147483647")


@pytest.fixture
def by(governed: Governed) -> Iterator[Actor]:
    with governed.actor() as actor:
        yield actor


@pytest.fixture
def far(lab: Lab) -> Iterator[Actor]:
    with Actor(lab.remote["stranger"]) as actor:
        yield actor


@pytest.mark.parametrize("egress", [pytest.param("[]", id="plain"), pytest.param(BY_NAME, id="by-name")])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_bystanders_notice_nothing(
    family: int, mode: str, egress: str, lab: Lab, governed: Governed, by: Actor, far: Actor, stranger: Witness
) -> None:
    here, there = lab.host.address(family), lab.remote["stranger"].address(family)
    governed.load(rules("w", egress, mode=mode), rules("x", mode=mode), resolver=RESOLVER)
    for function in ATTEMPTS:
        stranger.packets()
        by(attempt, function, there)
        assert stranger.packets(), function
    assert reach(by, far, there)
    assert reach(far, by, here)
    with governed.actor() as second:
        for address in (LOOPBACK[family], here):
            assert reach(by, second, address)
            assert tell(by, second, address, (next(_ports), next(_ports)))
    assert governed.counters()["denied_out_w"] + governed.counters()["denied_in_w"] == 0


def test_rules_of_others_stay_as_they_are(lab: Lab, governed: Governed) -> None:
    governed.nft(FOREIGN)
    listing = ["nft", "-s", "list", "table", "inet", "other"]
    before = lab.host.run(listing).stdout
    for mode in MODES:
        governed.load(rules("w", mode=mode))
        governed.load(rules("x", mode=mode))
        assert lab.host.run(listing).stdout == before
    governed.nft("delete table inet other")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("function", ATTEMPTS)
def test_observe_lets_everything_pass_and_counts(
    function: Callable[[str], None], family: int, lab: Lab, governed: Governed, stranger: Witness
) -> None:
    governed.load(rules("o", mode="observe"))
    before = governed.counters()["denied_out_o"]
    with governed.actor("o") as w:
        stranger.packets()
        w(attempt, function, lab.remote["stranger"].address(family))
        assert stranger.packets()
    assert governed.counters()["denied_out_o"] > before


@pytest.mark.parametrize("family", FAMILIES)
def test_observe_lets_clients_in_and_loopback_pass(
    family: int, lab: Lab, governed: Governed, by: Actor, far: Actor
) -> None:
    governed.load(rules("o", mode="observe"))
    with governed.actor("o") as w:
        for address in (LOOPBACK[family], lab.host.address(family)):
            for client, server, counter in ((w, by, "denied_out_o"), (by, w, "denied_in_o")):
                before = governed.counters()[counter]
                assert reach(client, server, address)
                assert tell(client, server, address, (next(_ports), next(_ports)))
                assert governed.counters()[counter] >= before + 2
        before = governed.counters()["denied_in_o"]
        assert reach(far, w, lab.host.address(family))
        assert governed.counters()["denied_in_o"] > before


@pytest.mark.parametrize("family", FAMILIES)
def test_lock_lets_nothing_pass(
    family: int, lab: Lab, governed: Governed, far: Actor, stranger: Witness
) -> None:
    """Not even what rules allow, nor what was established."""
    here, there = lab.host.address(family), lab.remote["stranger"].address(family)
    peer = lab.remote["stranger"]
    addresses = f"[{peer.v4}, '{peer.v6}']"
    allowed = f"[{{to: {addresses}, ports: [any, icmp]}}]", f"[{{from: {addresses}, ports: [any]}}]"
    governed.load(rules("w", *allowed))
    with governed.actor("w") as w:
        listener = w(ops.listen, here, port := next(_ports))
        client = far(ops.connect, here, port)
        served = w(ops.accept, listener)
        called = w(ops.connect, there, 80)
        assert isinstance(called, int)
        governed.load(rules("w", *allowed, mode="lock"))
        stranger.packets()
        w(ops.send, called, b"late")
        w(ops.send, served, b"late")
        assert far(ops.receive, client, 0.05) != b"late"
        for function in ATTEMPTS:
            w(attempt, function, there)
        assert stranger.packets() == []
        assert far(ops.connect, here, port) == "ECONNREFUSED"
        assert [p for p in stranger.packets() if p.protocol != "tcp"] == []
        assert w(ops.receive, called, 0.1) == "ECONNRESET"
