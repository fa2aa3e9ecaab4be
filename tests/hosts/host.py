"""One booted host: run programs in it, read and write its files, switch it off, on, and pull its plug.

A program started here is a child of the caller, in all namespaces of the host (the cgroup one included: rules
that are loaded from another one count levels from elsewhere, and match nothing) and in a scope of its own, as a
login shell would be.  It dies with the thread that started it.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401 - a function that is called in a host finds no module there; sockets want this one
import os
import pickle
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import psutil

from penstock.demo import namespaces, probe
from penstock.demo.host import CommandFailed, _answer, _read_all

if TYPE_CHECKING:
    from hosts.world import World

P = ParamSpec("P")
T = TypeVar("T")
Argv = Sequence[str | os.PathLike[str]]

CLONE_NEWCGROUP = 0x02000000
_NAMESPACES = {
    "uts": namespaces.CLONE_NEWUTS,
    "ipc": namespaces.CLONE_NEWIPC,
    "net": namespaces.CLONE_NEWNET,
    "cgroup": CLONE_NEWCGROUP,
    "mnt": namespaces.CLONE_NEWNS,
}
SCOPE = "test.scope"
"""The cgroup of what tests run: nobody's unit."""
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "SYSTEMD_PAGER": "",
    "SYSTEMD_COLORS": "0",
}


@dataclass(slots=True)
class Running:
    """A host between power-on and power-off: its supervisor, its first process, and what holds its namespaces."""

    nspawn: subprocess.Popen[Any]
    leader: int  # pid, as seen from here
    cgroup: Path  # of the host, in the world's cgroup mount
    namespaces: dict[str, int] = field(default_factory=dict)
    pid: int = -1
    root: int = -1

    def open(self) -> None:
        """Take hold of the namespaces of the first process."""
        there = Path(f"/proc/{self.leader}")
        self.namespaces = {name: os.open(there / "ns" / name, os.O_RDONLY) for name in _NAMESPACES}
        self.pid = os.open(there / "ns/pid", os.O_RDONLY)
        self.root = os.open(there / "root", os.O_RDONLY)

    def close(self) -> None:
        """Let go: an open descriptor keeps a namespace, and its firewall rules, alive."""
        for descriptor in (*self.namespaces.values(), self.pid, self.root):
            if descriptor >= 0:
                os.close(descriptor)
        self.namespaces, self.pid, self.root = {}, -1, -1


class Host:
    """A host of a world; made by `World.boot`."""

    def __init__(self, world: World, name: str, release: str, addresses: tuple[str, str]) -> None:
        self.world = world
        self.name = name
        self.release = release
        self.addresses = addresses
        """IPv4 and IPv6 on the local network."""
        self.state = "off"
        """What systemd said when it had booted: running, or degraded."""
        self.boots = 0
        self.share: dict[str, Path] = {}
        self.running: Running | None = None
        self._children: list[subprocess.Popen[Any]] = []

    @property
    def v4(self) -> str:
        """Its IPv4 address."""
        return self.addresses[0]

    @property
    def v6(self) -> str:
        """Its IPv6 address."""
        return self.addresses[1]

    def address(self, family: int) -> str:
        """Its address of family 4 or 6."""
        return self.addresses[family == 6]

    # --- programs ---

    def popen(
        self,
        argv: Argv,
        *,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: str = "/root",
        cgroup: str = SCOPE,
        text: bool = True,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start a program in the host; `options` are subprocess.Popen's.

        `user` is one of the host's users, `env` adds to a plain environment, `cgroup` is a path in its tree.
        """
        running = self._on()
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]
        with self._entry(cgroup, cwd) as enter, namespaces.children_in(running.pid):
            child = subprocess.Popen(
                argv if user == "root" else [*as_user, *argv],
                env={**ENVIRONMENT, **(env or {})},
                text=text,
                preexec_fn=enter,  # noqa: PLW1509 - only system calls
                **{"stdin": subprocess.DEVNULL, **options},
            )
        self._children[:] = [other for other in self._children if other.poll() is None]
        self._children.append(child)
        return child

    def run(
        self,
        argv: Argv,
        *,
        check: bool = True,
        timeout: float = 60,
        input: str | None = None,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: str = "/root",
        cgroup: str = SCOPE,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the host to its end and return what it printed.

        Raises CommandFailed, with the output in its text, for another status than 0 unless `check` is false;
        subprocess.TimeoutExpired after `timeout` seconds.
        """
        child = self.popen(
            argv,
            user=user,
            env=env,
            cwd=cwd,
            cgroup=cgroup,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with child:
            try:
                out, err = child.communicate(input, timeout)
            except BaseException:
                child.kill()
                raise
        if check and child.returncode:
            raise CommandFailed(child.returncode, [str(word) for word in argv], out, err)
        return subprocess.CompletedProcess(list(argv), child.returncode, out, err)

    def sh(self, script: str, **options: Any) -> str:
        """What a shell script printed; `options` as of `run`."""
        return self.run(["sh", "-ec", script], **options).stdout

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in the host in a fork of this very program; return its result or raise its exception.

        It sees the host's files and network, and the modules that are loaded here.  Killed after 60 seconds.
        """
        return self.call_in(SCOPE, function, *args, **kwargs)

    def call_in(self, cgroup: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `call`, in that cgroup of the host's tree."""
        reader, writer = os.pipe()
        with self._entry(cgroup, "/") as enter, namespaces.children_in(self._on().pid):
            child = os.fork()
            if child == 0:
                _answer(writer, enter, lambda: function(*args, **kwargs))
        os.close(writer)
        try:
            data = _read_all(reader, time.monotonic() + 60)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            os.close(reader)
            _, status = os.waitpid(child, 0)
        if not data:
            raise ChildProcessError(f"{function} in {self.name} died with status {status}")
        good, value = pickle.loads(data)
        if not good:
            raise value
        result: T = value
        return result

    def tcp(self, address: str, port: int, timeout: float = 3, cgroup: str = SCOPE) -> probe.Attempt:
        """Connect from this host, send "hello" and read an answer."""
        return self.call_in(cgroup, probe.tcp, address, port, b"hello", timeout)

    def udp(self, address: str, port: int, timeout: float = 3, cgroup: str = SCOPE) -> probe.Attempt:
        """Send a datagram from this host and wait for one back."""
        return self.call_in(cgroup, probe.udp, address, port, b"hello", timeout)

    def wait_until(self, condition: Callable[[], object] | Argv, timeout: float = 15, every: float = 0.05) -> None:
        """Ask until `condition` is true, or the program ends with status 0; AssertionError after `timeout` s."""
        deadline = time.monotonic() + timeout
        while True:
            if callable(condition):
                good, said = bool(condition()), ""
            else:
                done = self.run(condition, check=False)
                good, said = done.returncode == 0, done.stdout + done.stderr
            if good:
                return
            assert time.monotonic() < deadline, f"{self.name}: not in {timeout} s: {condition}\n{said}"
            time.sleep(every)

    # --- files, also while it is off ---

    def read(self, path: str) -> str:
        """The text of a file."""
        return self._at_disk(["cat", "--", path], None)

    def peek(self, path: str) -> str:
        """The same, or "" where it is not there, without a program in the host: for what is looked at often.

        No part of `path` may be a symbolic link.
        """
        running = self.running
        if running is None or not running.leader:
            return self.read(path) if self.exists(path) else ""
        try:
            return Path(f"/proc/{running.leader}/root{path}").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return ""

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Make or replace a file, and the directories above it.  While the host is off only its disk is there."""
        script = 'umask 022; mkdir -p -- "${1%/*}/"; cat >"$1"; chmod "$2" -- "$1"'
        self._at_disk(["sh", "-ec", script, "sh", path, f"{mode:o}"], text)

    def exists(self, path: str) -> bool:
        """Whether something of that name is there."""
        script = 'if [ -e "$1" ] || [ -L "$1" ]; then echo yes; fi'
        return bool(self._at_disk(["sh", "-c", script, "sh", path], None))

    def copy_in(self, source: Path, path: str) -> None:
        """Copy a file or tree of the outer machine into the host's disk, at `path`, which must not exist."""
        target = self.disk / path.lstrip("/")
        lab = self.world.lab.host
        lab.run(["mkdir", "-p", target.parent])
        lab.run(["cp", "-a", "--reflink=auto", "--no-target-directory", source, target], timeout=120)

    def save(self, place: Path) -> None:
        """While it is off: copy to `place`, which must not exist, what is on its disk and not in the release.

        What its journal tells stays out, so that another host may begin with it.
        """
        assert self.running is None, f"{self.name} is on"
        self.world.lab.host.run(["cp", "-a", self.world.directory / self.name / "upper", place], timeout=120)
        shutil.rmtree(place / "var/log/journal", ignore_errors=True)

    def _at_disk(self, argv: list[str], text: str | None) -> str:
        if self.running is not None:
            return self.run(argv, input=text).stdout
        return self.world.lab.host.run(["chroot", self.disk, *argv], input=text, env=ENVIRONMENT).stdout

    @property
    def disk(self) -> Path:
        """The host's root file system, as the world's mount namespace sees it."""
        return self.world.directory / self.name / "root"

    # --- power ---

    def power_on(self) -> None:
        """Boot, and wait until systemd is done with that."""
        self.world.start(self)
        self.world.wait_booted(self)

    def power_off(self, timeout: float = 60) -> None:
        """An orderly shutdown.

        What tests started with `popen` ends before it begins: what shall last until the end must be a unit.
        """
        running = self._on()
        if not running.leader:  # it never came up, and pid 0 would be this very program and its group
            self.crash()
            return
        self.forget_children()  # systemd would wait 10 s for processes whose parent, outside, must reap them
        os.kill(running.leader, signal.SIGRTMIN + 4)
        try:
            running.nspawn.wait(timeout)
        except subprocess.TimeoutExpired:
            self.crash()
            raise
        self.world.stopped(self)

    def crash(self) -> None:
        """As if the plug was pulled: nobody gets to say goodbye."""
        running = self._on()
        if running.leader:  # not 0: that is this very program and its group
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.leader, signal.SIGKILL)
        running.nspawn.kill()
        running.nspawn.wait()
        self.forget_children()
        self.world.stopped(self)

    def reboot(self, crash: bool = False) -> None:
        """Off and on again: the disk stays; processes, cgroups, /run and the network namespace are new."""
        if crash:
            self.crash()
        else:
            self.power_off()
        self.power_on()

    # --- below ---

    def _on(self) -> Running:
        assert self.running is not None, f"{self.name} is switched off"
        return self.running

    def forget_children(self) -> None:
        """End and reap what tests started here: before, neither its first process nor the lab can end."""
        for child in self._children:
            child.kill()
            child.wait()
        self._children.clear()

    @contextlib.contextmanager
    def _entry(self, cgroup: str, cwd: str) -> Iterator[Callable[[], None]]:
        """What a child does between fork and exec to be in this host."""
        running = self._on()
        place = running.cgroup / "payload" / cgroup
        place.mkdir(parents=True, exist_ok=True)
        procs = os.open(place / "cgroup.procs", os.O_WRONLY)

        def enter() -> None:
            os.write(procs, b"0")  # first: from inside, the way here cannot be seen
            for name, kind in _NAMESPACES.items():
                namespaces.setns(running.namespaces[name], kind)
            os.fchdir(running.root)
            os.chroot(".")
            os.chdir(cwd if os.path.isdir(cwd) else "/")
            namespaces.die_with_parent()

        try:
            yield enter
        finally:
            os.close(procs)


def leader_of(nspawn: subprocess.Popen[Any]) -> int:
    """The pid of a host's first process once it is an init, else 0."""
    with contextlib.suppress(psutil.Error, OSError, IndexError, StopIteration):
        for child in psutil.Process(nspawn.pid).children():
            status = Path(f"/proc/{child.pid}/status").read_text()
            inside = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1]
            if child.name() in ("systemd", "init") and inside == "1":
                return child.pid
    return 0
