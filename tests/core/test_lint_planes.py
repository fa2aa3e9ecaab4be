"""Clients and administrators apart, as `check` says it."""

import time

import pytest

from penstock.core.language.parse_rule import OVERRIDABLE
from penstock.core.lint import lint
from penstock.core.lint_planes import overlaps
from penstock.core.parse import parse
from penstock.core.policy import Policy
from penstock.core.problems import Problem

HOST = """version: 1
networks:
  admin: {cidr: [10.20.0.0/24, "fd00:20::/64"], plane: admin}
  clients: {cidr: 10.30.0.0/16, plane: inference}
  plain: {cidr: 10.40.0.0/16}
  guests: {interface: eth1, plane: inference}
  office: {interface: eth2, plane: admin}
  lab: {interface: eth3}
host: {admin_ports: [22, 9100]}
"""
OTHER = "version: 1\nworkload: x\nmode: observe\negress: [{to: workload:NAME, ports: [any]}]\ningress: []\n"


def policy(ingress: str = "[]", name: str = "w", egress: str = "[]", host: str = HOST) -> Policy:
    text = f"version: 1\nworkload: {name}\nmode: enforce\negress: {egress}\ningress: {ingress}\n"
    files = {"penstock.yaml": host, "rules.d/w.yaml": text, "rules.d/x.yaml": OTHER.replace("NAME", name)}
    parsed = parse({path: content.encode() for path, content in files.items()})
    assert parsed.policy is not None, parsed.problems
    return parsed.policy


def problems(*arguments: str, **named: str) -> list[Problem]:
    return [p for p in lint(policy(*arguments, **named)) if p.code not in ("wide-open", "one-sided")]


def codes(*arguments: str, **named: str) -> list[str]:
    return [f"{p.severity[0]} {p.code}" for p in problems(*arguments, **named)]


@pytest.mark.parametrize(
    ("ingress", "expected"),
    [
        ("[{from: clients, ports: [8265]}]", ["e admin-port"]),
        ("[{from: admin, ports: [8265]}]", []),
        ("[{from: [10.20.0.7, 127.0.0.1], ports: [8265]}]", []),
        ("[{from: ['fd00:20::7', '::1'], ports: [8265]}]", []),
        ("[{from: 'fd00:21::7', ports: [8265]}]", ["e admin-port"]),
        ("[{from: 10.20.1.7, ports: [8265]}]", ["e admin-port"]),
        ("[{from: plain, ports: [8000-9000]}]", ["e admin-port"]),
        ("[{from: plane:inference, ports: [2375]}]", ["e admin-port"]),
        ("[{from: plane:admin, ports: [2375]}]", []),
        ("[{from: any, ports: [8888]}]", ["e admin-port", "w two-planes"]),
        ("[{from: clients, ports: [22/udp, 8265/udp]}]", []),
        ("[{from: host, ports: [8265]}]", []),
        ("[{from: [], ports: [8265]}]", []),
        ("[{from: workload:x, ports: [8265]}]", []),
        ("[{from: clients, ports: [5000, 8002, 8081, 9090]}]", []),
        ("[{from: [admin, clients], ports: [80]}]", ["w two-planes"]),
        # by interface
        ("[{from: guests, ports: [8265]}]", ["e admin-port"]),
        ("[{from: lab, ports: [8265]}]", ["e admin-port"]),
        ("[{from: office, ports: [8265]}]", []),
        ("[{from: [office, guests], ports: [80]}]", ["w two-planes"]),
    ],
)
def test_ingress(ingress: str, expected: list[str]) -> None:
    assert codes(ingress) == expected


@pytest.mark.parametrize(
    ("name", "port"), [("mlflow", 5000), ("triton", 8002), ("prometheus", 9090), ("torchserve", 8081)]
)
def test_a_port_that_many_use_counts_for_its_own_server(name: str, port: int) -> None:
    assert codes(f"[{{from: clients, ports: [{port}]}}]", name) == ["e admin-port"]


def test_all_ports_are_named_and_the_first_explained() -> None:
    (found,) = problems("[{from: guests, ports: [8265, 10001]}]")
    assert found.message == (
        "admin ports 8265 and 10001 are opened to `guests`, which is no admin network: "
        "Ray's dashboard runs any command"
    )
    assert found.hint == "open it to a network with `plane: admin`, or write `override: admin-port` and a `reason`"
    (found,) = problems("[{from: guests, ports: [100-8900, 8888-11000]}]", host=HOST.replace("22, 9100", "22"))
    assert "admin ports 2375, 2376, 2379, 2380 and 7 more" in found.message


@pytest.mark.parametrize(
    ("name", "port", "path"),
    [
        ("ollama", 11434, "/api/pull"),
        ("vllm", 8000, "/metrics"),
        ("sglang", 30000, "/flush_cache"),
        ("llama-server", 8080, "/slots"),
        ("triton", 8000, "/v2/repository"),
        ("triton", 8001, "/v2/repository"),
    ],
)
def test_one_port_of_a_known_server_carries_both_planes(name: str, port: int, path: str) -> None:
    for source in ("clients", "guests", "plane:inference", "plain", "10.99.0.1"):
        (found,) = problems(f"[{{from: {source}, ports: [{port}]}}]", name)
        assert (found.severity, found.code) == ("warning", "two-planes")
        assert path in found.message
        assert "nginx.yaml" in found.hint
        assert "from: workload:" in found.hint
    for source in ("admin", "office", "workload:x", "host", "127.0.0.1"):
        assert problems(f"[{{from: {source}, ports: [{port}]}}]", name) == []


# --- override ---


def test_an_admin_port_is_overridden_by_name_and_stays_visible() -> None:
    (found,) = problems("[{from: clients, ports: [8265], override: admin-port, reason: lab only}]")
    assert (found.severity, found.code) == ("warning", "admin-port")
    assert found.message.endswith("runs any command; overridden: lab only")
    assert found.line().startswith("rules.d/w.yaml:5:11: warning: admin port 8265 is opened to `clients`")


def test_two_planes_overridden_are_silent() -> None:
    rule = "[{from: clients, ports: [11434], override: two-planes, reason: it has a proxy of its own}]"
    assert problems(rule, "ollama") == []


def test_only_what_is_named_is_overridden() -> None:
    rule = "[{from: any, ports: [8888], override: two-planes, reason: r}]"
    assert codes(rule) == ["e admin-port"]
    assert codes(rule.replace("two-planes", "admin-port")) == ["w admin-port", "w two-planes"]
    assert codes(rule.replace("two-planes", "[admin-port, two-planes]")) == ["w admin-port"]


def test_an_override_of_nothing_has_no_effect() -> None:
    (found,) = problems("[{from: clients, ports: [80], override: admin-port, reason: r}]")
    assert (found.severity, found.code) == ("warning", "no-effect")
    assert "`override: admin-port`" in found.message
    assert codes("[{from: admin, ports: [8265], override: [admin-port, two-planes], reason: r}]") == [
        "w no-effect",
        "w no-effect",
    ]


@pytest.mark.parametrize("code", OVERRIDABLE)
def test_whatever_may_be_overridden_is_looked_at(code: str) -> None:
    rule = f"[{{from: any, ports: [8888], override: {code}, reason: r}}]"
    assert "w no-effect" not in codes(rule)
    assert codes(rule) != codes(rule.replace(f"override: {code}, ", ""))


# --- the host's own admin ports ---


@pytest.mark.parametrize("source", ["clients", "guests", "plain", "any", "10.20.1.7", "workload:x"])
def test_the_hosts_own_ports_are_never_overridden(source: str) -> None:
    for extra in ("", ", override: admin-port, reason: r"):
        found = [p for p in problems(f"[{{from: {source}, ports: [20-30]{extra}}}]") if p.code != "two-planes"]
        assert [(p.severity, p.code) for p in found] == [("error", "admin-port")]
        assert "port 22" in found[0].message
        assert "take the port out of `host.admin_ports`" in found[0].hint
        assert bool(extra) == ("does not lift it" in found[0].hint)


def test_a_known_port_that_is_the_hosts_too_is_the_hosts() -> None:
    (found,) = problems("[{from: clients, ports: [9100]}]")
    assert "host's `admin_ports`" in found.message


@pytest.mark.parametrize("source", ["admin", "office", "host", "127.0.0.1", "plane:admin"])
def test_the_hosts_own_ports_are_for_administrators(source: str) -> None:
    assert problems(f"[{{from: {source}, ports: [22]}}]") == []


def test_both_kinds_of_ports_in_one_rule() -> None:
    found = problems("[{from: clients, ports: [22, 8265], override: admin-port, reason: r}]")
    assert [(p.severity, p.code) for p in found] == [("error", "admin-port"), ("warning", "admin-port")]


@pytest.mark.parametrize("to", ["127.0.0.1", "'::1'", "127.0.0.0/8", "workload:x"])
def test_no_workload_reaches_the_hosts_own_ports(to: str) -> None:
    (found,) = problems(egress=f"[{{to: {to}, ports: [22]}}]")
    assert (found.severity, found.code) == ("warning", "no-effect")
    assert problems(egress=f"[{{to: {to}, ports: [22-80, 22/udp]}}]") == []
    assert problems(egress=f"[{{to: {to}, ports: [10-22, 23]}}]") == []
    assert problems(egress="[{to: 10.0.0.1, ports: [22]}]") == []


# --- overlaps ---


def overlapping(networks: str) -> list[Problem]:
    return list(overlaps(policy(host=f"version: 1\nnetworks:\n{networks}")))


@pytest.mark.parametrize(
    ("one", "other", "where"),
    [
        ("cidr: 10.0.0.0/8", "cidr: 10.20.0.0/24", "10.20.0.0/24"),
        ("cidr: 10.20.0.0/24", "cidr: 10.0.0.0/8", "10.20.0.0/24"),
        ("cidr: 10.20.0.0/24", "cidr: 10.20.0.0/24", "10.20.0.0/24"),
        ("cidr: [192.0.2.0/24, 10.0.0.0/8]", "cidr: [10.255.255.255/32, 11.0.0.0/8]", "10.255.255.255/32"),
        ("cidr: 'fd00::/8'", "cidr: ['fd00:20::/64', 10.0.0.0/8]", "fd00:20::/64"),
        ("cidr: 0.0.0.0/0", "cidr: 10.20.0.0/24", "10.20.0.0/24"),
        ("cidr: 10.0.0.0/24", "cidr: 10.0.0.0/8", "10.0.0.0/24"),
        ("interface: eth0", "interface: eth0", "interface eth0"),
    ],
)
def test_networks_of_different_planes_overlap(one: str, other: str, where: str) -> None:
    (found,) = overlapping(f"  b: {{{one}, plane: inference}}\n  a: {{{other}, plane: admin}}\n")
    assert (found.severity, found.code) == ("error", "plane-overlap")
    assert found.place.line == 4, "the later one"
    assert found.message == (
        "network `a` (plane admin) overlaps `b` (plane inference), line 3 of penstock.yaml: both hold " + where
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cidr: 10.0.0.0/9, plane: inference", "cidr: 10.128.0.0/9, plane: admin"),
        ("cidr: 10.0.0.0/8, plane: inference", "cidr: 10.20.0.0/24, plane: inference"),
        ("cidr: 10.0.0.0/8, plane: inference", "cidr: 10.20.0.0/24"),
        ("cidr: 10.0.0.0/8", "cidr: 10.0.0.0/8, plane: admin"),
        ("cidr: '::/0', plane: inference", "cidr: 10.20.0.0/24, plane: admin"),
        ("interface: eth0, plane: inference", "interface: eth1, plane: admin"),
        ("interface: eth0, plane: inference", "interface: eth0"),
        ("interface: eth0, plane: inference", "cidr: 10.0.0.0/8, plane: admin"),
    ],
)
def test_networks_that_do_not_clash(one: str, other: str) -> None:
    assert overlapping(f"  b: {{{one}}}\n  a: {{{other}}}\n") == []


def test_each_pair_is_told_once_and_every_pair_is_told() -> None:
    found = overlapping(
        "  a: {cidr: [10.0.0.0/8, 192.0.2.0/24], plane: inference}\n"
        "  b: {cidr: [10.1.0.0/16, 10.2.0.0/16, 192.0.2.1/32], plane: admin}\n"
        "  c: {cidr: 10.2.3.0/24, plane: inference}\n"
    )
    assert [(p.place.line, p.message.split("`")[3]) for p in found] == [(4, "a"), (5, "b")]


def test_an_overlap_beside_what_ends_in_between() -> None:
    """Prefixes that are over are left behind, and the wide one around them is not."""
    assert overlapping(
        "  a: {cidr: [10.0.0.0/8, 10.1.0.0/16], plane: inference}\n  b: {cidr: 10.2.0.0/16, plane: admin}\n"
    )
    assert not overlapping("  a: {cidr: 10.1.0.0/16, plane: inference}\n  b: {cidr: 10.2.0.0/16, plane: admin}\n")


def test_quick_on_many_prefixes_and_rules() -> None:
    cidrs = [", ".join(f"10.{n >> 8}.{n & 255}.{half}/25" for n in range(20_000)) for half in (0, 128)]
    host = HOST.replace("10.30.0.0/16", f"[{cidrs[0]}]").replace("[10.20.0.0/24, ", f"[{cidrs[1]}, ")
    rules = ", ".join(f"{{from: clients, ports: [{n % 7 + 1}-{n % 7 + 60}]}}" for n in range(7))
    many = ", ".join(f"{{from: 172.16.{n >> 8}.{n & 255}, ports: [{1000 + n % 900}]}}" for n in range(5_000))
    found = policy(f"[{rules}, {many}]", host=host.replace("22, 9100", "999"))
    started = time.process_time()
    assert list(overlaps(found)) == []
    assert time.process_time() - started < 2
    assert [p.code for p in lint(found) if p.code not in ("one-sided", "no-effect")] == []
    assert time.process_time() - started < 8
