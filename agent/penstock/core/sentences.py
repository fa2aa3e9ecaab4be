"""Runs the `tests:` of rule files against what the policy means (`verdict`).

A sentence about one address is one connection.  A sentence about a network, a plane or `any` is about
every address in it: a verdict can change only where some prefix of the policy begins or ends, so asking
at those edges asks for all addresses, and every one of them must give the expected answer.

Tests are about the rules: a workload that is locked for the moment is tested as if it were not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from penstock.core.name_rules import resolves
from penstock.core.policy import (
    LINK_LOCAL,
    METADATA,
    Address,
    AddressPeer,
    AnyPeer,
    Cidr,
    CidrPeer,
    Direction,
    HostPeer,
    MetadataPeer,
    Mode,
    NamePeer,
    NetworkPeer,
    Peer,
    Plane,
    PlanePeer,
    Policy,
    Rule,
    Sentence,
    Workload,
    WorkloadPeer,
)
from penstock.core.problems import Problem
from penstock.core.text import printable
from penstock.core.verdict import Connection, Live, Reason, judge

EVERYWHERE: tuple[Cidr, ...] = (ip_network("0.0.0.0/0"), ip_network("::/0"))
LOOPBACK: tuple[Cidr, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
HERE: tuple[Address, ...] = (ip_address("127.0.0.1"), ip_address("::1"))


def failures(policy: Policy, now: datetime) -> list[Problem]:
    """Return one error per sentence of `policy` that does not hold at `now` (aware), in file order."""
    problems = []
    for name, workload in policy.workloads.items():
        tested = replace(workload, mode=Mode.ENFORCE)
        within = replace(policy, workloads={**policy.workloads, name: tested})
        for sentence in workload.sentences:
            problem = _failure(within, Live(now), tested, sentence)
            if problem is not None:
                problems.append(problem)
    return problems


def _failure(policy: Policy, live: Live, workload: Workload, sentence: Sentence) -> Problem | None:
    """Return what the first connection that contradicts `sentence` shows, or None."""
    expected = "allow" if sentence.allow else "deny"
    asked = 0
    for connection in connections(policy, workload, sentence):
        asked += 1
        verdict = judge(policy, live, connection, as_written=True)
        if verdict.reason is Reason.DEPENDS:
            message = f"{_subject(sentence)} is neither allowed nor denied, the test expects {expected}"
            return Problem(sentence.place, "error", "test-failed", message, verdict.text)
        if verdict.allow != sentence.allow:
            answer = "allowed" if verdict.allow else "denied"
            where = "" if _is_one(sentence.peer) else f" for {connection.remote}"
            message = f"{_subject(sentence)} is {answer}{where}, the test expects {expected}"
            return Problem(sentence.place, "error", "test-failed", message, verdict.text)
    if asked == 0:
        message = f"{_subject(sentence)} names no address, the test says nothing"
        return Problem(sentence.place, "error", "test-failed", message, "no network is of that plane")
    return None


def _subject(sentence: Sentence) -> str:
    """Return the sentence without the answer it expects."""
    words = sentence.text.split()
    return printable(" ".join(words[:-1] if words[-1:] in (["allow"], ["deny"]) else words))


def _is_one(peer: Peer) -> bool:
    return isinstance(peer, AddressPeer | NamePeer)


def connections(policy: Policy, workload: Workload, sentence: Sentence) -> Iterator[Connection]:
    """Yield the connections that `sentence` is about: all of them must give the answer it expects."""
    base = Connection(workload.name, sentence.direction, sentence.protocol, None, sentence.port)
    match sentence.peer:
        case AddressPeer(address):
            yield replace(base, remote=address)
        case NamePeer(pattern):  # as if it had been asked, and nothing known about the answer
            # A name says nothing where others answer: its address is one like any other.
            yield replace(base, name=pattern if resolves(workload) else "")
        case MetadataPeer():
            yield from (replace(base, remote=address) for address in METADATA)
        case HostPeer():
            yield from (replace(base, remote=address) for address in HERE)
        case WorkloadPeer(name):
            yield from (replace(base, remote=address, peer_workload=name) for address in HERE)
        case _:
            for cidr, interface in _areas(policy, sentence.peer):
                for address in _edges(policy, workload, sentence.direction, cidr):
                    if not (interface and address.is_loopback):  # nobody there has such an address
                        yield replace(base, remote=address, interface=interface)


def _areas(policy: Policy, peer: Peer) -> Iterator[tuple[Cidr, str]]:
    """Yield the prefixes `peer` stands for, each with the interface it is behind, if any.

    What is behind an interface may have any address.
    """
    match peer:
        case CidrPeer(cidr):
            yield cidr, ""
        case AnyPeer():
            yield from ((cidr, "") for cidr in EVERYWHERE)
        case NetworkPeer(name):
            network = policy.networks[name]
            yield from ((cidr, network.interface) for cidr in network.cidrs or EVERYWHERE)
        case PlanePeer(plane):
            for network in policy.of_plane(plane):
                yield from _areas(policy, NetworkPeer(network.name))


def _edges(policy: Policy, workload: Workload, direction: Direction, area: Cidr) -> list[Address]:
    """Return the addresses of `area` where the answer may change, in order: its first, its last, and
    where any prefix begins and the address after it ends."""
    make = IPv4Address if area.version == 4 else IPv6Address
    first, last = int(area.network_address), int(area.broadcast_address)
    edges = {first, last}
    for cidr in _drawn(policy, workload.egress if direction is Direction.OUT else workload.ingress):
        if cidr.version == area.version:
            edges |= {int(cidr.network_address), int(cidr.broadcast_address) + 1}
    return [make(edge) for edge in sorted(edges) if first <= edge <= last]


def _drawn(policy: Policy, rules: tuple[Rule, ...]) -> Iterator[Cidr]:
    """Yield every prefix that `rules`, or the language itself, distinguish."""
    yield from LOOPBACK
    yield from LINK_LOCAL
    yield from (ip_network(address) for address in METADATA)
    if policy.admin_ports.ranges:
        yield from (cidr for network in policy.of_plane(Plane.INFERENCE) for cidr in network.cidrs)
    for rule in rules:
        for peer in rule.peers + rule.excepted:
            match peer:
                case AddressPeer(address):
                    yield ip_network(address)
                case CidrPeer() | NetworkPeer() | PlanePeer():
                    yield from (cidr for cidr, _ in _areas(policy, peer))
                case _:
                    pass
