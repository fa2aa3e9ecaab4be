"""resolv.conf as the C library reads it, and whatever else may stand there."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.names import normalise
from penstock.core.policy import Upstream
from penstock.core.resolv_conf import MAX_SEARCH, MAX_SERVERS, ResolvConf, parse


def conf(servers: str = "", search: str = "") -> ResolvConf:
    return ResolvConf(tuple(Upstream(ip_address(one)) for one in servers.split()), tuple(search.split()))


UBUNTU = """\
# This is /run/systemd/resolve/stub-resolv.conf managed by man:systemd-resolved(8).
# nameserver 192.0.2.1

nameserver 127.0.0.53
options edns0 trust-ad
search corp.example
"""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", conf()),
        (UBUNTU, conf("127.0.0.53", "corp.example")),
        ("nameserver 192.0.2.53\nnameserver 2001:db8::53\n", conf("192.0.2.53 2001:db8::53")),
        ("nameserver\t192.0.2.53  # the old one\r\n", conf("192.0.2.53")),
        ("nameserver 192.0.2.53", conf("192.0.2.53")),
        ("nameserver 192.0.2.1\n" * 2 + "nameserver 192.0.2.2", conf("192.0.2.1 192.0.2.2")),
        ("".join(f"nameserver 192.0.2.{n}\n" for n in range(1, 9)), conf("192.0.2.1 192.0.2.2 192.0.2.3")),
        ("nameserver ::ffff:192.0.2.53\n", conf("192.0.2.53")),
        ("nameserver fe80::1%eth0\nnameserver 192.0.2.53\n", conf("192.0.2.53")),
        ("nameserver fe80::1\n", conf("fe80::1")),
        ("nameserver 0.0.0.0\nnameserver ::\n", conf()),
        ("nameserver dns.example\nnameserver 192.0.2.53:5353\nnameserver 192.0.2.053\nnameserver\n", conf()),
        ("Nameserver 192.0.2.53\n;nameserver 192.0.2.54\n#nameserver 192.0.2.55\n", conf()),
        ("search a.example B.Example. lan my-lan\n", conf(search="a.example b.example lan my-lan")),
        ("search a.b b.b c.b d.b e.b f.b g.b", conf(search="a.b b.b c.b d.b e.b f.b")),
        ("search a.example\ndomain b.example c.example\n", conf(search="b.example")),
        ("domain b.example\nsearch a.example\n", conf(search="a.example")),
        ("search a.example\nsearch\n", conf()),
        ("search . b..example *.c.example 192.0.2.1 \xe9.example d.e\n", conf(search="d.e")),
    ],
)  # fmt: skip
def test_parse(text: str, wanted: ResolvConf) -> None:
    assert parse(text) == wanted


@given(st.text() | st.from_regex(r"(nameserver|search|domain)[ \t][^\n]*\n.*", fullmatch=True))
def test_nothing_breaks_it(text: str) -> None:
    found = parse(text)
    assert len(found.servers) <= MAX_SERVERS
    assert len(found.search) <= MAX_SEARCH
    assert [normalise(f"x.{suffix}") for suffix in found.search] == [f"x.{suffix}" for suffix in found.search]
