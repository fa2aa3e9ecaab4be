"""Whether matching by cgroup was proven by a packet, and when to try again."""

from __future__ import annotations

from penstock.core.effects import Effect, Journal, Prove
from penstock.core.view import View


class Prover:
    """One proof is under way at most; `View` says what came of it."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._trying = False

    def prove(self, *, again: bool) -> list[Effect]:
        """Have it proven, if it is not; `again`: even if it was."""
        if self._trying or (self._view.proven and not again):
            return []
        self._trying = True
        return [Prove()]

    def succeeded(self) -> list[Effect]:
        """A packet was caught each way."""
        self._trying = False
        self._view.proven, self._view.proof_error = True, ""
        return []

    def failed(self, error: str) -> list[Effect]:
        """It was not; said once."""
        self._trying = False
        new = self._view.proven or self._view.proof_error != error
        self._view.proven, self._view.proof_error = False, error
        text = f"cgroup matching could not be proven: {error}"
        return [Journal("error", text, "failed")] if new else []
