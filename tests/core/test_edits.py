"""Edits are proved by parsing: what the text would say besides is never written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core import edits
from penstock.core.edits import CannotEdit, New, with_mode, with_rules
from penstock.core.language.insert import Text
from penstock.core.language.parse_peer import peer
from penstock.core.language.rule_ids import derived_id
from penstock.core.parse import parse_file
from penstock.core.policy import Direction, Mode, PortRange, Ports, Rule

FILE = b"""\
# what it is for
version: 1
workload: w
mode: observe  # until we know
egress: []
ingress:
  - ports: [8000]  # the API
    from: any
"""
PATH = "rules.d/w.yaml"


def rule(word: str, direction: Direction, port: int) -> New:
    found = Rule("", direction, (peer(word, direction),), Ports((PortRange("tcp", port, port),)))
    return New(Rule(derived_id(found), *(getattr(found, name) for name in ("direction", "peers", "ports"))))


def test_rules_and_presets_come_in() -> None:
    members = [New(None, "huggingface"), rule("2001:db8::5", Direction.OUT, 1), rule("any", Direction.IN, 9000)]
    after = with_rules(PATH, FILE, members).decode()
    assert (
        after
        == """\
# what it is for
version: 1
workload: w
mode: observe  # until we know
egress:
  - use: huggingface
  - to: "2001:db8::5"
    ports: [1]
ingress:
  - ports: [8000]  # the API
    from: any
  - ports: [9000]
    from: any
"""
    )


def test_a_mode_changes_and_nothing_else() -> None:
    assert with_mode(PATH, FILE, Mode.ENFORCE) == FILE.replace(b"observe", b"enforce")
    assert with_mode(PATH, FILE, Mode.OBSERVE) is FILE


def test_what_has_mistakes_is_left_alone() -> None:
    for data in (b"", b"version: 1\n", FILE + b"nonsense: 1\n", b"version: 1\nnetworks: {}\n"):
        with pytest.raises(CannotEdit, match="penstock check"):
            with_mode(PATH, data, Mode.LOCK)


def test_a_place_that_was_misread_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Text.add

    def wrong(self: Text, key: str, members: list[New]) -> None:
        real(self, key, members)
        self.text = self.text.replace("8000", "8001")

    monkeypatch.setattr(Text, "add", wrong)
    with pytest.raises(CannotEdit, match="not say what was meant"):
        with_rules(PATH, FILE, [rule("10.0.0.1", Direction.OUT, 1)])


LINES = st.sampled_from(
    ["", "# c", "  # c", "    # c", "  - to: {n}.example.org", "  - to: 10.0.0.{n}\n    ports: [1]  # c",
     "  - {{to: 10.1.0.{n}, ports: [{n}]}}", "  - to:\n      - 10.2.0.{n}\n      # c\n    ports:\n      - 1",
     "  - to: 10.3.0.{n}\n    ports: [1]\n    reason: >\n      one\n\n      two\n"]
)  # fmt: skip


@given(
    lines=st.lists(LINES, max_size=6), ports=st.lists(st.integers(1, 65535), min_size=1, max_size=3, unique=True)
)
def test_any_list_of_rules_gets_exactly_the_new_ones(lines: list[str], ports: list[int]) -> None:
    body = "\n".join(line.format(n=n + 1) for n, line in enumerate(lines))
    key = "egress:" if "- " in body else "egress: []"
    data = f"version: 1\nworkload: w\nmode: lock\n{key}\n{body}\ningress: []\n".encode()
    members = [rule("192.0.2.1", Direction.OUT, port) for port in ports]
    after = with_rules(PATH, data, members)
    assert parse_file(PATH, after).problems == ()
    old, new = data.decode().splitlines(), iter(after.decode().splitlines())
    assert all(any(line == other for other in new) for line in old if line != "egress: []")
    assert len(after.splitlines()) == len(old) + 2 * len(ports)


def test_the_parts_are_compared_whole() -> None:
    """What a new text could say besides: each of it differs."""
    for old, new in ((b"any", b"host"), (b"w\n", b"v\n"), (b"ingress:", b"match: {exe: /a}\ningress:")):
        assert edits._bare(edits._part(PATH, FILE)) != edits._bare(edits._part(PATH, FILE.replace(old, new, 1)))


def test_files_of_the_project() -> None:
    for path in sorted((Path(__file__).parents[2] / "rules/examples").glob("*.yaml")):
        if path.name != "penstock.yaml":
            for mode in Mode:
                assert with_mode(path.name, path.read_bytes(), mode).count(b"\n") == path.read_bytes().count(b"\n")
