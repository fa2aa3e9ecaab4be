"""nfnetlink messages as bytes, and the request socket."""

from __future__ import annotations

import contextlib
import errno
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.demo.lab import Lab
from penstock.kernel import nfnetlink as nl

GET_GENERATION, NEW_TABLE, DEL_TABLE, GET_TABLE, GET_RULE = 16, 0, 2, 1, 7
INET = 1


def code(kind: int) -> int:
    return nl.SUBSYS_NFTABLES << 8 | kind


@given(st.lists(st.tuples(st.integers(0, nl.ATTRIBUTE_TYPE), st.binary(max_size=40))))
def test_attributes_come_back(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(nl.attribute(kind, value) for kind, value in pairs)
    assert len(data) % 4 == 0
    assert [(kind, data[start:end]) for kind, start, end in nl.attributes(data)] == pairs
    assert nl.attribute_map(data) == dict(pairs)


def test_nested_attributes_and_text() -> None:
    data = nl.nested(3, nl.text(1, "penstock"), nl.attribute(2, b"x"))
    outer = nl.attribute_map(data)
    inner = nl.attribute_map(outer[3])
    assert nl.string(inner[1]) == "penstock"
    assert inner[2] == b"x"
    assert struct.unpack_from("=HH", data)[1] & nl.NESTED


@given(st.binary(max_size=60))
def test_garbage_is_walked_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        list(nl.attributes(data))
    with contextlib.suppress(ValueError):
        list(nl.messages(data))


@pytest.mark.parametrize("size", [0, 3, 9])
def test_an_attribute_of_a_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="malformed netlink attribute"):
        list(nl.attributes(struct.pack("=HH", size, 1) + b"abcd"))


@pytest.mark.parametrize("size", [0, 15, 21])
def test_a_message_of_a_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="malformed netlink message"):
        list(nl.messages(struct.pack("=IHHII", size, 1, 0, 7, 0) + bytes(4)))


def test_messages_are_split() -> None:
    data = nl.message(5, 1, 7, INET, nl.text(1, "a")) + nl.message(6, 0, 8, INET, b"")
    assert [found[:4] for found in nl.messages(data)] == [(5, 1, 7, 0), (6, 0, 8, 0)]
    assert next(nl.messages(data))[4][4:] == nl.text(1, "a")


# --- the socket ---


def table(kind: int, name: str) -> tuple[int, int, int, bytes]:
    return code(kind), nl.F_CREATE if kind == NEW_TABLE else 0, INET, nl.text(1, name)


def names(channel: nl.Channel) -> list[str]:
    return [nl.string(nl.attribute_map(body)[1]) for body in channel.dump(code(GET_TABLE), INET)]


def batches() -> None:
    channel = nl.Channel()
    channel.batch([table(NEW_TABLE, "one"), table(NEW_TABLE, "two")])
    assert names(channel) == ["one", "two"]
    with pytest.raises(OSError, match="No such file") as caught:
        channel.batch([table(DEL_TABLE, "one"), table(DEL_TABLE, "three"), table(DEL_TABLE, "two")])
    assert caught.value.errno == errno.ENOENT
    assert names(channel) == ["one", "two"]  # all or nothing, and no stray answer is in the way
    channel.batch([table(DEL_TABLE, "one"), table(DEL_TABLE, "two")])
    assert names(channel) == []
    channel.close()


@pytest.mark.root
def test_a_batch_is_one_transaction(lab: Lab) -> None:
    lab.host.call(batches)


def missing() -> list[int]:
    channel = nl.Channel()
    found = []
    for kind, body in ((GET_TABLE, nl.text(1, "nowhere")), (GET_RULE, nl.text(1, "nowhere") + nl.text(2, "x"))):
        try:
            channel.get(code(kind), INET, body)
        except OSError as error:
            found.append(error.errno or 0)
    channel.get(code(GET_GENERATION), 0)
    return found


@pytest.mark.root
def test_what_is_missing_is_enoent(lab: Lab) -> None:
    assert lab.host.call(missing) == [errno.ENOENT, errno.ENOENT]


def unprivileged() -> list[int]:
    os.setgid(65534)
    os.setuid(65534)
    channel, found = nl.Channel(), []
    for call in (
        lambda: channel.get(code(GET_GENERATION), 0),
        lambda: list(channel.dump(code(GET_TABLE), INET)),
        lambda: channel.batch([table(NEW_TABLE, "one")]),
    ):
        try:
            call()
        except OSError as error:
            found.append(error.errno or 0)
    return found


@pytest.mark.root
def test_without_root_the_kernel_refuses(lab: Lab) -> None:
    assert lab.host.call(unprivileged) == [errno.EPERM] * 3
