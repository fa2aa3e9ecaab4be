"""Who is logged in while an `apply` would shut him out: the real daemon, real connections, both families."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from attacks import ops
from daemon.running import Running
from governed import Actor
from penstock.demo.lab import HOST_ADDRESSES, REMOTES, Lab

pytestmark = pytest.mark.root

PORT = 2022
FAMILIES = [pytest.param(number, id=f"v{6 if ':' in HOST_ADDRESSES[number] else 4}") for number in (0, 1)]


def host_file(admin: str, clients: str) -> str:
    """penstock.yaml with these two networks."""
    networks = f"  admin: {{{admin}, plane: admin}}\n  clients: {{{clients}, plane: inference}}\n"
    return f"version: 1\nnetworks:\n{networks}host: {{admin_ports: [{PORT}]}}\n"


def both(name: str) -> str:
    v4, v6 = REMOTES[name]
    return f'cidr: ["{v4}/32", "{v6}/128"]'


class Login:
    """A connection from a remote host to the host's admin port, and ways to try another one."""

    def __init__(self, lab: Lab, running: Running, number: int) -> None:
        self.running, self._address = running, HOST_ADDRESSES[number]
        self.source = REMOTES["stranger"][number]
        self._client, self._sshd = Actor(lab.remote["stranger"]), Actor(lab.host)
        self._listener = self._sshd(ops.listen, self._address, PORT)
        self._made = self._client(ops.connect, self._address, PORT)
        assert isinstance(self._made, int), self._made
        self._taken = self._sshd(ops.accept, self._listener)

    def goes_on(self) -> bool:
        """Whether a byte passes each way."""
        self._client(ops.send, self._made, b"x")
        there = self._sshd(ops.receive, self._taken)
        self._sshd(ops.send, self._taken, b"y")
        return (there, self._client(ops.receive, self._made)) == (b"x", b"y")

    def another(self) -> bool:
        """Whether a new connection is let in."""
        return isinstance(self._client(ops.connect, self._address, PORT), int)

    def penstock(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "penstock.cli.main", "--run", self.running.run, *arguments]
        return self.running.lab.host.run(list(map(str, argv)), check=False)

    def close(self) -> None:
        self._client.close()
        self._sshd.close()


@pytest.fixture(params=FAMILIES)
def login(request: pytest.FixtureRequest, lab: Lab, running: Running) -> Iterator[Login]:
    running.rules("a")
    running.up()
    made = Login(lab, running, request.param)
    yield made
    made.close()


def test_an_apply_that_would_shut_him_out_wants_to_be_confirmed(login: Login) -> None:
    running = login.running
    before = running.ask("status")["policy"]["hash"]
    running.write("penstock.yaml", host_file(both("registry"), both("stranger")))
    place = f"{running.config}/penstock.yaml:4:3: error: "
    done = login.penstock("apply")
    assert done.returncode == 1
    (line,) = (line for line in done.stdout.splitlines() if line.startswith(place))
    assert f"new connections from network `clients` to port {PORT} are refused" in line
    assert login.source in line
    assert "`penstock apply --confirm 60s`" in line
    assert running.ask("status")["policy"]["hash"] == before
    assert login.another()
    assert login.goes_on()
    assert login.source in login.penstock("plan").stdout
    # Whoever speaks to the daemon himself does not get around it.
    assert running.ask("apply")["refused"] is True

    done = login.penstock("apply", "--confirm", "10m")
    assert (done.returncode, f"{place}" in done.stdout) == (0, False)
    assert place.replace("error", "warning") in done.stdout
    assert not login.another()
    assert login.goes_on()
    assert login.penstock("rollback").returncode == 0
    assert login.another()


def test_over_the_interface_of_clients(login: Login) -> None:
    running = login.running
    running.write("penstock.yaml", host_file(both("registry"), "interface: eth0"))
    done = login.penstock("apply")
    assert done.returncode == 1
    assert login.source in done.stdout


def test_whoever_is_in_the_admin_network_is_not_held_up(login: Login) -> None:
    running = login.running
    running.write("penstock.yaml", host_file(both("stranger"), both("registry")))
    assert login.penstock("check", running.config).returncode == 0
    done = login.penstock("apply")
    assert (done.returncode, login.source in done.stdout) == (0, False), done
    assert login.another()
    assert login.goes_on()


def test_check_says_what_differs_from_this_host(login: Login) -> None:
    running = login.running
    text = host_file("interface: wg9", 'cidr: ["192.0.2.128/25", "2001:db8:ffff::/48"]')
    running.write("penstock.yaml", text.replace("interface: wg9", 'cidr: "fd00::/16"') + "x: 1\n")
    assert login.penstock("check", running.config).returncode == 1
    running.write("penstock.yaml", text)
    done = login.penstock("check", running.config, "--json")
    found = {problem["code"]: problem for problem in json.loads(done.stdout)}
    assert done.returncode == 0
    assert found["no-interface"]["severity"] == found["admin-session"]["severity"] == "warning"
    assert login.source in found["admin-session"]["message"]
    assert (found["no-interface"]["line"], found["admin-session"]["line"]) == (3, 3)
