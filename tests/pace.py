"""How slow this machine is, for limits in seconds that mean the program and not the machine."""

from __future__ import annotations

import time
from functools import lru_cache

USUAL = 0.1
"""Seconds of the processor's time that `_work` takes, about, on the machines for which limits are written."""

MOST = 4.0


def slow(seconds: float) -> float:
    """That many, and on a slower machine as many more as it is slower."""
    return seconds * _slowness()


@lru_cache
def _slowness() -> float:
    return min(max(min(_work() for _ in range(3)) / USUAL, 1.0), MOST)


def _work() -> float:
    """Much memory and little arithmetic, as loading and parsing rules."""
    began = time.process_time()
    texts = {str(number * 7919 % 100_003): (number, [number]) for number in range(100_000)}
    sorted(texts)
    "".join(texts).encode()
    return time.process_time() - began
