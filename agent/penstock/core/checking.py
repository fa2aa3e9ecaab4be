"""Everything that is wrong or unwise in a set of files, and the policy when nothing is wrong."""

from __future__ import annotations

from datetime import datetime

from penstock.core.lint import lint
from penstock.core.lint_planes import overlaps
from penstock.core.parse import Parsed
from penstock.core.policy import Mode, Policy, Workload
from penstock.core.presets import Preset, known_to
from penstock.core.problems import Problem, any_error, in_order
from penstock.core.sentences import failures
from penstock.core.surroundings import Surroundings
from penstock.core.surroundings import problems as beside
from penstock.core.unenforced import unenforced


def examine(parsed: Parsed, now: datetime, around: Surroundings | None = None) -> Parsed:
    """Add to what the parser said: lint, what is not enforced yet, and `tests:` that fail.

    `around`: what the host looks like that these files are for, if it is this one.

    `policy` of the result is None when any of it is an error: such files are not applied.
    """
    policy = parsed.policy
    if policy is None:
        # What is wrong with networks is not told only after everything else was mended.
        found = [*parsed.problems, *overlaps(parsed.host)]
        return Parsed(None, in_order((*found, *(beside(parsed.host, around) if around else ()))))
    found = [*parsed.problems, *lint(policy, now), *unenforced(policy), *failures(policy, now)]
    problems = in_order((*found, *(beside(policy, around) if around else ())))
    return Parsed(None if any_error(problems) else policy, problems)


def examine_preset(preset: Preset, now: datetime) -> list[Problem]:
    """What lint says of a workload that uses only this preset, at the places of the preset's rules."""
    known = known_to([preset], {preset.name: preset})
    alone = Workload(preset.name, Mode.ENFORCE, preset.rules, (), known=known, place=preset.place)
    return lint(Policy(workloads={preset.name: alone}), now)
