"""What happened: every input of the engine.  With `effects` this is all the program can see and do.

Each event carries the time it was seen (`now`, aware); the engine has no clock of its own.  Reading files, the
kernel and the wall is done by whoever makes the event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from penstock.core.packets import Denied
from penstock.core.parse import Parsed
from penstock.core.ruleset import Element, Ruleset
from penstock.core.snapshot import Snapshot
from penstock.core.wire import Message


@dataclass(frozen=True, slots=True)
class Started:
    """The daemon came up.  `state` is the last applied policy as it was saved, None at the first start."""

    now: datetime
    snapshot: Snapshot
    state: bytes | None
    depth: int  # the level of penstock.slice for `socket cgroupv2`


@dataclass(frozen=True, slots=True)
class ConfigRead:
    """The files of the configuration directory, parsed and checked; `request` asked for them (None: nobody)."""

    now: datetime
    request: int | None
    files: Mapping[str, bytes]
    presets: Mapping[str, bytes]
    parsed: Parsed


@dataclass(frozen=True, slots=True)
class Compiled:
    """A policy became a ruleset."""

    now: datetime
    operation: int
    ruleset: Ruleset


@dataclass(frozen=True, slots=True)
class ReadBack:
    """What the kernel holds now.  `operation` is the one that asked, None for a check.

    `alone` is false when somebody else changed the ruleset between our load and this reading.
    """

    now: datetime
    operation: int | None
    snapshot: Snapshot
    cgroups: Mapping[str, int]  # cgroup path below the root -> id
    alone: bool = True


@dataclass(frozen=True, slots=True)
class Saved:
    """The state file names what is in force."""

    now: datetime
    operation: int


@dataclass(frozen=True, slots=True)
class Proven:
    """A packet from a cgroup of ours was caught at both levels: the kernel matches as computed."""

    now: datetime


@dataclass(frozen=True, slots=True)
class Failed:
    """An effect did not work; those behind it in its list were not tried."""

    now: datetime
    effect: str  # its class
    error: str
    operation: int | None = None
    request: int | None = None


@dataclass(frozen=True, slots=True)
class Worked:
    """An effect that had failed before works again."""

    now: datetime
    effect: str


@dataclass(frozen=True, slots=True)
class Seen:
    """A process in a workload's cgroup.  `comm` is text of its own choice, not escaped."""

    pid: int
    started: int  # clock ticks since boot: with the pid, a name that is not used again
    comm: str
    uid: int


@dataclass(frozen=True, slots=True)
class Stray:
    """A process that was seen in a workload's cgroup and lives elsewhere now."""

    pid: int
    started: int
    comm: str
    workload: str
    cgroup: str  # where it is now


@dataclass(frozen=True, slots=True)
class Examined:
    """A look at the live state: of the self-check (`request` None), or for somebody who asked."""

    now: datetime
    request: int | None
    generation: int
    counters: Mapping[str, tuple[int, int]]  # packets, bytes
    cgroups: Mapping[str, int]  # cgroup path below the root -> id
    processes: Mapping[str, tuple[Seen, ...]]  # workload -> those in its cgroup
    strays: tuple[Stray, ...]
    config: Mapping[str, str] | None = None  # file -> sha256 of its content, if asked for


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction on the namespace's ruleset, as the kernel announced it."""

    generation: int
    touched: bool  # it was about our table, and not known to be our own
    pid: int
    comm: str


@dataclass(frozen=True, slots=True)
class RulesetChanged:
    """Somebody, we included, changed the namespace's ruleset.  `lost`: announcements were dropped."""

    now: datetime
    commits: tuple[Commit, ...]
    lost: bool = False


@dataclass(frozen=True, slots=True)
class PacketsDenied:
    """Log records.  `lost` were made by the kernel and dropped on the way; `malformed` made no sense.

    `processes` are those of each workload that is named, seen when the records were read.
    """

    now: datetime
    packets: tuple[Denied, ...]
    lost: int = 0
    malformed: int = 0
    processes: Mapping[str, tuple[Seen, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Command:
    """A message on the control socket, from a peer who may send it."""

    now: datetime
    request: int
    message: Message


@dataclass(frozen=True, slots=True)
class Held:
    """Whether the kernel's set holds what was asked, None when it could not be asked."""

    now: datetime
    request: int
    holds: bool | None


@dataclass(frozen=True, slots=True)
class Hits:
    """Packets that each element of each set let through."""

    now: datetime
    request: int
    sets: Mapping[str, Mapping[Element, int]]


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time went by."""

    now: datetime


@dataclass(frozen=True, slots=True)
class Stopping:
    """The daemon was asked to end.  What is in force stays in force."""

    now: datetime


Event = (
    Started
    | ConfigRead
    | Compiled
    | ReadBack
    | Saved
    | Proven
    | Failed
    | Worked
    | Examined
    | RulesetChanged
    | PacketsDenied
    | Command
    | Held
    | Hits
    | Ticked
    | Stopping
)
