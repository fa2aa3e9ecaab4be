"""A stand-in for Ollama: a small server that pulls a model the way Ollama does, and says that it is none.

`POST /api/pull {"model": "HOST:PORT/NAMESPACE/NAME", "insecure": true}` makes it ask HOST for the manifest:
whoever may send the request chooses whom the server talks to.  `GET /api/tags`, `GET /api/version`.

    python -m penstock.demo.stand_in PORT
"""

from __future__ import annotations

import ctypes
import http.client
import json
import re
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = 11434
NAME = "ollama-stand-in"  # 15 bytes, the most that a process name has

_MODEL = re.compile(r"(?:http://)?(?P<host>\[[0-9a-f:.]+\]|[\w.-]+)(?::(?P<port>\d{1,5}))?/(?P<path>[\w./:-]+)")
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def pull(model: str) -> str:
    """Ask the registry that is part of the model's name for its manifest; what came of it, "" if good."""
    match = _MODEL.fullmatch(model)
    if match is None:
        return "invalid model name"
    name, _, tag = match["path"].partition(":")
    connection = http.client.HTTPConnection(match["host"].strip("[]"), int(match["port"] or 80), timeout=5)
    try:
        connection.request("GET", f"/v2/{name}/manifests/{tag or 'latest'}", headers={"Accept": _MANIFEST})
        status = connection.getresponse().status
    except OSError as error:
        return f"pull model manifest: {error.strerror or error}"
    finally:
        connection.close()
    return "" if status == 200 else f"pull model manifest: {status}"


class _Handler(BaseHTTPRequestHandler):
    server_version = "penstock-demo (stand-in for Ollama)"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """/api/tags and /api/version."""
        pages: dict[str, dict[str, Any]] = {
            "/api/tags": {"models": []},
            "/api/version": {"version": "0.0.0", "stand_in": True},
        }
        self._answer([pages.get(self.path, {"status": "a stand-in for Ollama is running"})])

    def do_POST(self) -> None:
        """/api/pull."""
        length = min(int(self.headers.get("Content-Length", "0")), 65536)
        try:
            model = str(json.loads(self.rfile.read(length))["model"])
        except (ValueError, KeyError, TypeError):
            model = ""
        start = time.monotonic()
        error = pull(model) if self.path == "/api/pull" else "not found"
        last = {"error": error} if error else {"status": "success"}
        took = {"ms": round((time.monotonic() - start) * 1000, 1)}
        self._answer([{"status": "pulling manifest"}, {**last, **took}])

    def _answer(self, lines: list[dict[str, Any]]) -> None:
        body = "".join(json.dumps(line) + "\n" for line in lines).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True

    def server_bind(self) -> None:
        """On every address of both families, as Ollama in its container."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def main() -> None:
    """Serve until killed; says "ready" when it listens."""
    ctypes.CDLL(None).prctl(15, NAME.encode(), 0, 0, 0)  # PR_SET_NAME: what ps and the block log show
    server = _Server(("::", int(sys.argv[1])), _Handler)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
