"""Loading a ruleset: from whatever the kernel holds of our table to what it shall hold, in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from penstock.core.render_nft import Present, retimed, script
from penstock.core.ruleset import TABLE, Ruleset
from penstock.errors import PenstockError
from penstock.kernel.nft import Nft


def load(nft: Nft, ruleset: Ruleset, present: Present | None, now: datetime) -> None:
    """Make the kernel hold `ruleset`.  PenstockError: it holds what it held before.

    `present` is what it is believed to hold; None, or a belief that turns out wrong, makes us look first.  If even
    that does not fit (a set of another type, a base chain at another hook) sets and base chains are made anew, in
    the same transaction; the maps, and with them the bound cgroups, stay whatever happens.

    Cgroups of workloads that are not in `ruleset` any more are unbound before: they are denied everything then.
    """
    nft.release([chain.name for chain in ruleset.chains])
    if present is not None:
        try:
            nft.load(script(ruleset, present, now))
        except PenstockError:
            pass
        else:
            return
    found = nft.snapshot().present
    try:
        nft.load(script(ruleset, found, now))
    except PenstockError:
        if not found.chains and not found.sets:
            raise
        nft.load(_from_scratch(ruleset, found) + script(ruleset, _rest(ruleset, found), now))


RETIMES = 3
"""How often ends are told anew: an element that runs out in the very moment makes the whole fail."""


def retime(nft: Nft, ruleset: Ruleset, clock: Callable[[], datetime]) -> None:
    """Tell the kernel, which holds `ruleset`, anew when elements end.  PenstockError when it does not take it."""
    for left in reversed(range(RETIMES)):
        text = retimed(ruleset, clock())
        try:
            if text:
                nft.load(text)
            return
        except PenstockError:
            if not left:
                raise


def _base_chains(ruleset: Ruleset) -> list[str]:
    return [chain.name for chain in ruleset.chains if chain.hook]


def _from_scratch(ruleset: Ruleset, found: Present) -> str:
    """Remove sets, and base chains: where a chain is hooked cannot be changed, and nothing refers to it."""
    lines = [f"flush chain inet {TABLE} {name}" for name in sorted(found.chains)]
    lines += [f"delete chain inet {TABLE} {name}" for name in _base_chains(ruleset) if name in found.chains]
    lines += [f"delete set inet {TABLE} {name}" for name in sorted(found.sets)]
    return "\n".join(lines) + "\n"


def _rest(ruleset: Ruleset, found: Present) -> Present:
    """What is there after `_from_scratch`."""
    return replace(found, sets={}, chains=found.chains.difference(_base_chains(ruleset)))
