"""Refused look-ups: one block a name and reason, with the words that help."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from penstock.core import folds
from penstock.core.blocks import Block, Process, from_json
from penstock.core.folds import WINDOW
from penstock.core.lookups import MOST, OVERFLOW, SEARCH, Lookup, Lookups, Reason
from penstock.core.parse import parse
from penstock.core.policy import Known, Policy
from penstock.core.resolver_wire import Observed, Refused

START = datetime(2026, 11, 25, 2, 15, tzinfo=UTC)
T = START.timestamp()
RULES = """
  - {to: "*.hf.co", name: hub}
  - {to: [registry.ollama.ai, cdn.ollama.ai], name: ollama, expires: "2025-01-01T00:00:00Z"}
  - {to: db.corp.example.org, ports: [5432], private: true, name: db}
"""
UNFIT = "its rule never takes what it resolves to: metadata, link-local, reserved or excepted"


def policy(mode: str = "enforce", rules: str = RULES) -> Policy:
    text = f"version: 1\nworkload: a\nmode: {mode}\negress: {rules}\ningress: []\n"
    parsed = parse({"rules.d/a.yaml": text.encode()})
    assert parsed.policy, parsed.problems
    known = (
        Known("*.stats.example", "telemetry", "usage statistics of vLLM", "vllm"),
        Known("meta.example.net", "metadata", "", "x"),
        Known("plugins.example.net", "other", "its list of plugins", "open-webui"),
    )
    workload = replace(parsed.policy.workloads["a"], known=known)
    return replace(parsed.policy, workloads={"a": workload})


def told(lookup: Lookup, rules: Policy | None = None) -> Block:
    (block,) = Lookups(1).add(lookup, rules or policy(), START)
    return block


def test_a_name_without_a_rule() -> None:
    message = Refused(7, "a", "registry.example", "A", "name", "udp", (ip_address("192.0.2.1"), 4000), 3)
    (block,) = Lookups(1).add(Lookup.of(message), policy(), START, Process(12, "python\x1b"))
    assert (block.name, block.address, block.port, block.protocol) == ("registry.example", None, 53, "udp")
    assert (block.verdict, block.mode, block.direction, block.count) == ("deny", "enforce", "out", 3)
    assert (block.reason, block.text) == ("name", "not in its rules")
    assert block.process == Process(12, "python\\x1b")
    assert block.allow
    assert block.allow == 'penstock grant a registry.example:443 --for 8h --reason "..."'
    assert from_json(block.as_json()) == replace(block, first=T, last=T)


def test_the_rule_that_is_offered_has_the_name() -> None:
    allow = told(Lookup("a", "registry.example"), policy("observe")).allow
    assert allow
    line = allow.split(":  ", 1)[1].split("  then:")[0]
    block = told(Lookup("a", "other.registry.example"), policy(rules=f"\n  {line}\n"))
    assert "(registry.example:443)" in block.text


def test_the_nearest_rule_is_told() -> None:
    block = told(Lookup("a", "mail.corp.example.org"))
    assert block.nearest == "db"
    assert block.text == "not in its rules; nearest is rule db (db.corp.example.org:5432): other name"
    assert told(Lookup("a", "hf.co")).text.endswith("(*.hf.co:443): not the name above")


def test_a_rule_that_is_over_is_told_as_such() -> None:
    block = told(Lookup("a", "cdn.ollama.ai"))
    assert (block.reason, block.nearest) == ("name", "ollama")
    assert "has expired" in block.text
    assert told(Lookup("a", "other.ollama.ai")).nearest is None


@pytest.mark.parametrize(
    ("name", "reason", "text", "offer"),
    [
        ("x.stats.example", "telemetry", "preset vllm leaves closed: usage statistics of vLLM", False),
        ("meta.example.net", "metadata-name", "a cloud's metadata service", False),
        ("metadata.google.internal", "metadata-name", "service: no name opens it, and `to: metadata`", False),
        ("plugins.example.net", "name", "preset open-webui leaves it closed: its list of plugins", True),
        ("bad name.example", "name", "not in its rules", False),
        ("localhost", "name", "not in its rules", False),
    ],
)
def test_names_that_are_known(name: str, reason: str, text: str, offer: bool) -> None:
    for said in (Reason.NAME, Reason.TELEMETRY, Reason.METADATA_NAME):  # whatever the resolver made of it
        block = told(Lookup("a", name, said))
        assert block.reason == reason
        assert text in block.text
        assert (block.allow is not None) == offer


@pytest.mark.parametrize(
    ("lookup", "text"),
    [
        (Lookup("a", "x.hf.co", Reason.TYPE, "TXT"), "records of type TXT are not given out for it"),
        (Lookup("a", "x.hf.co", Reason.RATE), "too many new names under one pattern in a short time"),
        (Lookup("a", "x.hf.co", Reason.LOCKED), "the workload is locked: everything is denied"),
        (
            Lookup("a", "x.hf.co", Reason.PRIVATE_ANSWER),
            "it resolves to a private or loopback address; `private: true` in rule hub would allow that",
        ),
        (Lookup("a", "x.hf.co", Reason.UNFIT_ANSWER), UNFIT),
        (Lookup("a", "db.corp.example.org", Reason.UNFIT_ANSWER), UNFIT),
        (Lookup("a", "db.corp.example.org", Reason.PRIVATE_ANSWER), UNFIT),  # of rules that were there before
        (Lookup("a", "", OVERFLOW.reason), OVERFLOW.text),
    ],
)
def test_other_reasons(lookup: Lookup, text: str) -> None:
    block = told(lookup)
    assert (block.reason, block.text, block.allow) == (lookup.reason, text, None)


def test_of_two_rules_that_is_named_which_lacks_private() -> None:
    rules = "\n  - {to: a.example, private: true, name: wide}\n  - {to: a.example, ports: [80], name: strict}"
    block = told(Lookup("a", "a.example", Reason.PRIVATE_ANSWER), policy(rules=rules))
    assert (block.nearest, "in rule strict" in block.text) == ("strict", True)


@pytest.mark.parametrize(
    ("ports", "offer"),
    [
        ("[8443]", "a.example:8443"),
        ("[53/udp, 8443]", "a.example:8443"),
        ("[9000/udp]", "a.example:9000/udp"),
        ("[80, 443]", "a.example:443"),
        ("[any]", "a.example:443"),
        ("[icmp]", None),
        ("[2375]", None),
    ],
)
def test_a_rule_that_is_over_is_offered_with_its_own_port(ports: str, offer: str | None) -> None:
    rules = f"\n  - {{to: a.example, ports: {ports}, expires: 2025-01-01}}"
    allow = told(Lookup("a", "a.example"), policy(rules=rules)).allow
    assert allow == (offer and f'penstock grant a {offer} --for 8h --reason "..."')


def test_the_root_has_a_name_and_what_is_not_kept_apart_has_none() -> None:
    root = Refused(7, "a", "", "NS", "name", "udp", (ip_address("192.0.2.1"), 4000))
    assert told(Lookup.of(root)).name == "."
    assert told(Lookup.of(Observed("a", "", ()))).name == "."
    assert told(Lookup.of(replace(root, reason=OVERFLOW.reason))).name is None


def test_in_lock_nothing_else_is_said() -> None:
    block = told(Lookup("a", "registry.example"), policy("lock"))
    assert (block.reason, block.verdict, block.allow) == ("locked", "deny", None)


def test_what_observe_lets_through_would_be_denied() -> None:
    answered = Lookup.of(Observed("a", "registry.example", (ip_address("192.0.2.1"),)))
    block = told(answered, policy("observe"))
    assert (block.verdict, block.mode, block.reason) == ("would-deny", "observe", "name")
    assert told(Lookup("a", "x.hf.co", Reason.TYPE, "ANY"), policy("observe")).verdict == "deny"


def test_a_reason_of_another_version_is_told_safely() -> None:
    block = told(Lookup("a", "x\x1b[2J.example", "new\n" * 100))
    assert block.name == "x\\x1b[2J.example"
    assert block.reason.isprintable()
    assert len(block.reason) < 100


def test_search_lists_and_strangers_are_not_told() -> None:
    lookups = Lookups(1)
    assert lookups.add(Lookup("a", "hf.co.corp.example", SEARCH), policy(), START) == []
    assert lookups.add(Lookup("b", "registry.example"), policy(), START) == []
    assert lookups.close(T) == []


def test_repeats_are_folded_by_name_and_reason() -> None:
    lookups, rules = Lookups(1), policy()
    lookup = Lookup("a", "registry.example", "name", "A", "udp", 2)
    (first,) = lookups.add(lookup, rules, START)
    assert lookups.add(replace(lookup, qtype="AAAA", protocol="tcp"), rules, START) == []
    assert len(lookups.add(replace(lookup, reason="rate"), rules, START)) == 1
    assert len(lookups.add(replace(lookup, name="other.example"), rules, START)) == 1
    assert len(lookups.add(lookup, rules, START, Process(1, "curl"))) == 1
    (again,) = lookups.flush(T + 2)
    assert (again.id, again.count) == (first.id, 4)
    assert lookups.flush(T + WINDOW) == []
    assert len(lookups.add(lookup, rules, START)) == 1
    lookups.add(lookup, rules, START)
    assert [block.count for block in lookups.close(T)] == [4]


def test_types_are_told_apart_when_they_are_the_reason() -> None:
    lookups = Lookups(1)
    for qtype in ("TXT", "NULL"):
        (block,) = lookups.add(Lookup("a", "x.hf.co", Reason.TYPE, qtype), policy(), START)
        assert qtype in block.text


def test_a_flood_of_names_is_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folds, "MAX_FOLDS_OF_ONE", 3)
    lookups, rules = Lookups(1), policy()
    for n in range(10):
        lookups.add(Lookup("a", f"n{n}.example", count=2), rules, START)
    latest = {block.id: block for block in lookups.close(T)}
    (rest,) = latest.values()
    assert (rest.name, rest.reason, rest.count, rest.address) == (None, "overflow", 14, None)


def test_the_rules_are_those_of_the_policy_that_is_given() -> None:
    lookups = Lookups(1)
    (one,) = lookups.add(Lookup("a", "mail.corp.example.org"), policy(), START)
    (other,) = lookups.add(Lookup("a", "web.corp.example.org"), policy(rules="[]"), START)
    assert (one.nearest, other.nearest) == ("db", None)


def test_a_message_that_claims_too_much_is_bounded() -> None:
    message = Refused(1, "a", "x.example", "A", "name", "udp", (ip_address("192.0.2.1"), 1), 1 << 52)
    assert Lookup.of(message).count == MOST
    assert Lookup.of(replace(message, count=0)).count == 1
