"""A policy that waits to be confirmed: kept, reverted in time, reverted by a daemon that dies, rolled back."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from daemon.running import Running
from governed import Actor, eventually
from penstock.demo.lab import Lab
from penstock.demo.probe import tcp
from penstock.demo.recorder import Recorder
from penstock.errors import PenstockError

pytestmark = pytest.mark.root

BEFORE, AFTER = 80, 81
"""The port that each of the two policies opens."""


class Site:
    """A daemon with a policy in force, rule files that say another, and somebody who tries what is open."""

    def __init__(self, lab: Lab, running: Running) -> None:
        self.running = running
        self._recorder = Recorder(lab, next(iter(lab.remote.values())), ports=(BEFORE, AFTER), packets=True)
        self.write(BEFORE)
        running.up()
        self.write(AFTER)
        self.actor: Actor = running.actor()

    def write(self, port: int) -> None:
        """The rule files."""
        v4, v6 = self._recorder.host.addresses
        self.running.rules("a", f'[{{to: [{v4}, "{v6}"], ports: [{port}]}}]')

    def penstock(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The program, run to its end by a bystander."""
        argv = [sys.executable, "-m", "penstock.cli.main", "--run", str(self.running.run), *arguments]
        return self.running.lab.host.run(argv, check=False)

    @property
    def open(self) -> set[int]:
        """The ports at which something arrives from the workload; both families must agree."""
        found = []
        for address in self._recorder.host.addresses:
            seen = len(self._recorder.arrivals("packet"))
            for port in (BEFORE, AFTER):
                self.actor(tcp, address, port)
            found.append({packet.port for packet in self._recorder.arrivals("packet")[seen:]})
        assert found[0] == found[1]
        return found[0]

    @property
    def hash(self) -> str:
        """Of the policy in force."""
        return str(self.running.ask("status")["policy"]["hash"])

    def close(self) -> None:
        self.actor.close()
        self._recorder.stop()


@pytest.fixture
def site(lab: Lab, running: Running) -> Iterator[Site]:
    made = Site(lab, running)
    yield made
    made.close()


def test_it_reverts_by_itself(site: Site) -> None:
    old = site.hash
    assert site.open == {BEFORE}
    done = site.penstock("apply", "--confirm", "5s", "--changed-exit")
    began = time.monotonic()
    assert (done.returncode, done.stderr) == (3, "")
    assert "not confirmed: reverts by itself at " in done.stdout
    assert site.hash != old
    assert "not confirmed: reverts at" in site.penstock("status").stdout
    assert site.open == {AFTER}
    eventually(lambda: site.hash == old, 10)
    assert 3 < time.monotonic() - began < 8
    assert site.open == {BEFORE}
    status = site.running.ask("status")
    assert (status["policy"]["confirm_until"], status["policy"]["pending_files"]) == (None, 1)
    done = site.penstock("confirm")
    assert (done.returncode, done.stderr) == (
        1,
        f"penstock: nothing waits to be confirmed; in force is {old}\n",
    )


def test_a_daemon_that_dies_meanwhile_brings_back_what_was_there(site: Site) -> None:
    old = site.hash
    assert site.penstock("apply", "--confirm", "10m").returncode == 0
    assert site.open == {AFTER}
    assert site.running.saved().hash == old
    site.running.stop(signal.SIGKILL)
    assert site.open == {AFTER}  # nobody is there to change it, and nothing more is open
    site.running.up()
    assert site.hash == old
    assert site.open == {BEFORE}
    assert site.running.ask("status")["policy"]["confirm_until"] is None


def test_confirmed_it_stays(site: Site) -> None:
    site.penstock("apply", "--confirm", "5s")
    new = site.hash
    done = site.penstock("confirm")
    assert (done.returncode, done.stdout) == (0, f"confirmed {new}: it stays in force\n")
    site.running.stop(signal.SIGKILL)
    site.running.up()
    assert site.hash == new
    assert site.open == {AFTER}


def test_rollback(site: Site) -> None:
    old = site.hash
    site.penstock("apply")
    new = site.hash
    listed = json.loads(site.penstock("rollback", "--list", "--json").stdout)["policies"]
    assert [(one["hash"], one["workloads"]) for one in listed] == [(new, 1), (old, 1)]
    done = site.penstock("rollback")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"back in force is {old}: 1 workload, ")
    assert site.open == {BEFORE}
    site.running.stop(signal.SIGKILL)
    site.running.up()
    assert site.hash == old
    assert site.penstock("rollback", new[:4]).returncode == 0
    assert (site.hash, site.open) == (new, {AFTER})
    done = site.penstock("rollback", "0000" if not new.startswith("0000") else "1111")
    assert (done.returncode, done.stdout) == (1, "")
    assert site.hash == new


def test_rollback_reverts_what_waits_at_once(site: Site) -> None:
    old = site.hash
    site.penstock("apply", "--confirm", "10m")
    assert site.penstock("rollback", "--list").stdout.splitlines()[1].endswith("rollback goes here")
    assert site.penstock("rollback").returncode == 0
    assert (site.hash, site.open) == (old, {BEFORE})
    assert site.running.ask("status")["policy"]["confirm_until"] is None
    assert site.penstock("confirm").returncode == 1


def test_the_same_files_again_change_nothing(site: Site) -> None:
    assert site.penstock("apply", "--changed-exit").returncode == 3
    before = site.running.snapshot()
    for confirm in ((), ("--confirm", "5s")):
        done = site.penstock("apply", "--changed-exit", *confirm)
        assert (done.returncode, "unchanged" in done.stdout, "not confirmed" in done.stdout) == (0, True, False)
    assert site.running.snapshot() == before


def test_three_are_kept(site: Site) -> None:
    hashes = [site.hash]
    for port in (82, 83, 84):
        site.write(port)
        assert site.penstock("apply").returncode == 0
        hashes.append(site.hash)
    listed = json.loads(site.penstock("rollback", "--list", "--json").stdout)["policies"]
    assert [one["hash"] for one in listed] == hashes[:0:-1]
    assert site.penstock("rollback", hashes[0]).returncode == 1
    assert site.penstock("rollback", hashes[1]).returncode == 0
    assert site.hash == hashes[1]


# --- what is on disk meanwhile ---


def on_disk(site: Site) -> dict[str, bytes]:
    """What the next start, and the next boot, would load; not what was counted, nor what only explains."""
    home = site.running.state
    files = [path for path in home.rglob("*") if path.is_file() and path.name != "books.json"]
    files = [path for path in files if path.parent.name != "policies"]
    return {str(path.relative_to(home)): path.read_bytes() for path in files}


def marked(site: Site) -> bool:
    """Whether there is word that the kernel holds what nobody has confirmed."""
    return (site.running.run / "unconfirmed").exists()


def test_what_waits_is_on_no_disk_until_it_is_confirmed(site: Site) -> None:
    before = on_disk(site)
    assert {"applied.json", "floor.nft"} <= before.keys()
    assert not marked(site)
    site.running.ask("apply", confirm=600)
    assert marked(site)
    assert on_disk(site) == before
    site.running.ask("rollback", to="")
    assert not marked(site)
    assert on_disk(site) == before
    site.running.ask("apply", confirm=600)
    assert site.running.ask("confirm")["confirmed"]
    assert not marked(site)
    after = on_disk(site)
    assert after["applied.1.json"] == before["applied.json"]
    assert after["floor.nft"] != before["floor.nft"]
    assert not [name for name in after if name.endswith(".new")]


def test_it_reverts_in_its_time_without_anybody(site: Site) -> None:
    before, old = on_disk(site), site.hash
    site.running.ask("apply", confirm=2)
    began = time.monotonic()
    assert site.open == {AFTER}
    eventually(lambda: not marked(site), 10)
    assert 1 < time.monotonic() - began < 5
    assert site.hash == old
    assert site.open == {BEFORE}
    assert on_disk(site) == before
    assert "nobody confirmed the policy" in site.running.messages()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGABRT])
def test_the_mark_outlives_a_daemon_that_dies_and_no_start(end: int, site: Site) -> None:
    before, old = on_disk(site), site.hash
    site.running.ask("apply", confirm=600)
    site.running.stop(end)
    assert marked(site)
    assert on_disk(site) == before
    site.running.up()
    eventually(lambda: not marked(site))
    assert (site.hash, site.open) == (old, {BEFORE})
    assert on_disk(site) == before


def test_a_daemon_that_is_stopped_takes_it_back_first(site: Site) -> None:
    """Nobody may come to start it again."""
    before = on_disk(site)
    site.running.ask("apply", confirm=600)
    assert site.open == {AFTER}
    assert site.running.stop() == 0
    assert site.open == {BEFORE}
    assert not marked(site)
    assert on_disk(site) == before


def test_killed_at_any_moment_of_it(site: Site, count: int) -> None:
    """Whatever was under way, the start brings back what was saved, whole."""
    old = site.hash
    chance = random.Random(20261126)
    for _ in range(50 // count):
        site.running.ask_later("apply", confirm=600)
        time.sleep(chance.uniform(0, 0.15))
        site.running.stop(signal.SIGKILL)
        with contextlib.suppress(PenstockError):
            site.running.asker.result()
        site.running.up()
        assert site.hash == old
        eventually(lambda: not marked(site))
    assert site.open == {BEFORE}
