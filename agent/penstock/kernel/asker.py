"""Which process of a workload asked: found by its socket, while it has it.

The kernel says of a socket whose user's it is and in which cgroup it was made, but not which process holds it.
That stands in /proc/PID/fd, which nobody may read without CAP_SYS_PTRACE; and with that right the daemon could
take over any process of the host, so it does without.  A process is named if no other of that user is there.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv6Address, ip_address
from itertools import islice
from pathlib import Path

from penstock.core.blocks import Process
from penstock.core.policy import Address
from penstock.kernel import cgroup, process
from penstock.kernel.diagnosis import Diagnosis, Live

PROTOCOLS = {"udp": socket.IPPROTO_UDP, "tcp": socket.IPPROTO_TCP}
MAX_CGROUPS, MAX_PROCESSES = 64, 64
"""Of a workload, that are looked at: among more nobody could be named anyway."""
SHARE = 10
"""Who asks and is refused in a loop costs the daemon at most one part in so many of its time."""


class Asker:
    """`tree`: where penstock.slice is."""

    def __init__(self, tree: Path) -> None:
        self._tree = tree
        self._rests_until = 0.0

    def find(self, places: Sequence[str], protocol: str, address: Address, port: int) -> Process | None:
        """Who has a socket at that local address and port, in one of the workload's cgroups, paths below the tree.

        None when it has it no more, when several processes may have it, and when it was asked too often.
        """
        began = time.monotonic()
        if began < self._rests_until:
            return None
        try:
            return self._find(places, PROTOCOLS[protocol], address, port)
        except (KeyError, OSError):
            return None
        finally:
            ended = time.monotonic()
            self._rests_until = ended + (SHARE - 1) * (ended - began)

    def _find(self, places: Sequence[str], protocol: int, address: Address, port: int) -> Process | None:
        theirs = {path.stat().st_ino: path for place in places for path in _around(self._tree / place)}
        with Diagnosis() as diagnosis:
            listed = diagnosis.listed((protocol,), port)
        known = [one for one in listed if _may_be(one, address) and (one.cgroup is None or one.cgroup in theirs)]
        found: set[int] = set()
        for one in known:
            around = theirs.values() if one.cgroup is None else (theirs[one.cgroup],)
            pids = [pid for path in around for pid in cgroup.own_processes(path)]
            if len(pids) > MAX_PROCESSES:
                return None
            found |= {seen.pid for seen in map(process.seen, pids) if seen is not None and seen.uid == one.uid}
        if len(found) != 1:
            return None
        seen = process.seen(found.pop())
        return Process(seen.pid, seen.comm) if seen is not None else None


def _around(directory: Path) -> Iterator[Path]:
    """The cgroup and those below it."""
    return islice((Path(place) for place, _, _ in os.walk(directory)), MAX_CGROUPS)


def _may_be(one: Live, address: Address) -> bool:
    """Whether packets from `address` may come from that socket: it has it, or any."""
    own = ip_address(one.address)
    if isinstance(own, IPv6Address) and own.ipv4_mapped is not None:
        own = own.ipv4_mapped
    return own == address or (own.is_unspecified and (own.version == 6 or address.version == 4))
