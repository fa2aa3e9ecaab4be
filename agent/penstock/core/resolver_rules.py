"""Questions of a workload: which go to an upstream, and what the others are told.

A workload may ask for the names of its rules, by the types of records that connecting to them needs.  Everything
else is refused here, so that a question carries nothing out of the host.  Under a wildcard the questions
themselves could: each new name costs one of `BURST` tokens, of which `PER_MINUTE` come back.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from penstock.core import dns_codes as code
from penstock.core.policy import Address
from penstock.core.rebinding import admits
from penstock.core.resolver_wire import NameRuleText, Names

BURST, PER_MINUTE = 60, 30
"""New names under one pattern of one workload: at once, and from then on."""

MAX_NAMES = 16_384
"""Names under wildcards that are remembered as not new, a workload."""

FORGOTTEN = 3600.0
"""Seconds after which a name that was not asked again is new, and costs a token again."""

MAX_RECENT, RECENT = 256, 10.0
"""Refused names of a workload that are remembered, and for how many seconds: suffixes are tried at once."""

PLAIN_TYPES = frozenset({code.A, code.AAAA, code.HTTPS, code.SVCB, code.CNAME, code.SOA})
"""What connecting needs.  Not NS, DS and DNSKEY: validation needs them of the parents too, which no rule names."""

SERVICE_TYPES = frozenset({code.TXT, code.SRV})
"""Only where the pattern itself begins with an underscore: somebody meant them."""

REVERSE = ("in-addr.arpa", "ip6.arpa")


class Refusal(NamedTuple):
    """What is answered instead: `reason` for the daemon, `ede` and `text` (RFC 8914) for the client."""

    reason: str
    rcode: int
    ede: int
    text: str


LOCKED = Refusal("locked", code.NXDOMAIN, code.EDE_PROHIBITED, "penstock: the workload is locked")
NAME = Refusal("name", code.NXDOMAIN, code.EDE_BLOCKED, "penstock: no rule has this name")
SEARCH = Refusal("search", code.NXDOMAIN, code.EDE_BLOCKED, "penstock: no rule has this name")
NO_DATA = Refusal("type", code.NOERROR, code.EDE_PROHIBITED, "penstock: records of this type are not given out")
NO_TYPE = Refusal("type", code.REFUSED, code.EDE_PROHIBITED, "penstock: records of this type are not given out")
RATE = Refusal("rate", code.SERVFAIL, code.EDE_PROHIBITED, "penstock: too many new names in a short time")
PRIVATE = Refusal("private-answer", code.NOERROR, code.EDE_FILTERED, "penstock: no rule takes these addresses")
UNFIT = PRIVATE._replace(reason="unfit-answer")


class Rule(NamedTuple):
    """A rule by name, ready for questions."""

    said: NameRuleText
    until: float  # seconds since the epoch
    service: bool
    reverse: bool
    wildcard: bool

    @classmethod
    def of(cls, said: NameRuleText) -> Rule:
        """From what the daemon said."""
        base = said.pattern.removeprefix("*.")
        reverse = any(base == zone or base.endswith("." + zone) for zone in REVERSE)
        until = math.inf if said.expires is None else said.expires
        return cls(said, until, base.startswith("_"), reverse, base != said.pattern)


class Forward(NamedTuple):
    """The question goes to an upstream.  No rules: it is only observed."""

    rules: tuple[Rule, ...]

    def admits(self, address: Address) -> bool:
        """Whether one of the rules may open this address."""
        return any(admits(address, rule.said.private, rule.said.excepted) for rule in self.rules)

    def refusal(self, addresses: Iterable[Address]) -> Refusal:
        """What to say when they take none of these: whether `private: true` would open one."""
        near = any(admits(a, True, rule.said.excepted) for a in addresses for rule in self.rules)
        return PRIVATE if near else UNFIT


OBSERVED = Forward(())


class Habits:
    """What a workload has asked lately.  It outlives a configuration: another one is no fresh start.

    Times are of a clock that never goes back, in seconds.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[str, float] = OrderedDict()  # name -> last asked, that first which is longest ago
        self._buckets: dict[str, tuple[float, float]] = {}  # pattern -> tokens, at
        self._recent: OrderedDict[str, float] = OrderedDict()  # refused

    def may_ask(self, pattern: str, name: str, clock: float) -> bool:
        """Whether `name` may be asked under a wildcard: it is known, or may become so."""
        known = self._known
        while known and clock - next(iter(known.values())) >= FORGOTTEN:
            known.popitem(last=False)
        if name in known:
            known[name] = clock
            known.move_to_end(name)
            return True
        if len(known) >= MAX_NAMES:
            return False
        tokens, at = self._buckets.get(pattern, (BURST, clock))
        tokens = min(BURST, tokens + (clock - at) * PER_MINUTE / 60)
        if tokens < 1:
            return False
        self._buckets[pattern] = tokens - 1, clock
        known[name] = clock
        return True

    def keep(self, patterns: Iterable[str]) -> None:
        """Forget the tokens of all other patterns."""
        kept = set(patterns)
        self._buckets = {pattern: bucket for pattern, bucket in self._buckets.items() if pattern in kept}

    def refused(self, name: str, clock: float) -> None:
        """It was asked, and no rule has it."""
        recent = self._recent
        recent[name] = clock
        recent.move_to_end(name)
        if len(recent) > MAX_RECENT:
            recent.popitem(last=False)

    def was_refused(self, name: str, clock: float) -> bool:
        """Within the last seconds."""
        return clock - self._recent.get(name, -math.inf) < RECENT


class Questions:
    """Decides the questions of one workload.  `search` are the suffixes that this host's programs try."""

    def __init__(self, names: Names, search: Sequence[str], habits: Habits) -> None:
        self.mode = names.mode
        self._habits = habits
        self._search = tuple("." + suffix.strip(".").lower() for suffix in search if suffix.strip("."))
        exact: dict[str, list[Rule]] = {}
        below: dict[str, list[Rule]] = {}
        for rule in map(Rule.of, names.rules):
            held = below if rule.wildcard else exact
            held.setdefault(rule.said.pattern.removeprefix("*."), []).append(rule)
        self._exact = {name: tuple(rules) for name, rules in exact.items()}
        self._below = {name: tuple(rules) for name, rules in below.items()}
        habits.keep(rule.pattern for rule in names.rules)

    def decide(self, name: str, plain: bool, qtype: int, now: float, clock: float) -> Forward | Refusal:
        """`name`, `plain`, `qtype` as in dns.Query; `now` is seconds since the epoch, `clock` never goes back."""
        if self.mode == "lock":
            return LOCKED
        if qtype == code.NULL or qtype in code.META or not qtype:
            return NO_TYPE
        rules = self._rules(name, now) if plain else ()
        if not rules:
            return OBSERVED if plain and self.mode == "observe" else self._unknown(name, now, clock)
        if not _gives(rules, qtype):
            return Forward(rules) if self.mode == "observe" else NO_DATA
        first = rules[0]
        if first.wildcard and self.mode == "enforce" and not self._habits.may_ask(first.said.pattern, name, clock):
            return RATE
        return Forward(rules)

    def _rules(self, name: str, now: float) -> tuple[Rule, ...]:
        """Those that stand for the name, of the longest pattern first: an exact one costs no token."""
        found = self._exact.get(name, ())
        below = self._below
        if below:
            _, _, rest = name.partition(".")
            while rest:
                found += below.get(rest, ())
                _, _, rest = rest.partition(".")
        for rule in found:
            if rule.until <= now:
                return tuple(rule for rule in found if rule.until > now)
        return found

    def _unknown(self, name: str, now: float, clock: float) -> Refusal:
        """No rule has it.  Programs that try a list of suffixes behind what they want are not worth a word."""
        for suffix in self._search:
            wanted = name.removesuffix(suffix)
            if wanted != name and (self._rules(wanted, now) or self._habits.was_refused(wanted, clock)):
                return SEARCH
        self._habits.refused(name, clock)
        return NAME


def _gives(rules: tuple[Rule, ...], qtype: int) -> bool:
    if qtype in PLAIN_TYPES:
        return True
    if qtype in SERVICE_TYPES:
        return any(rule.service for rule in rules)
    return qtype == code.PTR and any(rule.reverse for rule in rules)
