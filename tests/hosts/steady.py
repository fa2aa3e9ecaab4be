"""A governed server that never stops sending, and what is said of all that left its host meanwhile.

The server is a unit, `model.service`, in enforce mode.  Every few milliseconds it sends to an address that its
rules allow and to one that they do not, datagrams and connections, in IPv4 and IPv6, and it keeps one connection
open for ever.  As often both send to it.  So nothing can be open, or closed, for a moment without a packet that
shows it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from hosts.host import Host
from hosts.outside import REGISTRY, STRANGER
from hosts.wire import Packet
from hosts.world import World

UNIT, NAME = "model.service", "model"
PORT = 5001
"""UDP; nobody answers there."""
KNOCKED = 8080
"""UDP; where the server listens."""
RULES = "/etc/penstock/rules.d/model.yaml"

SERVER = """\
import json, os, socket, threading, time
beats, heard = 0, {{}}
def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET
def datagrams(addresses):
    global beats
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    sockets = [(socket.socket(family(a), kind), (a, {port})) for a in addresses]
    while True:
        for sender, to in sockets:
            try:
                sender.sendto(b"steady", to)
            except OSError:
                pass
        beats += 1
        if beats % 10 == 0:
            with open("/run/model/beats.new", "w") as file:
                json.dump([beats, heard], file)
            os.replace("/run/model/beats.new", "/run/model/beats")
        time.sleep(0.004)
def listen(address):
    listener = socket.socket(family(address), socket.SOCK_DGRAM)
    if family(address) == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind((address, {knocked}))
    while True:
        peer = listener.recvfrom(100)[1][0]
        heard[peer] = heard.get(peer, 0) + 1
def connections(address):
    while True:
        try:
            socket.create_connection((address, 443), 0.5).close()
        except OSError:
            pass
        time.sleep(0.04)
def lasting(address):
    while True:
        try:
            with socket.create_connection((address, 5000), 2) as peer:
                peer.settimeout(5)
                while True:
                    peer.sendall(b"still there?")
                    if not peer.recv(100):
                        break
                    time.sleep(0.05)
            why = "it was closed"
        except OSError as e:
            why = repr(e)
        with open("/run/model/broken", "a") as file:
            print(address, why, file=file)
        time.sleep(0.2)
allowed, denied = {allowed}, {denied}
for address in allowed + denied:
    heard[address] = 0
for address in ("0.0.0.0", "::"):
    threading.Thread(target=listen, args=(address,)).start()
for address in allowed:
    threading.Thread(target=lasting, args=(address,)).start()
for address in allowed + denied:
    threading.Thread(target=connections, args=(address,)).start()
datagrams(allowed + denied)
"""
KNOCKER = """\
import socket, sys, time
sockets = []
for source in sys.argv[4:]:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    sender = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sender.bind((source, 0))
    sockets.append((sender, (sys.argv[3 if ":" in source else 2], int(sys.argv[1]))))
while True:
    for sender, to in sockets:
        try:
            sender.sendto(b"knock", to)
        except OSError:
            pass
    time.sleep(0.004)
"""
UNIT_FILE = """\
[Unit]
Description=Stands in for a model server
After=network.target
[Service]
ExecStart=/usr/bin/python3 /opt/model.py
User=nobody
RuntimeDirectory=model
[Install]
WantedBy=multi-user.target
"""
ALLOW = f'  - {{to: ["{REGISTRY[0]}", "{REGISTRY[1]}"], ports: [443, 5000, {PORT}/udp]}}\n'
OPEN = f'  - {{to: ["{STRANGER[0]}", "{STRANGER[1]}"], ports: [443, {PORT}/udp]}}\n'
"""What lets the packets pass that are denied otherwise: the control of every other test."""


def rules(*more: str, comment: str = "") -> str:
    """The file of the workload; `more` are further egress rules."""
    head = f"# {comment}\nversion: 1\nworkload: {NAME}\nmode: enforce\nmatch: {{unit: {UNIT}}}\negress:\n"
    served = f'  - {{ports: [{KNOCKED}/udp], from: ["{REGISTRY[0]}", "{REGISTRY[1]}"]}}\n'
    return f"{head}{ALLOW}{''.join(more)}ingress:\n{served}"


@dataclass(frozen=True, slots=True)
class Seen:
    """What left the host in a while: times of `time.monotonic()`, by family; and how much the server heard."""

    start: float
    end: float
    allowed: dict[int, list[float]]
    denied: dict[int, list[float]]
    heard: dict[str, int]  # peer -> datagrams since the server began

    @property
    def leaked(self) -> int:
        """Packets to where no rule leads."""
        return sum(map(len, self.denied.values()))

    @property
    def intruded(self) -> int:
        """Datagrams from whom no rule lets in, that the server heard."""
        return sum(self.heard[peer] for peer in STRANGER)

    @property
    def gap(self) -> float:
        """The longest time, in seconds, in which no allowed packet of one family left."""
        gaps = [0.0]
        for times in self.allowed.values():
            gaps += [later - earlier for earlier, later in pairwise([self.start, *times, self.end])]
        return max(gaps)


class Steady:
    """The host with its server, enrolled and enforced."""

    def __init__(self, world: World, host: Host) -> None:
        self.world = world
        self.host = host

    def enrol(self) -> None:
        """Start the server, put it in its slice, and enforce its rules."""
        places = {"allowed": list(REGISTRY), "denied": list(STRANGER)}
        self.host.write("/opt/model.py", SERVER.format(port=PORT, knocked=KNOCKED, **places))
        argv = [sys.executable, "-c", KNOCKER, str(KNOCKED), *self.host.addresses, *REGISTRY, *STRANGER]
        self.world.lab.host.popen(argv, stdin=subprocess.DEVNULL)
        self.host.write(f"/etc/systemd/system/{UNIT}", UNIT_FILE)
        self.host.sh(f"systemctl daemon-reload; systemctl enable --now {UNIT}; penstock protect {UNIT}")
        self.apply(rules())
        self.host.sh(f"systemctl restart {UNIT}")
        self.in_force()

    # --- what is said ---

    def status(self) -> Any:
        """`penstock status --json`."""
        return json.loads(self.host.run(["penstock", "status", "--json"], check=False).stdout)

    def findings(self) -> dict[str, str]:
        """Code -> text."""
        return {one["code"]: one["text"] for one in self.status()["findings"]}

    def in_force(self, timeout: float = 30) -> Any:
        """Wait until all of the policy is; the status."""
        said = self.host.run(["penstock", "status", "--json", "--wait", "--timeout", f"{timeout:g}s"])
        status = json.loads(said.stdout)
        model = next(one for one in status["workloads"] if one["name"] == NAME)
        assert (model["egress"], model["enrolment"]) == ("enforcing", "slice"), status
        return status

    def apply(self, text: str, *options: str, check: bool = True) -> Any:
        """Write the file of the workload and apply it; the finished process."""
        self.host.write(RULES, text)
        return self.host.run(["penstock", "apply", *options], check=check)

    def says(self, text: str, unit: str = "penstock.service", *, level: str = "debug", since: float = 0) -> float:
        """Wait until a unit has said that since its boot, and since that `time.time()`; when it did."""
        found: list[float] = []
        argv = ["journalctl", "-q", "-b", "-o", "json", "-p", level, "-u", unit]

        def look() -> bool:
            lines = [json.loads(line) for line in self.host.run(argv).stdout.splitlines()]
            times = [int(line["__REALTIME_TIMESTAMP"]) / 1e6 for line in lines if text in str(line["MESSAGE"])]
            found[:] = [when for when in times if when >= since]
            return bool(found)

        self.host.wait_until(look)
        return found[0]

    def shown(self, unit: str, what: str) -> str:
        """A property of a unit."""
        return self.host.run(["systemctl", "show", "--value", "-p", what, unit]).stdout.strip()

    def daemon(self) -> int:
        """The pid of the daemon in the host; 0 when there is none."""
        return int(self.shown("penstock.service", "MainPID"))

    def another_daemon(self, before: int, timeout: float = 30) -> float:
        """Wait until another one runs and all is in force; how many seconds that took."""
        start = time.monotonic()
        self.host.wait_until(lambda: self.daemon() not in (0, before), timeout)
        self.in_force()
        return time.monotonic() - start

    def kill(self, signal: str) -> int:
        """Send the daemon a signal; its pid."""
        pid = self.daemon()
        self.host.run(["kill", f"-{signal}", str(pid)])
        return pid

    # --- what is seen ---

    def seen(self, mark: int, start: float) -> Seen:
        """What left since the mark, taken at `start`."""
        packets = [p for p in self.world.outside.seen(self.host.name, since=mark) if p.time >= start]
        end, heard = time.monotonic(), self.server()[1]
        return Seen(start, end, times(packets, REGISTRY), times(packets, STRANGER), heard)

    def wait_beats(self, count: int = 60) -> None:
        """Until the server has tried everything so often again."""
        until = self.server()[0] + count
        self.host.wait_until(lambda: self.server()[0] >= until, every=0.01)

    def server(self) -> tuple[int, dict[str, int]]:
        """What the server says: how often it has tried everything, and how many datagrams it heard from whom."""
        beats, heard = json.loads(self.host.peek("/run/model/beats") or "[0, {}]")
        return beats, heard

    def now(self) -> Seen:
        """What leaves in the next moment, and what comes."""
        self.wait_beats(20)  # what came before is heard
        before = self.server()[1]
        start, mark = time.monotonic(), self.world.outside.mark()
        self.wait_beats()
        seen = self.seen(mark, start)
        return replace(seen, heard={peer: count - before[peer] for peer, count in seen.heard.items()})

    @contextmanager
    def ruled(self, gap: float = 1.0) -> Iterator[None]:
        """Around the block nothing left that is denied, what is allowed went on, and nobody restarted the server.

        `gap`: how long, in seconds, nothing may be seen of the allowed packets; this machine may be busy.
        """
        self.is_ruled()
        pid, broken, heard = self.shown(UNIT, "MainPID"), self.broken(), self.server()[1]
        start, mark = time.monotonic(), self.world.outside.mark()
        yield
        self.wait_beats()
        seen = self.seen(mark, start)
        assert seen.leaked == 0, seen.denied
        assert all(seen.allowed.values())
        assert all(seen.heard[peer] == heard[peer] for peer in STRANGER), (heard, seen.heard)
        assert all(seen.heard[peer] > heard[peer] for peer in REGISTRY), (heard, seen.heard)
        assert seen.gap < gap, seen.gap
        assert self.shown(UNIT, "MainPID") == pid
        assert self.broken() == broken
        print(f"{seen.end - seen.start:.1f} s: {sum(map(len, seen.allowed.values()))} allowed packets,"
              f" longest gap {seen.gap * 1000:.0f} ms, 0 denied ones")

    def is_ruled(self) -> None:
        """Now: what is allowed leaves and comes in both families, and nothing else."""
        seen = self.now()
        assert seen.leaked == 0, seen.denied
        assert not any(seen.heard[peer] for peer in STRANGER), seen.heard
        assert all(len(times) > 20 for times in seen.allowed.values()), seen.allowed
        assert all(seen.heard[peer] for peer in REGISTRY), seen.heard

    def is_open(self, inward: bool = True) -> None:
        """Now everything leaves in both families, and with `inward` comes as well."""
        seen = self.now()
        assert all(len(times) > 20 for times in (*seen.allowed.values(), *seen.denied.values())), seen
        assert all(bool(seen.heard[peer]) == inward for peer in STRANGER), seen.heard
        assert all(seen.heard[peer] for peer in REGISTRY), seen.heard

    def is_shut(self) -> None:
        """Now nothing leaves and nothing comes, although all try."""
        seen = self.now()
        assert not any(seen.heard.values()), seen.heard
        assert not any(seen.denied.values()), seen.denied
        assert not any(seen.allowed.values()), seen.allowed

    def broken(self) -> str:
        """What the server says of its lasting connections, one line for each that ended."""
        return self.host.sh("cat /run/model/broken 2>/dev/null || true")

    def open_for(self, work: Callable[[], object]) -> tuple[float, int]:
        """Do what opens a gap, and wait until it is shut: seconds from the first packet to the last; how many."""
        start, mark = time.monotonic(), self.world.outside.mark()
        work()
        deadline = start + 10
        while True:
            self.wait_beats(30)
            denied = self.seen(mark, start).denied
            left = sorted(t for times in denied.values() for t in times) or [start]
            if time.monotonic() - left[-1] > 0.5:
                return left[-1] - left[0], sum(map(len, denied.values()))
            assert time.monotonic() < deadline, "it is still open"


def times(packets: list[Packet], to: tuple[str, str]) -> dict[int, list[float]]:
    """When packets to these two addresses left, by family; not the kernel's refusals of what came from there."""
    own = [p for p in packets if p.protocol in ("tcp", "udp")]
    return {6 if ":" in address else 4: [p.time for p in own if p.destination == address] for address in to}
