"""What is lent ends at its end: the real daemon, alive or dead, real packets, seen at the far side."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from attacks import ops
from daemon.running import Running
from endtoend.test_names import HOST as NAMED
from endtoend.test_names import HUB, ask, server
from governed import Actor, eventually
from penstock.demo.lab import Lab
from penstock.kernel.login import UNSET

__all__ = ["server"]
pytestmark = pytest.mark.root

Flow = tuple[str, int, int]
"""Protocol, family, port."""

LATE, EARLY = 0.1, 1.0
"""Seconds after the end in which the last packet arrives at the latest, and before it at the earliest."""
PAUSE = 0.008
GRANTS, WAVE, SMALL_WAVE = 1000, 28, 16
FIRST_PORT = 7000
_numbers = itertools.count()
ETH_P_ALL, SO_TIMESTAMPNS, RST = 3, 35, 4


# --- at the far side ---


def watch(stop: Path, ports: tuple[int, int]) -> dict[Flow, tuple[float, float, int]]:
    """Until `stop` is there: for each flow to these ports when its first and last packet came, and how many did.

    By the kernel's own stamps, in seconds since the epoch.
    """
    seen: dict[Flow, tuple[float, float, int]] = {}
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)) as wire:
        wire.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        while not stop.exists() or select.select([wire], [], [], 0)[0]:
            if not select.select([wire], [], [], 0.05)[0]:
                continue
            packet, extra, _, address = wire.recvmsg(128, 64)
            flow = _flow(packet)
            if address[2] == socket.PACKET_OUTGOING or flow is None or not ports[0] <= flow[2] < ports[1]:
                continue
            seconds, nanoseconds = struct.unpack("=qq", extra[0][2])
            moment = seconds + nanoseconds / 1e9
            first, last, count = seen.get(flow, (moment, moment, 0))
            seen[flow] = (min(first, moment), max(last, moment), count + 1)
    return seen


def _flow(packet: bytes) -> Flow | None:
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        number, start = packet[9], (packet[0] & 15) * 4
    elif version == 6:
        number, start = packet[6], 40
    else:
        return None
    protocol = {6: "tcp", 17: "udp"}.get(number)
    if protocol is None or len(packet) < start + 8:
        return None
    if protocol == "tcp" and packet[start + 13] & RST:
        return None  # the kernel's own answer to a connection that it does not know any more
    return protocol, version, int.from_bytes(packet[start + 2 : start + 4])


def serve(stop: Path, address: str, ports: list[int]) -> None:
    """Take TCP connections, and what comes over them."""
    listeners = [socket.create_server((address, port), family=ops.family_of(address)) for port in ports]
    sockets = list(listeners)
    while not stop.exists():
        for ready in select.select(sockets, [], [], 0.05)[0]:
            if ready in listeners:
                made = ready.accept()[0]
                made.setblocking(False)
                sockets.append(made)
            else:
                with contextlib.suppress(OSError):
                    if ready.recv(65536):
                        continue
                sockets.remove(ready)
                ready.close()
    for one in sockets:
        one.close()


# --- in the workload ---


@dataclass
class Caller:
    """Sends to one flow again and again, whatever becomes of it."""

    flow: Flow
    address: str
    sock: socket.socket | None = None
    connected: bool = False

    def step(self) -> None:
        """One more packet, or attempt to connect."""
        protocol, _, port = self.flow
        if self.sock is None:
            kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
            self.sock = socket.socket(ops.family_of(self.address), kind)
            self.sock.setblocking(False)
            with contextlib.suppress(OSError):
                self.sock.connect((self.address, port))
        try:
            self.sock.send(b"x" * 16)
        except BlockingIOError:
            pass
        except OSError:
            if protocol == "tcp":
                self.sock.close()
                self.sock = None


def call(stop: Path, targets: list[tuple[Flow, str]]) -> None:
    """Send to all of them until `stop` is there."""
    callers = [Caller(flow, address) for flow, address in targets]
    while not stop.exists():
        began = time.monotonic()
        for caller in callers:
            caller.step()
        time.sleep(max(0.0, PAUSE - (time.monotonic() - began)))
    for caller in callers:
        if caller.sock:
            caller.sock.close()


# --- the site ---


@dataclass
class Site:
    """A daemon, a workload that calls, and who watches at the other end."""

    lab: Lab
    running: Running
    actors: dict[str, Actor] = field(default_factory=dict)

    def actor(self, name: str, make: Callable[[], Actor]) -> Actor:
        if name not in self.actors:
            self.actors[name] = make()
        return self.actors[name]

    def grant(self, peer: str, ports: str, seconds: int, **changes: Any) -> dict[str, Any]:
        """Lend it; the grant, `end` in seconds since the epoch."""
        said = {
            "workload": "a",
            "direction": "out",
            "peer": peer,
            "ports": ports,
            "seconds": seconds,
            "until": 0,
            "reason": "to see it end",
            "wide": 0,
            "user": "",
        }
        found: dict[str, Any] = self.running.ask("grant", **(said | changes))["grant"]
        return {**found, "end": datetime.fromisoformat(found["until"]).timestamp()}

    @contextmanager
    def flows(self, targets: list[tuple[Flow, str]]) -> Iterator[dict[Flow, tuple[float, float, int]]]:
        """The workload sends to all of them meanwhile; afterwards there is what arrived."""
        remote = self.lab.remote["registry"]
        stops = [self.lab.dir / f"stop-{next(_numbers)}" for _ in range(2)]
        ports = sorted({flow[2] for flow, _ in targets})
        watcher = self.actor("watcher", lambda: Actor(remote))
        caller = self.actor("caller", lambda: self.running.actor("a"))
        watcher.start(watch, stops[1], (ports[0], ports[-1] + 1))
        servers = []
        for address in sorted({address for _, address in targets}):
            listening = [flow[2] for flow, at in targets if at == address and flow[0] == "tcp"]
            servers.append(self.actor(address, lambda: Actor(remote)))
            servers[-1].start(serve, stops[1], address, listening)
        time.sleep(0.05)
        caller.start(call, stops[0], targets)
        found: dict[Flow, tuple[float, float, int]] = {}
        try:
            yield found
        finally:
            stops[0].touch()
            caller.result()
            time.sleep(0.05)
            stops[1].touch()
            for server in servers:
                server.result()
            found.update(watcher.result())

    def penstock(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "penstock.cli.main", "--run", str(self.running.run), *arguments]
        return self.running.lab.host.run(argv, check=False, env=env)

    def close(self) -> None:
        for actor in self.actors.values():
            actor.close()


@pytest.fixture
def site(lab: Lab, running: Running) -> Iterator[Site]:
    running.rules("a")
    running.up()
    with closing(Site(lab, running)) as made:
        yield made


def targets_of(lab: Lab, number: int) -> list[tuple[Flow, str]]:
    """So many flows, of both protocols and families, each to a port of its own."""
    v4, v6 = lab.remote["registry"].addresses
    kinds = [("udp", 4, v4), ("tcp", 6, v6), ("tcp", 4, v4), ("udp", 6, v6)]
    found: list[tuple[Flow, str]] = []
    for n in range(number):
        protocol, family, address = kinds[n % 4]
        found.append(((protocol, family, FIRST_PORT + n), address))
    return found


def wait_until(moment: float) -> None:
    """By the wall clock."""
    while (left := moment - time.time()) > 0:
        time.sleep(min(left, 0.05))


@dataclass(frozen=True, slots=True)
class Ended:
    """Seconds between the end of a grant and the last packet; of a grant that let packets through."""

    flow: Flow
    after: float
    alive: bool


def wave(site: Site, chance: random.Random, count: int, *, alive: bool) -> list[Ended]:
    """Lend to `count` flows for one or two seconds, or for four; `alive`: the daemon stays."""
    targets = targets_of(site.lab, count)
    ends: dict[Flow, tuple[float, float]] = {}
    with site.flows(targets) as found:
        for flow, address in targets:
            asked = time.time()
            ports = f"{flow[2]}/{flow[0]}"
            # Before the daemon is killed nothing must be over: all of it is about what ends without one.
            seconds = chance.choice([1, 2]) if alive else 4
            ends[flow] = (asked, site.grant(address, ports, seconds)["end"])
        if not alive:
            assert time.time() < min(end for _, end in ends.values())
            site.running.stop(signal.SIGKILL)
        wait_until(max(end for _, end in ends.values()) + 3 * LATE)
    if not alive:
        site.running.up()
    result = []
    for flow, (asked, end) in ends.items():
        assert flow in found, f"{flow}: nothing came through a grant"
        first, last, number = found[flow]
        assert first >= asked, f"{flow}: before it was lent"
        assert number > 20, f"{flow}: only {number} packets"
        result.append(Ended(flow, last - end, alive))
    return result


def test_it_ends_when_it_ends(site: Site, count: int) -> None:
    """In waves, the daemon killed in every third, a small one; v4 and v6, UDP and connections of TCP."""
    chance, seed = random.Random(), 20_261_127
    chance.seed(seed)
    ended: list[Ended] = []
    for number in itertools.count():
        if len(ended) >= GRANTS // count:
            break
        alive = number % 3 != 1
        ended += wave(site, chance, WAVE if alive else SMALL_WAVE, alive=alive)
    late = [one for one in ended if one.after > LATE]
    early = [one for one in ended if one.after < -EARLY]
    worst = max(ended, key=lambda one: one.after)
    first = min(ended, key=lambda one: one.after)
    print(f"{len(ended)} grants: the last packet {worst.after * 1000:.1f} ms after the end at most ({worst}),")
    print(f"{-first.after * 1000:.1f} ms before it at the earliest ({first})")
    assert not late, f"of {len(ended)}"
    assert not early, f"of {len(ended)}"
    assert {one.alive for one in ended} == {True, False}
    assert site.running.ask("grants")["grants"] == []


def test_beside_a_large_table_that_takes_a_while_to_load(site: Site) -> None:
    """An element lasts from the moment at which the kernel takes it, and a load is no moment."""
    many = ", ".join(f"10.{n // 250}.{n % 250}.1" for n in range(8000))
    for name in ("b", "c"):
        site.running.rules(name, f"[{{to: [{many}], ports: [443]}}]")
    site.running.ask("apply")
    (target,) = targets_of(site.lab, 1)
    with site.flows([target]) as found:
        end = site.grant(target[1], f"{target[0][2]}/udp", 2)["end"]
        wait_until(end + 1)
    assert -EARLY < found[target[0]][1] - end <= LATE


# --- what outlives what ---


def test_a_restart_leaves_the_rest(site: Site) -> None:
    targets = targets_of(site.lab, 4)
    with site.flows(targets) as found:
        made = [site.grant(address, f"{flow[2]}/{flow[0]}", 5) for flow, address in targets]
        site.running.stop(signal.SIGKILL)
        site.running.up()
        listed = {one["id"]: one["until"] for one in site.running.ask("grants")["grants"]}
        assert listed == {one["id"]: one["until"] for one in made}
        hash_before = site.running.ask("status")["policy"]["hash"]
        assert site.running.ask("apply")["hash"] == hash_before
        wait_until(made[-1]["end"] + 3 * LATE)
    for (flow, _), one in zip(targets, made, strict=True):
        assert -EARLY < found[flow][1] - one["end"] <= LATE


def test_revoked_it_is_over_at_once(site: Site) -> None:
    targets = targets_of(site.lab, 4)
    with site.flows(targets) as found:
        made = [site.grant(address, f"{flow[2]}/{flow[0]}", 600) for flow, address in targets]
        time.sleep(0.3)
        for one in made:
            site.running.ask("revoke", id=one["id"], user="")
        over = time.time()
        time.sleep(0.3)
    assert set(found) == {flow for flow, _ in targets}
    for flow, _ in targets:
        assert found[flow][1] <= over
    floor = (site.running.state / "floor.nft").read_text()
    assert "timeout" not in floor.replace("flags interval, timeout", "")
    assert site.lab.remote["registry"].addresses[0] not in floor


def test_neither_the_floor_nor_the_saved_policy_hold_it(site: Site) -> None:
    address = site.lab.remote["registry"].addresses[0]
    site.grant(address, "7000", 600)
    site.running.rules("b")
    site.running.ask("apply")
    assert address not in (site.running.state / "floor.nft").read_text()
    assert address not in str(site.running.saved().files)
    assert address in site.running.ruleset()
    assert [one["peer"] for one in site.running.ask("status")["grants"]] == [address]


def test_an_older_boot_leaves_no_more_than_the_clock_does(site: Site) -> None:
    """The file as it is found after a boot: the clocks since boot begin anew, the wall clock goes on."""
    address = site.lab.remote["registry"].addresses[0]
    made = [site.grant(address, f"{7000 + n}", seconds) for n, seconds in enumerate((600, 3, 600))]
    site.running.stop(signal.SIGKILL)
    path = site.running.state / "grants.json"
    saved = json.loads(path.read_text())
    saved["boot"] = "another"
    path.write_text(json.dumps(saved))
    wait_until(made[1]["end"])
    site.running.nft("delete table inet penstock")
    site.running.up()
    listed = {one["id"]: one["until"] for one in site.running.ask("grants")["grants"]}
    assert listed == {one["id"]: one["until"] for one in (made[0], made[2])}
    site.running.stop(signal.SIGKILL)
    saved = json.loads(path.read_text())
    saved |= {"boot": "another", "at": time.time() + 60}  # by which the clock is behind now
    path.write_text(json.dumps(saved))
    site.running.up()
    assert site.running.ask("grants")["grants"] == []
    assert address not in site.running.ruleset()
    events = [json.loads(line) for line in (site.running.log / "grants.jsonl").read_text().splitlines()]
    assert [one["event"] for one in events] == ["made"] * 3 + ["ended"] + ["dropped"] * 2


# --- other kinds ---


def datagrams(stop: Path, descriptor: int) -> list[float]:
    """When they came, in seconds since the epoch."""
    came = []
    with ops.borrowed(descriptor) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        while not stop.exists():
            if select.select([sock], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    _, extra, _, _ = sock.recvmsg(2048, 64)
                    seconds, nanoseconds = struct.unpack("=qq", extra[0][2])
                    came.append(seconds + nanoseconds / 1e9)
    return came


@pytest.mark.parametrize("alive", [True, False], ids=["alive", "dead"])
def test_who_was_let_in_is_out_again(site: Site, alive: bool) -> None:
    """In both families, at the same time."""
    here, stranger = site.lab.host, site.lab.remote["stranger"]
    stop = site.lab.dir / f"stop-{next(_numbers)}"
    with site.running.actor("a") as on4, site.running.actor("a") as on6, Actor(stranger) as client:
        listeners = {4: on4, 6: on6}
        descriptors = {version: on(ops.udp, here.address(version), 8000) for version, on in listeners.items()}
        client.start(call, stop, [(("udp", version, 8000), here.address(version)) for version in listeners])
        for version, listener in listeners.items():
            listener.start(datagrams, stop, descriptors[version])
        asked, ends = {}, {}
        for version in listeners:
            asked[version] = time.time()
            ends[version] = site.grant(stranger.address(version), "8000/udp", 2, direction="in")["end"]
        if not alive:
            site.running.stop(signal.SIGKILL)
        wait_until(max(ends.values()) + 3 * LATE)
        stop.touch()
        client.result()
        came = {version: listener.result() for version, listener in listeners.items()}
    for version, end in ends.items():
        assert len(came[version]) > 100
        assert came[version][0] >= asked[version]
        assert -EARLY < came[version][-1] - end <= LATE


@pytest.mark.parametrize("alive", [True, False], ids=["alive", "dead"])
def test_another_workload(site: Site, alive: bool) -> None:
    """It ends by the wall clock in the rules themselves: there is no address that could run out."""
    site.running.rules("b", ingress="[{from: workload:a, ports: [8000/udp]}]", mode="enforce")
    site.running.rules("a", mode="observe")
    site.running.ask("apply")  # while one of the two is observed the other half may be missing
    site.running.rules("a", egress="[{to: workload:b, ports: [9999/udp]}]")
    site.running.ask("apply")
    stop = site.lab.dir / f"stop-{next(_numbers)}"
    with site.running.actor("b") as listener, site.running.actor("a") as client:
        descriptor = listener(ops.udp, "127.0.0.1", 8000)
        client.start(call, stop, [(("udp", 4, 8000), "127.0.0.1")])
        listener.start(datagrams, stop, descriptor)
        asked = time.time()
        end = site.grant("workload:b", "8000/udp", 2)["end"]
        if not alive:
            site.running.stop(signal.SIGKILL)
        wait_until(end + 3 * LATE)
        stop.touch()
        client.result()
        came = listener.result()
    assert len(came) > 100
    assert came[0] >= asked
    assert -EARLY < came[-1] - end <= LATE


@pytest.mark.parametrize("alive", [True, False], ids=["alive", "dead"])
def test_by_name(site: Site, server: subprocess.Popen[Any], alive: bool) -> None:
    site.running.write("penstock.yaml", NAMED)
    site.running.ask("apply")
    stop = site.lab.dir / f"stop-{next(_numbers)}"
    with site.running.actor("a") as client, Actor(site.lab.remote["stranger"]) as far:
        end = site.grant("hub.example", "443/udp", 3)["end"]
        assert client(ask, "hub.example")[1] == [HUB[0]]
        assert client(ask, "other.example")[0] == "NXDOMAIN"
        descriptor = far(ops.udp, HUB[0], 443)
        far.start(datagrams, stop, descriptor)
        client.start(call, stop, [(("udp", 4, 443), HUB[0])])
        if not alive:
            site.running.stop(signal.SIGKILL)
        wait_until(end + 3 * LATE)
        stop.touch()
        client.result()
        came = far.result()
    assert len(came) > 50
    assert -EARLY < came[-1] - end <= LATE


# --- whose it is ---


def test_by_the_command_line_and_whose_login_it_is(site: Site) -> None:
    login = Path("/proc/self/loginuid").read_text()
    assert site.running.ask("grants")["grants"] == []
    env = {**os.environ, "SUDO_USER": "anna"}
    done = site.penstock("grant", "a", "203.0.113.9:443", "--for", "30m", "--reason", "to see", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    (one,) = json.loads(site.penstock("grants", "--json").stdout)["grants"]
    expected = "anna (says sudo)" if int(login) == UNSET else f"{one['owner'].split()[0]} (as anna)"
    assert one["owner"] == expected
    assert f"{expected}: to see" in " ".join(site.penstock("grants").stdout.split())
    assert site.penstock("why", "a", "203.0.113.9:443").returncode == 0
    done = site.penstock("revoke", one["id"][6:10])
    assert done.returncode == 0
    assert site.penstock("why", "a", "203.0.113.9:443").returncode == 1
    assert "revoked" in site.penstock("grants", "--past").stdout
    eventually(lambda: "revoked" in site.running.messages())
