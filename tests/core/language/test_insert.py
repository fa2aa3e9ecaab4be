"""Text surgery: what was there stays, line by line; what is new stands where a person would have put it."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.core.language.insert import CannotEdit, New, Text
from penstock.core.language.parse_peer import peer
from penstock.core.parse import parse_file
from penstock.core.policy import EVERY_PORT, Direction, PortRange, Ports, Rule

EXAMPLES = sorted((Path(__file__).parents[3] / "rules/examples").glob("*.yaml"))
OUT, IN = Direction.OUT, Direction.IN


def rule(word: str, direction: Direction = OUT, port: int = 443, *, private: bool = False) -> New:
    ports = Ports((PortRange("tcp", port, port),))
    return New(Rule("x", direction, (peer(word, direction),), ports, private=private))


def added(text: str, key: str, *members: New) -> str:
    changed = Text(text.encode())
    changed.add(key, members)
    return changed.as_bytes().decode()


HEAD = "version: 1\nworkload: w\nmode: enforce\n"
TO_A = rule("a.example.org")
TO_B = rule("10.0.0.5", port=5432)
FROM = rule("10.1.0.0/16", IN, 8000)

SHAPES = {
    "below": (
        "egress:  # ours\n  # first\n  - to: x.example.org  # why\n\n  # left out\n  # - to: y\ningress: []\n",
        "egress:  # ours\n  # first\n  - to: x.example.org  # why\n  - to: a.example.org\n"
        "  - to: 10.0.0.5\n    ports: [5432]\n\n  # left out\n  # - to: y\ningress: []\n",
    ),
    "no indent": (
        "egress:\n- to: 10.0.0.1\n  ports:\n  - 1\n  - 2\ningress: []\n",
        "egress:\n- to: 10.0.0.1\n  ports:\n  - 1\n  - 2\n- to: a.example.org\n- to: 10.0.0.5\n"
        "  ports: [5432]\ningress: []\n",
    ),
    "a comment inside the last member": (
        "egress:\n  - to: x.example.org\n    # a word more\n    # and one\n  # outside\ningress: []\n",
        "egress:\n  - to: x.example.org\n    # a word more\n    # and one\n  - to: a.example.org\n"
        "  - to: 10.0.0.5\n    ports: [5432]\n  # outside\ningress: []\n",
    ),
    "a text over several lines": (
        "egress:\n  - to: x.example.org\n    reason: |\n      one\n      two\n\n  # outside\ningress: []\n",
        "egress:\n  - to: x.example.org\n    reason: |\n      one\n      two\n  - to: a.example.org\n"
        "  - to: 10.0.0.5\n    ports: [5432]\n\n  # outside\ningress: []\n",
    ),
    "empty": (
        "egress: []   # nothing yet\ningress: []\n",
        "egress:   # nothing yet\n  - to: a.example.org\n  - to: 10.0.0.5\n    ports: [5432]\ningress: []\n",
    ),
    "in brackets": (
        "egress: [{to: x.example.org}, {to: 10.0.0.1, ports: [1]},]  # two\ningress: []\n",
        "egress: [{to: x.example.org}, {to: 10.0.0.1, ports: [1]}, {to: a.example.org}, "
        "{to: 10.0.0.5, ports: [5432]},]  # two\ningress: []\n",
    ),
    "in brackets over lines": (
        "egress: [\n  {to: x.example.org},  # one\n]\ningress: []\n",
        "egress: [\n  {to: x.example.org}, {to: a.example.org}, {to: 10.0.0.5, ports: [5432]},  # one\n]\n"
        "ingress: []\n",
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shapes_of_a_list(shape: str) -> None:
    before, after = SHAPES[shape]
    assert added(HEAD + before, "egress", TO_A, TO_B) == HEAD + after


def test_the_last_list_of_a_file_without_a_newline() -> None:
    text = "egress: []\ningress:\n  - ports: [1]\n    from: any"
    assert added(text, "ingress", FROM) == text + "\n  - ports: [8000]\n    from: 10.1.0.0/16"
    assert added("egress: []", "egress", TO_A) == "egress:\n  - to: a.example.org"


def test_a_file_in_one_line() -> None:
    text = "{version: 1, workload: w, mode: lock, egress: [], ingress: [{ports: [1], from: any}]}\n"
    text = added(text, "egress", TO_A, rule("::1", port=1))
    assert 'egress: [{to: a.example.org}, {to: "::1", ports: [1]}]' in text
    text = added(text, "ingress", FROM)
    assert "ingress: [{ports: [1], from: any}, {ports: [8000], from: 10.1.0.0/16}]}\n" in text


def test_what_an_editor_of_another_system_left() -> None:
    text = "\ufeffversion: 1\r\negress: []\r\ningress: []\r\n"
    assert added(text, "egress", TO_A) == "\ufeffversion: 1\r\negress:\r\n  - to: a.example.org\r\ningress: []\r\n"
    text = "# a\u2028# b é\negress:\n  - to: x.example.org # é\ningress: []\n"
    assert added(text, "egress", TO_A) == text.replace("é\ning", "é\n  - to: a.example.org\ning")


def test_another_word() -> None:
    text = Text(b"version: 1\nmode:   observe   # for now: mode\nworkload: mode\n")
    text.set_word("mode", "enforce")
    assert text.as_bytes() == b"version: 1\nmode:   enforce   # for now: mode\nworkload: mode\n"
    quoted = Text(b'{"mode": "observe"}')
    quoted.set_word("mode", "enforce")
    assert quoted.as_bytes() == b'{"mode": enforce}'


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (b"egress: [\n]\n", "egress"),
        (b"egress: 5\n", "egress"),
        (b"ingress: []\n", "egress"),
        (b"- a\n", "egress"),
        (b"a: [\n", "egress"),
        (b"\xff", "egress"),
    ],
)
def test_what_is_left_alone(data: bytes, key: str) -> None:
    with pytest.raises(CannotEdit):
        Text(data).add(key, [TO_A])


def test_how_rules_are_written() -> None:
    assert New(None, "huggingface").block("  ") == ["  - use: huggingface"]
    assert rule("*.example.org", private=True).block() == ['- to: "*.example.org"', "  private: true"]
    assert rule("2001:db8::/32", port=1).block() == ['- to: "2001:db8::/32"', "  ports: [1]"]
    assert rule("workload:x", IN, 1).flow() == "{ports: [1], from: workload:x}"
    everything = Rule("x", OUT, (peer("any", OUT),), Ports(EVERY_PORT, icmp=True))
    assert New(everything).flow() == "{to: any, ports: [any, icmp]}"
    two = Rule("x", OUT, (peer("::1", OUT), peer("10.0.0.1", OUT)), Ports((PortRange("udp", 1, 2),)))
    assert New(two).flow() == '{to: ["::1", 10.0.0.1], ports: [1-2/udp]}'
    named = Rule("x", OUT, (peer("a.example.org", OUT),), Ports((PortRange("udp", 443, 443),)))
    assert New(named).block() == ["- to: a.example.org", "  ports: [443/udp]"]


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.name != "penstock.yaml"], ids=lambda p: p.name)
def test_lines_of_the_examples_stay(path: Path) -> None:
    before = path.read_text()
    text = Text(before.encode())
    text.add("egress", [TO_A, TO_B])
    text.add("ingress", [FROM])
    after = text.as_bytes().decode()
    result = parse_file(path.name, after.encode())
    assert result.problems == ()
    rest = iter(after.splitlines())
    kept = [line for line in before.splitlines() if line not in ("egress: []", "ingress: []")]
    assert all(any(line == other for other in rest) for line in kept)
