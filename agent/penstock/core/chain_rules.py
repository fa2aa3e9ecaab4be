"""Which rules of a workload open something by a chain, and not by a set: those about who is at the far end.

The kernel cannot be asked that as a set can be.  But it was read back, and as long as it holds the ruleset that
was loaded, what that ruleset says is what it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from penstock.core import hits
from penstock.core.actions import Count
from penstock.core.conditions import Before, Echo, End, ForeignSource, HasLabel, Interface, PortIn
from penstock.core.policy import Direction
from penstock.core.ruleset import Rule, Ruleset

HOST, WORKLOAD, INTERFACE = "host", "workload", "interface"


@dataclass(frozen=True, slots=True)
class Question:
    """A connection to or from `workload`.

    `kind`: who is at the far end, whoever is no workload, a workload or somebody behind an interface; `name` is
    that of the latter two.
    """

    workload: str
    direction: Direction
    protocol: str  # tcp, udp, icmp
    port: int
    kind: str
    name: str = ""


def question(workload: str, direction: str, protocol: str, port: int, far: str) -> Question:
    """`far` is host, workload:NAME or interface:NAME.  ValueError for what makes no sense."""
    kind, _, name = far.partition(":")
    if protocol not in ("tcp", "udp", "icmp") or not 0 <= port <= 65535:
        raise ValueError("protocol must be tcp, udp or icmp, port 0 to 65535")
    if kind not in (HOST, WORKLOAD, INTERFACE) or (kind == HOST) == bool(name):
        raise ValueError("far must be host, workload:NAME or interface:NAME")
    return Question(workload, Direction(direction), protocol, port, kind, name)


def opening(ruleset: Ruleset, labels: Mapping[str, int], asked: Question, now: datetime) -> tuple[str, ...]:
    """Ids of the rules of the workload that open it at `now`, in the order of the chains.

    What other chains refuse before, the host's admin ports, is not looked at.
    """
    return tuple(dict.fromkeys(_opening(ruleset, labels, asked, now)))


def _opening(ruleset: Ruleset, labels: Mapping[str, int], asked: Question, now: datetime) -> Iterator[str]:
    prefix = hits.counter(asked.workload, "")
    place = _place(asked)
    for chain in ruleset.chains:
        if chain.name != place:
            continue
        for rule in chain.rules:
            counter = next((do.counter for do in rule.do if isinstance(do, Count)), "")
            if counter.startswith(prefix) and _holds(rule, labels, asked, now):
                yield counter.removeprefix(prefix)


def _place(asked: Question) -> str:
    """The chain in which such rules stand (`peer_chains`, `interface_chains`)."""
    places = {
        (Direction.OUT, WORKLOAD): f"met_{asked.name}",
        (Direction.OUT, INTERFACE): f"over_{asked.workload}",
        (Direction.IN, WORKLOAD): f"callers_{asked.workload}",
        (Direction.IN, HOST): f"callers_{asked.workload}",
        (Direction.IN, INTERFACE): f"in_{asked.workload}",
    }
    return places.get((asked.direction, asked.kind), "")


def _holds(rule: Rule, labels: Mapping[str, int], asked: Question, now: datetime) -> bool:
    """Whether all its conditions are met by the first packet."""
    labelled = asked.workload if asked.direction is Direction.OUT else asked.name
    wanted: set[object] = set()
    if asked.kind == WORKLOAD:
        wanted.add(HasLabel(labels.get(labelled, -1)))
    elif asked.kind == INTERFACE:
        wanted.add(Interface(asked.name, End.DESTINATION if asked.direction is Direction.OUT else End.SOURCE))
    for when in rule.when:
        match when:
            case Before(time):
                if time <= now:
                    return False
            case PortIn(protocol, End.DESTINATION, first, last):
                if protocol != asked.protocol or not first <= asked.port <= last:
                    return False
            case ForeignSource():
                pass  # nobody behind an interface has an address of this host
            case Echo():
                if asked.protocol != "icmp":
                    return False
            case _:
                if when not in wanted:
                    return False
                wanted.discard(when)
    return not wanted
