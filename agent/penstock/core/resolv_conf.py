"""The file that says whom a host asks for names (resolv.conf(5))."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from penstock.core.names import BadName, normalise
from penstock.core.policy import Upstream

MAX_SERVERS, MAX_SEARCH = 3, 6
"""What the C library reads of them; it would not ask a fourth server either."""


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """Servers in the order in which they are asked; suffixes that are tried behind a name."""

    servers: tuple[Upstream, ...] = ()
    search: tuple[str, ...] = ()


def parse(text: str) -> ResolvConf:
    """Whatever makes no sense is left out, as the C library does it.

    A server with a scope (`fe80::1%eth0`) is left out too: the rules that let the resolver ask cannot name it.
    """
    servers: list[Upstream] = []
    search: tuple[str, ...] = ()
    for line in text.split("\n"):
        match line.split():
            case ["nameserver", address, *_]:
                server = _server(address)
                if server is not None and server not in servers:
                    servers.append(server)
            case ["domain", suffix, *_]:  # of these and of `search` the last counts
                search = _suffixes([suffix])
            case ["search", *suffixes]:
                search = _suffixes(suffixes)
    return ResolvConf(tuple(servers[:MAX_SERVERS]), search[:MAX_SEARCH])


def _server(text: str) -> Upstream | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id:
            return None
        address = address.ipv4_mapped or address
    return None if address.is_unspecified else Upstream(address)


def _suffixes(words: list[str]) -> tuple[str, ...]:
    return tuple(filter(None, map(_suffix, words)))


def _suffix(text: str) -> str:
    """In the form that names have here, or nothing.  One label is a suffix too: `lan`."""
    try:
        return normalise(f"x.{text}").removeprefix("x.")
    except BadName:
        return ""
