"""One lab a module, governed; a witness on each remote host that writes down every packet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from governed import Actor, Governed
from penstock.demo import probe
from penstock.demo.host import Host
from penstock.demo.lab import Lab
from penstock.demo.recorder import Arrival, Recorder, send_from_each_processor

TCP_PORTS, UDP_PORTS = (80, 443), (53, 80)
UNUSED = 65000


class Follower(Recorder):
    """Has one process for all its datagrams: for tests that ask a hundred times."""

    def __init__(self, lab: Lab, host: Host, **more: Any) -> None:
        super().__init__(lab, host, **more)
        self._sender = Actor(lab.host)

    def _send(self, data: bytes, address: str, port: int) -> int:
        return int(self._sender(send_from_each_processor, data, address, port))


@dataclass
class Witness:
    """What arrived at a remote host since it was last asked."""

    recorder: Recorder
    seen: int = 0

    def packets(self) -> list[Arrival]:
        """Everything that came over the wire since the last call, whatever it was."""
        found = self.recorder.arrivals("packet")
        new, self.seen = found[self.seen :], len(found)
        return new

    def protocols(self) -> set[str]:
        """Of those packets; the kernel's own ICMP about a socket that is closed does not count."""
        return {packet.protocol for packet in self.packets()} & {"tcp", "udp", "lost"}


def until_soon(begin: Callable[[datetime], None]) -> None:
    """A whole second that is near, up to which all went well that `begin` does, given it; return when it has come.

    Where the machine was too busy for all of that, it is done once more with an end that is further away.
    """
    for ahead in (0.2, 2, 10):
        end = (datetime.now(UTC) + timedelta(seconds=ahead + 1)).replace(microsecond=0)
        try:
            begin(end)
        except (AssertionError, OSError):
            if datetime.now(UTC) < end:
                raise
        if datetime.now(UTC) < end:
            while (left := (end - datetime.now(UTC)).total_seconds()) > 0:
                time.sleep(left)
            return
    raise AssertionError("too busy a machine")


@pytest.fixture(scope="module")
def governed(lab: Lab) -> Iterator[Governed]:
    """The module's lab, ready for policies."""
    made = Governed(lab)
    # Everybody knows everybody's link address before packets with strange sources or routes ask for it.
    for host in lab.remote.values():
        for address in host.addresses:
            lab.host.call(probe.tcp, address, UNUSED)
            host.call(probe.tcp, lab.host.address(6 if ":" in address else 4), UNUSED)
    yield made
    made.close()


@pytest.fixture(scope="module")
def stranger(lab: Lab) -> Witness:
    """The witness on the host that nobody may talk to."""
    return Witness(
        Follower(lab, lab.remote["stranger"], ports=TCP_PORTS, udp_ports=UDP_PORTS, packets=True)
    )


@pytest.fixture(scope="module")
def registry(lab: Lab) -> Witness:
    """The witness on the host that some rules allow."""
    return Witness(
        Follower(lab, lab.remote["registry"], ports=TCP_PORTS, udp_ports=UDP_PORTS, packets=True)
    )
