"""The clocks of the daemon, looked at nowhere else: everything behind gets times in events."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path


def now() -> datetime:
    """The wall clock, which may jump."""
    return datetime.now(UTC)


def uptime() -> float:
    """Seconds since boot, suspend included: it never jumps (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def awake() -> float:
    """Seconds as the kernel's own timeouts count them: since boot, suspend not included."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def boot() -> str:
    """Names this boot of the host (random(4)); "" when it cannot be known, so that no two are taken for one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (OSError, ValueError):
        return ""
