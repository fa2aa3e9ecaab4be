"""Names in messages: what is plain, what is escaped, what is bounded."""

from __future__ import annotations

import dns.name
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.dns_names import (
    MAX_STEPS,
    POINTER,
    Malformed,
    OverBound,
    Steps,
    and_above,
    is_plain,
    name_end,
    text_of,
    wire_of,
)
from penstock.core.dns_names import read_name as read_within
from penstock.core.names import BadName, normalise

LABELS = st.lists(st.binary(min_size=1, max_size=63), max_size=20).filter(
    lambda labels: sum(len(label) + 1 for label in labels) < 255
)


def wire(labels: list[bytes]) -> bytes:
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def read_name(data: bytes, at: int) -> tuple[bytes, int]:
    """Of a message that has nothing else in it."""
    return read_within(data, at, Steps())


@given(LABELS)
def test_text_means_what_dnspython_says(labels: list[bytes]) -> None:
    lower = wire(labels).lower()
    text, plain = text_of(lower)
    assert dns.name.from_text(text + "." if text else ".").to_wire() == lower
    assert text.isascii()
    assert text.isprintable()
    assert plain == ("\\" not in text)
    assert read_name(b"x" + lower + b"rest", 1) == (lower, 1 + len(lower))
    assert name_end(b"x" + lower + b"rest", 1) == 1 + len(lower)


@given(st.text("aZ09-_.\\ é*", max_size=12) | st.from_regex(r"[a-z0-9_-]{1,9}(\.[a-z]{1,9}){0,4}", fullmatch=True))
def test_plain_names_come_back(text: str) -> None:
    try:
        made = wire_of(text)
    except ValueError:
        return
    assert text_of(made) == (text, True)


@given(LABELS)
def test_plain_is_what_can_be_said_as_it_is(labels: list[bytes]) -> None:
    text, plain = text_of(wire(labels).lower())
    assert is_plain(text) == (plain and text != "")


@pytest.mark.parametrize(
    "text",
    ["", ".", "a..b", ".a", "a.", "A.b", "a b", 'x"', "m\xfcller.b", "\ud800", "*.b", "a\n", "a." * 127 + "a"],
)
def test_what_is_no_plain_name(text: str) -> None:
    assert not is_plain(text)


@given(st.text("aZ09-_.", max_size=12))
def test_every_name_of_a_rule_can_be_asked(text: str) -> None:
    try:
        name = normalise(text)
    except BadName:
        return
    assert text_of(wire_of(name)) == (name, True)


@pytest.mark.parametrize(
    ("data", "name", "end"),
    [
        (b"\1a\1b\0" + b"\xc0\x0c", b"\1a\1b\0", 19),
        (b"\1a\1b\0" + b"\1C\xc0\x0e", b"\1C\1b\0", 21),
        (b"\1a\1b\0" + b"\xc0\x10", b"\0", 19),
    ],
)
def test_pointers(data: bytes, name: bytes, end: int) -> None:
    assert read_name(bytes(12) + data, 17) == (name, end)


@pytest.mark.parametrize("pointer", [b"\xc0\x11", b"\xc0\x12", b"\xc0\x0b", b"\xff\xff", b"\x80\x0c", b"\x40\x0c"])
def test_pointers_that_lead_nowhere(pointer: bytes) -> None:
    with pytest.raises(Malformed):
        read_name(bytes(12) + b"\1a\1b\0" + pointer, 17)


@pytest.mark.parametrize("data", [b"\1\xc0\x0c", b"\1a\2\xc0\x0c\0", b"\3a\xc0\x0c\xc0\x0c\0"])
def test_names_that_run_into_themselves(data: bytes) -> None:
    """What a pointer leads to ends before the pointer, or the pointer would be read as letters too."""
    with pytest.raises(Malformed):
        read_name(bytes(12) + data + bytes(20), 12 + data.index(b"\xc0"))


def test_a_pointer_whose_second_byte_is_the_pointing_name() -> None:
    data = bytes(12) + b"\0" + b"\1a\xc0" + b"\x0c" + b"b" * 12 + b"\xc0\x0d"
    with pytest.raises(Malformed):
        read_name(data, 16)


@pytest.mark.parametrize(("last", "fits"), [(61, True), (62, False)])
def test_pointers_that_make_a_name_too_long(last: int, fits: bool) -> None:
    label = b"\x3f" + b"a" * 63
    data = bytes(12) + label * 2 + b"\0" + label + bytes((last,)) + b"b" * last + b"\xc0\x0c"
    start = 12 + 129
    if fits:
        assert len(read_name(data, start)[0]) == 255
    else:
        with pytest.raises(Malformed):
            read_name(data, start)


@pytest.mark.parametrize("data", [b"", b"\1", b"\1a", b"\5ab", b"\1a\xc0"])
def test_names_that_are_cut_off(data: bytes) -> None:
    for read in (read_name, name_end):
        with pytest.raises((IndexError, Malformed)):
            read(bytes(12) + data, 12)


def test_a_walk_ends_with_the_longest_name() -> None:
    """Else a question of 64 KiB of labels would cost a walk over all of it."""
    labels = b"\1a" * 30000
    for read in (read_name, name_end):
        with pytest.raises(Malformed):
            read(labels, 0)


def test_a_name_takes_as_many_steps_as_reading_it() -> None:
    """Two bytes of labels are one, as the shortest label has; a pointer is some."""
    data = bytes(12) + b"\1a\1b\0" + b"\1c\xc0\x0c"
    steps = Steps()
    read_within(data, 12, steps)
    assert MAX_STEPS - steps.left == 2
    read_within(data, 17, steps)
    assert MAX_STEPS - steps.left == 2 + 3 + POINTER
    steps.left = 2 + POINTER
    with pytest.raises(OverBound):
        read_within(data, 17, steps)


def test_a_name_and_all_above_it() -> None:
    assert list(and_above(b"\1a\2bc\0")) == [b"\1a\2bc\0", b"\2bc\0", b"\0"]
    assert list(and_above(b"\0")) == [b"\0"]
