"""The look-alike hub's server: one HTTPS server on some addresses; what it is, the name in the request says.

Asked by the hub's name it speaks the part of the hub's interface that downloads use, and sends whoever wants a
large file to the storage's name, as the real one does.  Asked by any other name it is the storage.

    python3 hub_program.py DIRECTORY HUB STORAGE PORT ADDRESS...

DIRECTORY holds certificate.pem and key.pem, and the files as repositories/OWNER/NAME/FILE.  Each request becomes
a line in DIRECTORY/requests, `["NAME", "METHOD", "PATH", STATUS]`; "ready" on stdout once it serves.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

LARGE = 10_000
"""Bytes; from here on a file lies in the storage."""
LARGE_ENDINGS = (".gguf",)


@cache
def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    directory: ClassVar[Path]
    hub: ClassVar[str]
    storage: ClassVar[str]
    log: ClassVar[int]

    def do_GET(self) -> None:
        """Answer, with a body unless only the head is wanted."""
        name = (self.headers.get("Host") or "").partition(":")[0]
        path = self.path.partition("?")[0]
        status, headers, body = self._hub(path) if name == self.hub else self._stored(path)
        os.write(self.log, (json.dumps([name, self.command, self.path, status]) + "\n").encode())
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    # --- the hub ---

    def _hub(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self._resolve(found[1], found[2])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|refs).*)?", path):
            return self._described(found[1], found[2] or "revision")
        if found := re.fullmatch(r"/v2/([^/]+/[^/]+)/manifests/[^/]+", path):
            return self._manifest(found[1])
        return 404, {}, b"no such page"

    def _files(self, repository: str) -> dict[str, Path]:
        top = self.directory / "repositories" / repository
        if ".." in repository or not top.is_dir():
            return {}
        return {str(p.relative_to(top)): p for p in sorted(top.rglob("*")) if p.is_file()}

    def _commit(self, repository: str) -> str:
        return hashlib.sha1(repository.encode()).hexdigest()

    def _resolve(self, repository: str, name: str) -> tuple[int, dict[str, str], bytes]:
        path = self._files(repository).get(name)
        if path is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b"Entry not found"
        tag, size = f'"{_sum(path)}"', str(path.stat().st_size)
        headers = {"X-Repo-Commit": self._commit(repository), "ETag": tag, "Accept-Ranges": "bytes"}
        if path.stat().st_size < LARGE and not name.endswith(LARGE_ENDINGS):
            return 200, headers, path.read_bytes()
        there = f"https://{self.storage}/{repository}/{_sum(path)}?Signature=none"
        return 302, {**headers, "X-Linked-Size": size, "X-Linked-ETag": tag, "Location": there}, b"Found"

    def _described(self, repository: str, what: str) -> tuple[int, dict[str, str], bytes]:
        files = self._files(repository)
        if not files:
            return 404, {"X-Error-Code": "RepoNotFound"}, b'{"error":"Repository not found"}'
        commit, said = self._commit(repository), [_entry(name, path) for name, path in files.items()]
        about: Any = {"_id": commit[:24], "id": repository, "modelId": repository, "sha": commit, "tags": []}
        about |= {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0}
        about["siblings"] = [{"rfilename": name} for name in files]
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit}
        answers = {"revision": about, "tree": said, "refs": {"branches": [branch], "tags": [], "converts": []}}
        return 200, {"Content-Type": "application/json"}, json.dumps(answers[what]).encode()

    def _manifest(self, repository: str) -> tuple[int, dict[str, str], bytes]:
        models = [name for name in self._files(repository) if name.endswith(".gguf")]
        said = json.dumps({"ggufFile": {"rfilename": models[0]}} if models else {}).encode()
        return (200 if models else 404), {"Content-Type": "application/json"}, said

    # --- the storage ---

    def _stored(self, path: str) -> tuple[int, dict[str, str], bytes]:
        found = re.fullmatch(r"/([^/]+/[^/]+)/([0-9a-f]{64})", path)
        for file in self._files(found[1]).values() if found else ():
            if found and _sum(file) == found[2]:
                return self._part(file.read_bytes(), f'"{found[2]}"')
        return 404, {}, b"no such file"

    def _part(self, content: bytes, tag: str) -> tuple[int, dict[str, str], bytes]:
        headers = {"ETag": tag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return 200, headers, content
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return 206, headers, content[first : last + 1]

    def log_message(self, format: str, *args: Any) -> None:
        """Not to stderr."""


def _entry(name: str, path: Path) -> dict[str, Any]:
    """A file as the hub lists it."""
    size, large = path.stat().st_size, path.stat().st_size >= LARGE or name.endswith(LARGE_ENDINGS)
    lfs = {"lfs": {"oid": _sum(path), "size": size, "pointerSize": 130}} if large else {}
    return {"type": "file", "oid": _sum(path)[:40], "size": size, "path": name, **lfs}


class Server(ThreadingHTTPServer):
    """On one address; the handshake is the connection's own thread's."""

    daemon_threads = True

    def __init__(self, address: str, port: int, context: ssl.SSLContext) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.context = context
        super().__init__((address, port), Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Speak TLS first; whoever hangs up in between is nobody's concern."""
        try:
            with self.context.wrap_socket(request, server_side=True) as wrapped:
                super().finish_request(wrapped, client_address)
        except OSError:
            request.close()


def serve() -> Iterator[Server]:
    """One server an address, from the command line."""
    directory, hub, storage, port, *addresses = sys.argv[1:]
    Handler.directory, Handler.hub, Handler.storage = Path(directory), hub, storage
    Handler.log = os.open(Path(directory, "requests"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(directory, "certificate.pem"), Path(directory, "key.pem"))
    for address in addresses:
        yield Server(address, int(port), context)


def main() -> None:
    """Serve for ever."""
    for server in serve():
        threading.Thread(target=server.serve_forever).start()
    print("ready", flush=True)


if __name__ == "__main__":
    main()
