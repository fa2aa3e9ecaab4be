"""The maps from cgroups to chains: their names, and what a cgroup is bound to in each.

They are declared with the rules and filled while these are in force: with the slices in penstock.slice, and with
what is bound where it is in maps of its own, three for each level in use.  penstock.slice itself stands in rules
of the base chains: everybody pays for whether a packet is of it, and a comparison costs less than a map.
"""

from __future__ import annotations

from collections.abc import Sequence

OUT, IN, OWN = "out_cgroups", "in_cgroups", "own_cgroups"
MAPS = (OUT, IN, OWN)
PROOF_OUT, PROOF_IN = "proof_out", "proof_in"
"""Chains, and their counters, that catch what proves that cgroups are matched."""

ASKS = "dns_cgroups"
"""Only while some workload has rules by name: whose look-ups go to which listener."""

OWN_LOOKUPS = "own_lookups"
"""The chain of what is bound in place for a workload without rules by name: it asks whom its rules let it ask."""

RESOLVER_OUT, RESOLVER_IN, RESOLVER_OWN = "resolver_out", "resolver_in", "resolver_own"
"""Chains of the resolver's own cgroup; the first two are also counters of what they refuse."""

RESOLVER_BINDINGS = ((OUT, "goto", RESOLVER_OUT), (IN, "goto", RESOLVER_IN), (OWN, "jump", RESOLVER_OWN))
PROOF_BINDINGS = ((OUT, "goto", PROOF_OUT), (IN, "goto", PROOF_IN))


def place_maps(level: int) -> tuple[str, str, str]:
    """The maps of what is bound in place at that level: out, in, own."""
    return f"out_place{level}", f"in_place{level}", f"own_place{level}"


def place_name_map(level: int) -> str:
    """As `ASKS`, of what is bound in place at that level."""
    return f"dns_place{level}"


def held_back(name: str) -> tuple[str, str] | None:
    """Where a cgroup bound in place goes in this map while its chain goes: denied all, as strangers in our slice.

    None for other maps: what is in the slice is denied all when it is in none of them.
    """
    out, _, level = name.partition("_place")
    return ("goto", f"governed_{out}") if level and out in ("out", "in") else None


def maps(levels: Sequence[int] = (), *, names: bool = False) -> tuple[str, ...]:
    """Names of all maps; `levels` are those of cgroups that are bound in place, `names`: look-ups are governed."""
    places = (name for level in sorted(levels) for name in place_maps(level))
    if not names:
        return (*MAPS, *places)
    return (*MAPS, *places, ASKS, *(place_name_map(level) for level in sorted(levels)))


def bindings(workload: str, names: tuple[str, str, str] = (OUT, IN, OWN)) -> tuple[tuple[str, str, str], ...]:
    """How a workload's slice is bound: (map, verdict, chain) for each map it goes into."""
    out, in_, own = names
    return (out, "goto", f"out_{workload}"), (in_, "goto", f"in_{workload}"), (own, "jump", f"met_{workload}")


def place_bindings(workload: str, level: int) -> tuple[tuple[str, str, str], ...]:
    """How a cgroup of that level is bound in place, to the same chains: (map, verdict, chain)."""
    return bindings(workload, place_maps(level))


def name_bindings(workload: str | None, level: int | None = None) -> tuple[tuple[str, str, str], ...]:
    """How a workload whose look-ups are governed is bound besides; `level`: in place, at that level.

    Without a workload: whose are not, though those of what is around it may be.
    """
    chain = OWN_LOOKUPS if workload is None else f"dns_{workload}"
    return ((ASKS if level is None else place_name_map(level), "goto", chain),)
