"""Root file systems for booted hosts, made of Debian packages and kept outside the checkout.

One directory a release, named by what it is made of: another list of packages is another directory.  It is
filled under another name and renamed, so what is there is whole; nobody writes into it afterwards, hosts lay
an overlay over it.  To have newer packages, remove the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from penstock.demo import namespaces
from penstock.demo.llama import _mirrors

RELEASES = ("bookworm", "trixie")
"""Debian 12 and 13: nft 1.0.6 and 1.1, systemd 252 and 257, Python 3.11 and 3.13."""

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "procps", "iproute2", "iputils-ping", "curl", "ca-certificates", "sudo"),
    *("python3", "python3-venv", "nftables", "conntrack", "iptables", "firewalld", "ufw"),
    *("dnsmasq-base", "bind9-dnsutils", "nginx-light", "podman", "runc", "netavark", "aardvark-dns"),
)

DISABLED = (
    *("firewalld", "ufw", "nftables", "nginx"),
    *("podman", "podman.socket", "podman-restart", "podman-auto-update.timer"),
)
"""Units that their packages enable.  A test that wants one starts it."""

MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer"),
    *("e2scrub_all.timer", "e2scrub_reap.service", "console-getty.service", "systemd-modules-load.service"),
)

CONTAINERS_CONF = """\
[containers]
pids_limit=0
default_ulimits=["nofile=20000:20000","nproc=90000:90000"]
[engine]
runtime="runc"
"""
"""podman inside a booted host: there is no controller for pids, and no right to raise limits."""

VERSION = "1"
"""To be raised when `_finish` changes."""

_held: list[int] = []


def cache() -> Path:
    """Where root file systems and bundles are kept: $PENSTOCK_TEST_CACHE, else /var/cache/penstock-tests."""
    path = Path(os.environ.get("PENSTOCK_TEST_CACHE", "/var/cache/penstock-tests"))
    path.mkdir(parents=True, exist_ok=True)
    return path


def base(release: str) -> Path:
    """The root directory of `release`, built if it is not there, and kept while this process lives.

    RuntimeError with the last words of the build when it fails.
    """
    return kept(release, cache() / f"{release}-{_recipe(release)}", _build)


def kept(release: str, path: Path, build: Callable[[str, Path], None]) -> Path:
    """`path`, made by `build(release, path)` if it is not there, and kept while this process lives.

    Others beside it that are named by the release go, unless somebody uses them.
    """
    with only_one(path.name):
        if not path.exists():
            build(release, path)
        _held.append(_lock(path, fcntl.LOCK_SH))
    _remove_older(release, path)
    return path


def build_all(releases: Iterable[str] = RELEASES) -> None:
    """Build whatever is missing, all at once: two take little longer than one."""
    code = "import sys; from hosts import rootfs; rootfs.base(sys.argv[1])"
    path = os.pathsep.join(str(Path(__file__).parents[n]) for n in (1, 2)) + "/agent"
    missing = [r for r in releases if not (cache() / f"{r}-{_recipe(r)}").exists()]
    if len(missing) < 2:
        return
    env = {**os.environ, "PYTHONPATH": path}
    argv = [sys.executable, "-c", code]
    die = namespaces.die_with_parent
    for child in [subprocess.Popen([*argv, r], env=env, preexec_fn=die) for r in missing]:  # noqa: PLW1509
        child.wait()


@contextlib.contextmanager
def only_one(name: str) -> Iterator[None]:
    """Keep other processes from making `name` in the cache meanwhile."""
    folder = cache() / "locks"
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _recipe(release: str) -> str:
    parts = [VERSION, release, *PACKAGES, *DISABLED, *MASKED, CONTAINERS_CONF]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _lock(path: Path, how: int) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(descriptor, how)
    return descriptor


def _remove_older(release: str, path: Path) -> None:
    """Remove what is made in another way, or by a killed build, unless somebody uses it."""
    for other in path.parent.glob(f"{release}-*"):
        if other == path:
            continue
        with contextlib.suppress(OSError):
            descriptor = _lock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other, ignore_errors=True)
            os.close(descriptor)


def _build(release: str, path: Path) -> None:
    say(f"Building a root file system of Debian {release} in {path} (minutes, once) ...")
    start = time.monotonic()
    new = path.with_name(f"{path.name}.new")
    error = ""
    for mirror in _mirrors():
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        held = _lock(new, fcntl.LOCK_SH)
        done = _bootstrap(release, new, mirror)
        os.close(held)
        if done.returncode == 0:
            _finish(new)
            new.rename(path)
            say(f"Built Debian {release} in {time.monotonic() - start:.0f} s.")
            return
        error = " / ".join(done.stdout.splitlines()[-5:])
    shutil.rmtree(new, ignore_errors=True)
    raise RuntimeError(f"mmdebstrap could not build {release}: {error}")


def _bootstrap(release: str, target: Path, mirror: str) -> subprocess.CompletedProcess[str]:
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]
    # Namespaces of its own: killed at any moment, it leaves no mount and no process.
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    argv += ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--quiet"]
    argv += ["--aptopt=Apt::Install-Recommends false", "--aptopt=Acquire::Check-Valid-Until false"]
    argv += ["--dpkgopt=force-unsafe-io", *excluded, f"--include={','.join(PACKAGES)}"]
    return subprocess.run(
        [*argv, release, str(target), mirror],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        preexec_fn=namespaces.die_with_parent,
    )


def _finish(root: Path) -> None:
    """What no package does: nothing runs that was not asked for, and no two hosts are the same one."""
    for name in ("etc/hostname", "etc/resolv.conf", "var/lib/dbus/machine-id"):
        (root / name).unlink(missing_ok=True)
    (root / "etc/machine-id").write_text("")
    (root / "var/log/journal").mkdir(exist_ok=True)  # a journal over boots
    for unit in MASKED:
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    for unit in DISABLED:  # one by one: a release need not know them all
        subprocess.run(["chroot", root, "systemctl", "disable", unit], capture_output=True, env=env)
    (root / "etc/containers").mkdir(exist_ok=True)
    (root / "etc/containers/containers.conf").write_text(CONTAINERS_CONF)


def say(text: str) -> None:
    """Tell a person, past pytest's capture."""
    print(text, file=sys.__stderr__, flush=True)
