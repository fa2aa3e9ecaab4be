"""Installing from a bundle on hosts without a way out: once, twice, interrupted, over an older one and back."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from hosts import bundle, snapshot
from hosts.host import Host
from hosts.installed import image
from hosts.world import World
from penstock.enrol.installed import KNOWN

PATIENCE = 60
"""Seconds from a fresh host to a daemon that answers."""
OTHER = "9.9.9"
STAGES = (
    "/usr/lib/penstock/manifest",
    "/usr/lib/penstock/releases/*/pyvenv.cfg",
    "/usr/lib/penstock/releases/*/lib/python3.*/site-packages/click",
    "/usr/lib/penstock/releases/*/complete",
    "/usr/lib/penstock/floor",
    "/usr/lib/systemd/system/penstock.slice",
    "/usr/bin/penstock",
    "/etc/systemd/system/sysinit.target.wants/penstock-floor.service",
)
"""Paths in the order in which they appear."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every other stage, with --full each."""
    if "stage" in metafunc.fixturenames:
        metafunc.parametrize("stage", STAGES[:: 1 if metafunc.config.getoption("--full") else 2])


@pytest.fixture(scope="module")
def host(world: World, release: str) -> Host:
    """One of each release, on which penstock is installed."""
    made = world.boot(f"one-{release}", release)
    seconds = bundle.install(made)
    snapshot.settle(made)
    print(f"{release}: installed in {seconds:.1f} s")
    assert seconds < PATIENCE
    return made


def of_unit(host: Host, unit: str, name: str) -> str:
    """A property of a unit."""
    return host.run(["systemctl", "show", "--value", f"--property={name}", unit]).stdout.strip()


def test_it_runs(host: Host) -> None:
    for unit in ("penstock.service", "penstock-floor.service"):
        assert of_unit(host, unit, "ActiveState") == "active"
    assert of_unit(host, "penstock-floor-again.service", "UnitFileState") == "enabled"
    assert host.sh("systemctl --failed --no-legend") == ""
    assert host.run(["penstock", "status"]).returncode == 0
    assert host.read("/run/penstock/floor") == "loaded none\n"
    assert "chain governed_out" in host.sh("nft list table inet penstock")


def test_what_is_installed_belongs_to_root_and_nobody_else_writes_it(host: Host) -> None:
    paths = "/usr/lib/penstock /usr/bin/penstock $(grep '^/' /usr/lib/penstock/manifest)"
    assert host.sh(f"find {paths} ! -type l \\( -perm /022 -o ! -user root \\)") == ""
    modes = host.sh("stat -c %a /etc/penstock /etc/penstock/penstock.yaml /var/lib/penstock").split()
    assert modes == ["755", "644", "700"]


def test_every_path_is_in_the_list(host: Host) -> None:
    listed = host.read("/usr/lib/penstock/manifest").splitlines()[1:]
    assert listed == sorted(listed)
    assert host.sh("for p in $(grep '^/' /usr/lib/penstock/manifest); do [ -e $p ] || echo $p; done") == ""
    outside = {path for path in listed if not path.startswith(("/usr/lib/penstock/", "/usr/bin/"))}
    directories = {path for path in outside if path.endswith("/")}
    assert outside - directories == {path for path in KNOWN if not path.endswith("/")}


def test_exposure(host: Host) -> None:
    said = host.sh("systemd-analyze security --no-pager penstock.service")
    found = re.search(r"Overall exposure level for penstock.service: ([\d.]+)", said)
    assert found
    print(f"{host.release}: exposure {found[1]}")
    assert float(found[1]) <= 3.0
    explained = host.sh("grep '^#' /usr/lib/systemd/system/penstock.service")
    for line in said.splitlines():
        if line.startswith("✗"):
            setting, _, value = line.split()[1].partition("=~")
            word = re.findall(r"\w+", value or setting)[0]
            assert word in explained, line


def test_units_are_sound(host: Host) -> None:
    """systemd has nothing to complain about."""
    units = "penstock.service penstock-floor.service penstock-floor-again.service penstock.slice"
    said = host.sh(f"cd /usr/lib/systemd/system && systemd-analyze verify --man=no {units} 2>&1 || true")
    assert [line for line in said.splitlines() if "penstock" in line] == []
    assert "penstock" not in host.sh("journalctl -b -q -p warning -t systemd --no-pager")


@pytest.mark.parametrize("unit", ["penstock.slice", "penstock-floor.service", "penstock-some.slice"])
def test_what_must_stay_refuses_to_be_stopped(host: Host, unit: str) -> None:
    host.run(["systemctl", "start", unit])
    for verb in ("stop", "restart"):
        assert host.run(["systemctl", verb, unit], check=False).returncode != 0
    assert of_unit(host, unit, "ActiveState") == "active"


def test_completion(host: Host) -> None:
    script = """
        . /usr/share/bash-completion/completions/penstock
        COMP_WORDS=(penstock sta) COMP_CWORD=1
        _penstock_completion penstock; echo ${COMPREPLY[*]}"""
    assert host.run(["bash", "-c", script]).stdout == "status\n"


def test_again_changes_nothing(host: Host) -> None:
    before = snapshot.taken(host)
    pids = [of_unit(host, unit, "ExecMainPID") for unit in ("penstock.service", "penstock-floor.service")]
    said = host.run([f"{bundle.put(host)}/systemd/install.sh"])
    assert said.stdout.startswith("unchanged: penstock ")
    assert [of_unit(host, unit, "ExecMainPID") for unit in ("penstock.service", "penstock-floor.service")] == pids
    assert snapshot.difference(before, snapshot.taken(host)) == []


def test_again_starts_a_daemon_that_does_not_run_and_mends_files(host: Host) -> None:
    host.run(["systemctl", "stop", "penstock.service"])
    host.write("/usr/lib/penstock/floor", "#!/bin/sh\n")
    host.write("/etc/penstock/penstock.yaml", "version: 1\n# mine\n")
    bundle.install(host)
    assert of_unit(host, "penstock.service", "ActiveState") == "active"
    assert "penstock floor" in host.read("/usr/lib/penstock/floor")
    assert host.read("/etc/penstock/penstock.yaml").endswith("# mine\n")


def test_another_version_and_back(world: World, older_release: str) -> None:
    """The floor is never restarted, two releases are kept, and no file of the one is left in the other."""
    host = world.boot(f"two-{older_release}", older_release, image=image(older_release))
    floor = of_unit(host, "penstock-floor.service", "ExecMainPID")
    first = host.sh("readlink /usr/lib/penstock/current").strip()
    for version, kept in ((OTHER, 2), (bundle.CURRENT, 2), (OTHER, 2)):
        pid = of_unit(host, "penstock.service", "MainPID")
        bundle.install(host, version)
        assert host.sh("penstock --version") == f"penstock {version}\n"
        assert of_unit(host, "penstock.service", "MainPID") != pid
        assert f'"version": "{version}"' in host.sh("penstock status --json")
        assert len(host.sh("ls /usr/lib/penstock/releases").split()) == kept
    assert of_unit(host, "penstock-floor.service", "ExecMainPID") == floor
    bundle.install(host)
    assert host.sh("readlink /usr/lib/penstock/current").strip() == first


def test_killed_at_any_time_it_is_completed_by_the_next(world: World, stage: str) -> None:
    host = world.hosts.get("interrupted") or world.boot("interrupted")
    place = bundle.put(host)
    child = host.popen([f"{place}/systemd/install.sh"], start_new_session=True, stderr=subprocess.DEVNULL)
    host.wait_until(lambda: bool(host.sh(f"ls -d {stage} 2>/dev/null || true")), timeout=60, every=0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    bundle.install(host)
    assert host.run(["penstock", "status"]).returncode == 0
    assert host.sh("ls /usr/lib/penstock /usr/lib/systemd/system | grep -e penstock-new -e '\\.new' || true") == ""
    host.run(["penstock", "uninstall", "--yes", "--purge"])
    assert host.sh("ls -d /usr/lib/penstock /usr/bin/penstock 2>/dev/null || true") == ""


def test_a_host_without_nftables(some_host: Host) -> None:
    """The bundle brings it; nothing else is touched."""
    host = some_host
    host.sh("dpkg --force-depends --purge nftables libnftables1")
    assert host.run(["which", "nft"], check=False).returncode != 0
    assert bundle.install(host) < PATIENCE
    assert host.sh("penstock status")
    assert host.sh("dpkg-query -W -f '${Status} ' nftables libnftables1") == "install ok installed " * 2


@pytest.mark.parametrize("other", ["trixie"])
def test_a_bundle_for_another_release_is_refused_by_name(world: World, other: str, tmp_path: Path) -> None:
    host = world.hosts.get("interrupted") or world.boot("interrupted")
    host.copy_in(bundle.made(other), "/root/wrong")
    before = snapshot.taken(host)
    done = host.run(["/root/wrong/systemd/install.sh"], check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the bundle is for debian 13, this is debian 12\n"
    assert snapshot.difference(before, snapshot.taken(host)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("sed -i s/x86_64/riscv64/ bundle", "the bundle is for riscv64, this is x86_64"),
        ("sed -i 's/python 3.11/python 3.10/' bundle", "the bundle is for Python 3.10, this is Python 3.11"),
        ("truncate -s -1 wheels/click-*.whl", "the bundle is damaged: ./wheels/click-"),
        ("rm wheels/penstock-*.whl", "the bundle is damaged: ./wheels/penstock-"),
        ("rm sums", "the bundle is damaged: sums"),
        ("rm bundle", "/root/damaged is no bundle"),
    ],
)
def test_a_damaged_bundle_is_refused(world: World, change: str, said: str) -> None:
    host = world.hosts.get("interrupted") or world.boot("interrupted")
    if not host.exists("/root/bundle"):
        host.copy_in(bundle.made(host.release), "/root/bundle")
    host.sh(f"rm -rf /root/damaged; cp -a /root/bundle /root/damaged; cd /root/damaged; {change}")
    before = snapshot.taken(host)
    done = host.run(["/root/bundle/systemd/install.sh", "--offline", "/root/damaged"], check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert said in done.stderr
    assert snapshot.difference(before, snapshot.taken(host)) == []


@pytest.mark.parametrize("other", ["nftables", "firewalld", "ufw"])
def test_the_floor_comes_at_boot_after_who_would_flush_it(host: Host, other: str) -> None:
    """And before the network, without a cycle; and again when that service starts again."""
    if other == "ufw":
        host.sh("sed -i s/ENABLED=no/ENABLED=yes/ /etc/ufw/ufw.conf")
    host.run(["systemctl", "enable", other])
    host.reboot()
    try:
        for unit in (other, "penstock-floor.service", "penstock.service"):
            assert of_unit(host, unit, "ActiveState") == "active"
        order = (other, "penstock-floor.service", "network-pre.target")
        times = [int(of_unit(host, unit, "ActiveEnterTimestampMonotonic")) for unit in order]
        assert times == sorted(set(times))
        assert "cycle" not in host.sh("journalctl -b -q --no-pager _PID=1")
        assert host.read("/run/penstock/floor").startswith("loaded ")
        assert not host.sh("journalctl -b -q --no-pager -p err -t floor")

        host.run(["systemctl", "stop", "penstock.service"])
        for verb in ("restart", "reload") if other != "ufw" else ("restart",):
            host.run(["nft", "delete", "table", "inet", "penstock"])
            host.run(["systemctl", verb, other])
            host.wait_until(lambda: "governed_out" in host.sh("nft list ruleset"))
        assert of_unit(host, "penstock-floor.service", "NRestarts") == "0"
    finally:
        host.run(["systemctl", "disable", "--now", other])
        host.run(["systemctl", "start", "penstock.service"])


def test_after_a_sleep_the_daemon_looks_at_once_or_the_floor_is_loaded(host: Host) -> None:
    hook = "/usr/lib/systemd/system-sleep/penstock"
    pid = of_unit(host, "penstock.service", "MainPID")
    host.run([hook, "pre", "suspend"])
    host.run([hook, "post", "suspend"])
    assert host.run(["penstock", "status"]).returncode == 0
    assert of_unit(host, "penstock.service", "MainPID") == pid
    host.run(["systemctl", "stop", "penstock.service"])
    host.run(["nft", "delete", "table", "inet", "penstock"])
    host.run([hook, "pre", "suspend"])
    assert "penstock" not in host.sh("nft list ruleset")
    host.run([hook, "post", "suspend"])
    assert "governed_out" in host.sh("nft list ruleset")
    host.run(["systemctl", "start", "penstock.service"])
