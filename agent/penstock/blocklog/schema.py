"""What the index of the block log holds: where in the log each block's last line is, and what sums are made of.

No text of the log is in it.  Whatever is shown is read from the log, at the place that the index gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from penstock.core.block_keys import destination, group_key
from penstock.core.blocks import Block

VERSION = 1
APPLICATION = 0x70656E73
"""Another version, or a file that is no index of ours, is made anew (`PRAGMA user_version, application_id`)."""

BLOCKS = """(
    place INTEGER PRIMARY KEY, id BLOB UNIQUE NOT NULL, kind INTEGER NOT NULL, first INTEGER NOT NULL,
    last INTEGER NOT NULL, count INTEGER NOT NULL, unlogged INTEGER NOT NULL)"""
KINDS = """(
    id INTEGER PRIMARY KEY, digest INTEGER UNIQUE NOT NULL, workload INTEGER NOT NULL, row INTEGER NOT NULL,
    far INTEGER NOT NULL, who INTEGER NOT NULL, inward INTEGER NOT NULL)"""
TABLES = (
    "PRAGMA page_size = 8192",
    f"PRAGMA application_id = {APPLICATION}",
    "BEGIN IMMEDIATE",
    f"CREATE TABLE kinds {KINDS}",
    f"CREATE TABLE blocks {BLOCKS}",
    "CREATE INDEX by_kind ON blocks (kind, last, first, count, unlogged)",
    "CREATE TABLE segments (number INTEGER PRIMARY KEY, inode INTEGER NOT NULL, end INTEGER NOT NULL,"
    " head_size INTEGER NOT NULL, head BLOB NOT NULL, tail BLOB NOT NULL, malformed INTEGER NOT NULL)",
    "CREATE TABLE secret (key BLOB NOT NULL)",
    f"PRAGMA user_version = {VERSION}",
    "COMMIT",
)
"""A kind has what all its blocks share; sums are made of kinds first."""

KEY_SIZE = 16
_PLACE_BITS = 40
COLUMN_OF = {"row": "row", "destination": "far", "process": "who", "workload": "workload"}

Entry = tuple[int, bytes, int, int, int, int, int]
Shared = tuple[object, ...]


def place(number: int, offset: int) -> int:
    """Where a line is: the number of its file, from the oldest on, and its first byte there."""
    return number << _PLACE_BITS | offset


def place_parts(value: int) -> tuple[int, int]:
    """The number and the offset."""
    return value >> _PLACE_BITS, value & (1 << _PLACE_BITS) - 1


def id_of(text: str) -> bytes:
    """A block's id as the index has it: a prefix of the text is a prefix of this."""
    return text.encode("utf-8", "surrogatepass")


def millis(seconds: float) -> int:
    """As times are in the log."""
    return round(seconds * 1000)


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys are hashes, under a key of each index: whoever is watched must not be able to make two that are the
    same."""

    secret: bytes

    def of(self, *what: object) -> int:
        """The key of a few strings, numbers and None."""
        data = repr(what).encode("utf-8", "surrogatepass")
        return int.from_bytes(blake2b(data, digest_size=8, key=self.secret).digest()) >> 1

    def group(self, block: Block, by: str) -> int:
        """The key of the block in the sums of `by`."""
        if by == "row":
            return self.of(*destination(block))
        if by == "workload":
            return self.of(block.workload)
        return self.of(group_key(block, by), block.workload)

    def kind(self, block: Block) -> tuple[int, int, int, int, int, int]:
        """The columns of the block's kind, but for its id."""
        keys = [self.group(block, by) for by in ("workload", "row", "destination", "process")]
        inward = block.direction == "in"
        return self.of(*keys, inward), keys[0], keys[1], keys[2], keys[3], inward


def shared(block: Block) -> Shared:
    """What blocks of one kind share."""
    return destination(block), group_key(block, "destination"), block.process.comm


def entry(block: Block, where: int, kind: int) -> Entry:
    """The row of a block whose line is at the place `where`."""
    return (
        where,
        id_of(block.id),
        kind,
        millis(block.first),
        millis(block.last),
        block.count,
        block.unlogged,
    )
