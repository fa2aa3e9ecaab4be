"""What is compared: the same host with nothing, with conntrack, with penstock, and as its peers write rules.

Peers' rules are for what leaves, and of those here only the ones with a shortcut for what is established need
connection tracking.  The shortcut is what makes a removed rule go on to work for whoever is connected.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from governed import Governed, slice_of
from penstock.core.compile import Resolver
from penstock.core.policy import Upstream
from penstock.demo.lab import Lab

PORT, SERVED = 8000, 8100
"""What a workload calls, and what it serves."""

NAME, LISTENER = "hub.example", 40053
"""What it may call by name, and where its look-ups go."""

CALLER = "w50"
"""The workload that calls.  Of a hundred it is the one in the middle."""


@dataclass(frozen=True, slots=True)
class Variant:
    """`load` puts it in force; `complete`: for both families and both directions."""

    name: str
    load: Callable[[Governed, Lab], None]
    complete: bool = False


def _called(lab: Lab) -> list[str]:
    return [*lab.remote["registry"].addresses, "127.0.0.1", "::1"]


def _addresses(count: int, seed: int) -> list[str]:
    """`count` addresses of each family, no two next to each other: those would become one element."""
    draw = random.Random(seed)
    numbers = draw.sample(range(2**22), count)
    v4 = [str(IPv4Address("10.0.0.0") + 2 * number) for number in numbers]
    return v4 + [str(IPv6Address("2001:db8:77::") + 2 * number) for number in numbers]


def policy(lab: Lab, workloads: int, addresses: int, to: str = "") -> list[str]:
    """Rule files of that many workloads, each of which may call that many addresses of each family.

    `to` is what the measured calls go to: else the addresses that are called.
    """
    called = to or ", ".join(f"'{address}'" for address in _called(lab))
    clients = ", ".join(f"'{address}'" for address in lab.remote["registry"].addresses)
    names = [CALLER, *(f"w{i}" for i in range(100) if f"w{i}" != CALLER)]
    files = []
    for seed, name in enumerate(names[:workloads]):
        others = ", ".join(f"'{address}'" for address in _addresses(addresses - 2, seed))
        files.append(
            f"version: 1\nworkload: {name}\nmode: enforce\negress:\n"
            f"  - {{to: [{called}], ports: [{PORT}, {PORT}/udp]{', private: true' if to else ''}}}\n"
            f"  - {{to: [{others}], ports: [443]}}\n"
            f"ingress:\n  - {{from: [{clients}], ports: [{SERVED}]}}\n"
        )
    return files


def _nothing(governed: Governed, lab: Lab) -> None:
    pass


def _conntrack(governed: Governed, lab: Lab) -> None:
    governed.nft(
        "table inet other {\nchain c {\ntype filter hook output priority 10\nct state invalid counter\n}\n}\n"
    )


def _penstock(workloads: int, addresses: int) -> Callable[[Governed, Lab], None]:
    return lambda governed, lab: governed.load(*policy(lab, workloads, addresses))


def _apart(workloads: int, addresses: int) -> Callable[[Governed, Lab], None]:
    """Inference and administration apart besides: admin ports of the host, TCP and UDP; the remote host in a
    network of clients; and a model server that only the caller may call on this host.
    """

    def load(governed: Governed, lab: Lab) -> None:
        clients = ", ".join(f"'{address}'" for address in (*lab.remote["registry"].addresses, "10.30.0.0/16"))
        host = (
            f"version: 1\nnetworks: {{clients: {{cidr: [{clients}], plane: inference}}}}\n"
            "host: {admin_ports: [22, 2375-2376, 161/udp]}\n"
        )
        caller, *others = policy(lab, workloads, addresses)
        caller = caller.replace("ingress:", "  - {to: 'workload:model', ports: [8201]}\ningress:")
        model = (
            "version: 1\nworkload: model\nmode: enforce\negress: []\n"
            f"ingress: [{{from: 'workload:{CALLER}', ports: [8201]}}]\n"
        )
        governed.load(caller, *others, model, host=host)

    return load


def _named(workloads: int, addresses: int) -> Callable[[Governed, Lab], None]:
    """Everything that names need is loaded, and what is called was learned for one, as were as many others."""

    def load(governed: Governed, lab: Lab) -> None:
        resolver = Resolver({CALLER: LISTENER}, (Upstream(ip_address("192.0.2.53")),))
        governed.load(*policy(lab, workloads, addresses, to=NAME), resolver=resolver)
        governed.learn(CALLER, NAME, *_called(lab), *_addresses(addresses, 1), seconds=86_400)

    return load


def _named_besides(workloads: int, addresses: int) -> Callable[[Governed, Lab], None]:
    """The same, and what is called is allowed by its address."""

    def load(governed: Governed, lab: Lab) -> None:
        resolver = Resolver({CALLER: LISTENER}, (Upstream(ip_address("192.0.2.53")),))
        files = policy(lab, workloads, addresses)
        governed.load(*(f.replace("ingress:", f"  - {{to: {NAME}}}\ningress:") for f in files), resolver=resolver)
        governed.learn(CALLER, NAME, *_addresses(addresses, 1), seconds=86_400)

    return load


def _load(governed: Governed, lab: Lab, first: str, allowed: dict[str, list[str]]) -> None:
    """A chain a workload; all get there by one jump each, which every process of the host goes through."""
    for name in allowed:
        governed.agent(os.makedirs, lab.cgroup / slice_of(name), exist_ok=True)
    chains = [
        f"chain {name} {{\n{first}\n{chr(10).join(rules)}\nmeta l4proto tcp reject with tcp reset\nreject\n}}"
        for name, rules in allowed.items()
    ]
    jumps = [f'socket cgroupv2 level 3 "{lab.name}/{slice_of(name)}" jump {name}' for name in allowed]
    base = "type filter hook output priority 0\n" + "\n".join(jumps)
    governed.nft("table inet peer {\n" + "\n".join([*chains, f"chain output {{\n{base}\n}}"]) + "\n}\n")


def _linear(first: str = "") -> Callable[[Governed, Lab], None]:
    def load(governed: Governed, lab: Lab) -> None:
        rules = [f"ip daddr {a} tcp dport 443 accept" for a in _addresses(1000, 0)[:1000]]
        rules[500:500] = [
            f"{'ip6' if ':' in a else 'ip'} daddr {a} {protocol} dport {PORT} accept"
            for a in _called(lab)
            for protocol in ("tcp", "udp")
        ]
        _load(governed, lab, first, {CALLER: rules})

    return load


def _jumps(governed: Governed, lab: Lab) -> None:
    called = ", ".join(a for a in _called(lab) if ":" not in a)
    rules = [f"ip daddr {{ {called} }} meta l4proto {{ tcp, udp }} accept", "meta nfproto ipv6 accept"]
    names = [f"w{i}" for i in range(100)]
    _load(governed, lab, "", dict.fromkeys(names, rules))


NOTHING, CONNTRACK = "nothing", "conntrack alone"
ONE, HUNDRED = "penstock, 1 x 10", "penstock, 100 x 1,000"
APART = "penstock, planes apart, 1 x 10"
VARIANTS = (
    Variant(NOTHING, _nothing, complete=True),
    Variant(CONNTRACK, _conntrack, complete=True),
    Variant(ONE, _penstock(1, 10), complete=True),
    Variant(HUNDRED, _penstock(100, 1000), complete=True),
    Variant(APART, _apart(1, 10), complete=True),
    Variant("by name, 1 x 10", _named(1, 10), complete=True),
    Variant("by address beside names, 1 x 10", _named_besides(1, 10), complete=True),
    Variant("1,000 rules", _linear()),
    Variant("1,000 rules, established first", _linear("ct state established accept")),
    Variant("100 cgroup jumps", _jumps),
)
