"""The chains for the host's `admin_ports`: refused to networks of clients and all workloads, and to nobody else.

What counts is the port that the client used: behind a published port of a container another one answers, and
what goes there is only passed on, so that is looked at too.  From outside only the first packet of a connection
is refused: a session that is there goes on, whoever applies.  TCP whose connection is not known may be such a
session, older than our table, so there it is the SYN that counts and not what connection tracking says.

A workload finds no admin port open: on this host's own addresses no rule of its own is asked (`called`), so only
its own listeners take what it sends (see `chains`), and rules by the name of another workload do not have these
ports (`peer_chains`).  Its own listeners on an admin port are closed to networks of clients by what is in its
sets (`compile`), and by `at_listeners` where such a network is an interface.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from penstock.core.actions import Action, Count, Goto, Jump, Log
from penstock.core.conditions import (
    CalledAt,
    End,
    Hook,
    InSet,
    Interface,
    PortIn,
    Protocol,
    Redirected,
    TcpSyn,
    Tracked,
)
from penstock.core.log_prefix import format_prefix
from penstock.core.policy import Cidr, Plane, Policy, PortRange
from penstock.core.regions import merge, subtract
from penstock.core.ruleset import AddressSet, Chain, Element, Rule

ADMIN_IN = "admin_in"
"""The counter of what was refused to networks of clients."""

NUMBERS = {"tcp": 6, "udp": 17}
OWNER = "host.admin_ports"

_rule = Rule.of


@dataclass(frozen=True, slots=True)
class Barred:
    """What is closed, and to whom besides workloads."""

    ports: tuple[PortRange, ...] = ()  # disjoint
    cidrs: tuple[Cidr, ...] = ()
    interfaces: tuple[str, ...] = ()

    @property
    def clients(self) -> bool:
        """Whether it is closed to anybody outside."""
        return bool(self.ports and (self.cidrs or self.interfaces))


OPEN = Barred()


def barred(policy: Policy) -> Barred:
    """As the policy says it."""
    ranges = policy.admin_ports.ranges
    ports = tuple(
        PortRange(protocol, low, high)
        for protocol in NUMBERS
        for low, high in merge((r.first, r.last) for r in ranges if r.protocol == protocol)
    )
    if not ports:
        return OPEN
    networks = policy.of_plane(Plane.INFERENCE)
    return Barred(
        ports,
        tuple(dict.fromkeys(cidr for network in networks for cidr in network.cidrs)),
        tuple(dict.fromkeys(network.interface for network in networks if network.interface)),
    )


def without(ranges: Iterable[PortRange], closed: Barred) -> tuple[PortRange, ...]:
    """`ranges` but for the admin ports."""
    if not closed.ports:
        return tuple(ranges)
    found = list(ranges)
    return tuple(
        PortRange(protocol, low, high)
        for protocol in NUMBERS
        for low, high in subtract(
            merge((r.first, r.last) for r in found if r.protocol == protocol),
            [(r.first, r.last) for r in closed.ports if r.protocol == protocol],
        )
    )


def intervals(cidrs: Iterable[Cidr], family: int) -> tuple[tuple[int, int], ...]:
    """Those of one family, merged."""
    return merge((int(c.network_address), int(c.broadcast_address)) for c in cidrs if c.version == family)


def sets(closed: Barred) -> tuple[AddressSet, ...]:
    """Where clients are."""
    if not closed.clients:
        return ()
    return tuple(
        AddressSet(
            f"clients{family}",
            family,
            {
                Element(low, high, number, 0, 65535): OWNER
                for low, high in intervals(closed.cidrs, family)
                for number in NUMBERS.values()
            },
        )
        for family in (4, 6)
    )


def counters(closed: Barred) -> tuple[str, ...]:
    """Names of its counters."""
    return (ADMIN_IN,) if closed.clients else ()


def shared(closed: Barred) -> list[Chain]:
    """What the base chains call; it comes back unless it refuses."""
    if not closed.clients:
        return []
    refuse, judge = Goto("refuse_admin"), Goto("clients")
    return [
        Chain(
            "refuse_admin",
            (
                _rule(Count(ADMIN_IN)),
                _rule(Log(format_prefix("in", "deny", "enforce", "admin", "-"))),
                _rule(Goto("refuse_in")),
            ),
        ),
        Chain(
            "clients",
            (
                *(_rule(InSet(f"clients{f}", f, End.SOURCE, End.DESTINATION), refuse) for f in (4, 6)),
                *(_rule(Interface(name, End.SOURCE), refuse) for name in closed.interfaces),
            ),
        ),
        Chain("admin", tuple(called(closed, judge))),
    ]


def arriving(closed: Barred) -> list[Rule]:
    """At sockets of those who are no workload, over another interface than loopback: whoever is on this host is no
    client, whichever of its addresses he uses."""
    if not closed.clients:
        return []
    jump = Jump("admin")
    if all(ports.protocol == "tcp" for ports in closed.ports):
        return [_rule(TcpSyn(), jump)]
    udp = Protocol("udp")
    return [_rule(TcpSyn(), jump), _rule(udp, Tracked.NEW, jump), _rule(udp, Tracked.UNTRACKED, jump)]


def passing(closed: Barred) -> list[Chain]:
    """The chain for what is passed on: to published ports."""
    if not closed.clients:
        return []
    return [Chain("passing", (_rule(Tracked.NEW, Redirected(), Jump("admin")),), Hook.PASSING)]


def called(closed: Barred, then: Action) -> list[Rule]:
    """What to do with packets to an admin port."""
    return [
        *(_rule(CalledAt(ports.protocol, ports.first, ports.last), then) for ports in closed.ports),
        # Somebody may have told the kernel not to track what goes there.
        *(_rule(Tracked.UNTRACKED, _to(ports), then) for ports in closed.ports),
    ]


def at_listeners(
    closed: Barred, opened: Sequence[PortRange], over: Sequence[str], peer: End, then: Action
) -> list[Rule]:
    """For what clients send to a workload's own port (`peer` is the source), or are answered (the destination).

    Where both are addresses, its sets know.  Here: clients who are an interface, whatever rule opens the port; and
    clients by their addresses where a rule opens it to an interface, one of `over`.  `opened`: all of its ports.
    """
    port = End.DESTINATION if peer is End.SOURCE else End.SOURCE
    shared = [
        PortIn(ports.protocol, port, ports.first, ports.last)
        for ports in closed.ports
        if any(_overlap(ports, other) for other in opened)
    ]
    by_address = [InSet(f"clients{f}", f, peer, port) for f in (4, 6)] if closed.cidrs else []
    return [
        *(_rule(Interface(name, peer), ports, then) for name in closed.interfaces for ports in shared),
        *(
            _rule(Interface(name, peer), ports, clients, then)
            for name in over
            if name not in closed.interfaces
            for ports in shared
            for clients in by_address
        ),
    ]


def _overlap(one: PortRange, other: PortRange) -> bool:
    return one.protocol == other.protocol and one.first <= other.last and other.first <= one.last


def _to(ports: PortRange) -> PortIn:
    return PortIn(ports.protocol, End.DESTINATION, ports.first, ports.last)
