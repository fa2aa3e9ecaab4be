"""Mistakes in penstock.yaml."""

import pytest

from penstock.core.language.parse_host import is_interface
from penstock.core.parse import parse


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("networks: {a: {}}", "2:12: error: network `a` has neither `cidr` nor `interface`; write one of them"),
        ("networks: {a: {cidr: 10.0.0.0/8, interface: eth0}}",
         "2:12: error: network `a` has both `cidr` and `interface`; write one of them"),
        ("networks: {a: 10.0.0.0/8}",
         "2:15: error: network `a` is not a mapping; write `a: {cidr: [10.0.0.0/24]}`"),
        ("networks: {any: {cidr: 10.0.0.0/8}}",
         "2:12: error: `any` is a word of the language; choose another name"),
        ("networks: {a: {cidr: [10.0.0.5/8]}}",
         "2:23: error: `10.0.0.5/8` has bits set behind its prefix; "
         "write 10.0.0.0/8, or 10.0.0.5 for the one address"),
        ("networks: {a: {cidr: [], plane: admin}}",
         "2:22: error: `cidr` is an empty list; write a prefix, or remove the network"),
        ("networks: {a: {cidr: 10.0.0.0/8, plane: admn}}",
         "2:41: error: `admn` is no plane; did you mean `admin`?"),
        ("networks: {a: {interface: 'eth 0'}}",
         "2:27: error: `eth 0` cannot be an interface; "
         "write its name as `ip link` shows it, at most 15 characters"),
        ("networks: {a: {interface: lo}}",
         "2:27: error: `lo` is this host itself, and no network; "
         'write `cidr: [127.0.0.0/8, "::1/128"]`, or in a rule `from: host` or `from: workload:NAME`'),
        ("networks: {a: {interface: 'eth0:1'}}", "2:27: error: `eth0:1` cannot be an interface; write eth0"),
        ("networks: {a: {interface: 'veth1@if7'}}",
         "2:27: error: `veth1@if7` cannot be an interface; write veth1"),
        ("networks: {a: {interface: 'eno*'}}",
         "2:27: error: `eno*` cannot be an interface; "
         "write its name as `ip link` shows it, at most 15 characters"),
        ("host: {admin_ports: 22}",
         "2:21: error: `ports` is one value and must be a list; write `ports: [22]`"),
        ("dns: {upstream: []}", "2:17: error: `upstream` is an empty list; "
         "name a server, or leave the key out for the host's own resolvers"),
        ("dns: {upstream: [dns.google]}",
         "2:18: error: `dns.google` is no address; an IPv4 address is four numbers, such as 10.0.0.5"),
        ("dns: {upstream: ['1.2.3.4:99999']}", "2:18: error: `99999` is out of range; ports go from 1 to 65535"),
        ("mode: x\nnetworks: {}",
         "2:1: error: a host file has no key `mode`; it belongs into a file of its own in rules.d, "
         "with `workload: NAME`"),
    ],
)  # fmt: skip
def test_mistakes(text: str, line: str) -> None:
    lines = [p.line() for p in parse({"penstock.yaml": f"version: 1\n{text}\n".encode()}).problems]
    assert lines == [f"penstock.yaml:{line}"]


@pytest.mark.parametrize(
    ("name", "good"),
    [
        *((name, True) for name in ("e", "eno2", "br-1a2b3c4d5e6f", "eth0.100", "_x", "123456789012345")),
        *((name, False) for name in ("", "1234567890123456", "eno*", "e\\*", 'e"', "e$", "a/b", "a b", "eth0\n")),
        *((name, False) for name in (".", "..", "-x", "e@if2", "e:1", "\uff45")),
    ],
)
def test_no_name_that_nft_would_read_as_another(name: str, good: bool) -> None:
    assert is_interface(name) is good
