"""The acts: each one starts a server, has somebody misuse it, and says whom it then called.

An act knows nothing of penstock: `prefix` is what stands before the server's command (`penstock run W --`, or
nothing), and `attack` only makes the server call somebody.  Whether the call arrived, `story` asks the other end.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.demo import cache, stand_in
from penstock.demo.host import Host
from penstock.demo.lab import Lab
from penstock.demo.llama import HUB, LlamaServer, fetch
from penstock.demo.phone_home import CALL_AFTER, VENDOR, OnnxProgram, install
from penstock.errors import PenstockError

LOOPBACK = {4: "127.0.0.1", 6: "::1"}
"""Where the request comes from and goes to: any process of the host may send it."""


@dataclass(frozen=True, slots=True)
class Call:
    """The server was made to call somebody: how long until it knew what came of it, and its own words."""

    ms: float
    said: str


class Act(ABC):
    """One server and one way to misuse it."""

    key: str
    title: str  # a heading for the person
    workload: str
    port: int  # where the server calls
    listens: int  # 0: it does not
    calls: str = ""  # the name that it calls, if it calls a name
    explains: str  # what is about to happen
    registry: bool = True  # whether its rules allow the registry, and it can be made to call there
    unasked = False  # it calls by itself, seconds after it was started

    def prepare(self, say: cache.Say) -> None:  # noqa: B027 - most have nothing to prepare
        """Download what is needed; PenstockError when that cannot be had."""

    @abstractmethod
    def start(self, lab: Lab, prefix: Sequence[str], env: Mapping[str, str]) -> None:
        """Start the server in the lab and wait until it serves."""

    @abstractmethod
    def attack(self, lab: Lab, target: Host, family: int, seen: Callable[[], bool]) -> Call:
        """Make the server call `target`, and wait until it has.

        A server that calls by itself does not tell; then `seen` does, if it can.
        """

    @abstractmethod
    def request(self, target: Host, family: int) -> str:
        """The request, as a person would type it."""

    @abstractmethod
    def stop(self) -> None:
        """End the server."""

    def rules(self, registry: Host) -> str:
        """The rule file of the workload."""
        addresses = ", ".join(f'"{a}"' for a in registry.addresses)
        egress = [f"  - to: [{addresses}]", f"    ports: [{self.port}]", "    reason: the model registry"]
        ingress = [f"  - ports: [{self.listens}]", '    from: [127.0.0.1, "::1"]']
        return "\n".join(
            [
                "version: 1",
                f"workload: {self.workload}",
                "mode: enforce",
                *(["egress:", *egress] if self.registry else ["egress: []"]),
                *(["ingress:", *ingress] if self.listens else ["ingress: []"]),
                "",
            ]
        )


class Pull(Act):
    """Ollama's `POST /api/pull`, on a stand-in."""

    key = "pull"
    title = "A model server that anybody may tell to pull a model"
    workload = "ollama"
    port = 80
    listens = stand_in.PORT
    explains = (
        "The server is a stand-in for Ollama that pulls as Ollama does: the model's name says whom to call, "
        "and nobody is asked for a password."
    )
    _process: subprocess.Popen[Any]

    def start(self, lab: Lab, prefix: Sequence[str], env: Mapping[str, str]) -> None:
        """Start the stand-in."""
        argv = [sys.executable, "-m", "penstock.demo.stand_in", str(self.listens)]
        self._process = lab.host.popen([*prefix, *argv], stdout=subprocess.PIPE, env=env)
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], 20)
        if not ready or self._process.stdout.readline() != "ready\n":
            raise PenstockError("the stand-in for Ollama did not start")

    def attack(self, lab: Lab, target: Host, family: int, seen: Callable[[], bool]) -> Call:
        """One POST."""
        start = time.monotonic()
        lines = lab.host.call(_post, LOOPBACK[family], self._model(target, family))
        ms = (time.monotonic() - start) * 1000
        return Call(lines[-1].get("ms", ms), str(lines[-1].get("error") or lines[-1].get("status")))

    def request(self, target: Host, family: int) -> str:
        """As curl."""
        body = json.dumps({"model": self._model(target, family), "insecure": True})
        return f"curl http://localhost:{self.listens}/api/pull -d '{body}'"

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()

    def _model(self, target: Host, family: int) -> str:
        address = target.address(family)
        return f"{f'[{address}]' if family == 6 else address}:{self.port}/acme/model"


class Hub(Act):
    """llama-server's `POST /models`."""

    key = "hub"
    title = "The same on a real server: llama-server in router mode"
    workload = "llama"
    port = 443
    listens = 9931
    calls = HUB
    explains = (
        "One unauthenticated POST /models makes it call a hub. In the lab the hosts file decides where "
        f"{HUB} is: at the stranger's address, or at the registry's."
    )
    _server: LlamaServer
    _count = 0

    def prepare(self, say: cache.Say) -> None:
        """Fetch llama-server."""
        self._root = fetch(say)

    def start(self, lab: Lab, prefix: Sequence[str], env: Mapping[str, str]) -> None:
        """Start llama-server."""
        self._server = LlamaServer(lab, self._root, prefix, env)

    def attack(self, lab: Lab, target: Host, family: int, seen: Callable[[], bool]) -> Call:
        """One POST, with the hub's name leading to `target`; the server asks the hub before it answers."""
        lab.pin({HUB: [target.address(family)]})
        self._count += 1
        model = f"someone/repo{self._count}"
        start = time.monotonic()
        self._server.load(LOOPBACK[family], model)
        ms = (time.monotonic() - start) * 1000
        self._server.ended(model, 20)
        return Call(ms, "")

    def request(self, target: Host, family: int) -> str:
        """As curl."""
        return f"""curl http://localhost:{self.listens}/models -d '{{"model": "someone/repo"}}'"""

    def stop(self) -> None:
        """End it."""
        self._server.stop()


class PhoneHome(Act):
    """A library that calls its vendor."""

    key = "phone-home"
    title = "A library that calls its vendor, unasked"
    workload = "embedder"
    port = 443
    listens = 0
    calls = VENDOR
    registry = False
    unasked = True
    explains = (
        f"A program that only imports onnxruntime; about {CALL_AFTER} seconds later the library calls "
        f"{VENDOR}. In the lab the hosts file puts that name at the stranger's address."
    )

    def prepare(self, say: cache.Say) -> None:
        """Install onnxruntime into the cache."""
        self._packages = install(say)

    def start(self, lab: Lab, prefix: Sequence[str], env: Mapping[str, str]) -> None:
        """Nothing yet: the program is started anew for each family."""
        self._prefix, self._env = prefix, env

    def attack(self, lab: Lab, target: Host, family: int, seen: Callable[[], bool]) -> Call:
        """Import, and wait for the first call home to have come and gone."""
        lab.pin({VENDOR: [target.address(family)]})
        program = OnnxProgram(lab, self._packages, self._prefix, self._env)
        start = time.monotonic()
        program.wait(seen, CALL_AFTER + 8)
        ms = (time.monotonic() - start) * 1000
        program.stop()
        return Call(ms, f"{ms / 1000:.0f} s after import")

    def request(self, target: Host, family: int) -> str:
        """All that the program does."""
        return 'python -c "import onnxruntime"'

    def stop(self) -> None:
        """It is stopped after each attack."""


ACTS: Mapping[str, type[Act]] = {act.key: act for act in (Pull, Hub, PhoneHome)}
DEFAULT_ACTS = ("pull", "hub")


def _post(address: str, model: str) -> list[dict[str, Any]]:
    host = f"[{address}]" if ":" in address else address
    body = json.dumps({"model": model, "insecure": True}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{host}:{stand_in.PORT}/api/pull", data=body, timeout=10) as answer:
        return [json.loads(line) for line in answer]
