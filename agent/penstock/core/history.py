"""Saved policies: the one that is in force, and the good ones before it."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.core import results, state
from penstock.core.parse import parse
from penstock.core.policy import Policy
from penstock.core.text import printable

SHORTEST = 4
"""Characters of a hash that may stand for it."""


class NotUnderstood(ValueError):
    """The files in a saved state are not what this version calls a policy."""


def understood(data: bytes | None) -> tuple[state.Applied, Policy]:
    """What a saved state says.  ValueError when it is damaged, NotUnderstood when its files have errors."""
    if data is None:
        raise ValueError("the saved state is missing")
    applied = state.decode(data)
    parsed = parse(applied.files, applied.presets)
    if parsed.policy is None:
        raise NotUnderstood(results.not_understood(parsed.problems))
    return applied, parsed.policy


def choose(saved: Sequence[bytes], to: str, current: str) -> tuple[state.Applied, Policy]:
    """The policy to go back to: the one before the present (`current`), or the one whose hash begins with `to`.

    ValueError, with a sentence, when there is none, or when it cannot be used.
    """
    kept = list(_decoded(saved))
    if not to:
        found = [applied for applied in kept if applied.hash != current][:1]
    else:
        found = [applied for applied in kept if len(to) >= SHORTEST and applied.hash.startswith(to)]
    hashes = {applied.hash for applied in found}
    if not hashes:
        raise ValueError(f"no policy {printable(to, 80)} is kept" if to else "no policy before this one is kept")
    if len(hashes) > 1:
        raise ValueError(f"{printable(to, 80)} is the beginning of several hashes")
    return understood(state.encode(found[0]))


def _decoded(saved: Sequence[bytes]) -> list[state.Applied]:
    """Those that are whole; a damaged one is as if it were not there."""
    found = []
    for data in saved:
        try:
            found.append(state.decode(data))
        except ValueError:
            continue
    return found
