"""A host with workloads that have rules by name, and the outside that these names lead to."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from hosts import echo, installed
from hosts.host import Host
from hosts.hub import Hub, give_addresses, trusted_by_llama
from hosts.installed import Installed
from hosts.llama import UNIT as LLAMA
from hosts.llama import install_llama, wait_serving
from hosts.outside import DNS, REGISTRY
from hosts.probe import Probe, install_probe
from hosts.resolvers import PROGRAM, install_resolvers, resolve
from hosts.wire import Packet
from hosts.world import World

PORT = 8000
"""Where every address of the outside answers TCP with what it heard."""
SHARED = ("203.0.113.30", "2001:db8:5::30")
LEAVING = ("203.0.113.31", "2001:db8:5::31")
ALLOWED, REFUSED = "registry.example", "stranger.example"

HUB_RULES = """\
version: 1
workload: hub
mode: enforce
match: {unit: llama-server.service}
egress:
  - use: huggingface
ingress:
  - ports: [8080]
    from: [127.0.0.1, "::1"]
"""
ASKER_RULES = """\
version: 1
workload: asker
mode: enforce
match: [{unit: asker.service}, {unit: early.service}]
egress:
  - name: registry
    to: [registry.example, later.example]
    ports: [443, 8000]
  - name: shared
    to: shared.example
    ports: [443, 8000]
  - name: wild
    to: "*.any.example"
    ports: [8000]
"""
LEAVING_RULE = """\
  - name: leaving
    to: leaving.example
    ports: [8000]
"""
OTHER_RULES = """\
version: 1
workload: other
mode: enforce
match: {unit: other.service}
egress:
  - to: [shared.example]
    ports: [443, 8000]
"""
BUSY_RULES = """\
version: 1
workload: busy
mode: enforce
match: {{unit: busy.service}}
egress:
  - to: [{names}]
    ports: [8000]
"""
INGRESS = "ingress: []\n"
EARLY = "/srv/early"
BOOT_NAME = f"boot.{REFUSED}"
EARLY_UNIT = f"""\
[Unit]
Before=penstock.service
[Service]
ExecStart=/usr/bin/python3 -I {PROGRAM}
StandardInput=data
StandardInputText=[["early", "{EARLY}", "{DNS[0]}", "{BOOT_NAME}", "{ALLOWED}"]]
[Install]
WantedBy=multi-user.target
"""


class Named:
    """An installed host; `hub` is llama-server there, `asker`, `other` and `busy` are probes."""

    def __init__(self, world: World, hub: Hub, at: Installed, busy: Sequence[str]) -> None:
        self.world, self.hub, self.installed, self.busy_names = world, hub, at, busy
        self.host: Host = at.host
        self.probes: dict[str, Probe] = {}
        self._cgroups: dict[str, str] = {}

    def set_up(self) -> None:
        """Units, rules, and everything in force."""
        host = self.host
        install_resolvers(host)
        self.hub.trusted_by(host)
        install_llama(host, start=False)
        trusted_by_llama(host)
        for number, name in enumerate(("asker", "other", "busy")):
            self.probes[name] = install_probe(host, f"{name}.service", port=7100 + number, start=False)
        host.write("/etc/systemd/system/early.service", EARLY_UNIT)
        host.write("/etc/penstock/rules.d/hub.yaml", HUB_RULES)
        self.asker_rules(leaving=True)
        host.write("/etc/penstock/rules.d/other.yaml", OTHER_RULES + INGRESS)
        busy = BUSY_RULES.format(names=", ".join(self.busy_names))
        host.write("/etc/penstock/rules.d/busy.yaml", busy + INGRESS)
        for unit in (LLAMA, "early.service", *(probe.unit for probe in self.probes.values())):
            host.run(["penstock", "protect", unit])
        host.run(["penstock", "apply"])
        host.run(["systemctl", "start", LLAMA])
        for probe in self.probes.values():
            probe.systemctl("start")
        wait_serving(host)
        self.installed.wait_for(lambda: self.installed.enforcing("hub", "asker", "other", "busy"))

    def asker_rules(self, *, leaving: bool) -> None:
        """Write them; not applied."""
        text = ASKER_RULES + (LEAVING_RULE if leaving else "") + INGRESS
        self.host.write("/etc/penstock/rules.d/asker.yaml", text)

    def cgroup(self, name: str) -> str:
        """Of that unit."""
        if name not in self._cgroups:
            self._cgroups[name] = self.installed.show(f"{name}.service", "ControlGroup")[0].lstrip("/")
        return self._cgroups[name]

    def resolve(self, name: str, *orders: Sequence[Any], timeout: float = 60) -> list[dict[str, Any]]:
        """Orders of `resolve_program`, in the unit of that workload, in its mount namespace."""
        within = ["nsenter", "-t", self.installed.show(f"{name}.service", "MainPID")[0], "-m", "--"]
        return resolve(self.host, self.cgroup(name), *orders, timeout=timeout, within=within)

    def start(self, name: str, order: Sequence[Any]) -> subprocess.Popen[str]:
        """Have that order begun in that workload's cgroup; what it answers is a list, on its standard output."""
        argv, pipe = ["python3", "-I", PROGRAM], subprocess.PIPE
        child: subprocess.Popen[str] = self.host.popen(argv, cgroup=self.cgroup(name), stdin=pipe, stdout=pipe)
        assert child.stdin is not None
        child.stdin.write(json.dumps([order]))
        child.stdin.close()
        return child

    def early(self) -> dict[str, float]:
        """What the unit was told that asks from boot on; empty before it began."""
        return dict(json.loads(self.host.read(EARLY))) if self.host.exists(EARLY) else {}

    def beside(self, *orders: Sequence[Any]) -> list[dict[str, Any]]:
        """The same, as nobody's."""
        return resolve(self.host, "test.scope", *orders)

    def asked(self, since: int) -> list[tuple[str, str]]:
        """What this host asked the name server after its first `since` questions: type and name."""
        words = [line.split() for line in self.world.outside.queries()[since:]]
        return [(w[0], w[1]) for w in words if w[2] in self.host.addresses]

    def questions(self) -> int:
        """How many the name server got so far."""
        return len(self.world.outside.queries())

    def left(self, since: int) -> list[Packet]:
        """What left the host but for questions to its name server."""
        seen = self.world.outside.seen(self.host.name, since=since)
        return [p for p in seen if not (p.destination in DNS and p.port == 53)]

    def blocks(self, *words: str) -> list[dict[str, Any]]:
        """`penstock blocks --json`."""
        text = self.host.run(["penstock", "blocks", "--json", *words]).stdout
        return [json.loads(line) for line in text.splitlines()]

    def resolver(self) -> list[int]:
        """The resolver's processes."""
        text = self.host.sh("cat /sys/fs/cgroup/penstock.slice/resolver/cgroup.procs 2>/dev/null || true")
        return [int(word) for word in text.split()]

    def wait_answered(self, name: str, asked: str, timeout: float = 15) -> float:
        """Return when a look-up of `asked` succeeds in that workload; after how many seconds."""
        start = time.monotonic()
        self.installed.wait_for(lambda: self.resolve(name, ("getaddrinfo", asked))[0]["addresses"], timeout)
        return time.monotonic() - start


def outside(world: World, busy: int) -> tuple[Hub, list[str]]:
    """A hub, an echo on every address, and the names of the rules: `busy` of them, with addresses of their own."""
    hub = Hub(world, names=[ALLOWED])
    give_addresses(world, [*SHARED, *LEAVING, "203.0.113.128/25", "2001:db8:f::/64"])
    argv = [sys.executable, echo.__file__, str(PORT), str(PORT), "0.0.0.0", "::"]
    served = world.lab.host.popen(argv, stdout=subprocess.PIPE)
    assert served.stdout is not None
    assert served.stdout.readline() == "ready\n"
    names = {f"f{n}.first.example": (f"203.0.113.{128 + n % 120}", f"2001:db8:f::{n + 1:x}") for n in range(busy)}
    more = {"shared.example": SHARED, "leaving.example": LEAVING, "later.example": REGISTRY}
    world.outside.names({**names, **more})
    return hub, list(names)


def on(world: World, release: str, hub: Hub, busy: Sequence[str]) -> Named:
    """A host of that release, with everything in force."""
    made = Named(world, hub, installed.boot(world, f"n-{release}", release), busy)
    made.set_up()
    return made
