"""Units that are bound where they are, as they come and go, while the daemon does: with packets."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from daemon.running import Running, _remove_cgroups, hammering, timed
from governed import Actor, eventually, rules
from pace import slow
from penstock.demo.lab import Lab
from penstock.demo.probe import tcp, udp
from penstock.demo.recorder import Arrival, Recorder

pytestmark = pytest.mark.root

ALLOWED, FORBIDDEN = 80, 81
PLACES = ("x.service", "system.slice/x.service", "system.slice/system-x.slice/x.service")
PLACE = PLACES[1]
USERS = "user.slice/user-1000.slice/user@1000.service/app.slice/x.service"
BOUND = slow(1.0)
"""Seconds within which a unit that comes is bound."""


class Site:
    """A workload `a` to which x.service belongs, and a witness at the outside."""

    def __init__(self, lab: Lab, running: Running) -> None:
        self.lab, self.running = lab, running
        self._recorder = Recorder(lab, lab.remote["registry"], ports=(ALLOWED, FORBIDDEN), packets=True)
        self.addresses = self._recorder.host.addresses
        self.write()

    def write(self, more: str = "") -> None:
        """The rule file."""
        v4, v6 = self.addresses
        egress = f'[{{to: [{v4}, "{v6}"], ports: [{ALLOWED}, {ALLOWED}/udp]{more}}}]'
        self.running.write("rules.d/a.yaml", rules("a", egress) + "match: {unit: x.service}\n")

    def arrived(self) -> list[Arrival]:
        """All TCP and UDP packets that reached the outside."""
        return [packet for packet in self._recorder.arrivals("packet") if packet.protocol in ("tcp", "udp")]

    def settled(self) -> list[Arrival]:
        """The same, once whoever writes them down has caught up."""
        found = [self.arrived()]

        def no_more() -> bool:
            found.append(self.arrived())
            return len(found[-1]) == len(found[-2])

        eventually(no_more)
        return found[-1]

    def reached(self, actor: Actor) -> set[int]:
        """The ports at which something arrives from it, which must be the same by every means."""
        before = self.settled()
        for address in self.addresses:
            for port in (ALLOWED, FORBIDDEN):
                actor(tcp, address, port, timeout=1)
                actor(udp, address, port, timeout=0.3)
        # What the kernel still says for connections that were over before (TIME_WAIT) has no socket any more.  A
        # new connection, or a datagram, may have a port again that somebody had before.
        old = {(packet.peer, packet.peer_port) for packet in before if packet.protocol == "tcp"}
        after = self.settled()[len(before) :]
        late = [p for p in after if p.protocol == "tcp" and p.event == "packet" and (p.peer, p.peer_port) in old]
        return ports([p for p in after if p not in late])

    def id(self, place: str) -> int:
        """What rules match."""
        return int(self.running.asker(os.stat, self.lab.cgroup / place).st_ino)

    @property
    def bound(self) -> set[int]:
        """Ids in the kernel's maps."""
        return {number for held in self.running.snapshot().bindings.values() for number in held}

    def close(self) -> None:
        self._recorder.stop()
        for top in ("system.slice", "user.slice", "x.service", "many.slice"):
            eventually(lambda top=top: self.running.asker(_remove, self.lab.cgroup / top))  # type: ignore[misc]


@pytest.fixture
def site(lab: Lab, running: Running) -> Iterator[Site]:
    made = Site(lab, running)
    yield made
    made.close()


def ports(found: list[Arrival]) -> set[int]:
    """Where packets arrived, which must be the same for both families and protocols."""
    every = {(family, protocol): set[int]() for family in (4, 6) for protocol in ("tcp", "udp")}
    for packet in found:
        every[packet.family, packet.protocol].add(packet.port)
    first = every[4, "tcp"]
    assert all(one == first for one in every.values()), every
    return first


@pytest.mark.parametrize("place", PLACES)
def test_a_unit_that_comes_is_bound_within_a_second(place: str, site: Site) -> None:
    """The first one at its level, and the second, which needs no load of rules."""
    site.running.up()
    for which in ("first", "second"):
        with site.running.actor(None) as unit:
            seconds = unit(_enter_and_wait, site.lab.cgroup / place, site.addresses)
            print(f"{place}, the {which} there: bound {seconds * 1000:.0f} ms after mkdir")
            assert seconds < BOUND
            assert site.reached(unit) == {ALLOWED}
        eventually(lambda: site.running.asker(_remove, site.lab.cgroup / place))
        eventually(lambda: not site.running.status()["units"])
    assert "foreign-change" not in site.running.findings()


def test_what_is_there_already_is_bound_by_the_start(site: Site) -> None:
    with Actor(site.lab.host, PLACE) as unit, Actor(site.lab.host, f"{PLACE}/below") as below:
        assert site.reached(unit) == {ALLOWED, FORBIDDEN}, "nothing governs it yet"
        site.running.up()
        assert site.reached(unit) == site.reached(below) == {ALLOWED}
        status = site.running.status()
        assert (status["egress"], status["enrolment"], status["processes"]) == ("enforcing", "in-place", 2)
        [one] = status["units"]
        assert one == {"unit": "x.service", "cgroup": PLACE, "how": "in-place", "processes": 2}
        [found] = [one for one in site.running.ask("status")["findings"] if one["code"] == "in-place"]
        assert (found["workload"], found["severity"]) == ("a", "warning")
        assert PLACE in found["text"]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_the_daemon_goes_and_comes_under_a_hammer(end: int, count: int, site: Site) -> None:
    """What is bound stays bound, without a daemon and while one starts."""
    rounds = 30 // count
    with Actor(site.lab.host, PLACE) as unit:
        site.running.up()
        seen = len(site.arrived())
        with hammering(unit, site.lab.dir / "stop", _hammer, site.addresses) as calls:
            for _ in range(rounds):
                site.running.stop(end)
                assert site.id(PLACE) in site.bound
                site.running.up()
        arrived = site.settled()[seen:]
        print(f"{rounds} restarts under {calls[0]} calls: {len(arrived)} packets arrived, all allowed ones")
        assert ports(arrived) == {ALLOWED}
        site.running.stop(end)
        assert site.reached(unit) == {ALLOWED}, "nobody is there, and it is governed all the same"


def test_another_workload_takes_a_unit_over_under_a_hammer(site: Site) -> None:
    """Between the old rules and the new ones it may reach less, and never more."""
    text = (site.running.config / "rules.d/a.yaml").read_text()
    with Actor(site.lab.host, PLACE) as unit:
        site.running.up()
        seen = len(site.arrived())
        with hammering(unit, site.lab.dir / "stop", _hammer, site.addresses):
            for name in ("b", "a") * 10:
                site.running.write("rules.d/a.yaml", text.replace("workload: a", f"workload: {name}"))
                site.running.ask("apply")
        assert ports(site.settled()[seen:]) == {ALLOWED}


def test_the_hammer_can_tell(site: Site) -> None:
    """Beside the unit everything arrives; so nothing of the test before can fail to be seen."""
    site.running.up()
    with Actor(site.lab.host, "system.slice/y.service") as other:
        with hammering(other, site.lab.dir / "stop", _hammer, site.addresses):
            eventually(lambda: len(site.arrived()) > 200)
        assert ports(site.arrived()) == {ALLOWED, FORBIDDEN}


def test_a_unit_that_goes_and_comes_again(site: Site) -> None:
    with Actor(site.lab.host, PLACE) as unit:
        site.running.up()
        old = site.id(PLACE)
        assert site.reached(unit) == {ALLOWED}
    eventually(lambda: site.running.asker(_remove, site.lab.cgroup / PLACE))
    eventually(lambda: old not in site.bound, BOUND)
    eventually(lambda: not site.running.status()["units"])
    status = site.running.status()
    assert (status["egress"], status["enrolment"]) == ("enforcing", "none")
    assert "in-place" not in site.running.findings()
    with site.running.actor(None) as unit:
        seconds = unit(_enter_and_wait, site.lab.cgroup / PLACE, site.addresses)
        assert seconds < BOUND
        assert site.id(PLACE) != old
        assert site.reached(unit) == {ALLOWED}
    assert "foreign-change" not in site.running.findings()


def test_a_user_who_names_his_unit_so_is_not_it(site: Site) -> None:
    with Actor(site.lab.host, USERS) as user, Actor(site.lab.host, f"{PLACES[1]}x/x.service") as other:
        site.running.up()
        assert site.reached(user) == site.reached(other) == {ALLOWED, FORBIDDEN}
        assert site.id(USERS) not in site.bound
        assert site.running.status()["units"] == []


def test_a_foreign_flush(site: Site) -> None:
    with Actor(site.lab.host, PLACE) as unit:
        site.running.up()
        site.running.nft("flush ruleset")
        seconds, _ = timed(eventually, lambda: site.id(PLACE) in site.bound)
        print(f"bound again {seconds * 1000:.0f} ms after the flush")
        assert seconds < BOUND
        assert site.reached(unit) == {ALLOWED}
        eventually(lambda: "foreign-change" in site.running.findings())


def test_a_foreign_flush_while_units_come_and_go(site: Site) -> None:
    """Whatever is under way then: repaired in a second and never overlooked."""
    with Actor(site.lab.host, PLACE) as unit, site.running.actor(None) as other:
        site.running.up()
        with hammering(other, site.lab.dir / "stop", _come_and_go, site.lab.cgroup / "many.slice"):
            for number in range(1, 11):
                site.running.nft("flush ruleset")
                seconds, _ = timed(eventually, lambda: site.id(PLACE) in site.bound)
                assert seconds < BOUND
                eventually(lambda number=number: site.running.messages().count("repairing") >= number)  # type: ignore[misc]
                time.sleep(0.3)  # more than five in a second wait for a tick
        assert site.reached(unit) == {ALLOWED}


def test_a_storm_of_units_costs_little_and_raises_no_alarm(site: Site) -> None:
    site.running.up()
    tops = site.lab.cgroup / "many.slice"
    with site.running.actor(None) as other, hammering(other, site.lab.dir / "stop", _come_and_go, tops) as made:
        eventually(lambda: not site.running.status()["units"])
        began, ticks = time.monotonic(), _cpu(site.running.process.pid)
        eventually(lambda: time.monotonic() - began > 3)
        used = (_cpu(site.running.process.pid) - ticks) / (time.monotonic() - began)
        assert site.running.status()["egress"] in ("enforcing", "degraded")  # one question: it comes and goes
    eventually(lambda: site.running.asker(_remove, tops))
    eventually(site.running.in_force)
    print(f"{made[0]} units came and went; the daemon used {used * 100:.0f} % of a CPU")
    assert made[0] > 100
    assert used < 0.9
    assert "foreign-change" not in site.running.findings()
    assert "Traceback" not in site.running.messages()
    assert site.running.messages().count("\n") < 20


def test_a_look_at_once_when_the_host_wakes_up(site: Site) -> None:
    """SIGHUP, which the sleep hook sends: a rule that is over goes without waiting for the tick."""
    ends = (datetime.now(UTC) + timedelta(seconds=4)).replace(microsecond=0)
    site.write(f', expires: "{ends:%Y-%m-%dT%H:%M:%SZ}"')
    site.running.up()
    process = site.running.process

    def since_the_end() -> float:
        return (datetime.now(UTC) - ends).total_seconds()

    eventually(lambda: since_the_end() > -0.6, 10)
    process.send_signal(signal.SIGHUP)  # from here the next tick is two seconds away
    eventually(lambda: since_the_end() > 0.05)
    assert "rules that are over" not in site.running.messages()
    process.send_signal(signal.SIGHUP)
    seconds, _ = timed(eventually, lambda: "rules that are over" in site.running.messages())
    print(f"removed {seconds * 1000:.0f} ms after SIGHUP")
    assert seconds < slow(0.5)
    assert process.poll() is None


# --- in actors ---


def _enter_and_wait(place: Path, addresses: tuple[str, ...]) -> float:
    """Make the cgroup, go in, and call until nothing is let out any more, by both families; the seconds."""
    began = time.monotonic()
    place.mkdir(parents=True)
    (place / "cgroup.procs").write_text("0")
    for address in addresses:
        while True:
            assert time.monotonic() < began + 10, "never bound"
            with socket.socket(_family(address), socket.SOCK_STREAM) as sock:
                sock.settimeout(1)
                if sock.connect_ex((address, FORBIDDEN)):
                    break
            time.sleep(0.003)  # whoever writes down what arrives must keep up
    return time.monotonic() - began


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _hammer(stop: Path, addresses: tuple[str, ...]) -> int:
    """Call the addresses, now and then at the allowed port; how often."""
    calls = 0
    while not stop.exists():
        for port in (*([FORBIDDEN] * 20), ALLOWED):
            for address in addresses:
                with socket.socket(_family(address), socket.SOCK_STREAM) as sock:
                    sock.setblocking(False)
                    sock.connect_ex((address, port))
                with socket.socket(_family(address), socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
                    sock.sendto(b"x", (address, port))
                calls += 2
        time.sleep(0.001)
    return calls


def _come_and_go(stop: Path, top: Path) -> int:
    """A unit that starts and ends over and over; how often."""
    number = 0
    top.mkdir(exist_ok=True)
    while not stop.exists():
        (top / "x.service").mkdir()
        time.sleep(0.002 * (number % 5))
        (top / "x.service").rmdir()
        number += 1
    return number


def _remove(top: Path) -> bool:
    return not top.exists() or _remove_cgroups(top)


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
