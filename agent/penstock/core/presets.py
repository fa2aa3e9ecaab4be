"""What a preset file says: frozen types, made once by `language.parse_preset`.

A preset knows a product: which names it needs, which it asks besides and shall not reach, on which ports it
listens.  Only `rules` opens anything, and only in a workload that says `use:`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from penstock.core import names
from penstock.core.policy import NOWHERE, Known, NamePeer, Place, Ports, Rule

NO_PORTS = Ports()


class Purpose(StrEnum):
    """What an opening is needed for."""

    PULL = "pull"  # to fetch models, images or code; a server that has them works without
    SERVE = "serve"  # to answer requests


class Kind(StrEnum):
    """Why a name is known and stays denied."""

    TELEMETRY = "telemetry"  # reports to its vendor
    METADATA = "metadata"  # the cloud's credentials and facts about this machine
    OTHER = "other"  # update checks, optional features; the text says


@dataclass(frozen=True, slots=True)
class Origin:
    """Where it was seen or read, and when (YYYY-MM-DD)."""

    source: str
    date: str


@dataclass(frozen=True, slots=True)
class Opening:
    """One rule of a preset.  `own` says that the entry has a source of its own, not that of the file."""

    rule: Rule
    purpose: Purpose | None
    origin: Origin
    own: bool = False


@dataclass(frozen=True, slots=True)
class KnownName:
    """One entry of `known:`."""

    known: Known
    origin: Origin


@dataclass(frozen=True, slots=True)
class Preset:
    """One preset file.  `server` is a name in `servers.SERVERS`, which knows the processes; or empty."""

    name: str
    title: str
    origin: Origin
    openings: tuple[Opening, ...] = ()
    known: tuple[KnownName, ...] = ()
    knows_all: bool = False  # `known: all`: what every preset knows or opens
    inference: Ports = NO_PORTS
    admin: Ports = NO_PORTS
    server: str = ""
    units: tuple[str, ...] = ()  # that its own packages bring
    published: str = ""  # https URL of the upstream's own list of names
    place: Place = NOWHERE

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules that `use:` puts into a workload."""
        return tuple(opening.rule for opening in self.openings)


_CREDENTIALS = "the metadata service of {}, which hands out credentials"

EVERYWHERE: tuple[Known, ...] = (
    # The first was measured 2026-11 with a Ray head.  The others are in lists of such names, not measured.
    Known("metadata.google.internal", Kind.METADATA, _CREDENTIALS.format("Google Cloud"), ""),
    Known("metadata.goog", Kind.METADATA, _CREDENTIALS.format("Google Cloud"), ""),
    Known("instance-data.ec2.internal", Kind.METADATA, _CREDENTIALS.format("AWS"), ""),
    Known("metadata.tencentyun.com", Kind.METADATA, _CREDENTIALS.format("Tencent Cloud"), ""),
    # Measured 2026-11 with onnxruntime 1.32: asked 9, 15 and 23 s after `import`, by whatever program has it.
    Known(
        "mobile.events.data.microsoft.com",
        Kind.TELEMETRY,
        "usage reports of the library onnxruntime; ORT_DISABLE_TELEMETRY=1 stops them",
        "",
    ),
)
"""What any server may ask, whatever the product: libraries and cloud tools do.  Their preset is the one in use."""


def known_to(used: Iterable[Preset], every: Mapping[str, Preset]) -> tuple[Known, ...]:
    """What a workload that uses these presets is known to ask and not given, a pattern once, the first one wins.

    `every` are all presets there are, for the one that knows what all know.
    """
    found: dict[str, Known] = {}
    for preset in used:
        for known in _known_to(preset, every):
            found.setdefault(known.pattern, known)
    return tuple(found.values())


def _known_to(preset: Preset, every: Mapping[str, Preset]) -> Iterator[Known]:
    everywhere = [Known(known.pattern, known.kind, known.text, preset.name) for known in EVERYWHERE]
    if not preset.knows_all:
        yield from (entry.known for entry in preset.known)
        yield from everywhere
        return
    # The sharpest first: a call home, then whose downloads it is, then what some product does with it besides.
    others = [other for _, other in sorted(every.items())]
    known = [entry.known for other in others for entry in other.known]
    yield from (one for one in known if one.kind != Kind.OTHER)
    yield from everywhere
    for other in others:
        for rule in other.rules:
            for peer in rule.peers:
                if isinstance(peer, NamePeer):
                    yield Known(peer.pattern, Kind.OTHER, other.title, other.name)
    yield from (one for one in known if one.kind == Kind.OTHER)


def overlap(pattern: str, other: str) -> bool:
    """Whether some name is in both patterns."""
    if pattern.startswith("*.") and other.startswith("*."):
        return pattern[1:].endswith(other[1:]) or other[1:].endswith(pattern[1:])
    return names.matches(pattern, other) or names.matches(other, pattern)
