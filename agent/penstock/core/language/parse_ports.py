"""`ports:` -> Ports.  Numbers and ranges are TCP unless they end in `/udp`; `icmp` and `any` are words."""

from __future__ import annotations

import re
from collections.abc import Iterable

from penstock.core.language.reading import Reader, shown
from penstock.core.language.yaml_nodes import Items, Node, Scalar
from penstock.core.policy import CONTROL_PORTS, EVERY_PORT, PortRange, Ports

_PORTS = re.compile(r"(0|[1-9][0-9]{0,5})(?:-(0|[1-9][0-9]{0,5}))?(?:/(tcp|udp))?\Z")
_EXAMPLE = "`ports: [443, 443/udp, 8000-8100, icmp, any]`"
_SERVICES = {"http": "80", "https": "443", "ssh": "22", "dns": "53/udp", "domain": "53/udp", "ntp": "123/udp",
             "ping": "icmp", "all": "any", "*": "any", "postgres": "5432", "redis": "6379"}  # fmt: skip
MAX_RANGES = 1000


class BadPorts(ValueError):
    """Not a port: what is wrong, and what to write instead."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def port_range(text: str) -> PortRange:
    """`443`, `443/udp` or `8000-8100[/udp]` as a PortRange.  Raises BadPorts."""
    found = _PORTS.match(text)
    if not found:
        raise _explained(text)
    first, last, protocol = int(found[1]), int(found[2] or found[1]), found[3] or "tcp"
    if first == 0 or last == 0 or first > 65535 or last > 65535:
        raise BadPorts(f"`{text}` is out of range", "ports go from 1 to 65535")
    if last < first:
        suffix = "" if found[3] is None else f"/{protocol}"
        raise BadPorts(f"`{text}` runs backwards", f"write {last}-{first}{suffix}")
    return PortRange(protocol, first, last)


def _explained(text: str) -> BadPorts:
    word = text.lower()
    if word in _SERVICES:
        return BadPorts(f"`{shown(text)}` is no port", f"write {_SERVICES[word]}")
    if re.match(r"[0-9]+(:[0-9]+)+\Z", text):
        return BadPorts(
            f"`{shown(text)}`: YAML reads numbers with `:` as one number to the base of 60",
            "write two ports as [22, 80] and a range as 22-80",
        )
    if re.match(r"[0-9]+\.[0-9]*\Z", text):
        return BadPorts(f"`{shown(text)}`: a decimal number is no port", "write a whole number")
    if re.match(r"0[0-9_xXbo]", text):
        return BadPorts(
            f"`{shown(text)}`: YAML reads a number with a leading zero as octal or hexadecimal",
            "write the port without it",
        )
    if re.match(r"[0-9]+[_,][0-9]", text):
        return BadPorts(f"`{shown(text)}` is no port", "write digits only, and each port as a member of the list")
    if "/" in text and not word.endswith(("/tcp", "/udp")):
        return BadPorts(f"`{shown(text)}`: the protocol is tcp or udp", "write 443 or 443/udp")
    return BadPorts(f"`{shown(text)}` is no port", f"write {_EXAMPLE}")


def read_ports(reader: Reader, node: Node) -> Ports | None:
    """The ports of a rule, sorted and without overlaps; None after a mistake."""
    if isinstance(node, Scalar) and node.text:
        reader.error(
            node,
            "ports-scalar",
            "`ports` is one value and must be a list",
            f"write `ports: [{shown(node.text)}]`",
        )
        return None
    items = reader.list_of(node, "`ports`", _EXAMPLE)
    if items is None:
        return None
    if not items:
        reader.error(
            node, "ports-empty", "`ports` is an empty list, so the rule opens nothing", f"write {_EXAMPLE}"
        )
        return None
    if len(items) > MAX_RANGES:
        reader.error(node, "ports-many", f"more than {MAX_RANGES} ports in one rule", "write ranges, or `any`")
        return None
    ranges: list[PortRange] = []
    words: set[str] = set()
    before = len(reader.problems)
    for item in items:
        _read_one(reader, item, ranges, words)
    if len(reader.problems) > before:
        return None
    if "any" in words:
        if ranges:
            reader.error(
                node, "ports-any", "`any` and single ports in one list", "write `any` alone, or leave it out"
            )
            return None
        ranges = list(EVERY_PORT)
    return Ports(merged(ranges), icmp="icmp" in words)


def _read_one(reader: Reader, item: Node, ranges: list[PortRange], words: set[str]) -> None:
    if isinstance(item, Items):
        reader.error(item, "shape", "a list inside of `ports`", "write the ports in one list")
        return
    scalar = reader.text(item, "a port")
    if scalar is None:
        return
    if scalar.text in ("any", "icmp"):
        words.add(scalar.text)
        return
    try:
        found = port_range(scalar.text)
    except BadPorts as error:
        reader.error(scalar, "ports", str(error), error.hint)
        return
    if found in ranges:
        reader.error(scalar, "ports-twice", f"`{shown(scalar.text)}` is there twice", "keep one of them")
    ranges.append(found)


def merged(ranges: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """Sorted, and overlapping ranges of one protocol made one; a control port that stands alone stays alone."""
    done: list[PortRange] = []
    alone: set[PortRange] = set()
    for new in sorted(ranges):
        if new.protocol == "tcp" and new.first == new.last and new.first in CONTROL_PORTS:
            alone.add(new)
        elif done and done[-1].protocol == new.protocol and new.first <= done[-1].last:
            last = max(done[-1].last, new.last)
            done[-1] = PortRange(new.protocol, done[-1].first, last)
        else:
            done.append(new)
    return tuple(sorted({*done, *alone}))
