"""A real llama-server in a lab: fetched from Debian's packages, without touching the host.

apt works in a directory of its own, against the signed archive, and knows nothing installed; the packages
are unpacked, never installed; the server runs in a chroot.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from penstock.demo import cache
from penstock.demo.gguf import tiny_model
from penstock.demo.lab import Lab
from penstock.errors import PenstockError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEFAULT_MIRROR = "http://deb.debian.org/debian"
PACKAGES = ("llama.cpp", "bash", "coreutils")
PORT = 9931
HUB = "huggingface.co"
"""What llama-server calls when it is told to fetch a model."""


def fetch(say: cache.Say) -> Path:
    """Return the root directory with llama-server in it, downloading it if it is not there yet.

    PenstockError when it cannot be had.  25 MB, once.
    """
    place = cache.directory("llama")
    root = place / "root"
    if (root / "usr/bin/llama-server").exists():
        return root
    if not KEYRING.exists():
        raise PenstockError(f"{KEYRING} is missing", hint="sudo apt-get install debian-archive-keyring")
    with cache.only_one(place):
        if not root.exists():
            say("Fetching llama-server from Debian's packages (25 MB, once; nothing is installed) ...")
            _download(place, say)
            _unpack(place, root)
            cache.give_to_owner(place)
    return root


def _mirrors() -> list[str]:
    """The Debian mirror that apt on this machine is set up with, if any, and the general one."""
    wanted = ["--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"]
    try:
        done = subprocess.run(["apt-get", "indextargets", *wanted], capture_output=True, text=True, check=False)
    except FileNotFoundError as e:
        raise PenstockError("there is no apt-get here to fetch packages with") from e
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("Debian ")]
    own = [uri for uri in found if "security" not in uri][:1]
    return [*own, *([] if own == [DEFAULT_MIRROR + "/"] else [DEFAULT_MIRROR])]


def _options(place: Path) -> list[str]:
    """What makes apt forget this machine."""
    settings = {
        "Dir::State": place / "state",
        "Dir::State::status": place / "status",
        "Dir::Cache": place / "cache",
        "Dir::Etc::SourceList": place / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "APT::Sandbox::User": "root",  # the directories may be closed to apt's own user
        "Acquire::Check-Valid-Until": "false",
        "Acquire::Languages": "none",
        "Acquire::Retries": 2,
    }
    return [f"-o{name}={value}" for name, value in settings.items()]


def _download(place: Path, say: cache.Say) -> None:
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    (place / "status").touch()
    apt = ["apt-get", "-q", *_options(place)]
    error: PenstockError | None = None
    for mirror in _mirrors():
        (place / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} sid main\n")
        got = 0

        def progress(line: str) -> None:
            nonlocal got
            got += line.startswith("Get:")
            if line.startswith("Get:") and got % 10 == 0:
                say(f"  {got} packages ...")

        try:
            cache.run([*apt, "update", "--error-on=any"])
            cache.run([*apt, "-y", "install", "-d", "--no-install-recommends", *PACKAGES], progress)
        except PenstockError as e:
            error = e
        else:
            return
    assert error
    raise error


def _unpack(place: Path, root: Path) -> None:
    new = place / "root.new"
    shutil.rmtree(new, ignore_errors=True)
    for folder in ("bin", "sbin", "lib", "lib64"):  # packages put files under both names
        (new / "usr" / folder).mkdir(parents=True)
        (new / folder).symlink_to(f"usr/{folder}")
    for package in sorted((place / "cache/archives").glob("*.deb")):
        cache.run(["dpkg-deb", "-x", str(package), str(new)])
    for folder in ("dev", "proc", "tmp", "etc/ssl"):
        (new / folder).mkdir(parents=True, exist_ok=True)
    for file in ("hosts", "resolv.conf"):
        (new / "etc" / file).touch()
    (new / "etc/nsswitch.conf").write_text("hosts: files dns\n")
    new.rename(root)
    for leftover in ("cache", "state"):
        shutil.rmtree(place / leftover)


class LlamaServer:
    """llama-server in router mode, in the lab's governed host, under the program that `prefix` names."""

    def __init__(self, lab: Lab, root: Path, prefix: Sequence[str], env: Mapping[str, str]) -> None:
        self._lab = lab
        self.log = lab.dir / f"llama-{time.monotonic_ns()}.log"
        models = lab.dir / "models"
        models.mkdir(exist_ok=True)
        tiny_model(models / "tiny.gguf")
        _bind(lab, root)
        argv = ["chroot", str(root), "/usr/bin/llama-server", "--host", "::", "--port", str(PORT)]
        with self.log.open("w") as log:
            self.process = lab.host.popen(
                [*prefix, *argv, "--models-dir", str(models)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**env, "LLAMA_CACHE": str(models)},
            )
        self._wait_ready()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self.process.poll() is None:
            if self._lab.host.call(healthy, "127.0.0.1"):
                return
            time.sleep(0.02)
        raise PenstockError("llama-server did not start", where=str(self.log), hint=self.last_words())

    def load(self, address: str, model: str) -> None:
        """One unauthenticated POST: load that model.  The server says yes and goes to fetch it."""
        self._lab.host.call(_request, address, "/models", {"model": model})

    def ended(self, model: str, timeout: float) -> bool:
        """Wait until the server's helper for `model` has ended; whether it did in `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while f"name={model} exited" not in self.log.read_text(errors="replace"):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def last_words(self) -> str:
        """The end of its log."""
        return " / ".join(self.log.read_text(errors="replace").splitlines()[-3:])

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def _bind(lab: Lab, root: Path) -> None:
    """Let the chroot see the lab's devices, processes, names and certificates.  The lab's mounts are its own."""
    for folder in ("dev", "proc", "tmp", "etc/ssl", "etc/hosts", "etc/resolv.conf"):
        target = root / folder
        if os.path.exists(f"/{folder}") and lab.host.run(["mountpoint", "-q", target], check=False).returncode:
            lab.host.run(["mount", "--rbind", f"/{folder}", target])


def healthy(address: str) -> bool:
    """Whether the server there answers and says it is ready; from its first moments on it may say 503."""
    try:
        _request(address, "/health", None)
    except OSError:  # also what it refuses: HTTPError is one
        return False
    return True


def _request(address: str, path: str, body: Mapping[str, object] | None) -> bytes:
    host = f"[{address}]" if ":" in address else address
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{host}:{PORT}{path}", data=data, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        content: bytes = answer.read(65536)
    return content
