"""What the daemon remembers of the name or the address that `penstock why` is about."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from penstock.cli.client import ask
from penstock.cli.format import moment
from penstock.core.connection import Connection, as_sent
from penstock.core.lookups import Reason
from penstock.core.policy import Address, AddressPeer, Direction, NamePeer, Sentence
from penstock.core.text import duration
from penstock.core.verdict import NamesAt
from penstock.core.wire import Json, Message
from penstock.errors import PenstockError

SHOWN = 4
"""Addresses of a name, or names of an address, that a line spells out."""


@dataclass(frozen=True, slots=True)
class Known:
    """`said` is the daemon's answer to the command `names`, about that address or name."""

    said: Json
    now: datetime
    about: Address | str

    @property
    def learned(self) -> NamesAt:
        """The names that lead to the address now; of a name, the addresses where it is."""
        if isinstance(self.about, str):
            found = (address for address, until in self._pairs("addresses") if until > self.now)
            return {ip_address(address): [self.about] for address in found}
        names = [name for name, until in self._pairs("names") if until > self.now]
        return {self.about: names} if names else {}

    def as_json(self) -> dict[str, Any]:
        """Keys of the answer for programs."""
        return {key: self.said.get(key) for key in KEYS}

    def lines(self, *, allowed: bool) -> Iterator[str]:
        """For people; `allowed`: what was asked about is."""
        if not self.said.get("resolving"):
            return
        if isinstance(self.about, str):
            yield from self._of_name(allowed)
        elif not self.about.is_loopback:
            yield from self._of_address(allowed)

    def _of_name(self, allowed: bool) -> Iterator[str]:
        found = self._pairs("addresses")
        if found:
            shown = ", ".join(f"{address} for another {self._left(until)}" for address, until in found[:SHOWN])
            yield f"learned now: {shown}{_more(found)}"
        elif allowed and self._reason() not in AGAIN:
            yield "not answered lately: the next answer opens its addresses"
        yield from self._asked("refused", "not answered")

    def _of_address(self, allowed: bool) -> Iterator[str]:
        found = self._pairs("names")
        current = [(name, until) for name, until in found if until > self.now]
        if current:
            shown = ", ".join(f"{name} for another {self._left(until)}" for name, until in current[:SHOWN])
            yield f"learned for {shown}{_more(current)}"
        elif found:
            name, until = found[0]
            yield f"learned for {name}, expired {self._ago(until)} ago; a look-up opens it again"
        asked = list(self._asked("asked", "not in its rules"))
        yield from asked
        if not found and not asked and not allowed:
            yield "literal address: nobody has looked it up"

    def _asked(self, verb: str, why: str) -> Iterator[str]:
        asked = self.said.get("asked")
        when = moment(asked.get("when")) if isinstance(asked, dict) else None
        if when is not None and isinstance(asked, dict):
            yield f"{verb} {asked.get('name')} {self._ago(when)} ago, {WORDS.get(self._reason(), why)}"

    def _reason(self) -> Any:
        asked = self.said.get("asked")
        return asked.get("reason") if isinstance(asked, dict) else None

    def _pairs(self, key: str) -> list[tuple[str, datetime]]:
        """(address or name, end)."""
        one = {"addresses": "address", "names": "name"}[key]
        said = self.said.get(key)
        rows = [row for row in said if isinstance(row, dict)] if isinstance(said, list) else []
        ends = ((str(row.get(one)), moment(row.get("until"))) for row in rows)
        return [(what, until) for what, until in ends if until is not None]

    def _left(self, until: datetime) -> str:
        return f"{max(0, int((until - self.now).total_seconds()))} s"

    def _ago(self, when: datetime) -> str:
        return duration((self.now - when).total_seconds())


KEYS = ("resolving", "addresses", "names", "asked")

WORDS: Mapping[Any, str] = {
    Reason.NAME.value: "not in its rules",
    Reason.TYPE.value: "for a type of record that is not given out",
    Reason.PRIVATE_ANSWER.value: "because of the addresses in the answer",
    Reason.UNFIT_ANSWER.value: "because of the addresses in the answer",
    Reason.RATE.value: "too many new names in a short time",
    Reason.LOCKED.value: "when the workload was locked",
}

AGAIN = (Reason.PRIVATE_ANSWER.value, Reason.UNFIT_ANSWER.value, Reason.RATE.value)
"""Why a name that the rules allow was refused, and may be the next time: they have no part in it."""


def known(run: Path, workload: str, sentence: Sentence, now: datetime) -> Known | None:
    """Ask the daemon; None when the question is about nothing that is looked up, or nobody answers."""
    peer = sentence.peer
    if sentence.direction is not Direction.OUT or not isinstance(peer, AddressPeer | NamePeer):
        return None
    about = peer.pattern if isinstance(peer, NamePeer) else _sent(peer.address)
    try:
        return Known(ask(run, Message("names", {"workload": workload, "name": str(about)})), now, about)
    except PenstockError:
        return None


def _sent(address: Address) -> Address:
    """The address as a packet to it carries it."""
    found = as_sent(Connection("", Direction.OUT, "tcp", address)).remote
    assert found is not None
    return found


def _more(found: Collection[Any]) -> str:
    return f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
