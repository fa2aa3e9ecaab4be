"""One mistake, or one unwise thing, in the files of an operator: where, what, and what to write instead."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from penstock.core.policy import Place

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """`message` and `hint` are plain one-line text: whoever put foreign text in has escaped it."""

    place: Place
    severity: Severity
    code: str  # stable, for scripts
    message: str
    hint: str

    def line(self) -> str:
        """`PATH:LINE:COLUMN: error|warning: TEXT; HINT`, as `penstock check` prints it."""
        text = f"{self.message}; {self.hint}" if self.hint else self.message
        return f"{self.place}: {self.severity}: {text}"

    def as_json(self) -> dict[str, str | int]:
        """The object that `penstock check --json` prints."""
        return {
            "file": self.place.file,
            "line": self.place.line,
            "column": self.place.column,
            "severity": self.severity,
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
        }


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Sorted by place, then text; said once each."""
    return tuple(sorted(set(problems), key=lambda p: (p.place, p.severity, p.message, p.hint, p.code)))


def any_error(problems: Iterable[Problem]) -> bool:
    """Whether one of them is an error."""
    return any(problem.severity == "error" for problem in problems)
