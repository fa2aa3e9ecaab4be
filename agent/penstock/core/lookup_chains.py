"""The chains that bring look-ups to the resolver, and its answers back.

A look-up of a workload, to whatever server it is, is diverted to the listener of that workload, and the answer
gets the address that was asked.  That is done to each packet and not by destination NAT, for which every
connection of the host would pay.  A look-up is diverted before connections are tracked, and an answer is
restored after: what the kernel remembers is a connection with our listener.  So nothing is remembered that
others take part in, who have the same source port a moment later, or that others redirect.

What was diverted is marked, and an answer is marked with whom it is for: of two who share a source port each
gets his own, whatever the labels of the connection say by then.  A look-up carries the labels of a workload
that talks to itself (see `chains`), and besides its own sockets only the resolver's take such: who gets the
port when nobody listens gets no look-up.  Whom a port asked last is remembered by workload: nobody else can
fill that.

When the asker is gone, the kernel tells whom he asked, as it sees it: an answer that nobody took is quoted in
an error, and a connection is ended by what has no socket any more.  Neither leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from penstock.core.actions import (
    ByPort,
    Count,
    Dispatch,
    Divert,
    Final,
    Forget,
    Goto,
    Jump,
    NotePort,
    Restore,
    SetLabel,
    SetMark,
)
from penstock.core.base_chains import (
    ICMP,
    ON_LOOPBACK_IN,
    ON_LOOPBACK_OUT,
    STALE,
    TCP,
    UDP,
    UNPROVEN,
    WORKLOAD,
)
from penstock.core.cgroup_maps import ASKS, OWN_LOOKUPS, RESOLVER_IN, RESOLVER_OUT, RESOLVER_OWN, place_name_map
from penstock.core.conditions import (
    AnyMark,
    AnyPortIn,
    AskedLately,
    Away,
    Before,
    Detour,
    End,
    Family,
    ForeignSource,
    FullSocket,
    HasLabel,
    Hook,
    InSet,
    LinkLocalDestination,
    LocalDestination,
    Marked,
    OfProcess,
    Original,
    PortIn,
    PortKnown,
    Protocol,
    Reply,
    Tracked,
    Unreached,
)
from penstock.core.name_chains import FAMILIES, NamePlan
from penstock.core.ruleset import ASKED, Chain, Holds, NameSet, Rule

PORT = 53
PROTOCOLS = ("udp", "tcp")
LOOKUP = 0
"""The mark of a look-up; an answer has that of its workload's label."""

WAITING, LATE = 30, 120
"""Seconds for which an answer is waited for: the resolver gives one, or ends a connection, in half of that.  And
for which something of a TCP connection may still be said: twice as long as TIME_WAIT."""

MOMENT = 200
"""Milliseconds within which a port that asks servers in turn is answered as by one of them.

What is noted of a port must be forgotten before it is noted anew, and the kernel needs a second to forget it: with
each packet there would soon be no room.
"""

ASKERS = "askers"
"""The set of ports that look-ups over TCP came from."""

UPSTREAM = {4: "upstream4", 6: "upstream6"}
"""Sets of the servers that the resolver may ask."""

LISTENING, ANSWERING = "listening", "answering"
"""Sets that hold `PORT` while there are listeners, and while the resolver answers; the daemon says so again and
again.  Without, look-ups are refused at once, or go where they went if nothing is denied.
"""

_rule = Rule.of


def sets(plans: Sequence[NamePlan]) -> tuple[NameSet, ...]:
    """Who is there, and whom the ports of these workloads asked."""
    listening = _listening(plans)
    said = dict.fromkeys(map(_gate, listening))
    return (
        *(NameSet(name, 4, Holds.SAID) for name in said),
        *([NameSet(ASKERS, 4, Holds.PORTS)] if listening else []),
        *(NameSet(_asked_by(plan, f), f, Holds.ASKED) for plan in listening for f in FAMILIES),
        *(NameSet(_lately(plan, f), f, Holds.LATELY) for plan in listening for f in FAMILIES),
    )


def _listening(plans: Sequence[NamePlan]) -> list[NamePlan]:
    return [plan for plan in plans if plan.port]


def _gate(plan: NamePlan) -> str:
    """Where nothing is denied, look-ups of a resolver that does not answer go where they went."""
    return ANSWERING if plan.observed else LISTENING


def _asked_by(plan: NamePlan, family: int) -> str:
    return f"{ASKED}{family}_{plan.workload}"


def _lately(plan: NamePlan, family: int) -> str:
    return f"lately{family}_{plan.workload}"


def stray(workload: str) -> str:
    """The chain for a look-up that would leave although it was diverted."""
    return f"stray_{workload}"


# --- of a workload ---


def asks(plan: NamePlan) -> list[Rule]:
    """For the chains of what leaves: a look-up on its way to our listener, if there is one."""
    return [_rule(Marked(LOOKUP), Jump(f"lookup_{plan.workload}"))]


def answered(plan: NamePlan) -> list[Rule]:
    """For the chain of what arrives as an answer, on a connection that is STALE."""
    return [_rule(ON_LOOPBACK_IN, UDP, Marked(plan.label), Final.ACCEPT)] if plan.port else []


def own_chains(plan: NamePlan) -> list[Chain]:
    """Chains of a workload: where its look-ups go, and how the answers come back."""
    name = plan.workload
    refused = _rule(Goto(f"deny_out_{name}"))
    if not plan.port:  # nobody listens
        return [Chain(f"lookup_{name}", (refused,)), Chain(f"dns_{name}", tuple(_not_diverted(plan)))]
    labels = [SetLabel(label) for label in (WORKLOAD, plan.label, UNPROVEN)]
    # Others may send elsewhere what is for this host: with the labels it would leave.
    here = AnyPortIn(End.DESTINATION, plan.port, plan.port), LocalDestination()
    return [
        *_diverting(plan),
        Chain(
            f"lookup_{name}",
            (
                _rule(*here, *labels),
                _rule(*here, HasLabel(UNPROVEN), Final.ACCEPT),
                refused,
            ),
        ),
        Chain(
            f"dns_{name}",
            (
                # Who talks to a link-local address is bound to its interface: it would leave there.
                _rule(LinkLocalDestination(), Final.RETURN),
                _rule(PortKnown(_gate(plan), End.DESTINATION), Goto(f"asked_{name}")),
                *_not_diverted(plan),
            ),
        ),
    ]


def _not_diverted(plan: NamePlan) -> list[Rule]:
    """A look-up that goes nowhere is refused, whatever rule has the server; or goes where it went."""
    refused = _rule(SetMark(LOOKUP))
    if not plan.observed:
        return [refused]
    return [_rule(Before(plan.until), Final.RETURN), refused] if plan.until is not None else []


def _diverting(plan: NamePlan) -> list[Chain]:
    """Look-ups, and back again."""
    name = plan.workload
    there, back = [_rule(TCP, NotePort(ASKERS, LATE))], []
    for f, protocol in product(FAMILIES, PROTOCOLS):
        such, asked = (Family(f), Protocol(protocol)), _asked_by(plan, f)
        diverted = Divert(asked, f, protocol, plan.port, WAITING)
        there.append(_rule(*such, diverted, SetMark(LOOKUP), Final.ACCEPT))
        back.append(_rule(*such, Restore(asked, f, protocol, PORT), SetMark(plan.label), Final.ACCEPT))
    divert = Chain(f"divert_{name}", (*there, *_not_diverted(plan)))
    asked_before = [
        rule
        for f in FAMILIES
        for rule in (
            _rule(Family(f), AskedLately(_lately(plan, f), f), Goto(divert.name)),
            _rule(Family(f), Forget(_asked_by(plan, f), _lately(plan, f), f, MOMENT)),
        )
    ]
    return [
        divert,
        Chain(f"asked_{name}", (*asked_before, _rule(Goto(divert.name)))),
        Chain(f"back_{name}", tuple(back)),
    ]


# --- what all share ---


def unproven() -> list[Rule]:
    """For what arrives UNPROVEN: a look-up is, whatever else is said of its connection."""
    return [_rule(Marked(LOOKUP), Goto("met"))]


def unanswered() -> list[Rule]:
    """For look-ups that no full socket takes: nobody listens, or one of the resolver's is in TIME_WAIT."""
    return [_rule(Marked(LOOKUP), Final.RETURN)]


def unclaimed(plans: Sequence[NamePlan]) -> list[Rule]:
    """For what arrives at nobody who is governed: the asker is gone, and whoever has his port asked nothing."""
    return [_rule(ON_LOOPBACK_IN, UDP, AnyMark(), Final.DROP)] if _listening(plans) else []


def shared(plans: Sequence[NamePlan]) -> list[Chain]:
    """The chains of the resolver: it answers look-ups, asks its servers, and nothing else."""
    by_port = ByPort(End.SOURCE, tuple((plan.port, f"back_{plan.workload}") for plan in _listening(plans)))
    elsewhere = (ForeignSource(), Detour(4), Detour(6))
    to_servers = [_rule(InSet(UPSTREAM[f], f, End.DESTINATION, End.DESTINATION), Final.ACCEPT) for f in FAMILIES]
    from_servers = [_rule(Reply(), InSet(UPSTREAM[f], f, End.SOURCE, End.SOURCE), Final.ACCEPT) for f in FAMILIES]
    return [
        Chain("restore", (_rule(by_port),) if by_port.chains else ()),
        # What the kernel sends for a listener: nobody's who has the port meanwhile.
        Chain("of_listener", (_rule(FullSocket(), OfProcess(), Final.RETURN), _rule(Goto("restore")))),
        # Of an answer that nobody took.  Errors about those that others got are related to their connections.
        Chain(
            "errors",
            (_rule(Tracked.RELATED, Final.RETURN), *(_rule(Unreached(f, PORT), Final.DROP) for f in FAMILIES)),
        ),
        # Look-ups come here as what a workload would say to itself, and only the resolver takes them besides.
        Chain(RESOLVER_OWN, (_rule(Marked(LOOKUP), Final.ACCEPT),)),
        Chain("resolver_denied", (_rule(Count(RESOLVER_OUT)), _rule(Goto("refuse_out")))),
        Chain(
            RESOLVER_OUT,
            (
                # As for workloads: nobody else gets the answer, or what was asked.
                *(_rule(condition, Goto("resolver_denied")) for condition in elsewhere),
                _rule(ON_LOOPBACK_OUT, Reply(), HasLabel(UNPROVEN), Jump("restore")),
                # As a bystander: the workload that had this port before may have labelled the connection.
                _rule(UDP, Original(), HasLabel(WORKLOAD), SetLabel(STALE)),
                _rule(TCP, Tracked.NEW, Original(), HasLabel(WORKLOAD), SetLabel(STALE)),
                *to_servers,
                _rule(Goto("resolver_denied")),
            ),
        ),
        Chain(
            RESOLVER_IN,
            (
                *from_servers,
                _rule(Tracked.RELATED, Jump("told")),
                _rule(Count(RESOLVER_IN)),
                _rule(Goto("refuse_in")),
            ),
        ),
    ]


def sent(plans: Sequence[NamePlan]) -> list[Rule]:
    """For what is sent by nobody who is governed: also by the kernel, for those who are or were."""
    ports = sorted(plan.port for plan in _listening(plans))
    if not ports:
        return []
    # Everybody's packets on loopback come here, and most have another port.
    from_listener = ON_LOOPBACK_OUT, AnyPortIn(End.SOURCE, ports[0], ports[-1]), Reply(), HasLabel(UNPROVEN)
    return [_rule(*from_listener, Jump("of_listener")), _rule(Away(), ICMP, Jump("errors"))]


def base(plans: Sequence[NamePlan], depth: int, levels: Sequence[int]) -> list[Chain]:
    """The base chain that look-ups pass, and the one where those end that would leave."""
    places = [Dispatch(place_name_map(level), level) for level in sorted(levels, reverse=True)]
    udp, tcp = (PortIn(protocol, End.DESTINATION, PORT, PORT) for protocol in PROTOCOLS)
    lookups = [_rule(ask, dispatch) for ask in (udp, tcp) for dispatch in (Dispatch(ASKS, depth + 1), *places)]
    strays = tuple((plan.port, stray(plan.workload)) for plan in _listening(plans))
    own = [Chain(OWN_LOOKUPS, ())] if levels else []
    if not strays:
        return [*own, Chain("lookups", tuple(lookups), Hook.DIVERTING)]
    return [
        *own,
        # What the kernel says for an asker who is gone is not diverted, but marked all the same.
        Chain("late", (_rule(FullSocket(), OfProcess(), Final.RETURN), _rule(SetMark(LOOKUP)))),
        Chain("lookups", (*lookups, _rule(tcp, PortKnown(ASKERS, End.SOURCE), Jump("late"))), Hook.DIVERTING),
        Chain(
            "strays",
            (
                # A socket that is bound to a device sends there, wherever its packet is diverted to.
                _rule(LocalDestination(), ByPort(End.DESTINATION, strays)),
                _rule(Tracked.ESTABLISHED, Final.RETURN),  # with that server, so it is somebody else's
                _rule(Final.DROP),
            ),
        ),
        Chain("leaving", (_rule(Away(), Marked(LOOKUP), Jump("strays")),), Hook.LEAVING),
    ]
