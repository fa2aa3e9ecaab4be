"""`penstock status` as an object: the engine's knowledge in the words of the published schema.

"enforcing" is said only when the kernel was read back and agrees, cgroup matching was proven by a packet, the
workload's cgroup is bound, and no process of it was found elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import penstock
from penstock.core import chains
from penstock.core.books import Books
from penstock.core.events import Examined
from penstock.core.policy import Direction, Mode, Workload
from penstock.core.slices import slice_of
from penstock.core.text import printable
from penstock.core.unenforced import unenforced
from penstock.core.view import InForce, View
from penstock.core.wire import Json

WORDS = {Mode.OBSERVE: "observing", Mode.ENFORCE: "enforcing", Mode.LOCK: "locked"}
ALARM_SHOWN = timedelta(hours=1)

IMPLICIT = (
    "a workload may talk to itself, over any address of this host",
    "answers to clients that an ingress rule allows, while it allows them",
    "answers from servers that an egress rule allowed to call, and ICMP errors about connections that are allowed",
    "packets that have no socket: the SYN-ACKs, TIME_WAIT and ICMP that the kernel sends by itself",
)


BY_ITSELF = "it is tried again by itself"
TROUBLES = {
    "Record": ("log-unwritable", BY_ITSELF),
    "CommitState": ("state-unwritable", "until then a restart brings back the policy before it: penstock apply"),
    "SaveBooks": ("state-unwritable", BY_ITSELF),
}
"""Findings for effects that do not work, and what helps."""


def build(event: Examined, view: View, in_force: InForce | None, books: Books) -> Json:
    """The object that `status --json` prints; the daemon's pid is filled in by whoever sends it."""
    now = event.now
    workloads = [in_force.policy.workloads[name] for name in sorted(in_force.policy.workloads)] if in_force else []
    return {
        "v": 1,
        "time": _time(now),
        "daemon": {"running": True, "pid": None, "version": penstock.__version__, "since": _time(view.started)},
        "policy": {
            "hash": in_force.policy.hash if in_force else None,
            "applied": _time(datetime.fromtimestamp(in_force.applied.at, UTC)) if in_force else None,
            "pending_files": _pending(in_force, event.config),
        },
        "kernel": {"backend": "nft", "agrees": view.agrees, "checked": _time(view.checked)},
        "workloads": [_workload(workload, view, in_force, books, now) for workload in workloads],
        "implicit": list(IMPLICIT),
        "grants": [],
        "findings": [*_of_kernel(view, in_force, now), *_of_workloads(view, in_force), *_of_log(view)],
    }


def _pending(in_force: InForce | None, config: Mapping[str, str] | None) -> int | None:
    """How many files differ from what is applied; None when they cannot be read."""
    if config is None or in_force is None:
        return None
    applied = {name: sha256(data).hexdigest() for name, data in in_force.applied.files.items()}
    return sum(applied.get(name) != config.get(name) for name in applied.keys() | config.keys())


def _workload(workload: Workload, view: View, in_force: InForce | None, books: Books, now: datetime) -> Json:
    name, word = workload.name, state_word(workload, view, in_force)
    processes = len(view.processes.get(name, ()))
    return {
        "name": name,
        "mode": workload.mode.value,
        "until": None,
        "egress": word,
        "ingress": word,
        "enrolment": "run" if processes else "none",
        "processes": processes,
        "outside": sum(stray.workload == name for stray in view.strays),
        "denied": sum(view.counters.get(chains.counter_name(d, name), (0, 0))[0] for d in Direction),
        "unlogged": books.unlogged(name),
        "blocks_1h": books.last_hour(name, now.timestamp()),
    }


def state_word(workload: Workload, view: View, in_force: InForce | None) -> str:
    """One of enforcing, observing, locked, unenforced, degraded."""
    if in_force is None or slice_of(workload.name) not in in_force.cgroups:
        return "unenforced"
    outside = any(stray.workload == workload.name for stray in view.strays)
    if view.agrees is not True or not view.proven or outside:
        return "degraded"
    return WORDS[workload.mode]


def ready(view: View, in_force: InForce | None, name: str) -> Json:
    """Whether a process may be put into the workload now: its rules are in the kernel, read back and proven."""
    reason = ""
    if in_force is None:
        reason = "no policy is in force yet"
    elif name not in in_force.policy.workloads:
        reason = "the applied policy has no such workload"
    elif view.agrees is not True:
        reason = f"the kernel does not agree: {view.disagreement or 'not checked'}"
    elif not view.proven:
        reason = f"matching by cgroup is not proven: {view.proof_error}"
    elif slice_of(name) not in in_force.cgroups:
        reason = "its slice is missing"
    return {"ready": not reason, "reason": reason}


def _of_kernel(view: View, in_force: InForce | None, now: datetime) -> Iterator[Json]:
    if in_force is None:
        return
    if view.agrees is False:
        text = f"the kernel does not hold the policy: {view.disagreement}"
        yield finding("kernel-disagrees", "error", text, "it is being repaired; if it stays: penstock apply")
    if view.agrees is None:
        text = f"the kernel could not be checked: {view.disagreement}"
        yield finding("kernel-unknown", "error", text, "see the daemon's messages")
    if not view.proven:
        text = f"matching by cgroup is not proven on this kernel: {view.proof_error}"
        yield finding("not-proven", "error", text, "nothing is called enforcing until it is")
    for when, text in view.alarms:
        if now - when < ALARM_SHOWN:
            remedy = "find out who did it; another tool must leave the table `inet penstock` alone"
            yield finding("foreign-change", "warning", f"{_time(when)}: {printable(text)}", remedy)


def _of_workloads(view: View, in_force: InForce | None) -> Iterator[Json]:
    for stray in view.strays:
        name, comm, place = stray.workload, printable(stray.comm, 32), printable(stray.cgroup)
        text = f"process {stray.pid} ({comm}) left its slice for {place}"
        yield finding("outside", "error", text, f"end it and start it again with: penstock run {name}", name)
    if in_force is None:
        return
    written_in = {workload.place.file: name for name, workload in in_force.policy.workloads.items()}
    for problem in unenforced(in_force.policy):
        text = f"{problem.place}: {problem.message}"
        yield finding("not-yet-enforced", "warning", text, problem.hint, written_in.get(problem.place.file))
    for name, processes in view.processes.items():
        if any(process.uid == 0 for process in processes):
            text = "runs as root: root can leave its cgroup, and with it the rules"
            yield finding("root", "info", text, f"penstock run {name} --user NAME", name)


def _of_log(view: View) -> Iterator[Json]:
    for effect, error in view.troubles.items():
        code, remedy = TROUBLES.get(effect, ("trouble", BY_ITSELF))
        yield finding(code, "warning", error, remedy)
    if view.lost:
        text = f"{view.lost} log records of denied packets were lost; the packets are counted all the same"
        yield finding("log-loss", "warning", text, "see `unlogged` in the block log")


def finding(code: str, severity: str, text: str, remedy: str, workload: str | None = None) -> Json:
    """Something that weakens the protection, and what to do about it."""
    return {"code": code, "severity": severity, "workload": workload, "text": text, "remedy": remedy}


def _time(when: datetime | None) -> str | None:
    return None if when is None else when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
