"""Lines of `tests:`."""

import pytest

from penstock.core.language.parse_sentence import read_sentences
from penstock.core.language.reading import Reader
from penstock.core.language.rule_ids import peer_text
from penstock.core.language.yaml_nodes import Items, Scalar
from penstock.core.policy import Direction, Sentence


def read_one(text: str) -> tuple[Sentence | None, list[str]]:
    reader = Reader("f")
    found = read_sentences(reader, Items([Scalar(text, False, 3, 5)], 2, 3))
    return (found[0] if found else None), [f"{p.message}; {p.hint}" for p in reader.problems]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("egress 10.0.0.1:443 deny", (Direction.OUT, "10.0.0.1", "tcp", 443, False)),
        ("egress [fd00::1]:53/udp allow", (Direction.OUT, "fd00::1", "udp", 53, True)),
        ("egress A.org:443 allow", (Direction.OUT, "a.org", "tcp", 443, True)),
        ("egress fd00::1 icmp deny", (Direction.OUT, "fd00::1", "icmp", None, False)),
        ("ingress from clients 11434 allow", (Direction.IN, "clients", "tcp", 11434, True)),
        ("ingress from plane:admin 53/udp deny", (Direction.IN, "plane:admin", "udp", 53, False)),
        ("ingress from workload:x icmp deny", (Direction.IN, "workload:x", "icmp", None, False)),
    ],
)
def test_sentences(text: str, parts: tuple[object, ...]) -> None:
    found, told = read_one(text)
    assert told == []
    assert found is not None
    assert (found.direction, peer_text(found.peer), found.protocol, found.port, found.allow) == parts
    assert str(found.place) == "f:3:5"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("allow 10.0.0.1:1", "starts with"),
        ("egress 10.0.0.1:1", "ends in"),
        ("egress 10.0.0.1 deny", "no egress test"),
        ("egress fd00::1:443 deny", "brackets"),
        ("egress https://x.example:443 deny", "is a URL; write the name and the port alone: x.example:443"),
        ("egress 10.0.0.1:80-90 deny", "one port"),
        ("egress 10.0.0.0/8:80 deny", "one address"),
        ("egress *.hf.co:443 allow", "a.hf.co"),
        ("egress clients:80 deny", "one address"),
        ("ingress clients 80 deny", "ingress from"),
        ("ingress from a.org 80 deny", "cannot be a source"),
        ("ingress from clients any deny", "no port"),
    ],
)
def test_wrong_sentences(text: str, hint: str) -> None:
    found, told = read_one(text)
    assert found is None
    assert len(told) == 1
    assert hint in told[0]
