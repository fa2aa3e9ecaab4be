"""Another version of the agent is installed, and the one before again, while workloads work: they notice nothing.

Two workloads, one in its slice and one bound where it is, each begin allowed connections and send allowed
datagrams, two a millisecond together, hold talks that last, and try every millisecond what they may not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import pytest

from hosts.bundle import CURRENT, put
from hosts.hammer import name_of
from hosts.installed import ALLOWED, DENIED, Installed, boot
from hosts.outside import REGISTRY, STRANGER
from hosts.world import World

pytestmark = pytest.mark.usefixtures("first_instruction")

OTHER = "0.1.1"
UNITS = ("sliced.service", "placed.service")
LOAD: dict[str, Any] = {"every": 4, "patience": 5, "lasting": [astuple(shot) for shot in ALLOWED], "doors": []}
KINDS = [name_of(astuple(shot)) for shot in ALLOWED]
ROUNDS = 300
FEW = 50
"""Connections and answers that are under way at any time."""


@pytest.fixture(scope="module")
def loaded(world: World) -> Installed:
    """Both at work, and the bundles of both versions on the host."""
    made = boot(world, "inference", "bookworm")
    put(made.host, OTHER)
    for unit in UNITS:
        made.hammer(unit, **LOAD)
        made.enforce(unit.partition(".")[0], unit, dropin=unit == "sliced.service")
        made.sh(f"systemctl start {unit}")
    made.wait_for(lambda: made.enforcing("sliced", "placed") and made.findings("in-place", "placed"))
    ways = [made.workload(name)["enrolment"] for name in ("sliced", "placed")]
    assert ways == ["slice", "in-place"]
    return made


@dataclass(frozen=True, slots=True)
class Noticed:
    """What both workloads say that became of their work, and the wire of what they may not."""

    began: float  # connections and datagrams that were answered
    failed: float  # that were refused, or not answered in time
    said: float  # requests answered in the talks
    broken: float  # talks that ended, or whose answer was lost
    slowest: float  # answer in a talk so far, in seconds
    tried: float
    escaped: int

    def __str__(self) -> str:
        return (
            f"{self.began:.0f} connections and datagrams answered, {self.failed:.0f} not;"
            f" {self.said:.0f} requests in talks answered, {self.broken:.0f} broken,"
            f" slowest {1000 * self.slowest:.0f} ms;"
            f" {self.tried:.0f} forbidden attempts, {self.escaped} packets escaped"
        )


def during(loaded: Installed, work: Callable[[], object]) -> Noticed:
    """What was noticed of it, from a moment before to a moment after."""
    beat(loaded)
    mark, before = loaded.world.outside.mark(), [loaded.hammered(unit) for unit in UNITS]
    work()
    beat(loaded)
    # A connection that hangs holds up those behind it until its patience ends.
    loaded.host.wait_until(lambda: all(under_way(loaded.hammered(unit)) < FEW for unit in UNITS))
    after = [loaded.hammered(unit) for unit in UNITS]
    seen = loaded.world.outside.seen(loaded.host.name, since=mark)

    def grown(*words: str) -> float:
        keys = [f"{word} {kind}" for word in words for kind in KINDS]
        return sum(new.get(k, 0) - old.get(k, 0) for new, old in zip(after, before, strict=True) for k in keys)

    rounds = [did["rounds"] - old["rounds"] for did, old in zip(after, before, strict=True)]

    return Noticed(
        began=grown("answered"),
        failed=grown("unanswered", "refused"),
        said=grown("said"),
        broken=grown("broken"),
        slowest=max(did[f"slowest {kind}"] for did in after for kind in KINDS),
        tried=len(DENIED) * sum(rounds),
        escaped=sum(p.destination in STRANGER for p in seen),
    )


def under_way(did: dict[str, float]) -> float:
    """What was begun, is allowed, and has not come to an end."""
    ends = ("answered", "unanswered", "refused")
    return sum(did.get(f"tried {kind}", 0) - sum(did.get(f"{end} {kind}", 0) for end in ends) for kind in KINDS)


def beat(loaded: Installed) -> None:
    """Let both work for a while."""
    until = [loaded.hammered(unit).get("rounds", 0) + ROUNDS for unit in UNITS]

    def done() -> bool:
        return all(loaded.hammered(unit).get("rounds", 0) > n for unit, n in zip(UNITS, until, strict=True))

    loaded.host.wait_until(done, timeout=30)


@pytest.mark.parametrize("version", [OTHER, CURRENT], ids=["upgrade", "downgrade"])
def test_workloads_notice_nothing_of_another_version(loaded: Installed, version: str) -> None:
    before = [loaded.running(unit) for unit in UNITS]
    daemon, floor = loaded.status()["daemon"], loaded.show("penstock-floor.service", "InvocationID", "NRestarts")
    assert daemon["version"] != version
    took: list[float] = []
    noticed = during(loaded, lambda: took.append(loaded.change(version)))
    print(f"\n{daemon['version']} -> {version} in {took[0]:.1f} s: {noticed}")
    after = loaded.status()["daemon"]
    assert (after["version"], after["pid"] != daemon["pid"]) == (version, True)
    assert [loaded.running(unit) for unit in UNITS] == before
    assert loaded.show("penstock-floor.service", "InvocationID", "NRestarts") == floor
    assert (noticed.failed, noticed.broken, noticed.escaped) == (0, 0, 0)
    assert noticed.began > 2 * ROUNDS
    assert noticed.said > 20
    assert noticed.tried > 2 * len(DENIED) * ROUNDS
    loaded.wait_for(lambda: loaded.enforcing("sliced", "placed"))


def test_the_same_test_can_tell(loaded: Installed) -> None:
    """The control: whoever shuts the door for a moment, or opens it, is noticed."""

    def shut() -> None:
        rules = f"ip daddr {REGISTRY[0]} drop; ip6 daddr {REGISTRY[1]} drop"
        table = f"table inet other {{ chain c {{ type filter hook output priority 0; {rules}; }}; }}"
        loaded.host.run(["nft", table])
        loaded.host.wait_until(lambda: all(under_way(loaded.hammered(unit)) > FEW for unit in UNITS))
        loaded.host.run(["nft", "delete", "table", "inet", "other"])

    def open_() -> None:
        loaded.sh("systemctl stop penstock; nft delete table inet penstock; systemctl start penstock")
        loaded.wait_for(lambda: loaded.enforcing("sliced", "placed"))

    noticed = during(loaded, shut)
    print(f"\nshut for a moment: {noticed}")
    assert noticed.failed + noticed.broken > 0
    assert noticed.escaped == 0
    noticed = during(loaded, open_)
    print(f"open for a moment: {noticed}")
    assert noticed.escaped > 0
