"""What can be asked of a packet.

Whoever audits what penstock can ask of a kernel reads this file and `actions`: there is no condition and no action
besides these.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network


class End(StrEnum):
    """One end of a packet."""

    SOURCE = "source"
    DESTINATION = "destination"


class Hook(StrEnum):
    """Where a base chain sits: packets of local sockets leaving, packets for local sockets arriving."""

    OUTPUT = "output"
    INPUT = "input"
    DIVERTING = "diverting"  # leaving, not tracked yet, where a packet may get another destination and goes there
    LEAVING = "leaving"  # whatever leaves, those that are only passed on as well, when that is done
    PASSING = "passing"  # what is only passed on


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
class OfProcess:
    """The packet is sent by, or for, a socket that some process has open."""


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
    """The connection has another destination than its first packet was sent to, by destination NAT of others."""


@dataclass(frozen=True, slots=True)
class Marked:
    """The packet carries that mark (`SetMark`)."""

    number: int


@dataclass(frozen=True, slots=True)
class AnyMark:
    """The packet carries a mark, whichever."""


@dataclass(frozen=True, slots=True)
class Unreached:
    """An error of that family (4 or 6), which quotes a packet from that port that nobody took."""

    family: int
    port: int


@dataclass(frozen=True, slots=True)
class AnyPortIn:
    """The port at that end is one from `first` to `last`, of whatever protocol that has ports."""

    end: End
    first: int
    last: int


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
    """The packet belongs to a remembered flow: it is one of its caller's, or with `answer` one to its caller.

    Unless who was called is in the set `revoked`.
    """

    set: str
    family: int
    revoked: str
    answer: bool = False


@dataclass(frozen=True, slots=True)
class AskedLately:
    """The packet's port asked the same server a moment ago: that is in the set (`Forget`)."""

    set: str
    family: int


@dataclass(frozen=True, slots=True)
class PortKnown:
    """The port at that end is in that set."""

    set: str
    end: End


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
    | AnyMark
    | OtherSource
    | Detour
    | LocalDestination
    | LinkLocalDestination
    | FullSocket
    | OfProcess
    | Among
    | InCgroup
    | TcpData
    | TcpEnd
    | Redirected
    | Marked
    | Unreached
    | AnyPortIn
    | CalledAt
    | PortIn
    | Before
    | AddressIn
    | FlowIn
    | AnySocket
    | PortKnown
    | AskedLately
    | InSet
)
