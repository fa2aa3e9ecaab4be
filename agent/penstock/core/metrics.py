"""Metrics, as node_exporter's textfile collector reads them: what `status` says and the kernel counted, as text.

The format is Prometheus's text exposition format 0.0.4.  Label values come from rule files and processes: they are
made printable and escaped.  Counters start anew with the kernel's table, or the daemon, as counters may.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from penstock.core.status_words import NOT_IN_FORCE
from penstock.core.text import printable
from penstock.core.wire import Json

FILE = "penstock.prom"

METRICS: Mapping[str, tuple[str, str]] = {
    "penstock_info": ("gauge", "1, with the version and the firewall that is used."),
    "penstock_start_time_seconds": ("gauge", "When the daemon started."),
    "penstock_written_time_seconds": ("gauge", "When this file was written: every 15 s while the daemon lives."),
    "penstock_policy_info": ("gauge", "1, with the hash of the policy that is in force."),
    "penstock_policy_applied_time_seconds": ("gauge", "When that policy was applied."),
    "penstock_policy_unconfirmed": ("gauge", "1 while a policy waits for penstock confirm."),
    "penstock_kernel_agrees": ("gauge", "1 if the kernel holds the policy; 0 if not, or if it is not known."),
    "penstock_kernel_checked_time_seconds": ("gauge", "When that was looked at last."),
    "penstock_workload_info": ("gauge", "1, with the mode, the state and the enrolment of each workload."),
    "penstock_workload_in_force": ("gauge", "1 if what the policy says of the workload is in force."),
    "penstock_workload_processes": ("gauge", "Processes of the workload."),
    "penstock_workload_outside": ("gauge", "Processes that left the workload."),
    "penstock_denied_packets_total": ("counter", "Packets that no rule allows; when only observed, they passed."),
    "penstock_denied_bytes_total": ("counter", "Bytes of these packets."),
    "penstock_unlogged_packets_total": ("counter", "Denied packets that were counted and not logged."),
    "penstock_rule_packets_total": ("counter", "Packets that a rule let through."),
    "penstock_rule_bytes_total": ("counter", "Bytes of these packets."),
    "penstock_rules_uncounted": ("gauge", "Rules without such numbers: by name, or too many to be read."),
    "penstock_log_records_lost_total": ("counter", "Log records that were lost; the packets are counted."),
    "penstock_log_records_malformed_total": ("counter", "Log records that made no sense."),
    "penstock_learned_addresses": ("gauge", "Addresses that a workload learned from its look-ups."),
    "penstock_findings": ("gauge", "Findings by code and severity."),
    "penstock_grants": ("gauge", "Grants that are live."),
    "penstock_grant_left_seconds": ("gauge", "Time left of a grant."),
}
"""Name -> type and what it says: all that the file can hold."""

SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True, slots=True)
class Tally:
    """Packets and their bytes."""

    packets: int = 0
    bytes: int = 0

    def plus(self, other: Tally) -> Tally:
        return Tally(self.packets + other.packets, self.bytes + other.bytes)

    def since(self, before: Tally) -> Tally:
        """What came to it since `before`; smaller: the counter is a new one."""
        if self.packets < before.packets or self.bytes < before.bytes:
            return self
        return Tally(self.packets - before.packets, self.bytes - before.bytes)


@dataclass(frozen=True, slots=True)
class Facts:
    """What `status` does not know: keys are (workload, direction), and (workload, direction, rule)."""

    denied: Mapping[tuple[str, str], Tally] = field(default_factory=dict)
    rules: Mapping[tuple[str, str, str], Tally] = field(default_factory=dict)
    uncounted: int = 0
    lost: int = 0
    malformed: int = 0
    learned: Mapping[str, int] = field(default_factory=dict)


Labels = Mapping[str, str]
Sample = tuple[str, Labels, float | int]
_NONE: Labels = {}


def text(status: Json, facts: Facts) -> bytes:
    """The file: each metric with its help and type, in the order of `METRICS`, then its samples."""
    found: dict[str, list[str]] = {name: [] for name in METRICS}
    for name, labels, value in _samples(status, facts):
        found[name].append(f"{name}{_labels(labels)} {value!r}\n")
    lines = []
    for name, samples in found.items():
        if samples:
            kind, words = METRICS[name]
            lines += [f"# HELP {name} {words}\n# TYPE {name} {kind}\n", *samples]
    return "".join(lines).encode()


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    plain = printable(value)
    return plain.replace("\\", "\\\\").replace('"', '\\"')


def _samples(status: Json, facts: Facts) -> Iterator[Sample]:
    yield from _host(status)
    for one in status["workloads"]:
        yield from _workload(one)
    for (workload, direction), tally in facts.denied.items():
        labels = {"workload": workload, "direction": direction}
        yield "penstock_denied_packets_total", labels, tally.packets
        yield "penstock_denied_bytes_total", labels, tally.bytes
    for (workload, direction, rule), tally in facts.rules.items():
        labels = {"workload": workload, "direction": direction, "rule": rule}
        yield "penstock_rule_packets_total", labels, tally.packets
        yield "penstock_rule_bytes_total", labels, tally.bytes
    yield "penstock_rules_uncounted", _NONE, facts.uncounted
    yield "penstock_log_records_lost_total", _NONE, facts.lost
    yield "penstock_log_records_malformed_total", _NONE, facts.malformed
    for workload, count in facts.learned.items():
        yield "penstock_learned_addresses", {"workload": workload}, count
    yield from _findings(status["findings"])
    yield from _grants(status["grants"], status["time"])


def _host(status: Json) -> Iterator[Sample]:
    daemon, policy, kernel = status["daemon"], status["policy"], status["kernel"]
    yield "penstock_info", {"version": daemon["version"], "backend": kernel["backend"]}, 1
    yield from _time("penstock_start_time_seconds", daemon["since"])
    yield from _time("penstock_written_time_seconds", status["time"])
    if policy["hash"] is not None:
        yield "penstock_policy_info", {"hash": policy["hash"]}, 1
    yield from _time("penstock_policy_applied_time_seconds", policy["applied"])
    yield "penstock_policy_unconfirmed", _NONE, int(policy["confirm_until"] is not None)
    yield "penstock_kernel_agrees", _NONE, int(kernel["agrees"] is True)
    yield from _time("penstock_kernel_checked_time_seconds", kernel["checked"])


def _time(name: str, when: str | None) -> Iterator[Sample]:
    if when is not None:
        yield name, _NONE, int(datetime.fromisoformat(when).timestamp())


def _workload(one: Json) -> Iterator[Sample]:
    name = {"workload": one["name"]}
    state = one["egress"]
    yield "penstock_workload_info", {**name, "mode": one["mode"], "state": state, "enrolment": one["enrolment"]}, 1
    yield "penstock_workload_in_force", name, int(state not in NOT_IN_FORCE)
    yield "penstock_workload_processes", name, one["processes"]
    yield "penstock_workload_outside", name, one["outside"]
    yield "penstock_unlogged_packets_total", name, one["unlogged"]


def _findings(findings: Sequence[Json]) -> Iterator[Sample]:
    """Each severity has a sample, also of none: an alert is on a number, not on one that is missing."""
    counts = Counter((one["code"], one["severity"]) for one in findings)
    for (code, severity), count in sorted(counts.items()):
        yield "penstock_findings", {"code": code, "severity": severity}, count
    there = {severity for _, severity in counts}
    for severity in SEVERITIES:
        if severity not in there:
            yield "penstock_findings", {"code": "", "severity": severity}, 0


def _grants(grants: Iterable[Json], now: str) -> Iterator[Sample]:
    live = list(grants)
    yield "penstock_grants", _NONE, len(live)
    for one in live:
        left = (datetime.fromisoformat(one["until"]) - datetime.fromisoformat(now)).total_seconds()
        labels = {"grant": one["id"], "workload": one["workload"], "owner": one["owner"] or ""}
        yield "penstock_grant_left_seconds", labels, max(0, int(left))
