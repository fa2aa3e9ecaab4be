"""The floor as a boot loads it: cgroups made, `nft -f`, nobody of ours running."""

from __future__ import annotations

import contextlib
import socket
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from attacks import ops
from attacks.conftest import Witness
from governed import DEPTH, SLICE, Actor, Governed, eventually, policy_of, rules
from penstock.core import cgroup_maps, floor, label_bits
from penstock.core.compile import Live, compile_policy
from penstock.core.questions import bindings
from penstock.core.ruleset import Ruleset
from penstock.core.slices import slice_of
from penstock.core.snapshot import differences
from penstock.demo.lab import Lab
from penstock.kernel import cgroup
from penstock.kernel.nft import Nft

pytestmark = pytest.mark.root

FAMILIES = [pytest.param(4, id="v4"), pytest.param(6, id="v6")]
W = "open-webui"
"""With a dash: nft must take the backslash in its path as it is."""
TO_REGISTRY = "{to: [198.51.100.10, '2001:db8:51::10'], ports: [80, 80/udp]}"
TO_STRANGER = "{to: [203.0.113.66, '2001:db8:66::66'], ports: [80, 80/udp], expires: '2099-01-01', reason: x}"
RULES = rules(W, f"[{TO_REGISTRY}, {TO_STRANGER}]")
TIMES = 20
REMOVE = "add table inet penstock\ndelete table inet penstock\n"


def compiled(lab: Lab, *workloads: str, levels: tuple[int, ...] = ()) -> Ruleset:
    labels = {W: label_bits.FIRST_LABEL}
    place = cgroup.slice_for_nft(lab.cgroup)
    return compile_policy(policy_of(*workloads), Live(datetime.now(UTC), labels, DEPTH, levels, slice=place))


def floor_of(lab: Lab, *workloads: str) -> bytes:
    return floor.text(compiled(lab, *workloads), tuple(policy_of(*workloads).workloads), "0", lab.name)


def boot(lab: Lab, data: bytes) -> None:
    """What the floor's script does."""
    header = floor.parse_header(data)
    assert header
    path = lab.dir / "floor.nft"
    path.write_bytes(data)
    lab.host.run(["mkdir", "-p", *(f"/sys/fs/cgroup/{place}" for place in header.cgroups)])
    lab.host.run(["nft", "-f", path])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_allowed_arrives_and_nothing_else(
    family: int, lab: Lab, governed: Governed, stranger: Witness, registry: Witness
) -> None:
    """What a rule allows for a while is closed too."""
    allowed, denied = (lab.remote[name].address(family) for name in ("registry", "stranger"))
    governed.nft(REMOVE)
    boot(lab, floor_of(lab, RULES))
    stranger.protocols(), registry.protocols()
    with Actor(lab.host, slice_of(W)) as w:
        assert w(ops.call, allowed) == ["ok", "ok"]
        assert w(ops.call, denied)[0] == "ECONNREFUSED"
    assert registry.protocols() == {"tcp", "udp"}
    for foreign in (SLICE, f"{SLICE}/penstock-nobody.slice", f"{SLICE}/penstock-nobody.slice/x.service"):
        with Actor(lab.host, foreign) as actor:
            assert actor(ops.call, allowed)[0] == actor(ops.call, denied)[0] == "ECONNREFUSED"
    assert registry.protocols() == stranger.protocols() == set()
    with governed.actor() as by:
        assert by(ops.call, denied) == ["ok", "ok"]
    assert stranger.protocols() == {"tcp", "udp"}


@pytest.mark.parametrize("family", FAMILIES)
def test_without_workloads_the_slice_is_closed(
    family: int, lab: Lab, governed: Governed, stranger: Witness, registry: Witness
) -> None:
    """As the floor that is shipped does, when the good one is lost: the workload's slice is there all the same."""
    boot(lab, floor_of(lab, RULES))
    boot(lab, floor_of(lab))
    stranger.protocols(), registry.protocols()
    for place in (slice_of(W), f"{slice_of(W)}/x.service", SLICE):
        with Actor(lab.host, place) as w:
            for peer in ("registry", "stranger"):
                assert w(ops.call, lab.remote[peer].address(family))[0] == "ECONNREFUSED"
    assert registry.protocols() == stranger.protocols() == set()


def found(tree: Path, wanted: Ruleset) -> tuple[int, list[str], dict[str, tuple[int, int]]]:
    """The generation, how the kernel differs from `wanted` with `W` bound, the counters."""
    nft = Nft()
    snapshot = nft.snapshot()
    ids = cgroup.ids(tree, (W,))
    wrong = differences(wanted, bindings((W,), ids), ids[SLICE], snapshot, datetime.now(UTC))
    return snapshot.generation, wrong, nft.counters()


def test_it_replaces_all_that_counts_in_one_transaction(lab: Lab, governed: Governed) -> None:
    governed.load(RULES, places={"system.slice/a.service": W, "system.slice/b.slice/c.service": W})
    governed.nft(
        "add set inet penstock theirs { type ipv4_addr ; }\n"
        "add chain inet penstock theirs\nadd rule inet penstock theirs ip saddr @theirs accept\n"
        "insert rule inet penstock output jump theirs\n"
        "add element inet penstock out4_open-webui { 192.0.2.99 . 6 . 1-99 }\n"
        "add table inet theirs\nadd counter inet theirs mine\n"
    )
    with governed.actor(W) as w:
        w(ops.call, lab.remote["stranger"].v4)
    wanted = compiled(lab, rules(W, f"[{TO_REGISTRY}]"))
    before, wrong, counted = lab.host.call(found, lab.cgroup, wanted)
    assert len(wrong) > 3
    assert sum(packets for packets, _ in counted.values())
    boot(lab, floor_of(lab, RULES))
    after, wrong, _ = lab.host.call(found, lab.cgroup, wanted)
    assert after == before + 1
    places = {f"map {name}" for level in (DEPTH + 1, DEPTH + 2) for name in cgroup_maps.place_maps(level)}
    # What nobody calls any more.
    assert set(wrong) == {"chain theirs", "set theirs", f"chain elder_{W}", *places}
    with governed.actor(W) as w:
        assert w(ops.call, lab.remote["stranger"].v4)[0] == "ECONNREFUSED"
    assert "mine" in governed.nft("list table inet theirs")
    governed.nft("delete table inet theirs\n")


def hammer(stop: Path, addresses: list[str]) -> int:
    """Send datagrams and SYNs as fast as can be; how many."""
    sent = 0
    datagrams = {address: socket.socket(ops.family_of(address), socket.SOCK_DGRAM) for address in addresses}
    while not stop.exists():
        for address, sock in datagrams.items():
            for _ in range(20):
                with contextlib.suppress(OSError):
                    sock.sendto(b"hammer", (address, 80))
            with socket.socket(ops.family_of(address), socket.SOCK_STREAM) as stream:
                stream.setblocking(False)
                stream.connect_ex((address, 80))
            sent += 21
    return sent


def goes_on(governed: Governed, before: int) -> bool:
    """Whether more was denied than `before`."""
    return governed.counters()[f"denied_out_{W}"] > before


@pytest.mark.parametrize("apart", [False, True], ids=["one", "two"])
def test_no_packet_slips_through_while_it_is_loaded(
    apart: bool, lab: Lab, governed: Governed, stranger: Witness
) -> None:
    """In two transactions, as the control, many do."""
    data = floor_of(lab, rules(W))
    boot(lab, data)
    stop = lab.dir / f"stop-{apart}"
    addresses = [lab.remote["stranger"].v4, lab.remote["stranger"].v6]
    with Actor(lab.host, slice_of(W)) as w:
        stranger.protocols()
        w.start(hammer, stop, addresses)
        eventually(lambda: governed.counters()[f"denied_out_{W}"] > 100)
        for _ in range(TIMES):
            if apart:
                governed.nft(REMOVE)
            boot(lab, data)
            eventually(partial(goes_on, governed, governed.counters()[f"denied_out_{W}"]))
        stop.touch()
        sent = w.result()
    assert sent > 100 * TIMES
    leaked = len([p for p in stranger.packets() if p.protocol in ("tcp", "udp")])
    print(f"{sent} packets while the floor was loaded {TIMES} times: {leaked} arrived")
    assert bool(leaked) is apart
