"""The one error that a user of penstock ever sees.

Pure code raises builtins; the caller who knows the context wraps them once, `from e`.  A subclass
exists only where some caller branches on it.
"""

from __future__ import annotations


class PenstockError(Exception):
    """Something could not be done.

    `message` says what, `where` names the file, socket or kernel object (may be empty), `hint` says
    what to do next (may be empty).  `str()` is one line of plain text, safe for a terminal as long as
    the parts are: whoever puts foreign text in must escape it first (`core.text.printable`).
    """

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}; {self.hint}" if self.hint else text


class NoDaemon(PenstockError):
    """No daemon answers on the control socket: the command line exits 2, not 1."""
