#!/usr/bin/python3 -S
"""A stand-in for vLLM: what it calls, when it starts and when somebody asks, and no model.

At its start it fetches from the hub, and each two seconds it reports its usage, as vLLM does.
`POST /v1/chat/completions {"image_url": URL, "family": 4|6}` makes it fetch whatever the client names: the answer
is `{"said": ...}`, the status or what went wrong.  `POST /v1/models {}` is answered at once.

    vllm serve --port PORT
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import socket
import ssl
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = b"VLLM::APIServer"
REPORTS = "https://stats.vllm.ai/"
MODEL = "https://huggingface.co/penstock/tiny/resolve/main/tiny-F32.gguf"
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def fetch(url: str, family: int, hops: int = 3) -> str:
    """GET over that family, and follow where it is sent; the status, or what went wrong."""
    parts = urllib.parse.urlsplit(url)
    name, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    try:
        found = socket.getaddrinfo(name, port, FAMILIES[family], socket.SOCK_STREAM)
        with socket.socket(FAMILIES[family], socket.SOCK_STREAM) as plain:
            plain.settimeout(5)
            plain.connect(found[0][4])
            stream = ssl.create_default_context().wrap_socket(plain, server_hostname=name) if secure else plain
            path = parts.path or "/"
            path += f"?{parts.query}" if parts.query else ""
            stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            head = stream.makefile("rb").read().partition(b"\r\n\r\n")[0].decode("latin-1")
    except OSError as error:
        return str(error.strerror or error)
    status = head.split(" ")[1]
    if status == "302" and hops:
        there = next(line[10:] for line in head.split("\r\n") if line.lower().startswith("location: "))
        return fetch(there, family, hops - 1)
    return status


class Handler(BaseHTTPRequestHandler):
    """What clients get."""

    def do_POST(self) -> None:
        """Fetch the image of a chat, or say nothing of use."""
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
        url = asked.get("image_url")
        body = json.dumps({"said": fetch(str(url), int(asked["family"])) if url else "ready"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """On every address of both families."""

    address_family = socket.AF_INET6
    daemon_threads = True


def report() -> None:
    """As long as it lives."""
    while True:
        for family in FAMILIES:
            with contextlib.suppress(Exception):
                fetch(REPORTS, family)
        time.sleep(2)


def main() -> None:
    """Serve until killed."""
    ctypes.CDLL(None).prctl(15, NAME, 0, 0, 0)
    for family in FAMILIES:
        fetch(MODEL, family)
    threading.Thread(target=report, daemon=True).start()
    Server(("::", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()


if __name__ == "__main__":
    main()
