"""A host with penstock installed from a bundle, and what tests ask and do there over and over."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any, TypeVar

from hosts import bundle, echo, hammer, rootfs
from hosts.first import Shot, program
from hosts.host import Host
from hosts.outside import REGISTRY, STRANGER
from hosts.world import World
from penstock.enrol.installed import LIBRARY, MANIFEST

T = TypeVar("T")

OPEN, CLOSED = 8080, 9090
"""Ports that governed services of these tests listen on: one that their rules open, one that they do not."""
TCP, UDP = 7443, 7000
"""Where they connect to, and where they send datagrams: who answers there stands a load, see `hosts.echo`."""
BUILT = "/mnt/built"
"""Where a host keeps the program for the next time."""
LAN = '[198.18.1.0/24, "fd00:1::/64"]'

RULES = f"""\
version: 1
workload: {{name}}
mode: enforce
match: {{{{unit: "{{unit}}"}}}}
egress:
  - to: [{REGISTRY[0]}, "{REGISTRY[1]}"]
    ports: [{TCP}, {UDP}/udp]
ingress:
  - ports: [{OPEN}, {OPEN}/udp]
    from: {LAN}
"""
"""The registry on two ports out, the local network on one port in."""

UNIT = """\
[Unit]
StartLimitIntervalSec=0
{unit}
[Service]
ExecStart={command}
{service}
[Install]
WantedBy={wanted_by}
"""


def shots(place: tuple[str, str]) -> list[Shot]:
    """One of each protocol and family to the registry or the stranger."""
    return [Shot(protocol, a, port) for a in place for protocol, port in (("tcp", TCP), ("udp", UDP))]


ALLOWED, DENIED = shots(REGISTRY), shots(STRANGER)


class Installed:
    """A host on which penstock runs."""

    def __init__(self, world: World, host: Host) -> None:
        self.world = world
        self.host = host
        self.sh = host.sh

    def install(self) -> None:
        """Install."""
        complete(self.host)

    def change(self, version: str) -> float:
        """Bring the host to that version; how long it took, in seconds."""
        return bundle.install(self.host, version)

    # --- units and rules ---

    def hammer(self, name: str, *, service: str = "", file: str = "", **more: Any) -> None:
        """A unit that tries everything in its first instructions and then every millisecond, and serves two ports.

        What it did is in `file`, or /srv/hammer/NAME, see `hammered`; `more` is for the hammer, see there.
        """
        stem = name.partition(".")[0]
        if not self.host.exists("/opt/hammer.py"):
            self.host.copy_in(Path(hammer.__file__), "/opt/hammer.py")
        self.sh("mkdir -p /srv/hammer")
        often, seldom = ([astuple(shot) for shot in some] for some in (DENIED, ALLOWED))
        wanted = {"doors": [OPEN, CLOSED], "often": often, "seldom": seldom, **more}
        file = file or f"/srv/hammer/{stem}"
        argv = ["/usr/bin/python3", "-S", "-E", "/opt/hammer.py", file, json.dumps(wanted)]
        self.program(f"/opt/{stem}", [*DENIED, *ALLOWED], argv)
        self.unit(name, f"/opt/{stem}", service=service)

    def hammered(self, name: str) -> dict[str, float]:
        """What the hammer of that unit, or of that file, says that it did; empty before it began.

        Also while the host is off.
        """
        path = name if name.startswith("/") else f"/srv/hammer/{name.partition('.')[0]}"
        found: dict[str, float] = json.loads(self.host.peek(path) or "{}")
        return found

    @contextlib.contextmanager
    def nothing_gets_out(self, name: str, rounds: int = 100) -> Iterator[None]:
        """Meanwhile the hammer of that unit tried and tried, and what came on the wire is what its rules allow."""

        def done() -> float:
            return self.hammered(name).get("rounds", 0)

        def beat() -> None:
            until = done() + rounds
            self.host.wait_until(lambda: done() >= until)

        outside, mark = self.world.outside, self.world.outside.mark()
        beat()
        yield
        beat()
        seen = outside.seen(self.host.name, since=mark)
        escaped = [p for p in seen if p.destination in STRANGER]
        assert escaped == [], f"{len(escaped)} packets, the first {escaped[0]}"
        for shot in ALLOWED:
            assert any((p.destination, p.port) == (shot.address, shot.port) for p in seen), f"the control: {shot}"

    def program(self, path: str, what: Iterable[Shot], then: Iterable[str] = ()) -> None:
        """Put a program there that shoots with its first instructions; see `hosts.first`."""
        made = self.world.directory / f"{self.host.name}.program"
        made.write_bytes(program(list(what), list(then)))
        made.chmod(0o755)
        self.host.copy_in(made, path)

    def unit(
        self, name: str, command: str, *, unit: str = "", service: str = "", wanted_by: str = "multi-user.target"
    ) -> None:
        """Write a unit file, and let systemd read it."""
        text = UNIT.format(command=command, unit=unit, service=service, wanted_by=wanted_by)
        self.host.write(f"/etc/systemd/system/{name}", text)
        self.sh("systemctl daemon-reload")

    def rules(self, name: str, unit: str, text: str = RULES) -> None:
        """Write the rule file of a workload."""
        self.host.write(f"/etc/penstock/rules.d/{name}.yaml", text.format(name=name, unit=unit))

    def enforce(self, name: str, unit: str, *, dropin: bool = True, text: str = RULES) -> None:
        """Govern a unit by `RULES`, with the drop-in that gives it its slice or without."""
        self.rules(name, unit, text)
        if dropin:
            self.host.run(["penstock", "protect", unit])
        self.host.run(["penstock", "apply"])

    # --- what is so ---

    def status(self) -> dict[str, Any]:
        """`penstock status --json`."""
        found: dict[str, Any] = json.loads(self.host.run(["penstock", "status", "--json"], check=False).stdout)
        return found

    def workload(self, name: str) -> dict[str, Any]:
        """What status says of one."""
        found: dict[str, Any] = next(one for one in self.status()["workloads"] if one["name"] == name)
        return found

    def findings(self, code: str, workload: str | None = None) -> list[dict[str, Any]]:
        """Those of that code, about that workload."""
        found = self.status()["findings"]
        return [one for one in found if one["code"] == code and workload in (None, one["workload"])]

    def wait_for(self, condition: Callable[[], T], timeout: float = 10) -> T:
        """The first answer that is true; AssertionError with the status after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            assert time.monotonic() < deadline, f"not in {timeout} s: {found!r}; {self.status()}"
            time.sleep(0.02)
        return found

    def enforcing(self, *names: str) -> bool:
        """Whether status says so of these workloads, and that a daemon runs that found the kernel in agreement."""
        said = self.status()
        ways = {one["name"]: one["egress"] for one in said["workloads"]}
        return bool(said["kernel"]["agrees"]) and all(ways.get(name) == "enforcing" for name in names)

    def show(self, unit: str, *properties: str) -> list[str]:
        """Properties of a unit."""
        text = self.host.run(["systemctl", "show", unit, *(f"--property={name}" for name in properties)]).stdout
        values = dict(line.split("=", 1) for line in text.splitlines())
        return [values[name] for name in properties]

    def running(self, unit: str) -> tuple[str, str, int]:
        """The unit's main process, its cgroup, and that cgroup's id: what no upgrade may change."""
        pid, cgroup = self.show(unit, "MainPID", "ControlGroup")
        assert pid != "0", f"{unit} does not run"
        return pid, cgroup, int(self.host.run(["stat", "-c", "%i", f"/sys/fs/cgroup{cgroup}"]).stdout)


def boot(world: World, name: str, release: str) -> Installed:
    """Boot a host on which penstock is installed; the first time in a world, start who answers."""
    if not world.hosts:
        argv = [sys.executable, echo.__file__, str(TCP), str(UDP), *REGISTRY, *STRANGER]
        answers = world.lab.host.popen(argv, stdout=subprocess.PIPE)
        assert answers.stdout is not None
        assert answers.stdout.readline() == "ready\n"
    return Installed(world, world.boot(name, release, image=image(release)))


def complete(host: Host) -> None:
    """Complete an installation that had built the program: building it takes longer than all the rest."""
    made = image(host.release) / LIBRARY
    if not host.exists(BUILT):
        host.copy_in(made / "releases", BUILT)
    title = (made / MANIFEST).read_text().splitlines()[0]
    host.write(f"/{LIBRARY}/{MANIFEST}", f"{title}\n/{LIBRARY}/\n")
    host.run(["cp", "-al", BUILT, f"/{LIBRARY}/releases"])
    bundle.install(host)


def image(release: str) -> Path:
    """What an installation adds to a host's disk, for `World.boot`: most tests are not about installing."""
    folder = rootfs.cache() / "images"
    folder.mkdir(exist_ok=True)
    return rootfs.kept(release, folder / f"{bundle.made(release).name}-{rootfs.base(release).name}", _install)


def _install(release: str, path: Path) -> None:
    """Install on a host of its own and switch it off."""
    with World() as world:
        host = world.boot("image", release)
        bundle.install(host)
        host.power_off()
        whole = world.directory / "saved"  # beside the hosts: nobody takes it for an old image meanwhile
        host.save(whole)
        whole.rename(path)
