"""What can be done with a packet: see also `conditions`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from penstock.core.conditions import End

LOG_RATE = 50
LOG_BURST = 100
"""Log records per second, and at once, of one workload and kind; the counter before it counts all."""

SNAPLEN = 128
"""Bytes of a denied packet that are logged: headers, and no more of the payload than that leaves room for."""


class Final(StrEnum):
    """The end of the packet's way through our table, or back to the calling chain."""

    ACCEPT = "accept"
    DROP = "drop"
    RESET = "reset"  # tell the sender, by a TCP reset
    PROHIBIT = "prohibit"  # tell the sender, by ICMP "administratively prohibited"
    RETURN = "return"


@dataclass(frozen=True, slots=True)
class Goto:
    """Go on in that chain and do not come back here."""

    chain: str


@dataclass(frozen=True, slots=True)
class Jump:
    """Go through that chain and come back unless it decides."""

    chain: str


@dataclass(frozen=True, slots=True)
class Count:
    """Add the packet to a named counter."""

    counter: str


@dataclass(frozen=True, slots=True)
class Log:
    """Send a record to the log group, at most LOG_RATE a second; the limit stops only this rule."""

    prefix: str


@dataclass(frozen=True, slots=True)
class SetLabel:
    """Set the bits of that label on the connection; others stay as they are."""

    label: int


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Look up the cgroup of the packet's socket, cut to that level, and do as the map says; miss: go on."""

    map: str
    level: int


@dataclass(frozen=True, slots=True)
class Remember:
    """Remember the packet's flow for so many seconds, anew or unless it is; no matter when there is no room."""

    set: str
    family: int
    seconds: int
    anew: bool = True


@dataclass(frozen=True, slots=True)
class Note:
    """Remember address and port of the sender for so many seconds; no matter when there is no room."""

    set: str
    family: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Forget whom the packet's port asked last (`Divert`); for so many milliseconds it is `AskedLately`."""

    map: str
    lately: str
    family: int
    milliseconds: int


@dataclass(frozen=True, slots=True)
class Divert:
    """Note whom this port asks, for so many seconds, and send this packet to that port of the loopback address.

    Whom it asked before stays noted, unless that is forgotten.  To be asked for only with `Family` and `Protocol`.
    When there is no room for the note, the rule ends here.
    """

    map: str
    family: int
    protocol: str
    port: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Restore:
    """Let the packet come from whom its receiver asked (`Divert`), at that port; the rule ends if he asked nobody.

    To be asked for only with `Family` and `Protocol`.
    """

    map: str
    family: int
    protocol: str
    port: int


@dataclass(frozen=True, slots=True)
class SetMark:
    """Mark the packet, not its connection; it keeps that on loopback.  No process can send it so by itself."""

    number: int


@dataclass(frozen=True, slots=True)
class NotePort:
    """Remember the port that the packet comes from, for so many seconds; no matter when there is no room."""

    set: str
    seconds: int


@dataclass(frozen=True, slots=True)
class ByPort:
    """Go on in the chain that the port at that end stands for; no such port: go on here."""

    end: End
    chains: tuple[tuple[int, str], ...]


Action = (
    Final
    | Goto
    | Jump
    | Count
    | Log
    | SetLabel
    | Dispatch
    | Remember
    | Note
    | Forget
    | Divert
    | Restore
    | SetMark
    | NotePort
    | ByPort
)
