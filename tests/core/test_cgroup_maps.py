"""The names of maps, and what is bound in them."""

from __future__ import annotations

from penstock.core import cgroup_maps


def test_each_level_has_three_maps_of_its_own() -> None:
    assert cgroup_maps.maps() == cgroup_maps.MAPS
    assert len(set(cgroup_maps.maps((7, 5, 6)))) == len(cgroup_maps.MAPS) + 9


def test_in_place_leads_to_the_same_chains_from_maps_of_its_level() -> None:
    for (slice_map, *there), (place_map, *same) in zip(
        cgroup_maps.bindings("w"), cgroup_maps.place_bindings("w", 6), strict=True
    ):
        assert there == same
        assert place_map == slice_map.replace("cgroups", "place6")
        assert place_map in cgroup_maps.maps((6,))


def test_what_is_held_back_goes_where_strangers_in_the_slice_go() -> None:
    there = {("goto", "governed_out"), ("goto", "governed_in")}
    out, in_, own = cgroup_maps.place_maps(6)
    assert {cgroup_maps.held_back(out), cgroup_maps.held_back(in_)} == there
    assert [cgroup_maps.held_back(name) for name in (own, *cgroup_maps.MAPS)] == [None] * 4
