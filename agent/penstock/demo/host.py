"""One host of a lab: run programs and functions there.

Programs are children of the caller, inside the lab's namespaces: their pid here is the real one, signals
and exit statuses are theirs, and they die with the thread that started them.
"""

from __future__ import annotations

import os
import pickle
import pwd
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

from penstock.demo import namespaces
from penstock.errors import PenstockError

P = ParamSpec("P")
T = TypeVar("T")

_KEEP = ("HOME", "LANG", "TERM", "PATH", "NO_COLOR", "CI", "COLUMNS")
BASE_ENVIRONMENT = {
    **{name: os.environ[name] for name in _KEEP if name in os.environ},
    "LC_ALL": "C.UTF-8",
    "PATH": os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin",
    "PYTHONPATH": str(Path(__file__).parents[2]),
}
"""What a program in the lab sees of our environment: no proxies, no PENSTOCK_RUN of the real host."""


class CommandFailed(subprocess.CalledProcessError):
    """A program in the lab ended with another status than 0; the text has what it printed."""

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.stdout or ''}{self.stderr or ''}"


class Host:
    """A host of a lab, with its addresses; made by `Lab`, not by itself."""

    def __init__(
        self,
        name: str,
        addresses: tuple[str, ...],
        shared: Mapping[int, int],
        net: int,
        cgroup: Path,
        default_cgroup: str,
        children: list[subprocess.Popen[Any]],
    ) -> None:
        self.name = name
        self.addresses = addresses
        self.netns_inode = os.fstat(net).st_ino
        self._shared = shared
        self._net = net
        self._cgroup = cgroup
        self._default_cgroup = default_cgroup
        self._children = children

    @property
    def v4(self) -> str:
        """The first IPv4 address."""
        return next(a for a in self.addresses if ":" not in a)

    @property
    def v6(self) -> str:
        """The first IPv6 address."""
        return next(a for a in self.addresses if ":" in a)

    def address(self, family: int) -> str:
        """The first address of family 4 or 6."""
        return self.v4 if family == 4 else self.v6

    def popen(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        cgroup: str | None = None,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        text: bool = True,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start a program there; `options` are subprocess.Popen's.

        `cgroup` is a path in the lab's cgroup subtree, made if missing, entered before the program starts;
        `env` adds to a plain environment.  Who does not wait for it has it killed when the lab closes.
        """
        enter = self._entry(cgroup, user, cwd)
        with namespaces.children_in(self._shared[namespaces.CLONE_NEWPID]):
            child = subprocess.Popen(
                argv,
                env={**BASE_ENVIRONMENT, **(env or {})},
                text=text,
                preexec_fn=enter,  # noqa: PLW1509 - only system calls
                **options,
            )
        self._children[:] = [other for other in self._children if other.poll() is None]
        self._children.append(child)
        return child

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        timeout: float = 30,
        check: bool = True,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        cgroup: str | None = None,
        user: str = "root",
        cwd: str = "/",
    ) -> subprocess.CompletedProcess[str]:
        """Run a program there to its end, at most `timeout` seconds, and return what it printed.

        Raises CommandFailed for another status than 0 unless `check` is false, subprocess.TimeoutExpired
        when it takes longer (it is killed then).
        """
        child = self.popen(
            argv,
            cgroup=cgroup,
            user=user,
            env=env,
            cwd=cwd,
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
            raise CommandFailed(child.returncode, list(argv), out, err)
        return subprocess.CompletedProcess(list(argv), child.returncode, out, err)

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` there in a fork of this very program; return its result or raise its exception.

        Result and exception travel pickled.  For tests of code that works on the kernel in-process.
        Killed after 60 seconds, with TimeoutError.
        """
        return self.call_in(None, function, *args, **kwargs)

    def call_in(
        self, cgroup: str | None, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `call`, in that cgroup of the lab's subtree."""
        enter = self._entry(cgroup, "root", os.getcwd())
        reader, writer = os.pipe()
        with namespaces.children_in(self._shared[namespaces.CLONE_NEWPID]):
            child = os.fork()
            if child == 0:  # here, not below: the child must not run the end of the `with`
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

    def _entry(self, cgroup: str | None, user: str, cwd: str) -> Callable[[], None]:
        """What a child does between fork and exec to be in this host."""
        record = pwd.getpwnam(user)

        def enter() -> None:
            for kind, descriptor in self._shared.items():
                if kind != namespaces.CLONE_NEWPID:  # that one was chosen before the fork
                    namespaces.setns(descriptor, kind)
            namespaces.setns(self._net, namespaces.CLONE_NEWNET)
            self._enter_cgroup(cgroup)
            os.chdir(cwd if os.path.isdir(cwd) else "/")
            if record.pw_uid:
                os.setgroups([])
                os.setgid(record.pw_gid)
                os.setuid(record.pw_uid)
            namespaces.die_with_parent()  # last: a change of user clears it

        return enter

    def _enter_cgroup(self, cgroup: str | None) -> None:
        """Make no directory where the lab's tree is not: a test may have mounted something else over it."""
        if cgroup is None and not (self._cgroup / "cgroup.procs").exists():
            return
        os.stat(self._cgroup / "cgroup.procs")
        place = self._cgroup / (self._default_cgroup if cgroup is None else cgroup)
        place.mkdir(parents=True, exist_ok=True)
        with open(place / "cgroup.procs", "r+") as procs:
            procs.write("0")


def _answer(writer: int, enter: Callable[[], None], work: Callable[[], Any]) -> NoReturn:
    """In the child of `call`: do the work, send the pickled outcome, end without any clean-up of ours."""
    status = 1
    try:
        data = _outcome(enter, work)
        with open(writer, "wb") as pipe:
            pipe.write(data)
        status = 0
    finally:
        os._exit(status)


def _outcome(enter: Callable[[], None], work: Callable[[], Any]) -> bytes:
    try:
        enter()
        outcome = (True, work())
    except BaseException as error:  # noqa: BLE001 - a process boundary: whatever it is, the caller raises it
        outcome = (False, error)
    try:
        data = pickle.dumps(outcome)
        pickle.loads(data)
    except Exception:  # noqa: BLE001 - pickling runs foreign code, which may raise anything
        data = pickle.dumps((False, PenstockError(f"{type(outcome[1]).__name__}: {outcome[1]}")))
    return data


def _read_all(descriptor: int, deadline: float) -> bytes:
    data = b""
    while select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0]:
        part = os.read(descriptor, 1 << 16)
        if not part:
            return data
        data += part
    raise TimeoutError("no answer from the lab in time")
