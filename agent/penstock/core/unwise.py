"""What was seen and must not become a rule by itself, and why.

A program that was taken over, or a request that makes a server fetch something, is in the log beside honest
traffic.  So whatever is a known way of theirs, or that nobody can tell from one, is for a person to decide.
`lint` judges finished rules; this judges evidence.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from penstock.core import rebinding
from penstock.core.advice import has_port
from penstock.core.lookups import METADATA_NAMES
from penstock.core.policy import LINK_LOCAL, METADATA, Address, Cidr, Direction, Known, Policy
from penstock.core.presets import Kind
from penstock.core.seen import ASKED, Seen, is_here, proper_name
from penstock.core.text import printable

FEW_PORTS = 16
"""Ports of one address, and addresses of one network at one port: more of them is a scan."""
FEW_ADDRESSES = 32
FEW_ANYWHERE = 200
"""Addresses at one port, in whatever network."""

_ATTACK_NAMES: Mapping[str, tuple[str, ...]] = {
    "a service that tells an attacker who called it": (
        "interact.sh", "oast.pro", "oast.live", "oast.site", "oast.online", "oast.fun", "oast.me", "oastify.com",
        "burpcollaborator.net", "dnslog.cn", "requestbin.net", "webhook.site", "canarytokens.com",
    ),
    "a tunnel into this host that anybody can rent": (
        "ngrok.io", "ngrok.app", "ngrok-free.app", "ngrok.dev", "trycloudflare.com", "loca.lt", "serveo.net",
        "localhost.run", "bore.pub", "pinggy.link", "pagekite.me",
    ),
    "a place where anybody leaves and fetches files": (
        "pastebin.com", "paste.ee", "hastebin.com", "termbin.com", "transfer.sh", "file.io", "0x0.st", "gofile.io",
        "temp.sh", "bashupload.com", "anonfiles.com",
    ),
    "a mining pool": (
        "supportxmr.com", "minexmr.com", "moneroocean.stream", "hashvault.pro", "nanopool.org", "2miners.com",
        "nicehash.com", "c3pool.com", "unmineable.com", "f2pool.com", "herominers.com",
    ),
}  # fmt: skip
"""What reports of break-ins name again and again.  Their owners have honest users too: none is a model server."""

_ATTACK_PORTS = {
    25: "mail straight to its destination: how spam and stolen data leave",
    1337: "the port of many reverse shells",
    3333: "the port of mining pools",
    4444: "the port of many reverse shells and mining pools",
    5555: "the port of mining pools and of Android's debugger",
    6667: "IRC: how stolen machines are told what to do",
    9001: "the port of Tor relays",
    9050: "the port of a Tor proxy",
    14444: "the port of mining pools",
}
"""Looked at only where the far end is public."""

_NO_RULE_HELPS = {
    "rate": "too many new names in a short time: how data leaves in names",
    "metadata-name": "a cloud's metadata service, which hands out the credentials of this machine",
    "type": "records of a type that is not given out: no rule is missing",
    "expired-name": "its answer was over: a program that looks the name up again gets through",
    "excepted": "`except` of a rule takes it out: somebody decided that",
    "expired": "the rule that allowed it is over: renew its `expires` if it shall go on",
    "not-enforced": "a rule allows it in a way that is not enforced yet: see penstock check",
    "private-answer": "its rule takes no private addresses: find out whose answer it is, then `private: true`",
    "unfit-answer": "its name leads where no name may: metadata, link-local, reserved or excepted addresses",
    "foreign-source": "it left with a source address that is not this host's",
}
_KINDS = {
    "metadata": "an address of cloud metadata, which hands out the credentials of this machine",
    "link-local": "a link-local address: whoever is on the wire answers there",
    "loopback": "this host itself",
    "multicast": "multicast: every machine in the network hears it, and any may answer",
    "this-network": "no address to talk to",
    "reserved": "an address that is given to nobody",
}
_NOBODY = ("multicast", "this-network", "reserved")


@dataclass(frozen=True, slots=True)
class Why:
    """`code` for programs, `text` for people."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Ground:
    """What judging needs to know: `known` of all presets, not only of those in use; `names` says that look-ups of
    the workload are seen, so that an address without a name was really looked up by nobody."""

    policy: Policy
    known: Sequence[Known]
    here: frozenset[Address]
    names: bool


def why(seen: Seen, ground: Ground) -> Why | None:
    """Why it shall not be proposed; None when nothing speaks against it."""
    for code in sorted(seen.reasons):
        if code in _NO_RULE_HELPS:
            return Why(code, _NO_RULE_HELPS[code])
    if seen.key.protocol in ("tcp", "udp") and not seen.key.port:
        return Why("port", "no port: a fragment, or a packet that was cut off")
    if seen.key.direction is Direction.IN:
        return _of_caller(seen)
    if seen.address is None:
        return _of_name(seen, ground)
    return _of_address(seen, ground)


def _of_caller(seen: Seen) -> Why | None:
    if seen.key.port is None or seen.key.protocol not in ("tcp", "udp"):
        return Why("protocol", "no rule is about a packet without a port that comes in")
    kind = rebinding.kind(seen.address) if seen.address is not None else None
    if kind in _NOBODY:
        return Why(kind, _KINDS[kind])
    if seen.reasons == {"reply"}:
        text = "answers to a caller whose call was not seen: it began before these rules held"
        return Why("reply", text)
    if _is_public(seen) and seen.windows == 1:
        return Why("seen-once", "a public address, in one minute only: strangers try every port")
    return None


def _of_name(seen: Seen, ground: Ground) -> Why | None:
    name = seen.key.peer
    if not proper_name(name):
        return Why("name", "no rule can have such a name")
    if name in METADATA_NAMES:
        return Why("metadata-name", _NO_RULE_HELPS["metadata-name"])
    known = known_as(name, ground.known)
    if known is not None and known.kind in (Kind.TELEMETRY, Kind.METADATA):
        return Why(known.kind, f"{known.kind}: {printable(known.text, 200)}")
    for what, suffixes in _ATTACK_NAMES.items():
        if any(name == suffix or name.endswith("." + suffix) for suffix in suffixes):
            return Why("attack", f"{what}: find out what asked for it")
    kinds = {rebinding.kind(address) for address in seen.addresses} & _KINDS.keys()
    for kind in sorted(kind for kind in kinds if kind):
        return Why("rebinding", f"the name leads to {_KINDS[kind]}")
    if seen.key.protocol not in ("tcp", "udp", "icmp", ASKED):
        return Why("protocol", "only TCP, UDP and echo can be allowed")
    return _of_port(seen)


def _of_address(seen: Seen, ground: Ground) -> Why | None:
    address, key = seen.address, seen.key
    assert address is not None
    if address in METADATA:
        return Why("metadata", _KINDS["metadata"])
    if any(address in block for block in LINK_LOCAL if block.version == address.version):
        return Why("link-local", _KINDS["link-local"])
    kind = rebinding.kind(address)
    if kind in _NOBODY:
        return Why(kind, _KINDS[kind])
    if key.protocol not in ("tcp", "udp", "icmp") or (key.port is None and key.protocol != "icmp"):
        return Why("protocol", "only TCP, UDP and echo can be allowed")
    if key.port == 53:
        if ground.names:
            return Why("resolver", "look-ups go to our resolver, whomever the program asks: no rule is missing")
        return Why("resolver", "look-ups: they go to our resolver once a rule has a name, or with `use: airgap`")
    if is_here(key.peer, ground.here) and has_port(ground.policy.admin_ports, key.port or 0, key.protocol):
        return Why("admin-port", "one of the host's `admin_ports`, which no workload reaches")
    if not _is_public(seen):
        return None
    if not seen.literal:
        how = "wait, and ask again" if ground.names else "`use: airgap` has them seen"
        return Why("unnamed", f"public, and which name led there was not seen then: {how}")
    if seen.literal == 1:
        return Why("seen-once", "a public address that nobody looked up, in one minute only")
    return _of_port(seen)


def _of_port(seen: Seen) -> Why | None:
    """Of a far end that is not near."""
    if seen.addresses and all(rebinding.kind(address) == "private" for address in seen.addresses):
        return None
    text = _ATTACK_PORTS.get(seen.key.port or 0)
    return None if text is None or seen.key.protocol != "tcp" else Why("attack", text)


def _is_public(seen: Seen) -> bool:
    return seen.address is not None and rebinding.kind(seen.address) is None


def known_as(name: str, known: Sequence[Known]) -> Known | None:
    """What some preset knows of the name: a call home before anything else."""
    found = [one for one in known if _stands_for(one.pattern, name)]
    return min(found, key=lambda one: one.kind == Kind.OTHER, default=None)


def _stands_for(pattern: str, name: str) -> bool:
    return name.endswith(pattern[1:]) if pattern.startswith("*.") else name == pattern


@dataclass(frozen=True, slots=True)
class Scan:
    """Many destinations that are one thing."""

    seen: tuple[Seen, ...]
    what: str  # short
    text: str


def scans(seen: Collection[Seen]) -> Iterator[Scan]:
    """Addresses of one network at one port, or ports of one address, that are too many to be meant."""
    nets: dict[tuple[Cidr, str, int | None], list[Seen]] = {}
    anywhere: dict[tuple[str, int | None], list[Seen]] = {}
    ports: dict[tuple[Direction, str, str], list[Seen]] = {}
    for one in seen:
        address, key = one.address, one.key
        if address is None:
            continue
        ports.setdefault((key.direction, key.peer, key.protocol), []).append(one)
        if key.direction is Direction.OUT:
            around = ip_network((address, 24 if address.version == 4 else 64), strict=False)
            nets.setdefault((around, key.protocol, key.port), []).append(one)
            anywhere.setdefault((key.protocol, key.port), []).append(one)
    for (protocol, port), found in anywhere.items():
        if len(found) > FEW_ANYWHERE:
            at = protocol if port is None else f"{port}/{protocol}"
            yield Scan(tuple(found), f"anywhere {at}", f"{len(found)} addresses at one port: a scan")
    for (net, protocol, port), found in nets.items():
        if len(found) > FEW_ADDRESSES:
            at = protocol if port is None else f"{port}/{protocol}"
            yield Scan(tuple(found), f"{net} {at}", f"{len(found)} addresses of one network: a scan")
    for (_, peer, protocol), found in ports.items():
        if len(found) > FEW_PORTS:
            yield Scan(tuple(found), f"{peer} {protocol}", f"{len(found)} ports of one address: a scan")
