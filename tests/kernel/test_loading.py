"""Loading onto whatever is there: a delta, a wrong belief, sets of another release, what others did to us."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from governed import placed
from penstock.core import floor, label_bits
from penstock.core.compile import Live, compile_policy
from penstock.core.parse import parse
from penstock.core.questions import bindings, levels
from penstock.core.render_nft import Present
from penstock.core.ruleset import Ruleset
from penstock.core.snapshot import differences
from penstock.demo.lab import Lab
from penstock.errors import PenstockError
from penstock.kernel import cgroup, loading
from penstock.kernel.nft import Nft

pytestmark = pytest.mark.root

NOW = datetime.now(UTC)
REMOVE = "add table inet penstock\ndelete table inet penstock\n"


def ruleset(in_place: tuple[int, ...] = (), **egress: str) -> Ruleset:
    """Workloads with what each may call, and levels at which cgroups are bound in place."""
    files = {
        f"rules.d/{name}.yaml": (
            f"version: 1\nworkload: {name}\nmode: enforce\negress: {rules}\ningress: []\n".encode()
        )
        for name, rules in egress.items()
    }
    policy = parse(files).policy
    assert policy
    labels = {name: label_bits.FIRST_LABEL + n for n, name in enumerate(sorted(egress))}
    return compile_policy(policy, Live(NOW, labels, 2, in_place))


A = "[{to: 198.51.100.10, ports: [443]}]"
ONE, TWO = ruleset(a=A), ruleset(a=A, b="[{to: 198.51.100.11, ports: [443]}]")
OTHER = ruleset(a="[{to: 198.51.100.0/24, ports: [80]}]")


def load(world: World, wanted: Ruleset, present: Present | None, now: datetime) -> None:
    loading.load(world.nft, placed(wanted, world.tree), present, now)


class World:
    """An Nft in the lab, and cgroups of two workloads."""

    def __init__(self, tree: Path) -> None:
        self.nft, self.tree = Nft(), tree
        cgroup.make(tree, ("a", "b"))

    def bind(self, *workloads: str) -> None:
        self.nft.bind(self.wanted(*workloads))

    def wanted(self, *workloads: str) -> dict[str, dict[int, tuple[str, str]]]:
        found = bindings(workloads, cgroup.ids(self.tree, workloads))
        return {name: dict(elements) for name, elements in found.items()}

    def wrong(self, expected: Ruleset, *workloads: str) -> list[str]:
        slice_id = cgroup.ids(self.tree, ())["penstock.slice"]
        return differences(expected, self.wanted(*workloads), slice_id, self.nft.snapshot(), NOW)


def inside(body: Callable[[World], None]) -> Callable[[Lab], None]:
    def run(tree: Path) -> None:
        world = World(tree)
        try:
            body(world)
        finally:
            world.nft.load(REMOVE)
            world.nft.close()

    def test(lab: Lab) -> None:
        lab.host.call(run, lab.cgroup)

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    return test


def foreign(text: str) -> None:
    done = subprocess.run(["nft", "-f", "-"], input=text + "\n", text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@inside
def test_onto_nothing_then_a_delta_then_back(world: World) -> None:
    load(world, ONE, None, NOW)
    world.bind("a")
    assert world.wrong(ONE, "a") == []
    present = world.nft.snapshot().present
    load(world, TWO, present, NOW)
    world.bind("a", "b")
    assert world.wrong(TWO, "a", "b") == []
    load(world, OTHER, world.nft.snapshot().present, NOW)
    assert world.wrong(OTHER, "a") == []


@inside
def test_a_slice_that_was_made_again_is_found_out_and_loading_mends_it(world: World) -> None:
    load(world, ONE, None, NOW)
    world.bind("a")
    for path in ("penstock-a.slice", "penstock-b.slice", ""):
        (world.tree / "penstock.slice" / path).rmdir()
    before = world.nft.snapshot()
    with pytest.raises(PenstockError, match="cgroupv2 path fails"):
        load(world, OTHER, before.present, NOW)
    assert world.nft.snapshot() == before
    cgroup.make(world.tree, ("a",))
    assert {"the slice in chain output", "the slice in chain input"} < set(world.wrong(ONE, "a"))
    load(world, ONE, before.present, NOW)
    world.bind("a")
    assert world.wrong(ONE, "a") == []


@inside
def test_a_table_that_had_the_slice_in_maps_is_taken_over(world: World) -> None:
    load(world, ONE, None, NOW)
    place = cgroup.slice_for_nft(world.tree)
    foreign(
        "flush chain inet penstock output\n"
        "add map inet penstock out_slice { type cgroupsv2 : verdict ; }\n"
        f'add element inet penstock out_slice {{ "{place}" : goto governed_out }}\n'
        "add rule inet penstock output socket cgroupv2 level 2 vmap @out_slice"
    )
    load(world, ONE, None, NOW)
    world.bind("a")
    assert world.wrong(ONE, "a") == []


@inside
def test_a_delta_is_one_transaction_and_keeps_bindings(world: World) -> None:
    load(world, ONE, None, NOW)
    world.bind("a")
    before, held = world.nft.generation(), world.nft.snapshot().bindings
    load(world, OTHER, world.nft.snapshot().present, NOW)
    assert world.nft.generation() == before + 1
    assert world.nft.snapshot().bindings == held


@inside
def test_a_wrong_belief_is_found_out(world: World) -> None:
    for present in (Present.of(TWO, NOW), Present.of(OTHER, NOW)):
        load(world, ONE, None, NOW)
        world.bind("a")
        if present == Present.of(OTHER, NOW):
            foreign("flush ruleset")
        load(world, TWO, present, NOW)
        world.bind("a", "b")
        assert world.wrong(TWO, "a", "b") == []


@inside
def test_a_workload_is_removed_while_it_is_bound(world: World) -> None:
    load(world, TWO, None, NOW)
    world.bind("a", "b")
    load(world, ONE, world.nft.snapshot().present, NOW)
    assert world.wrong(ONE, "a") == []


@inside
def test_a_set_of_another_type_is_made_anew_and_bindings_stay(world: World) -> None:
    load(world, TWO, None, NOW)
    world.bind("a", "b")
    flushes = "".join(f"flush chain inet penstock {name}\n" for name in world.nft.snapshot().chains)
    another = "delete set inet penstock out4_a\nadd set inet penstock out4_a { type ipv4_addr ; }"
    foreign(flushes + another)
    before = world.nft.generation()
    load(world, TWO, None, NOW)
    assert world.nft.generation() == before + 1, "in one transaction"
    assert world.wrong(TWO, "a", "b") == []


@inside
def test_what_others_did_to_the_table_is_undone(world: World) -> None:
    load(world, TWO, None, NOW)
    world.bind("a", "b")
    good = world.nft.snapshot()
    for text in (
        "flush ruleset",
        "add table inet penstock { flags dormant ; }",
        "flush chain inet penstock output",
        "add chain inet penstock mine\nadd rule inet penstock mine accept",
        "insert rule inet penstock out_a accept",
        "add set inet penstock theirs { type ipv4_addr ; }",
        "add map inet penstock theirs { type ipv4_addr : verdict ; }",
        "add counter inet penstock theirs",
        "flush set inet penstock out4_a",
        "flush map inet penstock out_cgroups",
        "add chain inet penstock output { policy drop ; }",
        "flush chain inet penstock output\ndelete chain inet penstock output\n"
        "add chain inet penstock output { type filter hook output priority 5 ; }",
        "flush chain inet penstock output\ndelete chain inet penstock output\nadd chain inet penstock output",
    ):
        foreign(text)
        load(world, TWO, None, NOW)
        world.bind("a", "b")
        assert world.wrong(TWO, "a", "b") == [], text
        assert world.nft.snapshot().digest == good.digest, text


@inside
def test_a_cgroup_in_place_comes_and_goes(world: World) -> None:
    """Levels that are not in use any more take their maps with them, full as they are."""
    places = {"system.slice/one.service": "a", "system.slice/deep.slice/two.service": "a"}
    for path in places:
        (world.tree / path).mkdir(parents=True, exist_ok=True)
    for chosen in (places, dict([*places.items()][:1]), {}, dict([*places.items()][1:])):
        wanted = ruleset(levels(chosen, 2), a=A)
        load(world, wanted, None, NOW)
        cgroups = cgroup.ids(world.tree, ("a",)) | {path: (world.tree / path).stat().st_ino for path in chosen}
        bound = bindings(("a",), cgroups, chosen, 2)
        world.nft.bind(bound)
        snapshot = world.nft.snapshot()
        assert differences(wanted, bound, cgroups["penstock.slice"], snapshot, NOW) == []
        assert sum(name.startswith("own_place") for name in snapshot.bindings) == len(chosen)
    world.nft.bind(bindings(("a",), {}, {}, 2, in_use=levels(chosen, 2)))
    assert not any(world.nft.snapshot().bindings.values())


@inside
def test_onto_a_floor(world: World) -> None:
    """What a boot loaded is taken over in one transaction, and what the floor leaves out is added."""
    timed = "{to: 198.51.100.12, ports: [80], expires: '2099-01-01', reason: x}"
    wanted = placed(ruleset(a=f"[{timed}, {A[1:]}", b="[]"), world.tree)
    text = floor.text(wanted, ("a", "b"), "0", str(world.tree.relative_to("/sys/fs/cgroup")))
    foreign(text.decode())
    assert world.wrong(wanted, "a", "b") == ["elements of set out4_a"]
    before = world.nft.snapshot()
    load(world, wanted, None, NOW)
    assert world.nft.generation() == before.generation + 1
    assert world.nft.snapshot().bindings == before.bindings == world.wanted("a", "b")
    assert world.nft.snapshot().digest == before.digest
    world.bind("a", "b")
    assert world.wrong(wanted, "a", "b") == []


@inside
def test_a_ruleset_that_the_kernel_refuses_changes_nothing(world: World) -> None:
    load(world, ONE, None, NOW)
    world.bind("a")
    before = world.nft.snapshot()
    bad = Ruleset((*TWO.counters, "no good"), TWO.maps, TWO.sets, TWO.chains)
    with pytest.raises(PenstockError, match="nft refused"):
        load(world, bad, None, NOW)
    assert world.nft.snapshot() == before


def ending(at: datetime) -> Ruleset:
    (one, *rest) = ONE.sets
    return replace(ONE, sets=(replace(one, expires=dict.fromkeys(one.elements, at)), *rest))


@inside
def test_ends_told_anew_after_a_slow_load_are_exact(world: World) -> None:
    begun, wanted = datetime.now(UTC), ending(datetime.now(UTC) + timedelta(seconds=1.5))
    (element,) = wanted.sets[0].elements
    load(world, wanted, None, begun - timedelta(seconds=5))  # as if the load had begun long before
    loading.retime(world.nft, wanted, lambda: datetime.now(UTC))
    held = world.nft.snapshot()
    assert held.timed == {**dict.fromkeys(held.sets, frozenset()), "out4_a": frozenset({element})}
    while world.nft.snapshot().sets["out4_a"] and datetime.now(UTC) - begun < timedelta(seconds=10):
        pass
    assert timedelta(seconds=1.45) < datetime.now(UTC) - begun < timedelta(seconds=3)


@inside
def test_what_was_over_while_it_was_loaded_goes(world: World) -> None:
    wanted = ending(datetime.now(UTC) + timedelta(seconds=30))
    load(world, wanted, None, datetime.now(UTC))
    assert len(world.nft.snapshot().sets["out4_a"]) == 1
    for _ in range(2):  # there, and gone by itself
        loading.retime(world.nft, wanted, lambda: datetime.now(UTC) + timedelta(seconds=31))
        assert not world.nft.snapshot().sets["out4_a"]
    loading.retime(world.nft, wanted, lambda: datetime.now(UTC))
    assert len(world.nft.snapshot().sets["out4_a"]) == 1


@inside
def test_ends_that_cannot_be_told_are_tried_again_and_then_an_error(world: World) -> None:
    asked: list[datetime] = []

    def clock() -> datetime:
        asked.append(NOW)
        return NOW

    with pytest.raises(PenstockError):
        loading.retime(world.nft, ending(NOW + timedelta(hours=1)), clock)  # there is no table
    assert len(asked) == loading.RETIMES
