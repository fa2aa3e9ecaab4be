"""How a mistake is printed."""

from penstock.core.policy import Place
from penstock.core.problems import Problem, any_error, in_order

WRONG = Problem(Place("f", 3, 4), "error", "c", "is wrong", "write right")
ODD = Problem(Place("f", 1, 2), "warning", "d", "is odd", "")


def test_line_and_json() -> None:
    assert WRONG.line() == "f:3:4: error: is wrong; write right"
    assert ODD.line() == "f:1:2: warning: is odd"
    assert WRONG.as_json() == {
        "file": "f", "line": 3, "column": 4, "severity": "error", "code": "c", "message": "is wrong",
        "hint": "write right"}  # fmt: skip


def test_order() -> None:
    assert in_order([WRONG, ODD, WRONG]) == (ODD, WRONG)
    assert any_error([ODD, WRONG])
    assert not any_error([ODD])
