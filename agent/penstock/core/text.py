"""Text that an attacker may have chosen: made safe before a terminal, a log or a file sees it."""

from __future__ import annotations

from datetime import UTC, datetime


def printable(text: str, limit: int = 256) -> str:
    """Return `text` with everything that is not plain printable text escaped, at most `limit` long.

    Control characters, bidirectional marks and lone surrogates become `\\xNN` or `\\uNNNN`: a process
    name or a DNS name must not move the cursor of whoever reads the log.
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def duration(seconds: float) -> str:
    """`3 min`, in the largest unit of which there is one; less than none is none."""
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def time_text(when: datetime | None) -> str | None:
    """A time as it stands in JSON: UTC, RFC 3339, whole seconds.  None stays None."""
    return None if when is None else when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
