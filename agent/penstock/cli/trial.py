"""A changed rule file, applied on trial: kept together with what is in force, or put back together with it."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import click

from penstock.cli.apply import PATIENCE
from penstock.cli.arming import Settled, settle
from penstock.cli.client import ask
from penstock.cli.format import clock, moment
from penstock.cli.problem_text import lines
from penstock.cli.rule_files import RuleFile, RuleFiles, write
from penstock.core.wire import Json, Message
from penstock.errors import PenstockError
from penstock.files import rewrite

POLL = 0.5  # seconds
SILENCE = 300.0
"""Seconds after which a daemon that does not answer is not waited for any more."""
_WORDS = frozenset({"yes", "y", "keep"})


@dataclass(slots=True)
class Trial:
    """One file with a new text.  `result` is what the daemon said of the apply."""

    run: Path
    files: RuleFiles
    file: RuleFile
    data: bytes
    result: Json = field(default_factory=dict)
    written: bool = False

    @property
    def waits(self) -> bool:
        """Whether what was applied reverts by itself unless it is confirmed."""
        return self.result.get("confirm_until") is not None

    def begin(self, seconds: int, now: datetime) -> None:
        """Write the file and apply, for so long unless confirmed.  PenstockError; then all is as it was."""
        if self.data != self.file.data:
            write(self.files, self.file, self.data, now)
            self.written = True
        try:
            self.result = ask(self.run, Message("apply", {"confirm": seconds}), PATIENCE)
        except BaseException:
            self.put_back()
            raise
        if self.result.get("refused"):
            self.put_back()
            for line in lines(self.result["problems"], self.files.config):
                click.echo(line, err=True)
            raise PenstockError("not applied, and the file is as it was", hint="see: penstock check")

    def revert(self) -> bool:
        """Bring back what was in force before, and the file.  False when there is nothing to go back to."""
        back = False
        if self.waits:
            try:
                ask(self.run, Message("rollback", {"to": ""}), PATIENCE)
                back = True
            finally:
                self.put_back()
        return back

    def put_back(self) -> None:
        """The file as it was; somebody else's later change stays, and that is said."""
        if self.written:
            self.written = False
            rewrite(self.file.path, self.file.data, self.data)

    def keep(self) -> Settled:
        """Confirm.  PenstockError when the daemon has nothing to confirm, so when it was reverted meanwhile."""
        if not self.waits:
            return settle(self.run, kept=True)
        result = ask(self.run, Message("confirm"), PATIENCE)
        if result["confirmed"] is not True or result["hash"] != self.result["hash"]:
            self.put_back()
            raise PenstockError("it was reverted before it could be kept; the file is as it was")
        return settle(self.run, kept=True)

    def state(self) -> str:
        """`waits`, `kept` or `reverted`, as the daemon says.  PenstockError when it says nothing."""
        policy = ask(self.run, Message("status"))["policy"]
        if policy["hash"] != self.result["hash"]:
            return "reverted"
        return "waits" if policy.get("confirm_until") is not None else "kept"


@contextmanager
def undone_on_failure(trial: Trial) -> Iterator[None]:
    """Whatever goes wrong, Ctrl-C included, reverts."""
    try:
        yield
    except BaseException:
        trial.revert()
        raise


def wait_for_word(trial: Trial) -> bool:
    """Ask on the terminal whether to keep it, until somebody says so or it is over; whether it was kept.

    A terminal that is lost says nothing: then it is over in time, and the file is put back.  Ctrl-C reverts.
    """
    until = clock(moment(trial.result["confirm_until"]))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        click.echo(f"it reverts at {until} unless you say yes (elsewhere: penstock confirm)")
        click.echo("type yes to keep it, no to revert now")  # last: who sees it may hang up
        return _wait(trial)
    except KeyboardInterrupt:
        trial.revert()
        return False
    finally:
        signal.signal(signal.SIGHUP, before)


def _wait(trial: Trial) -> bool:
    listening = True
    while True:
        said = _line() if listening else None
        listening = said is not None
        if not listening:
            time.sleep(POLL)
        if said in _WORDS:
            settled = trial.keep()
            for line in settled.lines():
                click.echo(line)
            settled.complain()
            return True
        if said in ("no", "n"):
            trial.revert()
            return False
        try:
            state = trial.state()
        except PenstockError:
            continue  # it is between two starts: what waits is reverted by them
        if state != "waits":
            if state == "reverted":
                trial.put_back()
            return state == "kept"


def leave_a_watcher(trial: Trial) -> None:
    """Where nobody waits: a process of its own puts the file back when the policy is reverted.

    It says nothing, lets go of the terminal, and ends with the trial.  Killed, or over a boot, it puts nothing
    back: `status` says that the file differs then.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            _detach()
            _watch(trial)
    finally:
        os._exit(0)


def _detach() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(3, 4096)
    os.chdir("/")


def _watch(trial: Trial) -> None:
    silent = 0.0
    while silent < SILENCE:
        time.sleep(POLL)
        try:
            state = trial.state()
        except PenstockError:
            silent += POLL
            continue
        silent = 0.0
        if state == "reverted":
            trial.put_back()
        if state != "waits":
            return


def _line() -> str | None:
    """What was typed, empty for nothing yet; None when nobody can type any more."""
    try:
        ready, _, _ = select.select([sys.stdin.fileno()], [], [], POLL)
        text = os.read(sys.stdin.fileno(), 4096) if ready else b"\n"
    except OSError:
        return None
    return text.decode("utf-8", "replace").strip().lower() if text else None
