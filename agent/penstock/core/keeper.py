"""Whether the kernel still holds what is in force: what makes us look, whom to name, when to mend.

`View` says what came of it.  One check is under way at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from datetime import datetime, timedelta

from penstock.core import questions
from penstock.core.effects import Effect, ReadKernel
from penstock.core.events import Commit, ReadBack, RulesetChanged
from penstock.core.policy import Policy
from penstock.core.ruleset import Ruleset
from penstock.core.slices import SLICE, slice_of
from penstock.core.snapshot import differences
from penstock.core.view import InForce, View

REPAIRS, PERIOD = 5, timedelta(seconds=1)
"""So many repairs are made within that time, further ones wait for a tick: whoever keeps changing our table must
not keep us busy.  One is too few: the second flush of a tool that reloads would leave all open until the tick."""


PATIENCE = 60
"""Ticks that a check may take."""


class Keeper:
    """The engine asks it, and does what is to be done."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._generation = 0  # of the ruleset, up to which every change is known not to be about us
        self._about: Ruleset | None = None  # what a check that is under way compares with
        self._waited = 0  # ticks, for it
        self._suspect: Commit | None = None  # who changed our table last
        self._look = False  # something was announced for which the kernel must be looked at
        self._mended: deque[datetime] = deque(maxlen=REPAIRS)
        self._own_doing = False  # an operation of ours ended half-way: what differs is nobody else's work

    def agree(self, now: datetime, generation: int) -> bool:
        """The kernel was read at that generation, and agrees.  True: it was changed since, look again."""
        self._view.agrees, self._view.checked, self._view.disagreement = True, now, ""
        self._generation, self._own_doing = generation, False
        if self._suspect is not None and self._suspect.generation <= generation:
            self._suspect, self._look = None, False
        return self._suspect is not None

    def holds_still(self, now: datetime, generation: int) -> bool:
        """Nothing happened since the kernel was read back, so what was found then is so now."""
        if self._view.agrees is not True or generation != self._generation:
            return False
        self._view.checked = now
        return True

    def suspects(self, generation: int) -> bool:
        """Whether somebody else changed our table, up to that generation, and nobody has looked at it since."""
        return self._suspect is not None and self._suspect.generation <= generation

    def unknown(self, error: str) -> None:
        """The kernel could not be looked at."""
        self._view.agrees, self._view.disagreement = None, error

    def check(self, in_force: InForce) -> list[Effect]:
        """Have the kernel read, unless it is being read."""
        if self._about is not None:
            return []
        self._about, self._look, self._waited = in_force.ruleset, False, 0
        return [ReadKernel(None, tuple(sorted(in_force.policy.workloads)), tuple(sorted(in_force.places)))]

    def ticked(self) -> None:
        """A check of which nothing comes must not be the last one."""
        self._waited += 1
        if self._waited >= PATIENCE:
            self._about = None

    def answered(self, in_force: InForce | None) -> bool:
        """The check is over; whether it was about what is in force now."""
        about, self._about = self._about, None
        return in_force is not None and about is in_force.ruleset

    def may_mend(self, now: datetime, wrong: str) -> str:
        """The kernel differs.  Returns what to say of a repair now; empty when there were many just before."""
        news = self._view.agrees is not False and not self._own_doing
        wrong = self._blame(now, wrong, news=news)
        self._view.agrees, self._view.disagreement = False, wrong
        if sum(timedelta(0) <= now - when < PERIOD for when in self._mended) == REPAIRS:
            return ""  # the next tick finds it again
        return f"the kernel does not hold the policy: {wrong}; repairing"

    def _blame(self, now: datetime, wrong: str, *, news: bool) -> str:
        """Raise the alarm if it is news, or if it is known who did it; `wrong` with his name."""
        if self._suspect is not None:
            wrong, news = f"{wrong} (by {self._suspect.comm!r}, pid {self._suspect.pid})", True
            self._suspect = None
        if news:
            self._view.alarms.append((now, wrong))
        return wrong

    def interfered(self, now: datetime, wrong: str) -> str:
        """While an operation loaded, somebody else did `wrong`.  Returns what to say of it."""
        return f"changed while the policy was loaded: {self._blame(now, wrong, news=True)}; loading again"

    @property
    def must_look(self) -> bool:
        """Whether something was announced since the kernel was looked at last."""
        return self._look

    def mended(self, now: datetime) -> None:
        """A repair ended well."""
        self._mended.append(now)

    def gave_up(self, now: datetime, error: str, *, mending: bool) -> None:
        """An operation ended half-way: the kernel holds the old rules or the new ones.

        That is mended at once, unless it was `mending` which failed: it waits for a tick.  When somebody changed
        our table meanwhile that may be why, and it does not wait: a tool that restarts flushes twice, the second
        time into the middle of a repair.
        """
        self._mended.extend([now] * (1 if self._suspect or not mending else REPAIRS))
        self._own_doing, self._suspect, self._look = True, None, False
        self.unknown(error)

    def announced(self, event: RulesetChanged) -> None:
        """Take announcements in; `must_look` is what comes of it."""
        news = [commit for commit in event.commits if commit.generation > self._generation]
        foreign = [commit for commit in news if commit.touched]
        if foreign:
            self._suspect = foreign[-1]
        if foreign or event.lost:
            self._look = True
        elif news and news[0].generation == self._generation + 1 and self._suspect is None:
            self._generation = news[-1].generation


def missing(policy: Policy, cgroups: Mapping[str, int]) -> list[str]:
    """Slices that are not there, a phrase each."""
    wanted = (SLICE, *(slice_of(name) for name in sorted(policy.workloads)))
    return [f"{path} is missing" for path in wanted if path not in cgroups]


def differs(
    policy: Policy, ruleset: Ruleset, event: ReadBack, places: Mapping[str, str], depth: int
) -> list[str]:
    """In what the kernel differs from `ruleset` with `policy`'s workloads and `places` bound, a phrase each."""
    wanted = questions.bindings(tuple(policy.workloads), event.cgroups, places, depth, by_name=ruleset.by_name)
    wrong = differences(ruleset, wanted, event.cgroups.get(SLICE), event.snapshot, event.now)
    return wrong or missing(policy, event.cgroups)


def unlike(in_force: InForce, event: ReadBack, depth: int) -> list[str]:
    """In what the kernel differs from what it held when that was read back last, a phrase each."""
    wrong = differs(in_force.policy, in_force.ruleset, event, in_force.places, depth)
    return wrong or (["a rule was changed"] if event.snapshot.digest != in_force.snapshot.digest else [])


def summary(phrases: list[str]) -> str:
    """The first few of them, and how many more."""
    more = f" and {len(phrases) - 3} more" if len(phrases) > 3 else ""
    return ", ".join(phrases[:3]) + more
