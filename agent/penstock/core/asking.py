"""The question of `penstock why`, and its answer.

Somebody types `10.0.0.5:443`, `[2001:db8::5]:53/udp` or `10.0.0.5 icmp`: the words of a rule file's `tests:`.  A
question about a network is about every address in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from penstock.core.connection import Connection, as_sent
from penstock.core.language.parse_peer import BadPeer, peer
from penstock.core.language.parse_ports import BadPorts, port_range
from penstock.core.language.reading import shown
from penstock.core.policy import (
    Address,
    AddressPeer,
    Direction,
    HostPeer,
    Mode,
    NamePeer,
    Peer,
    Policy,
    Ports,
    Rule,
    Sentence,
    Workload,
    WorkloadPeer,
)
from penstock.core.sentences import connections
from penstock.core.verdict import Live, Verdict, judge

NOTHING: Mapping[Address, Collection[str]] = {}

_OUT = "write 10.0.0.5:443, [2001:db8::5]:53/udp, registry.example.org:443 or 10.0.0.5 icmp"
_IN = "write the port that the workload listens on: 8000 or 8000/udp"


class BadQuery(ValueError):
    """Not a question: what is wrong, and what to write instead."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Answer:
    """`allow` is None when some of the connections asked about are allowed and others are not.

    `allowed` and `denied` are the first ones with their verdicts.  `in_sets`: for each connection, whether a rule
    opens it by address, so that the kernel's sets must hold it; the mode does not matter there.
    """

    allow: bool | None
    allowed: tuple[Connection, Verdict] | None
    denied: tuple[Connection, Verdict] | None
    in_sets: tuple[tuple[Connection, bool], ...]

    @property
    def verdict(self) -> Verdict:
        """The one to tell: of several that differ, a denial."""
        found = self.denied or self.allowed
        assert found is not None
        return found[1]


def reply(
    policy: Policy,
    now: datetime,
    name: str,
    sentence: Sentence,
    learned: Mapping[Address, Collection[str]] = NOTHING,
    own: Collection[Address] = (),
) -> Answer | None:
    """Judge what `sentence` is about; `name` and all names in it exist.  None when it is about no address.

    `learned`: the names that lead the workload to addresses now, as far as that is known.  `own`: the addresses of
    this host.
    """
    workload, live = policy.workloads[name], Live(now, {name: learned})
    asked = [
        replace(connection, here=as_sent(connection).remote in own)
        for connection in connections(policy, workload, sentence)
    ]
    judged = [(connection, judge(policy, live, connection)) for connection in asked]
    if not judged:
        return None
    open_policy = replace(policy, workloads={**policy.workloads, name: _by_address(workload)})
    if sentence.direction is Direction.OUT:  # which are closed on this host is said by a chain
        open_policy = replace(open_policy, admin_ports=Ports())
    allowed = next((item for item in judged if item[1].allow), None)
    denied = next((item for item in judged if not item[1].allow), None)
    return Answer(
        None if allowed and denied else allowed is not None,
        allowed,
        denied,
        tuple((connection, judge(open_policy, Live(now), connection).allow) for connection in asked),
    )


def _by_address(workload: Workload) -> Workload:
    """As if it enforced, without the rules about who on this host is at the far end: these are in no set."""

    def without(rule: Rule) -> Rule:
        return replace(rule, peers=tuple(p for p in rule.peers if not isinstance(p, WorkloadPeer | HostPeer)))

    egress, ingress = (tuple(map(without, rules)) for rules in (workload.egress, workload.ingress))
    return replace(workload, mode=Mode.ENFORCE, egress=egress, ingress=ingress)


def outgoing(words: Sequence[str]) -> Sentence:
    """May the workload connect to this?  Raises BadQuery."""
    text = " ".join(words)
    if len(words) == 2 and words[1] == "icmp":
        return _sentence(text, Direction.OUT, _destination(words[0].strip("[]")), "icmp", None)
    if len(words) != 1:
        raise BadQuery(f"`{shown(text)}` is no destination", _OUT)
    far, colon, port = text.rpartition(":")
    if not colon or (":" in far and not (far.startswith("[") and far.endswith("]"))):
        what = "an IPv6 address before a port needs brackets" if ":" in far else "the port is missing"
        raise BadQuery(f"`{shown(text)}`: {what}", _OUT)
    return _sentence(text, Direction.OUT, _destination(far.strip("[]")), *_port(port, _OUT))


def incoming(source: str, words: Sequence[str]) -> Sentence:
    """May `source` connect to this port of the workload?  Raises BadQuery."""
    text = " ".join(words)
    if text == "icmp":
        hint = "no rule is needed, and none can refuse them"
        raise BadQuery("the kernel answers echo requests by itself, not the workload", hint)
    if len(words) != 1:
        raise BadQuery(f"`{shown(text)}` is no port", _IN)
    return _sentence(f"from {source} {text}", Direction.IN, _peer(source, Direction.IN), *_port(text, _IN))


def _destination(text: str) -> Peer:
    found = _peer(text, Direction.OUT)
    if isinstance(found, NamePeer) and found.pattern.startswith("*."):
        hint = f"write a name it stands for: a{shown(found.pattern[1:])}"
        raise BadQuery("one name is needed, and no pattern", hint)
    if not isinstance(found, AddressPeer | NamePeer):
        raise BadQuery(f"`{shown(text)}` is not one address or name", _OUT)
    return found


def _peer(text: str, direction: Direction) -> Peer:
    try:
        return peer(text, direction)
    except BadPeer as error:
        raise BadQuery(str(error), error.hint) from error


def _port(word: str, hint: str) -> tuple[str, int]:
    try:
        found = port_range(word)
    except BadPorts as error:
        raise BadQuery(str(error), error.hint) from error
    if found.first != found.last:
        raise BadQuery(f"`{shown(word)}` is more than one port", hint)
    return found.protocol, found.first


def _sentence(text: str, direction: Direction, far: Peer, protocol: str, port: int | None) -> Sentence:
    return Sentence(text, direction, far, protocol, port, allow=True)
