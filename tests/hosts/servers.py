"""Two servers that are none, as units: one that pulls models as Ollama does, one that calls about as vLLM does."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hosts import vllm_program
from hosts.host import Host
from hosts.hub import BUNDLE
from penstock.demo import stand_in

OLLAMA, OLLAMA_PORT = "ollama.service", 11434
VLLM, VLLM_PORT = "vllm.service", 8000

_OLLAMA = """\
#!/usr/bin/python3 -S
import sys
sys.path.insert(0, "/opt/ollama")
import stand_in
sys.argv = ["ollama", "11434"]
stand_in.main()
"""
_UNIT = """\
[Unit]
Description={what}
After=network-online.target
Wants=network-online.target
[Service]
User=model
Environment=SSL_CERT_FILE={bundle}
ExecStart={command}
Restart=always
[Install]
WantedBy=multi-user.target
"""


def install_servers(host: Host) -> None:
    """Put both on the host and start them."""
    host.sh("useradd --system model; mkdir -p /opt/ollama")
    host.copy_in(Path(stand_in.__file__), "/opt/ollama/stand_in.py")
    host.write("/usr/local/bin/ollama", _OLLAMA, 0o755)
    host.copy_in(Path(vllm_program.__file__), "/usr/local/bin/vllm")
    host.sh("chmod 755 /usr/local/bin/vllm")
    for unit, command in ((OLLAMA, "ollama serve"), (VLLM, f"vllm serve --port {VLLM_PORT}")):
        text = _UNIT.format(what=f"Stand-in for {unit}", bundle=BUNDLE, command=f"/usr/local/bin/{command}")
        host.write(f"/etc/systemd/system/{unit}", text)
    host.sh(f"systemctl daemon-reload; systemctl enable --now {OLLAMA} {VLLM} 2>/dev/null")
    wait_servers(host)


def wait_servers(host: Host) -> None:
    """Return when both answer over loopback."""
    host.wait_until(lambda: post(host, "127.0.0.1", OLLAMA_PORT, "/api/pull", {"model": "!"}))
    host.wait_until(lambda: post(host, "127.0.0.1", VLLM_PORT, "/v1/models", {}))


def pull(host: Host, at: str, model: str) -> str:
    """From `host`, have the Ollama at the address `at` pull a model; "success", or what it says went wrong."""
    said = post(host, at, OLLAMA_PORT, "/api/pull", {"model": model, "insecure": True})
    return str(said.get("status") or said.get("error") or "no answer")


def see(host: Host, at: str, url: str, family: int) -> str:
    """From `host`, have the vLLM at the address `at` fetch an image; "200", or what went wrong."""
    return str(post(host, at, VLLM_PORT, "/v1/chat/completions", {"image_url": url, "family": family}).get("said"))


def post(host: Host, at: str, port: int, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The last line of the answer to a request from `host`; empty when there was none."""
    return host.call(_post, at, port, path, dict(body))


def _post(at: str, port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPConnection(at, port, timeout=10)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        lines = connection.getresponse().read(1 << 20).splitlines()
    except (OSError, http.client.HTTPException):
        return {}
    finally:
        connection.close()
    said: dict[str, Any] = json.loads(lines[-1])
    return said
