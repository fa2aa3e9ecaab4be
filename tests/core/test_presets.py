"""What a workload that uses presets is known to ask."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.core.lookups import METADATA_NAMES
from penstock.core.parse import Parsed, parse, parse_file
from penstock.core.policy import Known
from penstock.core.presets import EVERYWHERE, Kind, Origin, Preset, entries_of, overlap

HEAD = "version: 1\npreset: {}\ntitle: {} itself\nsource: s\ndate: 2026-11-01\n"
HUB = HEAD.format("hub", "hub") + """egress:
  - {to: [hub.org, "*.cdn.org"], name: a}
  - {to: 10.0.0.1, ports: [1]}
known:
  - {name: stats.org, kind: telemetry, text: reports of the hub}
"""
SERVER = HEAD.format("server", "server") + """egress: []
known:
  - {name: stats.org, kind: other, text: also asked by the server}
  - {name: update.org, kind: other, text: whether it is new}
"""
AIRGAP = HEAD.format("airgap", "airgap") + "egress: []\nknown: all\n"
PRESETS = {"hub.yaml": HUB, "server.yaml": SERVER, "airgap.yaml": AIRGAP}


def parsed(*uses: str, presets: dict[str, str] = PRESETS) -> Parsed:
    rules = "".join(f"  - use: {use}\n" for use in uses)
    text = f"version: 1\nworkload: w\nmode: enforce\negress:\n{rules}ingress: []\n"
    return parse({"rules.d/w.yaml": text.encode()}, {path: data.encode() for path, data in presets.items()})


def known(*uses: str) -> tuple[Known, ...]:
    policy = parsed(*uses).policy
    assert policy, parsed(*uses).problems
    return policy.workloads["w"].known


def everywhere(preset: str) -> tuple[Known, ...]:
    return tuple(replace(entry.known, preset=preset) for entry in EVERYWHERE)


def test_of_one_preset_and_what_every_preset_knows() -> None:
    assert known("hub") == (Known("stats.org", Kind.TELEMETRY, "reports of the hub", "hub"), *everywhere("hub"))


def test_of_two_presets_a_pattern_once() -> None:
    first = Known("stats.org", Kind.OTHER, "also asked by the server", "server")
    second = Known("update.org", Kind.OTHER, "whether it is new", "server")
    assert known("server", "hub") == (first, second, *everywhere("server"))


def test_a_workload_without_presets_knows_nothing() -> None:
    policy = parse({"rules.d/w.yaml": b"version: 1\nworkload: w\nmode: enforce\negress: []\ningress: []\n"}).policy
    assert policy
    assert policy.workloads["w"].known == ()


def test_airgap_knows_what_all_know_and_open() -> None:
    policy = parsed("airgap").policy
    assert policy
    assert policy.workloads["w"].egress == ()
    found = {one.pattern: one for one in policy.workloads["w"].known}
    assert found["stats.org"] == Known("stats.org", Kind.TELEMETRY, "reports of the hub", "hub")
    # It is not the hub's preset that leaves the hub closed.
    assert found["hub.org"] == Known("hub.org", Kind.OTHER, "hub itself (preset hub opens it)", "airgap")
    assert found["*.cdn.org"].preset == "airgap"
    assert {entry.known.pattern for entry in EVERYWHERE} < set(found)
    assert len(found) == len(EVERYWHERE) + 4


def test_airgap_says_of_a_metadata_name_what_it_is_and_not_who_asks_it() -> None:
    asks = "  - {name: metadata.goog, kind: metadata, text: the server asks where it is}\n"
    presets = {**PRESETS, "server.yaml": SERVER + asks}
    neutral = "the metadata service of Google Cloud"
    for use, text in (("server", "the server asks where it is"), ("airgap", neutral)):
        policy = parsed(use, presets=presets).policy
        assert policy
        (found,) = (one for one in policy.workloads["w"].known if one.pattern == "metadata.goog")
        assert (found.preset, found.text.startswith(text)) == (use, True)


def test_every_preset_knows_the_metadata_services_and_the_calls_of_libraries() -> None:
    kinds = {entry.known.pattern: entry.known.kind for entry in EVERYWHERE}
    assert {name for name, kind in kinds.items() if kind is Kind.METADATA} == METADATA_NAMES
    reports = {name for name, kind in kinds.items() if kind is Kind.TELEMETRY}
    assert reports >= {"t.bentoml.com", "config.mlflow-telemetry.io", "api.gradio.app"}
    assert kinds["marimo.io"] is Kind.OTHER
    assert all(entry.origin.source and entry.origin.date for entry in EVERYWHERE)


def test_where_each_was_seen() -> None:
    read = {path: parse_file(path, data.encode()).part for path, data in PRESETS.items()}
    every = {part.name: part for part in read.values() if isinstance(part, Preset)}
    changed = replace(every["hub"].openings[0], origin=Origin("seen", "2026-10-01"))
    every["hub"] = replace(every["hub"], openings=(changed,))
    found = {entry.known.pattern: entry.origin for entry in entries_of([every["airgap"]], every)}
    assert found["*.cdn.org"] == Origin("seen", "2026-10-01")
    assert found["stats.org"] == Origin("s", "2026-11-01")


def test_a_policy_with_airgap_has_another_hash_when_any_preset_changes() -> None:
    changed = {**PRESETS, "hub.yaml": HUB.replace("reports", "news")}
    before, after = parsed("airgap").policy, parsed("airgap", presets=changed).policy
    assert before
    assert after
    assert before.hash != after.hash
    unused = parsed("server"), parsed("server", presets=changed)
    assert unused[0].policy == unused[1].policy


@pytest.mark.parametrize("use", ["hub", "airgap"])
def test_mistakes_of_a_preset_in_use_are_told_at_their_place(use: str) -> None:
    broken = {**PRESETS, "hub.yaml": HUB.replace("kind: telemetry", "kind: x")}
    found = parsed(use, presets=broken)
    assert found.policy is None
    assert "presets/hub.yaml:10:29: error: `kind` is `x`; write telemetry, metadata or other" in [
        problem.line() for problem in found.problems
    ]
    assert parsed("server", presets=broken).policy is not None


def test_a_preset_that_cannot_be_read_is_told() -> None:
    lines = [problem.line() for problem in parsed("hub", presets={"hub.yaml": "version: 1\n"}).problems]
    assert "presets/hub.yaml:1:1: error: the file is no preset; write `preset: NAME` and what it opens" in lines
    lines = [problem.line() for problem in parsed("airgap", presets={**PRESETS, "x.yaml": ""}).problems]
    assert "presets/x.yaml:1:1: error: the file is empty; write `version: 1`, or remove the file" in lines


def test_two_files_that_say_the_same_name() -> None:
    twice = {**PRESETS, "mine.yaml": HUB}
    (problem,) = parsed("hub", presets=twice).problems
    assert str(problem.place) == "presets/mine.yaml:2:9"
    assert problem.message == "the preset `hub` is also in hub.yaml"
    assert parsed("server", presets=twice).policy is not None


def test_a_preset_twice() -> None:
    assert [problem.line() for problem in parsed("server", "server").problems] == [
        "rules.d/w.yaml:6:5: error: the preset `server` is there twice; keep one of them"
    ]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a.org", "a.org", True),
        ("a.org", "b.org", False),
        ("*.org", "a.org", True),
        ("*.a.org", "a.org", False),
        ("*.a.org", "*.org", True),
        ("*.a.org", "*.b.org", False),
        ("*.xa.org", "*.a.org", False),
    ],
)
def test_overlap(one: str, other: str, expected: bool) -> None:
    assert overlap(one, other) == overlap(other, one) == expected
