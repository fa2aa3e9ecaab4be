"""What an operator may say: frozen types, made once by `parse`, trusted by everybody after it.

Nothing here decides anything.  `verdict` says what a policy means, `compile` turns it into a ruleset;
the two share this file and `names`, and nothing else, so that a mistake in one shows against the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

Address = IPv4Address | IPv6Address
Cidr = IPv4Network | IPv6Network

RESERVED_NAMES = frozenset({"host", "any", "metadata", "self"})
"""Words of the language that no network and no workload may have as its name."""

METADATA: tuple[Address, ...] = tuple(
    ip_network(text).network_address
    for text in (
        "169.254.169.254",  # AWS, GCP, Azure, OpenStack, Oracle, DigitalOcean, Hetzner
        "169.254.169.123",  # AWS time service, beside the metadata service
        "169.254.170.2",  # AWS ECS task credentials
        "169.254.170.23",  # AWS EKS pod identity
        "169.254.0.23",  # Tencent Cloud
        "169.254.42.42",  # Scaleway
        "100.100.100.200",  # Alibaba Cloud
        "168.63.129.16",  # Azure wire server
        "192.0.0.192",  # Oracle Cloud classic
        "fd00:ec2::254",  # AWS
        "fd00:ec2::23",  # AWS EKS pod identity
        "fd20:ce::254",  # GCP
        "fd00:c1::a9fe:a9fe",  # Oracle
        "fd00:100::100:200",  # Alibaba Cloud
        "fd00:a9fe:a9fe::1",  # Akamai (Linode)
        "fd00:42::42",  # Scaleway
        "fe80::a9fe:a9fe",  # OpenStack
    )
)
"""Addresses where clouds hand out credentials: reached only by `to: metadata` or by exact address.

From the clouds' own documents, and from cloud-init, which asks them at a machine's first start.
"""

LINK_LOCAL: tuple[Cidr, ...] = (ip_network("169.254.0.0/16"), ip_network("fe80::/10"))
"""Reached only by exact address: a wide CIDR around them does not open them."""

CONTROL_PORTS: Mapping[int, str] = {
    2375: "the Docker API",  # dockerd(8), registered with IANA
    2376: "the Docker API",
    10250: "the kubelet API",  # kubernetes.io, "Ports and Protocols"
    16509: "the libvirt API",  # libvirt.org, "Remote support"
    16514: "the libvirt API",
}
"""TCP ports where whoever connects commands a whole host: an egress rule opens one only by itself in `ports`.

No range and no `any` around it opens it.  Coming in they are ports like others.
"""


class Mode(StrEnum):
    """What happens to traffic that no rule allows."""

    OBSERVE = "observe"  # let it pass, record what would have been denied
    ENFORCE = "enforce"  # refuse it
    LOCK = "lock"  # refuse everything, allowed or not


class Plane(StrEnum):
    """Who sits in a network: users of the model, or people and tools that run the host."""

    INFERENCE = "inference"
    ADMIN = "admin"


class Direction(StrEnum):
    """Seen from the workload."""

    OUT = "out"
    IN = "in"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something was written: file as given by the caller, line and column from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


NOWHERE = Place("", 0, 0)


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports `first` to `last` (both included, 0 to 65535) of `tcp` or `udp`."""

    protocol: str
    first: int
    last: int

    def __str__(self) -> str:
        ports = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return ports if self.protocol == "tcp" else f"{ports}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Ports:
    """A set of ports, and whether echo (ping) of both families is part of it."""

    ranges: tuple[PortRange, ...] = ()
    icmp: bool = False


EVERY_PORT = (PortRange("tcp", 0, 65535), PortRange("udp", 0, 65535))


# --- peers: the far end of a connection, as a rule names it ---


@dataclass(frozen=True, slots=True)
class AddressPeer:
    """One address, written out.  Counts as named literally, so it opens metadata and link-local."""

    address: Address


@dataclass(frozen=True, slots=True)
class CidrPeer:
    """A prefix.  Metadata and link-local addresses inside it stay closed."""

    cidr: Cidr


@dataclass(frozen=True, slots=True)
class NamePeer:
    """A domain name, or a pattern `*.example.org` (one or more labels, not the apex)."""

    pattern: str


@dataclass(frozen=True, slots=True)
class NetworkPeer:
    """A network of penstock.yaml, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class PlanePeer:
    """Every network of that plane."""

    plane: Plane


@dataclass(frozen=True, slots=True)
class WorkloadPeer:
    """Another workload of this host."""

    name: str


@dataclass(frozen=True, slots=True)
class MetadataPeer:
    """The clouds' metadata services (`METADATA`)."""


@dataclass(frozen=True, slots=True)
class HostPeer:
    """Any process of this host that belongs to no workload."""


@dataclass(frozen=True, slots=True)
class AnyPeer:
    """Every address but metadata and link-local."""


Peer = (
    AddressPeer
    | CidrPeer
    | NamePeer
    | NetworkPeer
    | PlanePeer
    | WorkloadPeer
    | MetadataPeer
    | HostPeer
    | AnyPeer
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that is allowed.  All rules allow; what none allows is denied."""

    id: str  # unique in its workload; stable while the rule says the same
    direction: Direction
    peers: tuple[Peer, ...]  # empty: nobody
    ports: Ports  # out: the port at the peer; in: the workload's own port
    excepted: tuple[CidrPeer | NetworkPeer, ...] = ()  # taken out of this rule, not out of others
    private: bool = False  # names may resolve to private addresses
    expires: datetime | None = None  # aware; from then on the rule is not there
    reason: str = ""
    preset: str = ""  # the preset it came from, if it came by `use:`
    override: tuple[str, ...] = ()  # codes of lint that the file sets aside for it, with a reason
    place: Place = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Match:
    """How to recognise a workload: every field that is set must hold; `unit` is a glob."""

    unit: str = ""
    container: str = ""
    bridge: str = ""
    exe: str = ""


@dataclass(frozen=True, slots=True)
class Sentence:
    """One line of `tests:`, parsed: the connection and the answer that is expected.

    `peer` is an address, a domain name (judged as if it had been asked), or for ingress also a network
    or any other source a rule may name.  `port` is None for icmp.
    """

    text: str
    direction: Direction
    peer: Peer
    protocol: str  # tcp, udp, icmp
    port: int | None
    allow: bool
    place: Place = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Known:
    """Names that a preset knows its server to ask and does not open.  `kind`: telemetry, metadata, other."""

    pattern: str
    kind: str
    text: str  # what it is, for people
    preset: str


@dataclass(frozen=True, slots=True)
class Workload:
    """One governed service."""

    name: str
    mode: Mode
    egress: tuple[Rule, ...]
    ingress: tuple[Rule, ...]
    match: tuple[Match, ...] = ()  # any of them; empty: only `penstock run` puts processes here
    sentences: tuple[Sentence, ...] = ()
    known: tuple[Known, ...] = ()
    until: datetime | None = None  # aware: its mode is lent, and ends then; never of a file
    place: Place = field(default=NOWHERE, compare=False)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Egress rules first, then ingress, in the order of the file."""
        return self.egress + self.ingress


@dataclass(frozen=True, slots=True)
class Network:
    """A named set of addresses, or whatever is behind an interface."""

    name: str
    cidrs: tuple[Cidr, ...] = ()
    interface: str = ""
    plane: Plane | None = None
    place: Place = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Upstream:
    """A DNS server that name rules ask."""

    address: Address
    port: int = 53


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that is said about one host."""

    networks: Mapping[str, Network] = field(default_factory=dict)
    workloads: Mapping[str, Workload] = field(default_factory=dict)
    admin_ports: Ports = Ports()
    admin_ports_place: Place = field(default=NOWHERE, compare=False)
    upstreams: tuple[Upstream, ...] = ()  # empty: the host's own resolvers
    upstreams_place: Place = field(default=NOWHERE, compare=False)
    hash: str = ""  # of the files it was read from; names a policy in logs

    def of_plane(self, plane: Plane) -> tuple[Network, ...]:
        """The networks of that plane."""
        return tuple(network for network in self.networks.values() if network.plane is plane)
