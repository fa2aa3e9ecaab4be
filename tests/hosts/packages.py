"""Python packages for programs on booted hosts: from the package index, once, unpacked for the host's Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from hosts import rootfs
from hosts.host import Host


def python_of(host: Host) -> str:
    """The version of its Python, such as 3.11."""
    return host.sh("python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'").strip()


def unpacked(requirement: str, name: str, python: str) -> Path:
    """`requirement` (`PACKAGE==VERSION`) and what it needs for that Python, in the cache as `name`.

    RuntimeError with pip's words when it cannot be had.
    """
    place = rootfs.cache() / f"{name}-{requirement.rpartition('=')[2]}-{python}"
    with rootfs.only_one(place.name):
        if not place.exists():
            new = place.with_name(f"{place.name}.new")
            shutil.rmtree(new, ignore_errors=True)
            argv = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            argv += ["--target", str(new), "--python-version", python, "--only-binary=:all:", requirement]
            done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode:
                raise RuntimeError(f"{requirement} cannot be had: {done.stderr[-1000:]}")
            new.rename(place)
    return place
