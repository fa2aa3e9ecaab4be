"""Every key of a preset file, and every mistake with its place."""

from __future__ import annotations

import pytest

from penstock.core.language.parse_preset import MAX_KNOWN, MAX_UNITS, wrong_url
from penstock.core.parse import parse_file
from penstock.core.policy import Known, NamePeer, PortRange, Ports
from penstock.core.presets import Kind, KnownName, Origin, Preset, Purpose

HEAD = "version: 1\npreset: hub\ntitle: a hub\nsource: seen\ndate: 2026-11-24\n"
EMPTY = HEAD + "egress: []\n"


def read(text: str) -> Preset:
    result = parse_file("hub.yaml", text.encode())
    assert result.problems == ()
    assert isinstance(result.part, Preset)
    return result.part


def lines(text: str) -> list[str]:
    """`LINE:COLUMN: SEVERITY: TEXT; HINT` of each problem."""
    problems = parse_file("hub.yaml", text.encode()).problems
    return [problem.line().removeprefix("hub.yaml:") for problem in problems]


def test_everything() -> None:
    preset = read(
        HEAD
        + """published: https://a.org/names.json
egress:
  - {name: api, to: [a.org, "*.b.org"], for: serve, source: measured, date: 2026-01-02}
  - {to: c.org, for: pull}
  - {to: 10.0.0.1, ports: [443]}
known:
  - {name: "*.stats.org.", kind: telemetry, text: "usage\\nreports", date: 2026-01-03}
ports: {inference: [8000, 8001/udp], admin: [9000]}
recognise: {server: vllm, units: ["hub@*.service"]}
"""
    )
    assert (preset.name, preset.title, preset.origin) == ("hub", "a hub", Origin("seen", "2026-11-24"))
    first, second, third = preset.openings
    assert first.rule.peers == (NamePeer("a.org"), NamePeer("*.b.org"))
    assert (first.purpose, first.origin, first.own) == (Purpose.SERVE, Origin("measured", "2026-01-02"), True)
    assert (second.purpose, second.origin, second.own) == (Purpose.PULL, preset.origin, False)
    assert third.purpose is None
    known = Known("*.stats.org", Kind.TELEMETRY, "usage reports", "hub")
    assert preset.known == (KnownName(known, Origin("seen", "2026-01-03")),)
    assert preset.inference == Ports((PortRange("tcp", 8000, 8000), PortRange("udp", 8001, 8001)))
    assert preset.admin == Ports((PortRange("tcp", 9000, 9000),))
    assert (preset.server, preset.units) == ("vllm", ("hub@*.service",))
    assert preset.published == "https://a.org/names.json"
    assert not preset.knows_all
    assert preset.place.line == 2


def test_nothing_and_all() -> None:
    preset = read(EMPTY + "known: all\n")
    assert (preset.openings, preset.known, preset.knows_all) == ((), (), True)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("knwon: []", "7:1: error: a preset has no key `knwon`; did you mean `known`?"),
        ("mode: enforce", "7:1: error: a preset has no key `mode`; it belongs into the file of a workload"),
        ("recognize: {}", "7:1: error: a preset has no key `recognize`; did you mean `recognise`?"),
        ("known: some", "7:8: error: `known` is one value and must be a list; write `[{name: NAME, kind: "
         "telemetry, text: WHAT IT IS}]`, or `all`"),
        ("known: [{to: a.org, kind: other, text: x}]", "7:10: error: an entry of `known` has no key `to`; "
         "did you mean `name`?"),
        ("known: [{name: a.org, kind: telemetry}]", "7:9: error: `text` is missing; write {name: NAME, "
         "kind: telemetry, text: WHAT IT IS}"),
        ("known: [{name: a.org, kind: telemetri, text: x}]", "7:29: error: `kind` is `telemetri`; did you "
         "mean `telemetry`?"),
        ("known: [{name: a.org, kind: x, text: x}]", "7:29: error: `kind` is `x`; write telemetry, "
         "metadata or other"),
        ("known: [{name: 'https://a.org', kind: other, text: x}]", "7:16: error: `https://a.org`: a label "
         "holds letters, digits, `-` and `_`, and neither starts nor ends with `-`; check the name"),
        ("known: [{name: a.org, kind: other, text: x}, {name: A.org, kind: other, text: z}]",
         "7:46: error: `a.org` is there twice; keep one of them"),
        ("ports: {other: [1]}", "7:9: error: `ports` of a preset has no key `other`; known are inference, "
         "admin"),
        ("ports: {admin: 80}", "7:16: error: `ports` is one value and must be a list; write `ports: [80]`"),
        ("recognise: {server: vlm}", "7:21: error: there is no known server `vlm`; did you mean `vllm`?"),
        ("recognise: {units: [hub]}", "7:21: error: `hub`: a unit's name ends in its kind; write "
         "hub.service"),
        ("recognise: {units: hub.service}", "7:20: error: `units` is one value and must be a list; write "
         "`[NAME.service]`"),
        ("published: http://a.org/", "7:12: error: `http://a.org/`: only https is asked; write "
         "https://NAME/PATH"),
    ],
)  # fmt: skip
def test_mistakes(more: str, told: str) -> None:
    assert told in lines(EMPTY + more + "\n")


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("{to: a.org, for: push}", "7:22: error: `for` is `push`; write pull or serve"),
        ("{to: a.org, date: yesterday}", "7:23: error: `yesterday` is no date; write the day it was seen, "
         "such as 2026-11-24"),
        ("{to: clients, ports: [1]}", "7:5: error: a preset cannot name the network `clients`; write names "
         "and addresses only"),
        ("{to: workload:w, ports: [1]}", "7:5: error: a preset cannot name the workload `w`; write names "
         "and addresses only"),
        ("{use: other}", "7:5: error: a preset cannot use another one (`other`); copy its rules"),
        ("{use: other, for: pull}", "7:5: error: a preset cannot use another one (`other`); copy its rules"),
        ("{to: a.org, fro: pull}", "7:17: error: an egress rule has no key `fro`; did you mean `for`?"),
    ],
)  # fmt: skip
def test_mistakes_in_a_rule(rule: str, told: str) -> None:
    assert lines(f"{HEAD}egress:\n  - {rule}\n") == [told]


@pytest.mark.parametrize("key", ["title", "source", "date"])
def test_what_must_be_there(key: str) -> None:
    text = "".join(line for line in EMPTY.splitlines(True) if not line.startswith(key))
    hint = "a preset says what it is, where it was seen and when"
    assert lines(text) == [f"1:1: error: `{key}` is missing; {hint}"]


@pytest.mark.parametrize("date", ["2026-02-30", "24.11.2026", "20261124", "2026-1-2", "20260-1-01"])
def test_no_date(date: str) -> None:
    (told,) = lines(EMPTY.replace("2026-11-24", date))
    assert told.startswith(f"5:7: error: `{date}` is no date")


def test_bounds() -> None:
    known = "".join(f"  - {{name: a{n}.org, kind: other, text: x}}\n" for n in range(MAX_KNOWN + 1))
    units = ", ".join(f"a{n}.service" for n in range(MAX_UNITS + 1))
    told = lines(f"{EMPTY}known:\n{known}recognise: {{units: [{units}]}}\n" + f"published: {'x' * 501}\n")
    assert [line.partition("error: ")[2].partition(";")[0] for line in told][:2] == [
        f"more than {MAX_KNOWN:,} names in `known`",
        f"more than {MAX_UNITS} units",
    ]
    (told_of_title,) = lines(EMPTY.replace("a hub", "x" * 501))
    assert "`title` has more than 500 characters" in told_of_title


def test_a_rule_of_a_workload_has_no_purpose() -> None:
    text = "version: 1\nworkload: w\nmode: enforce\negress: [{to: a.org, for: pull}]\ningress: []\n"
    assert lines(text) == [
        "4:22: error: an egress rule has no key `for`; only a preset says what a rule is for; write it into "
        "`reason`"
    ]


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("https://a.org/.well-known/meta.json", ""),
        ("https://a.org:443/", ""),
        ("https://a.org:8443/", "only port 443 is asked"),
        ("https://a.org:99999/", "this is no URL"),
        ("https://[::1/", "this is no URL"),
        ("https://user@a.org/", "a user or a `#` does not belong there"),
        ("https://a.org/#x", "a user or a `#` does not belong there"),
        ("https://10.0.0.1/", "a name cannot end in a number"),
        ("https:///x", "a label of a name is empty"),
        ("file:///etc/passwd", "only https is asked"),
        ("https://a.org/\u00e4", "a URL is plain text without blanks"),
        ("https://a.org/a b", "a URL is plain text without blanks"),
    ],
)
def test_urls(url: str, wrong: str) -> None:
    if url == "https:///x":
        assert wrong_url(url)
    else:
        assert wrong_url(url) == wrong
