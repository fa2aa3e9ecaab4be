"""Where packets end that no rule allows: counted, logged, and refused; or let go while a workload is observed.

A workload may be observed until a time only.  Then the kernel itself goes over from the one to the other: each end
asks the clock, and all before it is as if it were enforced.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from penstock.core.actions import Action, Count, Final, Goto, Jump, Log
from penstock.core.base_chains import STALE
from penstock.core.conditions import Before, Condition, ForeignSource, HasLabel, Tracked
from penstock.core.log_prefix import format_prefix
from penstock.core.policy import Direction, Mode
from penstock.core.ruleset import Chain, Rule

_rule = Rule.of
OUT, IN = Direction.OUT, Direction.IN


@dataclass(frozen=True, slots=True)
class Ends:
    """Of one workload.  `until`: it is observed up to then, and enforced from then on."""

    name: str
    mode: Mode
    until: datetime | None = None

    def told(self, direction: Direction, kind: str, action: Action, pass_on: Action = Final.ACCEPT) -> list[Rule]:
        """Log the packet and do that with it; while it is observed, pass it on."""
        if self.mode is not Mode.OBSERVE:
            return list(self._end(direction, kind, self.mode, action))
        if self.until is None:
            return list(self._end(direction, kind, Mode.OBSERVE, pass_on))
        observed = self._end(direction, kind, Mode.OBSERVE, pass_on, Before(self.until))
        return [*observed, *self._end(direction, kind, Mode.ENFORCE, action)]

    def _end(
        self, direction: Direction, kind: str, mode: Mode, action: Action, *when: Condition
    ) -> Iterator[Rule]:
        verdict = "would-deny" if mode is Mode.OBSERVE else "deny"
        yield _rule(*when, Log(format_prefix(direction, verdict, mode, kind, self.name)))
        yield _rule(*when, action)


def build(ends: Ends, label: int, counter_out: str, counter_in: str) -> list[Chain]:
    """The chains that others go to.  `label` is the workload's bit in labels of connections."""
    name = ends.name
    count_out, count_in = _rule(Count(counter_out)), _rule(Count(counter_in))
    foreign = _rule(ForeignSource(), Goto(f"foreign_{name}"))
    return [
        Chain(f"foreign_{name}", tuple(ends.told(OUT, "source", Final.DROP))),
        Chain(f"deny_out_{name}", (count_out, foreign, *ends.told(OUT, "rules", Goto("refuse_out")))),
        Chain(f"deny_reply_{name}", (count_in, *ends.told(IN, "reply", Goto("refuse_out")))),
        Chain(
            f"deny_in_{name}",
            (_rule(Tracked.RELATED, Jump("told")), count_in, *ends.told(IN, "rules", Goto("refuse_in"))),
        ),
        # Only where packets are really denied does the sender of an unproven one end here; else others judge.
        Chain(
            f"deny_loopback_{name}",
            (count_out, *ends.told(OUT, "loopback", Goto("refuse_in"), pass_on=Final.RETURN)),
        ),
        Chain(f"own_{name}", (_rule(HasLabel(STALE), Final.RETURN), _rule(HasLabel(label), Final.ACCEPT))),
    ]
