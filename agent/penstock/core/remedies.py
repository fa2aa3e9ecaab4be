"""What would let something through: a command for the night, or a line to put into a rule file."""

from __future__ import annotations

from penstock.core import names
from penstock.core.policy import Direction, Mode, Workload

REST = '--for 8h --reason "..."'


def to_allow(workload: Workload, direction: Direction, peer: str, protocol: str, port: int) -> str:
    """The command that lends it until morning; of a workload to which nothing is denied yet, the rule it lacks."""
    if workload.mode is Mode.OBSERVE:
        return to_add(workload, direction, peer, protocol, port)
    return to_lend(workload, direction, peer, protocol, port)


def to_lend(workload: Workload, direction: Direction, peer: str, protocol: str, port: int) -> str:
    """The grant of `port` at `peer` (text of an address or a name), or from there."""
    ports = str(port) if protocol == "tcp" else f"{port}/{protocol}"
    if direction is Direction.IN:
        return f"penstock grant {workload.name} --from {peer} --port {ports} {REST}"
    far = f"[{peer}]" if ":" in peer else peer
    return f"penstock grant {workload.name} {far}:{ports} {REST}"


def to_add(workload: Workload, direction: Direction, peer: str, protocol: str, port: int) -> str:
    """The rule that opens `port` at `peer` (text of an address or a name), and what to do with it."""
    side, key = ("egress", "to") if direction is Direction.OUT else ("ingress", "from")
    ports = str(port) if protocol == "tcp" else f"{port}/{protocol}"
    far = f'"{peer}"' if ":" in peer else peer
    rule = f"- {{{key}: {far}, ports: [{ports}]}}"
    return f"add to {side} in {workload.place.file or workload.name}:  {rule}  then: penstock apply"


def to_name(workload: Workload, name: str, protocol: str = "tcp", port: int = 443) -> str | None:
    """The same as `to_allow` for a name that was asked; None when no rule can have it."""
    try:
        good = names.normalise(name) == name
    except names.BadName:
        good = False
    return to_allow(workload, Direction.OUT, name, protocol, port) if good else None
