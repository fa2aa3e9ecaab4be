"""The question of `penstock why`, and its answer.

Somebody types `10.0.0.5:443`, `[2001:db8::5]:53/udp` or `10.0.0.5 icmp`: the words of a rule file's `tests:`.  A
question about a network is about every address in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import product

from penstock.core import control_ports, names
from penstock.core.connection import Connection
from penstock.core.held import InChain, InSets, asked_about, in_chain, in_learned, in_set
from penstock.core.language.parse_peer import BadPeer, peer, refuse_url
from penstock.core.language.parse_ports import BadPorts, port_range
from penstock.core.language.reading import shown
from penstock.core.lookups import HTTPS
from penstock.core.name_rules import Index, name_rules
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
from penstock.core.verdict import Live, NamesAt, Reason, Verdict, judge

_OUT = "write 10.0.0.5:443, [2001:db8::5]:53/udp, registry.example.org:443 or 10.0.0.5 icmp"
_IN = "write the port that the workload listens on: 8000 or 8000/udp"


class BadQuery(ValueError):
    """Not a question: what is wrong, and what to write instead."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Answer:
    """`allow` is None when some of the connections asked about are allowed and others are not, or nobody can tell.

    `allowed` and `denied` are the first ones with their verdicts, also of what nobody can tell; `by_interface`:
    they differ only in that.
    `in_sets`: what the kernel's sets must hold.  `in_chains`: the same of chains, for those connections that a
    rule in a chain may be about.
    """

    allow: bool | None
    allowed: tuple[Connection, Verdict] | None
    denied: tuple[Connection, Verdict] | None
    in_sets: tuple[InSets, ...]
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
    learned: NamesAt | None = None,
    own: Collection[Address] = (),
) -> Answer | None:
    """Judge what `sentence` is about; `name` and all names in it exist.  None when it is about no address.

    `learned`: of the address that is asked about, or of the addresses of the name; None: not known.  `own`: the
    addresses of this host.
    """
    live = Live(now, {name: learned or {}})
    found = asked_about(policy, name, sentence, own)
    plain = [(connection, _judge(policy, live, connection)) for connection, _ in found]
    if not plain:
        return None
    judged = plain + [(over, _judge(policy, live, over)) for _, variants in found for over in variants]
    allowed = next((item for item in judged if item[1].allow), None)
    denied = next((item for item in judged if not item[1].allow), None)
    sides = [side for connection, _ in judged for side in (connection, *_other_side(policy, connection))]
    in_chains = (in_chain(policy, now, side) for side in sides)
    depends = denied is not None and (allowed is not None or denied[1].reason is Reason.DEPENDS)
    return Answer(
        None if depends else allowed is not None,
        allowed,
        denied,
        tuple(_in_sets(policy, now, [connection for connection, _ in found], sentence.peer, learned, own)),
        tuple(one for one in in_chains if one is not None),
        by_interface=len(judged) > len(plain) and len({verdict.allow for _, verdict in plain}) == 1,
    )


def _in_sets(
    policy: Policy,
    now: datetime,
    asked: Sequence[Connection],
    far: Peer,
    learned: NamesAt | None,
    own: Collection[Address],
) -> Iterator[InSets]:
    if isinstance(far, NamePeer):  # the kernel knows its addresses only, which may be open for other names as well
        for one, address in product(asked, learned or ()):
            there = replace(one, name="", remote=address, here=address in own)
            if in_learned(policy, now, there, learned or {}):
                yield InSets(there, None, by_name=True)
        return
    known = learned if isinstance(far, AddressPeer) else None
    for one in asked:
        by_name = None if known is None else in_learned(policy, now, one, known)
        yield InSets(one, in_set(policy, now, one), by_name)


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
    try:
        refuse_url(text)
    except BadPeer as error:
        raise BadQuery(str(error), error.hint) from error
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


def looked_up(policy: Policy, now: datetime, workload: str, name: str) -> Sentence:
    """May the workload connect to `name`, which it looked up?  Raises names.BadName: no rule can have such a name.

    A look-up is for no port: it is about one that rules of the name open, 443 if they do, and if none does.
    """
    far = names.normalise(name)
    found = policy.workloads.get(workload)
    rules = Index(name_rules(policy, found, now)).of(far) if found else ()
    ranges = [opened for rule in rules for opened in control_ports.opened(rule.group.ports.ranges)]
    if not ranges and any(rule.group.ports.icmp for rule in rules):
        return _sentence(f"{far} icmp", Direction.OUT, NamePeer(far), "icmp", None)
    usual = not ranges or any(r.protocol == "tcp" and r.first <= HTTPS <= r.last for r in ranges)
    protocol, port = ("tcp", HTTPS) if usual else (ranges[0].protocol, ranges[0].first)
    text = f"{far}:{port}" + ("" if protocol == "tcp" else f"/{protocol}")
    return _sentence(text, Direction.OUT, NamePeer(far), protocol, port)


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
