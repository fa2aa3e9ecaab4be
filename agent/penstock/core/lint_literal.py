"""Rules that name literally what nothing else opens: `check` warns, and `status` goes on telling (`findings`)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from penstock.core import control_ports
from penstock.core.advice import each_rule, say
from penstock.core.language.rule_ids import peer_text
from penstock.core.nearest import is_over
from penstock.core.policy import (
    CONTROL_PORTS,
    METADATA,
    AddressPeer,
    MetadataPeer,
    Peer,
    Policy,
    Rule,
    Workload,
)
from penstock.core.problems import Problem

_METADATA = frozenset(METADATA)


def control_port(policy: Policy) -> Iterator[Problem]:
    """An egress rule with a control port by itself."""
    for _, rule in each_rule(policy):
        found = control_ports.literal(rule)
        if found:
            text = f"port {found[0]} is that of {CONTROL_PORTS[found[0]]}: whoever connects commands that host"
            yield say(rule, "control-port", text, "let the workload ask something that offers less, if you can")


def addresses(workload: Workload, now: datetime) -> list[tuple[Rule, str]]:
    """Each metadata or link-local address that a rule opens at `now`, as it is written there."""
    rules = (rule for rule in workload.egress if not is_over(rule, now))
    return [(rule, peer_text(peer)) for rule in rules for peer in rule.peers if _is_closed(peer)]


def ports(workload: Workload, now: datetime) -> list[tuple[Rule, str]]:
    """Each control port that a rule opens at `now`, in words."""
    rules = (rule for rule in workload.egress if not is_over(rule, now))
    return [
        (rule, f"port {port}, {CONTROL_PORTS[port]}") for rule in rules for port in control_ports.literal(rule)
    ]


def _is_closed(peer: Peer) -> bool:
    if isinstance(peer, AddressPeer):
        return peer.address.is_link_local or peer.address in _METADATA
    return isinstance(peer, MetadataPeer)
