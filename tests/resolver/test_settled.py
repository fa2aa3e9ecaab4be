"""What the daemon need not be asked again."""

from __future__ import annotations

from ipaddress import ip_address

from penstock.resolver import settled
from penstock.resolver.settled import FLOOR, HOLDS, Settled

KEY = ("w", "hub.example", 1)
ONE, TWO, THREE = (ip_address(f"192.0.2.{n}") for n in (1, 2, 3))


def known(ttl: int = 60) -> Settled:
    made = Settled()
    made.remember(KEY, 7, ((ONE, ttl), (TWO, ttl)), 100.0)
    return made


def test_the_same_addresses_are_known_for_a_minute() -> None:
    assert known().has(KEY, 7, ((ONE, 60), (TWO, 60)), 100.0 + HOLDS - 1)
    assert known().has(KEY, 7, ((TWO, 1), (ONE, 60)), 101.0)
    assert not known().has(KEY, 7, ((ONE, 60), (TWO, 60)), 100.0 + HOLDS)


def test_anything_else_is_asked_again() -> None:
    assert not known().has(KEY, 8, ((ONE, 60), (TWO, 60)), 101.0)
    assert not known().has(KEY, 7, ((ONE, 60),), 101.0)
    assert not known().has(KEY, 7, ((ONE, 60), (TWO, 60), (THREE, 60)), 101.0)
    assert not known().has(("v", *KEY[1:]), 7, ((ONE, 60), (TWO, 60)), 101.0)
    assert not known().has((*KEY[:2], 28), 7, ((ONE, 60), (TWO, 60)), 101.0)


def test_an_answer_that_lives_longer_is_learned_again() -> None:
    assert known(60).has(KEY, 7, ((ONE, FLOOR), (TWO, FLOOR)), 101.0)
    assert not known(60).has(KEY, 7, ((ONE, FLOOR + 1), (TWO, 60)), 101.0)
    assert known(86_400).has(KEY, 7, ((ONE, 86_399), (TWO, 86_399)), 101.0)


def test_what_is_held_is_bounded() -> None:
    made = known()
    for number in range(settled.MOST - 1):
        made.remember(("w", f"n{number}.example", 1), 7, ((ONE, 60),), 100.0)
    assert made.has(KEY, 7, ((ONE, 60), (TWO, 60)), 101.0)
    made.remember(("w", "one-more.example", 1), 7, ((ONE, 60),), 100.0)
    assert not made.has(KEY, 7, ((ONE, 60), (TWO, 60)), 101.0)
    assert made.has(("w", "one-more.example", 1), 7, ((ONE, 60),), 101.0)
