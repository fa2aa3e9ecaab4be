"""Units that are restarted while others try to get past the rules: one that shoots with its first instruction."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import pytest

from hosts.installed import ALLOWED, DENIED, Installed, boot
from hosts.outside import REGISTRY, STRANGER
from hosts.wire import Packet
from hosts.world import World
from penstock.core.slices import slice_unit

pytestmark = pytest.mark.usefixtures("first_instruction")

RESTARTS = 500
STAYS, LEAVES = "/opt/stays", "/opt/leaves"
SLICED, PLACED = "sliced.service", "placed.service"


@pytest.fixture(scope="module")
def governed(world: World) -> Installed:
    """Two units, one in its slice and one bound where it is; who restarts the first waits until it has shot."""
    made = boot(world, "inference", "bookworm")
    made.program(LEAVES, [*DENIED, *ALLOWED], ["/bin/true"])
    made.program(STAYS, [*DENIED, *ALLOWED])
    made.unit(SLICED, LEAVES, service="Type=oneshot")
    made.unit(PLACED, STAYS)
    made.enforce("sliced", SLICED)
    made.enforce("placed", PLACED, dropin=False)
    return made


def restart(governed: Installed, unit: str, times: int) -> tuple[Counter[str], float]:
    """Restart a unit so many times; what was seen of it on the wire afterwards, by kind, and seconds for each."""
    mark, start = governed.world.outside.mark(), time.monotonic()
    governed.sh(f"for i in $(seq {times}); do systemctl restart {unit}; done", timeout=300)
    took = (time.monotonic() - start) / times
    return by_kind(governed.world.outside.seen(governed.host.name, since=mark)), took


def by_kind(packets: list[Packet]) -> Counter[str]:
    """How many opened a connection, or were datagrams, to whom and in which family."""
    who = {**dict.fromkeys(REGISTRY, "allowed"), **dict.fromkeys(STRANGER, "denied")}
    kinds = [
        f"{who[p.destination]} {p.protocol}{6 if ':' in p.destination else 4}"
        for p in packets
        if p.destination in who and (p.opens or p.protocol == "udp")
    ]
    return Counter(kinds)


def test_a_unit_in_its_slice_never_escapes(
    governed: Installed, count: int, record_property: Callable[[str, object], None]
) -> None:
    times = RESTARTS // count
    seen, took = restart(governed, SLICED, times)
    print(f"\n{times} restarts of {1000 * took:.0f} ms, in its slice: {dict(seen)}")
    record_property("escapes_in_slice", sum(n for kind, n in seen.items() if kind.startswith("denied")))
    assert {kind: n for kind, n in seen.items() if kind.startswith("denied")} == {}
    for kind in ("tcp4", "tcp6", "udp4", "udp6"):
        assert seen[f"allowed {kind}"] == times, "the control: each of them did shoot"


def test_a_unit_bound_in_place_has_a_gap_and_a_finding_says_so(
    governed: Installed, count: int, record_property: Callable[[str, object], None]
) -> None:
    times = RESTARTS // count
    seen, took = restart(governed, PLACED, times)
    escapes = {kind: n for kind, n in seen.items() if kind.startswith("denied")}
    print(f"\n{times} restarts of {1000 * took:.0f} ms, bound in place: {escapes} got out before it was bound")
    record_property("escapes_in_place", sum(escapes.values()))
    found = governed.wait_for(lambda: governed.findings("in-place", "placed"))
    assert "open for a moment whenever it starts" in found[0]["text"]
    assert "placed.service" in found[0]["text"]


# --- what is done to the service manager and to us, with workloads running ---

LASTING = "lasting.service"
DISTURBANCES = {
    "daemon-reload": "systemctl daemon-reload",
    "daemon-reexec": "systemctl daemon-reexec",
    "the daemon restarted": "systemctl restart penstock.service",
    "the daemon killed": "systemctl kill --signal=KILL penstock.service",
    "the daemon stopped and started": "systemctl stop penstock.service; systemctl start penstock.service",
    "the floor once more": "systemctl reload penstock-floor.service",
    "the floor by its twin": "systemctl start penstock-floor-again.service",
}
REFUSED = {
    "the slice of all": "systemctl stop penstock.slice",
    "the slice of one": f"systemctl stop '{slice_unit('lasting')}'",
    "the slice restarted": f"systemctl restart '{slice_unit('lasting')}'",
    "the floor stopped": "systemctl stop penstock-floor.service",
    "the floor restarted": "systemctl restart penstock-floor.service",
}


@pytest.fixture(scope="module")
def lasting(governed: Installed) -> Installed:
    """One more unit, in its slice, that hammers and serves and shall never notice anything."""
    governed.hammer(LASTING)
    governed.enforce("lasting", LASTING)
    governed.sh(f"systemctl start {LASTING} {PLACED}")
    governed.wait_for(lambda: governed.enforcing("sliced", "placed", "lasting"))
    return governed


@pytest.mark.parametrize("what", DISTURBANCES)
def test_disturbances_change_nothing_for_a_workload(lasting: Installed, what: str) -> None:
    before = [lasting.running(unit) for unit in (LASTING, PLACED)]
    daemon = lasting.show("penstock.service", "MainPID")
    with lasting.nothing_gets_out(LASTING):
        lasting.sh(DISTURBANCES[what])
        if what.startswith("the daemon"):
            lasting.wait_for(lambda: lasting.show("penstock.service", "MainPID") not in (daemon, ["0"]))
        lasting.wait_for(lambda: lasting.enforcing("sliced", "placed", "lasting"))
    assert [lasting.running(unit) for unit in (LASTING, PLACED)] == before
    assert lasting.workload("lasting")["enrolment"] == "slice"


@pytest.mark.parametrize("what", REFUSED)
def test_slices_and_floor_cannot_be_stopped_by_hand(lasting: Installed, what: str) -> None:
    before, floor = lasting.running(LASTING), lasting.show("penstock-floor.service", "InvocationID")
    with lasting.nothing_gets_out(LASTING):
        done = lasting.host.run(["sh", "-c", REFUSED[what]], check=False)
    assert done.returncode != 0
    assert "may be requested by dependency only" in done.stderr
    assert lasting.running(LASTING) == before
    assert lasting.show("penstock-floor.service", "InvocationID") == floor
    assert lasting.enforcing("sliced", "placed", "lasting")
