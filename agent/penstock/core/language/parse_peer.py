"""One word of `to:`, `from:`, `except:` or `cidr:` -> a peer, or what is wrong with it.

The order is: the words of the language, `kind:NAME`, addresses, prefixes, domain names, networks.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address, ip_network

from penstock.core import names
from penstock.core.language.reading import shown
from penstock.core.policy import (
    Address,
    AddressPeer,
    AnyPeer,
    Cidr,
    CidrPeer,
    Direction,
    HostPeer,
    MetadataPeer,
    NamePeer,
    NetworkPeer,
    Peer,
    Plane,
    PlanePeer,
    WorkloadPeer,
)

NAME_OF_OURS = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?\Z")  # of a workload or a network

_IPV4_LIKE = re.compile(r"[0-9.]+\Z")
_IPV6_LIKE = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\Z")
_WITH_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:/\s]+):([0-9]+(?:-[0-9]+)?)(?:/[a-z]+)?\Z")
_URL = re.compile(
    r"([a-z][a-z0-9+.-]*)://(?:[^/@\s]*@)?(\[[^\]\s]*\]|[^/?#:\s]*)(?::([0-9]+))?", re.IGNORECASE
)
_PORTS = {"http": "80", "https": "443"}

_WORDS: dict[Direction, dict[str, Peer]] = {
    Direction.OUT: {"any": AnyPeer(), "metadata": MetadataPeer()},
    Direction.IN: {
        "any": AnyPeer(),
        "host": HostPeer(),
        "plane:admin": PlanePeer(Plane.ADMIN),
        "plane:inference": PlanePeer(Plane.INFERENCE),
    },
}
# words that mean something, but not here: what to write instead
_NOT_HERE: dict[Direction, dict[str, tuple[str, str]]] = {
    Direction.OUT: {
        "host": ("`to: host` is not supported", "write an address of this host, such as 127.0.0.1"),
        "self": ("a workload may always talk to itself", "leave the rule out"),
        "plane:admin": ("`to:` takes no plane", "write the names of its networks"),
        "plane:inference": ("`to:` takes no plane", "write the names of its networks"),
    },
    Direction.IN: {
        "self": ("a workload may always talk to itself", "leave the rule out"),
        "metadata": ("`metadata` is a destination and no source", "write it in `to:`"),
    },
}
_COMMON = {
    "localhost": ("`localhost` is no network", 'write 127.0.0.1 and "::1"'),
    "all": ("`all` is no network", "write `any`"),
    "*": ("`*` is no destination", "write `any`"),
    "internet": ("`internet` is no network", "write `any`, and private ranges in `except:`"),
    "0.0.0.0": (
        "0.0.0.0 is not an address to talk to",
        "write 127.0.0.1 for this host, or `any` for every address",
    ),
    "::": (":: is not an address to talk to", 'write "::1" for this host, or `any` for every address'),
}


class BadPeer(ValueError):
    """Not a peer: what is wrong, and what to write instead."""

    def __init__(self, message: str, hint: str, code: str = "peer") -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


def peer(text: str, direction: Direction) -> Peer:
    """A word of `to:` (OUT) or `from:` (IN).  Raises BadPeer.

    A network or workload of that name need not exist: whoever has the whole policy checks that.
    """
    if _IPV4_LIKE.match(text):  # the first two are nearly all of a long list
        return AddressPeer(address(text))
    if "/" in text and "://" not in text and not text.endswith(("/tcp", "/udp")):
        cidr = prefix(text)
        single = cidr.prefixlen == cidr.max_prefixlen
        return AddressPeer(cidr.network_address) if single else CidrPeer(cidr)
    if found := _WORDS[direction].get(text):
        return found
    if wrong := _NOT_HERE[direction].get(text) or _COMMON.get(text):
        raise BadPeer(*wrong)
    if text.startswith("workload:"):
        return WorkloadPeer(_own_name(text.removeprefix("workload:"), "workload"))
    if _looks_like_ipv6(text):
        return AddressPeer(address(text))
    _refuse_near_misses(text, direction)
    if "." in text or "*" in text or not text.isascii():
        return _name(text, direction)
    return NetworkPeer(_own_name(text, "network"))


def address(text: str) -> Address:
    """An IPv4 or IPv6 address.  Raises BadPeer for anything else, and for spellings that mislead."""
    if text in _COMMON:
        raise BadPeer(*_COMMON[text])
    if "%" in text:
        bare = shown(text.split("%")[0])
        raise BadPeer(
            f"`{shown(text)}` has a zone", f'write "{bare}"; a link-local address counts on every interface'
        )
    try:
        found = ip_address(text)
    except ValueError:
        raise BadPeer(f"`{shown(text)}` is no address", _address_hint(text), "address") from None
    _refuse_mapped(found, "")
    return found


def refuse_url(text: str) -> None:
    """Raises BadPeer for a URL where HOST:PORT is wanted."""
    url = _URL.match(text)
    if url is not None:
        host, port = url[2] or "example.org", url[3] or _PORTS.get(url[1].lower(), "PORT")
        raise BadPeer(f"`{shown(text)}` is a URL", f"write the name and the port alone: {shown(host)}:{port}")


def prefix(text: str) -> Cidr:
    """A prefix `ADDRESS/LENGTH` with no bits behind it; an address alone has full length.  Raises BadPeer."""
    bare, slash, length = text.partition("/")
    if not slash:
        return ip_network(address(text))
    if "%" in bare:
        address(bare)
    try:
        start = ip_address(bare)
    except ValueError:
        raise BadPeer(f"`{shown(text)}` is no prefix", _prefix_hint(bare), "prefix") from None
    if not length.isascii() or not length.isdecimal():
        raise BadPeer(f"`{shown(text)}`: the prefix length is a number", _mask_hint(text), "prefix")
    if len(length) > 3 or int(length) > start.max_prefixlen:
        hint = f"it goes from 0 to {start.max_prefixlen}"
        raise BadPeer(f"`{shown(text)}`: the prefix is too long for IPv{start.version}", hint, "prefix")
    cidr = ip_network((start, int(length)), strict=False)
    if cidr.network_address != start:
        hint = f"write {quoted(str(cidr))}, or {quoted(str(start))} for the one address"
        raise BadPeer(f"`{shown(text)}` has bits set behind its prefix", hint, "prefix")
    if str(int(length)) != length:
        raise BadPeer(
            f"`{shown(text)}`: the prefix length has a leading zero", f"write {quoted(str(cidr))}", "prefix"
        )
    _refuse_mapped(start, f"/{int(length) - 96}" if int(length) >= 96 else "/0")
    return cidr


def quoted(text: str) -> str:
    """An address as it is safely written in YAML: with quotes where it holds colons."""
    return f'"{text}"' if ":" in text else text


def _refuse_mapped(found: Address, length: str) -> None:
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        # On the wire such a connection is IPv4, and rules are matched on the wire.
        raise BadPeer(f"{found} is an IPv4 address in IPv6 spelling", f"write {found.ipv4_mapped}{length}")


def _looks_like_ipv6(text: str) -> bool:
    return bool(_IPV6_LIKE.match(text.split("%")[0]))


def _address_hint(text: str) -> str:
    parts = text.split(".")
    if len(parts) == 4 and all(p.isascii() and p.isdecimal() and len(p) < 6 for p in parts):
        plain = [str(int(part)) for part in parts]
        if all(int(part) < 256 for part in plain):
            return f"write {'.'.join(plain)} without leading zeros, which other programs read as octal"
        return "each of the four numbers goes from 0 to 255"
    if ":" in text:
        return 'write an IPv6 address such as "2001:db8::5"'
    return "an IPv4 address is four numbers, such as 10.0.0.5"


def _prefix_hint(bare: str) -> str:
    if re.match(r"[a-z]", bare) and ":" not in bare:
        return "a prefix needs an address in front of the `/`, and a name takes no path"
    return _address_hint(bare)


def _mask_hint(text: str) -> str:
    try:
        return f"write {ip_network(text, strict=False)}"
    except ValueError:
        return "write a prefix such as 10.0.0.0/8"


def _refuse_near_misses(text: str, direction: Direction) -> None:
    if url := _URL.match(text):
        raise BadPeer(f"`{shown(text)}` is a URL", f"write the name alone: {shown(url[2]) or 'example.org'}")
    if with_port := _WITH_PORT.match(text):
        hint = f"write {quoted(with_port[1].strip('[]'))}, and `ports: [{with_port[2]}]`"
        if direction is Direction.IN:
            hint = f"write {quoted(with_port[1].strip('[]'))}; `ports` are those the workload listens on"
        raise BadPeer(f"`{shown(text)}` has a port in it", hint)
    if text.startswith("[") and text.endswith("]"):
        raise BadPeer(f"`{shown(text)}` has brackets", f"write {shown(quoted(text.strip('[]')))}")
    kind, colon, rest = text.partition(":")
    if kind == "plane" and direction is Direction.IN:
        raise BadPeer(f"there is no plane `{shown(rest)}`", "write plane:admin or plane:inference")
    if colon:
        known = "workload:NAME" if direction is Direction.OUT else "workload:NAME, plane:admin, plane:inference"
        hint = (
            f"write {shown(rest)}"
            if kind in ("network", "host", "name", "ip", "cidr") and rest
            else f"known is {known}"
        )
        raise BadPeer(f"`{shown(text)}`: there is no `{shown(kind)}:`", hint)
    if ("_" in text and "." not in text) or re.search(r"[\s,]", text):
        raise BadPeer(f"`{shown(text)}` is not one destination or source", "write a list: [a, b]")


def _name(text: str, direction: Direction) -> NamePeer:
    if direction is Direction.IN:
        hint = "write an address, a prefix or a network: who connects is known by address only"
        raise BadPeer(f"`{shown(text)}`: a name cannot be a source", hint)
    try:
        return NamePeer(names.normalise_pattern(text))
    except names.BadName as error:
        raise BadPeer(f"`{shown(text)}`: {error}", error.hint, "name") from None


def _own_name(text: str, kind: str) -> str:
    if NAME_OF_OURS.match(text):
        return text
    if not text:
        raise BadPeer(f"the name of the {kind} is missing", f"write {kind}:NAME")
    lower = text.lower()
    hint = f"write {lower}" if NAME_OF_OURS.match(lower) else "names hold a-z, 0-9 and `-`, at most 48"
    raise BadPeer(f"`{shown(text)}` cannot be the name of a {kind}", hint)
