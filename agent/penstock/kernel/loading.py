"""Loading a ruleset: from whatever the kernel holds of our table to what it shall hold, in one transaction."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from penstock.core.render_nft import Present, script
from penstock.core.ruleset import Ruleset
from penstock.errors import PenstockError
from penstock.kernel.nft import Nft


def load(nft: Nft, ruleset: Ruleset, present: Present | None, now: datetime) -> None:
    """Make the kernel hold `ruleset`.  PenstockError: it holds what it held before.

    `present` is what it is believed to hold; None, or a belief that turns out wrong, makes us look first.  If even
    that does not fit (a set of another type, made by another release) the sets are made anew, in the same
    transaction; the maps, and with them the bound cgroups, stay whatever happens.

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
        if not found.sets:
            raise
        removals = "".join(f"delete set inet penstock {name}\n" for name in sorted(found.sets))
        flushes = "".join(f"flush chain inet penstock {name}\n" for name in sorted(found.chains))
        nft.load(flushes + removals + script(ruleset, replace(found, sets={}), now))
