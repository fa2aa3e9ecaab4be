"""The list of names that an upstream publishes, and how a preset differs from it.

The form is that of https://huggingface.co/.well-known/meta.json: an object in which each key that ends in
`Domains` holds a list of names.  What the other keys say is not about names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from penstock.core import names
from penstock.core.language.reading import shown
from penstock.core.policy import NamePeer
from penstock.core.presets import Preset, overlap

MAX_BYTES = 1 << 20
MAX_NAMES = 10_000
MAX_KEYS = 1000

_ENDING = "Domains"


@dataclass(frozen=True, slots=True)
class Published:
    """`names` are as `names.normalise_pattern` returns them, each once; `ignored` are keys that hold none."""

    names: tuple[str, ...]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """`missing` is published and not opened; `extra` is opened and not published."""

    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether there is none."""
        return not self.missing and not self.extra


def read(data: bytes) -> Published:
    """The names of a list.  Raises ValueError for what is no such list; the text is safe to print."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB")
    try:
        # No number is looked at; as an integer one of 5,000 digits is refused, with a hint for programmers.
        whole = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_int=float)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(whole, dict):
        raise ValueError("it is JSON, and no object")
    if len(whole) > MAX_KEYS:
        raise ValueError(f"it has more than {MAX_KEYS:,} keys")
    found: dict[str, None] = {}
    for key, value in whole.items():
        if key.endswith(_ENDING):
            found.update(dict.fromkeys(_names(key, value)))
    if not found:
        raise ValueError(f"no key that ends in `{_ENDING}` holds names")
    if len(found) > MAX_NAMES:
        raise ValueError(f"it holds more than {MAX_NAMES:,} names")
    return Published(tuple(found), tuple(shown(key) for key in whole if not key.endswith(_ENDING)))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are there once: of two, another reader may take the other one."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _names(key: str, value: object) -> Iterable[str]:
    if not isinstance(value, list):
        raise ValueError(f"`{shown(key)}` is no list")
    for member in value:
        if not isinstance(member, str):
            raise ValueError(f"`{shown(key)}` holds something that is no text")
        try:
            yield names.normalise_pattern(member)
        except names.BadName as error:
            raise ValueError(f"`{shown(key)}` holds `{shown(member)}`: {error}") from None


def compare(preset: Preset, published: Published) -> Difference:
    """How the names that the preset opens differ from the list.

    An entry with a source of its own was found somewhere else and is not expected in the list.
    """
    opened = [peer.pattern for rule in preset.rules for peer in rule.peers if isinstance(peer, NamePeer)]
    expected = [
        peer.pattern
        for opening in preset.openings
        if not opening.own
        for peer in opening.rule.peers
        if isinstance(peer, NamePeer)
    ]
    missing = tuple(name for name in published.names if not any(_covers(pattern, name) for pattern in opened))
    extra = tuple(
        pattern for pattern in expected if not any(overlap(pattern, name) for name in published.names)
    )
    return Difference(missing, extra)


def _covers(pattern: str, name: str) -> bool:
    """Whether every name of `name`, which may be a pattern too, is in the pattern."""
    if name.startswith("*."):
        return pattern.startswith("*.") and name[1:].endswith(pattern[1:])
    return names.matches(pattern, name)
