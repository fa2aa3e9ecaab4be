"""What a policy means for units that run."""

from __future__ import annotations

import json

import pytest

from penstock.core.match import Unit
from penstock.core.parse import parse
from penstock.core.policy import Policy
from penstock.core.restarts import Home, Restart, Units, as_json, restarts, template_of


def policy(**matches: str) -> Policy:
    files = {
        f"rules.d/{name}.yaml": f"version: 1\nworkload: {name}\nmode: enforce\nmatch: {{unit: '{unit}'}}\n"
        "egress: []\ningress: []\n"
        for name, unit in matches.items()
    }
    parsed = parse({name: text.encode() for name, text in files.items()})
    assert parsed.policy, parsed.problems
    return parsed.policy


def told(old: Policy | None, new: Policy, units: Units) -> list[tuple[str, str, str, str]]:
    return [(one.unit, one.workload, one.text, one.command) for one in restarts(old, new, units)]


def outside(*names: str, **homes: Home) -> Units:
    by_unit = {f"{name}.service": home for name, home in homes.items()}
    return Units(tuple(Unit(name, f"system.slice/{name}", 5) for name in names), {}, by_unit)


NOW = "governed where it is at once"
A = policy(a="a.service")


def test_a_new_workload() -> None:
    text = f"{NOW}; its slice at its next restart"
    expected = [("a.service", "a", text, "systemctl restart a.service")]
    assert told(None, A, outside("a.service", "b.service", a=Home("a", pending=True))) == expected
    assert told(None, A, outside("a.service", a=Home("a"))) == expected
    protect = [("a.service", "a", f"{NOW}; to give it a slice", "penstock protect a.service")]
    assert told(None, A, outside("a.service")) == protect
    other = f"{NOW}, but its drop-in 50-penstock.conf puts it into the slice of x at its next restart"
    assert told(None, A, outside("a.service", a=Home("x"))) == [("a.service", "a", other, "")]


def test_a_scope_has_no_slice_of_its_own_to_come() -> None:
    assert told(None, policy(a="run-*.scope"), outside("run-5.scope")) == [("run-5.scope", "a", NOW, "")]


def test_what_is_as_before_is_not_told_again() -> None:
    assert told(A, A, outside("a.service")) == []
    assert told(A, A, outside("a.service", a=Home("a"))) == []
    (found,) = told(A, A, outside("a.service", a=Home("a", pending=True)))
    assert found[3] == "systemctl restart a.service"
    assert told(A, A, Units(inside={"a.service": "a"})) == []


def test_instances_of_a_template() -> None:
    place = "system.slice/system-v.slice/v@1.service"
    units = Units((Unit("v@1.service", place, 5),), {}, {"v@.service": Home("v")})
    assert told(None, policy(v="v@*.service"), units)[0][3] == "systemctl restart v@1.service"


@pytest.mark.parametrize(
    ("unit", "template"),
    [("v@1.service", "v@.service"), ("v@a@b.service", "v@.service"), ("v.service", ""), ("v@1", ""), ("", "")],
)
def test_template_of(unit: str, template: str) -> None:
    assert template_of(unit) == template


def test_a_workload_that_goes() -> None:
    units = Units((Unit("a.service", "system.slice/a.service", 5),), {"b.service": "b"})
    found = told(policy(a="a.service", b="b.service"), policy(), units)
    assert found == [
        ("a.service", "", "no longer governed: it belonged to a", ""),
        (
            "b.service",
            "",
            "stays in the slice of b, which has no rules then, and may reach nothing, until its drop-in "
            "50-penstock.conf is removed and it is restarted",
            "",
        ),
    ]


def test_a_unit_that_another_workload_matches_then() -> None:
    old, new = policy(a="x.service", b="b.service"), policy(a="a.service", b="x.service")
    (found,) = told(old, new, Units(inside={"x.service": "a"}))
    assert found[1:3] == (
        "a",
        "stays in the slice of a, whatever `match` says, until its drop-in 50-penstock.conf is changed and it is "
        "restarted",
    )
    (found,) = told(old, new, outside("x.service"))
    assert found[:2] == ("x.service", "b")


def test_json() -> None:
    assert as_json(None) is None
    found = as_json((Restart("a.service", "a", "t", "c"), Restart("b.service", "", "u")))
    assert json.loads(json.dumps(found)) == [
        {"unit": "a.service", "workload": "a", "text": "t", "command": "c"},
        {"unit": "b.service", "workload": None, "text": "u", "command": None},
    ]
