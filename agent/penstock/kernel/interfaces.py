"""Names of network interfaces, which records of packets have by number."""

from __future__ import annotations

import socket
from collections.abc import Iterable


def names(numbers: Iterable[int | None]) -> dict[int | None, str]:
    """Number -> name in the network namespace of the calling thread; "" for one that is none, or is gone."""
    return {number: _name(number) for number in set(numbers)}


def _name(number: int | None) -> str:
    if not number or number >> 31:
        return ""
    try:
        return socket.if_indextoname(number)
    except OSError:
        return ""
