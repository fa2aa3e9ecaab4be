"""Refused questions: told to the daemon, and then to the client.

The client waits for the daemon, but not long: until then the daemon can see whose socket it is.  Of what is alike
within a second only the first is told at once, and the rest as a number.  So is what comes while the daemon does
not keep up.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from penstock.core.dns import Query
from penstock.core.dns_codes import type_text
from penstock.core.dns_replies import build_reply
from penstock.core.resolver_rules import SEARCH, Refusal
from penstock.core.resolver_wire import MAX_COUNT, Refused
from penstock.resolver.clients import Caller
from penstock.resolver.link import Link
from penstock.resolver.loop import Deadlines, Loop
from penstock.resolver.served import Served, Told

PATIENCE = 0.05
"""Seconds until the client gets its answer all the same."""

MAX_TOLD = 256
"""Different ones of a workload in a second; what is more has no name."""

OVERFLOW = ("", "overflow", "")
LONGEST_NAME = 253
Waiting = tuple[Served, Caller, bytes]


class Refusals:
    """`room` says whether one more client of a workload may wait, `number` makes ids."""

    def __init__(self, loop: Loop, link: Link, number: Callable[[], int], room: Callable[[Served], bool]) -> None:
        self._loop = loop
        self._link = link
        self._number = number
        self._room = room
        self._waiting: dict[int, Waiting] = {}
        self._patience: Deadlines[int] = loop.deadlines(PATIENCE, self.settled)

    @property
    def waiting(self) -> int:
        """Clients that wait."""
        return len(self._waiting)

    def refuse(self, served: Served, caller: Caller, query: Query, refusal: Refusal) -> None:
        """Answer what `refusal` says."""
        id = 0 if refusal is SEARCH else self._tell(served, caller, query, refusal)
        limit = caller.room(query.size)
        reply = build_reply(query, refusal.rcode, ede=refusal.ede, ede_text=refusal.text, limit=limit)
        if id:
            served.waiting += 1
            self._waiting[id] = served, caller, reply
            self._patience.add(id, self._loop.now)
        else:
            caller.way.reply(caller.address, reply)

    def _tell(self, served: Served, caller: Caller, query: Query, refusal: Refusal) -> int:
        """The id under which the daemon will settle it; 0 when nobody has to wait."""
        qtype = type_text(query.qtype)
        name = query.name[:LONGEST_NAME]
        key = name, refusal.reason, qtype if refusal.reason == "type" else ""
        told = served.told.get(key)
        if told is not None:
            served.told[key] = Told(caller, told.times + 1)
            return 0
        if len(served.told) >= MAX_TOLD or self._link.congested:
            self.overflow(served, caller, 1)
            return 0
        served.told[key] = Told(caller, 0)
        id = self._number() if self._room(served) else 0
        self._say(id, served, (name, refusal.reason, qtype), Told(caller, 1))
        return id

    def overflow(self, served: Served, caller: Caller, times: int) -> None:
        """So many more look-ups are told without their names; `caller` is one of those who asked."""
        told = served.told.get(OVERFLOW)
        served.told[OVERFLOW] = Told(caller, times + (told.times if told else 0))

    def _say(self, id: int, served: Served, key: tuple[str, str, str], told: Told) -> None:
        name, reason, qtype = key
        caller, count = told
        client = ip_address(caller.address[0].partition("%")[0]), caller.address[1]  # the daemon takes no scope
        count = min(count, MAX_COUNT)
        self._link.say(Refused(id, served.workload, name, qtype, reason, caller.way.protocol, client, count))

    def settled(self, id: int) -> None:
        """The daemon knows who it was, or took too long."""
        waiting = self._waiting.pop(id, None)
        if waiting is not None:
            served, caller, reply = waiting
            self._patience.discard(id)
            served.waiting -= 1
            caller.way.reply(caller.address, reply)

    def flush(self, served: Served) -> None:
        """A second is over: tell how many more there were."""
        for key, told in served.told.items():
            if told.times:
                self._say(0, served, key, told)
        served.told.clear()
