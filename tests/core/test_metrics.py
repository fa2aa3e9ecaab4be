"""Metrics as text."""

from __future__ import annotations

import pytest

from exposition import FACTS, GRANT, STATUS, WORKLOAD, parse, value
from penstock.core import metrics
from penstock.core.metrics import METRICS, Facts, Tally


def test_everything_is_told() -> None:
    found = parse(metrics.text(STATUS, FACTS))
    assert list(found) == list(METRICS)
    assert {name: (family.kind, family.help) for name, family in found.items()} == METRICS
    assert value(found, "penstock_info", version="1.0", backend="nft") == 1
    assert value(found, "penstock_start_time_seconds") == 1772362800
    assert value(found, "penstock_written_time_seconds") == 1772366400
    assert value(found, "penstock_policy_info", hash="0123") == 1
    assert value(found, "penstock_policy_applied_time_seconds") == 1772362801
    assert value(found, "penstock_policy_unconfirmed") == 0
    assert value(found, "penstock_kernel_agrees") == 1
    assert value(found, "penstock_kernel_checked_time_seconds") == 1772366398
    assert value(found, "penstock_workload_info", workload="a", mode="enforce", state="enforcing") == 1
    assert value(found, "penstock_workload_in_force", workload="a") == 1
    assert value(found, "penstock_workload_processes", workload="a") == 2
    assert value(found, "penstock_workload_outside", workload="a") == 0
    assert value(found, "penstock_denied_packets_total", workload="a", direction="out") == 5
    assert value(found, "penstock_denied_bytes_total", workload="a", direction="out") == 300
    assert value(found, "penstock_unlogged_packets_total", workload="a") == 7
    assert value(found, "penstock_rule_packets_total", workload="a", direction="out", rule="egress-1") == 11
    assert value(found, "penstock_rule_bytes_total", rule="egress-1") == 1100
    assert value(found, "penstock_rules_uncounted") == 3
    assert value(found, "penstock_log_records_lost_total") == 1
    assert value(found, "penstock_log_records_malformed_total") == 2
    assert value(found, "penstock_learned_addresses", workload="a") == 4
    assert value(found, "penstock_findings", code="root", severity="info") == 2
    assert value(found, "penstock_findings", severity="error") == 1
    assert value(found, "penstock_findings", severity="warning") == 0, "none is said too"
    assert value(found, "penstock_grants") == 1
    assert value(found, "penstock_grant_left_seconds", grant="grant-0123abcd", owner="anna") == 1800


@pytest.mark.parametrize(
    ("agrees", "state", "confirm"), [(False, "degraded", "2026-03-01T12:00:30Z"), (None, "unenforced", None)]
)
def test_what_is_not_known_is_not_good(agrees: bool | None, state: str, confirm: str | None) -> None:
    changed = {
        "kernel": {**STATUS["kernel"], "agrees": agrees},
        "policy": {**STATUS["policy"], "confirm_until": confirm},
        "workloads": [{**WORKLOAD, "egress": state}],
    }
    found = parse(metrics.text({**STATUS, **changed}, FACTS))
    assert value(found, "penstock_kernel_agrees") == 0
    assert value(found, "penstock_workload_in_force") == 0
    assert value(found, "penstock_policy_unconfirmed") == (confirm is not None)


def test_without_a_policy() -> None:
    nothing = {"hash": None, "applied": None, "confirm_until": None}
    kernel = {"backend": "nft", "agrees": None, "checked": None}
    status = {**STATUS, "policy": nothing, "kernel": kernel, "workloads": [], "grants": [], "findings": []}
    found = parse(metrics.text(status, Facts()))
    assert not {"penstock_policy_info", "penstock_policy_applied_time_seconds"} & found.keys()
    assert "penstock_kernel_checked_time_seconds" not in found
    assert value(found, "penstock_grants") == 0


@pytest.mark.parametrize("text", ['a"b', "a\\b", "a\nb", "a\\", '"', "\\n", 'x",workload="b', "a\x1b[31m", "ö"])
def test_no_text_breaks_out_of_its_label(text: str) -> None:
    status = {**STATUS, "grants": [{**GRANT, "owner": text}]}
    found = parse(metrics.text(status, FACTS))
    [(labels, _)] = found["penstock_grant_left_seconds"].samples.items()
    assert dict(labels).keys() == {"grant", "workload", "owner"}
    safe = text.replace("\n", "\\n").replace("\x1b", "\\x1b")
    assert dict(labels)["owner"] == safe


def test_what_came_since() -> None:
    assert Tally(5, 300).since(Tally(2, 100)) == Tally(3, 200)
    assert Tally(5, 300).since(Tally(7, 400)) == Tally(5, 300), "a new counter"
    assert Tally(1, 2).plus(Tally(3, 4)) == Tally(4, 6)
