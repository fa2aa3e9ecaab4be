"""Learned addresses, and the flows they let in, in the sets that `core.name_chains` names.

Raw netlink: through libnftables an element costs ten times as much, and more with each workload.  An element that
is there is deleted and added again, because before Linux 6.12 adding alone does not move its end; in one
transaction packets see no gap.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence

from penstock.core.name_chains import ANSWERING, PORT
from penstock.core.name_elements import Opened, Retract
from penstock.core.ruleset import TABLE
from penstock.errors import PenstockError
from penstock.kernel import nfnetlink as nl
from penstock.kernel.nft import DEL_ELEMENT, INET, NEW_ELEMENT, Nft, Part

KEY, TIMEOUT, EXPIRATION, USERDATA = 1, 4, 5, 6  # NFTA_SET_ELEM_*
COMMENT = 0  # NFTNL_UDATA_SET_ELEM_COMMENT: as nft lists it
LONGEST_COMMENT = 127  # bytes; nft takes no longer one
BATCH = 500
"""Elements of a transaction: a batch must fit into the socket's send buffer."""

ATTEMPTS = 5
ANSWERS = 6
"""Seconds: a few ticks of the daemon."""


def learn(nft: Nft, addresses: Sequence[Opened]) -> None:
    """Put them into their sets, each with its end anew; PenstockError when the kernel does not take them all."""
    for start in range(0, len(addresses), BATCH):
        nft.commit(list(_learning(addresses[start : start + BATCH])), "a learned address")


def _learning(addresses: Iterable[Opened]) -> Iterator[Part]:
    for a in addresses:
        key = nl.nested(KEY, nl.attribute(1, a.address))
        timeout = nl.attribute(TIMEOUT, struct.pack(">Q", max(1, int(a.seconds * 1000))))
        add = _message(a.set, key + timeout + _comment(a.name))
        yield _NEW, nl.F_CREATE, INET, add
        if not a.new:
            yield _DEL, 0, INET, _message(a.set, key)
            yield _NEW, nl.F_CREATE, INET, add


_NEW, _DEL = (nl.SUBSYS_NFTABLES << 8 | kind for kind in (NEW_ELEMENT, DEL_ELEMENT))


def _message(set_name: str, element: bytes) -> bytes:
    return nl.text(1, TABLE) + nl.text(2, set_name) + nl.nested(3, nl.attribute(1 | nl.NESTED, element))


def _comment(name: str) -> bytes:
    value = name.encode() + b"\0"
    if len(value) > LONGEST_COMMENT:
        return b""  # who reads it back does not know the name, and takes the address out when in doubt
    return nl.attribute(USERDATA, bytes((COMMENT, len(value))) + value)


def say_answering(nft: Nft) -> None:
    """Look-ups are answered, for `ANSWERS` seconds from now."""
    key = nl.nested(KEY, nl.attribute(1, struct.pack(">H", PORT)))
    add = _message(ANSWERING, key + nl.attribute(TIMEOUT, struct.pack(">Q", ANSWERS * 1000)))
    delete = _message(ANSWERING, key)
    again = (_NEW, nl.F_CREATE, INET, add)
    nft.commit([again, (_DEL, 0, INET, delete), again], "to be told that look-ups are answered")


def learned(nft: Nft, set_names: Iterable[str]) -> Iterator[Opened]:
    """What these sets hold; the name is empty where nobody wrote it down."""
    for set_name in set_names:
        for values in nft.elements(set_name):
            key = nl.attribute_map(values.get(KEY, b"")).get(1, b"")
            left = int.from_bytes(values.get(EXPIRATION, b"")) / 1000
            yield Opened(set_name, key, _name(values.get(USERDATA, b"")), left)


def _name(data: bytes) -> str:
    if len(data) < 3 or data[0] != COMMENT or data[1] != len(data) - 2:
        return ""
    return data[2:].rstrip(b"\0").decode("ascii", "replace")


def retract(nft: Nft, retractions: Iterable[Retract]) -> None:
    """Take them out, learned addresses as well as flows; PenstockError when they keep changing."""
    for gone in retractions:
        for _ in range(ATTEMPTS):
            keys = [nl.attribute_map(values.get(KEY, b"")).get(1, b"") for values in nft.elements(gone.set)]
            if _delete(nft, gone.set, [key for key in keys if (called(key) in gone.addresses) != gone.others]):
                break
        else:
            raise PenstockError(f"{gone.set} changes faster than it can be emptied", where=TABLE)


def renew(nft: Nft, opened: Sequence[Opened]) -> None:
    """Learn what is missing in its set."""
    held = {name: {a.address for a in learned(nft, [name])} for name in {a.set for a in opened}}
    learn(nft, [a for a in opened if a.address not in held[a.set]])


def _delete(nft: Nft, set_name: str, keys: Sequence[bytes]) -> bool:
    """False when one of them ran out meanwhile: then nothing of its batch was deleted."""
    whole = True
    for start in range(0, len(keys), BATCH):
        batch = keys[start : start + BATCH]
        parts = [(_DEL, 0, INET, _message(set_name, nl.nested(KEY, nl.attribute(1, key)))) for key in batch]
        try:
            nft.commit(parts, "to take an address out")
        except PenstockError:
            whole = False
    return whole


def called(key: bytes) -> bytes:
    """The address that an element is about: of a flow it is who was called (see `render_nft`)."""
    match len(key):
        case 20:
            return key[8:12]
        case 44:
            return key[20:36]
    return key
