"""Probes: connections that show that a policy holds for a workload, and what came of them.

A probe that must be denied goes to an address that leads nowhere, so that it does no harm if it gets out.  It is
judged by the kernel's counter and by our log, not by the error alone: others refuse connections too.  A probe that
must pass is judged by the counter of the rule: whether anybody answers is not ours to say.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address

from penstock.core.connection import Connection
from penstock.core.coverage import is_literal_only
from penstock.core.policy import Address, AddressPeer, Direction, Policy
from penstock.core.verdict import Live, judge

PORT = 9  # discard: where nothing listens
PATIENCE = 2.0
"""Seconds that a probe waits.  A refusal of ours takes milliseconds."""

NOWHERE: tuple[Address, ...] = tuple(
    map(ip_address, ("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "127.0.0.1", "::1"))
)
"""Documentation ranges, which lead nowhere; then this host, for one that has no route to them."""

DENIED, ALLOWED = "denied", "allowed"


@dataclass(frozen=True, slots=True)
class Probe:
    """What is tried over TCP, and what must come of it; `rule` is the one that lets it through."""

    expect: str
    address: Address
    port: int
    rule: str | None = None

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Tried:
    """What connect said: an errno, 0 for a connection, None when nothing was said in time."""

    number: int | None
    seconds: float

    @property
    def unsent(self) -> bool:
        """Whether no packet can have left: this host has no way there."""
        return self.number in (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL)

    @property
    def refused(self) -> bool:
        """Whether it ended at once, without a connection."""
        return self.number not in (0, None) and not self.unsent


@dataclass(frozen=True, slots=True)
class Result:
    """`proven`: True, as it must be; False, it is not; None, nothing was shown."""

    probe: Probe
    proven: bool | None
    text: str


def is_ours(direction: Direction, address: Address | None, port: int | None) -> bool:
    """Whether a denied packet went where nobody goes but a probe."""
    return direction is Direction.OUT and port == PORT and address in NOWHERE


def denied(policy: Policy, workload: str, now: datetime) -> tuple[tuple[Probe, ...], ...]:
    """For each family what must be denied, the one to try first first; none where everything is allowed."""
    found = []
    for version in (4, 6):
        probes = [Probe(DENIED, address, PORT) for address in NOWHERE if address.version == version]
        found.append(tuple(probe for probe in probes if not _allows(policy, workload, probe, now)))
    return tuple(found)


def allowed(policy: Policy, workload: str, now: datetime) -> tuple[Probe, ...]:
    """One destination of each family that a rule names literally; metadata and its like are left in peace."""
    found: dict[int, Probe] = {}
    for probe in _literal(policy, workload):
        if probe.address.version not in found and _allows(policy, workload, probe, now) == probe.rule:
            found[probe.address.version] = probe
    return tuple(probe for _, probe in sorted(found.items()))


def _literal(policy: Policy, workload: str) -> Iterator[Probe]:
    for rule in policy.workloads[workload].egress:
        port = next((one.first for one in rule.ports.ranges if one.protocol == "tcp" and one.first), None)
        for peer in rule.peers if port is not None else ():
            if isinstance(peer, AddressPeer) and not is_literal_only(peer.address):
                yield Probe(ALLOWED, peer.address, port or 0, rule.id)


def _allows(policy: Policy, workload: str, probe: Probe, now: datetime) -> str | None:
    """The rule that allows it."""
    here = probe.address.is_loopback
    connection = Connection(workload, Direction.OUT, "tcp", probe.address, probe.port, here=here)
    return judge(policy, Live(now), connection).rule


def judge_denied(probe: Probe, tried: Tried, counted: bool, logged: bool) -> Result:
    """`counted`: the kernel's counter of denied packets rose; `logged`: the block log has this very probe."""
    if tried.unsent:
        return Result(probe, None, "not sent: this host has no way there")
    if not tried.refused:
        what = "a connection was made" if tried.number == 0 else f"no refusal within {PATIENCE:g} s"
        return Result(probe, False, f"not denied: {what}")
    took = f"{_name(tried)} after {tried.seconds * 1000:.0f} ms"
    if not counted and not logged:
        return Result(probe, False, f"{took}, but not by these rules: they counted nothing")
    return Result(probe, True, f"denied: {took}, {'counted and logged' if logged else 'counted'}")


def judge_allowed(probe: Probe, tried: Tried, hits: int | None, logged: bool) -> Result:
    """`hits`: packets that the rule let through meanwhile, None when that is not known; `logged`: as denied."""
    if tried.unsent:
        return Result(probe, None, "not sent: this host has no way there")
    answer = "a connection" if tried.number == 0 else "no answer yet" if tried.number is None else _name(tried)
    if logged:
        return Result(probe, False, f"denied, though rule {probe.rule} allows it")
    if hits:
        return Result(probe, True, f"let through by rule {probe.rule} ({answer})")
    return Result(probe, None, f"nothing is known of its packets ({answer})")


def _name(tried: Tried) -> str:
    return errno.errorcode.get(tried.number or 0, str(tried.number))
