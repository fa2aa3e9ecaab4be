"""Rules: ids that stay, ends in time, bounded lists."""

from datetime import UTC, datetime, timedelta

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
