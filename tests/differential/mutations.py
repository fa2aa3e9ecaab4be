"""Bugs that a compiler like ours could have, planted one at a time; the differential test must catch each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from penstock.core import (
    admin_chains,
    base_chains,
    cgroup_maps,
    chains,
    compile,
    control_ports,
    interface_chains,
    name_chains,
    name_elements,
    regions,
    render_nft,
    render_rule,
)
from penstock.core.actions import Count, Dispatch, Final
from penstock.core.conditions import Detour, Echo, End, ForeignSource, InCgroup, InSet, Tracked
from penstock.core.policy import (
    EVERY_PORT,
    METADATA,
    Cidr,
    CidrPeer,
    Direction,
    Mode,
    NamePeer,
    NetworkPeer,
    Policy,
    PortRange,
    Rule,
    Workload,
)
from penstock.core.ruleset import Chain, Element
from penstock.core.ruleset import Rule as ChainRule

Patch = pytest.MonkeyPatch
Interval = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Mutation:
    """`plant` puts the bug in until the monkeypatch is undone; `what` says it in words."""

    name: str
    what: str
    plant: Callable[[Patch], None]


# --- ways to plant one ---


def changed(module: Any, name: str, change: Callable[[Any], Any]) -> Callable[[Patch], None]:
    """Replace what the function returns."""
    original = getattr(module, name)

    def wrong(*arguments: Any, **named: Any) -> Any:
        return change(original(*arguments, **named))

    return lambda patch: patch.setattr(module, name, wrong)


def replaced(module: Any, name: str, value: Any) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(module, name, value)


def rules_changed(change: Callable[[Rule], Rule]) -> Callable[[Patch], None]:
    """Compile other rules than were written."""
    original = compile._sets

    def wrong(policy: Policy, workload: Workload, now: Any) -> Any:
        egress, ingress = (tuple(map(change, rules)) for rules in (workload.egress, workload.ingress))
        return original(policy, replace(workload, egress=egress, ingress=ingress), now)

    return replaced(compile, "_sets", wrong)


def chains_changed(prefix: str, change: Callable[[Chain], Sequence[ChainRule]]) -> Callable[[Patch], None]:
    """Build other rules in the chains whose names begin with `prefix`."""

    def all_of(built: Iterable[Chain]) -> tuple[Chain, ...]:
        return tuple(
            replace(chain, rules=tuple(change(chain))) if chain.name.startswith(prefix) else chain
            for chain in built
        )

    return changed(chains, "build", all_of)


def sets_asked(prefix: str, **ends: Any) -> Callable[[Patch], None]:
    """Ask the sets about other ends of the packet."""

    def condition(c: Any) -> Any:
        return replace(c, **ends) if isinstance(c, InSet) else c

    def change(chain: Chain) -> list[ChainRule]:
        return [replace(rule, when=tuple(map(condition, rule.when))) for rule in chain.rules]

    return chains_changed(prefix, change)


def modes(wrong: Callable[[Mode], Mode]) -> Callable[[Patch], None]:
    original = chains.build

    def build(plans: Sequence[chains.Plan], governed: InCgroup, *rest: Any) -> tuple[Chain, ...]:
        return original([replace(plan, mode=wrong(plan.mode)) for plan in plans], governed, *rest)

    return replaced(chains, "build", build)


# --- the wrong functions ---


def links_as(change: Callable[[Rule], Rule]) -> Callable[[Patch], None]:
    """Rules about interfaces say something else than was written."""
    original = interface_chains._links

    def wrong(policy: Policy, workload: str, rules: Sequence[Rule], now: Any) -> Any:
        return original(policy, workload, tuple(map(change, rules)), now)

    return replaced(interface_chains, "_links", wrong)


def none_of(_: object) -> list[Any]:
    return []


def plugged_in(found: Iterable[interface_chains.Link]) -> list[interface_chains.Link]:
    return [replace(link, interface="eth0") for link in found]


def of_networks_only(patch: Patch) -> None:
    original = interface_chains.interfaces

    def wrong(policy: Policy, peer: Any) -> tuple[str, ...]:
        return original(policy, peer) if isinstance(peer, NetworkPeer) else ()

    patch.setattr(interface_chains, "interfaces", wrong)


def other_way(found: interface_chains.Links) -> interface_chains.Links:
    return interface_chains.Links(found.in_, found.out)


def all_fit(ready: Any, kind: Any, addresses: Any) -> Any:
    return addresses


def none_fits(ready: Any, kind: Any, addresses: Any) -> Any:
    return ()


def all_ports(chain: Chain) -> Chain:
    goto = [rule for rule in chain.rules if rule.do]
    return replace(chain, rules=(replace(goto[0], when=()),)) if goto else chain


def names_mixed(patch: Patch) -> None:
    original = name_elements.Names.of
    patch.setattr(
        name_elements.Names,
        "of",
        lambda self, workload, name: original(self, workload, name) or list(self.rules.get(workload, ())),
    )


def never_merged(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """`merge`, whose last interval always wins."""
    merged: list[Interval] = []
    for low, high in sorted(intervals):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], high)
        else:
            merged.append((low, high))
    return tuple(merged)


def subtract_short(intervals: Sequence[Interval], holes: Sequence[Interval]) -> tuple[Interval, ...]:
    return regions.subtract(intervals, [(low, high - 1) for low, high in holes if high > low])


def subtract_long(intervals: Sequence[Interval], holes: Sequence[Interval]) -> tuple[Interval, ...]:
    return regions.subtract(intervals, regions.merge((low, high + 1) for low, high in holes))


def literal_is_wide(found: Any) -> Callable[[Patch], None]:
    original = found

    def wrong(policy: Policy, rule: Rule, family: int) -> tuple[Interval, ...]:
        never = compile.NEVER[family] if rule.direction is Direction.OUT else ()
        return regions.subtract(original(policy, rule, family), never)

    return replaced(compile, "_addresses", wrong)


def other_family_open(patch: Patch) -> None:
    original = compile._addresses

    def wrong(policy: Policy, rule: Rule, family: int) -> tuple[Interval, ...]:
        here, there = original(policy, rule, family), original(policy, rule, 10 - family)
        return here if here or not there else (compile.WHOLE[family],)

    patch.setattr(compile, "_addresses", wrong)


def ingress_has_never(patch: Patch) -> None:
    original = compile._addresses

    def wrong(policy: Policy, rule: Rule, family: int) -> tuple[Interval, ...]:
        return original(policy, replace(rule, direction=Direction.OUT), family)

    patch.setattr(compile, "_addresses", wrong)


def interface_exception_ignored(patch: Patch) -> None:
    original = compile._excepted

    def wrong(policy: Policy, rule: Rule, family: int) -> tuple[Interval, ...]:
        seen = tuple(p for p in rule.excepted if isinstance(p, CidrPeer) or policy.networks[p.name].cidrs)
        return original(policy, replace(rule, excepted=seen), family)

    patch.setattr(compile, "_excepted", wrong)


def exceptions_of_all(patch: Patch) -> None:
    original = compile._sets

    def wrong(policy: Policy, workload: Workload, now: Any) -> Any:
        excepted = tuple(peer for rule in workload.rules for peer in rule.excepted)
        egress, ingress = (
            tuple(replace(rule, excepted=excepted) for rule in rules)
            for rules in (workload.egress, workload.ingress)
        )
        return original(policy, replace(workload, egress=egress, ingress=ingress), now)

    patch.setattr(compile, "_sets", wrong)


def first_cidr_only(patch: Patch) -> None:
    original = compile._sets

    def wrong(policy: Policy, workload: Workload, now: Any) -> Any:
        networks = {name: replace(n, cidrs=n.cidrs[:1]) for name, n in policy.networks.items()}
        return original(replace(policy, networks=networks), workload, now)

    patch.setattr(compile, "_sets", wrong)


def directions_swapped(patch: Patch) -> None:
    original = compile._sets

    def wrong(policy: Policy, workload: Workload, now: Any) -> Any:
        return original(policy, replace(workload, egress=workload.ingress, ingress=workload.egress), now)

    patch.setattr(compile, "_sets", wrong)


def workloads_swapped(patch: Patch) -> None:
    original = cgroup_maps.bindings
    other = {"alpha": "beta-2", "beta-2": "alpha"}
    patch.setattr(cgroup_maps, "bindings", lambda workload, *names: original(other[workload], *names))


def everywhere(cidrs: Sequence[Cidr], family: int) -> tuple[Interval, ...]:
    return (compile.WHOLE[family],) if cidrs else ()


def beside_barred(patch: Patch) -> None:
    original = admin_chains.barred

    def wrong(policy: Policy) -> admin_chains.Barred:
        found = original(policy)
        ports = (PortRange(r.protocol, r.first - 1, min(65535, r.last + 1)) for r in found.ports)
        return replace(found, ports=tuple(ports))

    patch.setattr(admin_chains, "barred", wrong)


def depth_wrong(patch: Patch) -> None:
    original = chains.build
    patch.setattr(
        chains, "build", lambda plans, at, *rest: original(plans, replace(at, level=at.level + 1), *rest)
    )


def place_wrong(patch: Patch) -> None:
    def wrong(which: int, levels: Sequence[int]) -> list[ChainRule]:
        return [ChainRule((), (Dispatch(cgroup_maps.place_maps(n)[which], n + 1),)) for n in levels]

    patch.setattr(base_chains, "_dispatches", wrong)


def place_unseen(patch: Patch) -> None:
    original = base_chains._dispatches
    patch.setattr(base_chains, "_dispatches", lambda which, levels: original(which, levels) if which != 1 else [])


def ports_as(change: Callable[[Interval], Interval]) -> Callable[[Patch], None]:
    def all_of(found: Iterable[tuple[int, tuple[Interval, ...]]]) -> Iterator[Any]:
        for protocol, ranges in found:
            yield protocol, regions.merge(map(change, ranges))

    return changed(compile, "_ports", all_of)


def first_range_only(found: Iterable[tuple[int, tuple[Interval, ...]]]) -> Iterator[Any]:
    return ((protocol, ranges[:1]) for protocol, ranges in found)


def first_peer(rule: Rule) -> Rule:
    return replace(rule, peers=rule.peers[:1])


def first(found: Sequence[Any]) -> Sequence[Any]:
    return found[:1]


def established(chain: Chain) -> list[ChainRule]:
    return [ChainRule((Tracked.ESTABLISHED,), (Final.ACCEPT,)), *chain.rules]


def every_port_has_echo(rule: Rule) -> Rule:
    icmp = rule.ports.icmp or rule.ports.ranges == EVERY_PORT
    return replace(rule, ports=replace(rule.ports, icmp=icmp))


def name_is_any(patch: Patch) -> None:
    original = compile._addresses

    def wrong(policy: Policy, rule: Rule, family: int) -> tuple[Interval, ...]:
        if any(isinstance(peer, NamePeer) for peer in rule.peers):
            return (compile.WHOLE[family],)
        return original(policy, rule, family)

    patch.setattr(compile, "_addresses", wrong)


def no_deletes(patch: Patch) -> None:
    original = render_nft._batches

    def wrong(verb: str, set_name: str, elements: Iterable[str]) -> Iterable[str]:
        return original(verb, set_name, elements) if verb == "add" else ()

    patch.setattr(render_nft, "_batches", wrong)


def without(kind: type) -> Callable[[Chain], list[ChainRule]]:
    """The chain's rules without conditions and actions of that kind."""

    def change(chain: Chain) -> list[ChainRule]:
        rules = [
            ChainRule(
                tuple(c for c in rule.when if not isinstance(c, kind)),
                tuple(a for a in rule.do if not isinstance(a, kind)),
            )
            for rule in chain.rules
        ]
        return [rule for rule in rules if rule.do]

    return change


def lacking(*kinds: type) -> Callable[[Chain], list[ChainRule]]:
    """The chain's rules but those with a condition of these kinds."""
    return lambda chain: [rule for rule in chain.rules if not any(isinstance(c, kinds) for c in rule.when)]


def key_with(change: Callable[[Element], Element]) -> Callable[[Patch], None]:
    original = render_nft._key
    return replaced(render_nft, "_key", lambda element, family: original(change(element), family))


def shorter(interval: Interval) -> Interval:
    low, high = interval
    return low, max(low, high - 1)


def later(interval: Interval) -> Interval:
    low, high = interval
    return min(low + 1, high), high


def longer(interval: Interval) -> Interval:
    low, high = interval
    return low, high if high in (2**32 - 1, 2**128 - 1, 65535) else high + 1


LINK_LOCAL_ONLY = {
    family: regions.subtract(found, regions.merge((int(a), int(a)) for a in METADATA if a.version == family))
    for family, found in compile.NEVER.items()
}
METADATA_ONLY = {
    family: regions.merge((int(a), int(a)) for a in METADATA if a.version == family) for family in (4, 6)
}
ACCEPT = ChainRule((), (Final.ACCEPT,))

MUTATIONS = [
    Mutation(name, what, plant)
    for name, what, plant in (
        # addresses
        ("cidr-end", "the last address of a prefix is lost", changed(compile, "_interval", shorter)),
        ("cidr-start", "the first address of a prefix is lost", changed(compile, "_interval", later)),
        ("cidr-long", "one address behind a prefix is in", changed(compile, "_interval", longer)),
        ("v6-lost", "rules open nothing in IPv6", changed(chains, "_in_set", lambda rules: rules[:1])),
        ("v4-lost", "rules open nothing in IPv4", changed(chains, "_in_set", lambda rules: rules[1:])),
        ("family", "a rule about one family opens all of the other", other_family_open),
        ("any-v4", "`any` is IPv4 only", replaced(compile, "WHOLE", {4: (0, 2**32 - 1), 6: (0, 0)})),
        ("first-peer", "the second peer of a rule is lost", rules_changed(first_peer)),
        ("first-cidr", "the second prefix of a network is lost", first_cidr_only),
        ("name-any", "a name opens everything", name_is_any),
        # closed unless literal
        ("never", "prefixes and any open metadata and link-local", replaced(compile, "NEVER", {4: (), 6: ()})),
        ("metadata", "prefixes and any open metadata", replaced(compile, "NEVER", LINK_LOCAL_ONLY)),
        ("control-range", "a range opens the control ports in it", replaced(control_ports, "opened", tuple)),
        ("link-local", "prefixes and any open link-local", replaced(compile, "NEVER", METADATA_ONLY)),
        ("literal", "an exact metadata address is closed like a prefix", literal_is_wide(compile._addresses)),
        ("never-in", "a prefix does not let link-local sources in", ingress_has_never),
        # exceptions
        ("except", "exceptions are ignored", replaced(compile, "_excepted", lambda *_: ())),
        ("except-wire", "exceptions known by interface are ignored", interface_exception_ignored),
        ("except-all", "an exception is taken out of every rule", exceptions_of_all),
        ("hole-short", "the last address of a hole comes back", replaced(compile, "subtract", subtract_short)),
        ("hole-long", "the address behind a hole is lost", replaced(compile, "subtract", subtract_long)),
        # the host's admin ports
        ("admin-open", "they are open to clients", replaced(compile, "_not_barred", lambda *a: [a[4:]])),
        ("admin-all", "they are closed to everybody", replaced(admin_chains, "intervals", everywhere)),
        ("admin-wide", "the ports beside them are closed as well", beside_barred),
        # protocols and ports
        ("tcp-udp", "tcp and udp are swapped", replaced(compile, "NUMBERS", {"tcp": 17, "udp": 6})),
        ("range-first", "of several ranges the first counts", changed(compile, "_ports", first_range_only)),
        ("port-first", "of a range the first port counts", ports_as(lambda i: (i[0], i[0]))),
        ("port-end", "the last port of a range is lost", ports_as(shorter)),
        ("port-start", "the first port of a range is lost", ports_as(later)),
        ("port-long", "one port behind a range is open", ports_as(longer)),
        ("echo-always", "every port includes echo", rules_changed(every_port_has_echo)),
        ("icmp-type", "any ICMP passes where echo does", chains_changed("echo_", without(Echo))),
        ("echo-lost", "echo is asked of no set", chains_changed("echo_", lambda chain: chain.rules[-1:])),
        # time and mode
        ("expiry", "expired rules still allow", rules_changed(lambda r: replace(r, expires=None))),
        (
            "no-expiry",
            "a rule that will expire allows nothing",
            rules_changed(lambda r: r if r.expires is None else replace(r, peers=())),
        ),
        ("observe", "observe refuses", modes(lambda m: Mode.ENFORCE if m is Mode.OBSERVE else m)),
        ("enforce", "enforce only observes", modes(lambda m: Mode.OBSERVE if m is Mode.ENFORCE else m)),
        ("lock", "lock only enforces", modes(lambda m: Mode.ENFORCE if m is Mode.LOCK else m)),
        ("lock-all", "enforce locks", modes(lambda m: Mode.LOCK if m is Mode.ENFORCE else m)),
        # intervals
        ("merge", "an inner interval cuts the outer one", replaced(compile, "merge", never_merged)),
        ("pieces", "of the rules about an address one counts", changed(regions, "_port_pieces", first)),
        (
            "stretch",
            "stretches of one address only are lost",
            changed(regions, "_segments", lambda s: [piece for piece in s if piece[0] != piece[1]]),
        ),
        # chains
        ("directions", "what may come in may be called", directions_swapped),
        ("workloads", "each workload is bound to the other's rules", workloads_swapped),
        ("in-ends", "coming in, the own address is looked up", sets_asked("in_", peer=End.DESTINATION)),
        ("in-port", "coming in, the caller's port is looked up", sets_asked("in_", port=End.SOURCE)),
        ("out-port", "going out, the own port is looked up", sets_asked("out_", port=End.SOURCE)),
        ("reply", "whatever looks like a reply leaves", chains_changed("reply_", lambda _: [ACCEPT])),
        ("reply-lost", "no reply leaves", chains_changed("reply_", lambda chain: chain.rules[-1:])),
        ("answer-lost", "answers do not come in", chains_changed("answer_", lambda chain: chain.rules[-1:])),
        ("established-out", "an open connection goes on", chains_changed("out_", established)),
        ("established-in", "a caller goes on", chains_changed("in_", established)),
        ("open-out", "what no rule allows leaves", chains_changed("out_", lambda chain: chain.rules[:-1])),
        ("open-in", "what no rule allows comes in", chains_changed("in_", lambda chain: chain.rules[:-1])),
        ("uncounted", "denied packets are not counted", chains_changed("deny_out_", without(Count))),
        ("silent", "a refusal is not told", chains_changed("refuse_", lambda _: [ChainRule((), (Final.DROP,))])),
        ("foreign", "a packet from a borrowed address leaves", chains_changed("out_", lacking(ForeignSource))),
        ("detour", "a packet that prescribes its route leaves", chains_changed("out_", lacking(Detour))),
        ("depth", "the slice is looked for one level too deep", depth_wrong),
        ("place-level", "what is bound in place is looked for one level too deep", place_wrong),
        ("place-in", "the listeners of what is bound in place are open", place_unseen),
        # interfaces
        ("link-lost", "networks by interface open nothing", changed(interface_chains, "_links", none_of)),
        ("link-name", "an interface is as good as another", changed(interface_chains, "_links", plugged_in)),
        ("link-ways", "what may come over an interface may leave", changed(interface_chains, "links", other_way)),
        ("link-never", "metadata leaves over an interface", changed(interface_chains, "_closed", none_of)),
        ("link-reply", "who came over an interface hears nothing", changed(interface_chains, "replying", none_of)),
        ("link-answer", "answers over one do not come in", changed(interface_chains, "answered", none_of)),
        ("link-plane", "planes have no interfaces", of_networks_only),
        ("link-except", "exceptions beside one are ignored", links_as(lambda r: replace(r, excepted=()))),
        ("link-expiry", "expired rules about one still allow", links_as(lambda r: replace(r, expires=None))),
        # text
        ("text-port", "a range of ports is written as its first", key_with(lambda e: e._replace(last=e.first))),
        (
            "text-end",
            "a range of addresses is written short",
            key_with(lambda e: e._replace(high=max(e.low, e.high - 1))),
        ),
        (
            "text-ends",
            "source and destination are swapped",
            replaced(render_rule, "ENDS", {End.SOURCE: "d", End.DESTINATION: "s"}),
        ),
        # names
        ("name-ports", "a learned address opens every port", changed(name_chains, "_ports", all_ports)),
        ("name-private", "names open private addresses", replaced(name_elements, "fitting", all_fit)),
        ("name-fit", "names open no address", replaced(name_elements, "fitting", none_fits)),
        ("name-other", "a name opens what another name of its rule's workload led to", names_mixed),
        ("no-delete", "what a new policy drops stays open", no_deletes),
    )
]
