"""Problems as the daemon sends them."""

from __future__ import annotations

from pathlib import Path

from penstock.cli.problem_text import lines
from penstock.core.policy import Place
from penstock.core.problems import Problem


def test_as_check_prints_them() -> None:
    problem = Problem(Place("rules.d/w.yaml", 3, 5), "warning", "wide", "opens much", "less")
    assert lines([problem.as_json()], None) == [problem.line()]
    (line,) = lines([problem.as_json()], Path("/etc/penstock"))
    assert line == f"/etc/penstock/{problem.line()}"


def test_a_path_that_is_whole_stays() -> None:
    problem = Problem(Place("/a/w.yaml", 3, 5), "error", "wide", "opens much", "")
    assert lines([problem.as_json()], Path("/etc/penstock")) == [problem.line()]
