"""Which modes may be lent, to whom, and what comes of it in a policy."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from penstock.core import grants
from penstock.core.grant_request import BadGrant, Request
from penstock.core.grants import MAX_OF_ONE, Grant, Saved, with_grants
from penstock.core.overrides import LONGEST_OBSERVE, override
from penstock.core.parse import parse
from penstock.core.policy import Mode, Policy

NOW = datetime(2026, 11, 27, 9, 0, tzinfo=UTC)
ID = "grant-00000001"


def policy(mode: str = "enforce") -> Policy:
    text = f"version: 1\nworkload: w\nmode: {mode}\negress: []\ningress: []\n"
    found = parse({"rules.d/w.yaml": text.encode()}).policy
    assert found is not None
    return found


def asked(mode: str = "observe", own: str = "enforce", lent: Sequence[Grant] = (), **said: Any) -> Request:
    words = {"workload": "w", "mode": mode, "seconds": 600, "until": 0, "reason": "why", "user": "anna"} | said
    return Request(words, "", NOW, 1000.0, policy(own), {}, lent)


def lent(mode: str = "observe", **said: Any) -> Grant:
    return override(asked(mode, **said), ID)[0]


def test_it_is_a_grant_without_rules() -> None:
    one = lent()
    assert (one.mode, one.rules, one.what, one.owner) == (Mode.OBSERVE, (), "mode observe", "anna (says sudo)")
    assert (one.until, one.ends) == (NOW + timedelta(minutes=10), 1600.0)
    assert grants.decode(grants.encode(Saved(NOW, "boot", (one,)))).grants == (one,)


def test_what_comes_of_it() -> None:
    one = lent()
    during = with_grants(policy(), [one], NOW).workloads["w"]
    assert (during.mode, during.until) == (Mode.OBSERVE, one.until)
    after = with_grants(policy(), [one], one.until).workloads["w"]
    assert (after.mode, after.until) == (Mode.ENFORCE, None)
    for own in ("observe", "lock"):
        assert with_grants(policy(own), [one], NOW) == policy(own)


def test_a_lock_wins_whatever_came_first() -> None:
    both = [lent(), lent("lock", seconds=60)]
    for order in (both, both[::-1]):
        found = with_grants(policy(), order, NOW).workloads["w"]
        assert (found.mode, found.until) == (Mode.LOCK, both[1].until)
    assert with_grants(policy("observe"), both, NOW).workloads["w"].mode is Mode.LOCK


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (asked("enforce"), "observe and lock"),
        (asked("nonsense"), "observe and lock"),
        (asked(reason=" "), "needs a reason"),
        (asked(seconds=0), "needs an end"),
        (asked(seconds=LONGEST_OBSERVE + 60), "24 hours"),
        (asked(workload="v"), "no workload"),
        (asked(own="observe"), "observed already"),
        (asked("lock", own="lock"), "locked already"),
        (asked(own="lock"), "locked by its file"),
        (asked(lent=[lent()]), "already"),
        (asked(lent=[lent("lock")]), "is locked until"),
        (asked("lock", lent=[lent("lock")] * MAX_OF_ONE), "already"),
    ],
)
def test_what_is_not_lent(request_: Request, said: str) -> None:
    with pytest.raises(BadGrant, match=said):
        override(request_, ID)


def test_a_lock_over_an_observation_says_so() -> None:
    _, notes = override(asked("lock", lent=[lent()]), ID)
    assert len(notes) == 1
    assert "the lock wins" in notes[0]


def test_a_saved_grant_has_rules_or_a_mode() -> None:
    data = grants.encode(Saved(NOW, "boot", (lent(),)))
    for word in (b"null", b'"x"'):
        bad = data.replace(b'"mode": "observe"', b'"mode": ' + word)
        assert bad != data
        with pytest.raises(ValueError, match="damaged"):
            grants.decode(bad)
