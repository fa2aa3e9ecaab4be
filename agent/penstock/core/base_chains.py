"""The chains that every packet meets, until it is known whose it is, and those that belong to no workload.

See `chains` for the facts and the labels that they rest on.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.core.actions import Count, Dispatch, Final, Goto, Jump, Log, SetLabel
from penstock.core.cgroup_maps import (
    IN,
    OUT,
    OWN,
    PROOF_IN,
    PROOF_OUT,
    place_maps,
)
from penstock.core.conditions import (
    ForeignSource,
    FullSocket,
    HasLabel,
    Hook,
    InCgroup,
    Loopback,
    Original,
    Protocol,
    TcpReset,
    Tracked,
)
from penstock.core.log_prefix import format_prefix
from penstock.core.policy import Direction
from penstock.core.ruleset import Chain, Rule

UNPROVEN, WORKLOAD, STALE = 0, 1, 2
"""Labels with a meaning of their own; then there is one a workload (`label_bits`)."""

UNBOUND_OUT, UNBOUND_IN = "unbound_out", "unbound_in"

ICMP, TCP, UDP = Protocol("icmp"), Protocol("tcp"), Protocol("udp")
ON_LOOPBACK_OUT, ON_LOOPBACK_IN = Loopback(Hook.OUTPUT), Loopback(Hook.INPUT)

_rule = Rule.of


def refusals() -> list[Chain]:
    """How packets are refused, and what tells of a refusal."""
    told = [_rule(TCP, Final.RESET), _rule(Final.PROHIBIT)]
    return [
        # With a foreign source address the refusal itself would carry data to a stranger.
        Chain("refuse_out", (_rule(ForeignSource(), Final.DROP), *told)),
        Chain("refuse_in", tuple(told)),
        Chain("told", (_rule(ICMP, Final.ACCEPT), _rule(TcpReset(), Final.ACCEPT))),
    ]


def shared(
    labels: Sequence[tuple[str, int]],
    depth: int,
    levels: Sequence[int],
    surely: Sequence[Rule] = (),
    unmet: Sequence[Rule] = (),
) -> list[Chain]:
    """What the base chains call.  `labels`: each workload, and its label in connections.

    `surely` are for what is UNPROVEN whoever else has that connection, and `unmet` for what no full socket takes:
    look-ups, and what comes to sockets in TIME_WAIT.
    """

    def unbound(direction: Direction, refuse: str, counter: str, cgroups: str) -> tuple[Rule, ...]:
        prefix = format_prefix(direction, "deny", "enforce", "unbound", "-")
        return (
            _rule(Dispatch(cgroups, depth + 1)),
            *([_rule(Tracked.RELATED, Jump("told"))] if direction is Direction.IN else []),
            _rule(Count(counter)),
            _rule(Log(prefix)),
            _rule(Goto(refuse)),
        )

    unproven = (
        *surely,
        _rule(HasLabel(STALE), Final.RETURN),
        _rule(ICMP, Final.RETURN),
        _rule(Goto("met")),
    )
    met = (
        _rule(Dispatch(OWN, depth + 1)),
        *_dispatches(2, levels),
        _rule(FullSocket(), Goto("not_own")),
        *unmet,
        # What has no full socket here and is not new is the end of a handshake, or of a connection.
        _rule(Tracked.NEW, Goto("not_own")),
    )
    not_own = tuple(_rule(HasLabel(label), Goto(f"deny_loopback_{name}")) for name, label in labels)
    inherited = (
        # A bystander on a workload's old source port: what the labels said is over.
        _rule(UDP, Original(), SetLabel(STALE)),
        _rule(TCP, Tracked.NEW, Original(), SetLabel(STALE)),
        # Nor does he become the workload by answering what it tells nobody but itself.
        _rule(UDP, HasLabel(UNPROVEN), SetLabel(STALE)),
    )
    return [
        Chain("inherited", inherited),
        *(Chain(name, (_rule(Count(name)), _rule(Final.DROP))) for name in (PROOF_OUT, PROOF_IN)),
        Chain("not_own", not_own),
        Chain("met", met),
        Chain("unproven", unproven),
        Chain("governed_out", unbound(Direction.OUT, "refuse_out", UNBOUND_OUT, OUT)),
        Chain("governed_in", unbound(Direction.IN, "refuse_in", UNBOUND_IN, IN)),
    ]


def _dispatches(which: int, levels: Sequence[int]) -> list[Rule]:
    """Look up what is bound in place, in the first, second or third of `place_maps`: the deepest first."""
    return [_rule(Dispatch(place_maps(level)[which], level)) for level in sorted(levels, reverse=True)]


def base(
    governed: InCgroup, levels: Sequence[int], *, sent: Sequence[Rule] = (), strangers: Sequence[Rule] = ()
) -> list[Chain]:
    """Where our packets come in; `governed` is our slice.

    `sent` and `strangers` are for what is sent by, and arrives at, somebody who is no workload.
    """
    # Nobody who gets here is governed: most have nothing to do with any label, and go on at once.  Labels are on
    # what travels on loopback.
    # An established TCP connection is inherited by nobody; to ask for the label costs more than for all else.
    inherited = [
        _rule(ON_LOOPBACK_OUT, which, HasLabel(WORKLOAD), Jump("inherited")) for which in (Tracked.NEW, UDP)
    ]
    return [
        Chain(
            "output",
            (
                _rule(governed, Goto("governed_out")),
                *_dispatches(0, levels),
                *inherited,
                *sent,
            ),
            Hook.OUTPUT,
        ),
        Chain(
            "input",
            (
                # Who was called may answer: that costs less to ask than for the label, and holds half of the time.
                _rule(ON_LOOPBACK_IN, Original(), HasLabel(UNPROVEN), Jump("unproven")),
                _rule(governed, Goto("governed_in")),
                *_dispatches(1, levels),
                *strangers,
            ),
            Hook.INPUT,
        ),
    ]
