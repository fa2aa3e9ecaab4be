"""What is left of a process that gave up its rights: nothing that it could do, and no way back."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.resolver import rights

AGENT = Path(rights.__file__).parents[2]

TRY = """
import ctypes, json, os, resource, socket, sys
from penstock.resolver import rights
rights.give_up()
said = {}
def attempt(name, work):
    try:
        work()
        said[name] = "ok"
    except (OSError, ValueError) as e:
        said[name] = type(e).__name__
libc = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
def raw():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
def more():
    resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))
def fork():
    if os.fork() == 0:
        os._exit(0)
attempt("become root", lambda: os.setuid(0))
attempt("take groups", lambda: os.setgroups([0]))
attempt("fork", fork)
attempt("open a raw socket", raw)
attempt("read root's file", lambda: open("/etc/shadow").close())
attempt("raise a limit", more)
attempt("make a namespace", lambda: checked(libc.unshare(0x40000000)))
attempt("listen", lambda: socket.socket().bind(("127.0.0.1", 0)))
status = open("/proc/self/status").read()
said["status"] = {line.partition(":")[0]: line.split()[1:] for line in status.splitlines()}
said["dumpable"] = libc.prctl(3, 0, 0, 0, 0)
sys.stdout.write(json.dumps(said))
"""


def run(text: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-s", "-P", "-c", text]
    env = {"PYTHONPATH": str(AGENT)}
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30)


@pytest.mark.root
def test_root_becomes_nobody_for_ever() -> None:
    done = run(TRY)
    assert done.stderr == ""
    said = json.loads(done.stdout)
    status = said.pop("status")
    assert said == {
        "become root": "PermissionError",
        "take groups": "PermissionError",
        "fork": "BlockingIOError",
        "open a raw socket": "PermissionError",
        "read root's file": "PermissionError",
        "raise a limit": "ValueError",
        "make a namespace": "PermissionError",
        "listen": "ok",
        "dumpable": 0,
    }
    assert status["Uid"] == status["Gid"] == [str(rights.ID)] * 4
    assert status["Groups"] == []
    assert {status[key][0] for key in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == ["1"]


@pytest.mark.root
def test_without_the_right_to_change_its_user_it_goes_no_further() -> None:
    drop = (
        "import ctypes, struct\n"
        "head = struct.pack('=Ii', 0x20080522, 0)\n"
        "none = ctypes.create_string_buffer(24)\n"
        "assert ctypes.CDLL(None).capset(head, none) == 0\n"
        "from penstock.errors import PenstockError\n"
        "from penstock.resolver import rights\n"
        "try:\n    rights.give_up()\n"
        "except PenstockError as e:\n    print(e)\n"
        "else:\n    print('went on')\n"
    )
    done = run(drop)
    assert done.stdout == "the resolver cannot give up its rights: Operation not permitted\n", done.stderr


def test_somebody_else_stays_who_he_is_and_keeps_no_right() -> None:
    text = (
        "import os\n"
        "from penstock.resolver import rights\n"
        "if os.getuid() == 0: os.setgroups([]), os.setgid(65534), os.setuid(65534)\n"
        "before = os.getresuid(), os.getresgid()\n"
        "rights.give_up()\n"
        "print((os.getresuid(), os.getresgid()) == before)"
    )
    done = run(text)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.parametrize("handler", ["signal.SIG_DFL", "lambda *_: (os.write(1, b'told'), os._exit(0))"])
def test_it_is_told_when_whoever_started_it_dies(handler: str) -> None:
    """Also when that one is killed and its link is held open by somebody else."""
    child = (
        "import os, signal, time\n"
        "from penstock.resolver import rights\n"
        f"signal.signal(signal.SIGTERM, {handler})\n"
        "rights.give_up()\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-s', '-P', '-c', {child!r}])\n"
        "time.sleep(60)\n"
    )
    argv = [sys.executable, "-c", parent]
    with subprocess.Popen(argv, env={"PYTHONPATH": str(AGENT)}, stdout=subprocess.PIPE) as started:
        assert started.stdout
        assert started.stdout.readline() == b"ready\n"
        assert not select.select([started.stdout], [], [], 0)[0]
        started.kill()
        assert select.select([started.stdout], [], [], 5)[0]
        assert started.stdout.read() == (b"told" if "told" in handler else b"")  # and both have ended
