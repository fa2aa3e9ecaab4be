"""Expressions of a rule as the kernel lists them (include/uapi/linux/netfilter/nf_tables.h)."""

from __future__ import annotations

import struct
from itertools import islice

from penstock.kernel import nfnetlink as nl

_SOCKET, _COMPARE = b"socket\0", b"cmp\0"
_CGROUP = 3  # NFT_SOCKET_CGROUPV2
_EQUAL = 0  # NFT_CMP_EQ


def governed(expressions: bytes) -> int | None:
    """The id of the cgroup, if the rule begins with comparing its packet's with one and goes on when it is that.

    `expressions` is NFTA_RULE_EXPRESSIONS.
    """
    first = islice(nl.attributes(expressions), 2)
    found = [nl.attribute_map(expressions, low, high) for _, low, high in first]
    if [e.get(1) for e in found] != [_SOCKET, _COMPARE]:
        return None
    loaded, compared = (nl.attribute_map(e[2]) for e in found)
    value = nl.attribute_map(compared.get(3, b"")).get(1, b"")
    if (loaded.get(1), compared.get(2), len(value)) != (_CGROUP.to_bytes(4), _EQUAL.to_bytes(4), 8):
        return None
    return int(struct.unpack("=Q", value)[0])
