"""Learned addresses, and the flows they let in, in the sets that `core.name_chains` names.

Raw netlink: through libnftables an element costs ten times as much, and more with each workload.  An element that
is there is deleted and added again, because before Linux 6.12 adding alone does not move its end; in one
transaction packets see no gap.
"""

from __future__ import annotations

import contextlib
import errno
import math
import struct
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from penstock.core.lookup_chains import PORT
from penstock.core.name_chains import LONG, holds_flows, revoked_of
from penstock.core.name_elements import Opened, Retract
from penstock.core.resolver_wire import THERE
from penstock.core.ruleset import TABLE
from penstock.errors import PenstockError
from penstock.kernel import nfnetlink as nl
from penstock.kernel.nft import DEL_ELEMENT, INET, NEW_ELEMENT, Late, Nft, Part

KEY, TIMEOUT, EXPIRATION, USERDATA = 1, 4, 5, 6  # NFTA_SET_ELEM_*
COMMENT = 0  # NFTNL_UDATA_SET_ELEM_COMMENT: as nft lists it
LONGEST_COMMENT = 127  # bytes; nft takes no longer one
BATCH = 500
"""Elements of a transaction: a batch must fit into the socket's send buffer."""

ATTEMPTS = 5
LOOKING, SWEEPING = 3.0, 1.0
"""Seconds for all sets of addresses, and for all sets of flows: nobody's look-ups are answered meanwhile.

The kernel begins anew for each 32 KiB of a list: 100,000 elements take a second, ten times as many a hundred.
"""

LEAST = 0.05
"""Seconds that each set has at least: enough for thousands of elements, so that nobody pays for another's."""

REVOKED = ("revoked4_", "revoked6_")
T = TypeVar("T")


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
        """Learn what is missing in its set; all, where there is no time to look.

        Sets may be gone, or made anew, since something was taken out.
        """
        self._revoked = None
        held: dict[str, set[bytes]] = {}
        for name, until in _in_turn({a.set for a in opened}, LOOKING):
            with contextlib.suppress(Late):
                held[name] = set(self._nft.keys(name, until))
        looked = [a for a in opened if a.set in held and a.address not in held[a.set]]
        self.learn([*looked, *(replace(a, new=True) for a in opened if a.set not in held)])

    def retract(self, retractions: Iterable[Retract]) -> None:
        """Take them out, learned addresses as well as flows; PenstockError when they keep changing.

        What is known goes first, in all sets.  Where others are to go, and there is no time to find them, all go:
        who is there for good reason is learned anew.
        """
        self._revoked = None  # somebody else may have changed it: that may be why we are asked
        there = set(self._nft.sets())
        found = [gone for gone in retractions if gone.set in there]
        flows = [gone for gone in found if holds_flows(gone.set)]
        addresses = [gone for gone in found if not holds_flows(gone.set)]
        revocable = {gone.set for gone in flows if revoked_of(gone.set) in there}
        for gone, until in _in_turn(addresses, LOOKING):
            with contextlib.suppress(Late):
                self._delete(gone.set, _known(gone), until)
        for gone in flows:
            if gone.set in revocable:
                self._revoke(gone.set, _known(gone))
        for gone, until in _in_turn(addresses, LOOKING):
            self._empty(gone, until)
        for gone, until in _in_turn(flows, SWEEPING):
            self._end_flows(gone, until, can_revoke=gone.set in revocable)

    def _empty(self, gone: Retract, until: float) -> None:
        if not gone.others:
            until = math.inf
        try:
            for _ in range(ATTEMPTS):
                if not (keys := self._keys(gone, until)):
                    return
                self._delete(gone.set, keys, until)
        except Late:
            self._flush(gone.set)
            return
        raise _restless(gone)

    def _end_flows(self, gone: Retract, until: float, *, can_revoke: bool) -> None:
        """None of them lets anything through from now on; then make room.

        A packet may write a flow again while it is taken out (nft_rhash_update in net/netfilter/nft_set_hash.c
        does not see what a transaction is about to delete), a look misses some while the kernel sweeps the set,
        and there may be more than there is time for.  Of known addresses each is revoked, and runs out by itself.
        """
        if not can_revoke:
            until = time.monotonic() + SWEEPING
        try:
            while keys := self._keys(gone, until):
                if can_revoke:
                    self._revoke(gone.set, {called(key) for key in keys}, until)
                self._delete(gone.set, keys, until)
        except Late:
            if gone.others:
                self._end_all_flows(gone, can_revoke=can_revoke)
            elif not can_revoke:
                raise _restless(gone) from None

    def _end_all_flows(self, gone: Retract, *, can_revoke: bool) -> None:
        """Those to addresses that are still learned begin anew with their next packet.

        A packet under way may write one again.  Those are few: they are revoked, and all go once more.
        """
        for _ in range(2):
            self._flush(gone.set)
            until = time.monotonic() + LEAST
            with contextlib.suppress(Late):
                if not (keys := self._keys(gone, until)):
                    return
                if can_revoke:
                    self._revoke(gone.set, {called(key) for key in keys}, until)

    def _keys(self, gone: Retract, until: float) -> list[bytes]:
        """What the set holds of it; Late when it is not looked through by then."""
        keys = self._nft.keys(gone.set, until)
        return [key for key in keys if (called(key) in gone.addresses) != gone.others]

    def _delete(self, name: str, keys: Iterable[bytes], until: float) -> None:
        """Those that are there; Late when there is no time for all of them."""
        for batch in _batches(list(keys), until):
            parts = [part for key in batch for part in _absent(name, key)]
            with contextlib.suppress(PenstockError):  # no room to be sure of what ran out: it is looked again
                self._nft.commit(parts, "to take an address out")

    def _flush(self, name: str) -> None:
        self._nft.commit([(_DEL, 0, INET, nl.text(1, TABLE) + nl.text(2, name))], "to empty a set")

    def _revoke(self, flows: str, addresses: Iterable[bytes], until: float = math.inf) -> None:
        """End the flows of that set to these addresses; Late when there is no time for all of them.

        When there is no room for more, those of the last days are forgotten.
        """
        name = revoked_of(flows)
        held = self._all_revoked().setdefault(name, set())
        new = [address for address in addresses if address not in held]
        try:
            self._write_revoked(name, new, until)
        except PenstockError as e:
            if not (isinstance(e.__cause__, OSError) and e.__cause__.errno == errno.ENFILE):
                raise
            self._forget_revoked(name)
            held.clear()
            self._write_revoked(name, new, until)

    def _forget_revoked(self, name: str) -> None:
        """Empty that set.

        Flows to them may have been left behind, so all flows go first: nothing writes one of those again, because
        they are revoked still.
        """
        self._flush("flows" + name.removeprefix("revoked"))
        self._flush(name)

    def _write_revoked(self, name: str, addresses: Sequence[bytes], until: float) -> None:
        timeout = nl.attribute(TIMEOUT, struct.pack(">Q", LONG * 1000))
        for batch in _batches(addresses, until):
            parts = [(_NEW, nl.F_CREATE, INET, _message(name, _key(address) + timeout)) for address in batch]
            self._nft.commit(parts, "to revoke an address")
            self._all_revoked()[name].update(batch)

    def _all_revoked(self) -> dict[str, set[bytes]]:
        """By set, without empty ones; a set for which there is no time is emptied."""
        if self._revoked is None:
            found: dict[str, set[bytes]] = {}
            names = [name for name in self._nft.sets() if name.startswith(REVOKED)]
            for name, until in _in_turn(names, LOOKING):
                try:
                    found[name] = set(self._nft.keys(name, until))
                except Late:
                    self._forget_revoked(name)
            self._revoked = {name: addresses for name, addresses in found.items() if addresses}
        return self._revoked


def _in_turn(things: Collection[T], seconds: float) -> Iterator[tuple[T, float]]:
    """Each with the end of its time: they share so many seconds, and what one leaves is for those behind it."""
    deadline = time.monotonic() + seconds
    for left, thing in zip(range(len(things), 0, -1), things, strict=True):
        now = time.monotonic()
        yield thing, now + max(LEAST, (deadline - now) / left)


def _batches(keys: Sequence[bytes], until: float) -> Iterator[Sequence[bytes]]:
    """Late when the time is over before the last."""
    for start in range(0, len(keys), BATCH):
        if time.monotonic() > until:
            raise Late
        yield keys[start : start + BATCH]


def _known(gone: Retract) -> frozenset[bytes]:
    """The addresses it is about, as far as they are known."""
    return gone.known if gone.others else gone.addresses


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
