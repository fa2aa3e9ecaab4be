"""Grants: access that is lent, with an owner, a reason and an end; and the file in which they outlive the daemon.

A grant is rules that are put beside those of the files before anything is compiled or judged.  The hash of the
policy stays that of the files.

It ends at `until` by the wall clock.  It ends as well when as much time has gone by as it was lent for: `ends`
counts seconds since boot, which nobody sets.  So a clock that is set back does not make it longer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from penstock.core.language.parse_peer import NAME_OF_OURS, BadPeer, peer, prefix
from penstock.core.language.parse_ports import BadPorts, merged, port_range
from penstock.core.language.rule_ids import peer_text
from penstock.core.policy import (
    EVERY_PORT,
    CidrPeer,
    Direction,
    Mode,
    NetworkPeer,
    Policy,
    Ports,
    Rule,
    Workload,
    WorkloadPeer,
)
from penstock.core.wire import LONGEST_GRANT

VERSION = 1
FILE = "grants.json"
LOG_NAME = "grants.jsonl"
"""Everything that was ever lent, and what became of it, beside the log of blocks."""
MAX_BYTES = 4 << 20
MAX_OF_ONE = 32
"""That a workload has at once: each costs a packet of its own time, and a rule is better than thirty grants."""
MAX_ALL = 1000
"""On the host."""
MAX_RULES, MAX_PEERS = 64, 1000
"""Rules of a grant (a preset has several), and far ends or ports of a rule."""
MAX_TEXT = 2000
"""Characters of a text when it is read again: `reason` is escaped, which makes it longer."""

ID = re.compile(r"grant-[0-9a-f]{8}\Z")


@dataclass(frozen=True, slots=True)
class Grant:
    """What was lent.  Its rules' ids are its own, or begin with it; they have no end of their own."""

    id: str
    workload: str
    what: str  # in a few words
    rules: tuple[Rule, ...]
    until: datetime  # aware
    ends: float  # seconds since boot
    owner: str
    reason: str
    made: datetime
    preset: str = ""
    mode: Mode | None = None  # that the workload is in meanwhile; then there are no rules

    def at(self, now: datetime) -> bool:
        """Whether it is not over."""
        return now < self.until

    def lent(self) -> tuple[Rule, ...]:
        """The rules as they are put beside those of the files."""
        reason = f"{self.owner}: {self.reason}"
        return tuple(replace(rule, expires=self.until, reason=reason) for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Saved:
    """The file: the grants, and when and in which boot they were saved."""

    at: datetime
    boot: str
    grants: tuple[Grant, ...] = ()


def with_grants(policy: Policy, grants: Iterable[Grant], now: datetime) -> Policy:
    """`policy` with what is lent at `now`.  Of a workload or network that it has not, nothing is lent."""
    workloads: dict[str, Workload] = {}
    for grant in grants:
        if grant.at(now) and not missing(policy, grant):
            workload = workloads.get(grant.workload) or policy.workloads[grant.workload]
            workloads[grant.workload] = beside(workload, grant)
    return replace(policy, workloads={**policy.workloads, **workloads}) if workloads else policy


def beside(workload: Workload, grant: Grant) -> Workload:
    """The workload with the rules of a grant behind its own."""
    rules = grant.lent()
    out = tuple(rule for rule in rules if rule.direction is Direction.OUT)
    into = tuple(rule for rule in rules if rule.direction is Direction.IN)
    workload = _in_mode(workload, grant)
    return replace(workload, egress=(*workload.egress, *out), ingress=(*workload.ingress, *into))


def _in_mode(workload: Workload, grant: Grant) -> Workload:
    """In the mode of the grant.  Only what is enforced can be observed for a while; a lock stays locked."""
    mode = workload.mode
    if grant.mode is None or mode is Mode.LOCK or (grant.mode is Mode.OBSERVE and mode is not Mode.ENFORCE):
        return workload
    return replace(workload, mode=grant.mode, until=grant.until)


def missing(policy: Policy, grant: Grant) -> str:
    """What the grant is about and `policy` has not, in words; empty when it has all of it."""
    if grant.workload not in policy.workloads:
        return f"workload {grant.workload}"
    for rule in grant.rules:
        for far in (*rule.peers, *rule.excepted):
            if isinstance(far, NetworkPeer) and far.name not in policy.networks:
                return f"network {far.name}"
            if isinstance(far, WorkloadPeer) and far.name not in policy.workloads:
                return f"workload {far.name}"
    return ""


# --- the file ---


def encode(saved: Saved) -> bytes:
    """The document."""
    return json.dumps(
        {
            "penstock": VERSION,
            "at": saved.at.timestamp(),
            "boot": saved.boot,
            "grants": [_as_json(grant) for grant in saved.grants],
        }
    ).encode()


def _as_json(grant: Grant) -> Mapping[str, Any]:
    return {
        "id": grant.id,
        "workload": grant.workload,
        "what": grant.what,
        "rules": [_rule_as_json(grant, rule) for rule in grant.rules],
        "until": grant.until.timestamp(),
        "ends": grant.ends,
        "owner": grant.owner,
        "reason": grant.reason,
        "made": grant.made.timestamp(),
        "preset": grant.preset,
        "mode": grant.mode.value if grant.mode else None,
    }


def _rule_as_json(grant: Grant, rule: Rule) -> Mapping[str, Any]:
    ports = ["any"] if rule.ports.ranges == EVERY_PORT else [str(ports) for ports in rule.ports.ranges]
    return {
        "name": rule.id.removeprefix(grant.id),
        "direction": rule.direction.value,
        "peers": [peer_text(far) for far in rule.peers],
        "ports": [*ports, *(["icmp"] if rule.ports.icmp else [])],
        "except": [peer_text(far) for far in rule.excepted],
        "private": rule.private,
    }


def decode(data: bytes) -> Saved:
    """The grants in `data`; ValueError when anything in it is not as `encode` writes it."""
    try:
        if len(data) > MAX_BYTES:
            raise ValueError("too long")
        value: Any = json.loads(data)
        if value["penstock"] != VERSION:
            raise ValueError("another version")
        grants = tuple(_grant(one) for one in _list(value["grants"], MAX_ALL))
        if len({grant.id for grant in grants}) < len(grants):
            raise ValueError("a grant twice")
        return Saved(_time(value["at"]), _text(value["boot"]), grants)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OSError) as e:
        raise ValueError("what was saved of grants is damaged") from e


def _grant(value: Any) -> Grant:
    name, workload, preset = _text(value["id"]), _text(value["workload"]), _text(value["preset"])
    if not ID.match(name) or not NAME_OF_OURS.match(workload):
        raise ValueError("no such id, or workload")
    grant = Grant(
        name,
        workload,
        _text(value["what"]),
        tuple(_rule(name, preset, rule) for rule in _list(value["rules"], MAX_RULES)),
        _time(value["until"]),
        _number(value["ends"]),
        _text(value["owner"]),
        _text(value["reason"]),
        _time(value["made"]),
        preset,
        None if value["mode"] is None else Mode(_text(value["mode"])),
    )
    # A second more: ends are whole seconds.  When the clock was set back it may end before it was made.
    too_long = grant.until - grant.made > timedelta(seconds=LONGEST_GRANT + 1)
    if bool(grant.rules) is (grant.mode is not None) or too_long:
        raise ValueError("no rules, or no such time")
    return grant


def _rule(name: str, preset: str, value: Any) -> Rule:
    direction, suffix = Direction(value["direction"]), _text(value["name"])
    words = [_text(word) for word in _list(value["ports"], MAX_PEERS)]
    if type(value["private"]) is not bool or (suffix and not suffix.startswith("/")):
        raise ValueError("no such rule")
    try:
        peers = tuple(peer(_text(word), direction) for word in _list(value["peers"], MAX_PEERS))
        excepted = tuple(_excepted(_text(word)) for word in _list(value["except"], MAX_PEERS))
        ranges = [port_range(word) for word in words if word not in ("any", "icmp")]
    except (BadPeer, BadPorts) as e:
        raise ValueError(str(e)) from e
    ports = Ports(EVERY_PORT if "any" in words else merged(ranges), icmp="icmp" in words)
    if not peers or not words:
        raise ValueError("a rule without a far end or a port")
    return Rule(name + suffix, direction, peers, ports, excepted, value["private"], preset=preset)


def _excepted(word: str) -> CidrPeer | NetworkPeer:
    far = peer(word, Direction.OUT)
    return far if isinstance(far, CidrPeer | NetworkPeer) else CidrPeer(prefix(word))


def _list(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError("no list, or too long")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable():
        raise ValueError("no text, or too long")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1e12:
        raise ValueError("no number")
    return float(value)


def _time(value: Any) -> datetime:
    return datetime.fromtimestamp(_number(value), UTC)
