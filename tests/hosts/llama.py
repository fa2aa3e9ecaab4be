"""A real llama-server as a unit of a booted host: Debian's packages, unpacked below /opt/llama, and a tiny model.

The packages are newer than any release of these tests, so the unit has them as its root directory.  It runs in
router mode: one unauthenticated `POST /models` makes it fetch a model from the hub, which is the attack.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hosts import rootfs
from hosts.host import Host
from penstock.demo import llama
from penstock.demo.gguf import tiny_model

UNIT = "llama-server.service"
PORT = 8080
HUB = llama.HUB
"""What it calls when it is told to fetch a model; the outside's names say where that is."""
ROOT = "/opt/llama"
MODELS = "/var/lib/llama"
MODEL = "tiny"

UNIT_TEXT = f"""\
[Unit]
Description=Inference server
Wants=network-online.target
After=network-online.target

[Service]
User=llama
RootDirectory={ROOT}
MountAPIVFS=yes
PrivateTmp=yes
BindReadOnlyPaths=/etc/hosts /etc/resolv.conf /etc/passwd /etc/group /etc/ssl
BindPaths={MODELS}
Environment=LLAMA_CACHE={MODELS} HOME={MODELS}
ExecStart=/usr/bin/llama-server --host :: --port {PORT} --models-dir {MODELS}
Restart=on-failure
TimeoutStopSec=5

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said; status 0 when there was none, and `text` says why."""

    status: int
    text: str

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.text)


def install_llama(host: Host, *, start: bool = True) -> None:
    """Put llama-server and its unit on the host; start it and wait until it serves, unless told otherwise."""
    host.copy_in(llama.fetch(rootfs.say), ROOT)
    host.sh(f"useradd --system --home-dir {MODELS} --shell /usr/sbin/nologin llama; install -d -o llama {MODELS}")
    host.call(tiny_model, Path(MODELS, f"{MODEL}.gguf"))
    # Where the binds go must be there: the unit may find its root directory read-only.
    host.sh(f"mkdir -p {ROOT}{MODELS} {ROOT}/sys {ROOT}/run; touch {ROOT}/etc/passwd {ROOT}/etc/group")
    host.write(f"/etc/systemd/system/{UNIT}", UNIT_TEXT)
    host.sh(f"systemctl daemon-reload; systemctl enable {UNIT} 2>/dev/null")
    if start:
        host.run(["systemctl", "start", UNIT])
        wait_serving(host)


def wait_serving(host: Host, timeout: float = 30) -> None:
    """Return when the server on `host` answers over loopback; AssertionError after `timeout` seconds."""
    host.wait_until(lambda: ask(host, "127.0.0.1", "/health").status == 200, timeout)


def ask(host: Host, address: str, path: str, body: Mapping[str, Any] | None = None, timeout: float = 20) -> Answer:
    """One request from `host` to the server at `address`: GET, or POST with a body."""
    return host.call(_ask, address, path, body, timeout)


def complete(host: Host, address: str) -> Answer:
    """From `host`, have the model at `address` say eight tokens; the first request loads it."""
    deadline = time.monotonic() + 30
    body = {"model": MODEL, "prompt": "water", "n_predict": 8, "ignore_eos": True}
    while True:
        answer = ask(host, address, "/completion", body)
        if answer.status not in (400, 503) or time.monotonic() > deadline:
            return answer
        time.sleep(0.1)  # the model is being loaded


def fetch_model(host: Host, address: str, model: str) -> Answer:
    """From `host`, tell the server at `address` to fetch "someone/model" from the hub: it asks for no password."""
    return ask(host, address, "/models", {"model": model})


def _ask(address: str, path: str, body: Mapping[str, Any] | None, timeout: float) -> Answer:
    connection = http.client.HTTPConnection(address, PORT, timeout=timeout)
    headers = {"Content-Type": "application/json"}
    try:
        content = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, content, headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read(1 << 20).decode(errors="replace"))
    except OSError as error:
        return Answer(0, f"{type(error).__name__}: {error}")
    finally:
        connection.close()
