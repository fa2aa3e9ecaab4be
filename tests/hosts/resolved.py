"""systemd-resolved on a host, from packages that its root file system has not: its stub listens on 127.0.0.53."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from hosts import rootfs
from hosts.host import Host
from hosts.outside import DNS
from penstock.demo import cache, llama

STUB = "127.0.0.53"
SOCKET = "/run/systemd/resolve/io.systemd.Resolve"
SETTINGS = f"[Resolve]\nDNS={DNS[0]}\nFallbackDNS=\nLLMNR=no\nMulticastDNS=no\n"


def install_resolved(host: Host) -> None:
    """Start it, and have the host's programs ask it.  PenstockError when the packages cannot be had."""
    place = "/root/resolved"
    host.copy_in(_packages(host.release), place)
    host.write("/etc/systemd/resolved.conf.d/tests.conf", SETTINGS)
    host.sh(f"DEBIAN_FRONTEND=noninteractive dpkg -i {place}/*.deb")
    host.sh("systemctl start systemd-resolved; ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf")
    host.wait_until(lambda: host.exists(SOCKET))


def _packages(release: str) -> Path:
    """A directory of what is missing there, downloaded once."""
    place = rootfs.cache() / f"resolved-{release}"
    with rootfs.only_one(place.name):
        if not place.exists():
            _download(release, place)
    return place


def _download(release: str, place: Path) -> None:
    new = place.with_name(f"{place.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (new / folder).mkdir(parents=True)
    shutil.copy(rootfs.base(release) / "var/lib/dpkg/status", new / "status")
    apt = ["apt-get", "-q", *llama._options(new)]
    for mirror in llama._mirrors():
        (new / "sources.list").write_text(f"deb [signed-by={llama.KEYRING}] {mirror} {release} main\n")
        if subprocess.run([*apt, "update", "--error-on=any"], capture_output=True).returncode == 0:
            break
    cache.run([*apt, "-y", "install", "-d", "--no-install-recommends", "systemd-resolved"])
    (new / "cache/archives").rename(place)
    shutil.rmtree(place / "partial")
    shutil.rmtree(new)
