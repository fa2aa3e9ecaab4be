"""What a preset file says: frozen types, made once by `language.parse_preset`.

A preset knows a product: which names it needs, which it asks besides and shall not reach, on which ports it
listens.  Only `rules` opens anything, and only in a workload that says `use:`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
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


_LISTED = Origin("lists of such names; not measured", "2026-11-27")


def _measured(program: str) -> Origin:
    return Origin(f"measured with {program}, names answered by a sinkhole", "2026-11-24")


def _metadata(pattern: str, cloud: str, origin: Origin = _LISTED) -> KnownName:
    text = f"the metadata service of {cloud}, which hands out credentials"
    return KnownName(Known(pattern, Kind.METADATA, text, ""), origin)


def _reports(pattern: str, whose: str, switch: str, origin: Origin) -> KnownName:
    return KnownName(Known(pattern, Kind.TELEMETRY, f"usage reports of {whose}; {switch} stops them", ""), origin)


EVERYWHERE: tuple[KnownName, ...] = (
    _metadata("metadata.google.internal", "Google Cloud", _measured("a Ray 2 head")),
    _metadata("metadata.goog", "Google Cloud"),
    _metadata("instance-data.ec2.internal", "AWS"),
    _metadata("metadata.azure.internal", "Azure"),
    _metadata("metadata.tencentyun.com", "Tencent Cloud"),
    # Asked 9, 15 and 23 s after `import`, by whatever program has it.
    _reports(
        *("mobile.events.data.microsoft.com", "the library onnxruntime", "ORT_DISABLE_TELEMETRY=1"),
        _measured("onnxruntime 1.32"),
    ),
    # Libraries too, with which servers of all kinds are built: none has a preset of its own.
    _reports("t.bentoml.com", "BentoML", "BENTOML_DO_NOT_TRACK=True", _measured("bentoml")),
    _reports("config.mlflow-telemetry.io", "MLflow", "MLFLOW_DISABLE_TELEMETRY=true", _measured("mlflow 3.17")),
    _reports("api.gradio.app", "Gradio", "GRADIO_ANALYTICS_ENABLED=False", _measured("gradio 6.31")),
    KnownName(Known("marimo.io", Kind.OTHER, "asked by marimo when it starts", ""), _measured("marimo 0.25")),
)
"""What any server may ask, whatever the product: libraries and cloud tools do.  Their preset is the one in use."""


def known_to(used: Iterable[Preset], every: Mapping[str, Preset]) -> tuple[Known, ...]:
    """What a workload that uses these presets is known to ask and not given, a pattern once, the first one wins.

    `every` are all presets there are, for the one that knows what all know.
    """
    return tuple(entry.known for entry in entries_of(used, every))


def entries_of(used: Iterable[Preset], every: Mapping[str, Preset]) -> tuple[KnownName, ...]:
    """The same, with where each was seen."""
    found: dict[str, KnownName] = {}
    for preset in used:
        for entry in _entries_of(preset, every):
            found.setdefault(entry.known.pattern, entry)
    return tuple(found.values())


def _entries_of(preset: Preset, every: Mapping[str, Preset]) -> Iterator[KnownName]:
    everywhere = [replace(entry, known=replace(entry.known, preset=preset.name)) for entry in EVERYWHERE]
    if not preset.knows_all:
        yield from preset.known
        yield from everywhere
        return
    # The sharpest first: what any program may ask, a call home, then whose downloads it is, then what some product
    # does with it besides.
    yield from everywhere
    others = [other for _, other in sorted(every.items())]
    known = [entry for other in others for entry in other.known]
    yield from (entry for entry in known if entry.known.kind != Kind.OTHER)
    for other in others:
        text = f"{other.title} (preset {other.name} opens it)"
        for opening in other.openings:
            for peer in opening.rule.peers:
                if isinstance(peer, NamePeer):
                    # It is this preset that leaves it closed.
                    yield KnownName(Known(peer.pattern, Kind.OTHER, text, preset.name), opening.origin)
    yield from (entry for entry in known if entry.known.kind == Kind.OTHER)


def overlap(pattern: str, other: str) -> bool:
    """Whether some name is in both patterns."""
    if pattern.startswith("*.") and other.startswith("*."):
        return pattern[1:].endswith(other[1:]) or other[1:].endswith(pattern[1:])
    return names.matches(pattern, other) or names.matches(other, pattern)
