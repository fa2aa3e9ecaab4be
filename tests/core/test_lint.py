"""Legal and unwise."""

import time
from datetime import UTC, datetime

import pytest

from penstock.core.lint import lint
from penstock.core.parse import parse
from penstock.core.policy import Policy

HOST = b"""version: 1
networks:
  admin: {cidr: 10.20.0.0/24, plane: admin}
  clients: {cidr: 10.30.0.0/16, plane: inference}
  plain: {cidr: 10.40.0.0/16}
host: {admin_ports: [22]}
"""


def policy(egress: str = "[]", ingress: str = "[]", name: str = "w", more: bytes = b"") -> Policy:
    text = f"version: 1\nworkload: {name}\nmode: enforce\negress: {egress}\ningress: {ingress}\n"
    files = {"penstock.yaml": HOST, "rules.d/w.yaml": text.encode()}
    if more:
        files["rules.d/x.yaml"] = more
    parsed = parse(files)
    assert parsed.policy is not None, parsed.problems
    return parsed.policy


def codes(found: Policy, now: datetime | None = None) -> list[str]:
    return [f"{p.severity[0]} {p.code}" for p in lint(found, now)]


@pytest.mark.parametrize(
    ("egress", "expected"),
    [
        ("[{to: 10.0.0.1, ports: [443]}]", []),
        ("[{to: any, ports: [443]}]", ["w wide-open"]),
        ("[{to: 0.0.0.0/0, ports: [443]}]", ["w wide-open"]),
        ("[{to: 8.8.8.8, ports: [443]}]", ["w public-resolver"]),
        ("[{to: 8.8.8.8, ports: [53]}]", []),
        ("[{to: '*.google'}]", ["w public-resolver", "w shared-suffix"]),
        ("[{to: '*.r2.cloudflarestorage.com'}]", ["w shared-suffix"]),
        ("[{to: metadata, ports: [80]}]", ["w metadata"]),
        ("[{to: 'fd00:ec2::254', ports: [80]}]", ["w metadata"]),
        ("[{to: 10.0.0.1, ports: [3128]}]", ["w proxy"]),
        ("[{to: workload:w, ports: [1]}]", ["w self"]),
        ("[{to: 10.1.0.0/16, ports: [1], except: 10.0.0.0/8}]", ["w empty-rule"]),
        ("[{to: 10.0.0.0/8, ports: [1], except: 10.1.0.0/16}]", []),
        ("[{to: 10.0.0.0/8, ports: [1]}, {to: [10.1.1.1, clients], ports: [1]}]", ["w no-effect"]),
        ("[{to: 10.0.0.0/8, ports: [1]}, {to: [10.1.1.1, 11.1.1.1], ports: [1]}]", []),
        ("[{to: 10.0.0.0/8, ports: [1], except: 10.1.1.1}, {to: 10.1.1.1, ports: [1]}]", []),
        ("[{to: 169.254.0.0/16, ports: [1]}, {to: 169.254.1.1, ports: [1]}]", []),
        ("[{to: any, ports: [any]}, {to: 10.1.1.1, ports: [1]}]", ["w wide-open", "w no-effect"]),
        ("[{to: '*.hf.co'}, {to: a.hf.co}]", ["w no-effect"]),
        ("[{to: '*.hf.co'}, {to: hf.co}]", []),
        ("[{to: 10.0.0.1, ports: [2375]}]", ["w control-port"]),
        ("[{to: 10.0.0.1, ports: [2000-3000, 10250/udp]}]", []),
        ("[{to: any, ports: [any]}, {to: 10.0.0.1, ports: [2375]}]", ["w wide-open", "w control-port"]),
        ("[{to: any, ports: [any]}, {to: 10.0.0.1, ports: [2000-3000]}]", ["w wide-open", "w no-effect"]),
        ("[{to: 10.0.0.0/8, ports: [2375]}, {to: 10.0.0.1, ports: [2375]}]",
         ["w control-port", "w control-port", "w no-effect"]),
    ],
)
def test_egress(egress: str, expected: list[str]) -> None:
    assert sorted(codes(policy(egress))) == sorted(expected)


def test_ingress() -> None:
    assert codes(policy(ingress="[{from: clients, ports: [80, icmp]}]")) == ["w no-effect"]
    assert codes(policy(ingress="[{from: any, ports: [80]}]")) == ["w wide-open", "w two-planes"]


def test_one_sided_pairs() -> None:
    closed = b"version: 1\nworkload: x\nmode: enforce\negress: []\ningress: []\n"
    opened = closed.replace(b"ingress: []", b"ingress: [{from: workload:w, ports: [1]}]")
    assert codes(policy("[{to: workload:x, ports: [1]}]", more=closed)) == ["e one-sided"]
    found = lint(policy("[{to: workload:x, ports: [1]}]", more=closed))
    assert [(p.severity, p.message) for p in found] == [("error", "`x` does not let `w` in")]
    watched = closed.replace(b"enforce", b"observe")
    assert codes(policy("[{to: workload:x, ports: [1]}]", more=watched)) == ["w one-sided"]
    for address in ("127.0.0.1", "'::1'", "127.0.0.0/8", "any"):
        let_in = closed.replace(b"ingress: []", f"ingress: [{{from: {address}, ports: [1]}}]".encode())
        assert "e one-sided" not in codes(policy("[{to: workload:x, ports: [1]}]", more=let_in))
    assert codes(policy("[{to: workload:x, ports: [1]}]", more=opened)) == []
    assert codes(policy(more=opened)) == ["e one-sided"]


def test_expired_only_with_a_clock() -> None:
    found = policy("[{to: 10.0.0.1, ports: [1], expires: 2020-01-01}]")
    assert codes(found) == []
    assert codes(found, datetime(2026, 1, 1, tzinfo=UTC)) == ["w expired"]


def test_quick_on_long_lists() -> None:
    addresses = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(20_000)]
    rules = ", ".join(f"{{to: 10.9.{n >> 8}.{n & 255}, ports: [{n % 7 + 1}]}}" for n in range(3_000))
    found = policy(f"[{{to: [{', '.join(addresses)}], ports: [443]}}, {rules}]")
    started = time.process_time()
    assert codes(found) == []
    assert time.process_time() - started < 5
