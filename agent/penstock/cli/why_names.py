"""What the daemon remembers of the name or the address that `penstock why` is about."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from penstock.cli.client import ask
from penstock.cli.format import moment
from penstock.core.connection import Connection, as_sent
from penstock.core.lookups import Reason
from penstock.core.policy import Address, AddressPeer, Direction, NamePeer, Sentence
from penstock.core.text import duration
from penstock.core.wire import Json, Message
from penstock.errors import PenstockError

SHOWN = 4
"""Addresses of a name, or names of an address, that a line spells out."""


@dataclass(frozen=True, slots=True)
class Known:
    """`said` is the daemon's answer to the command `names`, about `address` or a name (None)."""

    said: Json
    now: datetime
    address: Address | None

    @property
    def learned(self) -> Mapping[Address, Collection[str]]:
        """The names that lead to the address now."""
        if self.address is None:
            return {}
        names = [name for name, until in self._pairs("names") if until > self.now]
        return {self.address: names} if names else {}

    def as_json(self) -> dict[str, Any]:
        """Keys of the answer for programs."""
        return {key: self.said.get(key) for key in KEYS}

    def lines(self, *, allowed: bool) -> Iterator[str]:
        """For people; `allowed`: what was asked about is."""
        if not self.said.get("resolving"):
            return
        if self.address is None:
            yield from self._of_name(allowed)
        elif not self.address.is_loopback:
            yield from self._of_address(allowed)

    def _of_name(self, allowed: bool) -> Iterator[str]:
        found = self._pairs("addresses")
        if found:
            shown = ", ".join(f"{address} for another {self._left(until)}" for address, until in found[:SHOWN])
            yield f"learned now: {shown}{_more(found)}"
        elif allowed:
            yield "not looked up lately: the next look-up opens its addresses"
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
        asked = list(self._asked("asked", "without a rule"))
        yield from asked
        if not found and not asked and not allowed:
            yield "literal address: nobody has looked it up"

    def _asked(self, verb: str, why: str) -> Iterator[str]:
        asked = self.said.get("asked")
        when = moment(asked.get("when")) if isinstance(asked, dict) else None
        if when is not None and isinstance(asked, dict):
            reason = asked.get("reason")
            yield f"{verb} {asked.get('name')} {self._ago(when)} ago, {WORDS.get(reason, why)}"

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
    Reason.RATE.value: "too many new names in a short time",
    Reason.LOCKED.value: "when the workload was locked",
}


def known(run: Path, workload: str, sentence: Sentence, now: datetime) -> Known | None:
    """Ask the daemon; None when the question is about nothing that is looked up, or nobody answers."""
    peer = sentence.peer
    if sentence.direction is not Direction.OUT or not isinstance(peer, AddressPeer | NamePeer):
        return None
    address = None
    if isinstance(peer, AddressPeer):
        connection = Connection(workload, Direction.OUT, sentence.protocol, peer.address)
        address = as_sent(connection).remote
    name = peer.pattern if isinstance(peer, NamePeer) else str(address)
    try:
        return Known(ask(run, Message("names", {"workload": workload, "name": name})), now, address)
    except PenstockError:
        return None


def _more(found: Collection[Any]) -> str:
    return f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
