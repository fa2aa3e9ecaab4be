"""What checks of `lint` share: walking over rules, and saying something about one."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.core.policy import Policy, Ports, Rule, Workload
from penstock.core.problems import Problem, Severity


def say(rule: Rule, code: str, message: str, hint: str, severity: Severity = "warning") -> Problem:
    """A problem at the place of a rule."""
    return Problem(rule.place, severity, code, message, hint)


def each_rule(policy: Policy) -> Iterator[tuple[Workload, Rule]]:
    """Every rule with its workload."""
    for workload in policy.workloads.values():
        for rule in workload.rules:
            yield workload, rule


def has_port(ports: Ports, port: int, protocol: str = "tcp") -> bool:
    """Whether the port is one of them."""
    return any(r.protocol == protocol and r.first <= port <= r.last for r in ports.ranges)
