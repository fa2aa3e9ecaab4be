"""The cgroup that a rule compares with, as the kernel lists the rule."""

from __future__ import annotations

import struct

import pytest

from penstock.kernel import nfnetlink as nl
from penstock.kernel import nft_rules


def expression(name: str, *attributes: bytes) -> bytes:
    return nl.nested(1, nl.text(1, name), nl.nested(2, *attributes))


def number(kind: int, value: int) -> bytes:
    return nl.attribute(kind, struct.pack(">I", value))


def compare(value: bytes, operator: int = 0) -> bytes:
    return expression("cmp", number(1, 1), number(2, operator), nl.nested(3, nl.attribute(1, value)))


SOCKET = expression("socket", number(1, 3), number(2, 1), number(3, 2))
ID = struct.pack("=Q", 4711)


def test_the_id_is_read() -> None:
    assert nft_rules.governed(SOCKET + compare(ID) + expression("immediate")) == 4711


@pytest.mark.parametrize(
    "rule",
    [
        b"",
        SOCKET,
        compare(ID),
        SOCKET + compare(ID[:4]),
        SOCKET + compare(ID, operator=1),  # is it not
        expression("socket", number(1, 1)) + compare(ID),  # the mark
        expression("meta", number(1, 3)) + SOCKET + compare(ID),
        SOCKET + expression("bitwise") + compare(ID),
        SOCKET + expression("cmp"),
    ],
)
def test_other_rules_compare_with_none(rule: bytes) -> None:
    assert nft_rules.governed(rule) is None
