"""A download over https, from a server of our own on loopback."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from penstock.cli import download as module
from penstock.cli.download import MAX_REDIRECTS, download, through
from penstock.errors import PenstockError

LIMIT = 1000


class Answers(BaseHTTPRequestHandler):
    """The path says what is answered."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        word, _, rest = self.path.lstrip("/").partition("/")
        if word == "again":
            number = int(rest)
            self._send(302, b"", f"/again/{number - 1}" if number > 1 else "/bytes/5")
        elif word == "to":
            self._send(302, b"", rest)
        elif word == "bytes":
            self._send(200, b"x" * int(rest))
        elif word == "drip":
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            for _ in range(LIMIT // 2):
                self.wfile.write(b"x")
                self.wfile.flush()
        else:
            self._send(int(word), b"")

    def _send(self, status: int, body: bytes, location: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `localhost`, with its key, in one file."""
    directory = tmp_path_factory.mktemp("certificate")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    command += ["-keyout", str(directory / "key"), "-out", str(directory / "cert")]
    subprocess.run(command, check=True, capture_output=True)
    both = directory / "both.pem"
    both.write_bytes((directory / "cert").read_bytes() + (directory / "key").read_bytes())
    return both


@pytest.fixture(scope="module")
def server(certificate: Path) -> Iterator[str]:
    """The URL of a running server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as found:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        found.socket = context.wrap_socket(found.socket, server_side=True)
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"https://localhost:{found.server_address[1]}"
        finally:
            found.shutdown()
            thread.join()


@pytest.fixture
def get(server: str, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], bytes]:
    """Download a path of the server."""
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    trusted = ssl.create_default_context(cafile=str(certificate))

    def got(path: str) -> bytes:
        return download(server + path, LIMIT, trusted, lambda url: "" if url.startswith(server) else "a stranger")

    return got


def refusal(get: Callable[[str], bytes], path: str) -> str:
    with pytest.raises(PenstockError) as caught:
        get(path)
    return caught.value.message


def test_content(get: Callable[[str], bytes]) -> None:
    assert get(f"/bytes/{LIMIT}") == b"x" * LIMIT
    assert get("/drip") == b"x" * (LIMIT // 2)


def test_too_much(get: Callable[[str], bytes]) -> None:
    assert refusal(get, f"/bytes/{LIMIT + 1}") == "is longer than 1,000 bytes"


def test_too_slow(get: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALL", -1.0)
    assert refusal(get, "/bytes/5").startswith("did not end within")


def test_redirects(get: Callable[[str], bytes]) -> None:
    assert get(f"/again/{MAX_REDIRECTS}") == b"xxxxx"
    assert "after 3 redirects" in refusal(get, f"/again/{MAX_REDIRECTS + 1}")


@pytest.mark.parametrize("url", ["http://localhost/", "https://a.org/", "ftp://localhost/"])
def test_a_redirect_to_where_it_would_not_ask(get: Callable[[str], bytes], url: str) -> None:
    assert refusal(get, f"/to/{url}") == f"redirects to `{url}`: a stranger"
    assert "the answer is 302" in refusal(get, "/to/file:///etc/passwd")


@pytest.mark.parametrize("status", [404, 500, 204])
def test_other_answers(get: Callable[[str], bytes], status: int) -> None:
    if status == 204:
        assert get("/204") == b""
    else:
        assert refusal(get, f"/{status}") == f"cannot be downloaded: the answer is {status}"


def test_a_certificate_that_nobody_vouches_for(server: str) -> None:
    with pytest.raises(PenstockError, match="certificate verify failed"):
        download(f"{server}/bytes/1", LIMIT, None, lambda _: "")


@pytest.mark.parametrize("url", ["http://a.org/", "https://a.org:8443/", "https://127.0.0.1/", "file:///etc/passwd"])
def test_what_is_not_asked_at_all(url: str) -> None:
    with pytest.raises(PenstockError, match=r"only https|only port 443|cannot end in a number"):
        download(url, LIMIT)


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "")
    with pytest.raises(PenstockError, match="cannot be downloaded: Connection refused"):
        download("https://127.0.0.1:1/", LIMIT, None, lambda _: "")


@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        ("http://user:secret@proxy.example:3128/", "proxy.example:3128"),
        ("proxy.example:3128", "proxy.example:3128"),
        ("", ""),
    ],
)
def test_the_proxy_is_told_without_its_password(proxy: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("https_proxy", proxy)
    assert through("https://a.org/") == said
    monkeypatch.setenv("no_proxy", "a.org")
    assert through("https://a.org/") == ""
