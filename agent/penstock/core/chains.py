"""The chains: in which order what is asked of a packet.  The same for every workload but for its names.

Read this with three facts about Linux in mind.

* In the output hook `socket cgroupv2` is the sender's cgroup; in the input hook it is the cgroup of the
  socket that will receive.  TIME_WAIT and half-open sockets have none.
* A refusal is a packet: it comes back over loopback as RELATED and must reach the one who is refused.
* Conntrack entries of UDP are inherited by whoever binds the same source port within half a minute.  Those of
  TCP only while the first SYN is unanswered; else a new SYN makes a new entry.
* In the output hook the interface is the one from before destination NAT; the destination is the one after.
  A rule of somebody else may send away what is addressed to this host, as Docker does for published ports.

On loopback the sender cannot know who listens, and the receiver cannot see who sends, so they meet in the
connection's label: the sending workload sets its own, and UNPROVEN when no rule of its own allows the
destination.  UNPROVEN packets are delivered only to a socket of the workload whose label they carry: a workload
may always talk to itself.  Whoever else sends in an inherited UDP connection marks it STALE: from then on its
bits prove nothing.

Whether a packet is of the slice costs everybody one comparison.  Units that are bound in place cost everybody
outside the slice one look-up, a hook and level in use; none when no level is.  The slice comes first: nothing that
is bound in place can claim what is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from penstock.core import (
    admin_chains,
    base_chains,
    denial_chains,
    interface_chains,
    lookup_chains,
    name_chains,
    peer_chains,
)
from penstock.core.actions import Action, Count, Final, Goto, Jump, Log, SetLabel
from penstock.core.admin_chains import OPEN, Barred
from penstock.core.base_chains import (
    ICMP,
    ON_LOOPBACK_IN,
    ON_LOOPBACK_OUT,
    STALE,
    TCP,
    UDP,
    UNBOUND_IN,
    UNBOUND_OUT,
    UNPROVEN,
    WORKLOAD,
)
from penstock.core.cgroup_maps import (
    PROOF_IN,
    PROOF_OUT,
    RESOLVER_IN,
    RESOLVER_OUT,
)
from penstock.core.conditions import (
    Detour,
    Echo,
    End,
    Family,
    ForeignSource,
    HasLabel,
    InCgroup,
    InSet,
    LocalDestination,
    Marked,
    Original,
    OtherSource,
    Reply,
    TcpAnswer,
    TcpSyn,
    Tracked,
)
from penstock.core.log_prefix import format_prefix
from penstock.core.name_chains import NamePlan
from penstock.core.peer_chains import NOBODY, Calls
from penstock.core.policy import Direction, Mode, PortRange
from penstock.core.ruleset import Chain, Rule


@dataclass(frozen=True, slots=True)
class Plan:
    """What the chains of one workload depend on."""

    name: str
    mode: Mode
    label: int
    echo: bool  # some egress rule allows echo requests
    in_place: bool = False  # cgroups are bound in place: it may have connections from before it was governed
    names: NamePlan | None = None  # it has rules by name
    calls: Calls = NOBODY  # of other workloads to it
    caller: bool = False  # some egress rule is about another workload
    links: interface_chains.Links = interface_chains.NONE
    barred: Barred = OPEN  # the host's admin ports
    opened: tuple[PortRange, ...] = ()  # its own ports, to whomever
    until: datetime | None = None  # it is observed up to then, and enforced from then on

    @property
    def judged(self) -> Mode:
        """How its packets are judged, whatever becomes of those that no rule allows."""
        return Mode.ENFORCE if self.mode is Mode.OBSERVE and self.until is not None else self.mode


def set_name(direction: Direction, family: int, workload: str) -> str:
    """The set of what `workload` may call (out) or be called by (in)."""
    return f"{direction}{family}_{workload}"


def counter_name(direction: Direction, workload: str) -> str:
    """The counter of packets denied (observe: that would have been denied)."""
    return f"denied_{direction}_{workload}"


def counters(plans: Sequence[Plan], barred: Barred = OPEN) -> tuple[str, ...]:
    """Names of all counters."""
    own = [counter_name(direction, plan.name) for plan in plans for direction in Direction]
    resolver = (RESOLVER_OUT, RESOLVER_IN) if by_name(plans) else ()
    hits = dict.fromkeys(c for plan in plans for c in (*plan.links.counters, *plan.calls.counters))
    return (UNBOUND_OUT, UNBOUND_IN, PROOF_OUT, PROOF_IN, *admin_chains.counters(barred), *resolver, *own, *hits)


def serving(plans: Sequence[Plan]) -> list[str]:
    """Workloads that note where they served others of this host."""
    return [plan.name for plan in plans if plan.calls.taken and plan.judged is Mode.ENFORCE]


def _strangers(served: bool, barred: Barred) -> list[Rule]:
    """For what arrives at those who are no workload: who is on this host is no client, and may meet TIME_WAIT."""
    clients = admin_chains.arriving(barred)
    syns = [_rule(ON_LOOPBACK_IN, TcpSyn(), Jump("syn"))] if served else []
    return [*syns, *([_rule(ON_LOOPBACK_IN, Final.ACCEPT)] if clients else []), *clients]


def by_name(plans: Sequence[Plan]) -> list[NamePlan]:
    """Of the workloads with rules by name."""
    return [plan.names for plan in plans if plan.names is not None]


def build(
    plans: Sequence[Plan], governed: InCgroup, levels: Sequence[int] = (), barred: Barred = OPEN
) -> tuple[Chain, ...]:
    """Return all chains, those that are called before those that call.

    `governed` is the slice, `levels` are those at which cgroups are bound in place, `barred` the admin ports.
    """
    depth = governed.level
    workload_chains = [chain for plan in plans for chain in _workload(plan)]
    names, served = by_name(plans), serving(plans)
    surely = lookup_chains.unproven() if names else ()
    unmet = (
        *(lookup_chains.unanswered() if names else ()),
        *([_rule(TcpSyn(), Jump("unproven_syn"))] if served else []),
    )
    return (
        *base_chains.refusals(),
        *workload_chains,
        *(lookup_chains.shared(names) if names else ()),
        *peer_chains.waiting(served),
        *base_chains.shared([(plan.name, plan.label) for plan in plans], depth, levels, surely, unmet),
        *admin_chains.shared(barred),
        *base_chains.base(
            governed,
            levels,
            sent=lookup_chains.sent(names),
            strangers=[*lookup_chains.unclaimed(names), *_strangers(bool(served), barred)],
        ),
        *admin_chains.passing(barred),
        *(lookup_chains.base(names, depth, levels) if names else ()),
    )


_rule = Rule.of


def _in_set(direction: Direction, workload: str, peer: End, port: End) -> list[Rule]:
    return [
        _rule(InSet(set_name(direction, family, workload), family, peer, port), Final.ACCEPT) for family in (4, 6)
    ]


def _workload(plan: Plan) -> list[Chain]:
    lists = {Mode.OBSERVE: _observing, Mode.ENFORCE: _enforcing, Mode.LOCK: _locked}
    names = (
        [_stray(plan), *name_chains.own_chains(plan.names), *lookup_chains.own_chains(plan.names)]
        if plan.names
        else []
    )
    called = peer_chains.build(plan.name, plan.calls, locked=plan.mode is Mode.LOCK)
    peers = [*called, *interface_chains.own_chains(plan.name, plan.links)]
    ends = denial_chains.Ends(plan.name, plan.mode, plan.until)
    denials = denial_chains.build(ends, plan.label, *(counter_name(d, plan.name) for d in Direction))
    return [*denials, *names, *peers, *lists[plan.judged](plan)]


def _stray(plan: Plan) -> Chain:
    """A look-up that would leave although it was diverted.  Nobody can be told where it is seen."""
    counter = counter_name(Direction.OUT, plan.name)
    prefix = format_prefix(Direction.OUT, "deny", plan.mode, "loopback", plan.name)
    return Chain(lookup_chains.stray(plan.name), (_rule(Count(counter)), _rule(Log(prefix)), _rule(Final.DROP)))


def _locked(plan: Plan) -> list[Chain]:
    return [
        Chain(f"out_{plan.name}", (_rule(Goto(f"deny_out_{plan.name}")),)),
        Chain(f"in_{plan.name}", (_rule(Goto(f"deny_in_{plan.name}")),)),
    ]


def _enforcing(plan: Plan) -> list[Chain]:
    name = plan.name
    reply = Chain(
        f"reply_{name}",
        (
            *_barred(plan, End.DESTINATION, Goto(f"deny_reply_{name}")),
            *(peer_chains.answering(name) if plan.calls.taken else []),
            *_in_set(Direction.IN, name, End.DESTINATION, End.SOURCE),
            *interface_chains.replying(plan.links),
            _rule(ON_LOOPBACK_OUT, Jump(f"own_{name}")),
            _rule(Goto(f"deny_reply_{name}")),
        ),
    )
    answer = Chain(
        f"answer_{name}",
        (
            *_in_set(Direction.OUT, name, End.SOURCE, End.SOURCE),
            *interface_chains.answered(name, plan.links),
            *([*lookup_chains.answered(plan.names), *name_chains.answered(plan.names)] if plan.names else ()),
            _rule(ON_LOOPBACK_IN, Jump(f"own_{name}")),
            _rule(Goto(f"deny_in_{name}")),
        ),
    )
    return [reply, answer, *_open(plan, to_replies=_rule(Reply(), Goto(reply.name)))]


def _observing(plan: Plan) -> list[Chain]:
    # Whoever called was recorded when he called; his answers are not recorded again.
    return _open(plan, to_replies=_rule(Reply(), Final.ACCEPT))


def _open(plan: Plan, to_replies: Rule) -> list[Chain]:
    """The chains that look up what is allowed."""
    name, names = plan.name, plan.names
    allowed = _in_set(Direction.OUT, name, End.DESTINATION, End.DESTINATION)
    pings = plan.echo or bool(names and names.echo)
    echo = [_rule(ICMP, Goto(f"echo_{name}"))] if pings else []
    asks = lookup_chains.asks(names) if names else []
    # Names first: to ask whether an address was learned costs less than to ask whether a rule has it.
    opened, opened_here = (
        [
            *(name_chains.learned(names, here=here) if names else ()),
            *allowed,
            *(name_chains.flows(names, here=here) if names else ()),
        ]
        for here in (False, True)
    )
    deny = _rule(Goto(f"deny_out_{name}"))
    # Whoever is allowed would answer to the stranger whose address was borrowed.
    foreign = _rule(ForeignSource(), *deny.do)
    # The header names the first stop; the stranger stands in the route.
    detours = [_rule(Detour(family), *deny.do) for family in (4, 6)]
    out = Chain(
        f"out_{name}",
        (
            _rule(ON_LOOPBACK_OUT, Goto(f"loopback_{name}")),
            *detours,
            to_replies,
            foreign,
            *asks,
            *echo,
            *opened,
            *interface_chains.leaving(name, plan.links),
            deny,
        ),
    )
    # The same, without a route lookup for nearly all that travels there.
    foreign_here = [_rule(OtherSource(family), ForeignSource(), *deny.do) for family in (4, 6)]
    before = (*detours, to_replies, *foreign_here)
    # What a workload with rules about others says here goes to them, nearly always: no set has it.
    others = [_rule(HasLabel(UNPROVEN), Jump(f"own_{name}"))] if plan.caller else []
    loopback = _loopback(plan, before, asks, allowed=(*echo, *others, *opened_here), deny=deny)
    chains = [*loopback, out, _in(plan)]
    return [_echo(plan), *chains] if pings else chains


def _loopback(
    plan: Plan, before: Sequence[Rule], asks: Sequence[Rule], allowed: Sequence[Rule], deny: Rule
) -> list[Chain]:
    """To an address of this host: what no rule allows goes on as UNPROVEN.

    Labels are asked for as late as can be: of all conditions they cost most.
    """
    name, label = plan.name, plan.label
    tail = f"unlisted_{name}"
    stale = Chain(
        f"stale_{name}",
        (
            *asks,
            _rule(HasLabel(label), Final.RETURN),
            _rule(HasLabel(WORKLOAD), SetLabel(STALE), Final.RETURN),
            # Answered, and without a label: it was of somebody who is no workload, and must not be taken for his.
            _rule(Tracked.ESTABLISHED, SetLabel(STALE)),
        ),
    )
    new = Chain(
        f"new_{name}",
        (
            *asks,
            _rule(TCP, HasLabel(WORKLOAD), Jump(stale.name)),
            _rule(SetLabel(WORKLOAD), SetLabel(label)),
        ),
    )
    elder = _elder(plan)
    unlisted = (
        # Not diverted: who may mark packets himself would ask for others.
        _rule(Marked(lookup_chains.LOOKUP), *deny.do),
        _rule(HasLabel(UNPROVEN), Jump(f"own_{name}")),
        _rule(HasLabel(STALE), *deny.do),
        _rule(TCP, Tracked.NEW, LocalDestination(), SetLabel(UNPROVEN)),
        _rule(UDP, Tracked.NEW, LocalDestination(), SetLabel(UNPROVEN)),
        *(_rule(TCP, Tracked.ESTABLISHED, TcpAnswer(), LocalDestination(), Jump(c.name)) for c in elder),
        # Connections older than our table have no room for labels: what was set may not be there.
        _rule(Tracked.NEW, LocalDestination(), HasLabel(UNPROVEN), Final.ACCEPT),
        deny,
    )
    rules = (
        *before,
        _rule(UDP, Jump(stale.name)),
        _rule(Tracked.NEW, Jump(new.name)),
        *asks,
        *admin_chains.called(plan.barred, Goto(tail)),
        *allowed,
        _rule(Goto(tail)),
    )
    families = _by_family(f"loopback_{name}", f"loopback6_{name}", rules)
    return [stale, new, *elder, Chain(tail, unlisted), *families]


def _by_family(name: str, six: str, rules: Sequence[Rule]) -> list[Chain]:
    """A chain for IPv4, which calls one for IPv6: no packet is asked what only the other family can be."""

    def of(family: int) -> tuple[Rule, ...]:
        other = 10 - family
        return tuple(r for r in rules if not any(getattr(when, "family", None) == other for when in r.when))

    return [Chain(six, of(6)), Chain(name, (_rule(Family(6), Goto(six)), *of(4)))]


def _elder(plan: Plan) -> list[Chain]:
    """To whom the workload talked before it was bound, maybe to itself: as if the connection were new.

    Only who called may do that: with the label of who was called, the caller could go on calling.
    """
    rules = (
        _rule(HasLabel(WORKLOAD), Final.RETURN),
        _rule(SetLabel(WORKLOAD), SetLabel(plan.label), SetLabel(UNPROVEN)),
        _rule(HasLabel(UNPROVEN), Final.ACCEPT),  # else there was no room for it
    )
    return [Chain(f"elder_{plan.name}", rules)] if plan.in_place else []


def _in(plan: Plan) -> Chain:
    """What arrives at a socket of the workload."""
    name = plan.name
    answers = Goto(f"answer_{name}") if plan.judged is Mode.ENFORCE else Final.ACCEPT
    return Chain(
        f"in_{name}",
        (
            # A bare SYN may count as a reply: to a SYN that somebody else sent from this port in vain.
            _rule(TcpAnswer(), Reply(), Final.ACCEPT),
            *_barred(plan, End.SOURCE, Goto(f"deny_in_{name}")),
            *_in_set(Direction.IN, name, End.SOURCE, End.DESTINATION),
            *interface_chains.arriving(plan.links),
            _rule(ON_LOOPBACK_IN, Jump(f"own_{name}")),
            *([_rule(ON_LOOPBACK_IN, Original(), Jump(f"callers_{name}"))] if plan.calls.taken else []),
            _rule(Reply(), answers),
            _rule(Goto(f"deny_in_{name}")),
        ),
    )


def _barred(plan: Plan, peer: End, deny: Action) -> list[Rule]:
    return admin_chains.at_listeners(plan.barred, plan.opened, interface_chains.names(plan.links.in_), peer, deny)


def _echo(plan: Plan) -> Chain:
    """Of all ICMP only echo requests are ever allowed; in the sets they have every "port"."""
    name = plan.name
    rules = [
        _rule(
            Echo(family),
            InSet(set_name(Direction.OUT, family, name), family, End.DESTINATION, End.DESTINATION),
            Final.ACCEPT,
        )
        for family in (4, 6)
    ]
    more = [*(name_chains.echoes(plan.names) if plan.names else ()), *interface_chains.leaving(name, plan.links)]
    return Chain(f"echo_{name}", (*rules, *more, _rule(Goto(f"deny_out_{name}"))))
