"""Who reaches whom on a booted host: each cell of (source, listener, protocol, address) tried, and judged.

A cell is tried by a real connection that is answered, and judged by the reference evaluator: what a workload sends
by its egress rules, what a workload gets by its ingress rules, and a listener that is no workload only by the
host's admin ports.  The two must be the same.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from types import MappingProxyType
from typing import NamedTuple

from hosts.host import SCOPE, Host
from hosts.world import World
from penstock.core.parse import parse
from penstock.core.policy import Direction, Policy
from penstock.core.verdict import Connection, Live, judge

PATIENCE = {"tcp": 4.0, "udp": 1.5}
"""Seconds for an answer.  What is refused is told at once, but for datagrams whose refusal is not told."""
AT_ONCE = 12
HELLO = b"hello\r\n\r\n"
"""Which an echo returns, and a web server complains about."""
LOOPBACK = ("127.0.0.1", "::1")
NOBODY = ""
"""Instead of a workload: none of them."""
_ANYBODY = "anybody"
_OPEN = f"version: 1\nworkload: {_ANYBODY}\nmode: enforce\negress: []\ningress: [{{from: any, ports: [any]}}]\n"


@dataclass(frozen=True, slots=True)
class Source:
    """Who calls: from outside with an address of each family, or a process on the host in that cgroup.

    `workload` is whose process it is, or NOBODY.
    """

    name: str
    addresses: tuple[str, str] | None = None
    cgroup: str = SCOPE
    workload: str = NOBODY


class Listener(NamedTuple):
    """A port, and whose it is."""

    workload: str
    port: int


class Cell(NamedTuple):
    """One attempt."""

    protocol: str
    address: str
    port: int
    source: str  # address, or empty: the kernel's choice
    answered: bool = True  # to wait for a word back; else a connection is enough


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a cell: what came, and what the evaluator says."""

    source: str
    listener: Listener
    cell: Cell
    came: str
    allowed: bool

    @property
    def reached(self) -> bool:
        """Whether it was answered."""
        return self.came == "ok"

    def __str__(self) -> str:
        who = self.listener.workload or "no workload"
        far = f"{self.cell.address} port {self.cell.port}/{self.cell.protocol} of {who}"
        said = "allow" if self.allowed else "deny"
        return f"{self.source} {self.cell.source} -> {far}: {self.came}, and the evaluator says {said}"


def tried(cells: Sequence[Cell]) -> list[str]:
    """What came of each: "ok" when there was an answer, else "timeout", "closed" or an errno."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(_try, cells))


def _try(cell: Cell) -> str:
    family = socket.AF_INET6 if ":" in cell.address else socket.AF_INET
    kind = socket.SOCK_STREAM if cell.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as out:
        out.settimeout(PATIENCE[cell.protocol])
        try:
            if cell.source:
                out.bind((cell.source, 0))
            out.connect((cell.address, cell.port))
            if not cell.answered:
                return "ok"
            out.send(HELLO)
            said = out.recv(100)
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))
    return "ok" if said else "closed"


class Matrix:
    """All sources, listeners, protocols and addresses of one host, under one policy."""

    def __init__(
        self,
        world: World,
        host: Host,
        files: Mapping[str, str],
        sources: Iterable[Source],
        listeners: Iterable[Listener],
        protocols: Sequence[str] = ("tcp", "udp"),
        *,
        answered: bool = True,
        presets: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.world, self.host = world, host
        self.sources, self.listeners, self.protocols = tuple(sources), tuple(listeners), protocols
        self.answered = answered
        self.policy = read({**files, f"rules.d/{_ANYBODY}.yaml": _OPEN}, presets)
        assert len(set(self.listeners)) == len({one.port for one in self.listeners}), "a port has one listener"

    def outcomes(self) -> list[Outcome]:
        """Every cell, tried and judged."""
        found = []
        for source in self.sources:
            asked = [(one, cell) for one in self.listeners for cell in self._cells(source, one)]
            cells = [cell for _, cell in asked]
            if source.addresses:
                came = self.world.lab.host.call(tried, cells)
            else:
                came = self.host.call_in(source.cgroup, tried, cells)
            for (listener, cell), word in zip(asked, came, strict=True):
                found.append(Outcome(source.name, listener, cell, word, self._allowed(source, listener, cell)))
        return found

    def _cells(self, source: Source, listener: Listener) -> list[Cell]:
        here = self.host.addresses if source.addresses else (*LOOPBACK, *self.host.addresses)
        far = source.addresses or ("", "")
        return [
            Cell(protocol, address, listener.port, far[":" in address], self.answered)
            for address in here
            for protocol in self.protocols
        ]

    def _allowed(self, source: Source, listener: Listener, cell: Cell) -> bool:
        """What the evaluator says of both ends."""
        if source.workload == NOBODY == listener.workload and not source.addresses:
            return True  # nobody governs either of them
        inside = not source.addresses
        # Who calls an address of his own host does so from that address.
        near = ip_address(cell.source or cell.address)
        own = source.workload == listener.workload != NOBODY
        out = Connection(
            source.workload, Direction.OUT, cell.protocol, ip_address(cell.address), cell.port,
            peer_workload=listener.workload, own=own, here=True,
        )  # fmt: skip
        into = Connection(
            listener.workload or _ANYBODY, Direction.IN, cell.protocol, near, cell.port,
            peer_workload=source.workload, own=own, here=inside,
        )  # fmt: skip
        sent = not source.workload or self._judge(out)
        return sent and (self._judge(into) if listener.workload or not inside else True)

    def _judge(self, connection: Connection) -> bool:
        return judge(self.policy, Live(datetime.now(UTC)), connection).allow


def read(files: Mapping[str, str], presets: Mapping[str, str]) -> Policy:
    """The policy of these files, by their path below the configuration directory."""
    encoded = ({name: text.encode() for name, text in some.items()} for some in (files, presets))
    found = parse(*encoded)
    assert found.policy, found.problems
    return found.policy


def wrong(outcomes: Iterable[Outcome]) -> str:
    """The cells that are not as the evaluator says, a line each; empty when there are none."""
    return "\n".join(str(one) for one in outcomes if one.reached != one.allowed)


def table(outcomes: Iterable[Outcome]) -> str:
    """A line a source and listener: how many of its cells were answered."""
    rows: dict[tuple[str, Listener], list[bool]] = {}
    for one in outcomes:
        rows.setdefault((one.source, one.listener), []).append(one.reached)
    return "\n".join(
        f"{source:12} -> {port:5} of {workload or 'no workload':12} {sum(cells)}/{len(cells)}"
        for (source, (workload, port)), cells in rows.items()
    )
