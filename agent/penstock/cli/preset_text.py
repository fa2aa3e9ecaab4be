"""Presets on the screen and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from penstock.cli.format import counted, table, wrapped
from penstock.core.language.rule_ids import peer_text
from penstock.core.policy import NamePeer, Ports
from penstock.core.presets import Origin, Preset, entries_of
from penstock.core.published import Difference, Published
from penstock.core.servers import SERVERS
from penstock.core.text import printable
from penstock.core.wire import Json

_NONE = "-"
_HTTPS = ["443"]


def names_of(preset: Preset) -> tuple[str, ...]:
    """The names and patterns that it opens."""
    return tuple(peer.pattern for rule in preset.rules for peer in rule.peers if isinstance(peer, NamePeer))


def purposes(preset: Preset) -> tuple[str, ...]:
    """What its openings are for, each once."""
    return tuple(sorted({opening.purpose.value for opening in preset.openings if opening.purpose}))


def listing(every: Mapping[str, Preset]) -> list[str]:
    """One line each, below a heading."""
    rows = [
        [
            preset.name,
            str(len(names_of(preset))),
            ", ".join(purposes(preset)) or _NONE,
            str(len(entries_of([preset], every))),
            preset.origin.date,
            preset.title,
        ]
        for _, preset in sorted(every.items())
    ]
    header = ["PRESET", "NAMES", "FOR", "DENIED", "DATE", "TITLE"]
    return ["  ".join(row).rstrip() for row in table(header, rows, right=(1, 3))]


def summary_json(preset: Preset, path: Path, every: Mapping[str, Preset]) -> Json:
    """An object of `presets --json`."""
    return {
        "name": preset.name,
        "title": preset.title,
        "source": preset.origin.source,
        "date": preset.origin.date,
        "file": str(path),
        "published": preset.published or None,
        "names": len(names_of(preset)),
        "for": list(purposes(preset)),
        "known": len(entries_of([preset], every)),
    }


def as_json(preset: Preset, path: Path, every: Mapping[str, Preset]) -> Json:
    """The object of `presets show --json`."""
    server = next((one for one in SERVERS if one.name == preset.server), None)
    return {
        "v": 1,
        **summary_json(preset, path, every),
        "egress": [
            {
                "rule": f"{preset.name}/{opening.rule.id}",
                "to": [peer_text(peer) for peer in opening.rule.peers],
                "ports": _ports(opening.rule.ports),
                "for": opening.purpose.value if opening.purpose else None,
                "reason": opening.rule.reason,
                "source": opening.origin.source,
                "date": opening.origin.date,
            }
            for opening in preset.openings
        ],
        "known": [
            {
                "name": entry.known.pattern,
                "kind": str(entry.known.kind),
                "text": entry.known.text,
                "preset": entry.known.preset,
                "source": entry.origin.source,
                "date": entry.origin.date,
            }
            for entry in entries_of([preset], every)
        ],
        "ports": {"inference": _ports(preset.inference), "admin": _ports(preset.admin)},
        "recognise": {
            "server": preset.server or None,
            "programs": sorted(server.programs) if server else [],
            "titles": list(server.titles) if server else [],
            "units": list(preset.units),
        },
    }


def screen(preset: Preset, path: Path, every: Mapping[str, Preset]) -> list[str]:
    """The lines of `presets show`."""
    lines = [f"{preset.name}: {preset.title}"]
    lines += _field("file", printable(str(path), 4096))
    lines += _field("source", _origin(preset.origin))
    if preset.published:
        lines += _field("list", f"{preset.published} (to compare: penstock presets diff {preset.name})")
    lines += ["", *_opens(preset), *_denied(preset, every), *_listens(preset)]
    return lines


def _field(name: str, text: str) -> list[str]:
    return wrapped(text, 14, f"  {name}")


def _origin(origin: Origin) -> str:
    return f"{origin.source}; {origin.date}"


def _opens(preset: Preset) -> Iterator[str]:
    if not preset.openings:
        yield "opens nothing"
        return
    yield "opens"
    for opening in preset.openings:
        rule = opening.rule
        what = ", ".join(peer_text(peer) for peer in rule.peers)
        ports = _ports(rule.ports)
        where = "" if ports == _HTTPS else f"  port {', '.join(ports)}"
        yield from _field(str(opening.purpose or _NONE), what + where)
        if rule.reason:
            yield from _field("", rule.reason)
        if opening.origin != preset.origin:
            yield from _field("", f"({_origin(opening.origin)})")


def _denied(preset: Preset, every: Mapping[str, Preset]) -> Iterator[str]:
    yield ""
    yield "known, and denied unless a rule opens it"
    for entry in entries_of([preset], every):
        known = entry.known
        whose = f"{known.preset}: " if known.preset != preset.name else ""
        yield from _field(str(known.kind), f"{known.pattern}  {whose}{known.text}")
        if entry.origin != preset.origin:
            yield from _field("", f"({_origin(entry.origin)})")


def _listens(preset: Preset) -> Iterator[str]:
    both = [port for port in _ports(preset.admin) if port in _ports(preset.inference)]
    if preset.inference.ranges or preset.admin.ranges:
        yield ""
        yield "listens on"
        for name, ports in (("inference", preset.inference), ("admin", preset.admin)):
            if ports.ranges:
                yield from _field(name, ", ".join(_ports(ports)))
        if both:
            text = f"{', '.join(both)} carries both: who may use the model there may also administer the server"
            yield from _field("", text)
    server = next((one for one in SERVERS if one.name == preset.server), None)
    if server is not None:
        yield ""
        yield "is recognised by"
        yield from _field("programs", ", ".join(sorted(server.programs)))
        if server.titles:
            yield from _field("processes", ", ".join(f"{title}*" for title in server.titles))
        if preset.units:
            yield from _field("units", ", ".join(preset.units))


def _ports(ports: Ports) -> list[str]:
    return [*(str(one) for one in ports.ranges), *(["icmp"] if ports.icmp else [])]


def difference_json(preset: Preset, against: str, published: Published, found: Difference) -> Json:
    """The object of `presets diff --json`."""
    return {
        "v": 1,
        "preset": preset.name,
        "date": preset.origin.date,
        "against": against,
        "names": len(published.names),
        "same": found.same,
        "missing": list(found.missing),
        "extra": list(found.extra),
        "ignored": list(published.ignored),
    }


def difference(preset: Preset, published: Published, found: Difference) -> list[str]:
    """The lines of `presets diff`."""
    lines = [f"+ {name}  is in the list, and the preset does not open it" for name in found.missing]
    lines += [f"- {name}  is opened by the preset, and not in the list" for name in found.extra]
    size = counted(len(published.names), "name")
    if found.same:
        return [f"no difference: the preset {preset.name} opens what the list has, {size}"]
    return [*lines, f"the preset {preset.name} of {preset.origin.date} differs from the list, which has {size}"]
