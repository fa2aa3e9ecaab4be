"""Legal and unwise, about names: ways around our resolver, patterns that strangers are in, calls home let out.

Look-ups of a workload go to our resolver on port 53.  What asks others in another way (encrypted, or by multicast)
is answered by somebody who does not know the rules, and carries out what the asker writes into a name.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from ipaddress import ip_address

from penstock.core import names
from penstock.core.advice import each_rule, has_port, say
from penstock.core.coverage import Cover
from penstock.core.language.reading import shown
from penstock.core.language.rule_ids import peer_text
from penstock.core.lookups import METADATA_NAMES
from penstock.core.name_rules import resolves
from penstock.core.policy import (
    Address,
    AddressPeer,
    Cidr,
    CidrPeer,
    Direction,
    Known,
    NamePeer,
    NetworkPeer,
    Peer,
    Policy,
    Rule,
)
from penstock.core.presets import Kind, overlap
from penstock.core.problems import Problem
from penstock.core.text import printable

_RESOLVER_ADDRESSES = frozenset(
    ip_address(text)
    for text in (
        "1.1.1.1", "1.0.0.1", "1.1.1.2", "1.0.0.2", "1.1.1.3", "1.0.0.3", "2606:4700:4700::1111",
        "2606:4700:4700::1001", "2606:4700:4700::1112", "2606:4700:4700::1113", "2606:4700:4700::64",
        "8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844", "2001:4860:4860::6464",
        "9.9.9.9", "9.9.9.10", "9.9.9.11", "149.112.112.112", "149.112.112.10", "149.112.112.11", "2620:fe::fe",
        "2620:fe::9", "2620:fe::10", "2620:fe::11",
        "208.67.222.222", "208.67.220.220", "208.67.222.123", "208.67.220.123", "2620:119:35::35",
        "2620:119:53::53",
        "94.140.14.14", "94.140.15.15", "94.140.14.140", "94.140.14.141", "2a10:50c0::ad1:ff", "2a10:50c0::ad2:ff",
        "45.90.28.0", "45.90.30.0", "185.228.168.9", "185.228.169.9", "76.76.2.0", "76.76.10.0",
        "194.242.2.2", "223.5.5.5", "223.6.6.6", "119.29.29.29", "1.12.12.12", "120.53.53.53",
    )
)  # fmt: skip
_IN_ORDER = {n: sorted((a for a in _RESOLVER_ADDRESSES if a.version == n), key=int) for n in (4, 6)}
_RESOLVERS = (
    "dns.google", "dns.google.com", "dns64.dns.google", "cloudflare-dns.com", "one.one.one.one",
    "dns.quad9.net", "dns9.quad9.net", "dns10.quad9.net", "dns11.quad9.net", "doh.opendns.com",
    "doh.familyshield.opendns.com", "dns.opendns.com", "dns.umbrella.com", "doh.umbrella.com", "dns.sse.cisco.com",
    "dns.adguard.com", "adguard-dns.com", "nextdns.io", "cleanbrowsing.org", "controld.com", "dns.mullvad.net",
    "doh.mullvad.net", "doh.xfinity.com", "dns.alidns.com", "doh.pub", "dot.pub", "doh.360.cn", "dot.360.cn",
    "dns.sb", "doh.dns.sb", "dns0.eu", "dns.switch.ch", "doh.li", "ordns.he.net", "dns.digitale-gesellschaft.ch",
    "doh.ffmuc.net", "dns.njal.la", "unicast.uncensoreddns.org", "anycast.uncensoreddns.org", "dns.twnic.tw",
)  # fmt: skip
"""Names of public resolvers.  Names below them are theirs too: `security.cloudflare-dns.com`, one a customer."""

_ENCRYPTED = 853
"""DNS over TLS (TCP), and over QUIC (UDP)."""

_MULTICAST = {5353: "mDNS", 5355: "LLMNR"}
_MANY = 1000
"""A range of more ports is not about one of them: `wide-open` and the like say what there is to say."""


def public_resolver(policy: Policy) -> Iterator[Problem]:
    """A public resolver on a port where it answers encrypted."""
    for _, rule in each_rule(policy):
        for peer in rule.peers if _answers_encrypted(rule) else ():
            if found := _resolver(policy, rule, peer):
                text = f"{found}: encrypted DNS carries any data out unseen"
                yield say(rule, "public-resolver", text, "use the host's own resolver, and leave this out")


def _answers_encrypted(rule: Rule) -> bool:
    ports = [(port, protocol) for port in (443, _ENCRYPTED) for protocol in ("tcp", "udp")]
    return rule.direction is Direction.OUT and any(has_port(rule.ports, *one) for one in ports)


def _resolver(policy: Policy, rule: Rule, peer: Peer) -> str:
    """Which public resolvers a peer of the rule is or holds, in words; empty when it has none."""
    what = f"`{shown(peer_text(peer))}`"
    found: list[str] = []
    match peer:
        case AddressPeer(address) if address in _RESOLVER_ADDRESSES:
            return f"{what} is a public resolver"
        case NamePeer(pattern):
            base = pattern.removeprefix("*.")
            if any(base == name or base.endswith("." + name) for name in _RESOLVERS):
                return f"{what} is a public resolver"
            found = [name for name in _RESOLVERS if names.matches(pattern, name)]
        case CidrPeer() | NetworkPeer():
            cidrs = (peer.cidr,) if isinstance(peer, CidrPeer) else policy.networks[peer.name].cidrs
            held = [address for cidr in cidrs for address in _resolvers_in(cidr)]
            gone = Cover(policy, rule.excepted) if held and rule.excepted else None
            found = [str(one) for one in held if gone is None or not gone.holds(AddressPeer(one))]
    if len(found) > 1:
        return f"{what} opens {len(found)} public resolvers, `{found[0]}` among them"
    return f"{what} opens the public resolver `{found[0]}`" if found else ""


def _resolvers_in(cidr: Cidr) -> Iterator[Address]:
    """Those in a prefix; none for every address, which `wide-open` tells."""
    addresses = _IN_ORDER[cidr.version] if cidr.prefixlen else []
    for address in addresses[bisect_left(addresses, int(cidr.network_address), key=int) :]:
        if address not in cidr:
            break
        yield address


def other_resolvers(policy: Policy) -> Iterator[Problem]:
    """Ports that are there for looking up names somewhere else than at our resolver."""
    for workload, rule in each_rule(policy):
        if rule.direction is Direction.IN or not rule.peers:
            continue
        if _is_about(rule, _ENCRYPTED) and not any(_resolver(policy, rule, peer) for peer in rule.peers):
            text = f"port {_ENCRYPTED} is encrypted DNS: who answers there does not know the rules"
            yield say(rule, "encrypted-dns", text, "leave it out: names are looked up over port 53")
        for port, what in _MULTICAST.items():
            if _is_about(rule, port):
                text = f"port {port} is {what}: any machine in the network may answer, and all hear the names"
                yield say(rule, "multicast-dns", text, "name what the workload needs by address")
        if _is_about(rule, 53) and resolves(workload):
            text = "port 53 has no effect: the look-ups of this workload go to our resolver, whomever it asks"
            yield say(rule, "no-effect", text, "leave it out; `dns.upstream` in penstock.yaml says whom we ask")


def _is_about(rule: Rule, port: int) -> bool:
    return any(r.first <= port <= r.last and r.last - r.first <= _MANY for r in rule.ports.ranges)


def shared_suffix(policy: Policy) -> Iterator[Problem]:
    """A pattern that holds a suffix under which anybody can get a name for himself."""
    for _, rule in each_rule(policy):
        for peer in rule.peers:
            if isinstance(peer, NamePeer) and peer.pattern.startswith("*."):
                base = peer.pattern[2:]
                if suffix := names.shared_suffix(base):
                    more = "" if suffix == base else f", and the rule opens all of `{shown(base)}`"
                    text = f"anybody can get a name under `{shown(suffix)}`{more}"
                    yield say(rule, "shared-suffix", text, "write the whole name of the service")


def metadata_name(policy: Policy) -> Iterator[Problem]:
    """A name of a cloud's metadata service, whose address is never learned."""
    for _, rule in each_rule(policy):
        for peer in rule.peers:
            if isinstance(peer, NamePeer) and peer.pattern in METADATA_NAMES:
                text = f"`{peer.pattern}` opens nothing: no name opens the address of a cloud's metadata service"
                hint = "write `to: metadata`, and have the program call the address"
                yield say(rule, "no-effect", text, hint)


def known_name(policy: Policy) -> Iterator[Problem]:
    """A rule that lets out what a preset in use knows as a call home."""
    for workload in policy.workloads.values():
        unwanted = [
            known
            for known in workload.known
            if known.kind != Kind.OTHER and known.pattern not in METADATA_NAMES  # these are let out by no name
        ]
        for rule in workload.egress if unwanted else ():
            for peer in rule.peers:
                found = _let_out(peer, unwanted) if isinstance(peer, NamePeer) else None
                if found is not None:
                    # Not cut: it says at its end how to switch the call off, and the file bounds its length.
                    text = f"the rule opens `{shown(found.pattern)}`: {printable(found.text, len(found.text))}"
                    hint = f"leave it out: the preset {found.preset} keeps it denied"
                    yield say(rule, "known-name", text, hint)


def _let_out(peer: NamePeer, unwanted: list[Known]) -> Known | None:
    return next((known for known in unwanted if overlap(known.pattern, peer.pattern)), None)
