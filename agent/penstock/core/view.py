"""What the engine knows: what is in force, what is under way, what was seen of the live system."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from penstock.core.events import Bypass, Group, Listener, LookAlike, Seen, Stray
from penstock.core.match import Unit
from penstock.core.policy import Policy, Upstream
from penstock.core.problems import Problem
from penstock.core.ruleset import Ruleset
from penstock.core.snapshot import Snapshot
from penstock.core.state import Applied

ALARMS = 20
"""Foreign changes that are remembered."""


@dataclass(slots=True)
class Operation:
    """What is under way: a start, an apply, a confirm, a rollback, a revert of what nobody confirmed, a grant, a
    revoke, a repair, an expiry (rules that are over are removed), or an enrol (units are bound where they are).
    """

    id: int
    kind: str
    policy: Policy
    applied: Applied
    began: datetime
    saved: bool = False  # the state file says so already
    request: int | None = None
    problems: tuple[Problem, ...] = ()
    same: bool = False  # as the policy before it, but for presets that no rule uses
    ruleset: Ruleset | None = None
    tries: int = 0
    mends: list[str] = field(default_factory=list)  # what had ended half-way before it
    digest: str = ""  # of the rules, as they were read back last
    confirm: int = 0  # seconds within which somebody wants to confirm it; until then it is not saved
    places: Mapping[str, str] = field(default_factory=dict)  # cgroup path -> workload, bound in place
    levels: tuple[int, ...] = ()  # of those
    floor: bytes = b""
    upstreams: tuple[Upstream, ...] | None = None  # asked by the resolver; None: there are no rules by name
    bare: Policy | None = None  # `policy` without what is lent; None: that is the same


@dataclass(frozen=True, slots=True)
class InForce:
    """What the kernel held when it was last read back, and the policy that it means."""

    policy: Policy
    applied: Applied
    ruleset: Ruleset
    snapshot: Snapshot
    cgroups: Mapping[str, int]  # path below the tree -> id
    places: Mapping[str, str] = field(default_factory=dict)  # cgroup path -> workload, bound in place
    levels: tuple[int, ...] = ()
    upstreams: tuple[Upstream, ...] | None = None
    bare: Policy | None = None

    @property
    def base(self) -> Policy:
        """The policy of the files, without what is lent."""
        return self.bare or self.policy


@dataclass(slots=True)
class Trial:
    """A policy that is in force and not saved: when nobody confirms it, `before` comes back."""

    before: InForce
    left: float  # seconds
    until: datetime
    floor: bytes


@dataclass(slots=True)
class ResolverState:
    """Who answers look-ups, and what is known of the host's own servers."""

    up: bool = False
    error: str = ""
    ports: Mapping[str, int] = field(default_factory=dict)  # workload -> where it listens
    upstreams: tuple[Upstream, ...] = ()
    search: tuple[str, ...] = ()
    troubles: dict[tuple[str, str], str] = field(default_factory=dict)  # (code, workload) -> text


@dataclass(slots=True)
class View:
    """What is known of the live system."""

    started: datetime
    agrees: bool | None = None  # the kernel with what is in force; None: not known
    checked: datetime | None = None
    disagreement: str = ""
    proven: bool = False  # matching by cgroup works on this kernel, at the levels that are used
    proof_error: str = "not tried yet"
    counters: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    processes: Mapping[str, tuple[Seen, ...]] = field(default_factory=dict)
    strays: tuple[Stray, ...] = ()
    units: tuple[Unit, ...] = ()
    groups: Mapping[str, tuple[Group, ...]] = field(default_factory=dict)  # by workload
    look_alikes: tuple[LookAlike, ...] = ()
    delegated: tuple[tuple[str, str, int], ...] = ()  # (workload, cgroup, uid)
    bypasses: tuple[Bypass, ...] = ()
    listeners: tuple[Listener, ...] | None = None  # as somebody asked last; None: not known
    floor: str = ""  # what the floor said at boot
    config_errors: int = 0  # in the rule files as they are now
    alarms: deque[tuple[datetime, str]] = field(default_factory=lambda: deque(maxlen=ALARMS))
    troubles: dict[str, str] = field(default_factory=dict)  # effect -> why it does not work
    resolver: ResolverState = field(default_factory=ResolverState)
    lost: int = 0  # log records
    malformed: int = 0
