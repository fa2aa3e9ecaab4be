"""Legal and unwise, about names."""

from __future__ import annotations

import pytest

from penstock.core.lint import lint
from penstock.core.parse import parse

PRESET = b"""version: 1
preset: server
title: t
source: s
date: 2026-11-01
egress: []
known:
  - {name: stats.org, kind: telemetry, text: usage reports}
  - {name: "*.credentials.org", kind: metadata, text: the keys}
  - {name: update.org, kind: other, text: whether it is new}
"""


def told(egress: str) -> list[str]:
    text = f"version: 1\nworkload: w\nmode: enforce\negress: {egress}\ningress: []\n"
    parsed = parse({"rules.d/w.yaml": text.encode()}, {"server.yaml": PRESET})
    assert parsed.policy is not None, parsed.problems
    return [f"{problem.code}: {problem.message}" for problem in lint(parsed.policy)]


def codes(egress: str) -> list[str]:
    return [line.partition(":")[0] for line in told(egress)]


@pytest.mark.parametrize("port", ["443", "443/udp", "853", "853/udp", "any"])
@pytest.mark.parametrize(
    "peer",
    [
        *("dns.google", "cloudflare-dns.com", "one.one.one.one", "dns.quad9.net", "doh.opendns.com"),
        *("mozilla.cloudflare-dns.com", "security.cloudflare-dns.com", "abc123.dns.nextdns.io", "'*.nextdns.io'"),
        *("'*.quad9.net'", "'*.google'", "1.1.1.1", "'2620:fe::fe'", "9.9.9.9"),
    ],
)
def test_public_resolvers(peer: str, port: str) -> None:
    assert codes(f"[{{to: {peer}, ports: [{port}]}}]").count("public-resolver") == 1


@pytest.mark.parametrize("peer", ["google.com", "notdns.google.org", "'*.cloudflare.com'", "1.1.1.4"])
def test_what_is_no_public_resolver(peer: str) -> None:
    assert codes(f"[{{to: {peer}, ports: [443]}}]") == []


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("{to: 10.0.0.1, ports: [853]}", ["encrypted-dns"]),
        ("{to: 10.0.0.1, ports: [853/udp]}", ["encrypted-dns"]),
        ("{to: 10.0.0.1, ports: [850-860]}", ["encrypted-dns"]),
        ("{to: 10.0.0.0/8, ports: [1-65535]}", []),
        ("{to: 10.0.0.0/8, ports: [any]}", []),
        ("{to: a.org, ports: [853]}", ["encrypted-dns"]),
        ("{to: 8.8.8.8, ports: [853]}", ["public-resolver"]),
        ("{to: 224.0.0.251, ports: [5353/udp]}", ["multicast-dns"]),
        ("{to: 224.0.0.252, ports: [5355/udp, 5355]}", ["multicast-dns"]),
        ("{to: 10.0.0.1, ports: [53, 53/udp]}", []),
        ("{to: a.org, ports: [53/udp]}", ["no-effect"]),
        ("{to: a.org}, {to: 10.0.0.1, ports: [53/udp]}", ["no-effect"]),
        ("{to: a.org}, {to: 10.0.0.1, ports: [54/udp]}", []),
        ("{use: server}, {to: 10.0.0.1, ports: [53]}", ["no-effect"]),
    ],
)
def test_other_resolvers(rule: str, expected: list[str]) -> None:
    assert codes(f"[{rule}]") == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("{to: stats.org}", ["known-name: the rule opens `stats.org`: usage reports"]),
        ("{to: [a.org, '*.stats.org']}", []),
        ("{to: '*.a.credentials.org'}", ["known-name: the rule opens `*.credentials.org`: the keys"]),
        ("{to: x.credentials.org}", ["known-name: the rule opens `*.credentials.org`: the keys"]),
        ("{to: update.org}", []),
        ("{to: metadata.google.internal, ports: [80]}", [
            "known-name: the rule opens `metadata.google.internal`: the metadata service of Google Cloud, "
            "which hands out credentials"]),
    ],
)  # fmt: skip
def test_a_known_call_home_that_is_let_out(rule: str, expected: list[str]) -> None:
    assert told(f"[{{use: server}}, {rule}]") == expected
    assert told(f"[{rule}]") == []


def test_a_pattern_of_strangers() -> None:
    assert codes("[{to: '*.r2.cloudflarestorage.com'}]") == ["shared-suffix"]
    assert codes("[{to: '*.co.uk'}]") == ["shared-suffix"]
    assert codes("[{to: a.r2.cloudflarestorage.com}]") == []
