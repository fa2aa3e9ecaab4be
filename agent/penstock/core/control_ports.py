"""Control ports as the kernel must be told of them: cut out of every range of an egress rule.

The evaluator shares the table (`policy.CONTROL_PORTS`) and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from penstock.core.policy import CONTROL_PORTS, Direction, PortRange, Ports, Rule

_CLOSED = sorted(CONTROL_PORTS)


def opened(ranges: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """What `ranges` of an egress rule open."""
    return tuple(part for one in ranges for part in _parts(one))


def of(rule: Rule) -> Ports:
    """The ports that `rule` opens."""
    ports = rule.ports
    return replace(ports, ranges=opened(ports.ranges)) if rule.direction is Direction.OUT else ports


def _parts(one: PortRange) -> list[PortRange]:
    if one.protocol != "tcp" or one.first == one.last:
        return [one]
    parts, first = [], one.first
    for port in _CLOSED:
        if first <= port <= one.last:
            if first < port:
                parts.append(PortRange(one.protocol, first, port - 1))
            first = port + 1
    if first <= one.last:
        parts.append(PortRange(one.protocol, first, one.last))
    return parts


def literal(rule: Rule) -> list[int]:
    """The control ports that an egress rule opens because they stand there by themselves."""
    if rule.direction is not Direction.OUT:
        return []
    alone = (r.first for r in rule.ports.ranges if r.protocol == "tcp" and r.first == r.last)
    return [port for port in alone if port in CONTROL_PORTS]
