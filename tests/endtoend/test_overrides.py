"""A mode that is lent, with the real daemon: it ends at its end, alive or dead, and over starts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from daemon.running import Running
from governed import Actor, eventually
from penstock.core.log_prefix import Refusal
from penstock.demo.lab import Lab
from penstock.demo.probe import tcp
from penstock.demo.recorder import Recorder

pytestmark = pytest.mark.root

OPEN, CLOSED = 80, 81
WHY = ("--reason", "the pipeline stands still")


class Site:
    """A workload that is enforced, and a remote host: one port is in its rules, another is not."""

    def __init__(self, lab: Lab, running: Running) -> None:
        self.running = running
        self.recorder = Recorder(lab, next(iter(lab.remote.values())), ports=(OPEN, CLOSED), packets=True)
        self.addresses = self.recorder.host.addresses
        self.write("enforce")
        running.up()
        self.actor: Actor = running.actor()

    def write(self, mode: str) -> None:
        v4, v6 = self.addresses
        self.running.rules("a", f'[{{to: [{v4}, "{v6}"], ports: [{OPEN}]}}]', mode=mode)

    def penstock(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "penstock.cli.main", "--run", str(self.running.run), *arguments]
        return self.running.lab.host.run(argv, check=False)

    def lend(self, *arguments: str) -> dict[str, Any]:
        """The grant that came of it."""
        done = self.penstock(*arguments, *WHY, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)["grant"]
        return found

    def arrives(self, port: int) -> bool:
        """Whether it does from the workload, in both families alike."""
        seen = []
        for address in self.addresses:
            before = len(self.recorder.arrivals("packet"))
            self.actor(tcp, address, port)
            seen.append(len(self.recorder.arrivals("packet")) > before)
        assert seen[0] == seen[1]
        return seen[0]

    @property
    def reaches(self) -> tuple[bool, bool]:
        """The open port, and the closed one."""
        return self.arrives(OPEN), self.arrives(CLOSED)

    @property
    def mode(self) -> tuple[str, bool]:
        """As status says it, and whether it is said to end."""
        one = self.running.status()
        return str(one["mode"]), one["until"] is not None

    def close(self) -> None:
        self.actor.close()
        self.recorder.stop()


@pytest.fixture
def site(lab: Lab, running: Running) -> Iterator[Site]:
    made = Site(lab, running)
    yield made
    made.close()


NOTHING_ELSE, ALL, NOTHING = (True, False), (True, True), (False, False)


def seconds_left(one: dict[str, Any]) -> float:
    return datetime.fromisoformat(one["until"]).timestamp() - time.time()


def test_observed_for_a_while(site: Site) -> None:
    assert site.reaches == NOTHING_ELSE
    one = site.lend("observe", "a", "--for", "10m")
    assert (one["mode"], one["direction"], one["what"]) == ("observe", None, "mode observe")
    assert (site.mode, site.reaches) == (("observe", True), ALL)
    assert "observe to " in site.penstock("status").stdout
    eventually(lambda: {b["verdict"] for b in site.running.blocks()} == {Refusal.DENY, Refusal.WOULD_DENY})
    assert one["id"] in site.penstock("grants").stdout
    assert site.running.ask("status")["policy"]["pending_files"] == 0
    assert site.penstock("why", "a", f"{site.addresses[0]}:{CLOSED}").returncode == 1
    done = site.penstock("enforce", "a")  # the mode that is lent would win
    assert (done.returncode, one["id"] in done.stderr) == (1, True)
    assert site.penstock("revoke", one["id"]).returncode == 0
    assert (site.mode, site.reaches) == (("enforce", False), NOTHING_ELSE)


@pytest.mark.parametrize("dead", [False, True])
def test_it_ends_in_the_kernel(site: Site, dead: bool) -> None:
    one = site.lend("observe", "a", "--for", "5s")
    if dead:
        site.running.stop(signal.SIGKILL)
    assert site.arrives(CLOSED)
    assert seconds_left(one) > 0.5
    time.sleep(max(0.0, seconds_left(one) + 0.1))
    assert site.reaches == NOTHING_ELSE
    if dead:
        site.running.up()
    eventually(lambda: site.mode == ("enforce", False))
    assert site.running.ask("status")["grants"] == []
    assert site.reaches == NOTHING_ELSE
    assert "ended" in site.penstock("grants", "--past").stdout


def test_it_outlives_a_daemon_and_an_apply(site: Site) -> None:
    one = site.lend("observe", "a", "--for", "10m")
    site.running.stop(signal.SIGKILL)
    site.running.up()
    assert (site.mode, site.reaches) == (("observe", True), ALL)
    site.running.rules("b")
    site.running.ask("apply")
    assert (site.mode, site.reaches) == (("observe", True), ALL)
    assert [found["id"] for found in site.running.ask("grants")["grants"]] == [one["id"]]


def test_of_a_file_that_says_another_mode_by_now_that_stays(site: Site) -> None:
    one = site.lend("observe", "a", "--for", "5s")
    site.write("observe")
    site.running.ask("apply")
    assert site.mode == ("observe", False)
    assert seconds_left(one) > 0
    time.sleep(seconds_left(one) + 1)
    assert site.reaches == ALL  # its end is no end of what the file says
    site.write("lock")
    site.running.ask("apply")
    assert site.reaches == NOTHING


def test_locked(site: Site) -> None:
    one = site.lend("lock", "a")
    assert seconds_left(one) > 29 * 86400
    assert (site.mode, site.reaches) == (("lock", True), NOTHING)
    refused = site.penstock("observe", "a", "--for", "1m", *WHY)
    assert (refused.returncode, "is locked until" in refused.stderr) == (1, True)
    site.running.stop(signal.SIGKILL)
    assert site.reaches == NOTHING
    site.running.up()
    assert site.reaches == NOTHING
    assert site.penstock("revoke", one["id"]).returncode == 0
    assert (site.mode, site.reaches) == (("enforce", False), NOTHING_ELSE)


def test_a_lock_wins_and_is_lifted_by_the_daemon_alone(site: Site) -> None:
    site.lend("observe", "a", "--for", "10m")
    done = site.penstock("lock", "a", "--for", "4s", *WHY)
    assert (done.returncode, "the lock wins" in done.stderr) == (0, True)
    site.running.stop(signal.SIGKILL)
    time.sleep(4.5)
    assert site.reaches == NOTHING
    site.running.up()
    assert (site.mode, site.reaches) == (("observe", True), ALL)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("observe", "a", "--for", "25h", *WHY), 1, "more than 24 hours"),
        (("observe", "a", "--for", "0s", *WHY), 2, "no time at all"),
        (("observe", "a", *WHY), 2, "say how long"),
        (("observe", "a", "--for", "1m"), 2, "say why"),
        (("observe", "a", "--for", "1m", "--until", "23:59", *WHY), 2, "say it once"),
        (("observe", "b", "--for", "1m", *WHY), 1, "no workload `b`"),
        (("lock", "a", "--for", "1y", *WHY), 2, "number and a unit"),
    ],
)
def test_what_is_refused(site: Site, words: tuple[str, ...], status: int, said: str) -> None:
    done = site.penstock(*words)
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr
    assert site.mode == ("enforce", False)


def test_twice_and_what_the_file_says_already(site: Site) -> None:
    site.lend("observe", "a", "--for", "1m")
    assert "does that until" in site.penstock("observe", "a", "--for", "1m", *WHY).stderr
    site.write("observe")
    site.running.ask("apply")
    assert "observed already" in site.penstock("observe", "a", "--for", "1m", *WHY).stderr
    site.write("lock")
    site.running.ask("apply")
    assert "locked already" in site.penstock("lock", "a", *WHY).stderr
    assert "locked by its file" in site.penstock("observe", "a", "--for", "1m", *WHY).stderr
