"""What the engine says of a start, an apply and a repair: to whoever asked, and to the journal."""

from __future__ import annotations

from collections.abc import Iterable

from penstock.core.effects import Answer, Effect, Journal, Notify, Quit
from penstock.core.problems import Problem
from penstock.core.text import time_text
from penstock.core.view import InForce, Operation, Trial
from penstock.core.wire import Json

LENDING = ("grant", "mode", "revoke")
"""Operations about which whoever lends has the words."""


def of(operation: Operation, in_force: InForce, trial: Trial | None, seconds: float) -> list[Effect]:
    """What is said when an operation ended well."""
    told: list[Effect] = []
    if operation.kind in LENDING:
        return []
    if operation.request is not None:
        told.append(Answer(operation.request, _answer(operation, in_force, trial, seconds)))
    if operation.kind != "enrol":
        asked = operation.kind == "revert" and operation.request is not None
        told.append(news("rollback" if asked else operation.kind, in_force.policy.hash, seconds))
    if operation.kind not in ("repair", "enrol", "expiry", "jump", "upstreams"):
        waits = ", not confirmed yet" if trial else ""
        text = f"STATUS=policy {in_force.policy.hash} is in force{waits}"
        told.append(ready(in_force) if operation.kind == "start" else Notify(text))
    return told


def ready(in_force: InForce) -> Notify:
    """What the service manager waits for."""
    return Notify(f"READY=1\nSTATUS=policy {in_force.policy.hash} is in force")


def _answer(operation: Operation, in_force: InForce, trial: Trial | None, seconds: float) -> Json:
    match operation.kind:
        case "confirm":
            return {"confirmed": True, "hash": in_force.policy.hash}
        case "rollback" | "revert":
            return rolled_back(in_force, changed=True, seconds=seconds)
        case _:
            return applied(in_force, operation.problems, not operation.same, seconds, trial)


def applied(
    in_force: InForce,
    problems: tuple[Problem, ...],
    changed: bool,
    seconds: float,
    trial: Trial | None = None,
) -> Json:
    """The answer to `apply` when the files are in force."""
    return {
        "changed": changed,
        "hash": in_force.policy.hash,
        "workloads": len(in_force.policy.workloads),
        "problems": [problem.as_json() for problem in problems],
        "seconds": round(seconds, 3),
        "confirm_until": time_text(trial.until if trial else None),
    }


def rolled_back(in_force: InForce, *, changed: bool, seconds: float) -> Json:
    """The answer to `rollback`."""
    return {
        "changed": changed,
        "hash": in_force.policy.hash,
        "workloads": len(in_force.policy.workloads),
        "seconds": round(seconds, 3),
    }


def nothing_to_confirm(in_force: InForce | None) -> Json:
    """The answer to `confirm` when nothing waits."""
    return {"confirmed": False, "hash": in_force.policy.hash if in_force else None}


def not_applied(request: int | None, in_force: InForce | None, problems: tuple[Problem, ...]) -> list[Effect]:
    """What is done about files with errors: whoever asked is told, and a daemon without rules ends."""
    if request is None:
        return [Quit(1, nothing_to_start(problems))]
    return [Answer(request, refused(in_force, problems))]


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
    about = {"POLICY": policy_hash}
    match kind:
        case "repair":
            return Journal("warning", f"repaired in {seconds:.2f} s", "repaired", about)
        case "expiry":
            return Journal("info", f"rules that are over were removed in {seconds:.2f} s")
        case "jump":
            return Journal("info", "the clock jumped: rules with an end were timed anew")
        case "upstreams":
            return Journal("info", "the host asks other name servers now, and so does the resolver")
        case "confirm":
            return Journal("info", f"policy {policy_hash} was confirmed", "confirmed", about)
        case "revert":
            text = f"nobody confirmed the policy: {policy_hash} is in force again"
            return Journal("warning", text, "reverted", about)
        case "rollback":
            text = f"rolled back to policy {policy_hash} in {seconds:.2f} s"
            return Journal("warning", text, "rolled-back", about)
        case _:
            return Journal("info", f"policy {policy_hash} is in force after {seconds:.2f} s", "applied", about)


def nothing_to_start(problems: Iterable[Problem]) -> str:
    """Why the daemon ends: the files have errors, and nothing else is there."""
    return f"the configuration has errors, and no policy was applied before:\n{_lines(problems)}"


def not_understood(problems: Iterable[Problem]) -> str:
    """Why the daemon ends: another version applied what this one cannot read."""
    return f"the applied policy is not understood by this version:\n{_lines(problems)}"


def _lines(problems: Iterable[Problem]) -> str:
    return "\n".join(problem.line() for problem in problems)
