"""What systemd leaves in files for everybody: whether it runs, when a unit was started, which drop-ins it has.

And what it wants to hear: sd_notify(3), and lines for the journal.  Nobody is asked over a bus, no program is run.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

from penstock.core.slices import DROPIN

SETTINGS = Path("/etc/systemd/system")
UNITS = Path("/run/systemd/units")
PENDING = ".pending"
PRIORITIES = {"error": 3, "warning": 4, "notice": 5, "info": 6}
"""Of a line in the journal, syslog(3)."""
JOURNAL = Path("/run/systemd/journal/socket")
"""Where the journal takes records with fields."""
IDENTIFIER = "penstock"
NONE: Mapping[str, str] = {}
SLACK = 5.0
"""Seconds: a unit that was started so soon after its drop-in was put there may have come before daemon-reload."""


def notify(text: str) -> None:
    """Tell the service manager, if there is one that wants to hear it; never fails."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as out:
        out.setblocking(False)
        out.sendto(text.encode(), address)


def tell(level: str, text: str, fields: Mapping[str, str] = NONE) -> None:
    """Give the journal a record with these fields; where there is none, or it takes none, write a line to stderr.

    If stderr leads to the journal it gets its urgency in front of it, and takes that away (sd-daemon(3)).
    """
    with contextlib.suppress(OSError):
        if send(level, {"MESSAGE": text, **fields}):
            return
    number = f"<{PRIORITIES[level]}>" if _is_journal(2) else ""
    print(f"{number}penstock: {level}: {text}", file=sys.stderr, flush=True)


def send(level: str, fields: Mapping[str, str]) -> bool:
    """Give the journal a record; False when our messages do not go there.  OSError when it does not take it."""
    if not _is_journal(2):
        return False
    whole = {"PRIORITY": str(PRIORITIES[level]), "SYSLOG_IDENTIFIER": IDENTIFIER, **fields}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.setblocking(False)
        out.sendto(b"".join(_field(name, value.encode()) for name, value in whole.items()), str(JOURNAL))
    return True


def _field(name: str, value: bytes) -> bytes:
    """As systemd.io/JOURNAL_NATIVE_PROTOCOL has it: a value of several lines comes with its length in front."""
    if b"\n" in value:
        return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name.encode() + b"=" + value + b"\n"


def _is_journal(descriptor: int) -> bool:
    """Whether it leads to the journal; a child may have inherited the variable and write elsewhere."""
    try:
        there = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


def dropin(unit: str, settings: Path = SETTINGS, units: Path = UNITS) -> str:
    """What is known of the drop-in that gives `unit`, which runs elsewhere, its slice.

    none, pending (waits for an apply), armed (for its next start), or ignored (it was started since).
    """
    found = [path for path in (settings / f"{name}.d" / DROPIN for name in _names(unit)) if path.exists()]
    if not found:
        waiting = (settings / f"{name}.d" / (DROPIN + PENDING) for name in _names(unit))
        return "pending" if any(path.exists() for path in waiting) else "none"
    try:
        # systemd makes this link each time it starts the unit; a rename gives a file a new change time.
        started = os.lstat(units / f"invocation:{unit}").st_mtime
        armed = max(path.stat().st_ctime for path in found)
    except OSError:
        return "armed"
    return "ignored" if started > armed + SLACK else "armed"


def _names(unit: str) -> list[str]:
    """The unit's own name, and its template's (systemd.unit(5))."""
    prefix, at, rest = unit.partition("@")
    return [unit, f"{prefix}@.{rest.rpartition('.')[2]}"] if at else [unit]
