"""Ranges and `any` around ports that command a host, towards a stranger and on this host; and each by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from attacks.conftest import Witness
from attacks.test_loopback import LOOPBACKS, reach_port
from governed import Actor, Governed, eventually, rules
from penstock.core.policy import CONTROL_PORTS
from penstock.demo import probe
from penstock.demo.lab import Lab

pytestmark = pytest.mark.root

AROUND = ["any", "2000-3000, 10000-20000", *(f"{port - 1}-{port}, {port}-{port + 1}" for port in CONTROL_PORTS)]
NEIGHBOURS = (2374, 2377, 10249, 10251, 16508, 16515)


@pytest.fixture(scope="module")
def workload(governed: Governed) -> Iterator[Actor]:
    governed.load(rules("w"), rules("model"))
    with governed.actor("w") as made:
        yield made


@pytest.fixture(scope="module")
def model(governed: Governed) -> Iterator[Actor]:
    governed.load(rules("w"), rules("model"))
    with governed.actor("model") as made:
        yield made


def called(workload: Actor, stranger: Witness, lab: Lab) -> set[int]:
    """The control ports of the stranger at which a packet arrives, over both families alike."""
    found = []
    for address in lab.remote["stranger"].addresses:
        stranger.packets()
        for port in CONTROL_PORTS:
            workload(probe.tcp, address, port, timeout=0.5)
        arrived = {packet.port for packet in stranger.packets()} & set(CONTROL_PORTS)
        found.append(arrived)
    assert found[0] == found[1]
    return found[0]


def test_what_is_seen_when_nobody_minds(governed: Governed, stranger: Witness, lab: Lab) -> None:
    with governed.actor() as bystander:
        assert called(bystander, stranger, lab) == set(CONTROL_PORTS)


@pytest.mark.parametrize("ports", AROUND)
def test_nothing_around_it_opens_a_control_port(
    ports: str, governed: Governed, workload: Actor, stranger: Witness, lab: Lab
) -> None:
    governed.load(rules("w", f"[{{to: any, ports: [{ports}]}}]"), rules("model"))
    assert called(workload, stranger, lab) == set()


def test_its_neighbours_are_open(governed: Governed, workload: Actor, stranger: Witness, lab: Lab) -> None:
    governed.load(rules("w", "[{to: any, ports: [any]}]"), rules("model"))
    address = lab.remote["stranger"].address(4)
    stranger.packets()
    for port in NEIGHBOURS:
        workload(probe.tcp, address, port, timeout=0.5)
    seen: set[int] = set()

    def all_came() -> bool:
        seen.update(packet.port for packet in stranger.packets())
        return seen >= set(NEIGHBOURS)

    eventually(all_came)


@pytest.mark.parametrize("port", CONTROL_PORTS)
def test_by_itself_it_is_opened_and_no_other(
    port: int, governed: Governed, workload: Actor, stranger: Witness, lab: Lab
) -> None:
    governed.load(rules("w", f"[{{to: any, ports: [{port}, 2000-20000]}}]"), rules("model"))
    assert called(workload, stranger, lab) == {port}


@pytest.mark.parametrize("address", LOOPBACKS)
@pytest.mark.parametrize("to", ["'workload:model'", "[127.0.0.1, '::1']"])
def test_nor_at_another_workload(
    to: str, address: str, governed: Governed, workload: Actor, model: Actor
) -> None:
    serves = rules("model", ingress="[{from: [any, 'workload:w'], ports: [2370-2380]}]")
    governed.load(rules("w", f"[{{to: {to}, ports: [2370-2380]}}]"), serves)
    assert not reach_port(workload, model, address, 2375)
    assert reach_port(workload, model, address, 2374)
    governed.load(rules("w", f"[{{to: {to}, ports: [2375]}}]"), serves)
    assert reach_port(workload, model, address, 2375)
