"""A service on a booted host that connects where a test says; see `install_probe`.

What it is, is in probe_program.py.  Orders go over a unix socket: no firewall is between the test and it.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hosts.host import Host

PROGRAM = "/usr/local/lib/probe_program.py"
PORT = 7000

UNIT_TEXT = """\
[Unit]
Description=Does as it is told
StartLimitIntervalSec=0
{unit_lines}
[Service]
ExecStart=/usr/bin/python3 -I {program} /run/{name}/orders {port} {hammer}
RuntimeDirectory={name}
{service_lines}
[Install]
WantedBy={wanted_by}
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an order: "ok", "timeout" or the name of an errno; milliseconds; what was answered."""

    outcome: str
    ms: float
    reply: str = ""
    id: int = 0
    """Of a connection that is held."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe that was installed on `host` as `unit`, and listens on `port` (TCP and UDP, both families)."""

    host: Host
    unit: str
    port: int

    @property
    def name(self) -> str:
        """Of the unit, without its suffix."""
        return self.unit.removesuffix(".service")

    def tcp(self, address: str, port: int, timeout: float = 3, hold: bool = False) -> Outcome:
        """Have it connect, say hello and wait for an answer; with `hold` the connection stays for `send`."""
        return self._outcome({"do": "tcp", "address": address, "port": port, "timeout": timeout, "hold": hold})

    def udp(self, address: str, port: int, timeout: float = 3, hold: bool = False) -> Outcome:
        """The same with datagrams."""
        return self._outcome({"do": "udp", "address": address, "port": port, "timeout": timeout, "hold": hold})

    def send(self, id: int) -> Outcome:
        """Say hello once more on a held connection."""
        return self._outcome({"do": "send", "id": id})

    def find(self, name: str) -> Outcome:
        """Have it look a name up, and say an address."""
        return self._outcome({"do": "find", "name": name})

    def listen(self, port: int) -> Outcome:
        """Have it open one more port, for 0 one that the kernel chooses; the reply is the port."""
        return self._outcome({"do": "listen", "port": port})

    def counts(self) -> dict[str, int]:
        """What the hammer did since the service was started: "tried" and "refused" attempts."""
        answer = self._order({"do": "counts"})
        return {"tried": answer["tried"], "refused": answer["refused"]}

    def pid(self) -> int:
        """Its main process, as the host numbers it."""
        return int(self.host.sh(f"systemctl show -P MainPID {self.unit}"))

    def systemctl(self, verb: str) -> None:
        """start, stop, restart; after a start it is ready for orders."""
        self.host.run(["systemctl", verb, self.unit])
        if verb != "stop":
            self.wait_ready()

    def wait_ready(self) -> None:
        """Return when it takes orders."""
        self.host.wait_until(self._is_ready)

    def _is_ready(self) -> bool:
        try:
            self.counts()
        except (OSError, ValueError):
            return False
        return True

    def _order(self, order: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.host.call(_order, f"/run/{self.name}/orders", json.dumps(order)))
        return answer

    def _outcome(self, order: dict[str, Any]) -> Outcome:
        return Outcome(**self._order(order))


def install_probe(
    host: Host,
    unit: str = "probe.service",
    *,
    port: int = PORT,
    hammer: Iterable[tuple[str, int]] = (),
    unit_lines: str = "",
    service_lines: str = "",
    wanted_by: str = "multi-user.target",
    start: bool = True,
) -> Probe:
    """Put the probe on the host as `unit`, enabled; start it and wait until it takes orders, if `start`.

    `hammer` are the addresses and ports that it connects to every millisecond, unasked.
    `unit_lines` and `service_lines` are added to the sections of the unit, such as "User=daemon".
    """
    probe = Probe(host, unit, port)
    text = UNIT_TEXT.format(
        name=probe.name,
        program=PROGRAM,
        port=port,
        hammer=" ".join(f"--hammer {address} {target}" for address, target in hammer),
        unit_lines=unit_lines,
        service_lines=service_lines,
        wanted_by=wanted_by,
    )
    host.write(PROGRAM, Path(__file__).with_name("probe_program.py").read_text())
    host.write(f"/etc/systemd/system/{unit}", text)
    host.sh(f"systemctl daemon-reload; systemctl enable {unit} 2>/dev/null")
    if start:
        probe.systemctl("start")
    return probe


def _order(path: str, order: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(50)
        connection.connect(path)
        with connection.makefile("rw") as lines:
            lines.write(order + "\n")
            lines.flush()
            return lines.readline()
