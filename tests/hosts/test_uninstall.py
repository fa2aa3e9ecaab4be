"""Uninstalling with workloads running: nothing of theirs stops, and in the end nothing of penstock is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable

import pytest

from hosts import bundle, snapshot
from hosts.host import Host
from hosts.installed import complete
from hosts.world import World

UNITS = {"ml@.service": ("ml@a", "ml@b"), "plain.service": ("plain",)}
WORKLOAD = "open-webui"
RULES = f"version: 1\nworkload: {WORKLOAD}\nmode: enforce\negress: []\ningress: []\n"
GOVERN = f"""
from penstock.enrol import dropin
for unit in {list(UNITS)!r}:
    dropin.write_pending(unit, {WORKLOAD!r}, dropin.hide(rooted=False))
dropin.arm({{{WORKLOAD!r}}})
"""
SERVICES = tuple(service for services in UNITS.values() for service in services)
PYTHON = "/usr/lib/penstock/current/bin/python"
STEPS = range(6)
Taken = dict[str, list[str]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every other step, with --full each."""
    if "lines" in metafunc.fixturenames:
        metafunc.parametrize("lines", STEPS[:: 1 if metafunc.config.getoption("--full") else 2])


@pytest.fixture(scope="module")
def host(world: World) -> Host:
    """One host for all but the first test; what is installed in one is removed in it."""
    return with_services(world, "out", "bookworm")


def with_services(world: World, name: str, release: str) -> Host:
    """A host with services that are not governed yet; nothing of penstock."""
    made = world.boot(name, release)
    for unit in UNITS:
        made.write(f"/etc/systemd/system/{unit}", "[Service]\nExecStart=/usr/bin/sleep infinity\n")
    made.sh("systemctl daemon-reload; nft add table inet mine")
    made.run(["systemctl", "start", *SERVICES])
    bundle.put(made)
    snapshot.settle(made)
    return made


@pytest.fixture(scope="module")
def clean(host: Host) -> Taken:
    """The host when nothing is installed: before each of the tests that ask for it, and after it."""
    return snapshot.taken(host)


def install(host: Host, install: Callable[[Host], object] = complete) -> None:
    """Install, and govern the services, in their slice and all."""
    install(host)
    host.write(f"/etc/penstock/rules.d/{WORKLOAD}.yaml", RULES)
    host.run(["penstock", "apply"])
    host.run([PYTHON, "-c", GOVERN])
    host.run(["systemctl", "restart", *SERVICES])
    for service in SERVICES:
        assert "penstock.slice" in cgroup_of(host, service)


def pid_of(host: Host, service: str) -> str:
    return host.run(["systemctl", "show", "--value", "--property=MainPID", service]).stdout.strip()


def cgroup_of(host: Host, service: str) -> str:
    return host.read(f"/proc/{pid_of(host, service)}/cgroup").splitlines()[-1]


def test_everything_is_as_before(world: World, older_release: str) -> None:
    """After the governed services' own restart; what they can reach until then is said."""
    host = with_services(world, f"out-{older_release}", older_release)
    host.run(["systemctl", "restart", *SERVICES])
    before = snapshot.taken(host)
    install(host, bundle.install)
    pids = [pid_of(host, service) for service in SERVICES]
    looked = snapshot.taken(host)
    planned = host.run(["penstock", "uninstall", "--plan", "--purge"]).stdout
    assert snapshot.difference(looked, snapshot.taken(host)) == []
    asked = host.run(["penstock", "uninstall"], check=False)
    assert (asked.returncode, asked.stderr.count("\n")) == (2, 1)
    done = host.run(["penstock", "uninstall", "--yes", "--purge"]).stdout
    steps = [line.removeprefix("done: ") for line in done.splitlines() if line.startswith("done: ")]
    assert [f"  {step}" for step in steps] == planned.splitlines()[1 : len(steps) + 1]
    for text in (planned, done):
        assert "every process reaches everything" in text
        for service in SERVICES:
            said = f"{service}.service (workload {WORKLOAD}, 1 process) stays in its slice until its restart"
            assert said in text
    assert [pid_of(host, service) for service in SERVICES] == pids, "nothing is restarted"
    assert all("penstock.slice" in cgroup_of(host, service) for service in SERVICES), "nothing is moved"
    listed = host.sh("nft list ruleset; systemctl list-unit-files | grep -v leftovers; ls /usr/bin")
    assert "penstock" not in listed

    for service in SERVICES:
        host.run(["systemctl", "restart", service])
        assert "penstock" not in cgroup_of(host, service)
    host.wait_until(lambda: not host.exists("/sys/fs/cgroup/penstock.slice"))
    host.wait_until(lambda: "leftovers" not in host.sh("systemctl list-units --all"))
    assert snapshot.difference(before, snapshot.taken(host)) == []


def test_without_purge_rules_and_log_stay_and_serve_again(host: Host) -> None:
    install(host)
    done = host.run(["penstock", "uninstall", "--yes"]).stdout
    assert "kept: /etc/penstock and /var/log/penstock" in done
    assert host.read(f"/etc/penstock/rules.d/{WORKLOAD}.yaml") == RULES
    assert not host.exists("/var/lib/penstock")
    complete(host)
    assert WORKLOAD in host.sh("penstock status")
    host.run(["penstock", "uninstall", "--yes", "--purge"])


@pytest.mark.parametrize("again", [False, True], ids=["", "installed again meanwhile"])
def test_the_leftovers_go_with_the_last_of_them(host: Host, again: bool) -> None:
    """And do not go when penstock is there again."""
    install(host)
    host.run(["penstock", "uninstall", "--yes"])
    host.run(["systemctl", "restart", SERVICES[0]])
    assert host.exists("/sys/fs/cgroup/penstock.slice")
    if again:
        complete(host)
    host.run(["systemctl", "restart", *SERVICES[1:]])
    if again:
        assert "leftovers" not in host.sh("systemctl list-units --all")
        assert host.run(["penstock", "status"]).returncode == 0
        assert host.exists("/sys/fs/cgroup/penstock.slice")
        host.run(["penstock", "uninstall", "--yes"])
    host.wait_until(lambda: not host.exists("/sys/fs/cgroup/penstock.slice"))
    host.sh("rm -r /etc/penstock /var/log/penstock")


@pytest.mark.parametrize(
    "harm",
    [
        "systemctl kill --signal=KILL penstock.service; systemctl stop penstock.service",
        "rm /usr/lib/penstock/manifest",
        "nft flush ruleset; systemctl stop penstock.service; nft add table inet mine",
        "rm /usr/lib/systemd/system/penstock*.service; systemctl daemon-reload",
        "rm -r /var/lib/penstock /run/penstock",
        "rm /etc/systemd/system/*/penstock*.service",
    ],
)
def test_half_removed_it_removes_the_rest(host: Host, clean: Taken, harm: str) -> None:
    complete(host)
    host.sh(harm)
    host.run(["penstock", "uninstall", "--yes", "--purge"])
    found = snapshot.difference(clean, snapshot.taken(host))
    if "manifest" in harm:  # only that would know that these were not there before
        kept = [line for line in found if re.match(r"files: \+d .* /usr/share/(fish|man)", line)]
        found = [line for line in found if line not in kept]
        host.run(["rm", "-rf", *(line.split()[-1] for line in kept)])
    assert found == []


def test_killed_at_any_step_it_is_completed(host: Host, clean: Taken, lines: int) -> None:
    install(host)
    child = host.popen(["penstock", "uninstall", "--yes", "--purge"], stdout=subprocess.PIPE)
    assert child.stdout
    for _ in range(lines):
        assert child.stdout.readline().startswith("done: ")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    if host.exists("/usr/bin/penstock"):
        host.run(["penstock", "uninstall", "--yes", "--purge"])
    host.run(["systemctl", "restart", *SERVICES])
    host.wait_until(lambda: not host.exists("/sys/fs/cgroup/penstock.slice"))
    host.wait_until(lambda: "leftovers" not in host.sh("systemctl list-units --all"))
    assert snapshot.difference(clean, snapshot.taken(host)) == []


def test_a_second_time(host: Host) -> None:
    """The program is gone; a copy of it finds nothing to do."""
    complete(host)
    host.sh("cp -a /usr/lib/penstock/current/lib/python3*/site-packages /opt/again")
    host.run(["penstock", "uninstall", "--yes", "--purge"])
    argv = ["/usr/bin/python3", "-m", "penstock.cli.main", "uninstall", "--yes", "--purge"]
    done = host.run(argv, env={"PYTHONPATH": "/opt/again"})
    assert (done.stdout, done.stderr) == ("nothing of penstock is installed here\n", "")
    host.sh("rm -r /opt/again")


def test_who_needs_the_floor_by_himself_is_named(host: Host) -> None:
    complete(host)
    unit = "[Unit]\nRequires=penstock-floor.service\n[Service]\nExecStart=/bin/sleep 1000\n"
    host.write("/etc/systemd/system/mine.service", unit)
    host.sh("systemctl daemon-reload; systemctl start mine")
    before = snapshot.taken(host)
    done = host.run(["penstock", "uninstall", "--yes"], check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("penstock: mine.service: requires penstock-floor.service by a file that is not")
    assert snapshot.difference(before, snapshot.taken(host)) == []
    host.sh("systemctl stop mine; rm /etc/systemd/system/mine.service; systemctl daemon-reload")
    host.run(["penstock", "uninstall", "--yes", "--purge"])
