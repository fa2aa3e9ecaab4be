"""From what was seen to the rules that are missing, and to what must not become a rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.blocks import Block, Process
from penstock.core.checking import examine
from penstock.core.edits import New, with_rules
from penstock.core.explain_names import NEVER
from penstock.core.parse import parse, parse_file
from penstock.core.policy import Policy
from penstock.core.presets import Preset
from penstock.core.seen import gather, partners
from penstock.core.suggest import Ask, Proposal, Suggestion, suggest

T = 1_790_000_000.0
NOW = datetime.fromtimestamp(T + 3600, UTC)
BLOCK = Block(
    *("0", T, T, "w", "would-deny", "observe", "out", "tcp", 4, "192.0.2.7", 443, None, 1, 0, None),
    *("no-rule", "not in its rules", None, Process(7, "python3"), "abc", None),
)
FILES = Path(__file__).parents[2] / "rules/presets"
PRESET_FILES = {path.name: path.read_bytes() for path in FILES.glob("*.yaml")}
PRESETS: Mapping[str, Preset] = {
    part.name: part
    for name, data in PRESET_FILES.items()
    if isinstance(part := parse_file(f"presets/{name}", data).part, Preset)
}
HOST = """\
version: 1
networks:
  admin: {cidr: [10.20.0.0/24], plane: admin}
  clients: {cidr: [10.30.0.0/16, "fd00:30::/64"], plane: inference}
  lab: {cidr: [10.30.7.0/24]}
host:
  admin_ports: [22]
"""
EMPTY = "egress: []\ningress: []\n"
NAMED = "egress:\n  - to: known.example.org\ningress: []\n"


def seen(*, minutes: int = 2, **changes: Any) -> list[Block]:
    """So many records of one destination."""
    if "name" in changes and "address" not in changes:
        changes["address"] = "198.51.100.9"
    if "name" not in changes and changes.get("direction") != "in":
        changes.setdefault("text", f"{NEVER}; not in its rules")
    return [replace(BLOCK, **{"first": T + 60 * n, "last": T + 60 * n, **changes}) for n in range(minutes)]


def asked(name: str, **changes: Any) -> list[Block]:
    return seen(**{"address": None, "port": 53, "name": name, "protocol": None, "reason": "name", **changes})


def came(address: str, port: int = 8000, **changes: Any) -> list[Block]:
    return seen(direction="in", address=address, port=port, family=ip_address(address).version, **changes)


def files(rules: str = NAMED, mode: str = "observe", **others: str) -> dict[str, bytes]:
    found = {"penstock.yaml": HOST, "rules.d/w.yaml": f"version: 1\nworkload: w\nmode: {mode}\n{rules}"}
    for name, text in others.items():
        found[f"rules.d/{name}.yaml"] = f"version: 1\nworkload: {name}\nmode: observe\n{text}"
    return {path: text.encode() for path, text in found.items()}


def policy_of(found: Mapping[str, bytes]) -> Policy:
    parsed = examine(parse(found, PRESET_FILES), NOW)
    assert parsed.policy is not None, parsed.problems
    return parsed.policy


def asking(blocks: Iterable[Block], found: Mapping[str, bytes], others: Iterable[Block] = (), **more: Any) -> Ask:
    policy = policy_of(found)
    here = more.get("here", frozenset())
    who = partners(policy, "w", others, here)
    return Ask(policy, "w", gather(blocks), NOW, PRESETS, who, **more)


def suggested(*args: Any, **more: Any) -> Suggestion:
    return suggest(asking(*args, **more))


def said(found: Suggestion) -> list[str]:
    return [written(one) for one in found.proposed]


def written(one: Proposal) -> str:
    return New(one.rule, one.use).flow()


def refusals(found: Suggestion) -> dict[str, str]:
    return {one.what: one.why.code for one in found.refused}


def test_what_was_asked_by_name_is_proposed_by_name() -> None:
    blocks = [
        *seen(name="a.example.org"),
        *seen(name="b.example.org", port=8443),
        *seen(name="a.example.org", port=80),
        *seen(address="10.9.9.9", port=5432, minutes=1),
        *seen(address="10.9.9.9", port=53000, protocol="udp"),
        *seen(address="2001:db8::5", family=6),
        *seen(address="10.9.9.8", protocol="icmp", port=None),
    ]
    found = suggested(blocks, files())
    assert said(found) == [
        "{to: 10.9.9.8, ports: [icmp]}",
        "{to: 10.9.9.9, ports: [5432, 53000/udp]}",
        '{to: "2001:db8::5", ports: [443]}',
        "{to: a.example.org, ports: [80, 443]}",
        "{to: b.example.org, ports: [8443]}",
    ]
    assert found.refused == ()
    assert [sum(seen.packets for seen in one.seen) for one in found.proposed] == [2, 3, 2, 4, 2]


def test_what_is_allowed_by_now_is_not_proposed_again() -> None:
    """The result, written and asked for again, is nothing: rules of the files count, applied or not."""
    blocks = [
        *seen(name="a.example.org"),
        *asked("asked.example.org"),
        *seen(name="hub.internal.example.org", address="10.1.2.3"),
        *seen(name="huggingface.co"),
        *seen(name="cas-bridge.hf.co"),
        *seen(address="10.9.9.9", port=1),
        *came("10.30.1.1"),
        *came("10.20.0.9", 9090),
        *came("127.0.0.1"),
        *came("172.16.0.9"),
        *[block for n in range(8) for block in seen(name=f"n{n}.many.example.net")],
    ]
    before = files()
    first = suggested(blocks, before)
    assert len(first.proposed) == 10
    members = [New(one.rule, one.use) for one in first.proposed]
    after = {**before, "rules.d/w.yaml": with_rules("rules.d/w.yaml", before["rules.d/w.yaml"], members)}
    again = suggested(blocks, after)
    assert (said(again), again.refused) == ([], ())
    assert again.allowed == len(gather(blocks).seen)


def test_a_locked_workload_lacks_what_it_lacks_without_the_lock() -> None:
    blocks = [*seen(name="known.example.org"), *seen(name="a.example.org")]
    found = suggested(blocks, files(mode="lock"))
    assert (said(found), found.refused, found.allowed) == (["{to: a.example.org}"], (), 1)


def test_a_preset_takes_the_names_that_it_is_about() -> None:
    blocks = [*seen(name="huggingface.co"), *seen(name="cas-bridge.xethub.hf.co"), *seen(name="x.example.org")]
    found = suggested(blocks, files())
    assert said(found) == ["{use: huggingface}", "{to: x.example.org}"]
    assert len(found.proposed[0].seen) == 2
    one = suggested(seen(name="huggingface.co"), files())
    assert said(one) == ["{to: huggingface.co}"]
    assert any("`use: huggingface`" in note for note in one.proposed[0].notes)
    other_port = suggested([*seen(name="huggingface.co", port=80), *seen(name="a.hf.co", port=80)], files())
    assert not any(one.use for one in other_port.proposed)


def test_a_preset_that_is_used_is_not_proposed() -> None:
    rules = "egress:\n  - use: huggingface\ningress: []\n"
    assert said(suggested(seen(name="huggingface.co", port=8443), files(rules))) == [
        "{to: huggingface.co, ports: [8443]}"
    ]


@pytest.mark.parametrize("uses", ["", "  - use: vllm\n"])
def test_telemetry_is_called_so_and_stays_closed(uses: str) -> None:
    rules = f"egress:\n  - to: known.example.org\n{uses}ingress: []\n"
    found = suggested([*asked("stats.vllm.ai"), *seen(name="usage-stats.ray.io")], files(rules))
    assert (said(found), refusals(found)) == (
        [],
        {"asked stats.vllm.ai": "telemetry", "usage-stats.ray.io:443": "telemetry"},
    )
    assert "VLLM_NO_USAGE_STATS" in found.refused[0].why.text


def test_a_name_that_was_only_asked() -> None:
    found = suggested(
        [*asked("a.example.org"), *asked("b.example.org"), *seen(name="b.example.org", port=1)], files()
    )
    assert said(found) == ["{to: a.example.org}", "{to: b.example.org, ports: [1]}"]
    assert "the port is a guess" in found.proposed[0].notes[-1]


def test_many_names_under_one_parent_become_a_pattern() -> None:
    few = [block for n in range(7) for block in seen(name=f"n{n}.example.net")]
    assert len(suggested(few, files()).proposed) == 7
    found = suggested([*few, *seen(name="n7.example.net")], files())
    assert said(found) == ['{to: "*.example.net"}']
    assert found.proposed[0].notes == (
        "8 names were seen below it; the pattern opens every name below example.net",
    )
    shared = [block for n in range(9) for block in seen(name=f"n{n}.s3.amazonaws.com")]
    assert len(suggested(shared, files()).proposed) == 9


def test_names_that_were_only_asked_become_no_pattern() -> None:
    """Random names under one parent are how data leaves in look-ups."""
    flood = [block for n in range(9) for block in asked(f"n{n}.flood.example")]
    assert said(suggested(flood, files())) == [f"{{to: n{n}.flood.example}}" for n in range(9)]
    met = [block for n in range(8) for block in seen(name=f"m{n}.flood.example")]
    assert said(suggested([*flood, *met], files()))[0] == '{to: "*.flood.example"}'


def test_names_at_private_addresses_say_so() -> None:
    found = suggested(seen(name="db.example.org", address="10.1.2.3", port=5432), files())
    assert said(found) == ["{to: db.example.org, ports: [5432], private: true}"]
    assert "private: true" in found.proposed[0].notes[0]
    held = suggested(seen(name="known.example.org", address="10.1.2.3"), files())
    assert refusals(held) == {"known.example.org:443": "private-answer"}


UNWISE = {
    "metadata": seen(address="169.254.169.254", port=80, reason="metadata"),
    "link-local": seen(address="169.254.7.7", port=80),
    "multicast": seen(address="224.0.0.251", port=5353, protocol="udp"),
    "reserved": seen(address="255.255.255.255", port=67, protocol="udp"),
    "seen-once": seen(address="192.0.2.9", minutes=1),
    "public-resolver": seen(address="9.9.9.9"),
    "resolver": seen(address="10.0.0.53", port=53, protocol="udp"),
    "encrypted-dns": seen(address="10.0.0.53", port=853),
    "attack": seen(name="abc.oast.live"),
    "rate": asked("x.tunnel.example.org", reason="rate"),
    "rebinding": seen(name="a.example.org", address="127.0.0.1"),
    "name": seen(name="a..\\x1b[2J"),
    "metadata-name": asked("metadata.google.internal"),
    "expired": seen(reason="expired"),
    "excepted": seen(reason="excepted"),
    "type": asked("a.example.org", reason="type"),
    "protocol": seen(protocol="132", port=None),
    "control-port": seen(address="10.0.0.9", port=2375, reason="control-port"),
    "admin-port": came("10.30.1.1", 8265),
    "reply": came("10.30.1.1", 40000, reason="reply"),
    "foreign-source": seen(reason="foreign-source"),
}


@pytest.mark.parametrize("code", UNWISE)
def test_what_is_unwise_is_refused_with_its_reason(code: str) -> None:
    found = suggested(UNWISE[code], files())
    assert (said(found), list(refusals(found).values())) == ([], [code])
    assert len(found.refused[0].why.text) > 20


def test_more_of_what_is_unwise() -> None:
    assert refusals(suggested(seen(name="mozilla.cloudflare-dns.com"), files())) == {
        "mozilla.cloudflare-dns.com:443": "public-resolver"
    }
    assert refusals(suggested(seen(port=4444), files())) == {"192.0.2.7:4444": "attack"}
    assert said(suggested(seen(address="10.9.9.9", port=4444), files())) == ["{to: 10.9.9.9, ports: [4444]}"]
    assert refusals(suggested(came("192.0.2.9", minutes=1), files())) == {"192.0.2.9 on 8000": "seen-once"}
    assert refusals(suggested(came("10.30.1.1", 22), files())) == {"clients on 22": "admin-port"}
    here = frozenset({ip_address("10.9.9.1")})
    assert refusals(suggested(seen(address="10.9.9.1", port=22), files(), here=here)) == {
        "10.9.9.1:22": "admin-port"
    }


def test_scans_are_one_refusal_each() -> None:
    net = [block for n in range(40) for block in seen(address=f"10.9.9.{n}", port=22)]
    ports = [block for n in range(20) for block in seen(address="10.8.8.8", port=1000 + n)]
    found = suggested([*net, *ports], files())
    assert refusals(found) == {"10.9.9.0/24 22/tcp": "scan", "10.8.8.8 tcp": "scan"}
    assert said(suggested(net[:40], files()))  # 20 addresses are none


def test_a_scan_of_the_world_is_one_refusal() -> None:
    world = [block for n in range(201) for block in seen(address=f"10.{n}.1.1", port=443)]
    assert refusals(suggested(world, files())) == {"anywhere 443/tcp": "scan"}
    assert len(suggested(world[2:], files()).proposed) == 200


def test_a_crowd_of_callers_wants_a_network() -> None:
    crowd = [block for n in range(17) for block in came(f"172.16.{n}.9")]
    found = suggested([*crowd, *came("10.30.1.1"), *came("172.16.1.1", 9090)], files())
    assert refusals(found) == {"many on 8000": "crowd"}
    assert said(found) == ["{ports: [8000], from: clients}", "{ports: [9090], from: 172.16.1.1}"]
    assert len(said(suggested(crowd[2:], files()))) == 16


def test_where_look_ups_are_not_seen_they_come_first() -> None:
    blocks = [
        *seen(text="not in its rules"),
        *seen(address="10.0.0.53", port=53, protocol="udp"),
        *seen(address="10.9.9.9", port=1),
    ]
    found = suggested(blocks, files(EMPTY))
    assert said(found) == ["{use: airgap}", "{to: 10.9.9.9, ports: [1]}"]
    assert refusals(found) == {"192.0.2.7:443": "unnamed", "10.0.0.53:53/udp": "resolver"}
    since = files("egress:\n  - use: airgap\ningress: []\n")
    assert refusals(suggested(blocks, since)) == {"192.0.2.7:443": "unnamed", "10.0.0.53:53/udp": "resolver"}
    seeing = suggested([*blocks, *seen()], since)
    assert said(seeing) == ["{to: 10.9.9.9, ports: [1]}", "{to: 192.0.2.7, ports: [443]}"]
    assert "without a name" in seeing.proposed[1].notes[0]


# --- who comes in ---


def test_callers_are_named_by_their_smallest_network() -> None:
    blocks = [
        *came("10.30.1.1"),
        *came("10.30.7.7"),
        *came("fd00:30::1"),
        *came("10.30.1.2", 9090),
        *came("10.77.0.1"),
    ]
    found = suggested(blocks, files())
    assert said(found) == [
        "{ports: [8000, 9090], from: clients}",
        "{ports: [8000], from: lab}",
        "{ports: [8000], from: 10.77.0.1}",
    ]


def test_a_port_with_two_planes_is_proposed_with_a_word() -> None:
    changed = files()
    changed["rules.d/w.yaml"] = changed["rules.d/w.yaml"].replace(b"mode:", b"match: {unit: vllm.service}\nmode:")
    found = suggested(came("10.30.1.1"), changed)
    assert said(found) == ["{ports: [8000], from: clients}"]
    assert any("both planes" in note for note in found.proposed[0].notes)


GATEWAY = "egress: []\ningress:\n  - ports: [4000]\n    from: clients\n"


def test_a_caller_on_this_host_is_named_where_the_log_tells_who_it_was() -> None:
    others = seen(workload="gateway", address="127.0.0.1", port=8000)
    found = suggested([*came("127.0.0.1"), *came("::1")], files(gateway=GATEWAY), others)
    assert said(found) == ["{ports: [8000], from: workload:gateway}"]
    assert any("penstock" in note or "egress" in note for note in found.proposed[0].notes)
    nobody = suggested(came("127.0.0.1"), files(gateway=GATEWAY))
    assert said(nobody) == ["{ports: [8000], from: host}"]
    by_rule = "egress:\n  - to: workload:w\n    ports: [8000]\ningress: []\n"
    assert said(suggested(came("127.0.0.1"), files(gateway=by_rule))) == [
        "{ports: [8000], from: workload:gateway}"
    ]


def test_who_was_refused_though_the_workload_is_let_in_was_somebody_else() -> None:
    rules = "egress:\n  - to: known.example.org\ningress:\n  - ports: [8000]\n    from: workload:gateway\n"
    found = files(rules, gateway="egress:\n  - to: workload:w\n    ports: [8000]\ningress: []\n")
    before = suggested(came("127.0.0.1"), found)
    assert (said(before), before.allowed) == ([], 1)
    since = suggested(came("127.0.0.1", policy=policy_of(found).hash), found)
    assert said(since) == ["{ports: [8000], from: host}"]


def test_a_service_of_this_host_is_named_by_its_workload() -> None:
    here = frozenset({ip_address("10.30.0.5")})
    by_log = [*came("127.0.0.1", 9000, workload="store")]
    rules = "egress: []\ningress: []\n"
    found = suggested(seen(address="127.0.0.1", port=9000), files(store=rules), by_log)
    assert said(found) == ["{to: workload:store, ports: [9000]}"]
    open_to_all = "egress: []\ningress:\n  - ports: [9000]\n    from: any\n"
    for address in ("127.0.0.1", "10.30.0.5"):
        found = suggested(seen(address=address, port=9000), files(store=open_to_all), here=here)
        assert said(found) == ["{to: workload:store, ports: [9000]}"]
    two = files(store=open_to_all, other=open_to_all)
    assert said(suggested(seen(address="127.0.0.1", port=9000), two)) == ["{to: 127.0.0.1, ports: [9000]}"]


def test_a_one_sided_pair_is_refused_where_it_would_be_an_error() -> None:
    found = files("egress:\n  - to: known.example.org\ningress: []\n", mode="enforce")
    found["rules.d/store.yaml"] = b"version: 1\nworkload: store\nmode: enforce\n" + EMPTY.encode()
    by_log = came("127.0.0.1", 9000, workload="store")
    answer = suggested(seen(address="127.0.0.1", port=9000), found, by_log)
    assert refusals(answer) == {"workload:store:9000": "one-sided"}
    assert "from: workload:w" in answer.refused[0].why.text


# --- what somebody decided, and bounds ---


def test_what_a_test_of_the_file_forbids_is_refused_with_its_words() -> None:
    rules = (
        "egress:\n  - to: known.example.org\ningress: []\ntests:\n  - egress huggingface.co:443 deny\n"
        "  - egress 10.9.9.9:1 deny\n  - ingress from clients 8000 deny\n"
    )
    blocks = [
        *seen(name="huggingface.co"),
        *seen(name="a.hf.co"),
        *seen(address="10.9.9.9", port=1),
        *seen(address="10.9.9.9", port=2),
        *came("10.30.1.1"),
        *came("10.30.7.7"),
    ]
    found = suggested(blocks, files(rules))
    assert said(found) == ["{to: 10.9.9.9, ports: [2]}"]
    assert refusals(found) == dict.fromkeys(
        ["use: huggingface", "10.9.9.9:1", "clients on 8000", "lab on 8000"], "test"
    )
    assert "the test expects deny" in found.refused[0].why.text


def test_what_a_wider_proposal_opens_is_no_proposal_of_its_own() -> None:
    found = suggested([*came("10.30.1.1"), *came("10.30.7.7")], files())
    assert said(found) == ["{ports: [8000], from: clients}"]
    assert (len(found.proposed[0].seen), found.refused) == (2, ())


def test_what_was_rejected_is_not_proposed_again_but_a_new_port_is() -> None:
    blocks = [*seen(name="a.example.org"), *seen(name="b.example.org")]
    first = suggested(blocks, files())
    keys = first.keys(first.proposed[0].id)
    assert keys == ("out a.example.org 443/tcp",)
    again = suggested([*blocks, *seen(name="a.example.org", port=80)], files(), rejected=frozenset(keys))
    assert said(again) == ["{to: a.example.org, ports: [80]}", "{to: b.example.org}"]
    assert again.rejected == 1
    assert first.keys("nonsense") == ()
    refused = suggested(UNWISE["metadata"], files())
    assert refused.keys(refused.refused[0].id) == ("out 169.254.169.254 80/tcp",)


def test_packets_that_the_log_does_not_tell_apart_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    summary = replace(BLOCK, address=None, protocol=None, port=None, reason="overflow", count=5, unlogged=3)
    assert suggested([summary], files()).summed == 8
    monkeypatch.setattr("penstock.core.seen.MAX_SEEN", 1)
    found = suggested([*seen(name="a.example.org"), *seen(name="b.example.org", count=4)], files())
    assert (said(found), found.summed) == (["{to: a.example.org}"], 8)


def test_every_rule_that_is_proposed_passes_check() -> None:
    """Together, in the mode that comes next."""
    blocks = [
        *[block for n, found in enumerate(UNWISE.values()) if n for block in found],
        *seen(name="a.example.org"),
        *came("10.30.1.1"),
        *came("127.0.0.1"),
    ]
    before = files()
    members = [New(one.rule, one.use) for one in suggested(blocks, before).proposed]
    data = with_rules("rules.d/w.yaml", before["rules.d/w.yaml"], members).replace(b"observe", b"enforce")
    assert [p for p in examine(parse({**before, "rules.d/w.yaml": data}, PRESET_FILES), NOW).problems
            if p.severity == "error"] == []  # fmt: skip


# --- whatever is in the log ---

NAMES = st.one_of(
    st.none(),
    st.sampled_from(["a.example.org", "b.example.org", "huggingface.co", "x.hf.co", "dns.google", "10.0.0.1", ""]),
    st.text(max_size=12),
    st.integers(0, 12).map(lambda n: f"n{n}.many.example.net"),
)
ADDRESSES = st.one_of(
    st.none(),
    st.sampled_from(["127.0.0.1", "::1", "10.30.1.1", "10.30.7.1", "169.254.169.254", "fe80::1", "nonsense"]),
    st.ip_addresses().map(str),
)
BLOCKS = st.builds(
    lambda n, **changes: replace(BLOCK, first=T + 60 * n, last=T + 60 * n, **changes),
    st.integers(0, 3),
    workload=st.just("w"),
    direction=st.sampled_from(["in", "out"]),
    protocol=st.sampled_from([None, "tcp", "udp", "icmp", "icmpv6", "47"]),
    address=ADDRESSES,
    port=st.one_of(st.none(), st.sampled_from([22, 53, 80, 443, 853, 4444, 8000, 8265]), st.integers(0, 65535)),
    name=NAMES,
    count=st.integers(0, 3),
    text=st.sampled_from([NEVER, "not in its rules"]),
    reason=st.sampled_from(["no-rule", "no-rules", "name", "reply", "literal", "changed", "unlogged"]),
)


@given(
    st.lists(BLOCKS, max_size=30), st.sampled_from([EMPTY, NAMED]), st.sampled_from(["observe", "enforce", "lock"])
)
@settings(max_examples=80, deadline=None)
def test_whatever_was_logged_what_is_proposed_can_be_written_and_is_then_enough(
    blocks: list[Block], rules: str, mode: str
) -> None:
    before = files(rules, mode, gateway=GATEWAY)
    others = [replace(block, workload="gateway") for block in blocks[::3]]
    first = suggested(blocks, before, others)
    members = [New(one.rule, one.use) for one in first.proposed]
    data = with_rules("rules.d/w.yaml", before["rules.d/w.yaml"], members)
    after = {**before, "rules.d/w.yaml": data}
    policy_of(after)  # no error
    again = suggested(blocks, after, others)
    assert said(again) == [], (data, said(again))
