"""`penstock.yaml` and its drop-ins: networks, the host's admin ports, the DNS servers that name rules ask."""

from __future__ import annotations

import re
from dataclasses import dataclass

from penstock.core.language.parse_peer import NAME_OF_OURS, BadPeer, address, prefix
from penstock.core.language.parse_ports import BadPorts, port_range, read_ports
from penstock.core.language.reading import Reader, near, shown
from penstock.core.language.yaml_nodes import Node, Pairs, Scalar, Unreadable
from penstock.core.policy import NOWHERE, RESERVED_NAMES, Cidr, Network, Place, Plane, Ports, Upstream

HOST_KEYS = ("version", "networks", "host", "dns")
MAX_NETWORKS = 1000
MAX_UPSTREAMS = 8

# The kernel takes more; what is left out means something to nft (`*`, `"`), or to those who print names: `eth0:1`
# is a label of an address, `eth0@if7` is eth0.
_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}\Z")
LOOPBACK = "lo"
_ELSEWHERE = dict.fromkeys(
    ("mode", "match", "egress", "ingress", "tests"),
    "it belongs into a file of its own in rules.d, with `workload: NAME`",
)


@dataclass(frozen=True, slots=True)
class HostPart:
    """What one host file says."""

    networks: tuple[Network, ...] = ()
    admin_ports: Ports | None = None
    admin_ports_place: Place = NOWHERE
    upstreams: tuple[Upstream, ...] | None = None
    upstreams_place: Place = NOWHERE


def read_host(reader: Reader, root: Node) -> HostPart:
    """Everything of one host file; wrong parts are told and left out."""
    keys = reader.keys(root, "a host file", HOST_KEYS, _ELSEWHERE)
    if keys is None:
        return HostPart()
    reader.version(root, keys)
    networks = _read_networks(reader, keys["networks"]) if "networks" in keys else ()
    ports, ports_at = _read_admin_ports(reader, keys["host"]) if "host" in keys else (None, NOWHERE)
    upstreams, upstreams_at = _read_dns(reader, keys["dns"]) if "dns" in keys else (None, NOWHERE)
    return HostPart(networks, ports, ports_at, upstreams, upstreams_at)


def _read_networks(reader: Reader, node: Node) -> tuple[Network, ...]:
    if not isinstance(node, Pairs):
        reader.keys(node, "`networks`", ("NAME",))
        return ()
    found: list[Network] = []
    for key, value in node.pairs.items():
        if len(found) == MAX_NETWORKS:
            reader.error(key, "too-many-networks", f"more than {MAX_NETWORKS:,} networks", "join some of them")
            break
        if read_own_name(reader, key, "network"):
            network = _read_network(reader, key, value)
            if network is not None:
                found.append(network)
    return tuple(found)


def read_own_name(reader: Reader, scalar: Scalar, kind: str) -> bool:
    """Whether a text may be the name of a workload or a network; tells why not.

    A workload and a network may share a name: rules always say `workload:` before the one.
    """
    if reader.text(scalar, f"the name of the {kind}") is None:
        return False
    name = scalar.text
    hint = "names hold a-z, 0-9 and `-`, at most 48, and start and end with a letter or a digit"
    if name in RESERVED_NAMES:
        reader.error(scalar, "name", f"`{name}` is a word of the language", "choose another name")
    elif not NAME_OF_OURS.match(name):
        lower = re.sub(r"[ _.]", "-", name.lower())
        better = f"write {lower}" if NAME_OF_OURS.match(lower) and "--" not in lower else hint
        reader.error(scalar, "name", f"`{shown(name)}` cannot be the name of a {kind}", better)
    elif "--" in name:
        # systemd reads `-` in the name of a slice as a step down, and refuses an empty step.
        reader.error(
            scalar, "name", f"`{shown(name)}` has two dashes in a row", f"write {re.sub('-+', '-', name)}"
        )
    else:
        return True
    return False


def _read_network(reader: Reader, key: Scalar, value: Node) -> Network | None:
    before = len(reader.problems)
    what = f"network `{key.text}`"
    if not isinstance(value, Pairs | Unreadable):
        reader.error(value, "shape", f"{what} is not a mapping", f"write `{key.text}: {{cidr: [10.0.0.0/24]}}`")
        return None
    keys = reader.keys(value, what, ("cidr", "interface", "plane"), {"cidrs": "did you mean `cidr`?"})
    if keys is None:
        return None
    if ("cidr" in keys) == ("interface" in keys):
        both = "has both `cidr` and `interface`" if "cidr" in keys else "has neither `cidr` nor `interface`"
        reader.error(key, "network", f"{what} {both}", "write one of them")
    cidrs = _read_cidrs(reader, keys["cidr"]) if "cidr" in keys else ()
    interface = _read_interface(reader, keys["interface"]) if "interface" in keys else ""
    plane = _read_plane(reader, keys["plane"]) if "plane" in keys else None
    failed = len(reader.problems) > before and any(p.severity == "error" for p in reader.problems[before:])
    # A wrong network still exists, so that rules that name it are not told as well.
    return Network(key.text, () if failed else cidrs, interface, plane, reader.place(key))


def _read_cidrs(reader: Reader, node: Node) -> tuple[Cidr, ...]:
    members = reader.one_or_more(node, "`cidr`")
    if not members and not isinstance(node, Pairs | Unreadable):
        reader.error(node, "network", "`cidr` is an empty list", "write a prefix, or remove the network")
    found: dict[Cidr, None] = {}
    for member in members:
        scalar = reader.text(member, "a member of `cidr`")
        if scalar is None:
            continue
        try:
            if scalar.plain and scalar.text[0] == ":":
                raise BadPeer("YAML does not reliably read an unquoted text that starts with `:`",
                              f'write "{shown(scalar.text)}"', "yaml-quote")  # fmt: skip
            found[prefix(scalar.text)] = None
        except BadPeer as error:
            reader.error(scalar, error.code, str(error), error.hint)
    return tuple(found)


def _read_interface(reader: Reader, node: Node) -> str:
    scalar = reader.text(node, "`interface`")
    if scalar is None:
        return ""
    if scalar.text == LOOPBACK:
        hint = 'write `cidr: [127.0.0.0/8, "::1/128"]`, or in a rule `from: host` or `from: workload:NAME`'
        reader.error(scalar, "interface", "`lo` is this host itself, and no network", hint)
    elif not is_interface(scalar.text):
        real = re.match(r"([^:@]*)[:@]", scalar.text)
        better = real[1] if real and is_interface(real[1]) else ""
        hint = f"write {better}" if better else "write its name as `ip link` shows it, at most 15 characters"
        reader.error(scalar, "interface", f"`{shown(scalar.text)}` cannot be an interface", hint)
    return scalar.text


def is_interface(text: str) -> bool:
    """Whether the kernel could have an interface of that name, and nft would take it as that one and no other."""
    return bool(_INTERFACE.match(text))


def _read_plane(reader: Reader, node: Node) -> Plane | None:
    scalar = reader.text(node, "`plane`")
    if scalar is None:
        return None
    if scalar.text not in list(Plane):
        hint = near(scalar.text, list(Plane)) or "write admin or inference, or leave it out"
        reader.error(scalar, "plane", f"`{shown(scalar.text)}` is no plane", hint)
        return None
    return Plane(scalar.text)


def _read_admin_ports(reader: Reader, node: Node) -> tuple[Ports | None, Place]:
    keys = reader.keys(node, "`host`", ("admin_ports",))
    if not keys:
        return None, NOWHERE
    ports = read_ports(reader, keys["admin_ports"])
    if ports and ports.icmp:
        reader.error(keys["admin_ports"], "ports", "`icmp` is no admin port", "leave it out")
    return ports, reader.place(keys["admin_ports"])


def _read_dns(reader: Reader, node: Node) -> tuple[tuple[Upstream, ...] | None, Place]:
    keys = reader.keys(node, "`dns`", ("upstream",))
    if not keys:
        return None, NOWHERE
    value = keys["upstream"]
    items = reader.list_of(value, "`upstream`", "`upstream: [192.0.2.53]`")
    if items == []:
        hint = "name a server, or leave the key out for the host's own resolvers"
        reader.error(value, "upstream", "`upstream` is an empty list", hint)
    elif items and len(items) > MAX_UPSTREAMS:
        reader.error(value, "upstream", f"more than {MAX_UPSTREAMS} servers", "two or three are plenty")
        return None, NOWHERE
    found: dict[Upstream, None] = {}
    for item in items or []:
        scalar = reader.text(item, "a member of `upstream`")
        if scalar is None:
            continue
        try:
            found[upstream(scalar.text)] = None
        except (BadPeer, BadPorts) as error:
            reader.error(scalar, "upstream", str(error), error.hint)
    return tuple(found), reader.place(value)


def upstream(text: str) -> Upstream:
    """`ADDR`, `ADDR:PORT` or `[v6]:PORT`.  Raises BadPeer or BadPorts."""
    with_port = re.match(r"(?:\[([^\]]*)\]|([0-9.]+)):([^:]*)\Z", text)
    if not with_port:
        return Upstream(address(text))
    port = port_range(with_port[3])
    if port.first != port.last or "/" in with_port[3]:
        raise BadPorts(f"`{shown(text)}`: a server has one port", "write 192.0.2.53:53")
    return Upstream(address(with_port[1] or with_port[2]), port.first)
