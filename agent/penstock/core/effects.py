"""What shall be done: every output of the engine.  The program can do nothing else.

A list of effects is performed in its order.  An effect that guards stops the list when it fails, and `Failed` is
the next event: no later step runs on a false assumption.  An effect that tells never stops anything: a full disk
must not open or close a door.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.core.blocks import Block
from penstock.core.compile import Live
from penstock.core.policy import Policy
from penstock.core.render_nft import Present
from penstock.core.ruleset import Ruleset
from penstock.core.wire import Json

# --- effects that guard ---


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """Read and parse the configuration directory -> ConfigRead."""

    request: int | None


@dataclass(frozen=True, slots=True)
class Compile:
    """Compile, beside the event loop -> Compiled."""

    operation: int
    policy: Policy
    live: Live


@dataclass(frozen=True, slots=True)
class StageState:
    """Write the next state file beside the present one, down to the disk."""

    operation: int
    data: bytes


@dataclass(frozen=True, slots=True)
class MakeCgroups:
    """Make penstock.slice and the slices of these workloads, where they are missing."""

    operation: int
    workloads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BindCgroups:
    """Make the kernel's maps hold the slice and these workloads, and nobody else."""

    operation: int
    workloads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """Make the kernel hold `ruleset`, in one transaction.  `present` is what it holds; None: find out."""

    operation: int
    ruleset: Ruleset
    present: Present | None


@dataclass(frozen=True, slots=True)
class ReadKernel:
    """Read our table back, and the ids of the cgroups of these workloads -> ReadBack."""

    operation: int | None
    workloads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prove:
    """Send a packet from a cgroup of ours and see it caught -> Proven."""


@dataclass(frozen=True, slots=True)
class CommitState:
    """Put the staged state file in its place -> Saved."""

    operation: int


# --- effects that look ---


@dataclass(frozen=True, slots=True)
class Examine:
    """Look at counters, cgroups and processes -> Examined.  `watch`: (pid, start) -> workload it was in."""

    request: int | None
    workloads: tuple[str, ...]
    watch: Mapping[tuple[int, int], str]


@dataclass(frozen=True, slots=True)
class AskKernel:
    """Ask whether a set holds (address, protocol number, port) -> Held."""

    request: int
    set: str
    address: bytes
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class CountHits:
    """Read the counters of the elements of these sets (name, family) -> Hits."""

    request: int
    sets: tuple[tuple[str, int], ...]


# --- effects that tell ---


@dataclass(frozen=True, slots=True)
class Record:
    """Append blocks to the log."""

    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class SaveBooks:
    """Save up to where denied packets were told, for the next start."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Journal:
    """Tell the journal (standard error).  `level`: info, warning, error."""

    level: str
    text: str


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


Telling = Record | SaveBooks | Journal | Answer | Refuse | Quit
Effect = (
    ReadConfig
    | Compile
    | StageState
    | MakeCgroups
    | BindCgroups
    | Load
    | ReadKernel
    | Prove
    | CommitState
    | Examine
    | AskKernel
    | CountHits
    | Telling
)
