"""Domain names and patterns.

A name is kept in one form only: lower case, no trailing dot, at least two labels, ASCII.  A pattern is a
name, or `*.` before a name; `*.example.org` stands for one or more labels before `example.org` and never for
`example.org` itself.  Names in other scripts must be written in punycode: what is seen must be what is looked
up, and the encodings of 2003 and 2008 disagree about some letters.
"""

from __future__ import annotations

import re

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_DEVIATION = re.compile("[ßς\u200c\u200d]")  # read differently by IDNA 2003 and 2008

# Suffixes under which anybody can get a name for himself: a wildcard there opens the host to strangers.
_SHARED_SUFFIXES = frozenset(
    """
    ac.uk co.uk gov.uk org.uk com.au net.au org.au co.nz co.jp ne.jp or.jp co.kr com.br com.cn com.tw com.hk
    com.mx com.tr com.sg co.in co.za co.il com.ar com.ua com.pl
    amazonaws.com amazonaws.com.cn s3.amazonaws.com elb.amazonaws.com cloudfront.net awsapprunner.com on.aws
    elasticbeanstalk.com
    r2.cloudflarestorage.com r2.dev workers.dev pages.dev trycloudflare.com cloudflare.net
    blob.core.windows.net dfs.core.windows.net file.core.windows.net web.core.windows.net core.windows.net
    azurewebsites.net azureedge.net azurefd.net cloudapp.azure.com cloudapp.net windows.net trafficmanager.net
    storage.googleapis.com appspot.com a.run.app run.app web.app firebaseapp.com firebaseio.com cloudfunctions.net
    googleusercontent.com
    github.io gitlab.io githubusercontent.com herokuapp.com vercel.app netlify.app onrender.com fly.dev
    digitaloceanspaces.com ondigitalocean.app backblazeb2.com wasabisys.com
    global.ssl.fastly.net fastly.net akamaized.net edgekey.net edgesuite.net b-cdn.net hf.space gradio.live
    ngrok.io ngrok.app ngrok-free.app ngrok.dev loca.lt serveo.net
    duckdns.org dyndns.org no-ip.org nip.io sslip.io
    blogspot.com wordpress.com
    """.split()  # noqa: SIM905 (a table is easier to read and to sort)
)

# What lies above one of them: of `*.cloudflarestorage.com` all that is in `r2.cloudflarestorage.com` is a part.
_ABOVE = {
    suffix.split(".", n)[n]: suffix
    for suffix in sorted(_SHARED_SUFFIXES, reverse=True)  # of several the first in the alphabet stays
    for n in range(1, suffix.count("."))
}

# The same of one region: `s3.eu-west-1.amazonaws.com`, `eu-west-1.elb.amazonaws.com`.
_OF_A_REGION = re.compile(
    r"(?:[a-z0-9-]+\.){0,2}(?:[a-z0-9]+-)?[a-z]{2}(?:-[a-z]+){1,2}-[0-9](?:\.[a-z0-9-]+)?\.amazonaws\.com(?:\.cn)?"
    r"|[a-z0-9]+\.cloudapp\.azure\.com|z[0-9]+\.web\.core\.windows\.net|[a-z]+-[a-z]+[0-9]+\.run\.app"
)


class BadName(ValueError):
    """Not a domain name: what is wrong, and what to write instead."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def normalise(text: str) -> str:
    """Return a domain name in its one form.  Raises BadName."""
    name = text.removesuffix(".").lower() if text.isascii() else text
    if not name.isascii():
        raise BadName("a name in other letters than a-z must be in punycode", _punycode_hint(name))
    if "*" in name:
        raise BadName("a `*` stands only for whole labels in front", "write `*.example.org`")
    if len(name) > 253:
        raise BadName("a domain name has at most 253 characters", "check the name")
    labels = name.split(".")
    for label in labels:
        _check_label(label)
    if len(labels) < 2:
        raise BadName("a name of one label is no domain name", "write the full name, such as `db.example.org`")
    if labels[-1].isdecimal():
        raise BadName("a name cannot end in a number", "write an address as four numbers from 0 to 255")
    return name


def normalise_pattern(text: str) -> str:
    """Return a name or a pattern `*.NAME` in its one form.  Raises BadName.

    `*.com` is a pattern too: that it is unwise is said by `lint`.
    """
    if not text.startswith("*."):
        return normalise(text)
    base = text[2:]
    if base and base.isascii() and "." not in base.removesuffix("."):
        _check_label(base.removesuffix(".").lower())
        return "*." + base.removesuffix(".").lower()
    return "*." + normalise(base)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern stands for a name; both as `normalise` returns them."""
    if pattern.startswith("*."):
        return name.endswith(pattern[1:])
    return name == pattern


def is_shared_suffix(name: str) -> bool:
    """Whether strangers can get names below this one: directly, or under a suffix that lies below it."""
    return bool(shared_suffix(name))


def shared_suffix(name: str) -> str:
    """The suffix of a registry or a cloud that `name` is, or one that lies below it; empty when none is known."""
    if "." not in name or name in _SHARED_SUFFIXES or _OF_A_REGION.fullmatch(name):
        return name
    return _ABOVE.get(name, "")


def _check_label(label: str) -> None:
    if not label:
        raise BadName("a name has an empty label", "write one dot between labels, and none in front")
    if len(label) > 63:
        raise BadName("a label of a name has at most 63 characters", "check the name")
    if not _LABEL.match(label):
        raise BadName(
            "a label holds letters, digits, `-` and `_`, and neither starts nor ends with `-`",
            "check the name",
        )


def _punycode_hint(name: str) -> str:
    if _DEVIATION.search(name):
        return "write its xn-- form: the registrar or `idn2` knows it"
    try:
        encoded = name.encode("idna").decode("ascii")
    except UnicodeError:
        return "write its xn-- form: the registrar or `idn2` knows it"
    return f'write "{encoded.lower()}"' if len(encoded) <= 253 else "check the name"
