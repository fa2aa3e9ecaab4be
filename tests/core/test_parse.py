"""Rule files as an operator writes them: every mistake at its place, and what comes out of good ones."""

import random
import time
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from penstock.core.parse import assemble, parse, parse_file
from penstock.core.policy import AddressPeer, CidrPeer, Mode, Network, Plane, PortRange

HOST = b"""version: 1
networks:
  admin: {cidr: [10.20.0.0/24, "fd00:20::/64"], plane: admin}
  clients: {cidr: 10.30.0.0/16, plane: inference}
  gpu-lan: {interface: eno2}
host:
  admin_ports: [22, 2375-2376]
dns:
  upstream: [192.0.2.53, "192.0.2.54:5353", "[2001:db8::53]:53"]
"""
WORKLOAD = b"""version: 1
workload: ollama
mode: enforce
match: {unit: ollama.service}
egress:
  - to: "*.hf.co"
  - to: 10.30.1.5
    ports: [5432]
    reason: vector store
  - {to: 10.0.0.0/8, ports: [443], name: inside, except: 10.1.0.0/16, expires: "2027-01-31T18:00:00+01:00"}
ingress:
  - ports: [11434]
    from: clients
tests:
  - egress 169.254.169.254:80 deny
"""
HEAD = "version: 1\nworkload: w\nmode: enforce\ningress: []\negress:\n"
EXAMPLES = Path(__file__).parents[2] / "rules"


def told(text: str, path: str = "rules.d/w.yaml", host: bytes = HOST) -> list[str]:
    return [problem.line() for problem in parse({"penstock.yaml": host, path: text.encode()}).problems]


def test_good_files() -> None:
    parsed = parse({"penstock.yaml": HOST, "rules.d/ollama.yaml": WORKLOAD})
    assert parsed.problems == ()
    policy = parsed.policy
    assert policy is not None
    assert policy.networks["gpu-lan"] == Network("gpu-lan", interface="eno2")
    assert policy.networks["clients"].plane is Plane.INFERENCE
    assert [str(r) for r in policy.admin_ports.ranges] == ["22", "2375-2376"]
    assert [(str(u.address), u.port) for u in policy.upstreams] == [
        ("192.0.2.53", 53), ("192.0.2.54", 5353), ("2001:db8::53", 53)]  # fmt: skip
    workload = policy.workloads["ollama"]
    assert workload.mode is Mode.ENFORCE
    name, address, prefix = workload.egress
    assert name.ports.ranges == (PortRange("tcp", 443, 443),)
    assert address.peers == (AddressPeer(ip_address("10.30.1.5")),)
    assert (str(address.place), address.reason) == ("rules.d/ollama.yaml:7:5", "vector store")
    assert (prefix.id, prefix.excepted) == ("inside", (CidrPeer(ip_network("10.1.0.0/16")),))
    assert prefix.expires == datetime(2027, 1, 31, 17, tzinfo=UTC)


@pytest.mark.parametrize(
    ("rules", "line"),
    [
        ("  - to: 10.0.0.5/8\n    ports: [1]",
         "6:9: error: `10.0.0.5/8` has bits set behind its prefix; "
         "write 10.0.0.0/8, or 10.0.0.5 for the one address"),
        ("  - to: ::1\n    ports: [1]",
         '6:9: error: YAML does not reliably read an unquoted text that starts with `:`; write "::1"'),
        ("  - to: klients\n    ports: [1]", "6:9: error: there is no network `klients`; did you mean `clients`?"),
        ("  - to: workload:x\n    ports: [1]",
         "6:9: error: there is no workload `x`; write a file for it in rules.d"),
        ("  - to: 10.0.0.1", "6:5: error: the rule has no `ports`; write `ports: [443]`; "
         "only rules that hold nothing but names mean 443/tcp without it"),
        ("  - to: a.org\n    prots: [1]", "7:5: error: an egress rule has no key `prots`; did you mean `ports`?"),
        ("  - to: a.org\n    ports: 443",
         "7:12: error: `ports` is one value and must be a list; write `ports: [443]`"),
        ("  - to: a.org\n    ports: [22:22]",
         "7:13: error: `22:22`: YAML reads numbers with `:` as one number to the base of 60; "
         "write two ports as [22, 80] and a range as 22-80"),
        ("  - to: a.org\n    private: yes",
         "7:14: error: `private`: `yes` is neither true nor false; write true or false, without quotes"),
        ("  - to: 10.0.0.1\n    ports: [1]\n    private: true",
         "8:14: error: `private` without a name in `to`; "
         "leave it out: it is about names that resolve to private addresses"),
        ("  - to:\n    ports: [1]",
         "6:8: error: a member of `to` is empty; write a value, or leave the key out"),
        ("  - to: []\n    ports: [1]",
         "6:9: error: `to` is an empty list, so the rule opens nothing; leave the rule out"),
        ("  - 10.0.0.1", "6:5: error: `10.0.0.1` is no rule; write `to: 10.0.0.1` and `ports:`"),
        ("  - use: nope", "6:5: error: there is no preset `nope`; none is installed"),
        ("  - to: a.org\n    expires: 2027-01-31T18:00:00Z",
         '7:14: error: YAML reads an unquoted time in its own way; write "2027-01-31T18:00:00Z"'),
        ("  - to: a.org\n    expires: 2027-02-30",
         "7:14: error: `2027-02-30` is not in the calendar; "
         'write a date, 2027-01-31, or a time with its zone in quotes, "2027-01-31T18:00:00Z"'),
        ("  - to: a.org\n    name: A",
         "7:11: error: `A` cannot be the name of a rule; "
         "write 1 to 63 of a-z, 0-9, `.`, `_`, `-`, starting with a letter or a digit"),
        ("  - to: a.org\n  - to: [A.org.]",
         "7:5: error: this rule says the same as the one in line 6; keep one of them"),
        ("  - {to: a.org, name: x}\n  - {to: b.org, name: x}",
         "7:5: error: the name `x` is also that of the rule in line 6; choose another name"),
        ("  - to: [a.org, a.org]", "6:17: warning: `a.org` is there twice; leave one of them out"),
        ("  - to: 10.0.0.1\n    ports: [1]\n    except: any",
         "8:13: error: `except` takes prefixes and networks only, not `any`; "
         "write a list of prefixes or names of networks"),
    ],
)  # fmt: skip
def test_mistakes_in_a_rule(rules: str, line: str) -> None:
    assert told(HEAD + rules) == [f"rules.d/w.yaml:{line}"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("version: 1\nworkload: w\n",
         ["1:1: error: `egress` is missing; write `egress: []` if nothing shall be open",
          "1:1: error: `ingress` is missing; write `ingress: []` if nothing shall be open",
          "1:1: error: `mode` is missing; write `mode: enforce`, or `mode: observe` to record only"]),
        ("workload: Host\nversion: 1.0\nmode: enforced\negress: []\ningress: []",
         ["1:11: error: `Host` cannot be the name of a workload; write host",
          "2:10: error: `1.0` is no version of the policy language; write `version: 1`",
          "3:7: error: `enforced` is no mode; did you mean `enforce`?"]),
        (HEAD.replace("w\n", "any\n", 1) + "  []",
         ["2:11: error: `any` is a word of the language; choose another name"]),
        (HEAD.replace("w\n", "a--b\n", 1) + "  []",
         ["2:11: error: `a--b` has two dashes in a row; write a-b"]),
        (HEAD.replace("w\n", "on\n", 1) + "  []",
         ["2:11: error: `workload`: YAML reads an unquoted `on` as true or false; "
          'put it in quotes, "on", if that is what you mean']),
        (HEAD + "  []\nnetworks: {}",
         ["7:1: error: a workload file has no key `networks`; it belongs into penstock.yaml"]),
        ("", ["1:1: error: the file is empty; write `version: 1`, or remove the file"]),
        ("- a", ["1:1: error: a workload file is not a mapping; write `key: value`, with keys "
                 "version, workload, mode, match, egress, ingress, tests"]),
    ],
)  # fmt: skip
def test_mistakes_in_a_file(text: str, lines: list[str]) -> None:
    assert told(text) == [f"rules.d/w.yaml:{line}" for line in lines]


def test_between_files() -> None:
    files = {
        "penstock.d/a.yaml": b"version: 1\nnetworks:\n  clients: {cidr: 10.0.0.0/8}\n",
        "penstock.yaml": HOST,
        "rules.d/a.yaml": WORKLOAD,
        "rules.d/b.yaml": WORKLOAD,
        "rules.d/c.yaml": WORKLOAD.replace(b"workload: ollama", b"workload: c").replace(b"ollama.", b"'*ma.", 1)
        .replace(b".service}", b".service'}", 1),
    }  # fmt: skip
    assert [problem.line() for problem in parse(files).problems] == [
        "penstock.yaml:4:3: error: network `clients` is defined twice, first at penstock.d/a.yaml:3; "
        "keep one of them",
        "rules.d/b.yaml:2:11: error: workload `ollama` has two files, the first is rules.d/a.yaml; "
        "keep one of them, or rename one",
        "rules.d/c.yaml:2:11: error: workload `c` matches `*ma.service`, and so does `ollama` at "
        "rules.d/a.yaml:2; let one thing belong to one workload",
    ]


def test_an_unreadable_file_hides_no_other_mistake_and_makes_none() -> None:
    lines = [
        p.line() for p in parse({"penstock.yaml": b"networks: [", "rules.d/o.yaml": WORKLOAD + b"x: 1\n"}).problems
    ]
    assert [line.partition(":")[0] for line in lines] == ["penstock.yaml", "rules.d/o.yaml"]


def test_too_many_workloads() -> None:
    files = {f"rules.d/{n:03}.yaml": HEAD.replace("w\n", f"w{n}\n", 1).encode() + b"  []\n" for n in range(501)}
    assert [p.code for p in parse(files).problems] == ["too-many-workloads"]
    files.popitem()
    assert parse(files).problems == ()


PRESET = b"version: 1\npreset: hub\ntitle: t\nsource: s\ndate: 2026-11-01\negress:\n  - {to: a.org, name: a}\n"


def test_presets() -> None:
    text = (HEAD + "  - {use: hub, reason: why, expires: 2027-01-01}\n").encode()
    parsed = parse({"rules.d/w.yaml": text}, {"hub.yaml": PRESET})
    assert parsed.policy is not None
    (rule,) = parsed.policy.workloads["w"].egress
    assert (rule.id, rule.preset, rule.reason, rule.place.line) == ("hub/a", "hub", "why", 6)
    assert rule.expires == datetime(2027, 1, 2).astimezone(UTC)
    other = parse({"rules.d/w.yaml": text}, {"hub.yaml": PRESET.replace(b"a.org", b"b.org")})
    assert other.policy is not None
    assert other.policy.hash != parsed.policy.hash
    lines = [
        p.line() for p in parse({"rules.d/w.yaml": text.replace(b"hub", b"hubb")}, {"hub.yaml": PRESET}).problems
    ]
    assert lines == ["rules.d/w.yaml:6:5: error: there is no preset `hubb`; did you mean `hub`?"]


def test_a_preset_names_nothing_of_a_host() -> None:
    result = parse_file("x.yaml", PRESET + b"  - {to: clients, ports: [1]}\n")
    assert [p.message for p in result.problems] == ["a preset cannot name the network `clients`"]


def test_the_hash_follows_content_and_not_order() -> None:
    first, second = parse_file("penstock.yaml", HOST), parse_file("rules.d/o.yaml", WORKLOAD)
    one, two = assemble([first, second], {}).policy, assemble([second, first], {}).policy
    assert one is not None
    assert one == two
    changed = parse({"penstock.yaml": HOST + b"#", "rules.d/o.yaml": WORKLOAD}).policy
    assert changed is not None
    assert len(one.hash) == 12
    assert changed.hash != one.hash


def test_a_long_list_is_read_quickly() -> None:
    lines = "".join(f"      - 10.{n >> 16}.{n >> 8 & 255}.{n & 255}\n" for n in range(100_000))
    started = time.process_time()
    parsed = parse({"rules.d/w.yaml": (HEAD + "  - ports: [1]\n    to:\n" + lines).encode()})
    assert parsed.policy is not None
    assert len(parsed.policy.workloads["w"].egress[0].peers) == 100_000
    assert time.process_time() - started < 10


def test_mutated_examples_never_raise() -> None:
    chance = random.Random(7)
    sources = [path.read_bytes() for path in sorted(EXAMPLES.glob("*/*.yaml"))]
    assert len(sources) >= 9
    for _ in range(600):
        data = bytearray(chance.choice(sources))
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(data))
            data[at : at + chance.randrange(3)] = chance.choice(
                [b"", b"*", b": ", b"[", b"\n", b"- ", b"&a ", b"\xff", b"!", b"~"]
            )
        for problem in parse({"rules.d/x.yaml": bytes(data)}, {"p": bytes(data)}).problems:
            assert problem.line().isprintable()


def test_many_mistakes_are_bounded_and_quick() -> None:
    networks = b"version: 1\nnetworks:\n" + b"".join(b"  net%d: {cidr: 10.0.0.0/8}\n" % n for n in range(900))
    unknown = ", ".join(f"nett{n}" for n in range(50_000))
    traps = ", ".join(f"*.a{n}.org" for n in range(50_000))
    keys = ", ".join(f"portz{n}: 1" for n in range(50_000))
    started = time.process_time()
    for rule in (f"{{to: [{unknown}], ports: [1]}}", f"{{to: [{traps}]}}", f"{{{keys}}}"):
        problems = parse({"penstock.yaml": networks, "rules.d/w.yaml": f"{HEAD}  - {rule}".encode()}).problems
        assert 500 <= len(problems) <= 1002
    assert time.process_time() - started < 15


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("{ports: [8100-8000], from: clients}",
         "5:20: error: `8100-8000` runs backwards; write 8000-8100"),
        ("{ports: [8100-8000/udp], from: clients}",
         "5:20: error: `8100-8000/udp` runs backwards; write 8000-8100/udp"),
        ("{ports: [1], from: klients}",
         "5:30: error: there is no network `klients`; did you mean `clients`?"),
        ("{ports: [1], from: [clients, lab]}",
         "5:40: error: there is no network `lab`; define it under `networks` in penstock.yaml"),
        ("{ports: [1], from: any, except: klients}",
         "5:43: error: there is no network `klients`; did you mean `clients`?"),
        ("{ports: [1], from: plane:guests}",
         "5:30: error: there is no plane `guests`; write plane:admin or plane:inference"),
    ],
)  # fmt: skip
def test_mistakes_of_ingress_name_their_place_and_the_remedy(rule: str, line: str) -> None:
    text = f"version: 1\nworkload: w\nmode: enforce\negress: []\ningress: [{rule}]\n"
    host = b"version: 1\nnetworks: {clients: {cidr: 10.0.0.0/8}}\n"
    problems = parse({"penstock.yaml": host, "rules.d/w.yaml": text.encode()}).problems
    assert [problem.line() for problem in problems] == [f"rules.d/w.yaml:{line}"]
