"""`penstock enforce` with the real daemon: proved by packets, and taken back when the packets say otherwise."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from daemon.running import Running
from governed import Actor, eventually
from penstock.core.probes import NOWHERE
from penstock.demo.lab import Lab
from penstock.demo.probe import tcp
from penstock.demo.recorder import Recorder

pytestmark = pytest.mark.root

OPEN, CLOSED = 80, 81
STRAY = """
table inet stray {
  chain output {
    type nat hook output priority -100;
    ip daddr { 192.0.2.1, 127.0.0.1 } tcp dport 9 dnat ip to %s:80
    ip6 daddr { 2001:db8::1, ::1 } tcp dport 9 dnat ip6 to [%s]:80
  }
}
"""


class Site:
    """A workload that is only observed, and a remote host: one port is in its rules, another is not."""

    def __init__(self, lab: Lab, running: Running) -> None:
        self.running = running
        self.recorder = Recorder(lab, next(iter(lab.remote.values())), ports=(OPEN, CLOSED), packets=True)
        self.v4, self.v6 = self.recorder.host.addresses
        self.text = (
            "# why it is as it is\nversion: 1\nworkload: a\nmode: observe  # for a week\n"
            f'egress:\n  - to: [{self.v4}, "{self.v6}"]\n    ports: [{OPEN}]\ningress: []\n'
        )
        running.write("rules.d/a.yaml", self.text)
        running.up()
        self.actor: Actor = running.actor()

    @property
    def file(self) -> str:
        return (self.running.config / "rules.d/a.yaml").read_text()

    @property
    def argv(self) -> list[str]:
        return [sys.executable, "-m", "penstock.cli.main", "--run", str(self.running.run)]

    def penstock(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run to its end, without a terminal."""
        return self.running.lab.host.run([*self.argv, *arguments], check=False)

    def arrives(self, port: int) -> bool:
        """Whether it does from the workload, in both families alike."""
        seen = []
        for address in (self.v4, self.v6):
            before = len(self.recorder.arrivals("packet"))
            self.actor(tcp, address, port)
            seen.append(len(self.recorder.arrivals("packet")) > before)
        assert seen[0] == seen[1]
        return seen[0]

    @property
    def mode(self) -> str:
        return str(self.running.status()["mode"])

    def close(self) -> None:
        self.actor.close()
        self.recorder.stop()
        self.running.lab.host.run(["nft", "delete", "table", "inet", "stray"], check=False)


@pytest.fixture
def site(lab: Lab, running: Running) -> Iterator[Site]:
    made = Site(lab, running)
    yield made
    made.close()


def probes(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, int], Any]:
    """By what was expected and the family."""
    found = json.loads(done.stdout)["probes"]
    return {(one["expect"], 6 if ":" in one["address"] else 4): one for one in found}


def test_it_is_shown_done_and_proved(site: Site) -> None:
    assert site.arrives(CLOSED)  # only observed
    eventually(lambda: len(site.running.blocks()) >= 2)
    done = site.penstock("enforce", "a", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert {(one["addresses"][0], one["port"]) for one in said["would_deny"]} == {
        (site.v4, CLOSED),
        (site.v6, CLOSED),
    }
    assert (said["enforced"], said["reverted"], said["confirm_until"], said["changed"]) == (
        True,
        False,
        None,
        True,
    )
    found = probes(done)
    assert {key: one["proven"] for key, one in found.items()} == {
        ("denied", 4): True,
        ("denied", 6): True,
        ("allowed", 4): True,
        ("allowed", 6): True,
    }
    assert all("counted and logged" in found["denied", family]["text"] for family in (4, 6))
    assert site.file == site.text.replace("observe", "enforce")
    assert (site.mode, site.arrives(OPEN), site.arrives(CLOSED)) == ("enforce", True, False)
    assert site.running.ask("status")["policy"]["confirm_until"] is None
    again = site.penstock("enforce", "a")
    assert (again.returncode, "enforces already" in again.stdout, "kept" in again.stdout) == (0, True, True)
    assert again.stdout.count("proved") == 4
    assert "not tried" not in again.stdout
    assert [line for line in again.stdout.splitlines() if len(line) > 80 and not line.startswith("/")] == []


def test_probes_are_not_suggested(site: Site) -> None:
    for _ in range(2):
        site.penstock("enforce", "a")
    said = json.loads(site.penstock("suggest", "a", "--json").stdout)
    ours = {str(address) for address in NOWHERE}
    assert not [one for one in (*said["proposed"], *said["refused"]) for seen in one["seen"]
                if set(seen["addresses"]) & ours]  # fmt: skip


def test_a_denied_probe_that_gets_out_takes_all_back(site: Site) -> None:
    """Somebody else's table leads what goes nowhere to where the rules allow."""
    site.running.nft(STRAY % (site.v4, site.v6))
    old = site.running.ask("status")["policy"]["hash"]
    done = site.penstock("enforce", "a", "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 1
    assert (said["enforced"], said["reverted"]) == (False, True)
    assert {probes(done)["denied", family]["proven"] for family in (4, 6)} == {False}
    assert site.file == site.text
    assert (site.mode, site.running.ask("status")["policy"]["hash"]) == ("observe", old)
    assert site.running.ask("status")["policy"]["pending_files"] == 0


def test_without_a_terminal_it_waits_in_the_daemon(site: Site) -> None:
    done = site.penstock("enforce", "a", "--confirm", "10m")
    assert (done.returncode, "keep it with: penstock confirm" in done.stdout) == (0, True)
    assert site.mode == "enforce"
    assert site.penstock("confirm").returncode == 0
    assert (site.mode, site.running.ask("status")["policy"]["confirm_until"]) == ("enforce", None)


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_without_a_terminal_the_file_goes_back_with_the_policy(site: Site, words: tuple[str, ...]) -> None:
    began = time.monotonic()
    done = site.penstock("enforce", "a", "--confirm", "8s", *words)
    assert (done.returncode, time.monotonic() - began < 7) == (0, True)
    assert site.file == site.text.replace("observe", "enforce")
    eventually(lambda: site.mode == "observe", 20)
    eventually(lambda: site.file == site.text, 5)
    assert site.running.ask("status")["policy"]["pending_files"] == 0


def test_confirmed_without_a_terminal_the_file_stays(site: Site) -> None:
    site.penstock("enforce", "a", "--confirm", "10m")
    assert site.penstock("confirm").returncode == 0
    watching = ["pgrep", "-f", f"{site.running.run} enforce"]
    eventually(lambda: site.running.lab.host.run(watching, check=False).stdout == "", 10)
    assert site.file == site.text.replace("observe", "enforce")


def test_what_is_refused_changes_nothing(site: Site) -> None:
    site.penstock("enforce", "a", "--confirm", "10m")
    site.running.write("rules.d/a.yaml", site.text)
    done = site.penstock("enforce", "a")  # the other one waits
    assert (done.returncode, site.file) == (1, site.text)
    site.running.ask("rollback", to="")
    site.running.write("rules.d/a.yaml", site.text + "tests:\n  - egress 10.0.0.1:1 allow\n")
    done = site.penstock("enforce", "a")
    assert (done.returncode, site.mode) == (1, "observe")
    site.running.write("rules.d/a.yaml", site.text)
    assert site.penstock("enforce", "b").returncode == 2


class Terminal:
    """The program on a terminal."""

    def __init__(self, site: Site, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.process = site.running.lab.host.popen(
            [*site.argv, *arguments], stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        self.said = ""

    def until(self, words: str) -> None:
        """Read until it said them."""
        deadline = time.monotonic() + 30
        while words not in self.said:
            assert time.monotonic() < deadline, self.said
            if select.select([self._master], [], [], 0.2)[0]:
                self.said += os.read(self._master, 4096).decode()

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def hang_up(self) -> None:
        os.close(self._master)

    def end(self) -> int:
        status = self.process.wait(30)
        return int(status)


def test_a_word_on_the_terminal_keeps_it(site: Site) -> None:
    terminal = Terminal(site, "enforce", "a", "--confirm", "2m")
    terminal.until("type yes to keep it")
    terminal.type("yes\n")
    terminal.until("kept")
    assert terminal.end() == 0
    assert (site.mode, site.file) == ("enforce", site.text.replace("observe", "enforce"))
    assert site.running.ask("status")["policy"]["confirm_until"] is None
    terminal.hang_up()


def test_no_takes_it_back_and_the_file_too(site: Site) -> None:
    terminal = Terminal(site, "enforce", "a", "--confirm", "2m")
    terminal.until("type yes to keep it")
    terminal.type("no\n")
    terminal.until("put back")
    assert terminal.end() == 1
    assert (site.mode, site.file) == ("observe", site.text)
    terminal.hang_up()


def test_a_terminal_that_is_lost_keeps_nothing(site: Site) -> None:
    """As when the rules cut off whoever typed them: the daemon reverts, and what waited puts the file back."""
    terminal = Terminal(site, "enforce", "a", "--confirm", "9s")
    terminal.until("type yes to keep it")
    terminal.hang_up()
    terminal.process.send_signal(signal.SIGHUP)
    eventually(lambda: site.mode == "observe", 30)
    eventually(lambda: site.file == site.text, 10)
    terminal.end()


def test_confirmed_elsewhere(site: Site) -> None:
    terminal = Terminal(site, "enforce", "a", "--confirm", "2m")
    terminal.until("type yes to keep it")
    assert site.penstock("confirm").returncode == 0
    terminal.until("kept")
    assert terminal.end() == 0
    assert site.mode == "enforce"
    terminal.hang_up()


def test_ctrl_c_takes_it_back(site: Site) -> None:
    terminal = Terminal(site, "enforce", "a", "--confirm", "2m")
    terminal.until("type yes to keep it")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 1
    assert (site.mode, site.file) == ("observe", site.text)
    terminal.hang_up()
