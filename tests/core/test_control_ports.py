"""Control ports, cut out of ranges."""

from __future__ import annotations

import pytest

from penstock.core import control_ports
from penstock.core.policy import CONTROL_PORTS, EVERY_PORT, Direction, PortRange, Ports, Rule


def tcp(*ends: tuple[int, int]) -> tuple[PortRange, ...]:
    return tuple(PortRange("tcp", *pair) for pair in ends)


@pytest.mark.parametrize(
    ("ranges", "opened"),
    [
        (tcp((2375, 2375)), tcp((2375, 2375))),
        (tcp((2375, 2376)), ()),
        (tcp((2374, 2375)), tcp((2374, 2374))),
        (tcp((2376, 2377)), tcp((2377, 2377))),
        (tcp((2000, 3000), (2376, 2376)), tcp((2000, 2374), (2377, 3000), (2376, 2376))),
        (tcp((443, 443), (8000, 9000)), tcp((443, 443), (8000, 9000))),
        ((PortRange("udp", 2000, 3000),), (PortRange("udp", 2000, 3000),)),
    ],
)
def test_cut(ranges: tuple[PortRange, ...], opened: tuple[PortRange, ...]) -> None:
    assert control_ports.opened(ranges) == opened
    assert control_ports.opened(opened) == opened


def test_of_every_port_all_others_are_left() -> None:
    left = {n for r in control_ports.opened(EVERY_PORT) if r.protocol == "tcp" for n in range(r.first, r.last + 1)}
    assert left == set(range(65536)) - set(CONTROL_PORTS)


def test_coming_in_they_are_ports_like_others() -> None:
    ports = Ports((*tcp((2000, 3000), (10250, 10250)), PortRange("udp", 2375, 2375)), icmp=True)
    inward, outward = (Rule("r", direction, (), ports) for direction in (Direction.IN, Direction.OUT))
    assert control_ports.of(inward) == ports
    assert control_ports.of(outward).icmp
    assert control_ports.of(outward) != ports
    assert control_ports.literal(inward) == []
    assert control_ports.literal(outward) == [10250]
