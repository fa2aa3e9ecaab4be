"""The text that a log rule of ours puts in front of each packet it logs: the compiler writes it, we read it.

    ps1 DIRECTION VERDICT MODE KIND WORKLOAD

The kernel hands back nothing else that says which rule spoke, so everything that the packet itself does
not tell is in here.  `ps1` names this grammar; another one gets another word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from penstock.core.policy import Direction, Mode

LOG_GROUP = 28787
"""The NFLOG group (16 bits) that our rules log to."""

MAX_PREFIX = 127
"""Bytes; the kernel keeps 128 with the closing NUL, and nft refuses a longer one."""

NO_WORKLOAD = "-"

_MAGIC = "ps1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:-]{0,63}")


class Refusal(StrEnum):
    """What was done with the packet."""

    DENY = "deny"
    WOULD_DENY = "would-deny"  # it passed, because its workload is only observed


class Kind(StrEnum):
    """Why the packet was logged."""

    RULES = "rules"  # no rule allows it
    REPLY = "reply"  # an answer to a client whom no ingress rule allows (any more)
    SOURCE = "source"  # it left with a source address that is not this host's
    LOOPBACK = "loopback"  # to this host, not the workload's own listener, and no rule allows it
    UNBOUND = "unbound"  # from or to a process in our slice that belongs to no workload
    ADMIN = "admin"  # from a network of clients to an admin port of the host


OF_NONE = frozenset({Kind.UNBOUND, Kind.ADMIN})
_KINDS = {
    Direction.OUT: frozenset({Kind.RULES, Kind.SOURCE, Kind.LOOPBACK, Kind.UNBOUND}),
    Direction.IN: frozenset({Kind.RULES, Kind.REPLY, Kind.UNBOUND, Kind.ADMIN}),
}


@dataclass(frozen=True, slots=True)
class Prefix:
    """What one log prefix says.  `workload` is `NO_WORKLOAD` for the kinds in `OF_NONE`, and only there."""

    direction: Direction
    verdict: Refusal
    mode: Mode
    kind: Kind
    workload: str

    def __post_init__(self) -> None:
        if self.kind not in _KINDS[self.direction]:
            raise ValueError(f"no packet is logged as {self.direction} {self.kind}")
        if (self.kind in OF_NONE) != (self.workload == NO_WORKLOAD):
            raise ValueError(f"workload {self.workload!r} does not go with kind {self.kind}")
        if self.workload != NO_WORKLOAD and not _NAME.fullmatch(self.workload):
            raise ValueError(f"workload name does not fit into a log prefix: {self.workload!r}")


def format_prefix(direction: str, verdict: str, mode: str, kind: str, workload: str) -> str:
    """Return the prefix: at most `MAX_PREFIX` bytes of ASCII that need no escape inside nft's quotes.

    Takes the enums or their words; ValueError for a word that is none, or a pair that makes no sense.
    """
    prefix = Prefix(Direction(direction), Refusal(verdict), Mode(mode), Kind(kind), workload)
    return f"{_MAGIC} {prefix.direction} {prefix.verdict} {prefix.mode} {prefix.kind} {prefix.workload}"


def parse_prefix(text: str) -> Prefix:
    """Return what `format_prefix` was given.  ValueError for any other text."""
    words = text.split(" ")
    if len(words) != 6 or words[0] != _MAGIC:
        raise ValueError(f"not a log prefix of ours: {text[:MAX_PREFIX]!r}")
    _, direction, verdict, mode, kind, workload = words
    return Prefix(Direction(direction), Refusal(verdict), Mode(mode), Kind(kind), workload)
