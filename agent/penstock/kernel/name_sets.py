"""Learned addresses, and the flows they let in, in the sets that `core.name_chains` names.

Raw netlink: through libnftables an element costs ten times as much, and more with each workload.  An element that
is there is deleted and added again, because before Linux 6.12 adding alone does not move its end; in one
transaction packets see no gap.
"""

from __future__ import annotations

import contextlib
import math
import struct
import time
from collections.abc import Collection, Iterable, Iterator, Sequence

from penstock.core.lookup_chains import PORT
from penstock.core.name_chains import LONG, holds_flows, revoked_of
from penstock.core.name_elements import Opened, Retract
from penstock.core.resolver_wire import THERE
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
SWEEPING = 1.0
"""Seconds that flows of one set are taken out for: nobody's look-ups are answered meanwhile."""

REVOKED = ("revoked4_", "revoked6_")


def _learning(addresses: Iterable[Opened]) -> Iterator[Part]:
    for a in addresses:
        key = _key(a.address)
        timeout = nl.attribute(TIMEOUT, struct.pack(">Q", max(1, int(a.seconds * 1000))))
        add = _message(a.set, key + timeout + _comment(a.name))
        yield _NEW, nl.F_CREATE, INET, add
        if not a.new:
            yield _DEL, 0, INET, _message(a.set, key)
            yield _NEW, nl.F_CREATE, INET, add


_NEW, _DEL = (nl.SUBSYS_NFTABLES << 8 | kind for kind in (NEW_ELEMENT, DEL_ELEMENT))


def _message(set_name: str, element: bytes) -> bytes:
    return nl.text(1, TABLE) + nl.text(2, set_name) + nl.nested(3, nl.attribute(1 | nl.NESTED, element))


def _key(key: bytes) -> bytes:
    return nl.nested(KEY, nl.attribute(1, key))


def _absent(set_name: str, key: bytes) -> list[Part]:
    """Make sure that it is not there: what is not cannot be deleted."""
    element = _message(set_name, _key(key))
    return [(_NEW, nl.F_CREATE, INET, element), (_DEL, 0, INET, element)]


def _comment(name: str) -> bytes:
    value = name.encode() + b"\0"
    if len(value) > LONGEST_COMMENT:
        return b""  # who reads it back does not know the name, and takes the address out when in doubt
    return nl.attribute(USERDATA, bytes((COMMENT, len(value))) + value)


def say_there(nft: Nft, there: Iterable[str], gone: Iterable[str] = (), seconds: float = THERE) -> None:
    """Whoever these sets stand for is there for look-ups, for so many seconds from now; or is gone."""
    key = struct.pack(">H", PORT)
    timeout = nl.attribute(TIMEOUT, struct.pack(">Q", int(seconds * 1000)))
    parts = [part for name in (*there, *gone) for part in _absent(name, key)]
    parts += [(_NEW, nl.F_CREATE, INET, _message(name, _key(key) + timeout)) for name in there]
    nft.commit(parts, "to be told who answers look-ups")


def learned(nft: Nft, set_names: Iterable[str]) -> Iterator[Opened]:
    """What these sets hold; the name is empty where nobody wrote it down."""
    for set_name in set_names:
        for values in nft.elements(set_name):
            key = nl.attribute_map(values.get(KEY, b"")).get(1, b"")
            left = int.from_bytes(values.get(EXPIRATION, b"")) / 1000
            yield Opened(set_name, key, _name(values.get(USERDATA, b"")), left)


def has(nft: Nft, set_name: str, address: bytes) -> bool:
    """Whether the set holds the address now."""
    return nft.has_element(set_name, _key(address))


def _name(data: bytes) -> str:
    if len(data) < 3 or data[0] != COMMENT or data[1] != len(data) - 2:
        return ""
    return data[2:].rstrip(b"\0").decode("ascii", "replace")


class NameSets:
    """What is learned, and taken back; one thread uses it."""

    def __init__(self, nft: Nft) -> None:
        self._nft = nft
        self._revoked: dict[str, set[bytes]] | None = None  # by set; None: to be read

    def learn(self, addresses: Sequence[Opened]) -> None:
        """Put them into their sets, each with its end anew; PenstockError when the kernel does not take them all.

        Flows to them that were ended before, and are not forgotten yet, go on.
        """
        revoked = self._all_revoked()
        for start in range(0, len(addresses), BATCH):
            batch = addresses[start : start + BATCH]
            pairs = {(revoked_of(a.set), a.address) for a in batch} if revoked else set()
            again = [(name, address) for name, address in pairs if address in revoked.get(name, ())]
            parts = [part for name, address in again for part in _absent(name, address)]
            self._nft.commit([*_learning(batch), *parts], "a learned address")
            for name, address in again:
                revoked[name].discard(address)

    def renew(self, opened: Sequence[Opened]) -> None:
        """Learn what is missing in its set.  Sets may be gone, or made anew, since something was taken out."""
        self._revoked = None
        held = {name: {a.address for a in learned(self._nft, [name])} for name in {a.set for a in opened}}
        self.learn([a for a in opened if a.address not in held[a.set]])

    def retract(self, retractions: Iterable[Retract]) -> None:
        """Take them out, learned addresses as well as flows; PenstockError when they keep changing."""
        self._revoked = None  # somebody else may have changed it: that may be why we are asked
        there = set(self._nft.sets())
        for gone in retractions:
            if gone.set in there and holds_flows(gone.set):
                self._end_flows(gone, can_revoke=revoked_of(gone.set) in there)
            elif gone.set in there:
                self._empty(gone)

    def _empty(self, gone: Retract) -> None:
        self._delete(gone.set, gone.known)
        for _ in range(ATTEMPTS):
            if not (keys := self._keys(gone)):
                return
            self._delete(gone.set, keys)
        raise _restless(gone)

    def _end_flows(self, gone: Retract, *, can_revoke: bool) -> None:
        """None of them lets anything through from now on, if they can be revoked; then make room.

        A packet may write a flow again while it is taken out (nft_rhash_update in net/netfilter/nft_set_hash.c
        does not see what a transaction is about to delete), a look misses some while the kernel sweeps the set,
        and there may be more than there is time for.
        """
        if can_revoke:
            self._revoke(revoked_of(gone.set), gone.known if gone.others else gone.addresses)
        deadline = time.monotonic() + SWEEPING
        while keys := self._keys(gone):
            if can_revoke:
                self._revoke(revoked_of(gone.set), {called(key) for key in keys})
            self._delete(gone.set, keys, deadline)
            if time.monotonic() >= deadline:
                if not can_revoke:
                    raise _restless(gone)
                return  # each runs out by itself

    def _keys(self, gone: Retract) -> list[bytes]:
        """What the set holds of it."""
        keys = [nl.attribute_map(values.get(KEY, b"")).get(1, b"") for values in self._nft.elements(gone.set)]
        return [key for key in keys if (called(key) in gone.addresses) != gone.others]

    def _delete(self, name: str, keys: Iterable[bytes], deadline: float = math.inf) -> None:
        """Those that are there, until the deadline."""
        rest = list(keys)
        while rest and time.monotonic() < deadline:
            batch, rest = rest[:BATCH], rest[BATCH:]
            parts = [part for key in batch for part in _absent(name, key)]
            with contextlib.suppress(PenstockError):  # no room to be sure of what ran out: it is looked again
                self._nft.commit(parts, "to take an address out")

    def _revoke(self, name: str, addresses: Collection[bytes]) -> None:
        held = self._all_revoked().setdefault(name, set())
        new = [address for address in addresses if address not in held]
        timeout = nl.attribute(TIMEOUT, struct.pack(">Q", LONG * 1000))
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            parts = [(_NEW, nl.F_CREATE, INET, _message(name, _key(address) + timeout)) for address in batch]
            try:
                self._nft.commit(parts, "to revoke an address")
            except PenstockError:  # it is full of those of the last days, whose flows were taken out then
                flush = _DEL, 0, INET, nl.text(1, TABLE) + nl.text(2, name)
                self._nft.commit([flush, *parts], "to revoke an address")
                held.clear()
            held.update(batch)

    def _all_revoked(self) -> dict[str, set[bytes]]:
        if self._revoked is None:
            names = [name for name in self._nft.sets() if name.startswith(REVOKED)]
            held = {name: {a.address for a in learned(self._nft, [name])} for name in names}
            self._revoked = {name: addresses for name, addresses in held.items() if addresses}
        return self._revoked


def _restless(gone: Retract) -> PenstockError:
    return PenstockError(f"{gone.set} changes faster than it can be emptied", where=TABLE)


def called(key: bytes) -> bytes:
    """The address that an element is about: of a flow it is who was called (see `render_nft`)."""
    match len(key):
        case 20:
            return key[8:12]
        case 44:
            return key[20:36]
    return key
