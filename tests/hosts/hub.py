"""A hub of models that is none: on the outside, with the real one's names, and a certificate that the host trusts.

It does what downloads need of the real one (see hub_program.py): the file itself comes from a second name at a
second address, to which the hub sends whoever asks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hosts import hub_program
from hosts.host import Host
from hosts.llama import UNIT
from hosts.packages import python_of, unpacked
from hosts.world import World
from penstock.demo.gguf import tiny_model

HUB = "huggingface.co"
STORAGE = "cas-bridge.xethub.hf.co"
"""Where the hub keeps large files; `*.hf.co` in the preset."""
AT_HUB = ("203.0.113.20", "2001:db8:5::20")
AT_STORAGE = ("203.0.113.21", "2001:db8:5::21")
PORT = 443
REPOSITORY = "penstock/tiny"
MODEL = "tiny-F32.gguf"
CLIENT = "huggingface_hub==2.4.0"
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True, slots=True)
class Request:
    """One that reached the hub or its storage."""

    name: str  # that was in the request
    method: str
    path: str
    status: int


class Hub:
    """Serves `REPOSITORY` under these names in the world's outside, until the world ends."""

    def __init__(self, world: World, names: Iterable[str] = ()) -> None:
        self.world = world
        self.directory = world.directory / "hub"
        self.files = self.directory / "repositories" / REPOSITORY
        """What the repository holds."""
        self.files.mkdir(parents=True)
        tiny_model(self.files / MODEL)
        (self.files / "config.json").write_text('{"model_type": "llama"}\n')
        self.authority = self.directory / "authority.pem"
        """The certificate of who vouches for it."""
        self._make_certificate([HUB, STORAGE, *names])
        give_addresses(world, [*AT_HUB, *AT_STORAGE])
        argv = [sys.executable, hub_program.__file__, str(self.directory), HUB, STORAGE, str(PORT)]
        served = world.lab.host.popen([*argv, *AT_HUB, *AT_STORAGE], stdout=subprocess.PIPE)
        assert served.stdout is not None
        assert served.stdout.readline() == "ready\n"
        world.outside.names({HUB: AT_HUB, STORAGE: AT_STORAGE})

    def requests(self) -> list[Request]:
        """All that came, oldest first."""
        lines = (self.directory / "requests").read_text().splitlines()
        return [Request(*json.loads(line)) for line in lines]

    def trusted_by(self, host: Host) -> None:
        """Let programs on `host` believe that it is who it says."""
        text = self.authority.read_text()
        host.run(["sh", "-c", f"cat >>{BUNDLE}"], input=text)

    def _make_certificate(self, names: list[str]) -> None:
        authority, key = self.authority, self.directory / "authority.key"
        own, request = self.directory / "key.pem", self.directory / "request.pem"
        extensions = self.directory / "extensions"
        wanted = "subjectAltName=" + ",".join(f"DNS:{name}" for name in names)
        extensions.write_text(f"{wanted}\nauthorityKeyIdentifier=keyid\n")
        new: list[str | Path] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        root = ["-x509", "-days", "30", "-subj", "/CN=Test hub", "-addext", "keyUsage=critical,keyCertSign"]
        _openssl("req", *root, *new, "-keyout", key, "-out", authority)
        _openssl("req", *new, "-keyout", own, "-out", request, "-subj", f"/CN={names[0]}")
        made: list[str | Path] = ["-in", request, "-CA", authority, "-CAkey", key, "-CAcreateserial"]
        made += ["-days", "30", "-extfile", extensions]
        _openssl("x509", "-req", *made, "-out", self.directory / "certificate.pem")


def give_addresses(world: World, addresses: Iterable[str]) -> None:
    """Let the outside have these as well: addresses of its loopback interface, or prefixes, whole."""
    lines = []
    for address in addresses:
        if "/" in address:
            lines.append(f"route add local {address} dev lo")
        else:
            lines.append(f"addr add {address}/{128 if ':' in address else 32} dev lo")
    world.lab.host.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n")


def trusted_by_llama(host: Host) -> None:
    """Let llama-server on `host`, which has a root directory of its own, look where the host's programs look."""
    host.write(f"/etc/systemd/system/{UNIT}.d/hub.conf", f"[Service]\nEnvironment=SSL_CERT_FILE={BUNDLE}\n")
    host.sh("systemctl daemon-reload")


def install_client(host: Host, place: str = "/opt/hub") -> str:
    """A virtual environment with huggingface_hub in it; its python."""
    version = python_of(host)
    host.run(["python3", "-m", "venv", "--without-pip", place])
    host.sh(f"rmdir {place}/lib/python{version}/site-packages")
    host.copy_in(unpacked(CLIENT, "hub-client", version), f"{place}/lib/python{version}/site-packages")
    return f"{place}/bin/python"


def _openssl(*words: str | os.PathLike[str]) -> None:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
