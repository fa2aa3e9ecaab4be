"""What does not work, told to the daemon: each thing at most once in `PAUSE` seconds, and once when it is over."""

from __future__ import annotations

from collections.abc import Callable

from penstock.core.resolver_wire import MAX_TEXT, Trouble

PAUSE, QUIET = 10.0, 30.0
"""Seconds between two of the same, and after the last of it until it is over."""

MOST = 4096
"""Different ones; nothing that a client does makes up new ones."""


class Troubles:
    """`tell` takes the messages.  Times are the loop's."""

    def __init__(self, tell: Callable[[Trouble], object]) -> None:
        self._tell = tell
        self._last: dict[tuple[str, str], tuple[float, float]] = {}  # (code, workload) -> happened, told

    def happened(self, now: float, code: str, workload: str, text: str) -> None:
        """`code` for programs, `text` for people: printable, none of it from packets."""
        key = code, workload
        _, told = self._last.get(key, (0.0, -PAUSE))
        if now - told >= PAUSE and (key in self._last or len(self._last) < MOST):
            self._tell(Trouble(code, workload, text[:MAX_TEXT]))
            told = now
        elif key not in self._last:
            return
        self._last[key] = now, told

    def over(self, code: str, workload: str = "") -> None:
        """It works again."""
        if self._last.pop((code, workload), None) is not None:
            self._tell(Trouble(f"ok:{code}", workload, ""))

    def check(self, now: float) -> None:
        """What has not happened for a while is over."""
        for (code, workload), (happened, _) in list(self._last.items()):
            if now - happened >= QUIET:
                self.over(code, workload)

    def forget(self, workload: str) -> None:
        """It is no longer served, and nothing is said about it."""
        for key in [key for key in self._last if key[1] == workload and workload]:
            del self._last[key]
