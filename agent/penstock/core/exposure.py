"""Who reaches a port that a workload has open, in words: by its rules, and by where the port is bound.

Nothing is said that is not known.  Who sends to a port that is open here to this host alone is on this host; by
which of this host's addresses a process calls another is its own choice, so that a network which holds such an
address may mean a process of this host, too.  A workload may always talk to itself, and that is not said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import chain

from penstock.core.compile import Intervals, allowances
from penstock.core.coverage import is_everything
from penstock.core.events import Listener
from penstock.core.language.rule_ids import peer_text
from penstock.core.nearest import is_over
from penstock.core.policy import (
    AnyPeer,
    HostPeer,
    Mode,
    Network,
    NetworkPeer,
    Peer,
    Plane,
    PlanePeer,
    Policy,
    PortRange,
    Ports,
    Rule,
    Workload,
    WorkloadPeer,
)
from penstock.core.regions import merge, subtract
from penstock.core.text import printable
from penstock.core.wire import Json

SHOWN, WORD = 8, 64
"""Peers of one rule that are looked at and told of, and characters of each."""

MAX_LISTENERS, MAX_RULES = 1_000, 50
"""Of one workload that are told of, and rules about one port: a workload may open as many ports as it likes."""

LOOPBACK: dict[int, Intervals] = {
    net.version: ((int(net.network_address), int(net.broadcast_address)),)
    for net in (ip_network("127.0.0.0/8"), ip_network("::1"))
}


@dataclass(frozen=True, slots=True)
class Exposure:
    """Who reaches a listener, nobody if empty, and the rules that are about its port."""

    listener: Listener
    reached_by: tuple[str, ...]
    rules: tuple[str, ...]

    @property
    def port(self) -> str:
        """As a rule has it."""
        return str(PortRange(self.listener.protocol, self.listener.port, self.listener.port))

    def as_json(self) -> Json:
        """One of `listening` of `penstock status --json`."""
        one = self.listener
        return {
            "protocol": one.protocol,
            "address": f"{one.address}{'%' if one.interface else ''}{printable(one.interface, WORD)}",
            "port": one.port,
            "process": None if one.comm is None else printable(one.comm, WORD),
            "reached_by": list(self.reached_by),
            "rules": list(self.rules),
        }


@dataclass(frozen=True, slots=True)
class _Where:
    """What of a listener decides, the port aside."""

    families: tuple[int, ...]
    here: bool  # it is bound to loopback

    @classmethod
    def of(cls, listener: Listener) -> _Where:
        address = listener.address
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        here = address.is_loopback or listener.interface == "lo"
        if isinstance(address, IPv4Address):
            return cls((4,), here)
        # What is bound to every IPv6 address takes IPv4 too, unless it forbids that.
        both = address.is_unspecified and not listener.v6only
        return cls((4, 6) if both else (6,), here)


def of_workloads(policy: Policy, listeners: Iterable[Listener], now: datetime) -> dict[str, list[Exposure]]:
    """Who reaches each of these, by workload and in order; what only asks others is left out."""
    by_workload: dict[str, list[Listener]] = {name: [] for name in policy.workloads}
    for one in listeners:
        if one.workload in by_workload:
            by_workload[one.workload].append(one)
    return {
        name: [one for one in _in_order(policy, name, some, now) if one.rules or not one.listener.client]
        for name, some in by_workload.items()
    }


def _in_order(policy: Policy, name: str, listeners: list[Listener], now: datetime) -> Iterator[Exposure]:
    exposures = Exposures(policy, policy.workloads[name], now)
    listeners.sort(key=lambda one: (one.port, one.protocol, one.address.version, int(one.address)))
    for one in listeners[:MAX_LISTENERS]:
        yield exposures.of(one)


class Exposures:
    """Of one workload under one policy at one moment, for many listeners."""

    def __init__(self, policy: Policy, workload: Workload, now: datetime) -> None:
        self._policy = policy
        self._workload = workload
        self._rules = [rule for rule in workload.ingress if not is_over(rule, now)]
        self._known: dict[tuple[str, _Where, str, int | None], tuple[str, ...]] = {}

    @cached_property
    def _by_port(self) -> tuple[dict[tuple[str, int], list[int]], list[tuple[PortRange, int]]]:
        """Which rules are about a port: by single ports, and by ranges."""
        single: dict[tuple[str, int], list[int]] = defaultdict(list)
        wide = []
        for number, rule in enumerate(self._rules):
            for opened in rule.ports.ranges:
                if opened.first == opened.last:
                    single[opened.protocol, opened.first].append(number)
                else:
                    wide.append((opened, number))
        return single, wide

    def _about(self, listener: Listener) -> list[Rule]:
        single, wide = self._by_port
        numbers = set(single.get((listener.protocol, listener.port), ()))
        numbers.update(number for opened, number in wide if _holds(opened, listener))
        return [self._rules[number] for number in sorted(numbers)[:MAX_RULES]]

    def of(self, listener: Listener) -> Exposure:
        """Who reaches it."""
        where = _Where.of(listener)
        about = self._about(listener)
        found = chain.from_iterable(self._words(rule, listener, where) for rule in about)
        words = tuple(dict.fromkeys(found))
        if self._workload.mode is Mode.OBSERVE:
            words = (("everyone on this host" if where.here else "everyone") + " (observe)",)
        elif self._workload.mode is Mode.LOCK:
            words = ()
        return Exposure(listener, words, tuple(rule.id for rule in about))

    def _words(self, rule: Rule, listener: Listener, where: _Where) -> tuple[str, ...]:
        admin = any(_holds(opened, listener) for opened in self._policy.admin_ports.ranges)
        key = (rule.id, where, listener.protocol, listener.port if admin else None)
        if key not in self._known:
            one = Rule(rule.id, rule.direction, (), _port(listener), rule.excepted)
            told = [word for peer in rule.peers[:SHOWN] for word in self._word(one, peer, where, admin=admin)]
            more = len(rule.peers) - SHOWN
            self._known[key] = (*told, f"{more} more of rule {rule.id}") if more > 0 else tuple(told)
        return self._known[key]

    def _word(self, rule: Rule, peer: Peer, where: _Where, *, admin: bool) -> Iterator[str]:
        """What to call `peer` where it gets through: none where it does not."""
        if isinstance(peer, WorkloadPeer | HostPeer):
            # Who is called does not see from which address: an exception closes the rule.
            if not rule.excepted and not (admin and isinstance(peer, WorkloadPeer)):
                yield printable(peer_text(peer), WORD)
            return
        by_interface = [n for n in _networks(self._policy, peer) if n.interface and not where.here]
        barred = admin and all(network.plane is Plane.INFERENCE for network in by_interface)
        if by_interface and not rule.excepted and not barred:
            yield self._called(peer)
            return
        asked = replace(rule, peers=(peer,))
        spaces = _spaces(self._policy, asked, where)
        if not any(spaces.values()):
            return
        if not any(subtract(space, LOOPBACK[family]) for family, space in spaces.items()):
            word = printable(peer_text(peer), WORD)
            told = "everyone on this host" if is_everything(peer) else f"this host ({word})"
            yield f"{told} except workloads" if admin else told
            return
        but = [printable(peer_text(one), WORD) for one in rule.excepted[:SHOWN]]
        if admin and self._loses(asked, peer, where, spaces):
            but.append("networks of clients")
        if admin and is_everything(peer):
            but.append("workloads")
        yield self._called(peer) + (f" except {', '.join(but)}" if but else "")

    def _loses(self, rule: Rule, peer: Peer, where: _Where, spaces: Mapping[int, Intervals]) -> bool:
        """Whether the port, being one of the host's admin ports, is closed to a part of `peer`."""
        clients = self._policy.of_plane(Plane.INFERENCE)
        by_interface = any(network.interface for network in clients)
        without = _spaces(replace(self._policy, admin_ports=Ports()), rule, where)
        return (by_interface and is_everything(peer)) or spaces != without

    def _called(self, peer: Peer) -> str:
        word = printable(peer_text(peer), WORD)
        if isinstance(peer, NetworkPeer):
            plane = self._policy.networks[peer.name].plane
            return f"{word} ({plane})" if plane else word
        if is_everything(peer):
            return "everyone" if isinstance(peer, AnyPeer) else f"everyone ({word})"
        return word


def _holds(opened: PortRange, listener: Listener) -> bool:
    return opened.protocol == listener.protocol and opened.first <= listener.port <= opened.last


def _port(listener: Listener) -> Ports:
    return Ports((PortRange(listener.protocol, listener.port, listener.port),))


def _networks(policy: Policy, peer: Peer) -> tuple[Network, ...]:
    if isinstance(peer, NetworkPeer):
        return (policy.networks[peer.name],)
    return policy.of_plane(peer.plane) if isinstance(peer, PlanePeer) else ()


def _spaces(policy: Policy, rule: Rule, where: _Where) -> dict[int, Intervals]:
    """The addresses from which the rule opens its port there, by family."""
    found: dict[int, Intervals] = {}
    for family in where.families:
        space = merge(pair for one in allowances(policy, rule, 0, family) for pair in one.addresses)
        found[family] = subtract(space, subtract(space, LOOPBACK[family])) if where.here else space
    return found
