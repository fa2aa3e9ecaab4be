"""Clients and administrators apart: admin ports that rules open to clients, ports for both, addresses in both.

What a rule's `override` names is set aside, by the reason that it gives: nothing sets aside the host's own
`admin_ports`, which the kernel refuses whatever a rule says.
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.core import planes
from penstock.core.advice import each_rule, say
from penstock.core.coverage import LOOPBACK, Cover
from penstock.core.language.reading import shown
from penstock.core.language.rule_ids import peer_text
from penstock.core.policy import (
    AddressPeer,
    AnyPeer,
    Cidr,
    CidrPeer,
    Direction,
    HostPeer,
    Network,
    NetworkPeer,
    Peer,
    Plane,
    PlanePeer,
    Policy,
    PortRange,
    Ports,
    Rule,
    WorkloadPeer,
)
from penstock.core.problems import Problem

SHOWN = 4
"""Ports that one sentence names."""
GATEWAY = "a gateway that knows paths, a workload of its own (examples: gateway/rules.d/nginx.yaml, litellm.yaml)"


def opened_ports(policy: Policy) -> Iterator[Problem]:
    """What ingress rules open to whom, by the ports that are known to be for administrators, or for both."""
    trusted = Cover(policy, (*(NetworkPeer(n.name) for n in policy.of_plane(Plane.ADMIN)), *LOOPBACK))
    for workload in policy.workloads.values():
        servers = planes.servers_of(workload)
        why, paths = planes.admin_ports(servers), planes.shared_ports(servers)
        admin, shared = planes.Known(why), planes.Known(paths)
        for rule in workload.ingress:
            own = _first_shared(rule.ports, policy.admin_ports)
            if own is not None:
                yield from _at_own_port(policy, trusted, rule, own)
            used: set[str] = set()
            ports = [port for port in admin.among(rule.ports) if not _has(policy.admin_ports, port)]
            told = [
                *_at_admin_ports(policy, trusted, rule, {port: why[port] for port in ports}),
                *_at_both(policy, trusted, rule, {port: paths[port] for port in shared.among(rule.ports)}),
            ]
            for problem in told:
                used.add(problem.code)
                if problem.code not in rule.override:
                    yield problem
                elif problem.severity == "error":
                    text = f"{problem.message}; overridden: {rule.reason}"
                    yield Problem(problem.place, "warning", problem.code, text, "")
            for code in rule.override:
                if code not in used and not (code == "admin-port" and own is not None):
                    text = f"`override: {code}` has no effect: there is nothing to set aside"
                    yield say(rule, "no-effect", text, "leave it out")


def _at_own_port(policy: Policy, trusted: Cover, rule: Rule, port: int) -> Iterator[Problem]:
    """Of the host's `admin_ports`, one that a rule opens to clients, or to a workload."""
    stranger = _stranger(policy, trusted, rule)
    caller = next((peer for peer in rule.peers if isinstance(peer, WorkloadPeer)), None)
    hint = "take the port out of `host.admin_ports`, or out of the rule"
    if rule.override:
        hint += ": `override` does not lift it"
    if stranger is not None:
        who = shown(peer_text(stranger))
        text = f"port {port}, one of the host's `admin_ports`, is opened to `{who}`, which is no admin network"
        yield say(rule, "admin-port", text, hint, "error")
    elif caller is not None:
        who = peer_text(caller)
        text = f"port {port} is one of the host's `admin_ports`, which no workload reaches, nor does `{who}`"
        yield say(rule, "admin-port", text, hint, "error")


def _at_admin_ports(policy: Policy, trusted: Cover, rule: Rule, why: dict[int, str]) -> Iterator[Problem]:
    stranger = _stranger(policy, trusted, rule) if why else None
    if stranger is None:
        return
    ports, who = list(why), shown(peer_text(stranger))
    what = f"admin port {ports[0]} is" if len(ports) == 1 else f"admin ports {_listed(ports)} are"
    text = f"{what} opened to `{who}`, which is no admin network: {why[ports[0]]}"
    hint = "open it to a network with `plane: admin`, or write `override: admin-port` and a `reason`"
    yield say(rule, "admin-port", text, hint, "error")


def _listed(ports: list[int]) -> str:
    words = [str(port) for port in ports[:SHOWN]]
    more = len(ports) - SHOWN
    last = f"{more} more" if more > 0 else words.pop()
    return f"{', '.join(words)} and {last}"


def _at_both(policy: Policy, trusted: Cover, rule: Rule, paths: dict[int, str]) -> Iterator[Problem]:
    """A port at which the known server answers both, open to clients; or a rule for both."""
    if paths and _stranger(policy, trusted, rule) is not None:
        port, behind = next(iter(paths.items()))
        text = f"port {port} carries both planes: who reaches the model there also reaches {behind}"
        yield say(rule, "two-planes", text, f"let clients in through {GATEWAY}: `from: workload:GATEWAY`")
    elif {plane for peer in rule.peers for plane in _planes(policy, peer)} == set(Plane):
        text = "one port for clients and for administrators"
        yield say(rule, "two-planes", text, "write a rule for each, if the service has a port for each")


def _first_shared(ports: Ports, others: Ports) -> int | None:
    for mine in ports.ranges:
        for other in others.ranges:
            first = max(mine.first, other.first)
            if mine.protocol == other.protocol and first <= min(mine.last, other.last):
                return first
    return None


def _has(ports: Ports, port: int) -> bool:
    return any(one.protocol == "tcp" and one.first <= port <= one.last for one in ports.ranges)


def _stranger(policy: Policy, trusted: Cover, rule: Rule) -> Peer | None:
    """The first source of the rule that is no administrator, no workload and nobody of this host."""
    return next((peer for peer in rule.peers if not _is_trusted(policy, trusted, peer)), None)


def _is_trusted(policy: Policy, trusted: Cover, peer: Peer) -> bool:
    if isinstance(peer, NetworkPeer) and policy.networks[peer.name].plane is not None:
        return policy.networks[peer.name].plane is Plane.ADMIN
    if isinstance(peer, WorkloadPeer | HostPeer) or peer == PlanePeer(Plane.ADMIN):
        return True
    return trusted.holds(peer)


def _planes(policy: Policy, peer: Peer) -> tuple[Plane, ...]:
    if isinstance(peer, PlanePeer):
        return (peer.plane,)
    if isinstance(peer, NetworkPeer):
        plane = policy.networks[peer.name].plane
        return () if plane is None else (plane,)
    return tuple(Plane) if isinstance(peer, AnyPeer) else ()


def own_ports_from_inside(policy: Policy) -> Iterator[Problem]:
    """Egress rules to the host's own admin ports, which no workload reaches."""
    if not policy.admin_ports.ranges:
        return
    for _, rule in each_rule(policy):
        if rule.direction is Direction.OUT and any(_is_here(peer) for peer in rule.peers):
            inside = next((one for one in rule.ports.ranges if _is_inside(one, policy.admin_ports)), None)
            if inside is not None:
                text = f"`{inside}` of this host is in its `admin_ports`, which no workload reaches"
                yield say(rule, "no-effect", text, "take it out of the rule, or out of `host.admin_ports`")


def _is_inside(one: PortRange, ports: Ports) -> bool:
    return any(one.protocol == r.protocol and r.first <= one.first and one.last <= r.last for r in ports.ranges)


def _is_here(peer: Peer) -> bool:
    """Whether it is only on this host, as far as the rules say."""
    if isinstance(peer, AddressPeer):
        return peer.address.is_loopback
    return isinstance(peer, WorkloadPeer) or (isinstance(peer, CidrPeer) and peer.cidr.is_loopback)


def overlaps(policy: Policy) -> Iterator[Problem]:
    """Networks of different planes that share addresses or an interface: each pair once."""
    told: set[tuple[str, str]] = set()
    for one, other, where in (*_same_interface(policy), *_nested(policy, 4), *_nested(policy, 6)):
        first, later = sorted((one, other), key=lambda network: network.place)
        if (first.name, later.name) not in told:
            told.add((first.name, later.name))
            text = (
                f"network `{later.name}` (plane {later.plane}) overlaps `{first.name}` (plane {first.plane}), "
                f"line {first.place.line} of {shown(first.place.file)}: both hold {where}"
            )
            hint = "an address is in one plane: write the wider one as the prefixes around the other"
            if later.interface:
                hint = "an interface is in one plane: join the networks, or name prefixes with `cidr`"
            yield Problem(later.place, "error", "plane-overlap", text, hint)


def _same_interface(policy: Policy) -> Iterator[tuple[Network, Network, str]]:
    seen: dict[str, Network] = {}
    for network in policy.networks.values():
        if network.interface and network.plane is not None:
            first = seen.setdefault(network.interface, network)
            if first.plane is not network.plane:
                yield first, network, f"interface {network.interface}"


def _nested(policy: Policy, version: int) -> Iterator[tuple[Network, Network, str]]:
    """Prefixes are one inside the other or apart: in order, those around the present one are on a stack."""
    found = [
        (int(cidr.network_address), cidr.prefixlen, cidr, network)
        for network in policy.networks.values()
        if network.plane is not None
        for cidr in network.cidrs
        if cidr.version == version
    ]
    around: dict[Plane, list[tuple[Cidr, Network]]] = {plane: [] for plane in Plane}
    for start, _, cidr, network in sorted(found, key=lambda one: one[:2]):
        for plane, stack in around.items():
            while stack and int(stack[-1][0].broadcast_address) < start:
                stack.pop()
            if plane is not network.plane and stack:
                yield stack[-1][1], network, str(cidr)
        if network.plane is not None:
            around[network.plane].append((cidr, network))
