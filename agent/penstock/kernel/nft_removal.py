"""Remove our table by netlink alone, so that it goes also where nftables has been removed before."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from penstock.core.ruleset import MARKER, TABLE
from penstock.errors import PenstockError
from penstock.kernel import nfnetlink as nl

INET = 1  # NFPROTO_INET
DELETE_TABLE, GET_OBJECT = 2, 19
COUNTER_OBJECT = 1  # NFT_OBJECT_COUNTER


def is_there() -> bool:
    """Whether this network namespace has a table of our name that carries our marker.  PenstockError: unknown."""
    body = nl.text(1, TABLE) + nl.text(2, MARKER) + nl.attribute(3, struct.pack(">I", COUNTER_OBJECT))
    with _channel() as channel:
        try:
            channel.get(_code(GET_OBJECT), INET, body)
        except OSError as e:
            if e.errno == errno.ENOENT:
                return False
            raise
    return True


def delete() -> None:
    """Delete it with everything in it, in one transaction; nothing to do when it is gone.  PenstockError."""
    with _channel() as channel:
        try:
            channel.batch([(_code(DELETE_TABLE), 0, INET, nl.text(1, TABLE))])
        except OSError as e:
            if e.errno != errno.ENOENT:
                raise


@contextmanager
def _channel() -> Iterator[nl.Channel]:
    channel = nl.Channel()
    try:
        yield channel
    except OSError as e:
        hint = "run it as root" if e.errno == errno.EPERM else "see: nft list tables"
        where = f"table inet {TABLE}"
        raise PenstockError(f"nf_tables does not answer: {e.strerror}", where=where, hint=hint) from e
    finally:
        channel.close()


def _code(kind: int) -> int:
    return nl.SUBSYS_NFTABLES << 8 | kind
