"""Which addresses of a name the daemon has put into the kernel lately: it need not be asked again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

HOLDS = 100.0
"""Seconds.  In the kernel an address stays that much longer than its TTL says, or `FLOOR`."""

FLOOR = 600
MOST = 32_768

Key = tuple[str, str, int]
"""Workload, name, type."""

Addresses = tuple[tuple[Hashable, int], ...]
"""In one form or another, with their TTLs, in seconds."""


class Settled:
    """Holds no addresses, but their hash: fifty of each of ten thousand names would be much."""

    def __init__(self) -> None:
        self._held: OrderedDict[Key, tuple[int, int, float, int]] = OrderedDict()

    def remember(self, key: Key, generation: int, addresses: Addresses, now: float) -> None:
        """They are in the kernel, under that configuration."""
        least = min((ttl for _, ttl in addresses), default=0)
        self._held[key] = generation, _hash(addresses), now, max(least, FLOOR)
        self._held.move_to_end(key)
        if len(self._held) > MOST:
            self._held.popitem(last=False)

    def has(self, key: Key, generation: int, addresses: Addresses, now: float) -> bool:
        """Whether exactly these are there for as long as their TTLs say."""
        held = self._held.get(key)
        if held is None or held[0] != generation or now - held[2] >= HOLDS or held[1] != _hash(addresses):
            return False
        return all(ttl <= held[3] for _, ttl in addresses)


def _hash(addresses: Addresses) -> int:
    """Whoever makes two sets that have the same gets an answer whose addresses stay closed, for his own name."""
    return hash(frozenset(address for address, _ in addresses))
