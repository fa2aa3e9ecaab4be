"""Prometheus's text exposition format 0.0.4, read as strictly as it is written down, and something
to be written: for tests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from penstock.core.metrics import Facts, Tally

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"')
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]\d+)?|NaN|[+-]Inf")
TYPES = {"counter", "gauge"}

WORKLOAD = {
    "name": "a",
    "mode": "enforce",
    "egress": "enforcing",
    "enrolment": "slice",
    "processes": 2,
    "outside": 0,
    "unlogged": 7,
}
GRANT = {"id": "grant-0123abcd", "workload": "a", "owner": "anna", "until": "2026-03-01T12:30:00Z"}
FINDING = {"code": "root", "severity": "info"}
STATUS: dict[str, Any] = {
    "time": "2026-03-01T12:00:00Z",
    "daemon": {"since": "2026-03-01T11:00:00Z", "version": "1.0"},
    "policy": {"hash": "0123", "applied": "2026-03-01T11:00:01Z", "confirm_until": None},
    "kernel": {"backend": "nft", "agrees": True, "checked": "2026-03-01T11:59:58Z"},
    "workloads": [WORKLOAD],
    "grants": [GRANT],
    "findings": [FINDING, FINDING, {**FINDING, "code": "outside", "severity": "error"}],
}
FACTS = Facts(
    denied={("a", "out"): Tally(5, 300)},
    rules={("a", "out", "egress-1"): Tally(11, 1100)},
    uncounted=3,
    lost=1,
    malformed=2,
    learned={"a": 4},
)
"""With these each metric has a sample."""


@dataclass
class Family:
    """One metric."""

    help: str
    kind: str
    samples: dict[frozenset[tuple[str, str]], float] = field(default_factory=dict)


def parse(data: bytes) -> dict[str, Family]:
    """All metrics by name; AssertionError for anything that a reader may refuse, or we never mean to write."""
    text = data.decode("utf-8")
    assert text.endswith("\n"), "the last line needs its end"
    families: dict[str, Family] = {}
    name = ""
    lines = iter(text.removesuffix("\n").split("\n"))
    for line in lines:
        assert "\r" not in line
        if line.startswith("# HELP "):
            name, help = line.removeprefix("# HELP ").split(" ", 1)
            assert NAME.fullmatch(name), line
            assert name not in families, f"{name} twice"
            assert "\\" not in help
            assert help
            kind = next(lines).removeprefix(f"# TYPE {name} ")
            assert kind in TYPES, kind
            assert (kind == "counter") == name.endswith("_total"), f"{name} is a {kind}"
            families[name] = Family(help, kind)
            continue
        labels, value = _sample(line, name)
        assert labels not in families[name].samples, f"twice: {line}"
        families[name].samples[labels] = value
    assert all(family.samples for family in families.values())
    return families


def _sample(line: str, name: str) -> tuple[frozenset[tuple[str, str]], float]:
    assert line.startswith(name), f"{line!r} is not of {name!r}"
    rest = line[len(name) :]
    found: dict[str, str] = {}
    if rest.startswith("{"):
        place = 1
        while rest[place] != "}":
            label = LABEL.match(rest, place)
            assert label, line
            assert label[1] not in found, line
            found[label[1]] = re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), label[2])
            place = label.end() + (rest[label.end()] == ",")
        rest = rest[place + 1 :]
    assert rest.startswith(" "), line
    assert NUMBER.fullmatch(rest[1:]), line
    return frozenset(found.items()), float(rest[1:])


def value(families: dict[str, Family], metric: str, **labels: str) -> float:
    """The one sample that has these labels, among others."""
    wanted = set(labels.items())
    [found] = [number for said, number in families[metric].samples.items() if wanted <= said]
    return found
