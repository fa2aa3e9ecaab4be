"""`penstock run`, in a lab with a fake daemon: who the program is, where it is, what it got, how it ends."""

from __future__ import annotations

import os
import pty
import pwd
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.fake_daemon import FakeDaemon
from penstock.cli.main import penstock
from penstock.demo.lab import Lab

pytestmark = pytest.mark.root

PROGRAM = [sys.executable, "-m", "penstock.cli.main"]
READY = {"ready": True, "reason": ""}
NOT_READY = {"ready": False, "reason": "its slice is missing"}
SLICE = "penstock.slice/penstock-litellm.slice"
EXEC = "os.execvp(sys.argv[1], sys.argv[1:])"
GIVEN_UP = 1 << 12 | 1 << 13 | 1 << 21
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")

ABOUT_ITSELF = """
cat /proc/$$/status; grep ^0:: /proc/$$/cgroup | sed s/^/cgroup:/
printf "fds:"; n=0; while [ $n -lt 512 ]; do [ -e /proc/$$/fd/$n ] && printf " $n"; n=$((n+1)); done; echo
echo "argv: $0 $*"; env | sed "s/^/env_/; s/=/:/"
"""
"""In shell: a user need not be able to read our Python."""


@pytest.fixture(scope="module")
def fake(lab: Lab) -> Iterator[FakeDaemon]:
    """In the directory that the lab sees too; the slice of the workload is there."""
    home = lab.dir / "penstock"
    home.mkdir()
    made = FakeDaemon(home)
    made.write(cgroup=lab.cgroup)
    lab.host.call(os.makedirs, lab.cgroup / SLICE)
    with made:
        yield made


@pytest.fixture(autouse=True)
def _is_ready(fake: FakeDaemon) -> None:
    fake.replies["ready"] = READY


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(lab: Lab, fake: FakeDaemon) -> Run:
    """`penstock run` in the lab."""

    def called(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options["env"] = {"PENSTOCK_RUN": str(fake.run), **options.get("env", {})}
        return lab.host.run([*PROGRAM, "run", *arguments], check=False, **options)

    return called


def seen_by(run: Run, *options: str, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a program in the workload says of itself."""
    done = run(*options, "litellm", "--", "sh", "-c", ABOUT_ITSELF, "-x", "--help", env=env or {})
    assert done.returncode == 0, done.stderr
    return said(done.stdout)


def said(text: str) -> dict[str, str]:
    """Lines `key: value`."""
    parts = (line.partition(":") for line in text.splitlines())
    return {key: value.strip() for key, _, value in parts}


def capabilities(seen: Mapping[str, str]) -> dict[str, int]:
    return {key: int(seen[key], 16) for key in SETS}


def test_it_is_in_the_scope_that_bears_its_pid(lab: Lab, run: Run, fake: FakeDaemon) -> None:
    seen = seen_by(run)
    assert seen["cgroup"] == f"0::/{lab.name}/{SLICE}/run-{seen['Pid']}.scope"
    assert fake.requests[-1].arguments == {"workload": "litellm"}
    assert seen["argv"] == "-x --help"


def test_root_keeps_neither_the_firewall_nor_raw_packets(run: Run) -> None:
    seen = seen_by(run)
    assert seen["Uid"] == seen["Gid"] == "0\t0\t0\t0"
    caps = capabilities(seen)
    assert {key: held & GIVEN_UP for key, held in caps.items()} == dict.fromkeys(SETS, 0)
    assert caps["CapEff"] & 1  # root is root otherwise
    raw = "import socket\ntry: socket.socket(socket.AF_PACKET, 3)\nexcept OSError as e: print(e.errno)"
    assert run("litellm", "--", sys.executable, "-c", raw).stdout == "1\n"


def test_another_user_keeps_nothing(run: Run) -> None:
    seen = seen_by(run, "--user", "nobody")
    nobody = pwd.getpwnam("nobody")
    assert seen["Uid"].split() == [str(nobody.pw_uid)] * 4
    assert seen["Gid"].split() == [str(nobody.pw_gid)] * 4
    assert seen["Groups"] == str(nobody.pw_gid)
    caps = capabilities(seen)
    assert (caps["CapPrm"], caps["CapEff"], caps["CapAmb"]) == (0, 0, 0)
    assert caps["CapBnd"] & GIVEN_UP == 0  # so that no setuid program gets them back
    own = {"HOME": nobody.pw_dir, "USER": "nobody", "LOGNAME": "nobody", "SHELL": nobody.pw_shell}
    assert {key: seen[f"env_{key}"] for key in own} == own


def test_all_groups_of_a_user(run: Run, lab: Lab) -> None:
    """A user who has some: the lab's host has none of its own, so the group file is covered there."""
    groups = lab.dir / "group"
    groups.write_text(Path("/etc/group").read_text() + "one:x:4001:nobody\ntwo:x:4002:root,nobody\n")
    cover = ["unshare", "--mount", "sh", "-c", f'mount --bind {groups} /etc/group; exec "$@"', "sh"]
    env = {"PENSTOCK_RUN": str(lab.dir / "penstock/run")}
    inner = [*PROGRAM, "run", "--user", "nobody", "litellm", "--", "grep", "Groups", "/proc/self/status"]
    found = said(lab.host.run([*cover, *inner], env=env).stdout)["Groups"].split()
    assert found == ["4001", "4002", str(pwd.getpwnam("nobody").pw_gid)]


def test_the_caller_behind_sudo(run: Run) -> None:
    nobody = str(pwd.getpwnam("nobody").pw_uid)
    behind = {"SUDO_UID": nobody, "SUDO_USER": "nobody"}
    assert seen_by(run, env=behind)["Uid"].split()[0] == nobody
    assert seen_by(run, "--user", "root", env=behind)["Uid"].split()[0] == "0"
    assert seen_by(run, env={"SUDO_UID": ""})["Uid"].split()[0] == "0"


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_inheritable_and_ambient_capabilities_do_not_pass(lab: Lab, fake: FakeDaemon, user: str) -> None:
    """From a caller who raised them."""
    raise_them = (
        "import ctypes, os, sys\nlibc = ctypes.CDLL(None)\n"
        "header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()\n"
        "assert libc.capget(header, data) == 0\n"
        "data[2], data[5] = data[1], data[4]\nassert libc.capset(header, data) == 0\n"
        "for n in (0, 12, 13, 21): assert libc.prctl(47, 2, n, 0, 0) == 0\n"
        + EXEC
    )
    inner = [*PROGRAM, "run", "--user", user, "litellm", "--", "cat", "/proc/self/status"]
    env = {"PENSTOCK_RUN": str(fake.run)}
    out = lab.host.run([sys.executable, "-c", raise_them, *inner], env=env).stdout
    caps = capabilities(said(out))
    assert {key: held & GIVEN_UP for key, held in caps.items()} == dict.fromkeys(SETS, 0)
    assert caps["CapAmb"] == 0
    if user != "root":
        assert caps["CapEff"] == caps["CapPrm"] == 0


def test_no_other_descriptor_passes(lab: Lab, fake: FakeDaemon) -> None:
    argv = [*PROGRAM, "run", "litellm", "--", "sh", "-c", ABOUT_ITSELF]
    env = {"PENSTOCK_RUN": str(fake.run)}
    with socket.socket() as ours:
        child = lab.host.popen(argv, env=env, stdout=subprocess.PIPE, pass_fds=(ours.fileno(),))
        assert ours.fileno() < 512, "or the program would not have looked at it"
        assert said(child.communicate(timeout=20)[0])["fds"] == "0 1 2"


def test_missing_standard_descriptors_are_nothing(lab: Lab, fake: FakeDaemon) -> None:
    inner = " ".join([*PROGRAM, "run", "litellm", "--", "readlink", "/proc/self/fd/0", "/proc/self/fd/2"])
    done = lab.host.run(["sh", "-c", f"exec {inner} <&- 2>&-"], env={"PENSTOCK_RUN": str(fake.run)})
    assert done.stdout == "/dev/null\n/dev/null\n"


@pytest.mark.parametrize("which", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK])
def test_a_network_socket_as_standard_descriptor_is_refused(
    lab: Lab, fake: FakeDaemon, which: str, family: socket.AddressFamily
) -> None:
    env = {"PENSTOCK_RUN": str(fake.run)}
    kind = socket.SOCK_RAW if family is socket.AF_NETLINK else socket.SOCK_STREAM
    with socket.socket(family, kind) as ours:
        standard: dict[str, Any] = {which: ours}
        child = lab.host.popen([*PROGRAM, "run", "litellm", "--", "true"], env=env, **standard)
        assert child.wait(20) == 125


def test_a_unix_socket_may_stay(lab: Lab, fake: FakeDaemon) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        argv = [*PROGRAM, "run", "litellm", "--", "echo", "hello"]
        child = lab.host.popen(argv, env={"PENSTOCK_RUN": str(fake.run)}, stdout=theirs)
        assert child.wait(20) == 0
        assert ours.recv(100) == b"hello\n"


@pytest.mark.parametrize(
    ("argv", "status", "text"),
    [
        (("true",), 0, ""),
        (("sh", "-c", "exit 42"), 42, ""),
        (("sh", "-c", "kill -TERM $$"), -signal.SIGTERM, ""),
        (("no-such-program",), 127, "penstock: no-such-program: not found\n"),
        (("/etc/passwd",), 126, "penstock: /etc/passwd: Permission denied\n"),
        (("/",), 126, "penstock: /: Permission denied\n"),
    ],
)
def test_exit_status(run: Run, argv: tuple[str, ...], status: int, text: str) -> None:
    done = run("litellm", "--", *argv)
    assert (done.returncode, done.stderr) == (status, text)


def test_refusals(run: Run, fake: FakeDaemon, lab: Lab) -> None:
    def refused(*arguments: str, **options: Any) -> str:
        done = run(*arguments, "--", "touch", str(lab.dir / "it-ran"), **options)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (125, "", 1), done
        assert not (lab.dir / "it-ran").exists()
        return done.stderr

    assert "there is no user 'nonsense'" in refused("--user", "nonsense", "litellm")
    assert "is no name of a workload" in refused("../others.slice")
    assert "no daemon answers" in refused("litellm", env={"PENSTOCK_RUN": "/nowhere"})
    assert "cannot enter the cgroup: No such file" in refused("ollama")  # ready, and yet without a slice
    fake.replies["ready"] = NOT_READY
    text = refused("litellm")
    assert text == (
        "penstock: litellm is not in force: its slice is missing; see: penstock status; or wait for it: --wait\n"
    )
    fake.replies["ready"] = ("only root may ask the daemon", "")
    assert "only root may ask the daemon" in refused("litellm")


def test_only_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = CliRunner().invoke(penstock, ["run", "litellm", "--", "true"])
    text = "penstock: only root may put a process into a workload; run it with sudo\n"
    assert (done.exit_code, done.stderr) == (125, text)


@pytest.mark.parametrize(
    "arguments", [(), ("litellm",), ("litellm", "true"), ("litellm", "--"), ("a", "b", "--", "c"), ("--", "c")]
)
def test_usage(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(penstock, ["run", *arguments]).exit_code == 2


def test_wait(run: Run, fake: FakeDaemon) -> None:
    answers = [NOT_READY, NOT_READY, READY]
    fake.replies["ready"] = lambda _: answers.pop(0)
    done = run("litellm", "--wait", "--", "echo", "hello")
    assert (done.returncode, done.stdout, answers) == (0, "hello\n", [])
    assert done.stderr == "penstock: waiting for litellm: its slice is missing\n"


def test_signals_are_as_a_shell_leaves_them(lab: Lab, fake: FakeDaemon) -> None:
    show = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]
    argv = [*PROGRAM, "run", "litellm", "--", *show]
    env = {"PENSTOCK_RUN": str(fake.run)}
    blocking = "import os, signal, sys\nsignal.pthread_sigmask(signal.SIG_BLOCK, {15})\n" + EXEC
    out = lab.host.run([sys.executable, "-c", blocking, *argv], env=env).stdout
    # exec of a Python leaves SIGPIPE and SIGXFSZ ignored for the next program, unless somebody undoes it
    assert out == "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
    nohup = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *argv]
    assert lab.host.run(nohup, env=env).stdout.endswith(f"SigIgn:\t{1 << signal.SIGINT - 1:016x}\n")


def test_the_working_directory_stays(run: Run, lab: Lab) -> None:
    assert run("litellm", "--", "pwd", cwd=str(lab.dir)).stdout == f"{lab.dir}\n"


def test_a_terminal_passes(lab: Lab, fake: FakeDaemon) -> None:
    ours, theirs = pty.openpty()
    script = "trap 'echo got it; exit 7' INT; test -t 0 && test -t 1 && echo up; read x"
    argv = ["setsid", "-c", *PROGRAM, "run", "litellm", "--", "sh", "-c", script]
    child = lab.host.popen(
        argv, env={"PENSTOCK_RUN": str(fake.run)}, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    until(ours, b"up\r\n")
    os.write(ours, b"\x03")  # Ctrl-C, from the terminal to its foreground group
    until(ours, b"got it")
    assert child.wait(20) == 7
    os.close(ours)


def until(descriptor: int, wanted: bytes) -> bytes:
    """Read until `wanted` came."""
    data, deadline = b"", time.monotonic() + 20
    while wanted not in data:
        assert select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0], data
        data += os.read(descriptor, 4096)
    return data


def test_a_scope_that_is_swept_away_meanwhile(run: Run, lab: Lab) -> None:
    """The daemon removes scopes that nobody is in."""
    sweeper = lab.host.popen(
        ["sh", "-c", f"while :; do rmdir {lab.cgroup}/{SLICE}/run-*.scope; done"], stderr=subprocess.DEVNULL
    )
    try:
        assert {run("litellm", "--", "true").returncode for _ in range(5)} == {0}
    finally:
        sweeper.kill()
        sweeper.wait()


def test_help_needs_no_kernel(fake: FakeDaemon) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "agent")}
    done = subprocess.run([*PROGRAM, "run", "--help"], env=env, capture_output=True, text=True, timeout=20)
    assert "COMMAND takes the place of penstock" in done.stdout
