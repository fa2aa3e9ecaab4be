"""The services that other tests govern do what those tests need them for, on each release, ungoverned."""

from __future__ import annotations

import pytest

from hosts.host import Host
from hosts.llama import HUB, ask, complete, fetch_model, install_llama
from hosts.outside import REGISTRY, STRANGER
from hosts.probe import Probe, install_probe
from hosts.world import World

FAMILIES = (4, 6)


@pytest.fixture(scope="module")
def client(world: World) -> Host:
    """Who uses them."""
    return world.boot("client", "trixie")


@pytest.fixture(scope="module")
def server(world: World, release: str) -> Host:
    """A host of each release."""
    return world.boot(f"on-{release}", release)


@pytest.fixture(scope="module")
def probe(server: Host) -> Probe:
    """A probe there, under a user of its own."""
    return install_probe(server, service_lines="User=daemon")


@pytest.fixture(scope="module")
def llama(server: Host) -> Host:
    """The host with llama-server on it."""
    install_llama(server)
    return server


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_server_answers_a_client(llama: Host, client: Host, family: int) -> None:
    answer = complete(client, llama.address(family))
    assert (answer.status, answer.json()["tokens_predicted"]) == (200, 8), answer


@pytest.mark.parametrize("family", FAMILIES)
def test_anybody_can_make_llama_server_call_out(world: World, llama: Host, client: Host, family: int) -> None:
    there = STRANGER[family == 6]
    world.outside.names({HUB: [there]})
    mark = world.outside.mark()
    assert fetch_model(client, llama.address(family), f"someone/repo{family}").status == 200
    sent = world.outside.wait_for(host=llama.name, to=there, port=443, since=mark, opens=True)
    assert {p.protocol for p in sent} == {"tcp"}


def test_llama_server_comes_back_after_a_reboot(llama: Host, client: Host) -> None:
    llama.reboot()
    assert complete(client, llama.v4).status == 200
    assert llama.sh("ps -o user= -C llama-server").split()[0] == "llama"
    assert ask(client, llama.v6, "/health").status == 200


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probe_serves_and_obeys(world: World, probe: Probe, client: Host, family: int) -> None:
    own, there = probe.host.address(family), STRANGER[family == 6]
    assert client.tcp(own, probe.port).reply == client.udp(own, probe.port).reply == b"hello"
    mark = world.outside.mark()
    assert probe.tcp(there, 443).reply == probe.udp(there, 5000).reply == "hello"
    assert probe.tcp(there, 444).outcome == "ECONNREFUSED"
    seen = world.outside.seen(probe.host.name, to=there, since=mark)
    assert {(p.protocol, p.port) for p in seen} == {("tcp", 443), ("udp", 5000), ("tcp", 444)}
    held = probe.tcp(REGISTRY[family == 6], 443, hold=True)
    assert probe.send(held.id).reply == "hello"
    assert client.tcp(own, 7100 + family).outcome == "ECONNREFUSED"
    probe.listen(7100 + family)
    assert client.tcp(own, 7100 + family).outcome == "ok"


def test_the_hammer_begins_at_once_and_goes_on(world: World, server: Host) -> None:
    targets = [(there, 6100) for there in STRANGER]
    mark = world.outside.mark()
    probe = install_probe(server, "hammer.service", port=7200, hammer=targets)
    try:
        for protocol in ("tcp", "udp"):
            for there in STRANGER:
                world.outside.wait_for(50, host=server.name, to=there, protocol=protocol, port=6100, since=mark)
        assert probe.counts()["tried"] > 200
    finally:
        probe.systemctl("stop")
