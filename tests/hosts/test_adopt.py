"""`penstock adopt` on booted hosts: loose processes as systemd leaves them, watched on the wire."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts.host import Host
from hosts.installed import Installed, boot
from hosts.outside import REGISTRY, STRANGER
from hosts.world import World

PORT = 443
CALLER = """\
#!/usr/bin/python3 -S
import socket, sys, time
good, bad = sys.argv[1:3]
families = {4: socket.AF_INET, 6: socket.AF_INET6}
def send(sock, address):
    try:
        sock.setblocking(False)
        sock.sendto(b"x", (address, 5000))
    except OSError:
        pass
def call(address):
    try:
        with socket.create_connection((address, 443), 0.3) as s:
            s.sendall(b"x")
    except OSError:
        pass
family = socket.AF_INET6 if ":" in bad else socket.AF_INET
datagrams = socket.socket(family, socket.SOCK_DGRAM)
held = socket.create_connection((bad, 443))
while True:
    try:
        held.sendall(b"y")
    except OSError:
        pass
    send(datagrams, bad)
    call(bad)
    call(good)
    open("/srv/rounds", "a").write(".")
    time.sleep(0.02)
"""
RULES = f"""\
version: 1
workload: loose
mode: enforce
match: {{exe: PYTHON}}
egress:
  - to: [{REGISTRY[0]}, "{REGISTRY[1]}"]
    ports: [{PORT}]
ingress: []
"""


@pytest.fixture(scope="module")
def installed(world: World, older_release: str) -> Installed:
    """A host with a workload for loose processes."""
    made = boot(world, f"a-{older_release}", older_release)
    host = made.host
    host.sh("useradd --system model; install -d -o model /srv")
    host.write("/usr/local/bin/caller", CALLER, 0o755)
    python = host.sh("readlink -f /usr/bin/python3").strip()
    host.write("/etc/penstock/rules.d/loose.yaml", RULES.replace("PYTHON", python))
    host.sh("penstock apply && penstock status loose --wait >/dev/null")
    return made


@pytest.fixture
def loose(installed: Installed, family: int) -> Iterator[str]:
    """A process in a scope, as somebody's shell leaves it; its pid."""
    host, index = installed.host, family == 6
    argv = ["/usr/local/bin/caller", REGISTRY[index], STRANGER[index]]
    scope = ["systemd-run", "--scope", "--quiet", "--unit=somebody", "--uid=model"]
    child = host.popen([*scope, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    installed.wait_for(lambda: rounds(host) > 0)
    yield host.sh("cat /sys/fs/cgroup/system.slice/somebody.scope/cgroup.procs").split()[0]
    child.kill()
    child.wait()
    host.sh("rm -f /srv/rounds; pkill -KILL -u model || true")


def rounds(host: Host) -> int:
    return len(host.read("/srv/rounds")) if host.exists("/srv/rounds") else 0


def place(host: Host, pid: str) -> str:
    return next(line[3:] for line in host.read(f"/proc/{pid}/cgroup").splitlines() if line.startswith("0::"))


def some_rounds(installed: Installed) -> None:
    """Until it has gone through all its attempts twice more."""
    until = rounds(installed.host) + 2
    installed.wait_for(lambda: rounds(installed.host) >= until)


@pytest.mark.parametrize("family", [4, 6])
def test_what_it_had_open_ends_and_what_it_opens_is_governed(
    installed: Installed, world: World, loose: str, family: int
) -> None:
    host, outside = installed.host, world.outside
    good, bad = REGISTRY[family == 6], STRANGER[family == 6]
    mark = outside.mark()
    some_rounds(installed)
    before = outside.seen(host.name, to=bad, since=mark)
    assert {packet.protocol for packet in before} == {"tcp", "udp"}, "the control: it reaches the stranger"
    done = host.run(["penstock", "adopt", loose])
    assert done.stdout.startswith("1 process moved into loose"), done
    mark = outside.mark()
    some_rounds(installed)
    assert outside.seen(host.name, to=bad, since=mark) == []
    assert outside.seen(host.name, to=good, port=PORT, since=mark, opens=True), "what its rules allow works"
    scope = f"/penstock.slice/penstock-loose.slice/adopt-{loose}.scope"
    assert place(host, loose) == scope
    installed.wait_for(lambda: installed.workload("loose")["enrolment"] == "adopted")
    host.sh("systemctl daemon-reload; systemctl daemon-reexec")
    some_rounds(installed)
    assert place(host, loose) == scope, "systemd leaves it there"
    assert outside.seen(host.name, to=bad, since=mark) == []
    again = host.run(["penstock", "adopt", loose], check=False)
    assert (again.returncode, again.stdout) == (1, "")
    assert "already" in again.stderr


def test_refusals(installed: Installed) -> None:
    host = installed.host
    host.sh("systemd-run --unit=passing --quiet sleep 600")
    passing = installed.show("passing.service", "MainPID")[0]
    kernel = host.popen(["unshare", "--net", "sleep", "600"])
    elsewhere = str(host.call(_find, ["sleep", "600"], passing))
    daemon = installed.show("penstock.service", "MainPID")[0]
    for pid, text in (
        ("1", "process 1 runs this host"),
        ("4194304", "there is no process 4194304"),
        (passing, "belongs to passing.service; penstock protect passing.service"),
        (daemon, "belongs to penstock.service"),
        (elsewhere, "is in another network namespace"),
        ("$$", "is this command itself, or started it"),
    ):
        said = host.run(["sh", "-c", f"penstock adopt {pid} --workload loose; exit $?"], check=False)
        assert (said.returncode, said.stdout, len(said.stderr.splitlines())) == (1, "", 1), (pid, said)
        assert text in said.stderr
    kernel.kill()
    kernel.wait()
    host.run(["systemctl", "stop", "passing"])


def _find(argv: list[str], other: str) -> int:
    """The process of that command line that is not `other`."""
    wanted = ("\0".join(argv) + "\0").encode()
    for _ in range(500):
        for name in os.listdir("/proc"):
            if name.isdigit() and name != other:
                try:
                    if Path(f"/proc/{name}/cmdline").read_bytes() == wanted:
                        return int(name)
                except OSError:
                    continue
        time.sleep(0.01)
    raise AssertionError(argv)


def test_a_packet_socket_is_named(installed: Installed) -> None:
    """Nothing can take that away from a process that has it."""
    host = installed.host
    script = "import socket, time; s = socket.socket(17, 3); open('/run/there', 'w').close(); time.sleep(600)"
    child = host.popen(["python3", "-S", "-c", script])
    host.wait_until(lambda: host.exists("/run/there"))
    pid = host.call(_find, ["python3", "-S", "-c", script], "")
    done = host.run(["penstock", "adopt", "--json", str(pid)], check=False)
    child.kill()
    child.wait()
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert [one.partition(": ")[2] for one in said["left"]] == ["a socket that cannot be destroyed (packet)"]
    assert "keeps CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN" in said["warnings"][0]
