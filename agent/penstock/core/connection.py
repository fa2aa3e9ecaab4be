"""One attempt to talk, as `verdict` judges it and as the words about it (`nearest`) are found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv6Address

from penstock.core.policy import Address, Direction


@dataclass(frozen=True, slots=True)
class Connection:
    """The first packet of a connection, seen from `workload`.

    `port` is the remote's port when going out and the workload's own port when coming in.  What is not
    known is empty: `remote` None is an address nobody has looked up yet, or, without a `name`, that others did.
    """

    workload: str
    direction: Direction
    protocol: str  # "tcp", "udp", "icmp" (an echo request of either family), else a number as text
    remote: Address | None
    port: int | None = None  # None for everything but tcp and udp
    name: str = ""  # the domain name that we were asked for `remote`, as `names.normalise` returns it
    peer_workload: str = ""  # who is at the far end, if it is a workload of this host
    interface: str = ""  # where the packet leaves or enters
    own: bool = False  # the far end is a socket of the same workload
    here: bool = False  # the far end is an address of this host; those of loopback need no telling

    @property
    def anywhere(self) -> bool:
        """Whether it goes out to an address of which nothing is known."""
        unknown = self.remote is None and not self.name and not self.peer_workload
        return unknown and self.direction is Direction.OUT


def as_sent(connection: Connection) -> Connection:
    """Return `connection` with `remote` as the packet carries it: no scope, and IPv4 for `::ffff:a.b.c.d`.

    A program that connects an IPv6 socket to a mapped address sends IPv4; judging the text it typed
    would let `::/0` reach any IPv4 address.
    """
    remote = connection.remote
    if not isinstance(remote, IPv6Address):
        return connection
    return replace(connection, remote=remote.ipv4_mapped or IPv6Address(int(remote)))
