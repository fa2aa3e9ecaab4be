"""What happened: every input of the engine.  With `effects` this is all the program can see and do.

Each event carries the time it was seen (`now`, aware); the engine has no clock of its own.  Reading files, the
kernel and the wall is done by whoever makes the event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from penstock.core.blocks import Process
from penstock.core.match import Unit
from penstock.core.name_elements import Opened
from penstock.core.packets import Denied
from penstock.core.parse import Parsed
from penstock.core.policy import Address, Upstream
from penstock.core.resolver_wire import FromResolver as FromResolverMessage
from penstock.core.ruleset import Element, Ruleset
from penstock.core.slices import SLICE
from penstock.core.snapshot import Snapshot
from penstock.core.surroundings import NOWHERE, Surroundings
from penstock.core.wire import Message


@dataclass(frozen=True, slots=True)
class Started:
    """The daemon came up.  `state` is the last applied policy as it was saved, None at the first start.

    `history`: the good policies before it, the last one first.  `floor`: what the floor said at boot, if anything.
    """

    now: datetime
    snapshot: Snapshot
    state: bytes | None
    depth: int  # the level of penstock.slice for `socket cgroupv2`
    units: tuple[Unit, ...] = ()
    history: tuple[bytes, ...] = ()
    floor: str = ""
    names: bytes | None = None  # what was saved of names
    opened: tuple[Opened, ...] = ()  # learned addresses that the kernel holds
    slice: str = SLICE  # the path of penstock.slice, for nft
    grants: bytes | None = None  # what was saved of what is lent
    boot: str = ""  # names this boot of the host; "" when it is not known
    uptime: float = 0.0  # seconds since then, as in Ticked


@dataclass(frozen=True, slots=True)
class ConfigRead:
    """The files of the configuration directory, parsed and checked; `request` asked for them (None: nobody)."""

    now: datetime
    request: int | None
    files: Mapping[str, bytes]
    presets: Mapping[str, bytes]
    parsed: Parsed
    confirm: int = 0  # seconds, as `effects.ReadConfig` has it
    around: Surroundings = NOWHERE  # that they were held against


@dataclass(frozen=True, slots=True)
class HistoryRead:
    """The good policies before the present one, the last one first, as they were saved."""

    now: datetime
    request: int
    to: str
    saved: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A policy became a ruleset, and the file that loads it at boot (empty if it was not asked for)."""

    now: datetime
    operation: int
    ruleset: Ruleset
    floor: bytes = b""


@dataclass(frozen=True, slots=True)
class Listening:
    """The resolver runs, and listens for these workloads; `error` says what does not work of it."""

    now: datetime
    operation: int
    ports: Mapping[str, int]
    error: str = ""


@dataclass(frozen=True, slots=True)
class FromResolver:
    """Messages of the resolver, in order.  `askers`: of refused look-ups, by id, who asked, where it shows."""

    now: datetime
    messages: tuple[FromResolverMessage, ...]
    askers: Mapping[int, Process] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResolverChanged:
    """The resolver ended, or was started anew and knows nothing yet."""

    now: datetime
    up: bool
    error: str = ""


@dataclass(frozen=True, slots=True)
class UpstreamsRead:
    """The servers that the host itself asks, and the suffixes that it tries."""

    now: datetime
    servers: tuple[Upstream, ...]
    search: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReadBack:
    """What the kernel holds now.  `operation` is the one that asked, None for a check.

    `alone` is false when somebody else changed the ruleset between our load and this reading.
    """

    now: datetime
    operation: int | None
    snapshot: Snapshot
    cgroups: Mapping[str, int]  # cgroup path below the root -> id; of a place: as it was bound last
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
    ids: tuple[int, ...] = ()  # of look-ups that wait for it


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
    elsewhere: bool = False  # it is in another network namespace than the daemon, where our rules are not


@dataclass(frozen=True, slots=True)
class Stray:
    """A process that was seen in a workload's cgroup and lives elsewhere now."""

    pid: int
    started: int
    comm: str
    workload: str
    cgroup: str  # where it is now


@dataclass(frozen=True, slots=True)
class Group:
    """A cgroup of a workload, with processes or without.

    `how`: slice (a unit in its slice), in-place (a unit that is bound where it is), run, adopted.  `dropin` says
    of a unit in place what keeps it from its slice: none, pending (until an apply), armed (for its next start),
    ignored (it was started since, and is not in its slice).  `containers`: how many cgroups of containers it has.
    """

    unit: str
    cgroup: str  # path below the tree
    how: str
    processes: int
    dropin: str = "none"
    containers: int = 0


@dataclass(frozen=True, slots=True)
class LookAlike:
    """A process that looks like an inference server, and that no workload governs."""

    pid: int
    comm: str
    server: str
    cgroup: str


@dataclass(frozen=True, slots=True)
class Bypass:
    """A process of a workload reaches a socket at which others look names up for it."""

    workload: str
    path: str  # of the socket
    pid: int
    comm: str


@dataclass(frozen=True, slots=True)
class Listener:
    """A port that a workload has open: TCP that listens, UDP that is connected to nobody.

    `address` is what it is bound to, and so is `interface`, if that is not "".  `client`: UDP on a port as the
    kernel gives to who only asks others.  `comm` is text of a process's own choice, None when it is not known
    whose it is.
    """

    workload: str
    protocol: str  # tcp, udp
    address: Address
    port: int
    v6only: bool | None = None  # of IPv6; None: not known, or no IPv6
    interface: str = ""
    comm: str | None = None
    client: bool = False


@dataclass(frozen=True, slots=True)
class Files:
    """What the configuration directory holds now: file -> sha256 of its content, and how many mistakes."""

    digests: Mapping[str, str]  # of presets, of those in use
    errors: int = 0


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
    config: Files | None = None  # if asked for, and it could be read
    groups: Mapping[str, tuple[Group, ...]] = field(default_factory=dict)  # by workload
    look_alikes: tuple[LookAlike, ...] | None = None  # None: not looked for this time
    delegated: tuple[tuple[str, str, int], ...] = ()  # (workload, cgroup, uid): a slice that is not root's
    bypasses: tuple[Bypass, ...] | None = None  # None: not looked for this time
    listeners: tuple[Listener, ...] | None = None  # the same, or the kernel could not say whose they are


@dataclass(frozen=True, slots=True)
class UnitsSeen:
    """Cgroups came or went.  `units` are those of the host's units outside of our slice, `slices` are ours."""

    now: datetime
    units: tuple[Unit, ...]
    slices: Mapping[str, int]  # cgroup path below the tree -> id


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
    login: str = ""  # who logged in and became root, as the kernel knows it; "" where it does not
    uptime: float | None = None  # seconds since boot, as in Ticked


@dataclass(frozen=True, slots=True)
class Held:
    """Whether the kernel's set holds what was asked, and whether a set of learned addresses does."""

    now: datetime
    request: int
    holds: bool
    learned: bool


@dataclass(frozen=True, slots=True)
class Hits:
    """What each element of each set let through, and named counters: packets and bytes."""

    now: datetime
    request: int | None
    sets: Mapping[str, Mapping[Element, tuple[int, int]]]
    counters: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time went by: `elapsed` seconds since the last time; they do not jump as `now` may.

    `slept` of them the host was suspended, and the kernel's timeouts stood still.
    """

    now: datetime
    elapsed: float = 0.0
    slept: float = 0.0
    uptime: float | None = None  # seconds since boot, suspend included; None: not looked at


@dataclass(frozen=True, slots=True)
class Leaving:
    """The daemon was asked to end, and is still whole: what nobody confirmed must not outlive it."""

    now: datetime


@dataclass(frozen=True, slots=True)
class Stopping:
    """The daemon was asked to end.  What is in force stays in force."""

    now: datetime


Event = (
    Started
    | ConfigRead
    | HistoryRead
    | Compiled
    | Listening
    | FromResolver
    | ResolverChanged
    | UpstreamsRead
    | ReadBack
    | Saved
    | Proven
    | Failed
    | Worked
    | Examined
    | UnitsSeen
    | RulesetChanged
    | PacketsDenied
    | Command
    | Held
    | Hits
    | Ticked
    | Leaving
    | Stopping
)
