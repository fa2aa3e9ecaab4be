"""One workload as the resolver sees it, and its look-ups that are under way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from penstock.core.dns import Query
from penstock.core.dns_answers import Answer, Chain
from penstock.core.policy import Address
from penstock.core.resolver_rules import Forward, Habits, Questions
from penstock.core.resolver_wire import Names
from penstock.resolver.clients import Caller, Listeners
from penstock.resolver.upstream import Question, Share


class Told(NamedTuple):
    """A refusal of this second: the last that was like the one that the daemon knows, and how many they are."""

    caller: Caller
    times: int


class Served:
    """It keeps its habits while it is served; `questions` is None until the daemon has said what it may ask."""

    def __init__(self, workload: str) -> None:
        self.workload = workload
        self.habits = Habits()
        self.questions: Questions | None = None
        self.waiting = 0  # clients without an answer
        self.told: dict[tuple[str, str, str], Told] = {}  # name, reason, type
        self.observed: dict[tuple[str, int], int] = {}  # of this second, by name and type: how often again
        self.pending: dict[Question, Lookup] = {}
        self.share = Share(workload)
        self._listeners: Listeners | None = None
        self._make: Callable[[], Listeners] | None = None
        self._names: tuple[Names, Sequence[str]] | None = None

    def configure(self, names: Names, search: Sequence[str]) -> None:
        """From now on it may ask these."""
        if self.questions is None or self._names != (names, search):  # it may be the same again, after a lock
            self._names = names, search
            self.questions = Questions(names, search, self.habits)
        self._begin()

    def listen(self, make: Callable[[], Listeners]) -> None:
        """At these sockets, instead of others.  Until it is known what may be asked, look-ups wait."""
        self.unlisten()
        self._make = make
        self._begin()

    def _begin(self) -> None:
        if self._make is not None and self.questions is not None:
            make, self._make = self._make, None
            self._listeners = make()

    def unlisten(self) -> None:
        """Nowhere."""
        if self._make is not None:
            make, self._make = self._make, None
            make().close()
        if self._listeners is not None:
            self._listeners.close()
            self._listeners = None


class Lookup:
    """One question of a workload, and all clients of it that wait for the answer."""

    __slots__ = (
        *("admitted", "answer", "chain", "generation", "id", "question", "rules", "served", "waiters", "whole"),
    )

    def __init__(self, served: Served, question: Question, rules: Forward, generation: int) -> None:
        self.served = served
        self.question = question
        self.rules = rules
        self.generation = generation  # of the configuration that has the rules
        self.waiters: list[tuple[Query, Caller]] = []
        self.id = 0  # of what the daemon is asked to learn
        self.answer: Answer | None = None
        self.chain: Chain | None = None
        self.admitted: tuple[tuple[Address, int], ...] = ()  # of the chain's addresses, those that a rule takes
        self.whole = False  # it takes all of them
