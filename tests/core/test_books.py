"""The books: every counted packet is told once, across restarts and new tables."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest

from penstock.core.blocks import Block, Explanation
from penstock.core.books import Books
from penstock.core.folding import GRACE
from penstock.core.log_prefix import Kind, Refusal
from penstock.core.packets import Denied
from penstock.core.parse import parse
from penstock.core.policy import Direction, Mode, Policy
from penstock.core.resolver_wire import FromResolver, Observed, Refused, Trouble

T = 1_764_036_000.0
OUT = "denied_out_a"


def policy(mode: str = "enforce") -> Policy:
    text = f"version: 1\nworkload: a\nmode: {mode}\negress: []\ningress: []\n"
    found = parse({"rules.d/a.yaml": text.encode()}).policy
    assert found
    return found


def packet() -> Denied:
    return Denied(
        *("a", Direction.OUT, Refusal.DENY, Mode.ENFORCE, Kind.RULES, 4, "tcp"),
        *(ip_address("203.0.113.9"), 443, ip_address("192.0.2.1"), 40000, 0),
    )


def log(books: Books, count: int, now: float = T) -> list[Block]:
    why = Explanation("no-rule", "no")
    return [b for _ in range(count) for b in books.packet(packet(), now, lambda _: why, "h", None)]


def total(blocks: list[Block]) -> tuple[int, int]:
    last = {block.id: block for block in blocks}.values()
    return sum(b.count for b in last), sum(b.unlogged for b in last)


def count(books: Books, packets: int, now: float = T) -> tuple[bool, list[Block]]:
    return books.counters({OUT: (packets, 0)}, policy(), now)


def test_what_was_logged_is_not_told_again() -> None:
    books = Books(1)
    blocks = log(books, 3)
    grown, more = count(books, 5)
    assert grown
    blocks += more + books.flush(T + GRACE + 1) + books.close(T + GRACE + 1)
    assert total(blocks) == (3, 2)
    assert books.unlogged("a") == 2


def test_a_counter_that_stands_still_is_no_growth() -> None:
    books = Books(1)
    assert count(books, 5)[0]
    assert count(books, 5) == (False, [])


def test_a_smaller_counter_is_of_a_new_table() -> None:
    books = Books(1)
    count(books, 50)
    count(books, 3)
    assert books.last_hour("a", T) == 53


def test_what_was_denied_while_nobody_listened_is_told_as_unlogged() -> None:
    books = Books(1)
    count(books, 5)
    books.close(T)
    later = Books(2, books.save())
    assert total(count(later, 9)[1] + later.close(T)) == (0, 4)


def test_what_was_told_is_not_told_by_the_next_run() -> None:
    books = Books(1)
    count(books, 5)
    later = Books(2, books.save())
    assert count(later, 5) == (False, [])


@pytest.mark.parametrize("saved", [b"", b"{", b"[]", b"\xff", b'{"a": "x"}', b'{"a": Infinity}', b"[" * 10**5])
def test_damaged_books_are_empty_ones(saved: bytes) -> None:
    assert count(Books(1, saved), 5)[0]


def test_negative_counts_are_none() -> None:
    books = Books(1, json.dumps({OUT: -7}).encode())
    count(books, 2)
    assert books.last_hour("a", T) == 2


def test_the_last_hour() -> None:
    books = Books(1)
    count(books, 5, T)
    count(books, 7, T + 1800)
    assert books.last_hour("a", T + 1800) == 7
    assert books.last_hour("a", T + 3700) == 2
    assert books.last_hour("a", T + 9999) == 0


def test_look_ups_are_denied_too() -> None:
    books, client = Books(1), (ip_address("192.0.2.1"), 4000)
    said: list[FromResolver] = [
        Refused(1, "a", "x.example", "A", "name", "udp", client, 4),
        Refused(2, "a", "x.example.corp.example", "A", "search", "udp", client),
        Refused(3, "stranger", "x.example", "A", "name", "udp", client),
        Observed("a", "y.example", (ip_address("192.0.2.9"),)),
        Trouble("lookups", "a", "x"),
    ]
    books.lookups(said, ["a"], T)
    count(books, 2)
    assert (books.last_hour("a", T), books.last_hour("stranger", T)) == (7, 0)
    assert books.unlogged("a") == 2, "no packets"


def test_the_mode_of_an_observed_workload() -> None:
    books = Books(1)
    books.counters({OUT: (4, 0)}, policy("observe"), T)
    [block] = books.close(T)
    assert (block.verdict, block.mode) == ("would-deny", "observe")


def test_unbound_processes_have_books_too() -> None:
    books = Books(1)
    books.counters({"unbound_out": (4, 0)}, Policy(), T)
    [block] = books.close(T)
    assert (block.workload, block.unlogged) == ("-", 4)
    books.counters({"admin_in": (3, 0)}, Policy(), T)
    [block] = books.close(T)
    assert (block.workload, block.direction, block.unlogged) == ("-", "in", 3)
