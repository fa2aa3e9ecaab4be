"""Whatever makes files unfit takes the policy away; whatever is only unwise does not."""

from __future__ import annotations

import pytest
from fake_host import BROKEN, ONE, START

from penstock.core.checking import examine, examine_preset
from penstock.core.parse import parse, parse_file
from penstock.core.presets import Preset
from penstock.core.surroundings import Surroundings


def checked(more: bytes = b"", egress: bytes = b"[]") -> tuple[bool, list[str]]:
    text = b"version: 1\nworkload: a\nmode: enforce\negress: " + egress + b"\ningress: []\n" + more
    parsed = examine(parse({"rules.d/a.yaml": text}), START)
    return parsed.policy is not None, [problem.severity for problem in parsed.problems]


def test_good_files_stay_good() -> None:
    assert examine(parse(ONE), START).policy
    assert checked() == (True, [])


def test_of_files_with_mistakes_only_networks_are_looked_at() -> None:
    """What is wrong with them is told together with the rest."""
    parsed = parse(BROKEN)
    assert examine(parsed, START).problems == parsed.problems
    host = (
        b"version: 1\nnetworks: {a: {cidr: 10.0.0.0/8, plane: admin}, c: {cidr: 10.1.0.0/16, plane: inference},"
        b" l: {interface: eth7}}\n"
    )
    found = examine(parse({**BROKEN, "penstock.yaml": host}), START, Surroundings(frozenset({"lo"})))
    assert found.policy is None
    assert {problem.code for problem in found.problems} >= {"plane-overlap", "no-interface"}
    assert len(found.problems) == len(parsed.problems) + 2


@pytest.mark.parametrize(
    ("more", "egress", "fit", "severities"),
    [
        (b"tests: [egress 192.0.2.1:1 allow]\n", b"[]", False, ["error"]),
        (b"tests: [egress 192.0.2.1:1 deny]\n", b"[]", True, []),
        (b"match: {unit: a.service}\n", b"[]", True, []),
        (b"match: {container: a}\n", b"[]", True, ["warning"]),
        (b"", b"[{to: pypi.org}]", True, []),
    ],
)
def test_what_counts(more: bytes, egress: bytes, fit: bool, severities: list[str]) -> None:
    assert checked(more, egress) == (fit, severities)


def test_a_preset_alone() -> None:
    text = b"version: 1\npreset: p\ntitle: t\nsource: s\ndate: 2026-11-01\n"
    text += b"egress: [{to: stats.org}, {to: '*.com'}]\nknown: [{name: stats.org, kind: telemetry, text: t}]\n"
    part = parse_file("p.yaml", text).part
    assert isinstance(part, Preset)
    found = [(problem.code, str(problem.place)) for problem in examine_preset(part, START)]
    assert ("known-name", "p.yaml:6:10") in found
    assert ("shared-suffix", "p.yaml:6:27") in found
