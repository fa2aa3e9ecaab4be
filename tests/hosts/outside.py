"""The outside of a world: a router on the local network, behind it an internet of documentation addresses.

There live a name server, a registry and a stranger, on addresses of one namespace.  They answer TCP (HTTP with
a small page, else an echo) and UDP (echo) at the ports below, write down who came, and no packet goes further.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hosts.wire import PREFIX, Wire
from penstock.demo.host import BASE_ENVIRONMENT
from penstock.demo.lab import Lab
from penstock.demo.recorder import Recorder

LAN = ("198.18.1.0/24", "fd00:1::/64")
ROUTER = ("198.18.1.1", "fd00:1::1")
DNS = ("192.0.2.53", "2001:db8:53::53")
REGISTRY = ("203.0.113.5", "2001:db8:5::5")
STRANGER = ("198.51.100.34", "2001:db8:66::66")
INTERNET = (*DNS, *REGISTRY, *STRANGER)

TCP_PORTS = (22, 80, 443, 5000, 5432, 8443)
UDP_PORTS = (123, 443, 5000)
NAMES: Mapping[str, tuple[str, ...]] = {
    "registry.example": REGISTRY,
    "stranger.example": STRANGER,
    "huggingface.co": REGISTRY,
    "registry.ollama.ai": REGISTRY,
}
"""What the name server knows; everything else does not exist."""
WILD = "any.example"
"""But for the names below this one, which are all the registry's."""


class Outside:
    """Built in the lab's own network namespace; ends with the lab."""

    dns, registry, stranger, router = DNS, REGISTRY, STRANGER, ROUTER
    """Each an IPv4 and an IPv6 address."""

    def __init__(self, lab: Lab, directory: Path, wire: Mapping[str, Any]) -> None:
        self._lab = lab
        self._build_network()
        self._hosts = directory / "names"
        self._queries = directory / "queries"
        self._names: dict[str, tuple[str, ...]] = {}
        self._dnsmasq = self._start_dnsmasq()
        self.recorder = Recorder(lab, lab.host, ports=TCP_PORTS, udp_ports=UDP_PORTS)
        """What the servers got: `arrivals()`, `wait_for(...)`."""
        self.wire = Wire(directory / "wire", self._start_wire(directory / "wire"), **wire)
        """What left each host."""
        self.mark, self.seen, self.wait_for = self.wire.mark, self.wire.seen, self.wire.wait_for
        self.names(NAMES)

    def names(self, more: Mapping[str, Iterable[str]]) -> None:
        """Let the name server give these addresses for these names, from now on; no addresses: no such name."""
        self._names.update({name: tuple(addresses) for name, addresses in more.items()})
        stamp = f"t{time.monotonic_ns()}.test"
        lines = [f"{DNS[0]} {stamp}"]
        lines += [f"{address} {name}" for name, addresses in self._names.items() for address in addresses]
        self._hosts.write_text("\n".join(lines) + "\n")
        self._dnsmasq.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while not self._lab.host.call(_knows, stamp):
            assert time.monotonic() < deadline, "the name server did not read its names"
            self._dnsmasq.send_signal(signal.SIGHUP)
            time.sleep(0.02)

    def queries(self) -> list[str]:
        """Every name that the name server was asked for, oldest first, "TYPE NAME FROM"."""
        lines = self._queries.read_text(errors="replace").splitlines() if self._queries.exists() else []
        words = [line.split() for line in lines if ": query[" in line]
        asked = [(w[-4][len("query[") : -1], w[-3], w[-1]) for w in words]
        return [" ".join(query) for query in asked if not query[1].endswith(".test")]

    def _build_network(self) -> None:
        lines = ["link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0"]
        lines += [f"addr add {ROUTER[0]}/24 dev br0", f"addr add {ROUTER[1]}/64 dev br0 nodad", "link set br0 up"]
        self._lab.host.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n")
        knobs = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.br0.disable_ipv6=0"]
        self._lab.host.run(["sysctl", "-qw", *knobs])

    def _start_dnsmasq(self) -> subprocess.Popen[Any]:
        self._hosts.touch()
        program = shutil.which("dnsmasq", path=BASE_ENVIRONMENT["PATH"]) or "dnsmasq"
        argv = [program, "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--no-resolv"]
        argv += ["--no-hosts"]
        argv += ["--bind-interfaces", *(f"--listen-address={a}" for a in DNS), f"--addn-hosts={self._hosts}"]
        argv += [f"--address=/{WILD}/{address}" for address in REGISTRY]
        argv += ["--local=/#/", "--log-queries", f"--log-facility={self._queries}", "--pid-file="]
        return self._lab.host.popen(argv, stdin=subprocess.DEVNULL)

    def _start_wire(self, file: Path) -> subprocess.Popen[Any]:
        file.touch()
        here = Path(__file__).parents[1]
        env = {"PYTHONPATH": f"{BASE_ENVIRONMENT['PYTHONPATH']}{os.pathsep}{here}"}
        argv = [sys.executable, "-m", "hosts.wire", str(file), PREFIX]
        return self._lab.host.popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


def _knows(name: str) -> bool:
    """Ask for an A record over UDP, without a resolver; whether there was an answer."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    query = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + labels + b"\0\0\x01\0\x01"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(0.5)
        try:
            asker.connect((DNS[0], 53))
            asker.send(query)
            answer = asker.recv(512)
        except OSError:  # not yet listening
            return False
    return answer[6:8] != b"\0\0"
