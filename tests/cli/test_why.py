"""`penstock why`: verdict, rule, kernel, exit status."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Call
from cli.fake_daemon import FILES, FakeDaemon, by_the_rules, learned_at, names
from cli.test_lent import saved as saved_grant
from cli.test_lent import write as write_lent
from penstock.cli import why as module
from penstock.cli.format import rfc3339
from penstock.core.wire import Json, Message


def after(seconds: float) -> str:
    """The time in so many seconds, as the daemon says it."""
    return rfc3339(datetime.now(UTC) + timedelta(seconds=seconds))


def with_rule(rules: str, mode: str = "enforce") -> dict[str, bytes]:
    """The files with other rules of litellm for what goes out."""
    text = f"version: 1\nworkload: litellm\nmode: {mode}\negress: [{rules}]\ningress: []\n"
    return {**FILES, "rules.d/litellm.yaml": text.encode()}


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch, daemon: FakeDaemon) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(module, "AGAIN", 0)
    daemon.replies.update(holds=by_the_rules, names=names(), opens={"rules": []})


@pytest.mark.parametrize(
    ("question", "status", "first"),
    [
        (("10.30.1.5:5432",), 0, "ALLOWED  litellm -> 10.30.1.5:5432"),
        (("10.30.1.5:5432/udp",), 1, "DENIED  litellm -> 10.30.1.5:5432/udp"),
        (("10.30.1.9:5432",), 1, "DENIED  litellm -> 10.30.1.9:5432"),
        (("[2001:db8::5]:53/udp",), 1, "DENIED  litellm -> [2001:db8::5]:53/udp"),
        (("10.30.1.5", "icmp"), 1, "DENIED  litellm -> 10.30.1.5 icmp"),
        (("--from", "10.30.7.7", "8000"), 0, "ALLOWED  10.30.7.7 -> litellm 8000"),
        (("--from", "clients", "8000"), 0, "ALLOWED  clients -> litellm 8000"),
        (("--from", "clients", "8001"), 1, "DENIED  clients -> litellm 8001"),
        (("--from", "any", "8000"), 2, "DEPENDS on the address  any -> litellm 8000"),
        (("--from", "host", "8000"), 1, "DENIED  host -> litellm 8000"),
        (("--from", "workload:ollama", "8000"), 1, "DENIED  workload:ollama -> litellm 8000"),
    ],
)
def test_questions(call: Call, question: tuple[str, ...], status: int, first: str) -> None:
    done = call("why", "litellm", *question)
    assert (done.exit_code, done.stdout.splitlines()[0], done.stderr) == (status, first, "")
    assert "  kernel: agrees" in done.stdout.splitlines()


def test_what_a_preset_keeps_closed_is_told(tmp_path: Path, call: Call) -> None:
    text = "version: 1\nworkload: w\nmode: enforce\negress: [{use: vllm}]\ningress: []\n"
    (tmp_path / "rules.d").mkdir()
    (tmp_path / "rules.d/w.yaml").write_text(text)
    done = call("why", "w", "stats.vllm.ai:443", "--policy", str(tmp_path))
    assert "note: telemetry, which preset vllm leaves closed: usage reports" in done.stdout
    assert "telemetry" not in call("why", "w", "other.vllm.ai:443", "--policy", str(tmp_path)).stdout


def test_an_answer_for_people(daemon: FakeDaemon, call: Call) -> None:
    assert call("why", "litellm", "10.30.1.9:5432").stdout == f"""\
DENIED  litellm -> 10.30.1.9:5432
  not in its rules; nearest is rule db (10.30.1.5:5432): other destination
  rule db: {daemon.home}/config/rules.d/litellm.yaml:5
  literal address: nobody has looked it up
  kernel: agrees
"""
    assert daemon.requests[-1].arguments == {
        "workload": "litellm",
        "direction": "out",
        "address": "10.30.1.9",
        "protocol": "tcp",
        "port": 5432,
        "here": 0,
    }


def test_it_depends(call: Call) -> None:
    lines = call("why", "litellm", "--from", "any", "8000").stdout.splitlines()
    assert lines[1].startswith("  allowed for 10.30.0.0: rule ingress-")
    assert lines[2].startswith("  denied for 0.0.0.0: not in its rules; nearest is ")


def test_an_answer_for_programs(daemon: FakeDaemon, call: Call) -> None:
    assert json.loads(call("why", "litellm", "10.30.1.5:5432", "--json").stdout) == {
        "v": 1,
        "workload": "litellm",
        "direction": "out",
        "question": "10.30.1.5:5432",
        "address": "10.30.1.5",
        "name": None,
        "protocol": "tcp",
        "port": 5432,
        "verdict": "allow",
        "effect": "allow",
        "mode": "enforce",
        "reason": "rule",
        "text": "rule db (10.30.1.5:5432) allows it",
        "rule": {
            "id": "db",
            "text": "10.30.1.5:5432",
            "file": f"{daemon.home}/config/rules.d/litellm.yaml",
            "line": 5,
        },
        "nearest": None,
        "kernel": "agrees",
        "policy": said_hash(call),
        "notes": [],
        "resolving": True,
        "addresses": [],
        "names": [],
        "asked": None,
    }


def said_hash(call: Call) -> str:
    found: str = json.loads(call("why", "ollama", "10.0.0.1:1", "--json").stdout)["policy"]
    assert len(found) == 12
    return found


def test_icmp_is_asked_for_without_a_port(daemon: FakeDaemon, call: Call) -> None:
    call("why", "litellm", "10.30.1.5", "icmp")
    assert daemon.requests[-1].arguments["port"] == 0


def test_a_disagreement_is_said_loudly(daemon: FakeDaemon, call: Call) -> None:
    for held, question in ((True, "10.30.1.9:5432"), (False, "10.30.1.5:5432")):
        daemon.replies["holds"] = {"holds": held, "learned": False}
        done = call("why", "litellm", question)
        assert done.exit_code == 2
        assert "kernel: DISAGREES" in done.stdout
    daemon.replies["holds"] = {"holds": True, "learned": False}
    assert call("why", "litellm", "--from", "any", "8000").exit_code == 2
    said = json.loads(call("why", "litellm", "--from", "host", "8000", "--json").stdout)
    assert (said["verdict"], said["kernel"]) == ("deny", "disagrees")


@pytest.mark.parametrize("reply", [{"holds": None, "learned": False}, ("busy", "")])
def test_the_kernel_is_unknown_when_nobody_knows(daemon: FakeDaemon, call: Call, reply: Any) -> None:
    daemon.replies["holds"] = reply
    done = call("why", "litellm", "10.30.1.5:5432", "--json")
    assert (done.exit_code, json.loads(done.stdout)["kernel"]) == (0, "unknown")


def test_more_than_is_asked_about_is_unknown(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASKED", 2)
    assert "kernel: unknown" in call("why", "litellm", "--from", "any", "8000").stdout


CHAINS = {
    "penstock.yaml": b"version: 1\nnetworks: {lan: {interface: eno2}}\n",
    "rules.d/model.yaml": b"""\
version: 1
workload: model
mode: enforce
egress: [{to: lan, ports: [443]}]
ingress: [{from: ['workload:gw', lan], ports: [8000], name: front}, {from: host, ports: [9000]}]
""",
    "rules.d/gw.yaml": b"""\
version: 1
workload: gw
mode: enforce
egress: [{to: 'workload:model', ports: [8000], name: model}]
ingress: []
""",
}


def opened(message: Message) -> Json:
    """What a kernel opens in chains that has the policy in `CHAINS`."""
    asked = message.arguments
    key = (asked["workload"], asked["direction"], asked["far"], asked["port"])
    rules = {
        ("model", "in", "workload:gw", 8000): ["front"],
        ("model", "in", "interface:eno2", 8000): ["front"],
        ("model", "in", "host", 9000): ["ingress"],
        ("gw", "out", "workload:model", 8000): ["model"],
        ("model", "out", "interface:eno2", 443): ["egress"],
    }
    return {"rules": rules.get(key, []) if asked["protocol"] == "tcp" else []}


@pytest.mark.parametrize(
    ("question", "status", "first"),
    [
        (("model", "--from", "workload:gw", "8000"), 0, "ALLOWED  workload:gw -> model 8000"),
        (("model", "--from", "workload:gw", "8001"), 1, "DENIED  workload:gw -> model 8001"),
        (("gw", "workload:model:8000"), 0, "ALLOWED  gw -> workload:model:8000"),
        (("gw", "workload:model:8001"), 1, "DENIED  gw -> workload:model:8001"),
        (("model", "workload:gw:8000"), 1, "DENIED  model -> workload:gw:8000"),
        (("model", "--from", "host", "9000"), 0, "ALLOWED  host -> model 9000"),
        (("model", "--from", "host", "8000"), 1, "DENIED  host -> model 8000"),
        (("model", "--from", "lan", "8000"), 0, "ALLOWED  lan -> model 8000"),
        (("model", "--from", "lan", "9000"), 1, "DENIED  lan -> model 9000"),
        (("model", "--from", "10.0.0.1", "8000"), 2, "DEPENDS on the interface  10.0.0.1 -> model 8000"),
        (("model", "--from", "10.0.0.1", "9000"), 1, "DENIED  10.0.0.1 -> model 9000"),
        (("model", "10.0.0.1:443"), 2, "DEPENDS on the interface  model -> 10.0.0.1:443"),
        (("model", "10.0.0.1:80"), 1, "DENIED  model -> 10.0.0.1:80"),
        (("model", "169.254.169.254:443"), 1, "DENIED  model -> 169.254.169.254:443"),
    ],
)
def test_rules_that_are_in_chains(
    daemon: FakeDaemon, call: Call, question: tuple[str, ...], status: int, first: str
) -> None:
    daemon.write(CHAINS)
    daemon.replies.update(holds={"holds": False, "learned": False}, opens=opened)
    done = call("why", *question)
    assert (done.exit_code, done.stdout.splitlines()[0], done.stderr) == (status, first, "")
    assert "  kernel: agrees" in done.stdout.splitlines()
    if "interface" in first:
        assert "allowed over eno2: " in done.stdout
        assert "denied over any other: " in done.stdout
        assert "ask about a network by its name" in done.stdout
    daemon.replies["opens"] = {"rules": None}
    assert "kernel: unknown" in call("why", *question).stdout or "169.254" in first
    daemon.replies["opens"] = lambda message: {"rules": [] if opened(message)["rules"] else ["x"]}
    done = call("why", *question)
    assert (done.exit_code, "kernel: DISAGREES" in done.stdout) == (2, True) or "169.254" in first


def test_without_a_daemon(daemon: FakeDaemon, call: Call) -> None:
    daemon.close()
    done = call("why", "litellm", "10.30.1.9:5432")
    assert done.exit_code == 1
    assert "  kernel: unknown" in done.stdout


def test_observe_mode_passes_now(call: Call) -> None:
    done = call("why", "ollama", "10.0.0.1:443")
    assert done.exit_code == 1
    assert done.stdout.startswith("WOULD BE DENIED, passes now: the workload is in observe mode  ollama -> ")
    assert json.loads(call("why", "ollama", "10.0.0.1:443", "--json").stdout)["effect"] == "would-deny"


def test_a_locked_workload_keeps_its_rules_in_the_kernel(daemon: FakeDaemon, call: Call) -> None:
    files = {**FILES, "rules.d/litellm.yaml": FILES["rules.d/litellm.yaml"].replace(b"enforce", b"lock")}
    daemon.write(files)
    done = call("why", "litellm", "10.30.1.5:5432", "--json")
    said = json.loads(done.stdout)
    assert (done.exit_code, said["reason"], said["kernel"]) == (1, "locked", "agrees")


NEXT = "  not answered lately: the next answer opens its addresses"


@pytest.mark.parametrize(
    ("reason", "again", "said"),
    [
        ("private-answer", True, "because of the addresses in the answer"),
        ("unfit-answer", True, "because of the addresses in the answer"),
        ("rate", True, "too many new names in a short time"),
        ("name", False, "not in its rules"),
        ("type", False, "for a type of record that is not given out"),
    ],
)
def test_what_its_rules_allow_may_be_refused_the_next_time_too(
    daemon: FakeDaemon, call: Call, reason: str, again: bool, said: str
) -> None:
    daemon.replies["names"] = names(asked={"name": "registry.example.org", "when": after(-6), "reason": reason})
    text = call("why", "litellm", "registry.example.org:443").stdout
    assert re.search(rf"^  refused registry\.example\.org [67] s ago, {said}$", text, re.MULTILINE)
    assert ("opens its addresses" in text) is not again


@pytest.mark.parametrize(
    ("question", "told"),
    [
        (("192.0.2.53:53/udp",), True),
        (("[2001:db8::53]:53",), True),
        (("127.0.0.53:53",), True),
        (("192.0.2.53:853",), False),
        (("192.0.2.53", "icmp"), False),
        (("--from", "clients", "53"), False),
    ],
)
def test_port_53_where_we_answer_look_ups(call: Call, question: tuple[str, ...], told: bool) -> None:
    text = "  note: look-ups of litellm go to penstock's resolver all the same, whomever it asks: rules by name "
    assert (text in call("why", "litellm", *question).stdout) is told
    assert "penstock's resolver" not in call("why", "ollama", *question).stdout


@pytest.mark.parametrize(
    ("rules", "status", "first", "verdict"),
    [
        ("{to: any, ports: [443, 53/udp]}", 0, "ALLOWED", "allow"),
        ("{to: 203.0.113.0/24, ports: [443], name: some}", 2, "DEPENDS on the address", None),
        ("{to: 203.0.113.0/24, ports: [80]}", 1, "DENIED", "deny"),
    ],
)
def test_a_name_that_somebody_else_answers(
    tmp_path: Path, call: Call, rules: str, status: int, first: str, verdict: str | None
) -> None:
    text = f"version: 1\nworkload: w\nmode: enforce\negress: [{rules}]\ningress: []\n"
    (tmp_path / "rules.d").mkdir()
    (tmp_path / "rules.d/w.yaml").write_text(text)
    done = call("why", "w", "hub.example:443", "--policy", str(tmp_path))
    assert (done.exit_code, done.stdout.splitlines()[0]) == (status, f"{first}  w -> hub.example:443")
    assert "once they are looked up" not in done.stdout
    said = json.loads(call("why", "w", "hub.example:443", "--policy", str(tmp_path), "--json").stdout)
    assert said["verdict"] == verdict
    if verdict is None:
        assert (said["effect"], said["reason"], said["nearest"]["id"]) == ("mixed", "depends", "some")
        why = "where the name leads is not known, and some addresses are open: ask about an address; nearest is "
        assert why in " ".join(done.stdout.split())


def test_a_name_that_was_not_looked_up(daemon: FakeDaemon, call: Call) -> None:
    done = call("why", "litellm", "Registry.example.org:443")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0] == "ALLOWED  litellm -> Registry.example.org:443"
    assert NEXT in done.stdout.splitlines()
    assert "  kernel: unknown, it can only be asked about addresses" in done.stdout.splitlines()
    asked = [m.arguments for m in daemon.requests if m.command == "names"]
    assert asked == [{"workload": "litellm", "name": "registry.example.org"}]


def test_a_name_that_was_learned(daemon: FakeDaemon, call: Call) -> None:
    found = [{"address": f"203.0.113.{n}", "until": after(540)} for n in range(6)]
    daemon.replies.update(names=names(rules=["registry.example.org"], addresses=found), holds=learned_at(443))
    text = " ".join(call("why", "litellm", "registry.example.org:443").stdout.split())
    assert re.search(r" learned now: 203\.0\.113\.0 for another 5[34]\d s, 203\.0\.113\.1 for", text)
    assert " s and 2 more kernel: agrees" in text
    asked = [m.arguments for m in daemon.requests if m.command == "holds"]
    assert [a["address"] for a in asked] == [one["address"] for one in found]
    assert {(a["workload"], a["direction"], a["protocol"], a["port"]) for a in asked} == {
        ("litellm", "out", "tcp", 443)
    }
    said = json.loads(call("why", "litellm", "registry.example.org:443", "--json").stdout)
    assert (said["resolving"], said["addresses"], said["asked"]) == (True, found, None)


def test_a_name_that_was_refused(daemon: FakeDaemon, call: Call) -> None:
    asked = {"name": "other.example", "when": after(-185), "reason": "name"}
    daemon.replies["names"] = names(asked=asked)
    done = call("why", "litellm", "other.example:443")
    assert done.exit_code == 1
    assert "  refused other.example 3 min ago, not in its rules" in done.stdout.splitlines()
    assert json.loads(call("why", "litellm", "other.example:443", "--json").stdout)["asked"] == asked


@pytest.mark.parametrize("address", ["203.0.113.7", "[2001:db8::7]"])
def test_an_address_that_a_name_leads_to(daemon: FakeDaemon, call: Call, address: str) -> None:
    known = [{"name": "registry.example.org", "until": after(500)}, {"name": "old.example", "until": after(-5)}]
    daemon.replies.update(names=names(names=known), holds=learned_at(443))
    done = call("why", "litellm", f"{address}:443")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert re.match(r"  learned for registry\.example\.org for another (500|49\d) s$", lines[-2])
    assert lines[-1] == "  kernel: agrees"
    done = call("why", "litellm", f"{address}:80")
    assert done.exit_code == 1
    assert "other port" in done.stdout


@pytest.mark.parametrize("question", ["203.0.113.7:443", "registry.example.org:443"])
def test_an_address_of_a_name_that_the_kernel_does_not_hold(daemon: FakeDaemon, call: Call, question: str) -> None:
    known = names(
        names=[{"name": "registry.example.org", "until": after(500)}],
        addresses=[{"address": "203.0.113.7", "until": after(500)}],
    )
    daemon.replies.update(names=known, holds=learned_at(80))
    done = call("why", "litellm", question)
    assert done.exit_code == 2
    assert "kernel: DISAGREES" in done.stdout


def test_an_address_that_the_kernel_holds_and_no_name_leads_to(daemon: FakeDaemon, call: Call) -> None:
    daemon.replies["holds"] = learned_at(443)
    done = call("why", "litellm", "203.0.113.7:443")
    assert done.exit_code == 2
    assert "kernel: DISAGREES" in done.stdout


def test_what_was_learned_between_the_questions_is_no_disagreement(daemon: FakeDaemon, call: Call) -> None:
    def learn(message: Message) -> Json:
        daemon.replies["names"] = names(names=[{"name": "registry.example.org", "until": after(500)}])
        return {"holds": False, "learned": True}

    daemon.replies["holds"] = learn
    done = call("why", "litellm", "203.0.113.7:443")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "  kernel: agrees")


def test_an_address_whose_answer_is_over(daemon: FakeDaemon, call: Call) -> None:
    daemon.replies["names"] = names(names=[{"name": "registry.example.org", "until": after(-185)}])
    done = call("why", "litellm", "203.0.113.7:443")
    assert done.exit_code == 1
    text = "  learned for registry.example.org, expired 3 min ago; a look-up opens it again"
    assert text in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("rule", "mode", "question", "again"),
    [
        ("{to: registry.example.org}", "enforce", "203.0.113.7:443", True),
        ("{to: registry.example.org}", "observe", "203.0.113.7:443", True),
        ("{to: registry.example.org}", "enforce", "203.0.113.7:5432", False),
        ("{to: registry.example.org}", "lock", "203.0.113.7:443", False),
        ("{to: registry.example.org}", "enforce", "10.0.0.7:443", False),
        ("{to: registry.example.org, private: true}", "enforce", "10.0.0.7:443", True),
        ("{to: registry.example.org, except: 203.0.113.0/24}", "enforce", "203.0.113.7:443", False),
        ("{to: [registry.example.org, 203.0.113.7], ports: [443]}", "enforce", "203.0.113.7:443", False),
        ("{to: other.example}", "enforce", "203.0.113.7:443", False),
    ],
)
def test_a_look_up_opens_again_what_the_rule_of_the_name_opens(
    daemon: FakeDaemon, call: Call, rule: str, mode: str, question: str, again: bool
) -> None:
    daemon.write(with_rule(rule, mode))
    daemon.replies["names"] = names(names=[{"name": "registry.example.org", "until": after(-185)}])
    text = "  learned for registry.example.org, expired 3 min ago" + "; a look-up opens it again" * again
    assert text in call("why", "litellm", question).stdout.splitlines()


def test_of_answers_that_are_over_the_one_is_told_whose_rule_opens_it(daemon: FakeDaemon, call: Call) -> None:
    over = [{"name": name, "until": after(-185)} for name in ("old.example", "registry.example.org")]
    daemon.replies["names"] = names(names=over)
    said = call("why", "litellm", "203.0.113.7:443").stdout
    assert "  learned for registry.example.org, expired 3 min ago; a look-up opens it again" in said.splitlines()
    assert "  learned for old.example, expired 3 min ago" in call("why", "litellm", "203.0.113.7:80").stdout


def test_an_address_that_observe_mode_let_be_looked_up(daemon: FakeDaemon, call: Call) -> None:
    daemon.replies["names"] = names(asked={"name": "x\x1b.example", "when": after(-3), "reason": None})
    text = call("why", "litellm", "203.0.113.7:443").stdout
    assert re.search(r"  asked x\\x1b\.example [34] s ago, not in its rules", text)
    assert "nobody has looked it up" not in text


@pytest.mark.parametrize(
    ("mode", "question", "rest"),
    [
        ("enforce", "203.0.113.7:443", ", and not since its rule is in force; a look-up opens it now"),
        ("enforce", "203.0.113.7:5432", ", and its rule does not open this"),
        ("enforce", "10.0.0.7:443", ", and its rule does not open this"),
        ("enforce", "10.30.1.5:5432", ""),
        ("lock", "203.0.113.7:443", ""),
    ],
)
def test_a_name_that_was_asked_and_has_a_rule_now(
    daemon: FakeDaemon, call: Call, mode: str, question: str, rest: str
) -> None:
    """After the rule came by `apply`, and of a locked workload: the names that it had learned are told so."""
    daemon.write(with_rule("{to: registry.example.org}, {to: 10.30.1.5, ports: [5432]}", mode))
    asked = {"name": "registry.example.org", "when": after(-65), "reason": None}
    daemon.replies["names"] = names(asked=asked)
    lines = call("why", "litellm", question).stdout.splitlines()
    assert f"  asked registry.example.org 1 min ago{rest}" in lines
    assert "nobody has looked it up" not in "".join(lines)
    learned = [{"name": "registry.example.org", "until": after(500)}]
    daemon.replies.update(names=names(asked=asked, names=learned), holds=learned_at(443))
    assert "asked registry" not in call("why", "litellm", question).stdout


def test_a_name_that_was_refused_and_has_a_rule_now(daemon: FakeDaemon, call: Call) -> None:
    asked = {"name": "registry.example.org", "when": after(-65), "reason": "name"}
    daemon.replies["names"] = names(asked=asked, rules=["registry.example.org"])
    lines = call("why", "litellm", "registry.example.org:443").stdout.splitlines()
    assert "  refused registry.example.org 1 min ago, not in its rules then" in lines


def test_nothing_is_said_of_names_where_they_have_no_part(daemon: FakeDaemon, call: Call) -> None:
    daemon.replies["names"] = names(resolving=False, mode="observe")
    assert "look" not in call("why", "ollama", "203.0.113.7:443").stdout
    daemon.replies["names"] = names()
    assert "look" not in call("why", "litellm", "10.30.1.5:5432").stdout
    daemon.requests.clear()
    call("why", "litellm", "--from", "10.30.7.7", "8000")
    assert "names" not in [m.command for m in daemon.requests]


def test_without_a_daemon_what_was_looked_up_is_not_known(daemon: FakeDaemon, call: Call) -> None:
    daemon.close()
    done = call("why", "litellm", "registry.example.org:443")
    assert done.exit_code == 0
    assert "note: its addresses are open once they are looked up" in done.stdout
    said = json.loads(call("why", "litellm", "registry.example.org:443", "--json").stdout)
    assert [said[key] for key in ("resolving", "addresses", "names", "asked")] == [None] * 4


@pytest.mark.parametrize(
    "answer",
    [{}, {"resolving": True, "addresses": [5, {"address": 5}], "names": 7, "asked": "x"}, {"resolving": True}],
)
def test_an_answer_of_another_version_does_no_harm(daemon: FakeDaemon, call: Call, answer: dict[str, Any]) -> None:
    daemon.replies["names"] = answer
    for question in ("registry.example.org:443", "203.0.113.7:443"):
        assert call("why", "litellm", question).exit_code in (0, 1)


def test_loopback(call: Call) -> None:
    text = "litellm always reaches its own listeners here; this is about every other listener"
    assert text in call("why", "litellm", "127.0.0.1:80").stdout
    assert text in call("why", "litellm", "[::1]:80").stdout
    assert "litellm itself always may" in call("why", "litellm", "--from", "127.0.0.1", "80").stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("litelm", "10.0.0.1:1"), "the policy has no workload `litelm`; did you mean `litellm`?"),
        (("x", "10.0.0.1:1"), "the policy has no workload `x`; there are litellm, ollama"),
        (("litellm", "10.0.0.1"), "`10.0.0.1`: the port is missing; write 10.0.0.5:443"),
        (("litellm", "2001:db8::5:443"), "an IPv6 address before a port needs brackets"),
        (("litellm", "https://x.example:443"), "is a URL; write the name and the port alone: x.example:443"),
        (("litellm", "10.0.0.1:99999"), "out of range"),
        (("litellm", "10.0.0.1:1-5"), "`1-5` is more than one port"),
        (("litellm", "10.0.0.0/8:443"), "is not one address or name"),
        (("litellm", "*.org:443"), "one name is needed, and no pattern"),
        (("litellm", "localhost:443"), "`localhost` is no network; write 127.0.0.1"),
        (("litellm", "a b:443"), "is not one destination"),
        (("litellm", "10.0.0.1:1", "10.0.0.1:2"), "is no destination"),
        (("litellm", "--from", "nett", "80"), "the policy has no network `nett`"),
        (("litellm", "--from", "client", "80"), "the policy has no network `client`; did you mean `clients`?"),
        (("litellm", "--from", "workload:x", "80"), "the policy has no workload `x`"),
        (("litellm", "--from", "plane:admin", "80"), "`from plane:admin 80` names no address"),
        (("litellm", "--from", "a.org", "80"), "a name cannot be a source"),
        (("litellm", "--from", "10.0.0.1", "icmp"), "the kernel answers echo requests by itself"),
        (("litellm", "--from", "10.0.0.1", "80", "81"), "`80 81` is no port"),
    ],
)
def test_cannot_tell(call: Call, arguments: tuple[str, ...], text: str) -> None:
    done = call("why", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_by_a_directory(daemon: FakeDaemon, call: Call, tmp_path: Path) -> None:
    daemon.requests.clear()
    directory = daemon.home / "config"
    done = call("why", "litellm", "10.30.1.5:5432", "--policy", directory, "--json")
    assert (done.exit_code, json.loads(done.stdout)["kernel"]) == (0, "unknown")
    assert daemon.requests == []
    (directory / "rules.d/bad.yaml").write_text("x")
    done = call("why", "litellm", "10.30.1.5:5432", "--policy", directory)
    assert done.exit_code == 2
    assert done.stderr == f"penstock: {directory}: has mistakes; see: penstock check {directory}\n"
    assert call("why", "litellm", "10.30.1.5:5432", "--policy", tmp_path / "x").exit_code == 2


def test_no_policy_was_applied(daemon: FakeDaemon, call: Call) -> None:
    applied = daemon.home / "state/applied.json"
    applied.write_bytes(b"{}")
    assert "the saved state is damaged" in call("why", "litellm", "10.30.1.5:5432").stderr
    applied.unlink()
    done = call("why", "litellm", "10.30.1.5:5432")
    assert done.exit_code == 2
    assert done.stderr == f"penstock: {applied}: no policy has been applied; penstock apply\n"
    (daemon.run / "daemon.json").unlink()
    done = call("why", "litellm", "10.30.1.5:5432")
    assert done.exit_code == 2
    assert "no daemon has run here yet" in done.stderr


def test_what_is_lent_is_named_with_its_end(daemon: FakeDaemon, call: Call) -> None:
    assert call("why", "litellm", "10.30.1.9:5432").exit_code == 1
    write_lent(daemon, saved_grant())
    daemon.replies["holds"] = {"holds": True, "learned": False}
    done = call("why", "litellm", "10.30.1.9:5432")
    assert done.exit_code == 0
    first, second, *_ = done.stdout.splitlines()
    assert first == "ALLOWED  litellm -> 10.30.1.9:5432"
    until = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d \w+"
    assert re.match(rf"  grant-1a2b3c4d \(10.30.1.9:5432\) allows it, until {until}, anna: to see", second)
    rule = json.loads(call("why", "litellm", "10.30.1.9:5432", "--json").stdout)["rule"]
    assert (rule["id"], rule["file"], rule["line"]) == ("grant-1a2b3c4d", None, None)
    assert rule["until"].endswith("Z")
