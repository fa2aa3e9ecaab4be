"""When the counters of rules are read, of how many, and what they add up to."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from fake_host import ONE, START, TWO, Host, always, rules

from exposition import Family, parse, value
from penstock.core import effects, events, hits, measuring
from penstock.core.ruleset import AddressSet, Element
from penstock.core.view import InForce

MANY = "[{to: [" + ", ".join(f"192.0.2.{n}" for n in range(1, 60, 2)) + "], ports: [443]}]"


def measured(host: Host) -> dict[str, Family]:
    """What the file says after the next measurement."""
    host.metrics = b""
    for _ in range(9):
        host.tick()
        if host.metrics:
            return parse(host.metrics)
    raise AssertionError("nothing was measured within 18 s")


def in_force(host: Host) -> InForce:
    assert host.engine.in_force
    return host.engine.in_force


def read(host: Host, before: int) -> list[tuple[str, ...]]:
    """The sets that were read since, a measurement each."""
    done = [effect for effect in host.done[before:] if isinstance(effect, effects.CountHits)]
    return [tuple(name for name, _ in effect.sets) for effect in done]


def test_every_fifteen_seconds() -> None:
    host = Host(ONE).start()
    before = len(host.done)
    for _ in range(60):
        host.tick(1.0)
    assert len(read(host, before)) == 4
    assert read(host, before)[0] == ("out4_a",), "empty sets need not be read"


def test_hits_are_added_up_and_stay() -> None:
    host = Host(ONE).start()
    [rule] = in_force(host).policy.workloads["a"].rules
    assert value(measured(host), "penstock_rule_packets_total", workload="a") == 3
    assert value(measured(host), "penstock_rule_packets_total", workload="a") == 3, "nothing came to it"
    two = "[{to: 198.51.100.10, ports: [443]}, {to: 198.51.100.99, ports: [443]}]"
    host.apply({"rules.d/a.yaml": rules("a", two)})
    found = measured(host)
    assert list(found["penstock_rule_packets_total"].samples.values()) == [3, 3]
    assert value(found, "penstock_rule_packets_total", rule=rule.id) == 3
    assert value(found, "penstock_rule_bytes_total", rule=rule.id) == 180
    host.apply({"rules.d/a.yaml": rules("a", "[]")})
    assert "penstock_rule_packets_total" not in measured(host)


def test_what_is_counted_by_chains_comes_to_it() -> None:
    host = Host(ONE).start()
    [rule] = in_force(host).policy.workloads["a"].rules
    counter = hits.counter("a", rule.id)
    for number, (packets, expected) in enumerate(((5, 8), (7, 10), (1, 11))):  # 3 by address; then a new table
        measure = host.engine._measuring
        sets = {"out4_a": {} if number else elements(host)}
        event = events.Hits(START, None, sets, {counter: (packets, 0)})
        [effect] = measure.measured(event, host.engine.in_force, host.status())
        assert isinstance(effect, effects.WriteMetrics)
        assert value(parse(effect.data), "penstock_rule_packets_total", rule=rule.id) == expected


def elements(host: Host) -> dict[Element, tuple[int, int]]:
    return dict.fromkeys(host.kernel.sets["out4_a"], (3, 180))


def test_denied_packets_by_direction() -> None:
    host = Host(ONE).start()
    host.kernel.counters |= {"denied_out_a": 5, "unbound_out": 2}
    host.tick()
    found = measured(host)
    denied = found["penstock_denied_packets_total"].samples
    assert {frozenset(labels): n for labels, n in denied.items() if n} == {
        frozenset({("workload", "a"), ("direction", "out")}): 5,
        frozenset({("workload", "-"), ("direction", "out")}): 2,
    }
    assert value(found, "penstock_denied_bytes_total", workload="a", direction="out") == 300


def test_a_large_set_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "AT_ONCE", 20)
    host = Host({**TWO, "rules.d/c.yaml": rules("c", MANY, "[{from: 192.0.2.1, ports: [80]}]")}).start()
    before = len(host.done)
    found = measured(host)
    assert {name for sets in read(host, before) for name in sets} == {"out4_a", "out4_b", "in4_c"}
    assert value(found, "penstock_rules_uncounted") == 1
    told = map(dict, found["penstock_rule_bytes_total"].samples)
    assert {(one["workload"], one["direction"]) for one in told} == {("a", "out"), ("b", "out"), ("c", "in")}


def test_many_sets_are_read_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "SETS_AT_ONCE", 2)
    host = Host({**TWO, "rules.d/c.yaml": rules("c", "[{to: 192.0.2.1, ports: [80]}]")}).start()
    before = len(host.done)
    measured(host)
    found = measured(host)
    assert read(host, before) == [("out4_a", "out4_b"), ("out4_c", "out4_a")]
    assert len(found["penstock_rule_packets_total"].samples) == 3


def test_a_look_has_a_bound_of_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "AT_ONCE", 40)
    files = {f"rules.d/{name}.yaml": rules(name, MANY) for name in "abc"}
    host = Host(files).start()
    before = len(host.done)
    for _ in range(3):
        measured(host)
    assert read(host, before) == [("out4_a",), ("out4_b",), ("out4_c",)]


def test_in_all_there_is_a_bound() -> None:
    made = measuring.Measuring(Host(ONE).engine.view, Host(ONE).engine._naming.learned)
    each = 500
    sets = tuple(
        AddressSet(f"out4_{n:03}", 4, {Element(m, m, 6, 1, 1): "r" for m in range(each)}) for n in range(100)
    )
    held = in_force(Host(ONE).start())
    ruleset = replace(held.ruleset, sets=sets)
    assert sum(len(found.elements) for found in made._sets(ruleset)) == measuring.IN_ALL


def test_so_many_rules_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "RULES", 1)
    found = measured(Host(TWO).start())
    assert len(found["penstock_rule_packets_total"].samples) == 1
    assert value(found, "penstock_rules_uncounted") == 1


def test_rules_by_name_are_not_counted() -> None:
    egress = "[{to: example.org}, {to: 192.0.2.1, ports: [443]}]"
    found = measured(Host({"rules.d/a.yaml": rules("a", egress)}).start())
    assert len(found["penstock_rule_packets_total"].samples) == 1
    assert value(found, "penstock_rules_uncounted") == 1


def test_grants_and_findings_are_told() -> None:
    host = Host(ONE).start()
    assert value(measured(host), "penstock_grants") == 0
    said = {"workload": "a", "direction": "out", "peer": "203.0.113.9", "ports": "443", "seconds": 3600}
    host.ask("grant", **said, until=0, reason="to see", wide=0, user="")
    host.failing = always("SaveBooks", error="full")
    host.kernel.counters["denied_out_a"] = 1
    host.tick()
    found = measured(host)
    assert value(found, "penstock_grants") == 1
    assert 3500 < value(found, "penstock_grant_left_seconds", workload="a", owner="anna") <= 3600
    assert value(found, "penstock_findings", code="state-unwritable") == 1
    [line] = [line for line in host.lines if line.kind == "finding" and "full" in line.text]
    assert line.fields["FINDING"] == "state-unwritable"


def test_what_is_denied_is_told_to_the_journal() -> None:
    host = Host(ONE).start()
    host.kernel.counters["denied_out_a"] = 4
    for _ in range(4):
        host.tick()
    [line] = host.told_blocks
    assert (line.kind, line.fields["WORKLOAD"], line.fields["UNLOGGED"]) == ("denied", "a", "4")
    host.feed(events.Stopping(host.now))
    host.settle()
    assert len(host.told_blocks) == 1, "it did not grow"


def test_nothing_is_told_after_the_end() -> None:
    host = Host(ONE).start()
    measured(host)
    host.feed(events.Stopping(host.now))
    host.settle()
    assert host.metrics == b""
    late = host.engine.handle(events.Hits(host.now + timedelta(seconds=1), None, {}))
    assert not any(isinstance(effect, effects.WriteMetrics) for effect in late)
