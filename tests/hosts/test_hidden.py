"""Who looks names up for others is hidden from governed units, stays hidden, and is told of where it is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hosts.host import Host
from hosts.installed import Installed
from hosts.resolved import SOCKET, STUB, install_resolved
from hosts.world import World

BUS = "/run/dbus/system_bus_socket"
HARDENED = """
Type=notify
DynamicUser=yes
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
ProtectKernelTunables=yes
PrivateTmp=yes
PrivateDevices=yes
RestrictNamespaces=yes
RuntimeDirectory=hardened
TemporaryFileSystem=/var:ro
"""
READY = """\
import os, socket, time
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
    told.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
time.sleep(1e6)
"""
ROOTED = """
RootDirectory=/srv/root
MountAPIVFS=yes
BindReadOnlyPaths=/usr /etc
BindPaths=/run/dbus /run/systemd/resolve
"""
UNITS = {
    "plain": ("/usr/bin/sleep infinity", ""),
    "hardened": ("/usr/bin/python3 -I /opt/ready.py", HARDENED),
    "rooted": ("/usr/bin/sleep infinity", ROOTED),
}
WITNESS = "witness"
"""As `plain`, and never protected: its findings say that the daemon has looked."""

RULES = """\
version: 1
workload: {name}
mode: enforce
match: {{unit: "{unit}"}}
egress:
  - to: registry.example
ingress: []
"""


@pytest.fixture(scope="module")
def installed(world: World, older_release: str) -> Iterator[Installed]:
    """A host on which systemd-resolved answers whoever asks, with units that are governed where they run."""
    made = Installed(world, world.boot("inference" if older_release == "bookworm" else "client", older_release))
    install_resolved(made.host)
    made.install()
    made.host.write("/opt/ready.py", READY)
    made.sh("for d in usr etc run tmp; do mkdir -p /srv/root/$d; done")
    made.sh("for l in bin lib lib64; do ln -s usr/$l /srv/root/$l; done")
    for name, (command, service) in {**UNITS, WITNESS: UNITS["plain"]}.items():
        made.unit(f"{name}.service", command, service=service)
        made.rules(name, f"{name}.service", RULES)
        made.sh(f"systemctl start {name}.service")
    made.host.run(["penstock", "apply"])
    yield made
    made.host.crash()


def reached(host: Host, unit: str) -> set[str]:
    """What a process in the unit's mount namespace, and below its root, connects to."""
    pid = host.run(["systemctl", "show", "-P", "MainPID", unit]).stdout.strip()
    connect = "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    enter = ["nsenter", "-t", pid, "-m", "-r", "-w", "--", "/usr/bin/python3", "-I", "-c", connect]
    return {path for path in (SOCKET, BUS) if host.run([*enter, path], check=False).returncode == 0}


def told(installed: Installed) -> set[tuple[str, str]]:
    """Findings: workload, and the socket that it reaches.  A new daemon looks with its first tick."""
    installed.sh("systemctl restart penstock.service")
    since = installed.show("penstock.service", "ExecMainPID")

    def found() -> set[tuple[str, str]]:
        listed = installed.findings("name-bypass")
        return {(one["workload"], path) for one in listed for path in (SOCKET, BUS) if f"({path})" in one["text"]}

    witness = {(WITNESS, SOCKET), (WITNESS, BUS)}
    installed.wait_for(lambda: found() >= witness)
    assert installed.show("penstock.service", "ExecMainPID") == since
    return found() - witness


def test_from_units_where_they_are_nothing_is_hidden_and_that_is_told(installed: Installed) -> None:
    for name in UNITS:
        assert reached(installed.host, f"{name}.service") == {SOCKET, BUS}, name
    everywhere = {(name, path) for name in UNITS for path in (SOCKET, BUS)}
    assert told(installed) == everywhere


def test_with_their_drop_in_it_is_hidden_and_they_run(installed: Installed) -> None:
    for name in UNITS:
        installed.host.run(["penstock", "protect", f"{name}.service", "--restart"])
        assert installed.show(f"{name}.service", "ActiveState") == ["active"]
        assert reached(installed.host, f"{name}.service") == set(), name
    assert told(installed) == set()
    pid = installed.show("plain.service", "MainPID")[0]
    inside = installed.host.run(["nsenter", "-t", pid, "-m", "--", "cat", "/etc/resolv.conf"]).stdout
    assert f"nameserver {STUB}" in inside


def test_it_stays_hidden_when_they_are_started_anew(installed: Installed) -> None:
    """Their sockets are new ones then."""
    installed.sh("systemctl restart systemd-resolved.service")
    installed.host.wait_until(lambda: installed.host.exists(SOCKET))
    for name in ("plain", "hardened"):
        assert reached(installed.host, f"{name}.service") == set(), name
    # In a root of its own only the socket can be hidden: what comes back is told.
    back = {("rooted", SOCKET)} if SOCKET in reached(installed.host, "rooted.service") else set()
    print(f"{installed.host.release}: back in a root of its own: {bool(back)}")
    assert told(installed) == back


def test_who_needs_the_bus_gets_it_back_and_that_is_told(installed: Installed) -> None:
    text = "[Service]\nInaccessiblePaths=\nInaccessiblePaths=-/run/nscd -/run/avahi-daemon\n"
    installed.host.write("/etc/systemd/system/plain.service.d/60-bus.conf", text)
    installed.sh("systemctl daemon-reload; systemctl restart plain.service")
    assert reached(installed.host, "plain.service") == {BUS}
    assert ("plain", BUS) in told(installed)
    installed.sh("rm /etc/systemd/system/plain.service.d/60-bus.conf; systemctl daemon-reload")
