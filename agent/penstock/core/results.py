"""What the engine says of a start, an apply and a repair: to whoever asked, and to the journal."""

from __future__ import annotations

from collections.abc import Iterable

from penstock.core.effects import Journal
from penstock.core.problems import Problem
from penstock.core.view import InForce
from penstock.core.wire import Json


def applied(in_force: InForce, problems: tuple[Problem, ...], changed: bool, seconds: float) -> Json:
    """The answer to `apply` when the files are in force."""
    return {
        "changed": changed,
        "hash": in_force.policy.hash,
        "workloads": len(in_force.policy.workloads),
        "problems": [problem.as_json() for problem in problems],
        "seconds": round(seconds, 3),
    }


def refused(in_force: InForce | None, problems: tuple[Problem, ...]) -> Json:
    """The answer to `apply` when the files have errors."""
    current = in_force.policy.hash if in_force else None
    return {
        "changed": False,
        "refused": True,
        "hash": current,
        "problems": [problem.as_json() for problem in problems],
    }


def news(kind: str, policy_hash: str, seconds: float) -> Journal:
    """What the journal says when an operation of that kind ended well."""
    match kind:
        case "repair":
            return Journal("warning", f"repaired in {seconds:.2f} s")
        case "expiry":
            return Journal("info", f"rules that are over were removed in {seconds:.2f} s")
        case _:
            return Journal("info", f"policy {policy_hash} is in force after {seconds:.2f} s")


def nothing_to_start(problems: Iterable[Problem]) -> str:
    """Why the daemon ends: the files have errors, and nothing else is there."""
    return f"the configuration has errors, and no policy was applied before:\n{_lines(problems)}"


def not_understood(problems: Iterable[Problem]) -> str:
    """Why the daemon ends: another version applied what this one cannot read."""
    return f"the applied policy is not understood by this version:\n{_lines(problems)}"


def _lines(problems: Iterable[Problem]) -> str:
    return "\n".join(problem.line() for problem in problems)
