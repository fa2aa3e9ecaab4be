"""`penstock status` as an object: the engine's knowledge in the words of the published schema.

"enforcing" is said only when the kernel was read back and agrees, cgroup matching was proven by a packet, the
workload's cgroup is bound, and no process of it was found elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256

import penstock
from penstock.core import chains, exposure, findings
from penstock.core.books import Books
from penstock.core.events import Examined, Files
from penstock.core.exposure import Exposure
from penstock.core.match import places
from penstock.core.parse import PRESETS
from penstock.core.policy import Direction, Mode, Workload
from penstock.core.slices import slice_of
from penstock.core.text import printable, time_text
from penstock.core.view import InForce, Trial, View
from penstock.core.wire import Json

WORDS = {Mode.OBSERVE: "observing", Mode.ENFORCE: "enforcing", Mode.LOCK: "locked"}
HOW = ("slice", "run", "adopted", "in-place")
"""How a process became part of a workload, the strongest way first."""

IMPLICIT = (
    "a workload may talk to itself, over any address of this host",
    "answers to clients that an ingress rule allows, while it allows them",
    "answers from servers that an egress rule allowed to call, and ICMP errors about connections that are allowed",
    "packets that have no socket: the SYN-ACKs, TIME_WAIT and ICMP that the kernel sends by itself",
)


def build(
    event: Examined,
    view: View,
    in_force: InForce | None,
    books: Books,
    trial: Trial | None = None,
    grants: Sequence[Json] = (),
) -> Json:
    """The object that `status --json` prints; the daemon's pid is filled in by whoever sends it."""
    exposed = None
    if in_force and view.listeners is not None:
        exposed = exposure.of_workloads(in_force.policy, view.listeners, event.now)
    return seen(event.now, event.config, view, in_force, books, trial, grants, exposed)


def seen(
    now: datetime,
    config: Files | None,
    view: View,
    in_force: InForce | None,
    books: Books,
    trial: Trial | None,
    grants: Sequence[Json],
    exposed: Mapping[str, Sequence[Exposure]] | None = None,
) -> Json:
    """The same from what is known at `now`; without `exposed`, nothing of what listens."""
    workloads = [in_force.policy.workloads[name] for name in sorted(in_force.policy.workloads)] if in_force else []
    loose = unbound(view, in_force)
    return {
        "v": 1,
        "time": time_text(now),
        "daemon": {
            "running": True,
            "pid": None,
            "version": penstock.__version__,
            "since": time_text(view.started),
        },
        "policy": {
            "hash": in_force.policy.hash if in_force else None,
            "applied": time_text(datetime.fromtimestamp(in_force.applied.at, UTC)) if in_force else None,
            "pending_files": _pending(in_force, config),
            "confirm_until": time_text(trial.until if trial else None),
        },
        "kernel": {"backend": "nft", "agrees": view.agrees, "checked": time_text(view.checked)},
        "workloads": [
            {**_workload(workload, view, in_force, books, now, loose), **_listening(exposed, workload.name)}
            for workload in workloads
        ],
        "implicit": [*IMPLICIT, *_resolver(in_force)],
        "grants": list(grants),
        "findings": [*findings.all_of(view, in_force, now), *findings.of_listeners(exposed or {}, in_force)],
    }


def _listening(exposed: Mapping[str, Sequence[Exposure]] | None, name: str) -> Json:
    return {"listening": None if exposed is None else [one.as_json() for one in exposed[name]]}


def _resolver(in_force: InForce | None) -> list[str]:
    """What the resolver is allowed."""
    if in_force is None or not in_force.ruleset.by_name:
        return []
    servers = ", ".join(f"{server.address}:{server.port}" for server in in_force.upstreams or ()) or "no server"
    whose = "look-ups of workloads with rules by name or presets"
    return [f"{whose}, to penstock's own resolver, and of that to {servers}"]


def _pending(in_force: InForce | None, config: Files | None) -> int | None:
    """How many files differ from what is applied; None when they cannot be read."""
    if config is None or in_force is None:
        return None
    files, presets = in_force.applied.files, in_force.applied.presets
    contents = {**{PRESETS + name: data for name, data in presets.items()}, **files}
    # A preset that is not used any more is no difference of its own: a file says so.
    return sum(
        name not in contents or sha256(contents[name]).hexdigest() != config.digests.get(name)
        for name in files.keys() | config.digests.keys()
    )


def _workload(
    workload: Workload, view: View, in_force: InForce | None, books: Books, now: datetime, loose: Collection[str]
) -> Json:
    name, word = workload.name, state_word(workload, view, in_force, loose)
    processes = len(view.processes.get(name, ()))
    return {
        "name": name,
        "mode": workload.mode.value,
        "until": time_text(workload.until),
        "egress": word,
        "ingress": word,
        "enrolment": _enrolment(view, name),
        "processes": processes,
        "outside": sum(stray.workload == name for stray in view.strays),
        "denied": sum(view.counters.get(chains.counter_name(d, name), (0, 0))[0] for d in Direction),
        "unlogged": books.unlogged(name),
        "blocks_1h": books.last_hour(name, now.timestamp()),
        "units": [
            {
                "unit": printable(group.unit),
                "cgroup": printable(group.cgroup),
                "how": group.how,
                "processes": group.processes,
            }
            for group in view.groups.get(name, ())
        ],
    }


def _enrolment(view: View, name: str) -> str:
    """The weakest way in which a process of the workload became part of it."""
    ways = {group.how for group in view.groups.get(name, ()) if group.processes}
    return max(ways, key=HOW.index) if ways else "none"


def state_word(workload: Workload, view: View, in_force: InForce | None, loose: Collection[str]) -> str:
    """One of enforcing, observing, locked, unenforced, degraded.  `loose` is what `unbound` found."""
    if in_force is None or slice_of(workload.name) not in in_force.cgroups:
        return "unenforced"
    outside = any(stray.workload == workload.name for stray in view.strays)
    if view.agrees is not True or not view.proven or outside or workload.name in loose:
        return "degraded"
    return WORDS[workload.mode]


def unbound(view: View, in_force: InForce | None) -> frozenset[str]:
    """The workloads of which a unit runs where it is not bound."""
    if in_force is None:
        return frozenset()
    wanted = places(in_force.policy, view.units)
    ids = {unit.path: unit.id for unit in view.units}
    return frozenset(name for path, name in wanted.items() if in_force.cgroups.get(path) != ids[path])


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
