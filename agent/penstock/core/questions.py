"""From words of a policy to objects of the kernel, and back: what to bind, which set to ask, whose hits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from ipaddress import ip_address
from typing import Any

from penstock.core import cgroup_maps, chains, control_ports, hits
from penstock.core.compile import ECHO, NUMBERS
from penstock.core.effects import AskKernel
from penstock.core.name_chains import learned_set
from penstock.core.name_elements import Names
from penstock.core.name_rules import Group, groups
from penstock.core.policy import Direction, NamePeer, Policy
from penstock.core.ruleset import Element
from penstock.core.slices import RESOLVER, slice_of
from penstock.core.snapshot import Bindings
from penstock.core.view import InForce

NOWHERE: Mapping[str, str] = {}
NO_COUNTERS: hits.Counters = {}


def level(path: str, depth: int) -> int:
    """The level of a cgroup, `path` below the tree, as `socket cgroupv2` counts; `depth` is penstock.slice's."""
    return depth + path.count("/")


def levels(places: Iterable[str], depth: int) -> tuple[int, ...]:
    """The levels of cgroups that are bound in place, given by path below the tree: for `compile.Live`."""
    return tuple(sorted({level(path, depth) for path in places}))


def bindings(
    workloads: tuple[str, ...],
    cgroups: Mapping[str, int],
    places: Mapping[str, str] = NOWHERE,
    depth: int = 1,
    in_use: tuple[int, ...] = (),
    by_name: Collection[str] = (),
) -> Bindings:
    """What the maps must hold: each workload's slice, and what is bound in place.

    `cgroups` maps paths below the tree to ids; one that is missing is left out.  `places` maps paths to workloads;
    those of other workloads are left out.  `depth` is the level of penstock.slice.  `in_use` are the levels of the
    ruleset that is in the kernel: its maps are named in the result also when nothing is to be in them any more.
    `by_name` are the workloads whose look-ups are governed.
    """
    wanted = cgroup_maps.maps(sorted({*in_use, *levels(places, depth)}), names=bool(by_name))
    result: dict[str, dict[int, tuple[str, str]]] = {name: {} for name in wanted}
    paths: list[tuple[str, tuple[tuple[str, str, str], ...]]]
    paths = [(slice_of(name), cgroup_maps.bindings(name)) for name in workloads]
    paths += [
        (path, cgroup_maps.place_bindings(name, level(path, depth)))
        for path, name in places.items()
        if name in workloads
    ]
    if by_name:
        paths.append((RESOLVER, cgroup_maps.RESOLVER_BINDINGS))
        paths += [(slice_of(name), cgroup_maps.name_bindings(name)) for name in by_name]
        paths += [
            (path, cgroup_maps.name_bindings(name if name in by_name else None, level(path, depth)))
            for path, name in places.items()
            if name in workloads
        ]
    for path, verdicts in paths:
        if path in cgroups:
            for name, verb, chain in verdicts:
                result[name][cgroups[path]] = (verb, chain)
    return result


def sets_of(workload: str) -> list[tuple[str, int]]:
    """The address sets of a workload: (name, family)."""
    return [(chains.set_name(d, family, workload), family) for d in Direction for family in (4, 6)]


def hits_by_rule(
    in_force: InForce,
    workload: str,
    sets: Mapping[str, Mapping[Element, tuple[int, int]]],
    counters: hits.Counters = NO_COUNTERS,
) -> dict[str, int]:
    """Packets that each rule of `workload` let through; `sets`: packets and bytes by element.

    Rules of names alone are left out: nothing counts what the addresses of names let through.
    """
    by_chain = hits.of(workload, counters)
    rules = in_force.policy.workloads[workload].rules
    counted = [rule for rule in rules if not all(isinstance(peer, NamePeer) for peer in rule.peers)]
    found = {rule.id: by_chain.get(rule.id, 0) for rule in counted}
    owners = {address_set.name: address_set.elements for address_set in in_force.ruleset.sets}
    for name, elements in sets.items():
        for element, (packets, _) in elements.items():
            rule = owners.get(name, {}).get(element)
            if rule in found:
                found[rule] += packets
    return found


def to_kernel(request: int, arguments: Mapping[str, Any], policy: Policy, now: datetime) -> AskKernel:
    """The kernel's side of `why`, under `policy` at `now`.  ValueError for arguments that make no sense."""
    direction = Direction(arguments["direction"])
    address = ip_address(arguments["address"])
    protocol, port = arguments["protocol"], arguments["port"]
    numbers = {**NUMBERS, "icmp": ECHO[address.version]}
    if protocol not in numbers or not 0 <= port <= 65535:
        raise ValueError("protocol must be tcp, udp or icmp, port 0 to 65535")
    workload = arguments["workload"]
    name = chains.set_name(direction, address.version, workload)
    learned: tuple[str, ...] = ()
    if direction is Direction.OUT:
        found = Names(policy, now).rules.get(workload, ())
        here = bool(arguments["here"]) or address.is_loopback
        opening = (g for g in groups(found) if _opens(g, protocol, port) and (g.private or not here))
        learned = tuple(learned_set(workload, group.id, address.version) for group in opening)
    return AskKernel(request, name, address.packed, numbers[protocol], port, learned)


def _opens(group: Group, protocol: str, port: int) -> bool:
    """Whether an address in the group's sets is open at that port."""
    if protocol == "icmp":
        return group.ports.icmp
    ranges = control_ports.opened(group.ports.ranges)
    return any(r.protocol == protocol and r.first <= port <= r.last for r in ranges)
