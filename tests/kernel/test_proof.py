"""The proof: it holds where the level is right, fails where it is wrong, and leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from penstock.core import base_chains, cgroup_maps, label_bits
from penstock.core.compile import Live, compile_policy
from penstock.core.parse import parse
from penstock.core.questions import bindings
from penstock.core.slices import SLICE
from penstock.demo.lab import Lab
from penstock.errors import PenstockError
from penstock.kernel import cgroup, proof
from penstock.kernel.loading import load
from penstock.kernel.nft import Nft

pytestmark = pytest.mark.root

RULES = b"version: 1\nworkload: w\nmode: enforce\negress: []\ningress: []\n"
REMOVE = "add table inet penstock\ndelete table inet penstock\n"
Body = Callable[[Nft, Path], None]


def bound(body: Body, tree: Path, level: int) -> list[str]:
    """Run in the lab, with rules loaded at that level of the slice; returns cgroups left behind."""
    nft = Nft()
    try:
        policy = parse({"rules.d/w.yaml": RULES}).policy
        assert policy
        labels, place = {"w": label_bits.FIRST_LABEL}, cgroup.slice_for_nft(tree)
        ruleset = compile_policy(policy, Live(datetime.now(UTC), labels, level, slice=place))
        cgroup.make(tree, ("w",))
        load(nft, ruleset, None, datetime.now(UTC))
        nft.bind(bindings(("w",), cgroup.ids(tree, ("w",))))
        before = nft.snapshot()
        body(nft, tree)
        assert nft.snapshot().bindings == before.bindings
        return [name for name in os.listdir(tree / SLICE) if name.startswith(proof.PREFIX)]
    finally:
        nft.load(REMOVE)
        nft.close()


def right(lab: Lab) -> int:
    return lab.host.call(lambda: cgroup.depth_of(cgroup.path_of(lab.cgroup)))


def test_the_right_level_is_proven_and_counted(lab: Lab) -> None:
    def body(nft: Nft, tree: Path) -> None:
        proof.prove(nft, tree)
        proof.prove(nft, tree)
        assert nft.counters()[cgroup_maps.PROOF_OUT][0] == 2
        assert nft.counters()[cgroup_maps.PROOF_IN][0] == 2
        assert nft.counters()[base_chains.UNBOUND_OUT][0] == 0

    assert lab.host.call(bound, body, lab.cgroup, right(lab)) == []


@pytest.mark.parametrize("off", [-1, 1, 5])
def test_a_wrong_level_is_said(lab: Lab, off: int) -> None:
    def body(nft: Nft, tree: Path) -> None:
        with pytest.raises(PenstockError, match="not matched at the level"):
            proof.prove(nft, tree)

    assert lab.host.call(bound, body, lab.cgroup, right(lab) + off) == []


@pytest.mark.parametrize(("lost", "way"), [(cgroup_maps.OUT, "from"), (cgroup_maps.IN, "to")])
def test_each_way_is_proven_by_itself(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, lost: str, way: str
) -> None:
    kept = tuple(binding for binding in cgroup_maps.PROOF_BINDINGS if binding[0] != lost)
    monkeypatch.setattr(cgroup_maps, "PROOF_BINDINGS", kept)

    def body(nft: Nft, tree: Path) -> None:
        with pytest.raises(PenstockError, match=f"a packet {way} "):
            proof.prove(nft, tree)

    assert lab.host.call(bound, body, lab.cgroup, right(lab)) == []


def test_without_a_loopback_address_nothing_is_proven() -> None:
    """`ip link set lo down` alone is not enough: the packet passes the output hook all the same."""

    def body(nft: Nft, tree: Path) -> None:
        with pytest.raises(PenstockError, match="bring up loopback"):
            proof.prove(nft, tree)

    with Lab() as lab:
        lab.host.run(["ip", "route", "flush", "table", "local"])
        lab.host.run(["ip", "route", "flush", "table", "main"])
        assert lab.host.call(bound, body, lab.cgroup, right(lab)) == []


def test_what_a_killed_one_left_is_swept_up(lab: Lab) -> None:
    def body(nft: Nft, tree: Path) -> None:
        (tree / SLICE / f"{proof.PREFIX}4194305").mkdir()
        (tree / SLICE / f"{proof.PREFIX}{os.getpid()}").mkdir()
        proof.prove(nft, tree)

    assert lab.host.call(bound, body, lab.cgroup, right(lab)) == []


def test_without_a_slice_it_is_said(lab: Lab) -> None:
    def body() -> None:
        nft = Nft()
        with pytest.raises(PenstockError, match="cannot be made"):
            proof.prove(nft, lab.cgroup / "nowhere")

    lab.host.call(body)
