"""The question of `penstock why`, and its answer.

Somebody types `10.0.0.5:443`, `[2001:db8::5]:53/udp` or `10.0.0.5 icmp`: the words of a rule file's `tests:`.  A
question about a network is about every address in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from penstock.core.connection import Connection
from penstock.core.held import InChain, asked_about, in_chain, in_set
from penstock.core.language.parse_peer import BadPeer, peer
from penstock.core.language.parse_ports import BadPorts, port_range
from penstock.core.language.reading import shown
from penstock.core.policy import (
    Address,
    AddressPeer,
    Direction,
    Mode,
    NamePeer,
    NetworkPeer,
    Peer,
    Policy,
    Sentence,
    WorkloadPeer,
)
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

    `allowed` and `denied` are the first ones with their verdicts; `by_interface`: they differ only in that.
    `in_sets`: for each connection, whether a rule opens it by address, so that the kernel's sets must hold it; the
    mode does not matter there.  `in_chains`: the same of chains, for those that a rule in a chain may be about.
    """

    allow: bool | None
    allowed: tuple[Connection, Verdict] | None
    denied: tuple[Connection, Verdict] | None
    in_sets: tuple[tuple[Connection, bool], ...]
    in_chains: tuple[InChain, ...] = ()
    by_interface: bool = False

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
    live = Live(now, {name: learned})
    found = asked_about(policy, name, sentence, own)
    plain = [(connection, _judge(policy, live, connection)) for connection, _ in found]
    if not plain:
        return None
    judged = plain + [(over, _judge(policy, live, over)) for _, variants in found for over in variants]
    allowed = next((item for item in judged if item[1].allow), None)
    denied = next((item for item in judged if not item[1].allow), None)
    sides = [side for connection, _ in judged for side in (connection, *_other_side(policy, connection))]
    in_chains = (in_chain(policy, now, side) for side in sides)
    return Answer(
        None if allowed and denied else allowed is not None,
        allowed,
        denied,
        tuple((connection, in_set(policy, now, connection)) for connection, _ in found),
        tuple(one for one in in_chains if one is not None),
        by_interface=len({verdict.allow for _, verdict in plain}) == 1,
    )


def _judge(policy: Policy, live: Live, connection: Connection) -> Verdict:
    """By the rules of its workload, and by those of the workload at the far end, if it is one."""
    verdict = judge(policy, live, connection)
    for other in _other_side(policy, connection) if verdict.allow else ():
        there = judge(policy, Live(live.now), other)
        if not there.allow and policy.workloads[other.workload].mode is not Mode.OBSERVE:
            what = "may not call it" if other.direction is Direction.OUT else "does not let it in"
            text = f"its own rules allow it; {other.workload} {what}: {there.text}"
            return Verdict(False, there.reason, text)
    return verdict


def _other_side(policy: Policy, connection: Connection) -> tuple[Connection, ...]:
    """The same connection, as the workload at the far end sees it."""
    peer = connection.peer_workload
    if peer not in policy.workloads or peer == connection.workload:
        return ()
    back = Direction.IN if connection.direction is Direction.OUT else Direction.OUT
    return (replace(connection, workload=peer, direction=back, peer_workload=connection.workload),)


def outgoing(words: Sequence[str]) -> Sentence:
    """May the workload connect to this?  Raises BadQuery."""
    text = " ".join(words)
    if len(words) == 2 and words[1] == "icmp":
        return _sentence(text, Direction.OUT, _destination(words[0].strip("[]")), "icmp", None)
    if len(words) != 1:
        raise BadQuery(f"`{shown(text)}` is no destination", _OUT)
    far, colon, port = text.rpartition(":")
    bare = far.removeprefix("workload:")
    if not colon or not bare or (":" in bare and not (far.startswith("[") and far.endswith("]"))):
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
    if not isinstance(found, AddressPeer | NamePeer | NetworkPeer | WorkloadPeer):
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
