"""What was learned: the ends, the bounds, whose address it is, and what a restart keeps."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core import learned
from penstock.core.learned import FLOOR, LONGEST, SLACK, Entry, Learned
from penstock.core.learned_file import KERNEL_KEEPS
from penstock.core.past import KEPT

T = 1_764_036_000.0
SHORT = FLOOR + SLACK
A4, B4 = b"\xc0\x00\x02\x01", b"\xc0\x00\x02\x02"
A6 = b"\x20\x01\x0d\xb8" + bytes(12)


def current(known: Learned, now: float, workload: str = "w") -> set[tuple[bytes, str, float]]:
    return set(known.current(workload, now))


def expire(known: Learned, now: float) -> None:
    for _ in range(50):
        known.expire(now)


def addresses(count: int, first: int = 0) -> Iterable[tuple[bytes, int]]:
    return [(n.to_bytes(4, "big"), 60) for n in range(first, first + count)]


# --- ends ---


@pytest.mark.parametrize(("ttl", "seconds"), [(0, FLOOR), (FLOOR + 1, FLOOR + 1), (1 << 31, LONGEST)])
def test_an_answer_counts_as_long_as_its_ttl_says_within_bounds(ttl: int, seconds: int) -> None:
    known = Learned()
    assert known.learn("w", "a.example", [(A4, ttl)], T)
    end = T + seconds + SLACK
    assert known.addresses_of("w", "a.example", T) == [(A4, end)]
    assert current(known, end - 1) == {(A4, "a.example", end)}
    assert current(known, end) == set()
    assert known.addresses_of("w", "a.example", end) == []


def test_the_families_of_a_name_end_apart() -> None:
    known = Learned()
    known.learn("w", "a.example", [(A4, 0)], T)
    known.learn("w", "a.example", [(A6, 3600)], T + 1)
    assert current(known, T + SHORT) == {(A6, "a.example", T + 3601 + SLACK)}


def test_an_answer_again_moves_the_end_later_and_never_earlier() -> None:
    known = Learned()
    known.learn("w", "a.example", [(A4, 3600)], T)
    known.learn("w", "a.example", [(A4, 0)], T + 10)
    assert known.addresses_of("w", "a.example", T) == [(A4, T + 3600 + SLACK)]
    known.learn("w", "a.example", [(A4, 3600)], T + 10)
    assert known.addresses_of("w", "a.example", T) == [(A4, T + 3610 + SLACK)]


def test_the_end_of_one_answer() -> None:
    known = Learned()
    assert known.learn("w", "a.example", [(A4, 60), (A6, 3600)], T)
    known.jump(100.0)
    ends = [known.end_of("w", "a.example", address) for address in (A4, A6)]
    assert ends == [T + 100 + SHORT, T + 100 + 3600 + SLACK]
    assert dict(known.addresses_of("w", "a.example", T)) == dict(zip((A4, A6), ends, strict=True))
    none = [("v", "a.example", A4), ("w", "b.example", A4), ("w", "a.example", bytes(4))]
    assert [known.end_of(*one) for one in none] == [0.0] * 3


def test_of_an_address_that_is_twice_in_an_answer_the_longer_counts() -> None:
    known = Learned()
    known.learn("w", "a.example", [(A4, 900), (A4, 700)], T)
    assert known.addresses_of("w", "a.example", T) == [(A4, T + 900 + SLACK)]


# --- whose ---


def test_what_one_workload_learned_is_nothing_to_another() -> None:
    known = Learned()
    known.learn("w", "a.example", [(A4, 0)], T)
    assert known.names_of("v", A4) == ()
    assert current(known, T, "v") == set()
    known.drop("v")
    known.forget("v", lambda name: False)
    assert known.workloads() == ("w",)


def test_an_address_keeps_each_name_that_gave_it() -> None:
    known = Learned()
    known.learn("w", "a.example", [(A4, 0)], T)
    known.learn("w", "b.example", [(A4, 3600)], T)
    known.learn("w", "c.example", [(A4, 900)], T)
    assert [entry.name for entry in known.names_of("w", A4)] == ["b.example", "c.example", "a.example"]
    known.forget("w", lambda name: name != "b.example")
    assert known.names_of("w", A4) == (Entry("c.example", T + 900 + SLACK), Entry("a.example", T + SHORT))
    known.forget("w", lambda name: name == "a.example")
    assert known.names_of("w", A4) == (Entry("a.example", T + SHORT),)


def test_names_are_told_for_days_after_they_ended() -> None:
    known = Learned()
    known.learn("w", "a.example", [(A4, 0), (B4, 0)], T)
    expire(known, T + SHORT + 60)
    assert current(known, T) == set()
    assert known.names_of("w", A4) == (Entry("a.example", T + SHORT),)
    assert set(known.remembered("w")) == {(A4, "a.example"), (B4, "a.example")}
    known.learn("w", "a.example", [(A4, 0)], T + 5000)
    assert known.names_of("w", A4) == (Entry("a.example", T + 5000 + SHORT),)
    expire(known, T + SHORT + KEPT)
    assert known.names_of("w", B4) == ()


def test_what_a_rule_leaves_behind_says_when_it_was_asked() -> None:
    known = Learned()
    known.learn("w", "a.example", [(A4, 0)], T)
    expire(known, T + SHORT + 60)
    known.learn("w", "a.example", [(B4, 300)], T + 1000)
    known.learn("w", "b.example", [(B4, 3600)], T + 1000)
    a = {(T, A4, "a.example"), (T + 1000, B4, "a.example")}
    assert set(known.lost("w", lambda name: name == "b.example")) == a
    assert set(known.lost("w", lambda name: False)) == {*a, (T + 4000, B4, "b.example")}
    assert list(known.lost("w", lambda name: True)) == []
    assert list(known.lost("v", lambda name: False)) == []
    known.jump(50)
    assert (T + 50, A4, "a.example") in set(known.lost("w", lambda name: False))


def test_dropped_and_forgotten_is_gone_from_the_past_too() -> None:
    known = Learned()
    for name in ("a.example", "b.example"):
        known.learn("w", name, [(A4, 0)], T)
    expire(known, T + SHORT + 60)
    known.forget("w", lambda name: name == "b.example")
    assert set(known.remembered("w")) == {(A4, "b.example")}
    known.drop("w")
    assert known.workloads() == ()


# --- bounds ---


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "MAX_ADDRESSES", 4)
    monkeypatch.setattr(learned, "MAX_NAMES", 3)
    monkeypatch.setattr(learned, "MAX_OF_ONE", 8)
    monkeypatch.setattr(learned, "MAX_ALL", 10)


@pytest.mark.usefixtures("small")
def test_at_a_bound_the_new_is_refused_and_nothing_changes() -> None:
    known = Learned()
    assert known.learn("w", "a.example", addresses(4), T)
    before = current(known, T)
    assert not known.learn("w", "a.example", addresses(2, 3), T + 9)  # addresses of a name; one is known
    assert known.learn("w", "b.example", addresses(1), T)
    assert known.learn("w", "c.example", addresses(1), T)
    assert not known.learn("w", "d.example", addresses(1), T)  # names
    assert not known.learn("w", "c.example", addresses(3, 1), T)  # of a workload
    assert known.learn("v", "a.example", addresses(4), T)
    assert not known.learn("u", "a.example", addresses(1), T)  # of all
    assert known.learn("w", "a.example", addresses(4), T)  # what is known goes on
    assert before <= current(known, T)
    assert known.workloads() == ("w", "v")


@pytest.mark.usefixtures("small")
def test_what_is_over_makes_room() -> None:
    known = Learned()
    assert known.learn("w", "a.example", addresses(4), T)
    assert known.learn("w", "a.example", addresses(4, 2), T + SHORT)  # at once, for the same name
    assert known.learn("w", "b.example", addresses(4), T)
    assert not known.learn("v", "a.example", addresses(4), T)
    expire(known, T + SHORT + 60)
    assert known.learn("v", "a.example", addresses(4), T + SHORT + 60)


def test_expire_does_a_bounded_amount_of_work_and_finishes() -> None:
    known = Learned()
    for n in range(3 * learned.WORK):
        known.learn("w", f"n{n}.example", [(n.to_bytes(4, "big"), 0)], T)
    for left in (2, 1, 0):
        known.expire(T + SHORT + 60)
        assert len(list(known.current("w", T))) == left * learned.WORK


def test_a_name_that_is_asked_again_and_again_is_looked_at_once_in_a_while() -> None:
    known = Learned()
    for n in range(1000):
        known.learn("w", "a.example", [(A4, LONGEST), (B4, n % 2)], T + n)
    assert sum(map(len, known._due.values())) <= learned.FAR


def test_memory_is_what_is_stated() -> None:
    """500,000 answers in 120 MiB at most are 251 bytes each; here it is a tenth of them."""
    names, each = 1000, 50
    tracemalloc.start()
    try:
        known = Learned()
        for n in range(names):
            answer = [(bytes(8) + (n * each + k).to_bytes(8, "big"), 60) for k in range(each)]
            assert known.learn("w", f"n{n}.example.org", answer, T + n)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / (names * each) < 251


def of_a_name(names: int) -> float:
    """CPU seconds for each of so many names at the same addresses, learned and forgotten; the best of three."""
    best = 1.0
    for _ in range(3):
        known, before = Learned(), time.thread_time()
        for n in range(names):
            assert known.learn("w", f"n{n}.example", addresses(8), T)
        known.forget("w", lambda name: False)
        best = min(best, (time.thread_time() - before) / names)
        assert known.count("w") == 0
    return best


def test_names_at_the_same_addresses_cost_each_the_same() -> None:
    """A workload may look up thousands of them, and then lose its rule: the daemon has better to do."""
    assert of_a_name(4000) < 6 * of_a_name(200)


def test_an_address_keeps_the_names_that_are_left() -> None:
    known, names = Learned(), [f"n{n}.example" for n in range(4)]
    for name in names:
        known.learn("w", name, [(A4, 0)], T)
    while names:
        gone = names.pop(1) if len(names) > 1 else names.pop()
        known.forget("w", lambda name, gone=gone: name != gone)  # type: ignore[misc]
        assert [entry.name for entry in known.names_of("w", A4)] == names
    assert (known.count("w"), known.workloads()) == (0, ())


# --- the clock ---


@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_ends_move_with_a_clock_that_is_set(step: float) -> None:
    known = Learned()
    known.learn("w", "a.example", [(A4, 0)], T)
    known.jump(step)
    now = T + step
    assert current(known, now + SHORT - 1) == {(A4, "a.example", now + SHORT)}
    assert known.names_of("w", A4) == (Entry("a.example", now + SHORT),)
    known.learn("w", "a.example", [(A4, 0)], now + 5)
    assert known.addresses_of("w", "a.example", now) == [(A4, now + 5 + SHORT)]
    expire(known, now + 5 + SHORT + 60)
    assert current(known, now) == set()


# --- a restart ---


def restarted(known: Learned, now: float) -> Learned:
    """A daemon after this one, whose kernel holds what counts, with one name of each address."""
    after = Learned()
    after.restore(known.save(), now)
    for workload in known.workloads():
        for address in {address for address, _, _ in known.current(workload, now)}:
            first = known.names_of(workload, address)[0]
            after.found(workload, address, first.name, first.until)
    return after


def test_a_restart_keeps_the_past_and_every_name() -> None:
    known = Learned()
    known.learn("w", "old.example", [(A4, 0)], T - 1000)
    expire(known, T - 200)
    known.learn("w", "a.example", [(A4, 0), (A6, 0)], T)
    known.learn("w", "b.example", [(A4, 3600)], T)
    after = restarted(known, T + 1)
    assert current(after, T + 1) == current(known, T + 1)
    assert after.names_of("w", A4) == known.names_of("w", A4)


def test_what_the_kernel_does_not_hold_any_more_does_not_count() -> None:
    known = Learned()
    known.learn("w", "a.example", [(A4, 0)], T)
    known.learn("w", "b.example", [(A4, 0)], T)
    after = Learned()
    after.restore(known.save(), T + 1)
    assert current(after, T + 1) == set()
    expire(after, T + 1)
    after.found("w", A4, "b.example", T + 60)
    assert current(after, T + 1) == {(A4, "b.example", T + 60)}


def test_a_name_too_long_for_the_kernel_is_saved() -> None:
    name = ".".join(["x" * 50] * 3) + ".example"
    assert len(name) > KERNEL_KEEPS
    known = Learned()
    known.learn("w", name, [(A4, 0)], T)
    after = Learned()
    after.restore(known.save(), T)
    after.found("w", A4, "other.example", T + 60)
    assert {entry.name for entry in after.names_of("w", A4)} == {name, "other.example"}


def test_what_has_not_changed_is_not_written_anew() -> None:
    known = Learned()
    known.learn("w", "a.example", [(A4, 0)], T)
    assert known.save() is known.save()
    before = known.save()
    expire(known, T + SHORT + 60)
    assert known.save() != before


def test_a_damaged_file_is_refused_whole() -> None:
    known = Learned()
    known.learn("w", "a.example", [(A4, 0), (B4, 0)], T)
    expire(known, T + SHORT + 60)
    data = known.save()[:-1]
    known.drop("w")
    with pytest.raises(ValueError, match="delimiter"):
        known.restore(data, T)
    assert known.workloads() == ()


# --- all of it against the plainest thing that could be right ---

_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a.example", "b.example", "c.example"]),
        st.lists(st.tuples(st.sampled_from([A4, B4, A6]), st.sampled_from([0, 700, 5000])), max_size=3),
        st.sampled_from([1, 100, 700, 4000]),
        st.sampled_from(["learn", "learn", "learn", "expire", "forget"]),
    ),
    max_size=30,
)


@given(_STEPS)
@settings(deadline=None)
def test_it_is_a_table_of_ends(steps: list[tuple[str, list[tuple[bytes, int]], int, str]]) -> None:
    known, plain, now = Learned(), dict[tuple[bytes, str], float](), T
    for name, answer, seconds, what in steps:
        now += seconds
        if what == "learn":
            assert known.learn("w", name, answer, now)
            for address, ttl in answer:
                end = now + max(ttl, FLOOR) + SLACK
                plain[address, name] = max(end, plain.get((address, name), 0))
        elif what == "expire":
            known.expire(now)
        else:
            known.forget("w", lambda other, name=name: other != name)  # type: ignore[misc]
            plain = {key: end for key, end in plain.items() if key[1] != name}
        assert current(known, now) == {(*key, end) for key, end in plain.items() if end > now}
        for address in (A4, B4, A6):
            told = {entry.name: entry.until for entry in known.names_of("w", address)}
            assert told == {n: end for (a, n), end in plain.items() if a == address}


def test_what_the_kernel_cannot_hold_is_new() -> None:
    known = Learned()
    assert known.is_new("w", A4, T)
    known.learn("w", "a.example", [(A4, 0)], T)
    assert not known.is_new("w", A4, T)
    assert known.is_new("v", A4, T)
    assert not known.is_new("w", A4, T + SHORT + learned.CLOSE - 1)
    expire(known, T + SHORT + 60)
    assert known.is_new("w", A4, T + SHORT + 60)
