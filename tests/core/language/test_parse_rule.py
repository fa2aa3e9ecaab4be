"""Rules: ids that stay, ends in time, bounded lists."""

from datetime import UTC, datetime, timedelta

import pytest

from penstock.core.language.parse_rule import MAX_RULES, Use, read_rules
from penstock.core.language.reading import Reader
from penstock.core.language.yaml_nodes import read
from penstock.core.policy import Direction, Rule


def rules(text: str, direction: Direction = Direction.OUT) -> tuple[list[Rule], list[str]]:
    reader, root = Reader("f"), read("f", text.encode()).root
    assert root is not None
    found = read_rules(reader, root, direction)
    return [rule for rule in found if not isinstance(rule, Use)], [problem.code for problem in reader.problems]


def test_ids_follow_what_a_rule_says_and_nothing_else() -> None:
    (plain,), _ = rules("- {to: [10.0.0.1, a.org], ports: [443]}")
    (same,), _ = rules(
        "# moved\n\n- {ports: ['443/tcp'], reason: x, to: [A.org, 10.0.0.1/32], expires: 2030-01-01}"
    )
    (other,), _ = rules("- {to: [10.0.0.1, a.org], ports: [444]}")
    assert plain.id == same.id == "egress-be7a6c28"
    assert other.id != plain.id


def test_nobody_is_a_source_and_no_destination() -> None:
    (nobody,), codes = rules("- {from: [], ports: [80]}", Direction.IN)
    assert (nobody.peers, codes) == ((), [])
    assert rules("- {to: [], ports: [80]}") == ([], ["rule"])


def test_a_date_is_the_end_of_that_day_here() -> None:
    (rule,), _ = rules("- {to: a.org, expires: 2026-12-31}")
    assert rule.expires == datetime(2027, 1, 1).astimezone()
    (rule,), _ = rules('- {to: a.org, expires: "2026-12-31T10:00:00-02:00"}')
    assert rule.expires == datetime(2026, 12, 31, 12, tzinfo=UTC)
    assert rule.expires.utcoffset() == timedelta(0)
    for wrong in ("9999-12-31", "tomorrow", '"2026-12-31T10:00:00"', "2026-13-01"):
        assert rules(f"- {{to: a.org, expires: {wrong}}}") == ([], ["expires"])


def test_lists_are_bounded() -> None:
    found, codes = rules("".join(f"- to: a{n}.org\n" for n in range(MAX_RULES + 5)))
    assert (len(found), codes) == (MAX_RULES, ["too-many-rules"])
    assert rules("- {to: a.org, reason: " + "x" * 501 + "}") == ([], ["reason"])


def test_keys_of_the_other_list() -> None:
    assert rules("- {from: a, ports: [1]}")[1] == ["unknown-key", "rule"]
    assert rules("- {use: x, from: a}", Direction.IN)[1] == ["unknown-key", "rule"]


def test_an_override_names_what_it_sets_aside_and_why() -> None:
    (rule,), codes = rules("- {from: a, ports: [1], override: admin-port, reason: x}", Direction.IN)
    assert (rule.override, codes) == (("admin-port",), [])
    (both,), _ = rules("- {from: a, ports: [1], override: [two-planes, admin-port], reason: x}", Direction.IN)
    assert both.override == ("admin-port", "two-planes")
    (plain,), _ = rules("- {from: a, ports: [1]}", Direction.IN)
    assert plain.override == ()
    assert plain.id == rule.id == both.id, "what is let in is the same"


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("override: admin-port", "write `reason:` and why it is safe here, for whoever asks later"),
        ("override: admin-ports, reason: x", "did you mean `admin-port`?"),
        ("override: wide-open, reason: x", "only admin-port and two-planes can be"),
        ("override: [admin-port, admin-port], reason: x", "keep one of them"),
        ("override: [], reason: x", "leave it out"),
        ("override: [[admin-port]], reason: x", "write one text"),
        ("override: {admin-port: x}, reason: x", "write one value or a list of values"),
    ],
)
def test_an_override_that_is_none(written: str, hint: str) -> None:
    reader, root = Reader("f"), read("f", f"- {{from: a, ports: [1], {written}}}".encode()).root
    assert root is not None
    assert read_rules(reader, root, Direction.IN) == ()
    assert [(p.severity, p.hint) for p in reader.problems] == [("error", hint)]


def test_egress_overrides_nothing() -> None:
    assert rules("- {to: a.org, override: admin-port, reason: x}")[1] == ["unknown-key"]
