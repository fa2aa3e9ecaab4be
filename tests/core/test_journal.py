"""What the journal is told."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.core import journal
from penstock.core.blocks import Block, Process
from penstock.core.effects import Effect, Journal, Record, TellBlocks
from penstock.core.folds import WINDOW
from penstock.core.journal import MESSAGE_IDS, TOLD_AT_ONCE, BlockNews, FindingNews

CORE = Path(journal.__file__).parent
BLOCK = Block(
    id="1",
    first=100.0,
    last=100.0,
    workload="a",
    verdict="deny",
    mode="enforce",
    direction="out",
    protocol="tcp",
    family=4,
    address="192.0.2.1",
    port=443,
    name="example.org",
    count=1,
    unlogged=0,
    rule=None,
    reason="no-rule",
    text="no rule allows it",
    nearest="egress-1",
    process=Process(7, "curl"),
    policy="0123",
    allow="penstock grant a",
)


def lines(todo: list[Effect]) -> list[Journal]:
    return [line for effect in todo if isinstance(effect, TellBlocks) for line in effect.lines]


def test_ids_are_uuids_of_their_own() -> None:
    assert len(set(MESSAGE_IDS.values())) == len(MESSAGE_IDS)
    for value in MESSAGE_IDS.values():
        assert re.fullmatch(r"[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}", value), value


def test_each_kind_that_is_used_has_an_id() -> None:
    nodes = [node for path in CORE.glob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    calls = [node for node in nodes if isinstance(node, ast.Call) and len(node.args) > 2]
    kinds = [node.args[2] for node in calls if ast.unparse(node.func).rpartition(".")[2] == "Journal"]
    used = {kind.value for kind in kinds if isinstance(kind, ast.Constant)}
    assert used >= {"applied", "repaired", "foreign-change", "finding", "failed"}
    assert used <= MESSAGE_IDS.keys()


def test_a_record() -> None:
    line = Journal("info", "b\x1b", "applied", {"POLICY": "0123", "REASON": "a\nb"})
    assert journal.record(line) == {
        "MESSAGE": "b\\x1b",
        "MESSAGE_ID": MESSAGE_IDS["applied"],
        "PENSTOCK_EVENT": "applied",
        "PENSTOCK_POLICY": "0123",
        "PENSTOCK_REASON": "a\\nb",
    }
    assert journal.record(Journal("info", "b")) == {"MESSAGE": "b"}


def test_a_block_has_its_fields() -> None:
    [line] = lines(BlockNews().of([Record((BLOCK,))], 100.0))
    assert (line.level, line.kind) == ("notice", "denied")
    assert line.text == "denied: a -> 192.0.2.1:443 (example.org) (process curl): no rule allows it"
    fields = journal.record(line)
    assert fields["PENSTOCK_WORKLOAD"] == "a"
    assert fields["PENSTOCK_DESTINATION"] == "192.0.2.1:443"
    assert fields["PENSTOCK_NAME"] == "example.org"
    assert fields["PENSTOCK_BLOCK"] == "1"
    assert fields["PENSTOCK_PROCESS"] == "curl"
    assert "PENSTOCK_SOURCE" not in fields
    assert not any(value == "None" for value in fields.values())


@pytest.mark.parametrize(
    ("change", "text", "field", "value"),
    [
        ({"family": 6, "address": "fd00::1", "protocol": "udp"}, "a -> [fd00::1]:443/udp", "DESTINATION", None),
        ({"direction": "in", "port": 8000}, "192.0.2.1 -> a, port 8000", "SOURCE", "192.0.2.1"),
        ({"address": None, "port": None, "family": None}, "a -> several", "DESTINATION", ""),
        ({"address": None, "family": None, "port": 53}, "a asked for example.org", "NAME", "example.org"),
    ],
)
def test_whom_it_was_to(change: dict[str, Any], text: str, field: str, value: str | None) -> None:
    plain = replace(BLOCK, name=BLOCK.name if field == "NAME" else None, process=Process())
    [line] = lines(BlockNews().of([Record((replace(plain, **change),))], 100.0))
    assert line.text == f"denied: {text}: no rule allows it"
    assert line.fields.get(field, "") == (text.rpartition(" ")[2] if value is None else value)


def test_what_is_only_observed_is_no_alarm() -> None:
    [line] = lines(BlockNews().of([Record((replace(BLOCK, verdict="would-deny"),))], 100.0))
    assert (line.level, line.kind) == ("info", "would-deny")


def test_a_block_is_told_when_it_begins_and_when_it_is_over() -> None:
    news = BlockNews()
    assert len(lines(news.of([Record((BLOCK,))], 100.0))) == 1
    for count in (5, 9):
        assert news.of([Record((replace(BLOCK, count=count),))], 102.0) == []
    assert news.of([], 100.0 + WINDOW - 0.1) == []
    [line] = lines(news.of([], 100.0 + WINDOW))
    assert line.text.endswith(", 9 times: no rule allows it")
    assert line.fields["COUNT"] == "9"
    assert news.of([], 300.0) == []


def test_one_that_did_not_grow_is_told_once() -> None:
    news = BlockNews()
    assert news.of([Record((BLOCK,))], 100.0)
    assert news.of([], 100.0 + WINDOW) == []


def test_packets_that_were_only_counted_are_told() -> None:
    news = BlockNews()
    news.of([Record((BLOCK,))], 100.0)
    [line] = lines(news.of([Record((replace(BLOCK, unlogged=4),))], 100.0 + WINDOW))
    assert line.fields["UNLOGGED"] == "4"


def test_the_last_of_it_when_the_daemon_ends_or_the_clock_is_set_back() -> None:
    for now, last in ((101.0, True), (99.0, False)):
        news = BlockNews()
        news.of([Record((BLOCK,))], 100.0)
        assert len(lines(news.of([Record((replace(BLOCK, count=2),))], now, last=last))) == 1
        assert news.of([], 300.0) == []


def finding(code: str, severity: str = "warning", workload: str | None = None) -> dict[str, Any]:
    return {"code": code, "severity": severity, "workload": workload, "text": "it is so", "remedy": "do"}


def test_findings_that_come_and_go() -> None:
    news = FindingNews()
    [came] = news.of([finding("outside", "error", "a"), finding("root", "info", "a")])
    fields = {"FINDING": "outside", "SEVERITY": "error", "WORKLOAD": "a"}
    assert came == Journal("error", "outside: a: it is so; do", "finding", fields)
    assert news.of([finding("outside", "error", "a"), finding("outside", "error", "a")]) == []
    assert news.of([finding("outside", "error", "b")]) == [
        Journal("error", "outside: b: it is so; do", "finding", {**fields, "WORKLOAD": "b"}),
        Journal("info", "over: outside: a: it is so", "finding-gone", fields),
    ]


def test_many_at_once_are_summed_up() -> None:
    told = FindingNews().of([finding("in-place", workload=f"w{n}") for n in range(TOLD_AT_ONCE + 5)])
    assert len(told) == TOLD_AT_ONCE + 1
    assert told[-1] == Journal("warning", "and 5 more: penstock status --json", "finding")
