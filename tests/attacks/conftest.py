"""One lab a module, governed; a witness on each remote host that writes down every packet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from governed import Governed
from penstock.demo import probe
from penstock.demo.lab import Lab
from penstock.demo.recorder import Arrival, Recorder

TCP_PORTS, UDP_PORTS = (80, 443), (53, 80)
UNUSED = 65000


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
        return {packet.protocol for packet in self.packets()} & {"tcp", "udp"}


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
        Recorder(lab, lab.remote["stranger"], ports=TCP_PORTS, udp_ports=UDP_PORTS, packets=True)
    )


@pytest.fixture(scope="module")
def registry(lab: Lab) -> Witness:
    """The witness on the host that some rules allow."""
    return Witness(
        Recorder(lab, lab.remote["registry"], ports=TCP_PORTS, udp_ports=UDP_PORTS, packets=True)
    )
