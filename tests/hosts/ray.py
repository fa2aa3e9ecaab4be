"""A real Ray head as a unit of a booted host: the packages from the package index, seen by the host read-only.

It has no password anywhere, and listens on more ports than its manual names: those of its store, its dashboard and
its clients, and a dozen that the kernel chooses.
"""

from __future__ import annotations

import re
from pathlib import Path

from hosts.host import Host
from hosts.packages import unpacked

RAY = "ray[default]==2.60.0"
PYTHON = "3.11"
"""Of the release that it is tried on."""
UNIT = "ray-head.service"
ROOT = "/opt/ray"
DASHBOARD, CLIENTS, STORE = 8265, 10001, 6379
UNIT_TEXT = f"""\
[Unit]
Description=Ray head
Wants=network-online.target
After=network-online.target

[Service]
User=ray
StateDirectory=ray
Environment=PYTHONPATH={ROOT} HOME=/var/lib/ray RAY_USAGE_STATS_ENABLED=0 PYTHONDONTWRITEBYTECODE=1
ExecStart=/usr/bin/python3 -m ray.scripts.scripts start --head --block --num-cpus 1 \\
  --object-store-memory 100000000 --temp-dir /var/lib/ray/tmp --dashboard-host 0.0.0.0
TimeoutStopSec=10

[Install]
WantedBy=multi-user.target
"""


def packages() -> Path:
    """What a host is to have at `ROOT`.  RuntimeError when it cannot be had."""
    return unpacked(RAY, "ray", PYTHON)


def install_ray(host: Host) -> None:
    """Start it on a host that was booted with `packages` at `ROOT`, and wait until it serves."""
    host.sh("useradd --system --home-dir /var/lib/ray --shell /usr/sbin/nologin ray")
    host.write(f"/etc/systemd/system/{UNIT}", UNIT_TEXT)
    host.sh(f"systemctl daemon-reload; systemctl enable {UNIT} 2>/dev/null; systemctl start {UNIT}")
    wait_serving(host)


def wait_serving(host: Host, timeout: float = 120) -> None:
    """Return when it listens on all ports that it is known for, and opened no other one for two seconds.

    AssertionError after `timeout` seconds.
    """
    last: list[dict[int, set[str]]] = [{}] * 4

    def settled() -> bool:
        last[:] = [*last[1:], listening(host)]
        return {DASHBOARD, CLIENTS, STORE} <= last[0].keys() and all(one == last[0] for one in last)

    host.wait_until(settled, timeout, every=0.5)


def listening(host: Host) -> dict[int, set[str]]:
    """TCP ports that processes of the unit listen on, with the addresses, as `ss` shows them."""
    pids = set(host.sh(f"cat /sys/fs/cgroup$(systemctl show -P ControlGroup {UNIT})/cgroup.procs").split())
    found: dict[int, set[str]] = {}
    for line in host.sh("ss -Hltnp").splitlines():
        if pids & set(re.findall(r"pid=(\d+)", line)):
            address, _, port = line.split()[3].rpartition(":")
            found.setdefault(int(port), set()).add(address)
    return found
