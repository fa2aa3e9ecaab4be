"""`penstock adopt` as it is called, in a lab with a fake daemon; tests/enrol has the packets."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.conftest import Call
from cli.fake_daemon import FakeDaemon
from governed import Actor
from penstock.cli.main import penstock
from penstock.demo.lab import Lab

PROGRAM = [sys.executable, "-m", "penstock.cli.main"]
READY = {"ready": True, "reason": ""}
PYTHON = os.path.realpath(sys.executable)
WORKLOAD = "version: 1\nworkload: {}\nmode: enforce\negress: []\ningress: []\n"
FILES = {
    "rules.d/ours.yaml": f"{WORKLOAD.format('ours')}match: {{exe: {PYTHON}}}\n".encode(),
    "rules.d/other.yaml": f"{WORKLOAD.format('other')}match: {{unit: x.service}}\n".encode(),
}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def fake(lab: Lab) -> Iterator[FakeDaemon]:
    """In the directory that the lab sees too; the slices of the workloads are there."""
    home = lab.dir / "penstock"
    home.mkdir()
    made = FakeDaemon(home)
    for name in ("ours", "other"):
        lab.host.call(os.makedirs, lab.cgroup / f"penstock.slice/penstock-{name}.slice")
    with made:
        yield made


@pytest.fixture(autouse=True)
def _is_ready(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("root"):
        fake, lab = request.getfixturevalue("fake"), request.getfixturevalue("lab")
        fake.write(FILES, cgroup=lab.cgroup)
        fake.replies["ready"] = READY


@pytest.fixture
def run(lab: Lab, fake: FakeDaemon) -> Run:
    """`penstock adopt` in the lab."""

    def called(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        argv = [*PROGRAM, "adopt", *map(str, arguments)]
        return lab.host.run(argv, check=False, env={"PENSTOCK_RUN": str(fake.run)}, **options)

    return called


@pytest.fixture
def somebody(lab: Lab) -> Iterator[Actor]:
    """A loose process, this very Python."""
    with Actor(lab.host, user="nobody") as actor:
        yield actor


_held: list[socket.socket] = []


def hold(family: int, kind: int, protocol: int = 0) -> None:
    _held.append(socket.socket(family, kind, protocol))


def where() -> str:
    return Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2]


@pytest.mark.root
def test_into_the_workload_of_its_executable(lab: Lab, fake: FakeDaemon, run: Run, somebody: Actor) -> None:
    somebody(hold, socket.AF_INET, socket.SOCK_STREAM)
    pid = somebody(os.getpid)
    done = run(pid)
    assert (done.returncode, done.stderr) == (0, "")
    scope = f"penstock.slice/penstock-ours.slice/adopt-{pid}.scope"
    first, process, *rest = done.stdout.splitlines()
    assert first == f"1 process moved into ours, as {scope}:"
    assert process.split()[0] == str(pid)
    assert " ".join(rest).startswith("1 socket closed, which no rule would have governed")
    assert somebody(where) == f"/{lab.name}/{scope}"
    assert fake.requests[-1].arguments == {"workload": "ours"}


@pytest.mark.root
def test_into_a_workload_by_name_as_json(lab: Lab, run: Run, somebody: Actor) -> None:
    pid = somebody(os.getpid)
    said = json.loads(run(pid, "--workload", "other", "--json").stdout)
    assert said.pop("processes")[0]["pid"] == pid
    assert said == {
        "v": 1,
        "workload": "other",
        "scope": f"penstock.slice/penstock-other.slice/adopt-{pid}.scope",
        "sockets_closed": 0,
        "left": [],
        "warnings": [],
    }


@pytest.mark.root
def test_what_is_not_governed_is_told(lab: Lab, run: Run) -> None:
    with Actor(lab.host) as actor:
        actor(hold, socket.AF_PACKET, socket.SOCK_RAW)
        done = run(actor(os.getpid))
    assert done.returncode == 1
    assert done.stdout.startswith("1 process moved into ours")
    warning, left = done.stderr.splitlines()
    assert "keeps CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN" in warning
    assert left.startswith("penstock: not governed: process ")
    assert left.endswith("a socket that cannot be destroyed (packet)")


@pytest.mark.root
def test_refusals(lab: Lab, fake: FakeDaemon, run: Run, somebody: Actor) -> None:
    pid = somebody(os.getpid)

    def refused(*arguments: object, status: int = 1) -> str:
        done = run(*arguments)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (status, "", 1), done
        assert somebody(where) == f"/{lab.name}/others.slice"
        return done.stderr

    assert "there is no process 4194304" in refused(4194304)
    assert "the policy has no workload `nonsense`" in refused(pid, "--workload", "nonsense")
    fake.write({"rules.d/other.yaml": FILES["rules.d/other.yaml"]}, cgroup=lab.cgroup)
    text = f"no workload of the policy matches {PYTHON}; say which: --workload NAME (there are other)"
    assert text in refused(pid)
    fake.write(FILES, cgroup=lab.cgroup)
    fake.replies["ready"] = {"ready": False, "reason": "its slice is missing"}
    assert "ours is not in force: its slice is missing; see: penstock status" in refused(pid)
    fake.replies["ready"] = b"nonsense\n"
    assert "no daemon answers" in refused(pid, status=2)


def test_only_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = CliRunner().invoke(penstock, ["adopt", "7"])
    text = "penstock: only root may put a process into a workload; run it with sudo\n"
    assert (done.exit_code, done.stderr) == (1, text)


@pytest.mark.parametrize("arguments", [(), ("x",), ("0",), ("-1",), ("1", "2")])
def test_usage(call: Call, arguments: tuple[str, ...]) -> None:
    assert call("adopt", *arguments).exit_code == 2


def test_no_daemon_ever_ran_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    done = CliRunner().invoke(penstock, ["--run", str(tmp_path), "adopt", "7"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no daemon has run here yet" in done.stderr
