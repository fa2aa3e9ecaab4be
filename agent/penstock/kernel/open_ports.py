"""Which ports the workloads have open: TCP sockets that listen, and UDP sockets that are connected to nobody.

The kernel says of each socket in which cgroup it was made, and that is what the rules go by.  It does not say who
holds it (see `asker`): a name is given when all processes that may hold it have that name.

Other network namespaces are not looked at: no rule of ours holds there.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from functools import cache
from ipaddress import ip_address
from itertools import islice
from pathlib import Path

from penstock.core.events import Listener
from penstock.kernel import cgroup, process
from penstock.kernel.diagnosis import Diagnosis, Live

MAX_CGROUPS, MAX_PROCESSES = 10_000, 64
"""Of all workloads, and of one cgroup, that are looked at."""
MAX_SOCKETS, MAX_LISTENERS = 100_000, 10_000
"""Of the host that are looked at, and of workloads that are told of."""
PROTOCOLS = {int(socket.IPPROTO_TCP): "tcp", int(socket.IPPROTO_UDP): "udp"}
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def listeners(tree: Path, homes: Mapping[str, Sequence[str]]) -> tuple[Listener, ...] | None:
    """Those of the workloads, each once; None: the kernel cannot say whose they are.  `homes`: paths below `tree`.

    OSError when it cannot be asked.
    """
    theirs = _cgroups(tree, homes)
    with Diagnosis() as diagnosis:
        found = diagnosis.open_ports(MAX_SOCKETS)
    if any(one.cgroup is None for one in found):
        return None
    first, last = map(int, EPHEMERAL.read_text().split())
    ephemeral, name_of = range(first, last + 1), cache(_name)
    ours = []
    for one in found:
        if one.cgroup in theirs:
            workload, path = theirs[one.cgroup]
            ours.append(_listener(one, workload, ephemeral, name_of(path, one.uid)))
    return tuple(dict.fromkeys(ours[:MAX_LISTENERS]))


def _cgroups(tree: Path, homes: Mapping[str, Sequence[str]]) -> dict[int, tuple[str, Path]]:
    """Every cgroup of a workload, by its id."""
    tops = ((name, path) for name, paths in homes.items() for path in paths)
    around = ((name, Path(place)) for name, path in tops for place, _, _ in os.walk(tree / path))
    found = {}
    for name, path in islice(around, MAX_CGROUPS):
        try:
            found[path.stat().st_ino] = name, path
        except OSError:
            continue
    return found


def _listener(one: Live, workload: str, ephemeral: range, comm: str | None) -> Listener:
    address = ip_address(one.address)
    interface = ""
    if one.interface:
        try:
            interface = socket.if_indextoname(one.interface)
        except OSError:
            interface = str(one.interface)
    protocol = PROTOCOLS[one.protocol]
    client = protocol == "udp" and one.port in ephemeral
    return Listener(workload, protocol, address, one.port, one.v6only, interface, comm, client)


def _name(path: Path, uid: int) -> str | None:
    """The one name of that user's processes in this very cgroup."""
    pids = cgroup.own_processes(path)
    if len(pids) > MAX_PROCESSES:
        return None
    names = {seen.comm for seen in map(process.seen, pids) if seen is not None and seen.uid == uid}
    return names.pop() if len(names) == 1 else None
