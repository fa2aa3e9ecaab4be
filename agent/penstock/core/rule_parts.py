"""What rules are made of: conditions on a packet, and what is done with it.

Whoever audits what penstock can ask of a kernel reads this file: there is no condition and no action besides
these.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network

LOG_RATE = 50
LOG_BURST = 100
"""Log records per second, and at once, of one workload and kind; the counter before it counts all."""

SNAPLEN = 128
"""Bytes of a denied packet that are logged: headers, and no more of the payload than that leaves room for."""


class End(StrEnum):
    """One end of a packet."""

    SOURCE = "source"
    DESTINATION = "destination"


class Hook(StrEnum):
    """Where a base chain sits: packets of local sockets leaving, packets for local sockets arriving."""

    OUTPUT = "output"
    INPUT = "input"
    BEFORE_TRACKING = "before-tracking"  # leaving, before connections are tracked
    NAT = "nat"  # leaving, where the first packet of a connection may get another destination
    LEAVING = "leaving"  # whatever leaves, those that are only passed on as well, when that is done
    PASSING = "passing"  # what is only passed on


# --- conditions ---


@dataclass(frozen=True, slots=True)
class Reply:
    """The packet goes from the one who was called to the one who called."""


@dataclass(frozen=True, slots=True)
class Original:
    """The packet goes from the one who called to the one who was called."""


class Tracked(StrEnum):
    """What connection tracking says of the packet."""

    NEW = "new"  # nobody has answered yet
    ESTABLISHED = "established"
    RELATED = "related"  # an error about, or a refusal of, a packet of a tracked connection
    UNTRACKED = "untracked"  # somebody told the kernel not to look


@dataclass(frozen=True, slots=True)
class Loopback:
    """The packet travels over the loopback interface: both ends are on this host."""

    hook: Hook


@dataclass(frozen=True, slots=True)
class Away:
    """The packet leaves over another interface than loopback."""


@dataclass(frozen=True, slots=True)
class Interface:
    """The packet arrives over the interface of that name (SOURCE), or leaves over it (DESTINATION)."""

    name: str
    end: End


@dataclass(frozen=True, slots=True)
class Protocol:
    """tcp, udp, or icmp (which means ICMP for IPv4 and ICMPv6)."""

    name: str


@dataclass(frozen=True, slots=True)
class Family:
    """The packet is of that family (4 or 6).  Conditions with a family of their own say it themselves."""

    family: int


@dataclass(frozen=True, slots=True)
class Echo:
    """An echo request of that family (4 or 6)."""

    family: int


@dataclass(frozen=True, slots=True)
class TcpReset:
    """A TCP segment with the RST flag."""


@dataclass(frozen=True, slots=True)
class TcpSyn:
    """A TCP segment that asks for a connection."""


@dataclass(frozen=True, slots=True)
class TcpAnswer:
    """A TCP segment with ACK or RST: anything but the first of a connection."""


@dataclass(frozen=True, slots=True)
class HasLabel:
    """The connection carries that label (`label_bits`)."""

    label: int


@dataclass(frozen=True, slots=True)
class ForeignSource:
    """The packet's source address is none of this host's."""


@dataclass(frozen=True, slots=True)
class OtherSource:
    """The packet is of that family, and its source is not 127.0.0.1 (4) or ::1 (6), which no stranger has."""

    family: int


@dataclass(frozen=True, slots=True)
class Detour:
    """The packet may prescribe its route: it has IPv4 options (family 4) or an IPv6 routing header (6)."""

    family: int


@dataclass(frozen=True, slots=True)
class LocalDestination:
    """The packet's destination, after destination NAT, is an address of this host (no multicast, no broadcast)."""


@dataclass(frozen=True, slots=True)
class LinkLocalDestination:
    """The packet's destination is an IPv6 address that means something only together with an interface."""


@dataclass(frozen=True, slots=True)
class FullSocket:
    """The packet has a socket that is not half-open and not in TIME_WAIT."""


@dataclass(frozen=True, slots=True)
class Among:
    """The packet is of that family, and the address at that end is in one of these prefixes (disjoint)."""

    family: int
    end: End
    cidrs: tuple[IPv4Network | IPv6Network, ...]


@dataclass(frozen=True, slots=True)
class AnySocket:
    """The packet has a socket, also a half-open one, or one in TIME_WAIT; but for transparent ones."""


@dataclass(frozen=True, slots=True)
class InCgroup:
    """The packet's socket is of that cgroup, `path` below /sys/fs/cgroup, or of one in it; `level` is its own."""

    path: str
    level: int


@dataclass(frozen=True, slots=True)
class TcpData:
    """A TCP segment in the midst of a connection: without SYN, FIN and RST."""


@dataclass(frozen=True, slots=True)
class TcpEnd:
    """A TCP segment with FIN or RST."""


@dataclass(frozen=True, slots=True)
class Redirected:
    """The connection has another destination than its first packet was sent to."""


@dataclass(frozen=True, slots=True)
class AskedAt:
    """The connection's first packet was sent to that port, whatever its destination is now."""

    port: int


@dataclass(frozen=True, slots=True)
class CalledAt:
    """tcp or udp, and the connection's first packet was sent to a port from `first` to `last`."""

    protocol: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class PortIn:
    """tcp or udp, with a port from `first` to `last` at that end."""

    protocol: str
    end: End
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Before:
    """The host's clock has not reached that time (aware)."""

    time: datetime


@dataclass(frozen=True, slots=True)
class AddressIn:
    """The address at that end, with `port` and its port, is in the set; packets of the other family are not."""

    set: str
    family: int
    end: End
    port: bool = False


@dataclass(frozen=True, slots=True)
class FlowIn:
    """The packet belongs to a remembered flow: it is one of its caller's, or with `answer` one to its caller."""

    set: str
    family: int
    answer: bool = False


@dataclass(frozen=True, slots=True)
class Answering:
    """The port that the packet goes to is in that set: somebody has said lately that he answers there."""

    set: str


@dataclass(frozen=True, slots=True)
class InSet:
    """(address at that end, protocol, port at that end) is in the set; packets of the other family are not.

    `peer` and `port` name the ends, because the same set is asked in both directions.
    """

    set: str
    family: int
    peer: End
    port: End


Condition = (
    Reply
    | Original
    | Tracked
    | Loopback
    | Away
    | Interface
    | Protocol
    | Family
    | Echo
    | TcpReset
    | TcpSyn
    | TcpAnswer
    | HasLabel
    | ForeignSource
    | OtherSource
    | Detour
    | LocalDestination
    | LinkLocalDestination
    | FullSocket
    | Among
    | InCgroup
    | TcpData
    | TcpEnd
    | Redirected
    | AskedAt
    | CalledAt
    | PortIn
    | Before
    | AddressIn
    | FlowIn
    | AnySocket
    | Answering
    | InSet
)


# --- actions ---


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
class Redirect:
    """Deliver the connection (`protocol` is tcp or udp) on this host's loopback interface, at that port."""

    protocol: str
    port: int


@dataclass(frozen=True, slots=True)
class SetZone:
    """Track the connection apart from those of other zones: what was called from one socket counts there only."""

    zone: int


Action = Final | Goto | Jump | Count | Log | SetLabel | Dispatch | Remember | Note | Redirect | SetZone
