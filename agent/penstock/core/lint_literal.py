"""Rules that name literally what nothing else opens: `check` warns, and `status` goes on telling (`findings`)."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.core import control_ports
from penstock.core.advice import each_rule, say
from penstock.core.policy import CONTROL_PORTS, Policy
from penstock.core.problems import Problem


def control_port(policy: Policy) -> Iterator[Problem]:
    """An egress rule with a control port by itself."""
    for _, rule in each_rule(policy):
        found = control_ports.literal(rule)
        if found:
            text = f"port {found[0]} is that of {CONTROL_PORTS[found[0]]}: whoever connects commands that host"
            yield say(rule, "control-port", text, "let the workload ask something that offers less, if you can")
