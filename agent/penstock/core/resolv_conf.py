"""The file that says whom a host asks for names (resolv.conf(5))."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

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

    A server with a scope (`fe80::1%eth0`) is left out too: a rule cannot name it.
    """
    servers: list[Upstream] = []
    search: tuple[str, ...] = ()
    for line in text.splitlines():
        if line.startswith(("#", ";")):
            continue
        words = line.split()
        match words:
            case ["nameserver", address, *_]:
                server = _server(address)
                if server is not None and server not in servers:
                    servers.append(server)
            case ["search" | "domain", *suffixes]:  # the last of them counts
                search = tuple(filter(None, map(_suffix, suffixes)))
    return ResolvConf(tuple(servers[:MAX_SERVERS]), search[:MAX_SEARCH])


def _server(text: str) -> Upstream | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return None if getattr(address, "scope_id", None) or address.is_unspecified else Upstream(address)


def _suffix(text: str) -> str:
    if "." not in text.strip("."):
        return text.strip(".").lower() if text.strip(".").isalnum() else ""
    try:
        return normalise(text)
    except BadName:
        return ""
