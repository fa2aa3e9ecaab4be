"""Rules that are in no file yet, judged as if they were: by `lint`, and by the `tests:` of the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from penstock.core.coverage import Cover
from penstock.core.lint import lint
from penstock.core.policy import Direction, Policy, Rule
from penstock.core.sentences import failures
from penstock.core.wishes import LAST

_NOTED = frozenset({"two-planes", "proxy", "one-sided"})
"""Codes of lint that a person decides about; a rule of which lint says anything else is refused."""
_COVERED = "no-effect"
TEST = "test"
"""The code for what a test of the files forbids."""


@dataclass(frozen=True, slots=True)
class Remark:
    """What there is to say about a rule.  `hard`: it shall not be.

    `by`: it is the rule of that number among those judged with it that says so already.
    """

    code: str
    text: str
    hard: bool
    by: int | None = None


class Trial:
    """Beside the rules of one workload of a policy."""

    def __init__(self, policy: Policy, workload: str, now: datetime) -> None:
        self._policy, self._workload, self._now = policy, workload, now
        self._failing = {problem.place for problem in failures(policy, now)}

    def remarks(self, rules: Sequence[Rule]) -> list[list[Remark]]:
        """About each of them; `rules` are in `LAST`, the first in line 1."""
        found: list[list[Remark]] = [[] for _ in rules]
        for problem in lint(self._with(rules), self._now):
            if problem.place.file == LAST:
                number = problem.place.line - 1
                hard = problem.severity == "error" or problem.code not in _NOTED
                remedy = f"; {problem.hint}" if hard or problem.code == "one-sided" else ""
                by = self._covering(rules, number) if problem.code == _COVERED else None
                found[number].append(Remark(problem.code, problem.message + remedy, hard, by))
        if self.broken(rules):
            for rule, remarks in zip(rules, found, strict=True):
                if broken := self.broken([rule]):
                    remarks.append(Remark(TEST, broken, hard=True))
        return found

    def _covering(self, rules: Sequence[Rule], number: int) -> int | None:
        mine = rules[number]
        for n, other in enumerate(rules[:number]):
            if (other.direction, other.ports) == (mine.direction, mine.ports):
                cover = Cover(self._policy, other.peers)
                if all(cover.holds(peer) for peer in mine.peers):
                    return n
        return None

    def broken(self, rules: Sequence[Rule]) -> str:
        """What of the files' `tests:` these rules would break, in words; empty when nothing."""
        for problem in failures(self._with(rules), self._now):
            if problem.place not in self._failing:
                return f"a test of the file forbids it, line {problem.place.line}: {problem.message}"
        return ""

    def _with(self, rules: Sequence[Rule]) -> Policy:
        mine = self._policy.workloads[self._workload]
        egress = tuple(rule for rule in rules if rule.direction is Direction.OUT)
        ingress = tuple(rule for rule in rules if rule.direction is Direction.IN)
        mine = replace(mine, egress=(*mine.egress, *egress), ingress=(*mine.ingress, *ingress))
        return replace(self._policy, workloads={**self._policy.workloads, mine.name: mine})
