"""The ends of a packet that no rule allows, by mode, and of a mode that ends."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from penstock.core.actions import Final, Goto, Log
from penstock.core.conditions import Before
from penstock.core.denial_chains import Ends, build
from penstock.core.policy import Mode
from penstock.core.ruleset import Rule

UNTIL = datetime(2026, 11, 27, 10, 30, tzinfo=UTC)
CHAINS = ("foreign_w", "deny_out_w", "deny_reply_w", "deny_in_w", "deny_loopback_w")


def tail(mode: Mode, chain: str, until: datetime | None = None) -> list[Rule]:
    """The rules that log and end."""
    rules = next(c.rules for c in build(Ends("w", mode, until), 7, "o", "i") if c.name == chain)
    start = next(n for n, rule in enumerate(rules) if any(isinstance(do, Log) for do in rule.do))
    return list(rules[start:])


def logs(rules: list[Rule]) -> list[str]:
    return [do.prefix for rule in rules for do in rule.do if isinstance(do, Log)]


@pytest.mark.parametrize("chain", CHAINS)
def test_observe_passes_on_and_the_others_refuse(chain: str) -> None:
    (log, end) = tail(Mode.OBSERVE, chain)
    assert (log.when, end.when) == ((), ())
    assert end.do == ((Final.RETURN,) if chain == "deny_loopback_w" else (Final.ACCEPT,))
    assert " would-deny observe " in logs([log])[0]
    for mode in (Mode.ENFORCE, Mode.LOCK):
        (log, end) = tail(mode, chain)
        assert (log.when, end.when) == ((), ())
        assert end.do[0] is Final.DROP or isinstance(end.do[0], Goto)
        assert f" deny {mode} " in logs([log])[0]


@pytest.mark.parametrize("chain", CHAINS)
def test_what_is_observed_until_a_time_is_enforced_from_then_on(chain: str) -> None:
    both = tail(Mode.OBSERVE, chain, UNTIL)
    observed, enforced = both[:2], both[2:]
    assert all(rule.when == (Before(UNTIL),) for rule in observed)
    assert [Rule((), rule.do) for rule in observed] == tail(Mode.OBSERVE, chain)
    assert enforced == tail(Mode.ENFORCE, chain)


def test_a_lock_has_no_end_in_the_kernel() -> None:
    """It is lifted by somebody who looks; until then nothing gets out."""
    assert tail(Mode.LOCK, "deny_out_w", UNTIL) == tail(Mode.LOCK, "deny_out_w")
