"""Hosts on which penstock cannot be installed: one sentence, and nothing has changed."""

from __future__ import annotations

from collections.abc import Callable

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
PLACES = sorted({path.partition("/penstock")[0] for path in UNITS})
LOOK = f"""
for place in /usr/bin/penstock /usr/lib/penstock /usr/lib/tmpfiles.d /run/penstock {" ".join(PLACES)}; do
  if [ -e $place ] || [ -L $place ]; then find $place -printf '%y %m %u:%g %s %T@ %p -> %l\\n'; fi
done | sort
find /sys/fs/cgroup -type d -path '*penstock*'; nft -s list ruleset
"""
"""At what a test may have put there."""
Refused = Callable[..., None]


@pytest.fixture(scope="module")
def host(world: World) -> Host:
    """With the bundle: the installer asks no release anything that another one would answer differently."""
    made = world.boot("bad")
    bundle.put(made, place="/root/bundle")
    snapshot.settle(made)
    made.run(["mkdir", "-p", *PLACES])
    made.sh("cp -a /root/bundle /opt/bundle")  # where a user may read it
    return made


@pytest.fixture(scope="module")
def untouched(host: Host) -> dict[str, list[str]]:
    """What the host was before the first of these tests, and is again after each."""
    return snapshot.taken(host)


@pytest.fixture
def refused(host: Host, untouched: dict[str, list[str]]) -> Refused:
    """A command says this one sentence and leaves the host as it was; `undo` takes away what a test put there.

    Looked at before that is where such things lie, and after it everything.
    """

    def check(command: str, said: str, *, user: str = "root", undo: Callable[[], object] = lambda: None) -> None:
        try:
            before = host.sh(LOOK)
            done = host.run(["sh", "-c", command], check=False, user=user, cwd="/")
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.startswith("error: ")
            assert said in done.stderr
            assert done.stderr.count("\n") == 1
            assert done.stderr[:-1].isprintable()
            assert host.sh(LOOK) == before
            assert not host.exists("/usr/lib/penstock/manifest")
        finally:
            undo()
        assert snapshot.difference(untouched, snapshot.taken(host)) == []

    return check


def test_not_root(refused: Refused) -> None:
    refused("/opt/bundle/systemd/install.sh", "installing needs root", user="www-data")


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
def test_a_host_that_lacks_something(refused: Refused, hide: str, said: str) -> None:
    refused(HIDDEN.format(hide.replace("'", ""), INSTALL), said)


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
def test_something_of_somebody_else(host: Host, refused: Refused, make: str, remove: str, said: str) -> None:
    host.sh(make)
    refused(INSTALL, said, undo=lambda: host.sh(remove))


@pytest.mark.parametrize("path", UNITS)
def test_a_unit_of_somebody_else(host: Host, refused: Refused, path: str) -> None:
    host.sh(f"mkdir -p $(dirname {path}); touch {path}")
    top = path.removesuffix("/a.conf")
    refused(INSTALL, f"{top} {THERE} and ", undo=lambda: host.sh(f"rm -r {top}"))


def test_a_daemon_that_is_no_service(host: Host, refused: Refused) -> None:
    host.sh("mkdir -p /run/penstock; touch /run/penstock/lock")
    holder = host.popen(["flock", "-F", "/run/penstock/lock", "sleep", "100"])
    host.wait_until(lambda: host.run(["flock", "-n", "/run/penstock/lock", "true"], check=False).returncode == 1)

    def undo() -> None:
        holder.kill()
        holder.wait()
        host.sh("rm -r /run/penstock")

    refused(INSTALL, "a penstock daemon runs here that is no service", undo=undo)


def test_another_installation_at_the_same_time(host: Host, refused: Refused) -> None:
    holder = host.popen(["flock", "-F", "/usr/lib", "sleep", "100"])
    host.wait_until(lambda: host.run(["flock", "-n", "/usr/lib", "true"], check=False).returncode == 1)

    def undo() -> None:
        holder.kill()
        holder.wait()

    refused(INSTALL, "another installation is running", undo=undo)


def test_without_any_of_that_it_installs(host: Host) -> None:
    """So each of them was the reason."""
    assert host.run([INSTALL], timeout=120).stdout.startswith("installed penstock")
