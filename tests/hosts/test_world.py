"""The world itself: what the other tests in this folder lean on must be so."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from governed import eventually
from hosts.host import Host
from hosts.outside import REGISTRY, STRANGER
from hosts.world import World
from penstock.demo.lab import Lab

TESTS = Path(__file__).parents[1]
FAMILIES = (4, 6)


@pytest.fixture(scope="module")
def three(world: World) -> tuple[Host, Host, Host]:
    """Three hosts, the middle one of the newer release."""
    start = time.monotonic()
    wanted = {"inference": "bookworm", "client": "trixie", "gateway": "bookworm"}
    first, second, third = (world.boot(name, release, wait=False) for name, release in wanted.items())
    hosts = first, second, third
    for host in hosts:
        world.wait_booted(host)
    print(f"three hosts booted in {time.monotonic() - start:.1f} s")
    assert time.monotonic() - start < 30
    return hosts


def test_three_boot_without_a_failed_unit(three: tuple[Host, Host, Host]) -> None:
    for host in three:
        assert host.state == "running", host.sh("systemctl --failed")
    assert [host.sh(". /etc/os-release; echo $VERSION_ID").strip() for host in three] == ["12", "13", "12"]


@pytest.mark.parametrize("family", FAMILIES)
def test_everybody_reaches_everybody(world: World, three: tuple[Host, Host, Host], family: int) -> None:
    mark = world.outside.mark()
    for host in three:
        for there in (REGISTRY, STRANGER):
            address = there[family == 6]
            assert host.tcp(address, 443).reply == b"hello"
            assert host.udp(address, 5000).reply == b"hello"
            assert world.outside.seen(host.name, to=address, port=443, protocol="tcp", since=mark, opens=True)
            assert len(world.outside.seen(host.name, to=address, port=5000, protocol="udp", since=mark)) == 1
        for other in three:
            if other is not host:
                assert host.tcp(other.address(family), 9999).outcome == "ECONNREFUSED"
                assert len(world.outside.seen(host.name, to=other.address(family), port=9999, since=mark)) == 1
    arrived = {a.peer for a in world.outside.recorder.arrivals("connect")}
    assert {host.address(family) for host in three} <= arrived


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packet_that_is_not_sent_is_not_seen(world: World, three: tuple[Host, Host, Host], family: int) -> None:
    host, address = three[0], STRANGER[family == 6]
    rule = "type filter hook output priority 0; tcp dport 443 reject"
    host.run(["nft", "-f", "-"], input=f"table inet t {{\nchain o {{\n{rule}\n}}\n}}\n")
    mark = world.outside.mark()
    try:
        assert host.tcp(address, 443, timeout=1.5).outcome != "ok"
        assert world.outside.seen(host.name, port=443, since=mark) == []
        assert host.tcp(address, 80).outcome == "ok"
        assert len(world.outside.seen(host.name, to=address, port=80, since=mark, opens=True)) == 1
    finally:
        host.run(["nft", "flush", "ruleset"])


def test_names_are_answered_and_can_be_changed(world: World, three: tuple[Host, Host, Host]) -> None:
    host = three[1]
    assert host.sh("dig +short registry.example A registry.example AAAA").split() == list(REGISTRY)
    assert host.run(["getent", "hosts", "hub.example"], check=False).returncode == 2
    world.outside.names({"hub.example": STRANGER})
    assert host.sh("dig +short hub.example A").split() == [STRANGER[0]]
    assert f"A hub.example {host.v4}" in world.outside.queries()


def test_there_is_no_way_out(world: World, three: tuple[Host, Host, Host]) -> None:
    host = three[0]
    for address in ("10.255.255.1", "2001:db8:ffff::1"):
        mark = world.outside.mark()
        assert host.tcp(address, 80, timeout=0.3).outcome != "ok"
        assert world.outside.seen(host.name, to=address, since=mark), "but it was sent, and seen on the wire"
    links = world.lab.host.run(["ip", "-br", "link"]).stdout.split("\n")
    names = {line.split()[0].partition("@")[0] for line in links if line}
    assert {name for name in names if not name.startswith("v-")} == {"lo", "eth0", "br0"}


def test_programs_run_in_all_namespaces_as_whom_they_should(three: tuple[Host, Host, Host]) -> None:
    host = three[0]
    assert host.call(os.readlink, "/proc/1/ns/cgroup") == host.call(os.readlink, "/proc/self/ns/cgroup")
    assert host.sh("cat /proc/self/cgroup").splitlines()[-1] == "0::/test.scope"
    assert host.run(["id", "-un"], user="www-data").stdout == "www-data\n"
    assert host.run(["cat"], input="text").stdout == "text"
    place = "some.slice/x.scope"
    assert host.call_in(place, Path.read_text, Path("/proc/self/cgroup")).endswith(f"0::/{place}\n")


@pytest.mark.parametrize("crash", [False, True], ids=["orderly", "crash"])
def test_a_reboot_keeps_the_disk_and_nothing_else(world: World, some_host: Host, crash: bool) -> None:
    host = some_host
    machine, net = host.read("/etc/machine-id"), host.call(network_cookie)
    inode = host.call(os.stat, "/sys/fs/cgroup/system.slice").st_ino
    host.write("/srv/deep/file", "kept")
    host.write("/run/file", "lost")
    host.run(["nft", "add", "table", "inet", "lost"])
    host.popen(["sleep", "1000"])
    if crash:
        host.crash()
    else:
        host.power_off()
    assert (host.state, host.read("/srv/deep/file")) == ("off", "kept")
    host.write("/srv/while-off", "seen")
    host.power_on()
    assert host.read("/srv/deep/file") + host.read("/srv/while-off") == "keptseen"
    assert not host.exists("/run/file")
    assert host.sh("nft list ruleset") == ""
    assert host.call(network_cookie) != net
    assert host.call(os.stat, "/sys/fs/cgroup/system.slice").st_ino != inode
    assert host.read("/etc/machine-id") == machine
    assert len(host.sh("journalctl --list-boots -q | grep -v IDX").splitlines()) == 2
    assert host.udp(REGISTRY[0], 5000).outcome == host.udp(REGISTRY[1], 5000).outcome == "ok"


def network_cookie() -> bytes:
    """What no other network namespace has, nor will have; an inode number may come back."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return any_socket.getsockopt(socket.SOL_SOCKET, 71, 8)  # SO_NETNS_COOKIE


def left_over(name: str, directory: Path) -> list[str]:
    """What still exists of a world."""
    with Lab({}) as lab:
        cgroups = lab.host.run(["find", "/sys/fs/cgroup", "-name", f"{name}*"]).stdout.splitlines()
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if name in line]
    processes = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if name.encode() in place.read_bytes():
                processes.append(str(place))
        except OSError:
            continue
    files = [str(path) for path in (directory, Path("/tmp", name)) if path.exists()]
    return cgroups + mounts + processes + files


OWNER = """
import time
from hosts.world import World, ending_orderly
with ending_orderly(), World() as world:
    world.boot("inference").popen(["sh", "-c", "setsid sleep 1000 & sleep 1000"])
    print(world.lab.name, world.directory, flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_killed_owner(number: int) -> None:
    path = os.pathsep.join(str(TESTS / place) for place in (".", "../agent"))
    argv, env = [sys.executable, "-c", OWNER], {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as owner:
        assert owner.stdout
        name, directory = owner.stdout.readline().split()
        assert left_over(name, Path(directory))
        owner.send_signal(number)
    if number == signal.SIGKILL:  # who could not clean up: nothing runs, and the next one tidies
        eventually(lambda: not any("/proc/" in item for item in left_over(name, Path(directory))))
        with World():
            pass
    assert left_over(name, Path(directory)) == []


@pytest.mark.parametrize("how", ["closed", "exception"])
def test_nothing_is_left(how: str) -> None:
    class Wrong(Exception):
        pass

    world = World()
    try:
        with world:
            host = world.boot("inference")
            host.popen(["sh", "-c", "setsid sleep 1000 & sleep 1000"])
            assert left_over(world.lab.name, world.directory), "the search finds it while it is there"
            if how == "exception":
                raise Wrong
    except Wrong:
        pass
    assert left_over(world.lab.name, world.directory) == []
