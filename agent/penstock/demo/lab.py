"""A throw-away host and remote hosts, for the demo and for tests: namespaces, a cgroup subtree, a directory.

The host's own network, firewall and cgroups are never touched.  Everything in a lab hangs on one init
process, which dies with the thread that made the lab: after `close()`, an exception, Ctrl-C, even SIGKILL,
no process, namespace, mount or interface is left.  What a killed owner could not remove (empty cgroup
directories, its temporary directory) the next lab removes.  There is no route out.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from penstock.demo import namespaces
from penstock.demo.host import BASE_ENVIRONMENT, Host
from penstock.errors import PenstockError

HOST_ADDRESSES = ("192.0.2.10", "2001:db8:2::10")
REMOTES: Mapping[str, tuple[str, ...]] = {
    "registry": ("198.51.100.10", "2001:db8:51::10"),
    "stranger": ("203.0.113.66", "2001:db8:66::66"),
}
OTHERS = "others.slice"
"""The cgroup, in the lab's subtree, of every process that was given no other."""

_CGROUP_MOUNT = Path("/sys/fs/cgroup")
_NAME = re.compile(r"penstock-lab-(\d+)-(\d+)-\d+")
_counter = itertools.count()


def assert_elsewhere(home: int) -> None:
    """Refuse to go on in the network namespace with inode `home`, the one that must stay untouched."""
    if namespaces.net_inode() == home:
        raise PenstockError("refusing to touch the firewall of the network namespace we started in")


def _started(pid: int) -> str:
    """When process `pid` was started, in ticks since boot: with the pid a name that is never used again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_stale(name: str) -> bool:
    """Whether `name` was made by a lab whose owner is gone."""
    match = _NAME.fullmatch(name)
    return match is not None and _started(int(match[1])) != match[2]


class Lab:
    """A context manager; see the module.  Needs root.

    `remotes` names the remote hosts and their addresses, as many as wanted, of both families; `addresses`
    are the governed host's.  Everybody sees everybody on one link, and an address that nobody has is
    asked for in vain, so a packet to it passes the firewall and then dies.
    """

    def __init__(
        self,
        remotes: Mapping[str, Iterable[str]] = REMOTES,
        addresses: Iterable[str] = HOST_ADDRESSES,
    ) -> None:
        self.name = f"penstock-lab-{os.getpid()}-{_started(os.getpid())}-{next(_counter)}"
        self.dir = Path(tempfile.gettempdir(), self.name)
        """Seen by both sides under the same path."""
        self.cgroup = _CGROUP_MOUNT / self.name
        """The lab's own cgroup subtree, as seen inside."""
        self.home_inode = namespaces.net_inode()
        self.netns_inode = 0
        self._addresses = tuple(addresses)
        self._remotes = {name: tuple(found) for name, found in remotes.items()}
        self._init: subprocess.Popen[str] | None = None
        self._descriptors: list[int] = []
        self._cgroup_root = -1
        self._children: list[subprocess.Popen[Any]] = []
        self.remote: dict[str, Host] = {}

    def __enter__(self) -> Lab:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def pin(self, names: Mapping[str, Iterable[str]]) -> None:
        """Make /etc/hosts of the lab give these addresses for these names, and forget earlier ones."""
        lines = ["127.0.0.1 localhost lab", "::1 localhost"]
        lines += [f"{address} {name}" for name, found in names.items() for address in found]
        (self.dir / "hosts").write_text("\n".join(lines) + "\n")

    def resolver(self, *addresses: str) -> None:
        """Make /etc/resolv.conf of the lab name these servers."""
        (self.dir / "resolv.conf").write_text("".join(f"nameserver {a}\n" for a in addresses))

    def close(self) -> None:
        """End everything in the lab and remove what it made.  May be called again, and at any time."""
        if self._init is not None:
            self._open_cgroups(self._init)
            self._init.kill()  # and the kernel kills the rest
            for child in self._children:  # init is not gone before whoever we started is reaped
                child.kill()
                child.wait()
            self._init.wait()
            for stream in (self._init.stdin, self._init.stdout):
                if stream:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
            self._init = None
        while self._descriptors:
            os.close(self._descriptors.pop())
        if self._cgroup_root >= 0:
            _remove_cgroup(self._cgroup_root, self.name)
            os.close(self._cgroup_root)
            self._cgroup_root = -1
        shutil.rmtree(self.dir, ignore_errors=True)

    def _start(self) -> None:
        if os.geteuid() != 0:
            raise PenstockError("a lab needs root", hint="run it with sudo")
        _sweep_directories()
        self.dir.mkdir(mode=0o755)
        self.pin({})
        self.resolver()
        self._init = self._start_init()
        self._ask(self._init)
        inside = Path(f"/proc/{self._init.pid}")
        shared = {
            kind: self._open(inside / "ns" / name)
            for kind, name in (
                (namespaces.CLONE_NEWNS, "mnt"),
                (namespaces.CLONE_NEWUTS, "uts"),
                (namespaces.CLONE_NEWIPC, "ipc"),
                (namespaces.CLONE_NEWPID, "pid"),
            )
        }
        net = self._open(inside / "ns/net")
        self.netns_inode = os.fstat(net).st_ino
        self.host = Host("host", self._addresses, shared, net, self.cgroup, OTHERS, self._children)
        for name, found in self._remotes.items():
            net = self._open(inside / "root/run/netns" / name)
            self.remote[name] = Host(name, found, shared, net, self.cgroup, OTHERS, self._children)
        self._open_cgroups(self._init)
        _sweep_cgroups(self._cgroup_root)

    def _open_cgroups(self, init: subprocess.Popen[str]) -> None:
        """Hold the lab's cgroup mount: it then outlives its mount namespace, and all can be removed."""
        path = Path(f"/proc/{init.pid}/root", _CGROUP_MOUNT.relative_to("/"))
        if self._cgroup_root < 0:
            with contextlib.suppress(OSError):
                self._cgroup_root = os.open(path, os.O_RDONLY)

    def _open(self, path: Path) -> int:
        descriptor = os.open(path, os.O_RDONLY)
        self._descriptors.append(descriptor)
        return descriptor

    def _start_init(self) -> subprocess.Popen[str]:
        def enter() -> None:
            namespaces.unshare(
                namespaces.CLONE_NEWNS
                | namespaces.CLONE_NEWNET
                | namespaces.CLONE_NEWUTS
                | namespaces.CLONE_NEWIPC
            )
            namespaces.die_with_parent()

        # Its pid here is the init's own, with nothing between: killing it ends the lab.
        with namespaces.children_in(None):
            return subprocess.Popen(
                [sys.executable, "-s", "-S", "-m", "penstock.demo.lab_init"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=BASE_ENVIRONMENT,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for us; we then end the lab
                preexec_fn=enter,  # noqa: PLW1509 - only system calls, in a program without threads
            )

    def _ask(self, init: subprocess.Popen[str]) -> None:
        """Send the plan to init and wait until it is carried out."""
        plan = {
            "dir": str(self.dir),
            "cgroup": self.name,
            "others": OTHERS,
            "addresses": self._addresses,
            "remotes": self._remotes,
        }
        assert init.stdin
        assert init.stdout
        with contextlib.suppress(BrokenPipeError):
            init.stdin.write(json.dumps(plan) + "\n")
            init.stdin.flush()
        answer = _line(init.stdout, 20)
        error = json.loads(answer)["error"] if answer else "its first process died"
        if error:
            raise PenstockError(f"the lab could not be built: {error}")


def _line(stream: IO[str], timeout: float) -> str:
    """One line of `stream`, or nothing when it does not come in time."""
    ready, _, _ = select.select([stream], [], [], timeout)
    return stream.readline() if ready else ""


def _sweep_directories() -> None:
    for path in Path(tempfile.gettempdir()).glob("penstock-lab-*"):
        if _is_stale(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _sweep_cgroups(root: int) -> None:
    for name in os.listdir(root):
        if _is_stale(name) and not _is_populated(root, name):
            _remove_cgroup(root, name, patience=0)


def _is_populated(root: int, name: str) -> bool:
    """Whether somebody lives there: the lab of an owner in another pid namespace only looks stale."""
    try:
        with open(os.open(f"{name}/cgroup.events", os.O_RDONLY, dir_fd=root)) as events:
            return "populated 1" in events.read()
    except FileNotFoundError:
        return False


def _remove_cgroup(root: int, name: str, patience: float = 5) -> None:
    """Remove `name` and what is below it, waiting at most `patience` seconds for the dead to leave."""
    deadline = time.monotonic() + patience
    while True:
        try:
            for _, directories, _, descriptor in os.fwalk(name, topdown=False, dir_fd=root):
                for directory in directories:
                    os.rmdir(directory, dir_fd=descriptor)
            os.rmdir(name, dir_fd=root)
        except FileNotFoundError:
            return
        except OSError:  # busy: a killed process leaves its cgroup a moment after it was reaped
            if time.monotonic() >= deadline:
                return
            time.sleep(0.002)
        else:
            return
