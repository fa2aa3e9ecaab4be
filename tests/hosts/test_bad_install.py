"""Hosts on which penstock cannot be installed: one sentence, and nothing has changed."""

from __future__ import annotations

import pytest

from hosts import bundle, snapshot
from hosts.host import Host
from hosts.world import World

INSTALL = "/root/bundle/systemd/install.sh"
HIDDEN = "unshare --mount sh -c '{}; exec {}'"
"""With something of the host hidden, for the installer alone."""
UNITS = (
    "/etc/systemd/system/penstock.slice",
    "/etc/systemd/system/penstock-vllm.slice.d/a.conf",
    "/run/systemd/system/penstock.slice.d/a.conf",
    "/usr/lib/systemd/system/penstock-vllm.slice",
    "/usr/lib/systemd/system/penstock.service",
    "/usr/local/lib/systemd/system/penstock-floor.service.d/a.conf",
)


@pytest.fixture(scope="module")
def host(world: World) -> Host:
    """With the bundle: the installer asks no release anything that another one would answer differently."""
    made = world.boot("bad")
    bundle.put(made, place="/root/bundle")
    snapshot.settle(made)
    made.sh("cp -a /root/bundle /opt/bundle")  # where a user may read it
    return made


def refused(host: Host, command: str, said: str, user: str = "root") -> None:
    """It says this one sentence, and leaves the host as it was."""
    before = snapshot.taken(host)
    done = host.run(["sh", "-c", command], check=False, user=user, cwd="/")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr[:-1].isprintable()
    assert snapshot.difference(before, snapshot.taken(host)) == []
    assert not host.exists("/usr/lib/penstock/manifest")


def test_not_root(host: Host) -> None:
    refused(host, "/opt/bundle/systemd/install.sh", "installing needs root", user="www-data")


@pytest.mark.parametrize(
    ("hide", "said"),
    [
        ("mount -t tmpfs none /run/systemd", "this host does not run systemd"),
        ("mount -t tmpfs none /sys/fs/cgroup", "this host does not have cgroup v2 alone"),
        ("mount --bind /etc /etc; mount -o remount,bind,ro /etc", "/etc is read-only"),
        ("mount --bind /usr /usr; mount -o remount,bind,ro /usr", "/usr/bin is read-only"),
        ("mount --bind /var /var; mount -o remount,bind,ro /var", "/var/lib is read-only"),
        (
            'for p in /usr/bin/python3*; do [ -L "$p" ] || mount --bind /dev/null "$p"; done',
            "no Python 3.11 or newer here",
        ),
    ],
    ids=["systemd", "cgroup", "etc", "usr", "var", "python"],
)
def test_a_host_that_lacks_something(host: Host, hide: str, said: str) -> None:
    refused(host, HIDDEN.format(hide.replace("'", ""), INSTALL), said)


THERE = "is there already"
FOREIGN = [
    ("touch /usr/bin/penstock", "rm /usr/bin/penstock", f"/usr/bin/penstock {THERE}"),
    ("ln -s /opt/x /usr/bin/penstock", "rm /usr/bin/penstock", f"/usr/bin/penstock {THERE}"),
    ("mkdir -p /usr/lib/penstock/x", "rm -r /usr/lib/penstock", f"/usr/lib/penstock {THERE}"),
    ("touch /usr/lib/penstock", "rm /usr/lib/penstock", f"/usr/lib/penstock {THERE}"),
    ("ln -s /opt /usr/lib/penstock", "rm /usr/lib/penstock", f"/usr/lib/penstock {THERE}"),
    ("ln -s /opt/x /usr/lib/penstock", "rm /usr/lib/penstock", f"/usr/lib/penstock {THERE}"),
    ("touch /usr/lib/tmpfiles.d/penstock.conf", "rm /usr/lib/tmpfiles.d/penstock.conf", f"penstock.conf {THERE}"),
    (
        "mkdir -p /sys/fs/cgroup/penstock.slice/x.service",
        "rmdir /sys/fs/cgroup/penstock.slice/x.service /sys/fs/cgroup/penstock.slice",
        "x.service is not penstock's",
    ),
    ("nft add table inet penstock", "nft delete table inet penstock", f"the nftables table inet penstock {THERE}"),
]


@pytest.mark.parametrize(("make", "remove", "said"), FOREIGN, ids=[make for make, _, _ in FOREIGN])
def test_something_of_somebody_else(host: Host, make: str, remove: str, said: str) -> None:
    host.sh(make)
    try:
        refused(host, INSTALL, said)
    finally:
        host.sh(remove)


@pytest.mark.parametrize("path", UNITS)
def test_a_unit_of_somebody_else(host: Host, path: str) -> None:
    host.sh(f"mkdir -p $(dirname {path}); touch {path}")
    top = path.removesuffix("/a.conf")
    try:
        refused(host, INSTALL, f"{top} {THERE} and ")
    finally:
        host.sh(f"rm -r {top}")


def test_a_daemon_that_is_no_service(host: Host) -> None:
    host.sh("mkdir -p /run/penstock; touch /run/penstock/lock")
    holder = host.popen(["flock", "-F", "/run/penstock/lock", "sleep", "100"])
    host.wait_until(lambda: host.run(["flock", "-n", "/run/penstock/lock", "true"], check=False).returncode == 1)
    try:
        refused(host, INSTALL, "a penstock daemon runs here that is no service")
    finally:
        holder.kill()
        holder.wait()
        host.sh("rm -r /run/penstock")


def test_another_installation_at_the_same_time(host: Host) -> None:
    holder = host.popen(["flock", "-F", "/usr/lib", "sleep", "100"])
    host.wait_until(lambda: host.run(["flock", "-n", "/usr/lib", "true"], check=False).returncode == 1)
    try:
        refused(host, INSTALL, "another installation is running")
    finally:
        holder.kill()
        holder.wait()


def test_without_any_of_that_it_installs(host: Host) -> None:
    """So each of them was the reason."""
    assert host.run([INSTALL], timeout=120).stdout.startswith("installed penstock")
