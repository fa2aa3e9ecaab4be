"""Names as they stand in DNS messages: bytes <-> wire form <-> text.

Wire form here is uncompressed: labels with their lengths, the root's zero at the end.  Lengths are below 64
and so below `A`: `bytes.lower` folds the letters of a name and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from penstock.core.dns_codes import HEADER_SIZE

LONGEST = 255
"""Bytes of a name in wire form, RFC 1035."""

MAX_POINTERS = 16
"""Compression pointers in one name.  Each goes back, but a message of them alone could hold 32,000."""

MAX_STEPS = 10_000
"""Of reading one answer; one takes a tenth of a microsecond or so.  In 64 KiB there is room for names and
parameters that take thirty milliseconds, and hundreds of answers may come at once.
"""

POINTER = 5
"""Steps of following one."""

_PLAIN = re.compile(rb"[a-z0-9_.-]+\Z")
_CACHED = 8192  # the names of a host repeat


class Malformed(ValueError):
    """Not a DNS message that may be looked at any further."""


class OverBound(Malformed):
    """Well-formed as far as it was read, and more than we are ready to hold."""


class Steps:
    """Those that are left of one message."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_STEPS

    def take(self, count: int) -> None:
        """So many more were made.  Raises OverBound when there are not so many."""
        self.left -= count
        if self.left < 0:
            raise OverBound("an answer that takes too long to read")


def name_end(data: bytes, at: int) -> int:
    """Where the name that begins at `at` ends, for a name without compression.  Malformed, IndexError."""
    start = at
    while length := data[at]:
        if length > 63:
            raise Malformed("a label is longer than 63 bytes, or compressed where that is not allowed")
        at += length + 1
        if at - start >= LONGEST:
            raise Malformed("a name is longer than 255 bytes")
    return at + 1


def read_name(data: bytes, at: int, steps: Steps) -> tuple[bytes, int]:
    """The name that begins at `at` in wire form, letters as written, and where its own bytes end.

    What a pointer leads to lies wholly before the part that holds it, and behind the header: so this ends.
    Raises Malformed, and IndexError where the message ends inside the name.
    """
    name, end, pointers, start, bound = b"", 0, 0, at, len(data)
    while True:
        length = data[at]
        if length == 0:
            name += data[start : at + 1]
            if len(name) > LONGEST or at >= bound:
                raise Malformed("a name is longer than 255 bytes, or runs into itself")
            steps.take(len(name) // 2 + pointers * POINTER)
            return name, end or at + 1
        if length < 64:
            at += length + 1
            if at - start >= LONGEST:
                raise Malformed("a name is longer than 255 bytes")
            continue
        target = (length & 63) << 8 | data[at + 1]
        pointers += 1
        if length < 192 or not HEADER_SIZE <= target < start or at + 2 > bound or pointers > MAX_POINTERS:
            raise Malformed("a compression pointer that leads nowhere")
        name += data[start:at]
        end = end or at + 2
        at, start, bound = target, target, start


@lru_cache(_CACHED)
def text_of(wire: bytes) -> tuple[str, bool]:
    """A lower-case name in wire form as text, without the last dot, and whether it is plain.

    Plain means: letters, digits, `-` and `_` only.  Any other byte becomes `\\DDD`, so that what is not
    plain looks like no name that is; the root is the empty text, and plain.
    """
    labels = []
    at = 0
    while length := wire[at]:
        labels.append(wire[at + 1 : at + 1 + length])
        at += length + 1
    joined = b".".join(labels)
    if not labels or (_PLAIN.match(joined) and joined.count(b".") == len(labels) - 1):
        return joined.decode("ascii"), True
    return ".".join("".join(map(_escaped, label)) for label in labels), False


def _escaped(byte: int) -> str:
    return chr(byte) if _PLAIN.match(bytes((byte,))) and byte != 0x2E else f"\\{byte:03d}"


@lru_cache(_CACHED)
def wire_of(name: str) -> bytes:
    """The wire form of a plain name as `text_of` returns it; "" is the root.  ValueError for anything else."""
    if not name:
        return b"\0"
    raw = name.encode("ascii", "replace")  # by `?`, which is not plain
    labels = raw.split(b".")
    if not _PLAIN.match(raw) or not all(0 < len(label) < 64 for label in labels):
        raise ValueError(f"not a plain name: {name!r}")
    wire = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    if len(wire) > LONGEST:
        raise ValueError("a name is longer than 255 bytes")
    return wire


def is_plain(name: str) -> bool:
    """Whether it is a plain name as `text_of` returns it, and not the root."""
    try:
        return len(wire_of(name)) > 1
    except ValueError:
        return False


def and_above(name: bytes) -> Iterator[bytes]:
    """The name and all that it is below, up to the root; in wire form."""
    while True:
        yield name
        if not name[0]:
            return
        name = name[name[0] + 1 :]
