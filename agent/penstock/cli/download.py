"""One small file over https, for a person who asked for it: bounded in time, size and redirects."""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage
from typing import IO
from urllib.parse import urlsplit

from penstock.core.language.parse_preset import wrong_url
from penstock.core.language.reading import shown
from penstock.errors import PenstockError

SILENCE = 10.0
"""Seconds without a byte."""
ALL = 30.0
"""Seconds for the content, however slowly it comes."""
MAX_REDIRECTS = 3

_CHUNK = 64 << 10


def through(url: str) -> str:
    """The proxy that the environment names for such a URL, as `HOST:PORT`; empty when there is none."""
    proxy = urllib.request.getproxies().get("https", "")
    host = urlsplit(url).hostname or ""
    if not proxy or urllib.request.proxy_bypass(host):
        return ""
    return shown(urlsplit(proxy if "://" in proxy else f"//{proxy}").netloc.rpartition("@")[2])


def download(
    url: str,
    limit: int,
    trusted: ssl.SSLContext | None = None,
    wrong: Callable[[str], str] = wrong_url,
) -> bytes:
    """The content of a URL, at most `limit` bytes.  Raises PenstockError.

    `trusted` is for certificates (default: those of the system).  `wrong` says why a URL is not to be asked, or
    nothing; it sees each redirect too.
    """
    if reason := wrong(url):
        raise PenstockError(reason, where=shown(url))
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPSHandler(context=trusted or ssl.create_default_context()),
        _Redirects(wrong),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "penstock")]
    try:
        with opener.open(url, timeout=SILENCE) as response:
            return _read(response.read1, url, limit)
    except (OSError, HTTPException, ValueError) as error:
        raise PenstockError(f"cannot be downloaded: {_reason(error)}", where=shown(url)) from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows few, and only to where it would ask by itself."""

    max_redirections = MAX_REDIRECTS

    def __init__(self, wrong: Callable[[str], str]) -> None:
        self._wrong = wrong

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """The next request.  Raises PenstockError for a URL that is not to be asked."""
        if reason := self._wrong(newurl):
            text = f"redirects to `{shown(newurl)}`: {reason}"
            raise PenstockError(text, where=shown(req.full_url))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _read(read: Callable[[int], bytes], url: str, limit: int) -> bytes:
    end = time.monotonic() + ALL
    found = bytearray()
    while chunk := read(_CHUNK):
        found += chunk
        if len(found) > limit:
            raise PenstockError(f"is longer than {limit:,} bytes", where=shown(url))
        if time.monotonic() > end:
            raise PenstockError(f"did not end within {ALL:.0f} s", where=shown(url))
    return bytes(found)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        lost = f", after {MAX_REDIRECTS} redirects or to nowhere" if 300 <= error.code < 400 else ""
        return f"the answer is {error.code}{lost}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return _reason(error.reason)
    if isinstance(error, OSError) and error.strerror:
        return shown(error.strerror)
    return shown(str(error)) or type(error).__name__
