"""Everything that is wrong or unwise in a set of files, and the policy when nothing is wrong."""

from __future__ import annotations

from datetime import datetime

from penstock.core.lint import lint
from penstock.core.parse import Parsed
from penstock.core.problems import any_error, in_order
from penstock.core.sentences import failures
from penstock.core.unenforced import unenforced


def examine(parsed: Parsed, now: datetime) -> Parsed:
    """Add to what the parser said: lint, what is not enforced yet, and `tests:` that fail.

    `policy` of the result is None when any of it is an error: such files are not applied.
    """
    policy = parsed.policy
    if policy is None:
        return parsed
    problems = in_order((*parsed.problems, *lint(policy, now), *unenforced(policy), *failures(policy, now)))
    return Parsed(None if any_error(problems) else policy, problems)
