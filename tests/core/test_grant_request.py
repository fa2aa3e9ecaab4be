"""What is lent for which words, and what is refused with which sentence."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest

from penstock.cli.lent import peer_and_port
from penstock.core.connection import Connection
from penstock.core.grant_request import BadGrant, Request, grant, owner_of
from penstock.core.grants import MAX_ALL, MAX_OF_ONE, Grant, with_grants
from penstock.core.nearest import describe
from penstock.core.parse import parse
from penstock.core.policy import Direction
from penstock.core.remedies import to_lend
from penstock.core.verdict import Live, judge

NOW = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
FILES = {
    "penstock.yaml": b"""\
version: 1
networks:
  clients: {cidr: 10.30.0.0/16, plane: inference}
  admins: {cidr: 10.20.0.0/24, plane: admin}
  old: {cidr: 10.0.0.0/8}
""",
    "rules.d/litellm.yaml": b"""\
version: 1
workload: litellm
mode: enforce
egress:
  - {to: 10.30.1.0/24, ports: [5432, 8000-8100], name: db}
  - {to: "*.example.org"}
  - {to: 10.50.0.1, ports: [1], expires: 2026-02-01, name: over}
ingress: []
""",
    "rules.d/asks.yaml": b"""\
version: 1
workload: asks
mode: enforce
egress:
  - {to: 198.51.100.53, ports: [53/udp], name: resolver}
ingress: []
""",
    "rules.d/seen.yaml": b"version: 1\nworkload: seen\nmode: observe\negress: []\ningress: []\n",
    "rules.d/shut.yaml": b"version: 1\nworkload: shut\nmode: lock\negress: []\ningress: []\n",
    "rules.d/vllm.yaml": b"version: 1\nworkload: vllm\nmode: enforce\negress: []\ningress: []\n",
}
PRESETS = {
    "hub.yaml": b"""\
version: 1
preset: hub
title: A hub
source: measured
date: 2026-01-01
egress:
  - {to: hub.example, for: pull}
  - {to: ["*.cdn.example", 192.0.2.5], ports: [443], for: pull}
""",
    "clients.yaml": b"""\
version: 1
preset: clients
title: Named as a network
source: measured
date: 2026-01-01
egress: [{to: c.example, for: pull}]
""",
    "bad.yaml": b"version: 1\npreset: bad\ntitle: x\negress: [{to: '***'}]\n",
}


def request(peer: str = "198.51.100.1", ports: str = "443", **changes: Any) -> Request:
    said = {
        "workload": "litellm",
        "direction": "out",
        "peer": peer,
        "ports": ports,
        "seconds": 1800,
        "until": 0,
        "reason": "to see",
        "wide": 0,
        "user": "",
    }
    lent = changes.pop("lent", ())
    policy = parse(FILES).policy
    assert policy
    return Request(said | changes, "anna", NOW, 5000.0, policy, PRESETS, lent)


def lend(*words: str, **changes: Any) -> tuple[Grant, list[str]]:
    return grant(request(*words, **changes), "grant-00000001")


def refused(*words: str, **changes: Any) -> tuple[str, str]:
    with pytest.raises(BadGrant) as caught:
        lend(*words, **changes)
    return str(caught.value), caught.value.hint


# --- what is lent ---


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("198.51.100.1", "443"), "198.51.100.1:443"),
        (("2001:db8::1", "53/udp"), "[2001:db8::1]:53/udp"),
        (("10.7.0.0/16", "1-9,20/udp"), "10.7.0.0/16:1-9, 20/udp"),
        (("files.example.net", ""), "files.example.net:443"),
        (("files.example.net", "8443"), "files.example.net:8443"),
        (("workload:vllm", "8000"), "workload:vllm:8000"),
        (("admins", "22"), "admins:22"),
        (("metadata", "80"), "metadata:80"),
        (("198.51.100.1", "icmp"), "198.51.100.1:icmp"),
        (("198.51.100.1", "any"), "198.51.100.1:any"),
        (("hub", ""), "preset hub"),
        (("clients", ""), "preset clients"),
        (("clients", "8000"), "clients:8000"),
        (("s3.amazonaws.com", ""), "s3.amazonaws.com:443"),
    ],
)
def test_a_destination(words: tuple[str, str], what: str) -> None:
    found, _ = lend(*words)
    assert found.what == what


SOURCES = ["clients", "10.30.1.7", "10.30.0.0/17", "workload:vllm", "host", "plane:inference"]


@pytest.mark.parametrize("source", SOURCES)
def test_a_source(source: str) -> None:
    found, _ = lend(source, "8001", direction="in")
    (rule,) = found.rules
    assert describe(rule) == f"{source} -> 8001"


def test_who_and_how_long() -> None:
    found, notes = lend(user="anna", reason="  why\n\x1b[2J  not ")
    assert (found.owner, found.reason, found.made) == ("anna", "why \\x1b[2J not", NOW)
    assert found.until == datetime(2026, 3, 1, 12, 30, 1, tzinfo=UTC)  # a whole second, and no less than asked for
    assert found.ends == 5000.0 + 1800.75
    assert notes == []
    found, _ = lend(seconds=0, until=int(NOW.timestamp()) + 60)
    assert found.until == NOW.replace(microsecond=0) + timedelta(seconds=60)


def test_a_preset_brings_its_rules() -> None:
    found, _ = lend("hub", "")
    assert found.preset == "hub"
    assert [describe(rule) for rule in found.rules] == ["hub.example:443", "*.cdn.example, 192.0.2.5; ports 443"]
    ids = {rule.id for rule in found.rules}
    assert len(ids) == 2
    assert all(name.startswith("grant-00000001/") for name in ids)
    assert [rule.preset for rule in found.rules] == ["hub", "hub"]


@pytest.mark.parametrize(
    ("login", "user", "owner"),
    [
        ("anna", "", "anna"),
        ("anna", "anna", "anna"),
        ("anna", "bob", "anna (as bob)"),
        ("", "bob", "bob (says sudo)"),
        ("", "b\x1b" + "o" * 100, "b\\x1b" + "o" * 61 + "… (says sudo)"),
        ("", "", "root"),
    ],
)
def test_what_is_known_of_the_owner_is_told_from_what_is_said(login: str, user: str, owner: str) -> None:
    assert owner_of(login, user) == owner


# --- what is said of it ---


def test_in_observe_mode_nothing_is_denied_anyway() -> None:
    _, notes = lend(workload="seen")
    assert notes == ["seen is in observe mode: nothing is denied to it, with or without the grant"]


@pytest.mark.parametrize(
    ("words", "changes", "note"),
    [
        (("metadata", "80"), {}, "hands out the credentials"),
        (("1.1.1.1", "443"), {}, "resolver"),
        (("*.com", ""), {"wide": 1}, "com"),
        (("workload:vllm", "8000"), {}, "`vllm` does not let `litellm` in"),
        (("any", "80"), {"wide": 1}, "opens every address"),
    ],
)
def test_what_is_unwise_is_said(words: tuple[str, str], changes: dict[str, Any], note: str) -> None:
    _, notes = lend(*words, **changes)
    assert any(note in one for one in notes), notes


ENDS = "while it is lent, penstock's resolver answers the look-ups: names that no rule has do not exist"


@pytest.mark.parametrize(
    ("words", "changes", "said"),
    [
        (("hub.example", ""), {"workload": "vllm"}, [ENDS]),
        (("hub", ""), {"workload": "vllm"}, [ENDS]),
        (("198.51.100.1", "443"), {"workload": "vllm"}, []),
        (("hub.example", ""), {}, []),  # it has a rule by name
    ],
)
def test_a_first_name_is_also_about_all_others(words: tuple[str, str], changes: Any, said: list[str]) -> None:
    assert lend(*words, **changes)[1] == said


@pytest.mark.parametrize("words", [("hub.example", ""), ("hub", "")])
def test_no_name_is_lent_that_would_end_other_look_ups(words: tuple[str, str]) -> None:
    found, hint = refused(*words, workload="asks")
    rule = "rule resolver (198.51.100.53:53/udp)"
    assert found == f"asks looks names up by {rule}; with a name lent it could look up no other"
    assert hint == "lend the address, or write rules by name into its file"
    assert lend("198.51.100.1", "443", workload="asks")[1] == []


def test_what_is_lent_already_counts_for_look_ups() -> None:
    resolver, _ = lend("198.51.100.53", "53/udp", workload="vllm")
    found, _ = refused("hub.example", "", workload="vllm", lent=[resolver])
    assert "vllm looks names up by grant-00000001 (198.51.100.53:53/udp)" in found
    name, _ = lend("hub.example", "", workload="vllm")
    assert lend("other.example", "", workload="vllm", lent=[name])[1] == []


# --- what is not ---


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"workload": "lite-llm"}, "the policy in force has no workload `lite-llm`", "did you mean `litellm`?"),
        ({"workload": "x\x1b"}, "the policy in force has no workload `x\\x1b`", "there are asks, litellm,"),
        ({"reason": " \n "}, "a grant needs a reason", "--reason"),
        ({"reason": "x" * 201}, "the reason has more than 200 characters", "shorten"),
        ({"seconds": 0}, "a grant needs an end", "--for 30m"),
        ({"until": 1}, "a grant needs an end", "--for 30m"),
        ({"seconds": 0, "until": int(NOW.timestamp())}, "that is over already", "--for 30m"),
        ({"seconds": 30 * 86_400 + 1}, "nothing is lent for more than 30 days", "`expires:`"),
        ({"seconds": 0, "until": 1 << 40}, "nothing is lent for more than 30 days", "`expires:`"),
        ({"direction": "up"}, "the direction is out or in", ""),
        ({"peer": "bogus"}, "there is no network and no preset `bogus`", "presets"),
        ({"peer": "huub"}, "there is no network and no preset `huub`", "did you mean `hub`?"),
        ({"peer": "vllm"}, "there is no network and no preset `vllm`", "write workload:vllm"),
        ({"peer": "client"}, "there is no network and no preset `client`", "did you mean `clients`?"),
        ({"peer": "client", "direction": "in"}, "the policy in force has no network `client`", "`clients`?"),
        ({"peer": "workload:vlm"}, "the policy in force has no workload `vlm`", "`vllm`?"),
        ({"peer": "https://x.example/"}, "`https://x.example/` is a URL", "x.example"),
        ({"peer": "10.0.0.256"}, "`10.0.0.256` is no address", "255"),
        ({"peer": "x.example", "direction": "in"}, "`x.example`: a name cannot be a source", "address"),
        ({"peer": ""}, "the name of the network is missing", ""),
        ({"ports": "0"}, "`0` is out of range", "65535"),
        ({"ports": "80,,"}, "`` is no port", ""),
        ({"ports": ""}, "the port is missing", "write 198.51.100.1:443"),
        ({"peer": "2001:db8::1", "ports": ""}, "the port is missing", "write [2001:db8::1]:443"),
        ({"ports": "", "direction": "in"}, "the port is missing", "--port 8000"),
        ({"ports": "icmp", "direction": "in"}, "the kernel answers echo requests, not the workload", ""),
        ({"peer": "hub", "ports": "80"}, "the preset `hub` brings its own ports", "leave them out"),
        ({"peer": "bad", "ports": ""}, "the preset `bad` has mistakes", "`penstock presets` says which; once"),
        ({"peer": "10.0.0.0/15"}, "10.0.0.0/15 is wider than /16", "--yes-wide"),
        ({"peer": "2001:db8::/47"}, "2001:db8::/47 is wider than /48", "--yes-wide"),
        ({"peer": "old"}, "old has 10.0.0.0/8, wider than /16", "--yes-wide"),
        ({"peer": "any"}, "`any` is every address", "--yes-wide"),
        ({"peer": "*.com", "ports": ""}, "*.com is names of many owners", "--yes-wide"),
        ({"peer": "*.co.uk", "ports": ""}, "*.co.uk is names of many owners", "--yes-wide"),
        ({"peer": "*.cloudflarestorage.com", "ports": ""}, "*.cloudflarestorage.com is names of", "--yes-wide"),
        ({"peer": "clients", "ports": "8888", "direction": "in"}, "admin port 8888 is opened", "admin"),
        ({"peer": "10.30.1.7", "ports": "5432"}, "10.30.1.7:5432 is allowed already, by rule db", "status"),
        ({"peer": "10.30.1.0/25", "ports": "8001-8100"}, "is allowed already, by rule db", ""),
        ({"peer": "a.example.org", "ports": ""}, "a.example.org:443 is allowed already, by rule egress-", ""),
    ],
    ids=str,
)
def test_refused(changes: dict[str, Any], message: str, hint: str) -> None:
    found, help = refused(**changes)
    assert message in found
    assert hint in help


@pytest.mark.parametrize(
    "words",
    [
        ("10.30.1.7", "5432/udp"),
        ("10.30.2.7", "5432"),
        ("10.30.0.0/23", "5432"),
        ("10.50.0.1", "1"),
        ("10.30.1.7", "8000-8101"),
    ],
)
def test_what_a_rule_opens_in_part_or_did_once_is_lent(words: tuple[str, str]) -> None:
    lend(*words)


def test_wide_with_a_word() -> None:
    assert lend("10.0.0.0/8", "1", wide=1)[0].what == "10.0.0.0/8:1"


def test_what_is_lent_already_for_as_long() -> None:
    longer, _ = lend(seconds=7200)
    found, _ = refused(lent=[longer])
    whose = "grant-00000001 (198.51.100.1:443), until 2026-03-01T14:00:01Z, anna: to see"
    assert found == f"198.51.100.1:443 is allowed already, by {whose}"
    lend(lent=[longer], seconds=7300)
    lend(lent=[longer], workload="vllm")


def test_so_many_and_no_more() -> None:
    mine, _ = lend("198.51.100.9", "1")
    lend(lent=[mine] * (MAX_OF_ONE - 1))
    assert refused(lent=[mine] * MAX_OF_ONE)[0] == f"litellm has {MAX_OF_ONE} grants already"
    other, _ = lend("198.51.100.9", "1", workload="vllm")
    assert refused(lent=[other] * MAX_ALL)[0] == f"{MAX_ALL} grants are live on this host"


def test_locked_is_refused() -> None:
    message, hint = refused(workload="shut")
    assert message == "shut is locked: everything is denied to it, granted or not"
    assert "mode" in hint


@pytest.mark.parametrize("remote", ["198.51.100.11", "2001:db8::9"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("direction", list(Direction))
def test_the_command_that_a_block_offers_lends_what_was_blocked(
    remote: str, protocol: str, direction: Direction
) -> None:
    command = to_lend(request().policy.workloads["litellm"], direction, remote, protocol, 9000)
    program, verb, workload, *rest = shlex.split(command)
    assert (program, verb, workload) == ("penstock", "grant", "litellm")
    words = (rest[1], rest[3]) if rest[0] == "--from" else peer_and_port(rest[0])
    found, _ = lend(*words, direction=direction.value)
    after = with_grants(request().policy, [found], NOW)
    connection = Connection("litellm", direction, protocol, ip_address(remote), 9000)
    assert judge(after, Live(NOW), connection).allow
    assert not judge(request().policy, Live(NOW), connection).allow
