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
from penstock.core.asking import Answer
from penstock.core.connection import Connection, as_sent
from penstock.core.explain_names import opens
from penstock.core.lookups import Reason
from penstock.core.name_rules import Index, name_rules
from penstock.core.policy import Address, AddressPeer, Direction, Mode, NamePeer, Policy, Sentence, Workload
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

    def lines(self, policy: Policy, workload: Workload, answer: Answer) -> Iterator[str]:
        """For people; `answer` is that of this policy to the question."""
        if not self.said.get("resolving"):
            return
        if isinstance(self.about, str):
            yield from self._of_name(answer.allow is True)
        elif not self.about.is_loopback:
            yield from self._of_address(policy, workload, answer)

    def _of_name(self, allowed: bool) -> Iterator[str]:
        found = self._pairs("addresses")
        if found:
            shown = ", ".join(f"{address} for another {self._left(until)}" for address, until in found[:SHOWN])
            yield f"learned now: {shown}{_more(found)}"
        elif allowed and self._reason() not in AGAIN:
            yield "not answered lately: the next answer opens its addresses"
        if (asked := self._asked()) is not None:
            why = WORDS.get(self._reason(), "not answered")
            then = " then" if self._reason() == Reason.NAME.value and self.said.get("rules") else ""
            yield f"refused {asked[0]} {self._ago(asked[1])} ago, {why}{then}"

    def _of_address(self, policy: Policy, workload: Workload, answer: Answer) -> Iterator[str]:
        found, asked = self._pairs("names"), self._asked()
        current = [(name, until) for name, until in found if until > self.now]
        if current:
            shown = ", ".join(f"{name} for another {self._left(until)}" for name, until in current[:SHOWN])
            yield f"learned for {shown}{_more(current)}"
        elif found:
            opening = (pair for pair in found if self._opens(policy, answer, pair[0]))
            name, until = next(opening, found[0])
            again = "; a look-up opens it again" if self._opens(policy, answer, name) else ""
            yield f"learned for {name}, expired {self._ago(until)} ago{again}"
        if asked is not None and asked[0] not in dict(found):
            rest = self._of_asked(policy, workload, answer, asked[0])
            yield f"asked {asked[0]} {self._ago(asked[1])} ago{rest}"
        if not found and asked is None and not answer.allow:
            yield "literal address: nobody has looked it up"

    def _of_asked(self, policy: Policy, workload: Workload, answer: Answer, name: str) -> str:
        """No rule had the name when it was asked, or the workload was locked since: and now?"""
        if not Index(name_rules(policy, workload, self.now)).of(name):
            return ", not in its rules"
        if self._opens(policy, answer, name):
            return ", and not since its rule is in force; a look-up opens it now"
        return "" if answer.allow or workload.mode is Mode.LOCK else ", and its rule does not open this"

    def _opens(self, policy: Policy, answer: Answer, name: str) -> bool:
        """Whether a look-up of the name would open what was asked about, and is closed."""
        return not answer.allow and opens(policy, self.now, answer.in_sets[0].connection, name)

    def _asked(self) -> tuple[str, datetime] | None:
        """The name, and when it was asked."""
        asked = self.said.get("asked")
        when = moment(asked.get("when")) if isinstance(asked, dict) else None
        return None if when is None or not isinstance(asked, dict) else (str(asked.get("name")), when)

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
