"""Saved policies, and which of them is meant."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_host import BROKEN, ONE, TWO, applied

from penstock.core import state
from penstock.core.history import SHORTEST, NotUnderstood, choose, understood

FIRST, SECOND = applied(ONE, {"a": 5}), applied(TWO, {"a": 5, "b": 6})
OLD = state.encode(state.Applied("0123456789ab", 0.0, BROKEN))


def hash_of(data: bytes) -> str:
    return state.decode(data).hash


def named(data: bytes, name: str) -> bytes:
    """The same under another hash."""
    return state.encode(replace(state.decode(data), hash=name))


def test_what_is_understood() -> None:
    found, policy = understood(SECOND)
    assert (found.hash, list(policy.workloads)) == (policy.hash, ["a", "b"])


@pytest.mark.parametrize("data", [None, b"", b"{", b"[]", b"\xff", SECOND[:-1]])
def test_what_is_missing_or_damaged(data: bytes | None) -> None:
    with pytest.raises(ValueError, match="the saved state is") as caught:
        understood(data)
    assert not isinstance(caught.value, NotUnderstood)


def test_what_another_version_wrote_is_told_apart() -> None:
    with pytest.raises(NotUnderstood, match=r"rules\.d/a\.yaml:3:"):
        understood(OLD)


def test_the_one_before_the_present() -> None:
    assert choose([FIRST, SECOND], "", "present")[0].hash == hash_of(FIRST)
    assert choose([FIRST, SECOND], "", hash_of(FIRST))[0].hash == hash_of(SECOND), "the present one is not before"


def test_a_damaged_one_is_passed_over() -> None:
    assert choose([b"{", SECOND], "", "present")[0].hash == hash_of(SECOND)


@pytest.mark.parametrize("saved", [[], [b"{"], [FIRST]])
def test_there_is_none(saved: list[bytes]) -> None:
    with pytest.raises(ValueError, match="no policy before this one is kept"):
        choose(saved, "", hash_of(FIRST))


def test_by_its_hash_or_the_beginning_of_it() -> None:
    saved = [FIRST, SECOND]
    for to in (hash_of(SECOND), hash_of(SECOND)[:SHORTEST]):
        assert choose(saved, to, "present")[0].hash == hash_of(SECOND)


@pytest.mark.parametrize("to", ["zzzz", hash_of(FIRST)[: SHORTEST - 1], hash_of(FIRST)[1:], hash_of(FIRST) + "0"])
def test_what_names_none(to: str) -> None:
    with pytest.raises(ValueError, match="is kept"):
        choose([FIRST, SECOND], to, "present")


def test_what_names_several() -> None:
    saved = [named(FIRST, "abcdef01"), named(SECOND, "abcdef02")]
    with pytest.raises(ValueError, match="abcd is the beginning of several hashes"):
        choose(saved, "abcd", "present")
    assert choose(saved, "abcdef02", "present")[0].hash == "abcdef02"
    same = [FIRST, FIRST]
    assert choose(same, hash_of(FIRST)[:SHORTEST], "present")[0].hash == hash_of(FIRST)


def test_a_name_is_escaped_and_cut() -> None:
    with pytest.raises(ValueError, match="is kept") as caught:
        choose([FIRST], "\x1b[31m" + "x" * 500, "present")
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 150


def test_one_that_is_not_understood_is_not_used() -> None:
    with pytest.raises(NotUnderstood):
        choose([OLD, FIRST], "", "present")
    assert choose([OLD, FIRST], hash_of(FIRST), "present")[0].hash == hash_of(FIRST)
