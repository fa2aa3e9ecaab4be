"""A world: booted systemd hosts on one local network, and the outside.

Everything hangs on a lab (`penstock.demo.lab`): namespaces, a cgroup subtree and a first process of its own, and
no route out.  When that process dies, and it does with its owner, nothing of the world is left running; what a
killed owner leaves, empty cgroups and a directory, the next world removes.

    with World() as world:
        server, client = world.boot("inference"), world.boot("client", release="trixie")
        client.tcp(server.v4, 8080)
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import TypeVar

from hosts import rootfs
from hosts.host import Host, Running, leader_of
from hosts.outside import DNS, INTERNET, LAN, ROUTER, Outside
from hosts.wire import PREFIX
from penstock.demo import namespaces
from penstock.demo.lab import Lab, _is_stale, _remove_cgroup

T = TypeVar("T")

PLACES = {"inference": 10, "client": 20, "gateway": 30, "administrator": 40}
"""The last part of the addresses of the usual hosts; others get the next free one from 50 on."""

NETWORK_UNIT = """\
[Unit]
Description=Addresses and routes of this host
DefaultDependencies=no
After=network-pre.target local-fs.target
Wants=network-pre.target network.target network-online.target
Before=network.target network-online.target shutdown.target
Conflicts=shutdown.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/ip -batch /etc/lan.ip
[Install]
WantedBy=multi-user.target
"""
NSPAWN = (
    *("systemd-nspawn", "--boot", "--quiet", "--register=no", "--keep-unit", "--settings=no"),
    *("--capability=all", "--link-journal=no", "--resolv-conf=off", "--timezone=off", "--console=read-only"),
)
NSPAWN_ENVIRONMENT = {"SYSTEMD_SECCOMP": "0", "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network", "PYTHONPATH": ""}


class World:
    """A context manager; see the module.  Needs root, mmdebstrap, systemd-nspawn, dnsmasq."""

    def __init__(self) -> None:
        self.lab = Lab({}, addresses=INTERNET)
        self.directory = rootfs.cache() / "worlds" / self.lab.name
        """Everything of the hosts; beside the root file systems, on one disk with them."""
        self.hosts: dict[str, Host] = {}
        self.outside: Outside

    def __enter__(self) -> World:
        try:
            _sweep(self.directory.parent)
            self.lab.__enter__()
            self.directory.mkdir(parents=True, mode=0o755)
            wire = {"running": self._plugged, "in_network": self._in_network}
            self.outside = Outside(self.lab, self.directory, wire)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End everything and remove all files.  May be called again, and at any time."""
        for host in self.hosts.values():
            host.forget_children()
            if host.running is not None:
                host.running.close()
                host.running = None
        if hasattr(self, "outside"):
            self.outside.wire.close()
        self.lab.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- hosts ---

    def boot(
        self,
        name: str,
        release: str = "bookworm",
        *,
        addresses: tuple[str, str] | None = None,
        share: Mapping[str, Path] | None = None,
        image: Path | None = None,
        wait: bool = True,
    ) -> Host:
        """Make a host and boot it.  `share` maps paths in the host to what is seen there, read-only.

        `image` is what its disk holds besides the release: what `Host.save` took of another one.
        Without `wait` the call returns at once: boot some, then `wait_booted` each.
        """
        assert name not in self.hosts, f"there is a host {name}"
        base = rootfs.base(release)
        host = Host(self, name, release, addresses or self._free_addresses(name))
        host.share = dict(share or {})
        self.hosts[name] = host
        place = self.directory / name
        for folder in ("upper", "work", "root", "containers"):
            (place / folder).mkdir(parents=True)
        below = f"{image}:{base}" if image else base
        layers = f"lowerdir={below},upperdir={place / 'upper'},workdir={place / 'work'}"
        self.lab.host.run(["mount", "-t", "overlay", "overlay", "-o", layers, host.disk])
        self.lab.host.call(_make_it_somebody, host.disk, name, host.addresses)
        self.start(host)
        if wait:
            self.wait_booted(host)
        return host

    def start(self, host: Host) -> None:
        """Switch on, and do not wait."""
        assert host.running is None, f"{host.name} is on"
        host.boots += 1
        self._plug_in(host)
        cgroup = f"{host.name}.{host.boots}"  # a cgroup that was there before would keep its id
        binds = [f"--bind={self.directory / host.name / 'containers'}:/var/lib/containers"]
        binds += [f"--bind-ro={source}:{target}" for target, source in host.share.items()]
        argv = [*NSPAWN, f"--machine={host.name}", f"--hostname={host.name}", f"--directory={host.disk}"]
        with self._console(host).open("w") as console:
            nspawn = self.lab.host.popen(
                [*argv, f"--network-namespace-path=/run/netns/{host.name}", *binds],
                cgroup=cgroup,
                env=NSPAWN_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        host.state = "booting"
        host.running = Running(nspawn, 0, self._cgroups() / cgroup)

    def wait_booted(self, host: Host, timeout: float = 60) -> None:
        """Return when systemd says that it is up; AssertionError with the end of the console if it does not."""
        running, deadline = host.running, time.monotonic() + timeout
        assert running is not None

        def so_far() -> str:
            said = self._console(host).read_text(errors="replace").splitlines()[-8:]
            return f"{host.name} did not boot ({host.state}): " + "\n".join(said)

        while not running.leader or not os.path.exists(f"/proc/{running.leader}/root/run/systemd/private"):
            running.leader = leader_of(running.nspawn)
            assert running.nspawn.poll() is None, so_far()
            assert time.monotonic() < deadline, so_far()
            time.sleep(0.01)
        running.open()
        while host.state not in ("running", "degraded"):
            assert time.monotonic() < deadline, so_far()
            host.state = host.run(["systemctl", "is-system-running"], check=False).stdout.strip()
            time.sleep(0.02)

    def stopped(self, host: Host) -> None:
        """After the host's end: take away what a machine that is off does not have."""
        running = host.running
        assert running is not None
        host.forget_children()
        with contextlib.suppress(OSError):  # the last packets, while the cable is there
            self.outside.wire.barrier(host.name)
        host.running = None
        host.state = "off"
        running.close()
        # Deleting one end deletes the other at once; a namespace that was only unnamed lingers.
        self.lab.host.run(["ip", "link", "del", PREFIX + host.name])
        self.lab.host.run(["ip", "netns", "del", host.name])
        descriptor = os.open(running.cgroup.parent, os.O_RDONLY)
        _remove_cgroup(descriptor, running.cgroup.name)
        os.close(descriptor)

    # --- below ---

    def _free_addresses(self, name: str) -> tuple[str, str]:
        taken = {host.v4 for host in self.hosts.values()}
        numbers = [PLACES[name]] if name in PLACES else range(50, 250)
        number = next(n for n in numbers if f"198.18.1.{n}" not in taken)
        return f"198.18.1.{number}", f"fd00:1::{number}"

    def _console(self, host: Host) -> Path:
        return self.directory / host.name / "console"

    def _cgroups(self) -> Path:
        """The world's cgroup subtree, as seen from here."""
        assert self.lab._init is not None
        return Path(f"/proc/{self.lab._init.pid}/root", str(self.lab.cgroup).lstrip("/"))

    def _plug_in(self, host: Host) -> None:
        """A new network namespace with a cable to the bridge, and nothing in it but what a kernel brings."""
        name, port = host.name, PREFIX + host.name
        # The same card after each boot: others remember its number.
        card = "02:" + hashlib.md5(name.encode()).digest()[:5].hex(":")
        lines = [f"link add eth0 netns {name} address {card} type veth peer name {port}"]
        lines.append(f"link set {port} master br0 up")
        knobs = [
            f"net.ipv6.conf.{device}.{knob}"
            for device in ("all", "default", "lo", "eth0")
            for knob in ("disable_ipv6=0", "accept_ra=0", "router_solicitations=0")
        ]
        self.lab.host.run(["ip", "netns", "add", name])
        self.lab.host.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n")
        self.lab.host.run(["nsenter", f"--net=/run/netns/{name}", "sysctl", "-qw", *knobs])

    def _plugged(self) -> list[str]:
        return [host.name for host in self.hosts.values() if host.running is not None]

    def _in_network(self, name: str, function: Callable[[], T]) -> T:
        """`function()` in the network namespace of a host: by a thread that ends with it, never by this one."""
        assert self.lab._init is not None
        net = os.open(f"/proc/{self.lab._init.pid}/root/run/netns/{name}", os.O_RDONLY)
        outcome: list[T] = []

        def work() -> None:
            namespaces.setns(net, namespaces.CLONE_NEWNET)
            outcome.append(function())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        os.close(net)
        return outcome[0]


@contextlib.contextmanager
def ending_orderly() -> Iterator[None]:
    """Inside the block SIGTERM ends a program as Ctrl-C does: with everybody's clean-up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(f"signal {number}")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _make_it_somebody(disk: Path, name: str, addresses: tuple[str, str]) -> None:
    """In the world's mount namespace: what tells this host from the others."""
    etc = disk / "etc"
    (etc / "hostname").write_text(f"{name}\n")
    (etc / "hosts").write_text(f"127.0.0.1 localhost {name}\n::1 localhost {name}\n")
    (etc / "resolv.conf").unlink(missing_ok=True)
    (etc / "resolv.conf").write_text(f"nameserver {DNS[0]}\n")
    (etc / "machine-id").write_text(hashlib.md5(name.encode()).hexdigest() + "\n")
    lines = ["link set lo up", "link set eth0 up", f"addr add {addresses[0]}/{LAN[0].rpartition('/')[2]} dev eth0"]
    lines += [f"addr add {addresses[1]}/{LAN[1].rpartition('/')[2]} dev eth0 nodad"]
    lines += [f"route add default via {ROUTER[0]}", f"route add ::/0 via {ROUTER[1]}"]
    (etc / "lan.ip").write_text("\n".join(lines) + "\n")
    (etc / "systemd/system/lan.service").write_text(NETWORK_UNIT)
    for target in ("multi-user", "network-online"):
        wants = etc / f"systemd/system/{target}.target.wants"
        wants.mkdir(exist_ok=True)
        link = wants / "lan.service"
        link.unlink(missing_ok=True)
        link.symlink_to("../lan.service")


def _sweep(worlds: Path) -> None:
    """Remove what worlds left whose owner was killed."""
    for path in worlds.glob("penstock-lab-*"):
        if _is_stale(path.name):
            shutil.rmtree(path, ignore_errors=True)
