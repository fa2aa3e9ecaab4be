"""The two daemons that the same tests are run on: the fake one of tests/cli, and the real one in a lab."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.fake_daemon import FILES, FakeDaemon, in_force
from conftest import require_root
from penstock.cli.client import ask
from penstock.core.wire import Json, Message
from penstock.demo.lab import Lab

Ask = Callable[..., Json]


@pytest.fixture(scope="module", params=["fake", pytest.param("real", marks=pytest.mark.root)])
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Ask it: `asked("ready", workload="w")`."""
    make = _fake if request.param == "fake" else _real
    yield from make(tmp_path_factory.mktemp("daemon"))


def _fake(home: Path) -> Iterator[Ask]:
    fake = FakeDaemon(home, in_force())
    with fake:
        yield lambda command, **arguments: ask(fake.run, Message(command, arguments))


def _real(home: Path) -> Iterator[Ask]:
    require_root()
    program = [sys.executable, "-m", "penstock.cli.main"]
    with Lab(remotes={}) as lab:
        for name, data in FILES.items():
            path = lab.dir / "config" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        run = lab.dir / "run"
        argv = [*program, "daemon", f"--cgroup={lab.cgroup}"]
        argv += [f"--{name}={lab.dir / name}" for name in ("config", "state", "run", "log")]
        with (home / "daemon.log").open("w") as log:
            lab.host.popen(argv, stdout=log, stderr=log, cgroup="daemon.slice")
        # not `status --wait`: the policy has a rule that is not yet enforced
        lab.host.run([*program, "--run", str(run), "run", "--wait", "litellm", "--", "true"])
        yield lambda command, **arguments: lab.host.call(ask, run, Message(command, arguments))
