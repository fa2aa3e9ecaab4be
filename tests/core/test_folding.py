"""Folding: when a block is given out, what is summed up, and that the books agree with the kernel."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core import folds
from penstock.core.blocks import Block, Explanation, Process
from penstock.core.folding import GRACE, Folder
from penstock.core.log_prefix import Kind, Refusal
from penstock.core.packets import Denied
from penstock.core.policy import Direction, Mode

T = 1_764_036_000.0


def denied(last: int = 9, workload: str = "w", direction: Direction = Direction.OUT) -> Denied:
    return Denied(
        workload=workload,
        direction=direction,
        verdict=Refusal.DENY,
        mode=Mode.ENFORCE,
        kind=Kind.RULES,
        family=4,
        protocol="tcp",
        remote=ip_address("192.0.2.0") + last,
        port=443,
        local=ip_address("198.51.100.1"),
        local_port=40000,
        uid=0,
    )


class Explainer:
    """Says the same of everything, and how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, packet: Denied) -> Explanation:
        self.asked += 1
        return Explanation("no-rule", f"no rule for {packet.remote}", nearest="r1", allow="penstock grant")


def explain(_: Denied) -> Explanation:
    return Explanation("no-rule", "no rule")


def latest(blocks: Iterable[Block]) -> dict[str, Block]:
    return {block.id: block for block in blocks}


def total(blocks: Iterable[Block], workload: str = "w", direction: str = "out") -> int:
    mine = [b for b in latest(blocks).values() if (b.workload, b.direction) == (workload, direction)]
    return sum(b.count + b.unlogged for b in mine)


def test_first_at_once_repeats_folded() -> None:
    folder, asks = Folder(1), Explainer()
    (first,) = folder.add(denied(), T, asks, "hash", Process(7, "curl"))
    assert (first.count, first.address, first.port, first.first, first.last) == (1, "192.0.2.9", 443, T, T)
    assert (first.text, first.nearest, first.allow) == ("no rule for 192.0.2.9", "r1", "penstock grant")
    assert (first.policy, first.process) == ("hash", Process(7, "curl"))
    for n in range(1, 10):
        assert folder.add(denied(), T + n / 10, asks, "hash", Process(8, "curl")) == []
    assert asks.asked == 1
    assert folder.flush(T + 1) == []
    (again,) = folder.flush(T + 2)
    assert (again.id, again.count, again.last) == (first.id, 10, T + 0.9)
    assert folder.flush(T + 4) == []


def test_window_ends_with_a_last_write_and_a_new_id() -> None:
    folder = Folder(1)
    (first,) = folder.add(denied(), T, explain)
    folder.add(denied(), T + 59.5, explain)
    assert [b.count for b in folder.flush(T + 59.6)] == [2]
    folder.add(denied(), T + 59.9, explain)
    assert [b.count for b in folder.flush(T + 60)] == [3]
    (second,) = folder.add(denied(), T + 61, explain)
    assert second.id > first.id
    assert second.count == 1


def test_a_new_packet_closes_a_window_that_nobody_flushed() -> None:
    folder = Folder(1)
    folder.add(denied(), T, explain)
    folder.add(denied(), T + 1, explain)
    old, new = folder.add(denied(), T + 60, explain)
    assert (old.count, new.count) == (2, 1)
    assert old.id != new.id


def test_a_clock_set_back_opens_a_new_window() -> None:
    folder = Folder(1)
    folder.add(denied(), T, explain)
    assert len(folder.add(denied(), T - 3600, explain)) == 1


@pytest.mark.parametrize(
    ("second", "policy"),
    [(denied(10), "h"), (denied(9, "v"), "h"), (denied(9, direction=Direction.IN), "h"), (denied(), "i")],
)
def test_what_is_not_a_repeat(second: Denied, policy: str) -> None:
    folder = Folder(1)
    folder.add(denied(), T, explain, "h")
    assert len(folder.add(second, T, explain, policy)) == 1


def test_hostile_text_is_escaped() -> None:
    (block,) = Folder(1).add(
        denied(), T, lambda _: Explanation("r", "t\x1b", name="n\n"), None, Process(1, "a\x1b[2J")
    )
    assert (block.text, block.name, block.process.comm) == ("t\\x1b", "n\\n", "a\\x1b[2J")


def test_ids_sort_by_time_and_differ_between_starts() -> None:
    one, other = Folder(1), Folder(2)
    ids = [one.add(denied(n), T, explain)[0].id for n in range(200)]
    ids += [one.add(denied(n), T + 0.001, explain)[0].id for n in range(200, 250)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 250
    assert other.add(denied(), T, explain)[0].id not in ids


def test_one_noisy_workload_is_summed_up_and_leaves_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folds, "MAX_FOLDS_OF_ONE", 5)
    folder = Folder(1)
    written = [b for n in range(50) for b in folder.add(denied(n), T, explain, "h")]
    written += folder.add(denied(3), T, explain, "h")  # an open fold goes on
    written += folder.flush(T + 2)
    (overflow,) = [b for b in latest(written).values() if b.address is None]
    assert (overflow.reason, overflow.count, overflow.protocol, overflow.port) == ("overflow", 45, None, None)
    assert (overflow.verdict, overflow.mode, overflow.policy) == ("deny", "enforce", "h")
    assert total(written) == 51
    assert folder.add(denied(workload="v"), T, explain)[0].address is not None


def test_open_folds_are_bounded_and_room_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folds, "MAX_FOLDS", 3)
    folder = Folder(1)
    for n in range(3):
        folder.add(denied(n, f"w{n}"), T, explain)
    assert folder.add(denied(9), T, explain)[0].reason == "overflow"
    folder.flush(T + 60)
    assert folder.add(denied(9), T + 60, explain)[0].reason == "no-rule"


def test_unlogged_goes_to_the_busiest_fold() -> None:
    folder = Folder(1)
    written = folder.add(denied(1), T, explain)
    for _ in range(3):
        written += folder.add(denied(2), T, explain)
    written += folder.counted("w", "out", 104, T + 1)
    written += folder.flush(T + 1 + GRACE)
    assert [(b.address, b.count, b.unlogged) for b in latest(written).values()] == [
        ("192.0.2.1", 1, 0),
        ("192.0.2.2", 3, 100),
    ]
    assert latest(written)[written[1].id].last == T + 1  # when they were counted


def test_unlogged_without_a_fold_is_a_block_of_its_own() -> None:
    folder = Folder(1)
    assert folder.counted("w", "in", 7, T, "would-deny", "observe") == []
    (block,) = folder.flush(T + GRACE)
    assert (block.count, block.unlogged, block.address, block.reason) == (0, 7, None, "unlogged")
    assert (block.verdict, block.mode, block.direction, block.first) == ("would-deny", "observe", "in", T)


def test_records_that_come_after_the_counter_are_not_unlogged() -> None:
    folder = Folder(1)
    written = folder.counted("w", "out", 10, T)
    for _ in range(10):
        written += folder.add(denied(), T + 1, explain)
    written += folder.close(T + 30)
    assert [(b.count, b.unlogged) for b in latest(written).values()] == [(10, 0)]


def test_records_that_come_before_the_counter_are_credit() -> None:
    folder = Folder(1)
    written = [b for _ in range(10) for b in folder.add(denied(), T, explain)]
    written += folder.counted("w", "out", 4, T) + folder.counted("w", "out", 8, T) + folder.close(T + 1)
    assert [(b.count, b.unlogged) for b in latest(written).values()] == [(10, 2)]


def test_forget_gives_out_the_rest() -> None:
    folder = Folder(1)
    folder.add(denied(), T, explain)
    folder.add(denied(), T, explain)
    folder.counted("w", "out", 5, T)
    (block,) = folder.forget("w", T)
    assert (block.count, block.unlogged) == (2, 3)
    assert folder.close(T) == []


def test_a_counter_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="went back"):
        Folder(1).counted("w", "out", -1, T)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["log", "lose", "count", "flush"]),
        st.integers(0, 4),
        st.sampled_from([0.0, 0.4, 3.0, 70.0]),
    ),
    max_size=60,
)


@given(STEPS)
def test_the_books_agree_with_the_kernel(steps: list[tuple[str, int, float]]) -> None:
    """Packets are counted and logged or not, readings come when they like: in the end the sums are equal."""
    folder, now, kernel, read = Folder(1), T, 0, 0
    written: list[Block] = []
    for what, n, later in steps:
        now += later
        if what == "log":
            kernel += 1
            written += folder.add(denied(n), now, explain)
        elif what == "lose":
            kernel += n
        elif what == "count":
            written += folder.counted("w", "out", kernel - read, now)
            read = kernel
        else:
            written += folder.flush(now)
        assert all(b.unlogged >= 0 and b.first <= b.last for b in written)
    written += folder.counted("w", "out", kernel - read, now) + folder.close(now)
    assert total(written) == kernel
