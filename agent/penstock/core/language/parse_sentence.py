"""One line of `tests:` -> a Sentence: `egress 10.0.0.5:443 deny`, `ingress from clients 8080 allow`."""

from __future__ import annotations

import re

from penstock.core.language.parse_peer import BadPeer, refuse_url
from penstock.core.language.parse_ports import BadPorts, port_range
from penstock.core.language.parse_rule import read_peer
from penstock.core.language.reading import Reader, shown
from penstock.core.language.yaml_nodes import Node, Scalar
from penstock.core.policy import AddressPeer, Direction, NamePeer, Peer, Sentence

MAX_SENTENCES = 10_000

_EGRESS = "write `egress 10.0.0.5:443 deny`, `egress [2001:db8::5]:53/udp allow` or `egress 10.0.0.5 icmp deny`"
_INGRESS = "write `ingress from clients 8080 allow`"


class BadSentence(ValueError):
    """Not a sentence: what is wrong, and what to write instead."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def read_sentences(reader: Reader, node: Node) -> tuple[Sentence, ...]:
    """The lines of `tests:`; wrong ones are told and left out."""
    items = reader.list_of(node, "`tests`", "a list of lines such as `- egress 169.254.169.254:80 deny`") or []
    if len(items) > MAX_SENTENCES:
        text = f"more than {MAX_SENTENCES:,} tests"
        reader.error(items[MAX_SENTENCES], "too-many-tests", text, "leave some out")
    found = (_read_sentence(reader, item) for item in items[:MAX_SENTENCES])
    return tuple(sentence for sentence in found if sentence is not None)


def _read_sentence(reader: Reader, node: Node) -> Sentence | None:
    scalar = reader.text(node, "a test")
    if scalar is None:
        return None
    try:
        direction, far, protocol, port, allow = split(scalar.text)
    except (BadSentence, BadPorts, BadPeer) as error:
        reader.error(scalar, "test", str(error), error.hint)
        return None
    # Places inside of a quoted or folded line cannot be known, so the whole line is the place.
    peer = read_peer(reader, Scalar(far, False, scalar.line, scalar.column), direction, "`tests`")
    if peer is None or not _can_be_judged(reader, scalar, peer, direction):
        return None
    return Sentence(scalar.text, direction, peer, protocol, port, allow, reader.place(scalar))


def split(text: str) -> tuple[Direction, str, str, int | None, bool]:
    """Direction, far end, protocol, port (None for icmp), if allowed.  Raises BadSentence, BadPorts, BadPeer."""
    words = text.split()
    if len(text) > 1000 or not words or words[0] not in ("egress", "ingress"):
        raise BadSentence(f"`{shown(text)}`: a test starts with `egress` or `ingress`", _EGRESS)
    if words[-1] not in ("allow", "deny"):
        raise BadSentence(f"`{shown(text)}`: a test ends in `allow` or `deny`", _EGRESS)
    allow = words[-1] == "allow"
    if words[0] == "ingress":
        if len(words) != 5 or words[1] != "from":
            raise BadSentence(f"`{shown(text)}` is no ingress test", _INGRESS)
        return Direction.IN, words[2], *_port(words[3]), allow
    if len(words) == 4 and words[2] == "icmp":
        return Direction.OUT, words[1].strip("[]"), "icmp", None, allow
    refuse_url(words[1])
    far, colon, port = words[1].rpartition(":")
    if len(words) != 3 or not colon:
        raise BadSentence(f"`{shown(text)}` is no egress test", _EGRESS)
    bracketed = re.match(r"\[(.*)\]\Z", far)
    if ":" in far and not bracketed:
        raise BadSentence(f"`{shown(text)}`: an IPv6 address before a port needs brackets", _EGRESS)
    return Direction.OUT, bracketed[1] if bracketed else far, *_port(port), allow


def _port(word: str) -> tuple[str, int | None]:
    if word == "icmp":
        return "icmp", None
    found = port_range(word)
    if found.first != found.last:
        raise BadSentence(f"`{shown(word)}`: a test is about one port", "write one line for each port of interest")
    return found.protocol, found.first


def _can_be_judged(reader: Reader, scalar: Scalar, peer: Peer, direction: Direction) -> bool:
    if direction is Direction.IN:
        return True
    if isinstance(peer, NamePeer) and peer.pattern.startswith("*."):
        hint = f"write a name it stands for, such as a{shown(peer.pattern[1:])}"
        reader.error(scalar, "test", "a test is about one name and no pattern", hint)
        return False
    if not isinstance(peer, AddressPeer | NamePeer):
        reader.error(scalar, "test", "an egress test is about one address or name", _EGRESS)
        return False
    return True
