"""What is legal and yet unwise.  A table of checks, each a function from the policy to problems.

No check compares each rule with each or each address with each: policies hold 100,000 of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from penstock.core import control_ports, lint_literal, lint_names, lint_planes
from penstock.core.advice import each_rule, say
from penstock.core.coverage import Cover, is_everything
from penstock.core.language.rule_ids import peer_text
from penstock.core.policy import (
    METADATA,
    AddressPeer,
    AnyPeer,
    CidrPeer,
    Direction,
    MetadataPeer,
    Mode,
    Policy,
    PortRange,
    Ports,
    Rule,
    Workload,
    WorkloadPeer,
)
from penstock.core.problems import Problem, Severity, in_order

_PROXY_PORTS = {1080: "SOCKS", 3128: "forward"}


def lint(policy: Policy, now: datetime | None = None) -> list[Problem]:
    """Warnings and errors, in order of place.  `now` (aware): also tell rules that have ended by then."""
    problems = [problem for check in CHECKS for problem in check(policy)]
    if now is not None:
        problems.extend(_ended(policy, now))
    return list(in_order(problems))


def _ended(policy: Policy, now: datetime) -> Iterator[Problem]:
    for _, rule in each_rule(policy):
        if rule.expires is not None and rule.expires <= now:
            yield say(
                rule,
                "expired",
                "the rule has expired and opens nothing",
                "renew `expires`, or remove the rule",
            )


def _emptied(policy: Policy) -> Iterator[Problem]:
    for _, rule in each_rule(policy):
        if rule.excepted and rule.peers:
            gone = Cover(policy, rule.excepted)
            if all(gone.holds(peer) for peer in rule.peers):
                yield say(
                    rule,
                    "empty-rule",
                    "`except` takes out everything, so the rule opens nothing",
                    "remove the rule",
                )


def _shadowed(policy: Policy) -> Iterator[Problem]:
    for workload in policy.workloads.values():
        for rules in (workload.egress, workload.ingress):
            yield from _shadowed_in(policy, rules)


def _shadowed_in(policy: Policy, rules: tuple[Rule, ...]) -> Iterator[Problem]:
    """A rule inside one earlier rule; tried are the first ones with the same ports, and those open to all."""
    covers: dict[str, Cover] = {}
    everything = [rule for rule in rules if any(is_everything(peer) for peer in rule.peers)][:4]
    by_ports: dict[Ports, list[Rule]] = {}
    for rule in rules:
        if rule.peers:
            for other in (*by_ports.get(rule.ports, ())[:4], *everything):
                if other.place >= rule.place or not _no_narrower(other, rule):
                    continue
                cover = covers.setdefault(other.id, Cover(policy, other.peers))
                if all(cover.holds(peer) for peer in rule.peers):
                    text = f"the rule takes no effect: the one in line {other.place.line} opens all of it"
                    yield say(rule, "no-effect", text, "remove one of them")
                    break
        by_ports.setdefault(rule.ports, []).append(rule)


def _no_narrower(wide: Rule, narrow: Rule) -> bool:
    """Whether `wide` has all ports of `narrow`, takes nothing out and does not end before it."""
    if wide.excepted or wide.expires is not None or (narrow.private and not wide.private):
        return False
    if narrow.ports.icmp and not wide.ports.icmp:
        return False
    opened = control_ports.of(wide).ranges
    return all(any(_inside(r, w) for w in opened) for r in control_ports.of(narrow).ranges)


def _inside(narrow: PortRange, wide: PortRange) -> bool:
    return narrow.protocol == wide.protocol and wide.first <= narrow.first and narrow.last <= wide.last


def _echo_inward(policy: Policy) -> Iterator[Problem]:
    for _, rule in each_rule(policy):
        if rule.direction is Direction.IN and rule.ports.icmp:
            text = "`icmp` has no effect in an ingress rule: the kernel answers echo requests, not the workload"
            yield say(rule, "no-effect", text, "leave it out")


def _wide_open(policy: Policy) -> Iterator[Problem]:
    for _, rule in each_rule(policy):
        wide = next((peer for peer in rule.peers if is_everything(peer)), None)
        if wide is None:
            continue
        what = peer_text(wide)
        if rule.direction is Direction.OUT:
            text = f"`{what}` opens every address, this host's loopback with the other services on it included"
            hint = 'name the destinations, or write `except: [127.0.0.0/8, "::1/128"]` and your private networks'
        else:
            text = f"`{what}` lets everybody in, from every network this host is in"
            hint = "name the networks of the clients"
        yield say(rule, "wide-open", text, hint)
    for network in policy.networks.values():
        if any(cidr.prefixlen == 0 for cidr in network.cidrs):
            text = f"network `{network.name}` is every address"
            yield Problem(network.place, "warning", "wide-open", text, "name its prefixes")


def _metadata(policy: Policy) -> Iterator[Problem]:
    for _, rule in each_rule(policy):
        opened = [
            p for p in rule.peers
            if isinstance(p, MetadataPeer) or (isinstance(p, AddressPeer) and p.address in METADATA)
        ]  # fmt: skip
        if opened:
            text = f"`{peer_text(opened[0])}` hands out the credentials of this machine"
            yield say(rule, "metadata", text, "give the workload credentials of its own, if you can")


def _one_sided(policy: Policy) -> Iterator[Problem]:
    for workload, rule in each_rule(policy):
        for peer in rule.peers:
            if not isinstance(peer, WorkloadPeer):
                continue
            other = policy.workloads[peer.name]
            # Rules are written one workload after the other, and as long as one is only watched nothing is broken.
            severity: Severity = "warning" if Mode.OBSERVE in (workload.mode, other.mode) else "error"
            if other is workload:
                yield say(rule, "self", "a workload may always talk to itself", "leave it out")
            elif rule.direction is Direction.OUT:
                if not _meets(other.ingress, workload):
                    text = f"`{other.name}` does not let `{workload.name}` in"
                    hint = f"write `from: workload:{workload.name}` in its ingress too"
                    yield say(rule, "one-sided", text, hint, severity)
            elif not _meets(other.egress, workload):
                text = f"`{other.name}` may not connect to `{workload.name}`"
                hint = f"write `to: workload:{workload.name}` in its egress too"
                yield say(rule, "one-sided", text, hint, severity)


def _meets(rules: tuple[Rule, ...], other: Workload) -> bool:
    """Whether one of `rules` is about `other`, by its name or by loopback.

    Which other addresses are this host's own is not known here.
    """
    return any(
        peer in (WorkloadPeer(other.name), AnyPeer())
        or (isinstance(peer, AddressPeer) and peer.address.is_loopback)
        or (isinstance(peer, CidrPeer) and peer.cidr.is_loopback)
        for rule in rules
        for peer in rule.peers
    )


def _proxy(policy: Policy) -> Iterator[Problem]:
    for workload in policy.workloads.values():
        for rule in workload.egress:
            found = next(
                (port for port in _PROXY_PORTS if PortRange("tcp", port, port) in rule.ports.ranges), None
            )
            if found is not None:
                kind = _PROXY_PORTS[found]
                text = f"port {found} is that of a {kind} proxy: what it reaches, the workload reaches"
                yield say(rule, "proxy", text, "restrict the proxy for this host, or name the destinations here")


CHECKS: tuple[Callable[[Policy], Iterator[Problem]], ...] = (
    _emptied,
    _shadowed,
    _echo_inward,
    _wide_open,
    lint_names.public_resolver,
    lint_names.other_resolvers,
    lint_names.shared_suffix,
    lint_names.metadata_name,
    lint_names.known_name,
    _metadata,
    lint_literal.control_port,
    lint_planes.opened_ports,
    lint_planes.own_ports_from_inside,
    lint_planes.overlaps,
    _one_sided,
    _proxy,
)
