"""Messages between the daemon and its resolver <-> bytes.

A frame is four bytes of length, big-endian, and that much JSON: a list of the message's word and its values in the
order of its dataclass.  The daemon reads what the resolver says as it would a stranger's words: the resolver
parses hostile packets.  Decoding raises ValueError and nothing else, and everything is bounded; text is printable
ASCII, so it can go to a log as it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any

from penstock.core.policy import Address, Cidr

THERE = 6
"""Seconds for which the kernel sends look-ups to the listeners when the daemon has said that they are there: a few
ticks.  So long a resolver outlives a daemon that died.
"""

MAX_TO_DAEMON = 64 << 10
MAX_TO_RESOLVER = 64 << 20
"""Bytes of a frame."""

MAX_ADDRESSES, MAX_NAME, MAX_TEXT = 64, 255, 512
MAX_NUMBER, MAX_TTL, MAX_PORT, MAX_COUNT = (1 << 53) - 1, (1 << 31) - 1, 65535, 1_000_000
MODES = ("observe", "enforce", "lock")
HEADER = 4


# --- what the daemon says ---


@dataclass(frozen=True, slots=True)
class NameRuleText:
    """A pattern, whether private addresses count, prefixes that its answers must not open, its end (epoch)."""

    pattern: str
    private: bool
    excepted: tuple[Cidr, ...] = ()
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class Names:
    """What a workload may ask.  `mode`: observe, enforce, lock."""

    workload: str
    mode: str
    rules: tuple[NameRuleText, ...] = ()


@dataclass(frozen=True, slots=True)
class Configure:
    """All that is in force."""

    generation: int
    upstreams: tuple[tuple[Address, int], ...]
    search: tuple[str, ...]
    workloads: tuple[Names, ...]


@dataclass(frozen=True, slots=True)
class Listen:
    """Four descriptors come with it: UDP and TCP of 127.0.0.1, then of ::1."""

    workload: str


@dataclass(frozen=True, slots=True)
class Unlisten:
    """Close them."""

    workload: str


@dataclass(frozen=True, slots=True)
class Leave:
    """End at once.  A daemon that dies does not say that."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The look-ups may be answered, or must fail."""

    ids: tuple[int, ...]
    ok: bool


ToResolver = Configure | Listen | Unlisten | Settled | Leave


# --- what the resolver says ---


@dataclass(frozen=True, slots=True)
class Learn:
    """An answer that waits: `name` is at these addresses, each with its TTL in seconds."""

    id: int
    generation: int
    workload: str
    name: str
    addresses: tuple[tuple[Address, int], ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A look-up that is refused; `client` is the socket that asked, on this host.  `count`: so many alike."""

    id: int
    workload: str
    name: str
    qtype: str
    reason: str
    protocol: str  # udp, tcp
    client: tuple[Address, int]
    count: int = 1


@dataclass(frozen=True, slots=True)
class Observed:
    """Answered while the workload is only observed, though no rule of it has the name.  `count`: so many alike."""

    workload: str
    name: str
    addresses: tuple[Address, ...]
    count: int = 1


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something does not work, or (`ok:CODE`) works again; `workload` is empty when it is about none."""

    code: str
    workload: str
    text: str


@dataclass(frozen=True, slots=True)
class Alive:
    """The resolver still goes round."""


@dataclass(frozen=True, slots=True)
class Configured:
    """What was said under that number decides about each look-up that is read from now on."""

    generation: int


FromResolver = Learn | Refused | Observed | Trouble | Alive | Configured


def renumbered(message: Configure, generation: int) -> Configure:
    """The same under another number."""
    return replace(message, generation=generation)


def encode(message: ToResolver | FromResolver) -> bytes:
    """One frame."""
    values = [getattr(message, field) for field in message.__dataclass_fields__]
    if isinstance(message, Learn):  # the many ones: a call from within the encoder costs more
        values[-1] = [(str(address), ttl) for address, ttl in message.addresses]
    body = _JSON.encode([type(message).__name__, *values]).encode()
    return len(body).to_bytes(HEADER) + body


def _plain(value: Any) -> Any:
    if isinstance(value, NameRuleText | Names):
        return [getattr(value, field) for field in value.__dataclass_fields__]
    return str(value)


_JSON = json.JSONEncoder(default=_plain, separators=(",", ":"))


class Frames:
    """Puts frames together; `limit` is the size of one, in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are whole now, without their length.  ValueError for one that is too long."""
        held = self._held
        held += data
        found, start = [], 0
        while len(held) - start >= HEADER:
            size = int.from_bytes(held[start : start + HEADER])
            if size > self._limit:
                raise ValueError("a frame that is too long")
            end = start + HEADER + size
            if len(held) < end:
                break
            found.append(bytes(held[start + HEADER : end]))
            start = end
        del held[:start]
        return found


def decode_from_resolver(frame: bytes) -> FromResolver:
    """What the resolver said.  ValueError for all that makes no sense."""
    match _values(frame):
        case ["Learn", id, generation, workload, name, list(addresses)] if len(addresses) <= MAX_ADDRESSES:
            found = tuple((_address(a), _number(ttl, MAX_TTL)) for a, ttl in map(_pair, addresses))
            return Learn(_number(id), _number(generation), _text(workload), _text(name), found)
        case ["Refused", id, workload, name, qtype, reason, "udp" | "tcp" as protocol, client, count]:
            address, port = _pair(client)
            asker = _address(address), _number(port, MAX_PORT)
            words = (_text(workload), _text(name), _text(qtype), _text(reason))
            return Refused(_number(id), *words, protocol, asker, _number(count, MAX_COUNT))
        case ["Observed", workload, name, list(addresses), count] if len(addresses) <= MAX_ADDRESSES:
            observed = tuple(map(_address, addresses))
            return Observed(_text(workload), _text(name), observed, _number(count, MAX_COUNT))
        case ["Trouble", code, workload, text]:
            return Trouble(_text(code), _text(workload), _text(text, MAX_TEXT))
        case ["Alive"]:
            return Alive()
        case ["Configured", generation]:
            return Configured(_number(generation))
    raise ValueError("no message of a resolver")


def decode_to_resolver(frame: bytes) -> ToResolver:
    """What the daemon said.  ValueError for all that makes no sense."""
    match _values(frame):
        case ["Configure", generation, list(upstreams), list(search), list(workloads)]:
            servers = tuple((_address(a), _number(port, MAX_PORT)) for a, port in map(_pair, upstreams))
            names = tuple(map(_names, workloads))
            return Configure(_number(generation), servers, tuple(map(_text, search)), names)
        case ["Listen", workload]:
            return Listen(_text(workload))
        case ["Leave"]:
            return Leave()
        case ["Unlisten", workload]:
            return Unlisten(_text(workload))
        case ["Settled", list(ids), bool(ok)]:
            return Settled(tuple(map(_number, ids)), ok)
    raise ValueError("no message of a daemon")


def _names(value: Any) -> Names:
    match value:
        case [workload, mode, list(rules)] if mode in MODES:
            return Names(_text(workload), mode, tuple(map(_rule, rules)))
    raise ValueError("no names")


def _rule(value: Any) -> NameRuleText:
    match value:
        case [pattern, bool(private), list(excepted), None | int() | float() as expires]:
            prefixes = tuple(_prefix(_text(cidr)) for cidr in excepted)
            return NameRuleText(_text(pattern), private, prefixes, expires)
    raise ValueError("no rule")


_prefix = lru_cache(1024)(ip_network)  # the rules of a file repeat their exceptions


def _values(frame: bytes) -> list[Any]:
    try:
        value = json.loads(frame)
    except (RecursionError, UnicodeDecodeError) as e:
        raise ValueError("no JSON") from e
    if not isinstance(value, list):
        raise ValueError("no message")
    return value


def _pair(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("no pair")
    return value[0], value[1]


def _address(value: Any) -> Address:
    address = ip_address(_text(value))
    if getattr(address, "scope_id", None):
        raise ValueError("an address with a scope")
    return address


def _number(value: Any, largest: int = MAX_NUMBER) -> int:
    if type(value) is not int or not 0 <= value <= largest:
        raise ValueError("no number")
    return value


def _text(value: Any, longest: int = MAX_NAME) -> str:
    if not isinstance(value, str) or len(value) > longest or not (value.isascii() and value.isprintable()):
        raise ValueError("no text")
    return value
