"""What rules say, beside what the host they are for looks like now: its interfaces, and who administers it.

A host differs from its rules for good reasons too: the files are checked elsewhere, the interface comes with the
tunnel.  So all of this is a warning; only an `apply` that would shut out who is logged in wants to be confirmed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_network

from penstock.core.advice import has_port
from penstock.core.coverage import Cover
from penstock.core.language.reading import near, shown
from penstock.core.parse import Parsed
from penstock.core.policy import (
    Address,
    CidrPeer,
    Network,
    NetworkPeer,
    Plane,
    Policy,
    PortRange,
    Ports,
)
from penstock.core.problems import Problem

SHOWN = 3
"""Addresses that one sentence names."""
_SSH = Ports((PortRange("tcp", 22, 22),))


@dataclass(frozen=True, slots=True)
class Session:
    """An established TCP connection from another host to `port` of this one.

    `interface` has the address that was called: what came over another one looks the same.  Empty: not known.
    """

    address: Address
    port: int
    interface: str = ""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a host looks like.  `interfaces` are all of them; none: not known.  `sessions` are at admin ports."""

    interfaces: frozenset[str] = frozenset()
    sessions: tuple[Session, ...] = ()


NOWHERE = Surroundings()
"""A host of which nothing is known."""


def admin_ports(policy: Policy) -> Ports:
    """Where administrators are looked for: at the host's `admin_ports`, or where ssh listens."""
    return policy.admin_ports if policy.admin_ports.ranges else _SSH


def problems(policy: Policy, around: Surroundings) -> list[Problem]:
    """Warnings at the places of networks."""
    return [*_no_interface(policy, around), *_nobody(policy, around), *_cut(policy, around)]


def refused_sessions(policy: Policy, around: Surroundings) -> tuple[Session, ...]:
    """Those whose like the policy refuses: at the host's admin ports, from a network of clients.

    A connection that is there goes on; the next one from there is refused.
    """
    return _from(policy, policy.of_plane(Plane.INFERENCE), _at(policy.admin_ports, around))


def unless_confirmed(parsed: Parsed, around: Surroundings, before: Policy | None) -> Parsed:
    """What files are worth that are to stay for good: they are refused when they newly refuse who is connected.

    `parsed` was judged with these surroundings; `before` is what is in force.
    """
    if parsed.policy is None:
        return parsed
    known = set(refused_sessions(before, around)) if before else set()
    if known.issuperset(refused_sessions(parsed.policy, around)):
        return parsed
    problems = (replace(p, severity="error") if p.code == "admin-cut" else p for p in parsed.problems)
    return Parsed(None, tuple(problems))


def _at(ports: Ports, around: Surroundings) -> list[Session]:
    return [session for session in around.sessions if has_port(ports, session.port)]


def _from(policy: Policy, networks: Iterable[Network], sessions: Iterable[Session]) -> tuple[Session, ...]:
    """Those that come from one of these networks."""
    networks = tuple(networks)
    interfaces = {network.interface for network in networks if network.interface}
    cover = Cover(policy, (NetworkPeer(network.name) for network in networks if network.cidrs))
    return tuple(
        session
        for session in sessions
        if session.interface in interfaces or cover.holds(CidrPeer(ip_network(session.address)))
    )


def _no_interface(policy: Policy, around: Surroundings) -> Iterator[Problem]:
    for network in policy.networks.values():
        if around.interfaces and network.interface and network.interface not in around.interfaces:
            text = f"there is no interface `{network.interface}` on this host, or not yet"
            hint = near(network.interface, sorted(around.interfaces)) or "`ip link` shows those that are there"
            yield Problem(network.place, "warning", "no-interface", text, hint)


def _nobody(policy: Policy, around: Surroundings) -> Iterator[Problem]:
    """Of the sessions that are there none comes from an admin network: one of the two is not what it seems."""
    networks = policy.of_plane(Plane.ADMIN)
    sessions = _at(admin_ports(policy), around)
    if any(network.interface for network in networks) and not all(session.interface for session in sessions):
        return
    if sessions and not _from(policy, networks, sessions):
        for network in networks:
            what = f"none of the {len(sessions)} sessions at {_ports(sessions)} comes from it"
            if len(sessions) == 1:
                what = f"the one session at {_ports(sessions)} does not come from it"
            hint = "if that is how you come in, let an admin network hold the address"
            yield Problem(network.place, "warning", "admin-session", f"{what}: {_addresses(sessions)}", hint)


def _cut(policy: Policy, around: Surroundings) -> Iterator[Problem]:
    sessions = _at(policy.admin_ports, around)
    for network in policy.of_plane(Plane.INFERENCE) if sessions else ():
        if found := _from(policy, (network,), sessions):
            count = "a session comes" if len(found) == 1 else f"{len(found)} sessions come"
            text = (
                f"new connections from network `{shown(network.name)}` to {_ports(found)} are refused, "
                f"and {count} from there: {_addresses(found)}"
            )
            hint = "`penstock apply --confirm 60s`, then try a new connection before you confirm"
            yield Problem(network.place, "warning", "admin-cut", text, hint)


def _ports(sessions: Iterable[Session]) -> str:
    ports = sorted({session.port for session in sessions})
    return f"port {ports[0]}" if len(ports) == 1 else f"ports {_some(map(str, ports))}"


def _addresses(sessions: Iterable[Session]) -> str:
    return _some(dict.fromkeys(str(session.address) for session in sessions))


def _some(words: Iterable[str]) -> str:
    listed = list(words)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
