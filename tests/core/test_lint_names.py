"""Legal and unwise, about names."""

from __future__ import annotations

import pytest

from penstock.core.lint import lint
from penstock.core.lookups import METADATA_NAMES
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


HOST = b"""version: 1
networks:
  resolvers: {cidr: [1.1.1.1/32, 8.8.8.0/24]}
  ours: {cidr: [1.1.1.4/32, 8.8.4.0/30, "2620:fe:1::/48"]}
  lan: {interface: eno2}
"""


def told(egress: str, preset: bytes = PRESET, host: bytes = HOST) -> list[str]:
    text = f"version: 1\nworkload: w\nmode: enforce\negress: {egress}\ningress: []\n"
    parsed = parse({"penstock.yaml": host, "rules.d/w.yaml": text.encode()}, {"server.yaml": preset})
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


@pytest.mark.parametrize(
    ("rule", "opened"),
    [
        ("to: 1.1.1.1", "`1.1.1.1` is a public resolver"),
        ("to: a.nextdns.io", "`a.nextdns.io` is a public resolver"),
        ("to: '*.quad9.net'", "`*.quad9.net` opens 4 public resolvers, `dns.quad9.net` among them"),
        ("to: '*.switch.ch'", "`*.switch.ch` opens the public resolver `dns.switch.ch`"),
        ("to: 1.1.1.0/24", "`1.1.1.0/24` opens 3 public resolvers, `1.1.1.1` among them"),
        ("to: 8.8.8.0/24", "`8.8.8.0/24` opens the public resolver `8.8.8.8`"),
        ("to: 8.0.0.0/7", "`8.0.0.0/7` opens 5 public resolvers, `8.8.4.4` among them"),
        ("to: '2001:4860:4860::8800/120'", "`2001:4860:4860::8800/120` opens 2 public resolvers, "
         "`2001:4860:4860::8844` among them"),
        ("to: resolvers", "`resolvers` opens 2 public resolvers, `1.1.1.1` among them"),
        ("to: resolvers, except: [1.1.0.0/16]", "`resolvers` opens the public resolver `8.8.8.8`"),
        ("to: 1.1.1.0/24, except: [1.1.1.0/30]", ""),
        ("to: [1.1.1.4/30, ours, lan]", ""),
        ("to: 10.0.0.0/8", ""),
    ],
)  # fmt: skip
def test_which_public_resolvers(rule: str, opened: str) -> None:
    expected = f"public-resolver: {opened}: encrypted DNS carries any data out unseen"
    assert told(f"[{{{rule}, ports: [443]}}]") == ([expected] if opened else [])


def test_public_resolvers_in_every_address_are_told_as_what_it_is() -> None:
    assert codes("[{to: [0.0.0.0/0, '::/0'], ports: [443]}]") == ["wide-open"]
    everything = HOST.replace(b"[1.1.1.1/32, 8.8.8.0/24]", b"0.0.0.0/0")
    found = told("[{to: resolvers, ports: [443]}]", host=everything)
    assert found == ["wide-open: network `resolvers` is every address"]
    assert codes("[{to: resolvers, ports: [853]}]") == ["public-resolver"]
    assert codes("[{to: resolvers, ports: [80]}]") == []


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
    ],
)
def test_a_known_call_home_that_is_let_out(rule: str, expected: list[str]) -> None:
    assert told(f"[{{use: server}}, {rule}]") == expected
    assert told(f"[{rule}]") == []


def test_what_is_known_of_a_call_home_is_told_whole_and_escaped() -> None:
    text = "reports each minute; " * 20 + "SWITCH=1 stops them"
    preset = PRESET.replace(b"usage reports", f'"{text}\\e[31m"'.encode())
    (line,) = told("[{use: server}, {to: stats.org}]", preset)
    assert line == f"known-name: the rule opens `stats.org`: {text}\\x1b[31m"


@pytest.mark.parametrize("others", ["", "{use: server}, ", "{to: metadata, ports: [80]}, "])
@pytest.mark.parametrize("name", sorted(METADATA_NAMES))
def test_a_name_of_a_metadata_service_opens_nothing(name: str, others: str) -> None:
    found = [line for line in told(f"[{others}{{to: [{name}], ports: [80]}}]") if not line.startswith("metadata")]
    assert found == [f"no-effect: `{name}` opens nothing: no name opens the address of a cloud's metadata service"]


def test_a_pattern_around_a_name_of_a_metadata_service_is_not_said_to_open_it() -> None:
    assert told("[{use: server}, {to: '*.google.internal', ports: [80]}]") == []


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("*.r2.cloudflarestorage.com", "`r2.cloudflarestorage.com`"),
        ("*.co.uk", "`co.uk`"),
        ("*.a.run.app", "`a.run.app`"),
        (
            "*.cloudflarestorage.com",
            "`r2.cloudflarestorage.com`, and the rule opens all of `cloudflarestorage.com`",
        ),
        ("*.azure.com", "`cloudapp.azure.com`, and the rule opens all of `azure.com`"),
        ("*.googleapis.com", "`storage.googleapis.com`, and the rule opens all of `googleapis.com`"),
    ],
)
def test_a_pattern_of_strangers(pattern: str, said: str) -> None:
    assert told(f"[{{to: '{pattern}'}}]") == [f"shared-suffix: anybody can get a name under {said}"]


def test_a_whole_name_and_a_pattern_of_one_owner_are_nobody_elses() -> None:
    assert codes("[{to: [a.r2.cloudflarestorage.com, '*.b.r2.cloudflarestorage.com', '*.hf.co']}]") == []
