"""What the acts are played on: a lab, a witness on each remote host, and the real daemon."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from penstock.demo.acts import Act
from penstock.demo.host import Host
from penstock.demo.lab import Lab
from penstock.demo.recorder import Arrival, Recorder
from penstock.errors import PenstockError

CONFIG = "version: 1\n"


@dataclass(frozen=True, slots=True)
class Observation:
    """One thing that was to be seen, and what was seen."""

    act: str
    name: str
    family: int
    expected: str
    observed: str
    ms: float | None
    ok: bool
    evidence: tuple[str, ...] = field(default=())  # what the remote end wrote down

    def json(self) -> dict[str, Any]:
        """As the JSON output has it."""
        return asdict(self)


class Witness:
    """A recorder on a remote host, of which one asks what came since."""

    def __init__(self, lab: Lab, host: Host) -> None:
        self.host = host
        self._recorder = Recorder(lab, host, ports=(80, 443), packets=True)
        self._seen = 0

    def mark(self) -> None:
        """Forget what came until now."""
        self._seen = len(self._recorder.arrivals())

    def since(self, family: int) -> list[Arrival]:
        """What came since `mark` in that family, packets included."""
        return [a for a in self._recorder.arrivals()[self._seen :] if a.family == family]


class Stage:
    """A lab with witnesses; `penstock` is the command line inside it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.stranger = Witness(lab, lab.remote["stranger"])
        self.registry = Witness(lab, lab.remote["registry"])
        self.env: Mapping[str, str] = {"PENSTOCK_RUN": str(lab.dir / "run")}
        self.program = _program(lab)
        self._daemon: subprocess.Popen[Any] | None = None

    def write_rules(self, act: Act) -> str:
        """Write the rule file of `act`'s workload; return its path and text for the person to read."""
        rules = self.lab.dir / "config/rules.d"
        rules.mkdir(parents=True, exist_ok=True)
        (rules.parent / "penstock.yaml").write_text(CONFIG)
        text = act.rules(self.registry.host)
        (rules / f"{act.workload}.yaml").write_text(text)
        return text

    def start_daemon(self) -> None:
        """Start the daemon on the written rules, and wait until it says that they are in force."""
        folders = {name: self.lab.dir / name for name in ("config", "state", "run", "log")}
        argv = [self.program, "daemon", f"--cgroup={self.lab.cgroup}"]
        argv += [f"--{name}={path}" for name, path in folders.items()]
        log = self.lab.dir / "daemon.log"
        with log.open("w") as output:
            self._daemon = self.lab.host.popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cgroup="daemon.slice"
            )
        done = self.penstock("status", "--wait", "--timeout", "20s")
        if done.returncode != 0:
            words = " / ".join(log.read_text(errors="replace").splitlines()[-3:])
            raise PenstockError(f"the daemon did not come into force: {done.stdout}{done.stderr}", hint=words)

    def penstock(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a penstock command in the lab, whatever its exit status."""
        return self.lab.host.run([self.program, *arguments], env=self.env, check=False, timeout=60)

    def blocked(self, workload: str, address: str) -> bool:
        """Whether the block log has this workload's call to `address`."""
        lines = self.penstock("blocks", "--workload", workload, "--json").stdout.splitlines()
        return any(json.loads(line)["address"] == address for line in lines)

    def shell(self) -> int:
        """Leave the person in a shell in the lab; its exit status."""
        rc = self.lab.dir / "bashrc"
        path = shlex.quote(str(self.lab.dir / "bin"))
        rc.write_text(f"PATH={path}:$PATH\nPS1='penstock lab# '\ncd {shlex.quote(str(self.lab.dir))}\n")
        argv = ["bash", "--rcfile", str(rc), "-i"] if sys.stdin.isatty() else ["bash"]
        env = {**self.env, "BASH_ENV": str(rc)}
        return self.lab.host.popen(argv, env=env).wait()


def _program(lab: Lab) -> str:
    """Make `penstock` of this very source, under its own name, in a directory of the lab."""
    path = lab.dir / "bin/penstock"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m penstock.cli.main "$@"\n')
    path.chmod(0o755)
    return str(path)
