"""The real daemon in a lab: started, asked, stopped, killed; in directories of its own, which `close` removes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from governed import Actor, eventually, rules
from penstock.cli.client import ask as ask_daemon
from penstock.core import state
from penstock.core.blocks import LOG_NAME
from penstock.core.slices import SLICE, slice_of
from penstock.core.snapshot import Snapshot
from penstock.core.wire import Json, Message
from penstock.demo.lab import Lab
from penstock.errors import PenstockError
from penstock.kernel.nft import Nft

IN_FORCE = {"enforcing", "observing", "locked"}
MIB = 1 << 10  # /proc counts in KiB
_numbers = itertools.count()


def _message(command: str, arguments: Mapping[str, Any]) -> Message:
    """A request; an `apply` waits for no confirmation unless told to."""
    return Message(command, {"confirm": 0, **arguments} if command == "apply" else arguments)


class Running:
    """A daemon's surroundings, and the daemon while it runs.

    `tree` and the network namespace are the lab's, so two of them in one lab disturb each other; a `guest` leaves
    table and cgroups to the other one when it is closed.
    """

    def __init__(self, lab: Lab, *, guest: bool = False) -> None:
        self.lab = lab
        self._guest = guest
        self.home = lab.dir / f"penstock-{next(_numbers)}"
        self.config, self.state, self.run, self.log = (
            self.home / name for name in ("config", "state", "run", "log")
        )
        self.tree: Path | None = lab.cgroup
        self.measures_every: float | None = None  # seconds; None: as often as it does
        self._messages = lab.dir / f"{self.home.name}.stderr"
        self._daemon: subprocess.Popen[Any] | None = None
        self._asker: Actor | None = None

    # --- files ---

    def write(self, path: str, text: str) -> None:
        """A file of the configuration directory."""
        file = self.config / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def rules(self, name: str, egress: str = "[]", ingress: str = "[]", mode: str = "enforce") -> None:
        """The rule file of a workload; lists in YAML's flow style."""
        self.write(f"rules.d/{name}.yaml", rules(name, egress, ingress, mode))

    def saved(self) -> state.Applied:
        """What the state file says; ValueError when that is not whole."""
        return state.decode((self.state / state.FILE).read_bytes())

    def blocks(self) -> list[dict[str, Any]]:
        """The log: the last state of each block."""
        return latest((self.log / LOG_NAME).read_text())

    # --- the daemon ---

    @property
    def argv(self) -> list[str]:
        """Its command line."""
        argv = [sys.executable, *_program(self.measures_every), "daemon"]
        argv += [f"--{path.name}={path}" for path in (self.config, self.state, self.run, self.log)]
        return argv if self.tree is None else [*argv, f"--cgroup={self.tree}"]

    def start(self, env: Mapping[str, str] | None = None) -> None:
        """Start it, and wait for nothing."""
        assert self._daemon is None
        with self._messages.open("a") as log:
            self._daemon = self.lab.host.popen(self.argv, stdout=log, stderr=log, env=env, cgroup="daemon.slice")

    def up(self, timeout: float = 30) -> None:
        """Start it, and wait until everything is in force."""
        self.start()
        self.wait_in_force(timeout)

    def refused(self, *, env: Mapping[str, str] | None = None, user: str = "root") -> str:
        """Start it, expecting it to end by itself with status 1; what it said.

        It must not be a traceback.
        """
        place = None if self.tree is None else "daemon.slice"  # without a tree there may be no cgroups at all
        done = self.lab.host.run(self.argv, check=False, env=env, user=user, cgroup=place)
        assert done.returncode == 1, done
        assert "Traceback" not in done.stderr, done.stderr
        assert done.stdout == ""
        return done.stderr

    @property
    def alive(self) -> bool:
        """Whether it was started, and was not seen to end."""
        return self._daemon is not None

    @property
    def process(self) -> subprocess.Popen[Any]:
        """The daemon's process."""
        assert self._daemon is not None
        return self._daemon

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end (or kill it, with SIGKILL), wait for the end, and return its exit status."""
        daemon, self._daemon = self.process, None
        daemon.send_signal(number)
        return daemon.wait(10)

    def died(self, timeout: float = 10) -> int:
        """Wait for it to end by itself."""
        status = self.process.wait(timeout)
        self._daemon = None
        return status

    def messages(self) -> str:
        """Everything it printed, from the first start on."""
        return self._messages.read_text()

    def rss(self) -> int:
        """Resident memory in KiB."""
        return self._proc_number("VmRSS")

    def peak(self) -> int:
        """The most resident memory so far, in KiB."""
        return self._proc_number("VmHWM")

    def _proc_number(self, name: str) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition(f"{name}:")[2].split()[0])

    def switches(self) -> int:
        """How often its threads went to sleep so far."""
        texts = [path.read_text() for path in Path(f"/proc/{self.process.pid}/task").glob("*/status")]
        return sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in texts)

    # --- asking ---

    @property
    def asker(self) -> Actor:
        """A bystander of the host, who asks the daemon and looks at the kernel."""
        if self._asker is None:
            self._asker = Actor(self.lab.host)
        return self._asker

    def ask(self, command: str, **arguments: Any) -> Json:
        """Its answer; PenstockError when it says no or nothing."""
        answer: Json = self.asker(ask_daemon, self.run, _message(command, arguments), 60)
        return answer

    def ask_later(self, command: str, **arguments: Any) -> None:
        """Ask; `asker.result` has the answer."""
        self.asker.start(ask_daemon, self.run, _message(command, arguments), 60)

    def status(self, workload: str = "a") -> dict[str, Any]:
        """That workload's part of `status`."""
        return next(one for one in self.ask("status")["workloads"] if one["name"] == workload)

    def findings(self) -> set[str]:
        """Codes of the findings in `status`."""
        return {finding["code"] for finding in self.ask("status")["findings"]}

    def why(self, *words: str) -> tuple[int, Any]:
        """The exit status of `penstock why`, and its JSON."""
        argv = [sys.executable, "-m", "penstock.cli.main", "--run", str(self.run), "why", *words, "--json"]
        done = self.lab.host.run(argv, check=False)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def in_force(self) -> bool:
        """Whether every workload is in force, and the kernel agrees."""
        try:
            status = self.ask("status")
        except PenstockError:
            if self._daemon is not None and self._daemon.poll() is not None:
                raise AssertionError(f"the daemon ended:\n{self.messages()}") from None
            return False
        words = {one[direction] for one in status["workloads"] for direction in ("egress", "ingress")}
        return status["policy"]["hash"] is not None and status["kernel"]["agrees"] is True and words <= IN_FORCE

    def wait_in_force(self, timeout: float = 30) -> None:
        """Until it is."""
        eventually(self.in_force, timeout)

    # --- the kernel ---

    def snapshot(self) -> Snapshot:
        """What the kernel holds of the table."""
        found: Snapshot = self.asker(_snapshot)
        return found

    def counter(self, name: str) -> int:
        """Packets of one named counter."""
        packets: int = self.asker(_counter, name)
        return packets

    def ruleset(self) -> str:
        """Everything in the firewall, as text."""
        return self.lab.host.run(["nft", "list", "ruleset"]).stdout

    def nft(self, script: str) -> None:
        """Change the firewall as another tool of the host would."""
        self.lab.host.run(["nft", "-f", "-"], input=script)

    def actor(self, workload: str | None = "a", user: str = "root") -> Actor:
        """A process of a workload, or a bystander."""
        return Actor(self.lab.host, slice_of(workload) if workload else None, user)

    def path(self, workload: str = "a") -> Path:
        """The workload's cgroup, as the lab sees it."""
        return self.lab.cgroup / slice_of(workload)

    def cgroup_id(self, workload: str = "a") -> int:
        """What rules match: the inode of the workload's cgroup."""
        return int(self.asker(os.stat, self.path(workload)).st_ino)

    # --- the end ---

    def close(self) -> None:
        """Leave nothing: no daemon, no table, no cgroup, no file."""
        if self._daemon is not None:
            self.stop(signal.SIGKILL)
        if not self._guest:
            self.lab.host.run(["nft", "delete", "table", "inet", "penstock"], check=False)
            eventually(lambda: bool(self.asker(_remove_cgroups, self.lab.cgroup / SLICE)))
        if self._asker is not None:
            self._asker.close()
            self._asker = None
        shutil.rmtree(self.home, ignore_errors=True)
        self._messages.unlink(missing_ok=True)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if error is not None and self._messages.exists():
            print(self.messages())  # for pytest to show with the failure
        self.close()


def _program(measures_every: float | None) -> list[str]:
    """Words for the interpreter: the agent, perhaps with another time between two measurements."""
    if measures_every is None:
        return ["-m", "penstock.cli.main"]
    program = f"""
from penstock.core import measuring
measuring.PERIOD = {measures_every}
from penstock.cli.main import main
main()
"""
    return ["-c", program]


def latest(log: str) -> list[dict[str, Any]]:
    """The last state of each block in the text of a log."""
    return list({block["id"]: block for block in map(json.loads, log.splitlines())}.values())


@contextmanager
def hammering(actor: Actor, stop: Path, function: Any, *args: Any) -> Iterator[list[Any]]:
    """`function(stop, *args)` runs in `actor` until the file `stop` is there; the list then has its result."""
    result: list[Any] = []
    actor.start(function, stop, *args)
    try:
        yield result
    finally:
        stop.touch()
        result.append(actor.result())
        stop.unlink()


_nft: list[Nft] = []


def _of_this_process() -> Nft:
    if not _nft:
        _nft.append(Nft())
    return _nft[0]


def _snapshot() -> Snapshot:
    """Some tests change it without a pause: what is given up after some attempts is tried again here."""
    for _ in range(9):
        with contextlib.suppress(PenstockError):
            return _of_this_process().snapshot()
    return _of_this_process().snapshot()


def _counter(name: str) -> int:
    return _of_this_process().counters().get(name, (0, 0))[0]


def _remove_cgroups(top: Path) -> bool:
    """Remove a cgroup and all below it; False when somebody is still dying there.

    A resolver outlives a daemon that was killed, by some seconds.
    """
    try:
        for pid in (top / "resolver/cgroup.procs").read_text().split() if (top / "resolver").exists() else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for directory, _, _ in os.walk(top, topdown=False):
            os.rmdir(directory)
    except OSError:
        return False
    return True


def timed(function: Any, *args: Any) -> tuple[float, Any]:
    """(seconds, result)."""
    start = time.monotonic()
    result = function(*args)
    return time.monotonic() - start, result
