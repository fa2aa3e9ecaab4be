"""Bundles of this checkout for hosts without a way out, made as a user makes them, and installing from them.

Each is made by `systemd/install.sh --download` on a machine of that release: its root file system with the outer
machine's network, in mount and pid namespaces of its own.  They are kept in the cache, named by what is in them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import penstock
from hosts import rootfs
from hosts.host import Host
from penstock.demo import namespaces

ROOT = Path(__file__).parents[2]
PARTS = ("agent", "rules", "systemd", "pyproject.toml", "README.md", "LICENSE")
CURRENT = penstock.__version__

# As on any machine that has a network: names, certificates, and how its owner set pip up.
MACHINE = """
set -e
mount --make-rprivate /
mount -t overlay overlay -o lowerdir={base},upperdir={work}/upper,workdir={work}/work {work}/root
cd {work}/root
mount -t proc proc proc
mount --rbind /dev dev
for file in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt /etc/pip.conf; do
  [ ! -e $file ] || {{ mkdir -p ./${{file%/*}}; rm -f ./$file; cp -L $file ./$file; }}
done
mkdir -p mnt/source mnt/out
mount --bind {source} mnt/source
mount --bind {out} mnt/out
exec chroot . /mnt/source/systemd/install.sh --download /mnt/out/bundle
"""


def made(release: str, version: str = CURRENT) -> Path:
    """The bundle of this checkout for `release`, calling itself `version`.  RuntimeError when it fails."""
    folder = rootfs.cache() / "bundles"
    folder.mkdir(exist_ok=True)
    base = rootfs.base(release)
    path = folder / f"{release}-{version}-{_content()}"
    with rootfs.only_one(f"bundle-{release}-{version}"):
        if not path.exists():
            _make(base, version, path)
            for other in folder.glob(f"{release}-{version}-*"):
                if other != path:
                    shutil.rmtree(other, ignore_errors=True)
    return path


def put(host: Host, version: str = CURRENT, place: str = "") -> str:
    """Copy the bundle into the host; returns where it is."""
    place = place or f"/root/bundle-{version}"
    if not host.exists(place):
        host.copy_in(made(host.release, version), place)
    return place


def install(host: Host, version: str = CURRENT) -> float:
    """Install that version on a host, or bring it to it; the seconds that it took.  CommandFailed."""
    place = put(host, version)
    start = time.monotonic()
    host.run([f"{place}/systemd/install.sh"], timeout=180)
    return time.monotonic() - start


def _content() -> str:
    """What distinguishes bundles: every file that goes into one."""
    sums = hashlib.sha256()
    for path in sorted(_files()):
        sums.update(f"{path.relative_to(ROOT)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return sums.hexdigest()[:12]


def _files() -> Iterator[Path]:
    for part in PARTS:
        path = ROOT / part
        if path.is_file():
            yield path
        else:
            yield from (p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def _make(base: Path, version: str, path: Path) -> None:
    rootfs.say(f"Making {path} ...")
    work = path.with_name(f"{path.name}.new")
    shutil.rmtree(work, ignore_errors=True)
    for name in ("upper", "work", "root", "out", "source"):
        (work / name).mkdir(parents=True)
    source = work / "source"
    for file in _files():
        target = source / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # somebody edits meanwhile
            shutil.copy2(file, target)
    if version != CURRENT:
        _rename(source, version)
    script = MACHINE.format(base=base, work=work, source=source, out=work / "out")
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        preexec_fn=namespaces.die_with_parent,
    )
    try:
        if done.returncode != 0:
            raise RuntimeError(f"the bundle for {path.name} cannot be made: {done.stdout[-2000:]}")
        (work / "out/bundle").rename(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _rename(source: Path, version: str) -> None:
    """Have a copy of the checkout call itself another version."""
    for name, pattern in (
        ("pyproject.toml", r'^version = ".*"$'),
        ("agent/penstock/__init__.py", r'^__version__ = ".*"$'),
    ):
        file = source / name
        key = pattern[1:].partition(" ")[0]
        text, count = re.subn(pattern, f'{key} = "{version}"', file.read_text(), flags=re.MULTILINE)
        assert count == 1, name
        file.write_text(text)
