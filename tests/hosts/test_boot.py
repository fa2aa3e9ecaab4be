"""Reboots under a hammer: of the governed service, from its first instruction on, and of strangers from outside.

What counts is what the wire saw.  Out: any packet to where no rule leads.  In: any answer of the service from a
port that no rule opens.  The service waits for nothing but what every service waits for, and for what its drop-in
says; it does not wait for the network.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from hosts import hammer
from hosts.installed import ALLOWED, CLOSED, OPEN, Installed, boot
from hosts.outside import REGISTRY, STRANGER
from hosts.wire import ACK, SYN, Packet
from hosts.world import World

pytestmark = pytest.mark.usefixtures("first_instruction")

NAME, UNIT = "eager", "eager.service"
UNTIL = 300
"""Rounds of the service after everything is up."""
LATE = """\
[Unit]
DefaultDependencies=no
After=lan.service {unit}
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStartPre=/bin/sleep 0.2
ExecStart=-/usr/lib/penstock/floor
[Install]
WantedBy=multi-user.target
"""
"""A floor in the wrong order: after the network, and after whom it shall hold back."""


@dataclass(frozen=True, slots=True)
class Beaten:
    """What came of one time off and on: of the wire, and of what those who beat say themselves."""

    out: Counter[str]  # past the rules
    into: Counter[str]
    allowed: Counter[str]
    accepted: float  # by the service itself, at its closed port, in this boot and at the end of the one before
    tried: float  # what the service tried and may not
    knocked: float  # what the stranger tried and may not, meanwhile
    served: float  # what the stranger got and may

    @property
    def leaks(self) -> int:
        """Packets past the rules, both ways."""
        return self.out.total() + self.into.total()

    def __str__(self) -> str:
        return (
            f"service: {self.tried:.0f} forbidden attempts; stranger: {self.knocked:.0f};"
            f" past the rules: {self.leaks}"
            f" {dict(self.out + self.into)}, accepted {self.accepted:.0f};"
            f" allowed: {self.allowed.total()} packets out, {self.served:.0f} connections in"
        )


class Eager:
    """A host with the service, and the stranger beside it, who never stops."""

    def __init__(self, installed: Installed) -> None:
        self.installed = installed
        self.host, self.world = installed.host, installed.world
        self._file = self.world.directory / f"knock-{self.host.name}"
        installed.hammer(UNIT)
        installed.sh(f"systemctl enable {UNIT}")
        installed.enforce(NAME, UNIT)
        installed.sh(f"systemctl start {UNIT}")
        self.stranger = self._knock()
        self.settle()

    def _knock(self) -> subprocess.Popen[Any]:
        doors = {
            port: [(protocol, address, port) for protocol in ("tcp", "udp") for address in self.host.addresses]
            for port in (OPEN, CLOSED)
        }
        wanted = json.dumps({"often": doors[CLOSED], "seldom": doors[OPEN]})
        argv = [sys.executable, hammer.__file__, str(self._file), wanted]
        return self.world.lab.host.popen(argv)

    def knocks(self) -> dict[str, float]:
        """What the stranger says that it did."""
        if not self._file.exists():  # it has just been started
            return {"rounds": 0}
        found: dict[str, float] = json.loads(self._file.read_text())
        return found

    def settle(self) -> None:
        """Until the service and the stranger have both tried everything again and again."""
        rounds = self._rounds()
        self.host.wait_until(lambda: self._rounds() > rounds + UNTIL, timeout=30)
        served = self._served()
        self.host.wait_until(lambda: self._served() > served + 20, timeout=30)

    def off_and_on(self, crash: bool = False, meanwhile: Callable[[], None] = lambda: None) -> Beaten:
        """Reboot; `meanwhile` is done while the host is off."""
        outside, mark = self.world.outside, self.world.outside.mark()
        before, served = self.knocks(), self._served()
        self.host.crash() if crash else self.host.power_off()
        accepted = self._accepted()
        meanwhile()
        self.host.power_on()
        self.settle()
        packets = outside.seen(self.host.name, since=mark)
        did, after = self.installed.hammered(UNIT), self.knocks()
        return Beaten(
            out=Counter(f"out {_kind(p)}" for p in packets if p.destination in STRANGER),
            into=Counter(f"in {_kind(p)}" for p in packets if _lets_in(p)),
            allowed=Counter(_kind(p) for p in packets if p.destination in REGISTRY and _begins(p)),
            accepted=accepted + self._accepted(),
            tried=4 * did["rounds"],
            knocked=4 * (after["rounds"] - before["rounds"]),
            served=self._served() - served,
        )

    def _rounds(self) -> float:
        return self.installed.hammered(UNIT).get("rounds", 0)

    def _served(self) -> float:
        knocks = self.knocks()
        return sum(knocks.get(f"answered tcp {address} {OPEN}", 0) for address in self.host.addresses)

    def _accepted(self) -> float:
        did = self.installed.hammered(UNIT)
        return did.get(f"accepted {CLOSED}", 0) + did.get(f"received {CLOSED}", 0)


def _kind(packet: Packet) -> str:
    return f"{packet.protocol} {6 if ':' in packet.destination else 4}"


def _begins(packet: Packet) -> bool:
    return packet.opens or packet.protocol == "udp"


def _lets_in(packet: Packet) -> bool:
    """Whether it is what comes of letting somebody in: the second packet of a connection, or an echo."""
    answers = packet.protocol == "udp" or (packet.flags & (SYN | ACK)) == SYN | ACK
    return packet.source_port == CLOSED and answers


@pytest.fixture(scope="module")
def eager(world: World, release: str) -> Iterator[Eager]:
    """One for each release, and no two at a time: they keep the machine busy."""
    made = Eager(boot(world, release, release))
    yield made
    made.stranger.kill()
    made.host.crash()


def check(beaten: Beaten) -> None:
    """Nothing passed, although it was tried all the time, and what is allowed did."""
    assert beaten.leaks == beaten.accepted == 0, beaten
    assert {f"{shot.protocol} {6 if ':' in shot.address else 4}" for shot in ALLOWED} == set(beaten.allowed)
    assert beaten.tried > 4 * UNTIL
    assert beaten.knocked > 4 * UNTIL
    assert beaten.served > 20


@pytest.mark.parametrize("crash", [False, True], ids=["orderly", "plug pulled"])
def test_nothing_passes_the_rules_over_a_reboot(eager: Eager, crash: bool) -> None:
    beaten = eager.off_and_on(crash)
    print(f"\n{eager.host.release}, {'plug pulled' if crash else 'orderly'}: {beaten}")
    check(beaten)
    eager.installed.wait_for(lambda: eager.installed.enforcing(NAME))
    assert eager.installed.workload(NAME)["enrolment"] == "slice"
    assert eager.host.read("/run/penstock/floor").startswith("loaded ")


def test_the_floor_alone_is_enough(eager: Eager) -> None:
    eager.installed.sh("systemctl mask penstock.service")
    try:
        beaten = eager.off_and_on(crash=True)
        print(f"\n{eager.host.release}, floor only: {beaten}")
        assert eager.installed.show("penstock.service", "ActiveState", "LoadState") == ["inactive", "masked"]
        check(beaten)
    finally:
        eager.installed.sh("systemctl unmask penstock.service; systemctl start penstock.service")
    eager.installed.wait_for(lambda: eager.installed.enforcing(NAME))


def test_in_the_wrong_order_the_same_test_counts_leaks(eager: Eager) -> None:
    """The negative control: the slice stays, but floor and daemon come late and nobody waits for them."""
    host = eager.host
    dropin = f"/etc/systemd/system/{UNIT}.d/50-penstock.conf"
    text = host.read(dropin)

    def break_it() -> None:
        words = ("Requires=", "After=", "Wants=")
        lines = [line for line in text.splitlines(keepends=True) if not line.startswith(words)]
        host.write(dropin, "".join(lines))
        host.write("/etc/systemd/system/penstock-floor.service", LATE.format(unit=UNIT))

    eager.installed.sh("rm /etc/systemd/system/sysinit.target.wants/penstock-floor.service")
    beaten = eager.off_and_on(meanwhile=break_it)
    print(f"\n{host.release}, in the wrong order: {beaten}")
    assert f"Slice=penstock-{NAME}.slice" in host.read(dropin)
    assert beaten.out.total() > 10
    assert beaten.into.total() > 0
    assert beaten.accepted > 0
    eager.installed.wait_for(lambda: eager.installed.enforcing(NAME))
    mark, start = eager.world.outside.mark(), time.monotonic()
    eager.settle()
    later = eager.world.outside.seen(host.name, since=mark)
    assert [p for p in later if p.destination in STRANGER] == [], f"after {time.monotonic() - start:.1f} s"
