"""The first process of a lab: makes mounts, links and addresses, then waits for its owner to go away.

It is started in new network, mount, pid, uts and ipc namespaces, reads one JSON object from stdin, answers
with one JSON object on stdout, and lives until stdin ends.  When it dies the kernel kills everything in
the lab.  It is run by an interpreter without site-packages (15 ms sooner): standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from penstock.demo import namespaces

SWITCH = "switch"
CGROUP_MOUNT = "/sys/fs/cgroup"


def prepare_mounts(plan: dict[str, Any]) -> None:
    """Make /proc, /sys, cgroup2 and /run the lab's own, and pin hosts and resolv.conf."""
    # Before anything else: mounts made in a shared tree would appear on the host.
    namespaces.mount("none", "/", "none", namespaces.MS_REC | namespaces.MS_PRIVATE)
    namespaces.mount("proc", "/proc", "proc")
    # sysfs shows the network namespace of its mounter; hybrid hosts have no cgroup2 at this path.
    namespaces.mount("sysfs", "/sys", "sysfs")
    namespaces.mount("cgroup2", CGROUP_MOUNT, "cgroup2")
    resolver = Path("/etc/resolv.conf").resolve()
    namespaces.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
    for name, target in (("hosts", Path("/etc/hosts")), ("resolv.conf", resolver)):
        if target.is_relative_to("/run"):  # hidden by our own tmpfs a moment ago
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        if target.exists():
            namespaces.mount(f"{plan['dir']}/{name}", str(target), "none", namespaces.MS_BIND)
    cgroup = Path(CGROUP_MOUNT, plan["cgroup"], plan["others"])
    cgroup.mkdir(parents=True)
    (cgroup / "cgroup.procs").write_text("0")


def ip(lines: list[str], *options: str) -> None:
    """Run `lines` as one ip batch."""
    text = "\n".join(lines) + "\n"
    done = subprocess.run(
        ["ip", *options, "-batch", "-"], input=text, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise OSError(f"ip {' '.join(options)}: {done.stderr.strip()}")


def host_lines(addresses: list[str]) -> list[str]:
    """The ip commands inside one host: everything is on the link, so any address may be a neighbour."""
    lines = ["link set lo up", "link set eth0 up"]
    for address in addresses:
        rest = "/128 dev eth0 nodad" if ":" in address else "/32 dev eth0"
        lines.append(f"addr add {address}{rest}")
    lines.append("route add default dev eth0")
    lines.append("route add ::/0 dev eth0 metric 10")
    return lines


def prepare_net(plan: dict[str, Any]) -> None:
    """One bridge in a namespace of its own; every host hangs on it by its eth0."""
    remotes: dict[str, list[str]] = plan["remotes"]
    lines = [f"netns add {name}" for name in (SWITCH, *remotes)]
    lines.append(f"link add eth0 type veth peer name port0 netns {SWITCH}")
    for number, name in enumerate(remotes, 1):
        lines.append(f"link add eth0 netns {name} type veth peer name port{number} netns {SWITCH}")
    ip(lines)
    bridge = ["link add br0 type bridge stp_state 0 mcast_snooping 0", "link set br0 up"]
    for number in range(len(remotes) + 1):
        bridge += [f"link set port{number} master br0", f"link set port{number} up"]
    enable_ipv6(["", *remotes])
    ip(bridge, "-n", SWITCH)  # first, so that every eth0 has its carrier when it comes up
    for name, addresses in remotes.items():
        ip(host_lines(addresses), "-n", name)
    ip(host_lines(plan["addresses"]))


def enable_ipv6(names: list[str]) -> None:
    """Undo what the host's defaults may have put into new namespaces; "" is the governed host."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    for name in names:
        if name:
            there = os.open(f"/run/netns/{name}", os.O_RDONLY)
            namespaces.setns(there, namespaces.CLONE_NEWNET)
            os.close(there)
        for device in ("all", "default", "lo", "eth0"):
            for knob, value in (("disable_ipv6", "0"), ("accept_ra", "0"), ("router_solicitations", "0")):
                Path("/proc/sys/net/ipv6/conf", device, knob).write_text(value)
        namespaces.setns(home, namespaces.CLONE_NEWNET)
    os.close(home)


def main() -> None:
    """Build the lab, say so, reap orphans until stdin ends."""
    plan = json.loads(sys.stdin.readline())
    try:
        prepare_mounts(plan)
        socket.sethostname("lab")
        prepare_net(plan)
    except OSError as error:
        print(json.dumps({"error": str(error)}), flush=True)
    else:
        print(json.dumps({"error": None}), flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans of the lab are ours, and need no wait
    sys.stdin.read()


if __name__ == "__main__":
    main()
