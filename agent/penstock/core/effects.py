"""What shall be done: every output of the engine.  The program can do nothing else.

A list of effects is performed in its order.  An effect that guards stops the list when it fails, and `Failed` is
the next event: no later step runs on a false assumption.  An effect that tells never stops anything: a full disk
must not open or close a door.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.core.blocks import Block
from penstock.core.compile import Live
from penstock.core.name_elements import Opened, Retract
from penstock.core.policy import Policy
from penstock.core.render_nft import Present
from penstock.core.resolver_wire import Configure as ConfigureMessage
from penstock.core.ruleset import Ruleset
from penstock.core.wire import Json

# --- effects that guard ---


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """Read and parse the configuration directory -> ConfigRead.

    `confirm`: within so many seconds whoever applies it wants to confirm; 0: at once and for good.
    """

    request: int | None
    confirm: int = 0


@dataclass(frozen=True, slots=True)
class ReadHistory:
    """Read the good policies before the present one -> HistoryRead.  `to` names the one that is wanted."""

    request: int
    to: str


@dataclass(frozen=True, slots=True)
class Compile:
    """Compile, beside the event loop -> Compiled.  `floor`: what is loaded at boot is wanted too."""

    operation: int
    policy: Policy
    live: Live
    floor: bool = False
    bare: Policy | None = None  # what the floor is of, when that is another one: without what is lent


@dataclass(frozen=True, slots=True)
class Listen:
    """Have the resolver listen for these workloads, and for nobody else -> Listening."""

    operation: int
    workloads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StageState:
    """Write the next state file, and the next floor, beside the present ones, down to the disk."""

    operation: int
    data: bytes
    floor: bytes = b""


@dataclass(frozen=True, slots=True)
class SaveGrants:
    """Write what is lent, down to the disk, before the kernel hears of it."""

    operation: int
    data: bytes


@dataclass(frozen=True, slots=True)
class MarkTrial:
    """Leave word, for whoever finds the daemon dead, that the kernel holds a policy nobody has confirmed.

    `data` is that policy: the log may name it, so it is kept with those of before, where nobody loads it from.
    """

    operation: int
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class MakeCgroups:
    """Make penstock.slice and the slices of these workloads, where they are missing; and the resolver's cgroup."""

    operation: int
    workloads: tuple[str, ...]
    resolver: bool = False


@dataclass(frozen=True, slots=True)
class BindCgroups:
    """Make the kernel's maps hold the slice, these workloads and these places, and nobody else.

    `places`: cgroup path below the tree -> workload.  `depth`: the level of penstock.slice; `levels`: those for
    places that the loaded rules have.
    """

    operation: int
    workloads: tuple[str, ...]
    places: Mapping[str, str] = field(default_factory=dict)
    depth: int = 1
    levels: tuple[int, ...] = ()
    by_name: tuple[str, ...] = ()  # workloads whose look-ups are governed


@dataclass(frozen=True, slots=True)
class Load:
    """Make the kernel hold `ruleset`, in one transaction.  `present` is what it holds; None: find out.

    Before it `retract` goes out of the sets, after it `opened` is in them.
    """

    operation: int
    ruleset: Ruleset
    present: Present | None
    retract: tuple[Retract, ...] = ()
    opened: tuple[Opened, ...] = ()


@dataclass(frozen=True, slots=True)
class Learn:
    """Put learned addresses into the kernel's sets, for the look-ups `ids`.

    `loaded` is the last operation that is known of: once a later one has loaded something else it fails.  While
    that one is under way they were judged by what was in force before it as well as by what it brings: `then` are
    the elements once it has loaded.
    """

    ids: tuple[int, ...]
    opened: tuple[Opened, ...]
    loaded: int
    then: tuple[Opened, ...] | None = None


@dataclass(frozen=True, slots=True)
class SayThere:
    """Let the kernel know who is there for look-ups, for some seconds more, and who is not any more.

    Both are sets of `lookup_chains`.
    """

    there: tuple[str, ...]
    gone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Renew:
    """Make the kernel's sets of learned addresses hold `opened` and what was not retracted.

    `loaded`: as in Learn.
    """

    retract: tuple[Retract, ...]
    opened: tuple[Opened, ...]
    loaded: int


@dataclass(frozen=True, slots=True)
class ReadKernel:
    """Read our table back, and the ids of the cgroups of these workloads -> ReadBack.

    For `places` it is the ids with which they were bound: a unit that was started again since is no change by
    somebody else.
    """

    operation: int | None
    workloads: tuple[str, ...]
    places: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prove:
    """Send a packet from a cgroup of ours and see it caught -> Proven."""


@dataclass(frozen=True, slots=True)
class CommitState:
    """Put the staged floor and state file in their places, and keep the one before -> Saved."""

    operation: int


# --- effects that look ---


@dataclass(frozen=True, slots=True)
class Examine:
    """Look at counters, cgroups and processes -> Examined.  `watch`: (pid, start) -> workload it was in.

    `around`: also at all other processes of the host, for those that look like an inference server.  When somebody
    asked (`request`) also at the ports that workloads have open.
    """

    request: int | None
    workloads: tuple[str, ...]
    watch: Mapping[tuple[int, int], str]
    places: Mapping[str, str] = field(default_factory=dict)
    around: bool = False


@dataclass(frozen=True, slots=True)
class ScanUnits:
    """Look which units there are -> UnitsSeen."""


@dataclass(frozen=True, slots=True)
class AskKernel:
    """Ask whether a set holds (address, protocol number, port), and one of `learned` the address -> Held."""

    request: int
    set: str
    address: bytes
    protocol: int
    port: int
    learned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CountHits:
    """Read the counters of the elements of these sets (name, family), and all named ones -> Hits.

    Nobody asked (`request` None): it is for metrics.
    """

    request: int | None
    sets: tuple[tuple[str, int], ...]


# --- effects that tell ---


@dataclass(frozen=True, slots=True)
class Record:
    """Append blocks to the log."""

    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Account:
    """Append to the log of what was lent: it outlives every grant."""

    record: Json


@dataclass(frozen=True, slots=True)
class KeepGrants:
    """Save what is lent, for the next start."""

    data: bytes


@dataclass(frozen=True, slots=True)
class SaveBooks:
    """Save up to where denied packets were told, for the next start."""

    data: bytes


@dataclass(frozen=True, slots=True)
class SaveNames:
    """Save what is remembered of names, for the next start."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Configure:
    """Tell the resolver what is in force."""

    message: ConfigureMessage


@dataclass(frozen=True, slots=True)
class Settle:
    """Tell the resolver that these look-ups may be answered, or (not `ok`) must fail."""

    ids: tuple[int, ...]
    ok: bool


@dataclass(frozen=True, slots=True)
class WriteMetrics:
    """Replace the file that tells of metrics; of nothing: take it away."""

    data: bytes


@dataclass(frozen=True, slots=True)
class KeepFloor:
    """Write the floor if the file is not what it should be."""

    data: bytes


@dataclass(frozen=True, slots=True)
class EndTrial:
    """Take back what `MarkTrial` said."""


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell the service manager (sd_notify(3)): an assignment, as READY=1."""

    text: str


@dataclass(frozen=True, slots=True)
class Journal:
    """Tell the journal, or standard error.  `level`: info, notice, warning, error.

    `kind` of event, and `fields` by which the journal finds it: WORKLOAD and so on.
    """

    level: str
    text: str
    kind: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TellBlocks:
    """Tell the journal of blocks, if there is one: standard error hears nothing of them."""

    lines: tuple[Journal, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer a request on the control socket and be done with it."""

    request: int
    result: Json


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer a request with an error."""

    request: int
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Quit:
    """End the daemon with that exit status; `text` says why."""

    status: int
    text: str


OfNames = SaveNames | Configure | Settle | SayThere
OfGrants = Account | KeepGrants
Saying = EndTrial | Notify | Journal | TellBlocks | Answer | Refuse | Quit
Telling = Record | SaveBooks | WriteMetrics | OfNames | OfGrants | KeepFloor | Saying
Effect = (
    ReadConfig
    | ReadHistory
    | Compile
    | StageState
    | SaveGrants
    | MarkTrial
    | MakeCgroups
    | BindCgroups
    | Listen
    | Load
    | Learn
    | Renew
    | ReadKernel
    | Prove
    | CommitState
    | Examine
    | ScanUnits
    | AskKernel
    | CountHits
    | Telling
)
