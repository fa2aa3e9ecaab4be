"""The chains for `to: workload:X`, `from: workload:X` and `from: host`: who on this host calls a workload.

They meet on loopback, whichever address of this host is called.  What the caller sends carries its label (see
`chains`), and, unless a rule of his has the address, it is UNPROVEN: only who is called can say whether the caller
has a rule for him.  So a rule of the caller stands in a chain of the one who is called (`met_`), and a rule of the
one who is called in others (`callers_`, `called_` for the answers).  All are asked for each packet: what is taken
back ends at once.  A port says nothing: who only listens on the caller's port, or got his source port, sends
without the label, or on a connection that is STALE.  Who is no workload sends without any label.

A SYN from a port that a connection had a moment ago meets a socket in TIME_WAIT, of which nobody knows the cgroup.
So a workload that others may call notes where it ends connections, and such a SYN is judged by its chains as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from penstock.core import admin_chains, control_ports, hits
from penstock.core.actions import Action, Count, Final, Goto, Jump, Note
from penstock.core.base_chains import STALE, WORKLOAD
from penstock.core.conditions import (
    AddressIn,
    AnySocket,
    Before,
    End,
    Family,
    FullSocket,
    HasLabel,
    Hook,
    Loopback,
    PortIn,
    TcpEnd,
)
from penstock.core.policy import HostPeer, Policy, PortRange, Rule, WorkloadPeer
from penstock.core.ruleset import Chain, Holds, NameSet
from penstock.core.ruleset import Rule as ChainRule


@dataclass(frozen=True, slots=True)
class Call:
    """A workload, by its label, may call one of these ports until then; None: whoever is no workload.

    `counter` is of the hits of the rule that says so.
    """

    label: int | None
    ports: tuple[PortRange, ...]
    counter: str
    expires: datetime | None = None


@dataclass(frozen=True, slots=True)
class Calls:
    """Who may call a workload: by his own rules (`sent`), and by those of the one who is called (`taken`)."""

    sent: tuple[Call, ...] = ()
    taken: tuple[Call, ...] = ()

    @property
    def counters(self) -> tuple[str, ...]:
        """Of the rules' hits, each once."""
        return tuple(dict.fromkeys(call.counter for call in (*self.sent, *self.taken)))


NOBODY = Calls()


def calls(policy: Policy, labels: Mapping[str, int], now: datetime) -> dict[str, Calls]:
    """By the name of the workload that is called."""

    closed = admin_chains.barred(policy)

    def call(owner: str, rule: Rule, label: int | None) -> Call:
        ranges = control_ports.of(rule).ranges
        ranges = ranges if label is None else admin_chains.without(ranges, closed)
        return Call(label, ranges, hits.counter(owner, rule.id), rule.expires)

    def counts(rule: Rule) -> bool:
        # Who is called does not see from which address: an exception closes the rule.
        return not rule.excepted and (rule.expires is None or rule.expires > now)

    sent: dict[str, list[Call]] = {name: [] for name in policy.workloads}
    taken: dict[str, list[Call]] = {name: [] for name in policy.workloads}
    for name, workload in policy.workloads.items():
        for rule in filter(counts, workload.egress):
            for peer in rule.peers:
                if isinstance(peer, WorkloadPeer):
                    sent[peer.name].append(call(name, rule, labels[name]))
        for rule in filter(counts, workload.ingress):
            for peer in rule.peers:
                if isinstance(peer, WorkloadPeer):
                    taken[name].append(call(name, rule, labels[peer.name]))
                elif isinstance(peer, HostPeer):
                    taken[name].append(call(name, rule, None))
    return {name: Calls(tuple(sent[name]), tuple(taken[name])) for name in policy.workloads}


def _rules(found: Sequence[Call], end: End, action: Action) -> list[ChainRule]:
    return [
        ChainRule.of(
            *([Before(call.expires)] if call.expires is not None else []),
            PortIn(ports.protocol, end, ports.first, ports.last),
            *([HasLabel(call.label)] if call.label is not None else []),
            Count(call.counter),
            action,
        )
        for call in found
        for ports in call.ports
    ]


def _taken(found: Sequence[Call], end: End) -> tuple[ChainRule, ...]:
    """Those of workloads, then those of whoever is none."""
    host = [call for call in found if call.label is None]
    return (
        ChainRule.of(HasLabel(STALE), Final.RETURN),
        *_rules([call for call in found if call.label is not None], end, Final.ACCEPT),
        *([ChainRule.of(HasLabel(WORKLOAD), Final.RETURN)] if host else []),
        *_rules(host, end, Final.ACCEPT),
    )


SERVED_FOR = 300
"""Seconds that an end is noted: longer than the minute, or two, for which TIME_WAIT can last."""


def _served(family: int, name: str = "") -> str:
    """The set of where `name`, or anybody, ended connections."""
    return f"served{family}_{name}" if name else f"served{family}"


def served(names: Sequence[str]) -> tuple[NameSet, ...]:
    """Sets in which these workloads note where they end connections."""
    owners = ("", *names) if names else ()
    return tuple(NameSet(_served(family, name), family, Holds.SERVED) for name in owners for family in (4, 6))


def answering(name: str) -> list[ChainRule]:
    """For what the workload answers, if somebody on this host may call it."""
    here = Loopback(Hook.OUTPUT)
    return [ChainRule.of(here, TcpEnd(), Jump(f"ending_{name}")), ChainRule.of(here, Jump(f"called_{name}"))]


def waiting(names: Sequence[str]) -> list[Chain]:
    """For SYNs on loopback that no full socket takes: of workloads without a rule of their own, and of all.

    The first comes back unless a rule of the caller is about who served there.
    """
    if not names:
        return []

    def at(family: int, name: str = "") -> AddressIn:
        return AddressIn(_served(family, name), family, End.DESTINATION, port=True)

    def asked(chain: str) -> Chain:
        return Chain(chain, tuple(ChainRule.of(at(f), Jump(f"{chain}{f}")) for f in (4, 6)))

    def noted(name: str) -> Chain:
        notes = (
            ChainRule.of(Family(f), Note(_served(f, owner), f, SERVED_FOR)) for f in (4, 6) for owner in (name, "")
        )
        return Chain(f"ending_{name}", tuple(notes))

    return [
        *map(noted, names),
        *(
            Chain(f"unproven_syn{f}", tuple(ChainRule.of(at(f, name), Jump(f"met_{name}")) for name in names))
            for f in (4, 6)
        ),
        asked("unproven_syn"),
        *(
            Chain(
                f"syn{f}",
                (
                    ChainRule.of(FullSocket(), Final.RETURN),
                    *(ChainRule.of(at(f, name), AnySocket(), Goto(f"in_{name}")) for name in names),
                ),
            )
            for f in (4, 6)
        ),
        asked("syn"),
    ]


def build(name: str, found: Calls, *, locked: bool = False) -> list[Chain]:
    """The chains of the workload that is called; `locked`: whoever has a rule, it lets nobody in."""
    # Nearly whoever has a rule for it is let in by one about him: that is asked before its sets are.
    let = bool(found.sent and found.taken) and not locked
    sent = _rules(found.sent, End.DESTINATION, Goto(f"let_{name}" if let else f"in_{name}"))
    met = Chain(f"met_{name}", (ChainRule.of(Jump(f"own_{name}")), *sent))
    if not found.taken:
        return [met]
    callers = Chain(f"callers_{name}", _taken(found.taken, End.DESTINATION))
    first = Chain(f"let_{name}", (ChainRule.of(Jump(callers.name)), ChainRule.of(Goto(f"in_{name}"))))
    return [callers, *([first] if let else []), met, Chain(f"called_{name}", _taken(found.taken, End.SOURCE))]
