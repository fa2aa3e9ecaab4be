"""A file of the presets -> a Preset: what a product contacts, knows and listens on.

It is about the product, so it may name nothing of a host: no network, no workload.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from urllib.parse import urlsplit

from penstock.core import names
from penstock.core.language.parse_host import read_own_name
from penstock.core.language.parse_ports import read_ports
from penstock.core.language.parse_rule import MAX_REASON, MAX_RULES, Use, read_rule
from penstock.core.language.parse_workload import wrong_match
from penstock.core.language.reading import Reader, near, shown
from penstock.core.language.yaml_nodes import Node, Pairs, Scalar
from penstock.core.policy import Direction, Known, Ports, Rule
from penstock.core.presets import NO_PORTS, Kind, KnownName, Opening, Origin, Preset, Purpose
from penstock.core.servers import SERVERS
from penstock.core.text import printable

PRESET_KEYS = (
    *("version", "preset", "title", "source", "date", "published", "egress", "known", "ports", "recognise"),
)
MAX_KNOWN = 1000
MAX_UNITS = 20

_KNOWN_KEYS = ("name", "kind", "text", "source", "date")
_OPENING_KEYS = ("for", "source", "date")
_ALL = "all"
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")
_ELSEWHERE = {
    **dict.fromkeys(("networks", "host", "dns"), "it belongs into penstock.yaml"),
    **dict.fromkeys(("mode", "match", "ingress", "tests"), "it belongs into the file of a workload"),
    "recognize": "did you mean `recognise`?",
}


def read_preset(reader: Reader, root: Node) -> Preset | None:
    """The preset of one file; None when it has no name.  Mistakes are told, and what has one is left out."""
    keys = reader.keys(root, "a preset", PRESET_KEYS, _ELSEWHERE)
    if keys is None:
        return None
    reader.version(root, keys)
    for needed in ("title", "source", "date"):
        if needed not in keys:
            hint = "a preset says what it is, where it was seen and when"
            reader.error(root, "preset", f"`{needed}` is missing", hint)
    scalar = reader.text(keys["preset"], "`preset`") if "preset" in keys else None
    name = scalar.text if scalar is not None and read_own_name(reader, scalar, "preset") else ""
    origin = _read_origin(reader, keys, Origin("", ""))
    known, knows_all = _read_known(reader, keys["known"], name, origin) if "known" in keys else ((), False)
    ports = _read_ports(reader, keys["ports"]) if "ports" in keys else _SILENT
    server, units = _read_recognise(reader, keys["recognise"]) if "recognise" in keys else ("", ())
    openings = _read_egress(reader, root, keys, origin)
    title = _read_line(reader, keys, "title")
    published = _read_published(reader, keys["published"]) if "published" in keys else ""
    if not name:
        return None
    return Preset(
        name,
        title,
        origin,
        openings,
        known,
        knows_all,
        ports.inference,
        ports.admin,
        server,
        units,
        published,
        reader.place(keys["preset"]),
    )


def _read_origin(reader: Reader, keys: dict[str, Node], around: Origin) -> Origin:
    source = _read_line(reader, keys, "source") or around.source
    return Origin(source, _read_date(reader, keys) or around.date)


def _read_line(reader: Reader, keys: dict[str, Node], key: str) -> str:
    """A text of bounded length on one line; empty when it is missing or wrong."""
    scalar = reader.text(keys[key], f"`{key}`") if key in keys else None
    if scalar is None:
        return ""
    if len(scalar.text) > MAX_REASON:
        reader.error(scalar, "preset", f"`{key}` has more than {MAX_REASON} characters", "shorten it")
        return ""
    return printable(" ".join(scalar.text.split()), MAX_REASON * 8)


def _read_date(reader: Reader, keys: dict[str, Node]) -> str:
    scalar = reader.text(keys["date"], "`date`") if "date" in keys else None
    if scalar is None:
        return ""
    try:
        if not _DATE.match(scalar.text):
            raise ValueError
        return date.fromisoformat(scalar.text).isoformat()
    except ValueError:
        hint = "write the day it was seen, such as 2026-11-24"
        reader.error(scalar, "preset", f"`{shown(scalar.text)}` is no date", hint)
        return ""


def _read_egress(reader: Reader, root: Node, keys: dict[str, Node], origin: Origin) -> tuple[Opening, ...]:
    if "egress" not in keys:
        reader.error(root, "rules", "`egress` is missing", "write `egress: []` if nothing shall be open")
        return ()
    items = reader.list_of(keys["egress"], "`egress`", "`[]` for nothing") or []
    if len(items) > MAX_RULES:
        text = f"more than {MAX_RULES:,} rules in `egress`"
        reader.error(items[MAX_RULES], "too-many-rules", text, "one rule may hold a list of names")
    found = (_read_opening(reader, item, origin) for item in items[:MAX_RULES])
    return tuple(opening for opening in found if opening is not None)


def _read_opening(reader: Reader, node: Node, origin: Origin) -> Opening | None:
    before = len(reader.references)
    rule = read_rule(reader, node, Direction.OUT, _OPENING_KEYS)
    for reference in reader.references[before:]:
        text = f"a preset cannot name the {reference.kind} `{reference.name}`"
        reader.error(node, "preset", text, "write names and addresses only")
    del reader.references[before:]  # told once, and not again as missing
    keys = {key.text: value for key, value in node.pairs.items()} if isinstance(node, Pairs) else {}
    purpose = _read_word(reader, keys["for"], "`for`", Purpose) if "for" in keys else None
    own = _read_origin(reader, keys, origin)
    if isinstance(rule, Use):
        reader.error(
            node, "preset", f"a preset cannot use another one (`{shown(rule.preset)}`)", "copy its rules"
        )
    if not isinstance(rule, Rule):
        return None
    return Opening(rule, None if purpose is None else Purpose(purpose), own, "source" in keys)


def _read_word(reader: Reader, node: Node, what: str, words: type[Purpose] | type[Kind]) -> str | None:
    scalar = reader.text(node, what)
    if scalar is None:
        return None
    known = [str(word) for word in words]
    if scalar.text not in known:
        hint = near(scalar.text, known) or f"write {', '.join(known[:-1])} or {known[-1]}"
        reader.error(scalar, "preset", f"{what} is `{shown(scalar.text)}`", hint)
        return None
    return scalar.text


def _read_known(
    reader: Reader, node: Node, preset: str, origin: Origin
) -> tuple[tuple[KnownName, ...], bool]:
    """The entries of `known:`; or none, and True for the word `all`."""
    if isinstance(node, Scalar) and node.text == _ALL:
        return (), True
    items = reader.list_of(node, "`known`", "`[{name: NAME, kind: telemetry, text: WHAT IT IS}]`, or `all`") or []
    if len(items) > MAX_KNOWN:
        reader.error(items[MAX_KNOWN], "preset", f"more than {MAX_KNOWN:,} names in `known`", "use a pattern")
    found: dict[str, KnownName] = {}
    for item in items[:MAX_KNOWN]:
        entry = _read_known_name(reader, item, preset, origin)
        if entry is not None and found.setdefault(entry.known.pattern, entry) is not entry:
            text = f"`{shown(entry.known.pattern)}` is there twice"
            reader.error(item, "preset", text, "keep one of them")
    return tuple(found.values()), False


def _read_known_name(reader: Reader, node: Node, preset: str, origin: Origin) -> KnownName | None:
    keys = reader.keys(node, "an entry of `known`", _KNOWN_KEYS, {"to": "did you mean `name`?"})
    if keys is None:
        return None
    for needed in ("name", "kind", "text"):
        if needed not in keys:
            hint = "write {name: NAME, kind: telemetry, text: WHAT IT IS}"
            reader.error(node, "preset", f"`{needed}` is missing", hint)
    own = _read_origin(reader, keys, origin)
    kind = _read_word(reader, keys["kind"], "`kind`", Kind) if "kind" in keys else None
    text = _read_line(reader, keys, "text")
    scalar = reader.text(keys["name"], "`name`") if "name" in keys else None
    if scalar is None:
        return None
    try:
        pattern = names.normalise_pattern(scalar.text)
    except names.BadName as error:
        reader.error(scalar, "name", f"`{shown(scalar.text)}`: {error}", error.hint)
        return None
    return KnownName(Known(pattern, Kind(kind), text, preset), own) if kind and text else None


@dataclass(frozen=True, slots=True)
class _Listening:
    inference: Ports = NO_PORTS
    admin: Ports = NO_PORTS


_SILENT = _Listening()


def _read_ports(reader: Reader, node: Node) -> _Listening:
    keys = reader.keys(node, "`ports` of a preset", ("inference", "admin")) or {}
    found = {plane: read_ports(reader, value) or NO_PORTS for plane, value in keys.items()}
    return _Listening(**found)


def _read_recognise(reader: Reader, node: Node) -> tuple[str, tuple[str, ...]]:
    keys = reader.keys(node, "`recognise`", ("server", "units")) or {}
    server = reader.text(keys["server"], "`server`") if "server" in keys else None
    known = [one.name for one in SERVERS]
    if server is not None and server.text not in known:
        hint = near(server.text, known) or f"known are {', '.join(known)}"
        reader.error(server, "preset", f"there is no known server `{shown(server.text)}`", hint)
        server = None
    return server.text if server else "", _read_units(reader, keys["units"]) if "units" in keys else ()


def _read_units(reader: Reader, node: Node) -> tuple[str, ...]:
    members = reader.list_of(node, "`units`", "`[NAME.service]`") or []
    if len(members) > MAX_UNITS:
        reader.error(members[MAX_UNITS], "preset", f"more than {MAX_UNITS} units", "use a glob")
    found = []
    for member in members[:MAX_UNITS]:
        scalar = reader.text(member, "a unit")
        if scalar is None:
            continue
        if wrong := wrong_match("unit", scalar.text):
            reader.error(scalar, "match", f"`{shown(scalar.text)}`: {wrong[0]}", wrong[1])
        else:
            found.append(scalar.text)
    return tuple(found)


def _read_published(reader: Reader, node: Node) -> str:
    scalar = reader.text(node, "`published`")
    if scalar is None:
        return ""
    if wrong := wrong_url(scalar.text):
        reader.error(scalar, "preset", f"`{shown(scalar.text)}`: {wrong}", "write https://NAME/PATH")
        return ""
    return scalar.text


def wrong_url(text: str) -> str:
    """Why this is not the plain https URL of a name, or nothing."""
    if not text.isascii() or not text.isprintable() or " " in text or len(text) > MAX_REASON:
        return "a URL is plain text without blanks"
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return "this is no URL"
    if url.scheme != "https":
        return "only https is asked"
    if "@" in url.netloc or url.fragment:
        return "a user or a `#` does not belong there"
    if port not in (None, 443):
        return "only port 443 is asked"
    try:
        names.normalise(url.hostname or "")
    except names.BadName as error:
        return str(error)
    return ""
