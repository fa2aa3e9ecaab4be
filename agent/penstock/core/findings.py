"""What weakens the protection of a workload, each with a code, a severity and a remedy: data, made from `View`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import chain

from penstock.core import lint_literal
from penstock.core.containers import ENGINES
from penstock.core.events import Group, Seen
from penstock.core.exposure import Exposure
from penstock.core.match import Claims
from penstock.core.policy import Mode, Rule
from penstock.core.slices import restart_command, slice_unit
from penstock.core.text import printable, time_text
from penstock.core.unenforced import unenforced
from penstock.core.view import InForce, View
from penstock.core.wire import Json

ALARM_SHOWN = timedelta(hours=1)
PORTS_SHOWN = 8
BY_ITSELF = "it is tried again by itself"
TROUBLES = {
    "Record": ("log-unwritable", BY_ITSELF),
    "CommitState": ("state-unwritable", "until then a restart brings back the policy before it: penstock apply"),
    "SaveBooks": ("state-unwritable", BY_ITSELF),
    "KeepGrants": ("state-unwritable", "until then a restart brings back what was lent before; make room"),
    "Account": ("log-unwritable", "what was lent since is in the daemon's messages alone"),
    "WriteMetrics": ("metrics-unwritable", BY_ITSELF),
    "TellBlocks": ("journal-unwritable", "the block log has it all the same: penstock blocks"),
    "KeepFloor": ("floor-unwritable", "make room; until then a boot loads an older policy, or denies all"),
    "ReadState": ("state-damaged", "see what is in force: penstock plan; then: penstock apply"),
}
"""Findings for effects that do not work, and what helps."""

ANSWERERS = {
    "/run/systemd/resolve/io.systemd.Resolve": "systemd-resolved",
    "/run/nscd/socket": "nscd",
    "/run/avahi-daemon/socket": "avahi",
    "/run/dbus/system_bus_socket": "whoever is on the system bus",
}
"""Sockets at which names are looked up without a packet of the one who asks."""


def finding(code: str, severity: str, text: str, remedy: str, workload: str | None = None) -> Json:
    """Something that weakens the protection, and what to do about it."""
    return {"code": code, "severity": severity, "workload": workload, "text": text, "remedy": remedy}


def all_of(view: View, in_force: InForce | None, now: datetime) -> Iterator[Json]:
    """All findings."""
    kernel = _of_kernel(view, now) if in_force else ()
    enrolment = _of_enrolment(view, in_force) if in_force else ()
    names = _of_names(view, in_force) if in_force else ()
    processes = (_of_processes(view), _of_look_alikes(view, in_force), _of_bypasses(view))
    policy = (_of_policy(view, in_force), _of_literal(in_force, now))
    return chain(kernel, *processes, enrolment, names, *policy, _of_files(view), _of_log(view))


def _of_kernel(view: View, now: datetime) -> Iterator[Json]:
    if view.agrees is False:
        text = f"the kernel does not hold the policy: {view.disagreement}"
        yield finding("kernel-disagrees", "error", text, "it is being repaired; if it stays: penstock apply")
    if view.agrees is None:
        text = f"the kernel could not be checked: {view.disagreement}"
        yield finding("kernel-unknown", "error", text, "see the daemon's messages")
    if not view.proven:
        text = f"matching by cgroup is not proven on this kernel: {view.proof_error}"
        yield finding("not-proven", "error", text, "nothing is called enforcing until it is")
    for when, what in view.alarms:
        if now - when < ALARM_SHOWN:
            text = f"{time_text(when)}: {printable(what)}; packets that left until the repair were not counted"
            remedy = "find out who did it; another tool must leave the table `inet penstock` alone"
            yield finding("foreign-change", "warning", text, remedy)


def _of_processes(view: View) -> Iterator[Json]:
    for stray in view.strays:
        name, comm, place = stray.workload, printable(stray.comm, 32), printable(stray.cgroup)
        text = f"process {stray.pid} ({comm}) left its slice for {place}"
        yield finding("outside", "error", text, f"end it and start it again with: penstock run {name}", name)
    for name, processes in view.processes.items():
        if any(process.uid == 0 for process in processes):
            text = "runs as root: root can leave its cgroup, and with it the rules"
            yield finding("root", "info", text, f"User= in its unit, or penstock run {name} --user NAME", name)
        away = [process for process in processes if process.elsewhere]
        if away:
            who = f"process {away[0].pid} ({printable(away[0].comm, 32)})"
            more = f" and {len(away) - 1} more" if len(away) > 1 else ""
            text = f"{who}{more}: in a network namespace of its own, where no rule of ours holds"
            remedy = "harmless if nothing leads out of it: ip link in there; else take it out of its unit"
            yield finding("other-network", "warning", text, remedy, name)
        yield from _of_clients(name, processes, view.groups.get(name, ()))


def _of_clients(name: str, processes: Sequence[Seen], groups: Sequence[Group]) -> Iterator[Json]:
    """Whoever only has a container made: that is somebody else's child, in a cgroup of its own."""
    clients = [process for process in processes if process.comm in ENGINES]
    if clients and not any(group.containers for group in groups):
        who = f"process {clients[0].pid} ({printable(clients[0].comm, 32)})"
        text = f"{who} has to do with a container, and none is in the workload: what it started is not governed"
        remedy = f"--cgroups=split for podman in a unit, or --cgroup-parent='{slice_unit(name)}'"
        yield finding("container-outside", "warning", text, remedy, name)


def _of_look_alikes(view: View, in_force: InForce | None) -> Iterator[Json]:
    """What looks like a server and is nobody's.

    The look may be older than the policy: what that claims is gone, or `unbound-unit` tells of it.
    """
    known = Claims(in_force.policy) if in_force else None
    for found in view.look_alikes:
        unit = _unit_of(found.cgroup)
        if unit and known and known.of(unit):
            continue
        who = f"process {found.pid} ({printable(found.comm, 32)}) in {printable(found.cgroup)}"
        text = f"{who} looks like {found.server}, and no workload governs it"
        service = unit.endswith(".service")
        remedy = f"penstock protect {printable(unit)}" if service else f"penstock adopt {found.pid}"
        yield finding("look-alike", "warning", text, remedy)


def _unit_of(cgroup: str) -> str:
    """The unit of the host whose cgroup that is, or empty: below a user or a service there are others."""
    *above, last = cgroup.strip("/").split("/")
    return last if above and all(part.endswith(".slice") for part in above) else ""


def _of_bypasses(view: View) -> Iterator[Json]:
    for found in view.bypasses:
        who = f"process {found.pid} ({printable(found.comm, 32)})"
        others = f"{ANSWERERS.get(found.path, 'somebody else')} ({printable(found.path)})"
        text = f"{who} may have any name looked up by {others}, past its rules"
        remedy = _hiding(view.groups.get(found.workload, ()))
        yield finding("name-bypass", "warning", text, remedy, found.workload)


def _hiding(groups: Sequence[Group]) -> str:
    """Only a unit can be told what its processes see."""
    units = [group.unit for group in groups if group.how in ("slice", "in-place")]
    unit = printable(units[0]) if len(units) == 1 else "UNIT"
    remedy = f"penstock protect {unit} hides it, from the unit's next start on"
    if all(group.how not in ("run", "adopted") for group in groups):
        return remedy
    plain = "what `penstock run` or `adopt` brought in sees it as before: make a unit of it, then protect that"
    return f"{remedy}; {plain}" if units else plain


def _of_enrolment(view: View, in_force: InForce) -> Iterator[Json]:
    known = Claims(in_force.policy)
    for unit in view.units:
        names = known.of(unit.name)
        if len(names) > 1:
            text = f"{printable(unit.name)} is matched by {', '.join(names)}; it is bound to the first"
            yield finding("ambiguous", "error", text, "make the globs in `match` exclude each other", names[0])
        if names and in_force.cgroups.get(unit.path) != unit.id:
            text = f"{printable(unit.name)} is not bound yet"
            yield finding("unbound-unit", "error", text, BY_ITSELF, names[0])
    for name, groups in view.groups.items():
        for group in groups:
            if group.how == "in-place":
                yield _in_place(name, group)
    for name, cgroup, uid in view.delegated:
        text = f"{printable(cgroup)} belongs to user {uid}, who may move processes out of it"
        yield finding("delegated", "warning", text, "take Delegate= and the owner away from that slice", name)


def _in_place(name: str, group: Group) -> Json:
    """A unit that runs outside of its slice is governed, and open for a moment each time it starts."""
    unit = printable(group.unit)
    if group.dropin == "ignored":
        text = f"{unit} was started since it has its slice, and runs in {printable(group.cgroup)} all the same"
        remedy = f"end what is left of it, then: systemctl stop {unit}; systemctl start {unit}"
        return finding("slice-ignored", "error", text, remedy, name)
    text = f"{unit} is bound where it is ({printable(group.cgroup)}): open for a moment whenever it starts"
    remedies = {
        "armed": f"its slice is ready: {restart_command(unit)}",
        "pending": f"penstock apply gives it its slice; then: {restart_command(unit)}",
    }
    return finding("in-place", "warning", text, remedies.get(group.dropin, f"penstock protect {unit}"), name)


def _of_names(view: View, in_force: InForce) -> Iterator[Json]:
    """What keeps look-ups from being answered.  Nothing opens because of it."""
    by_name, state = in_force.ruleset.by_name, view.resolver
    if not by_name:
        return
    deaf = [name for name in by_name if name not in state.ports]
    if state.error or not state.up or deaf:
        who = f" of {', '.join(deaf)}" if deaf and state.up else ""
        text = f"look-ups{who} are not answered: {printable(state.error) or 'the resolver does not run'}"
        yield finding("resolver-down", "error", text, BY_ITSELF)
    if not in_force.upstreams:
        text = "look-ups are not answered: this host has no name server"
        yield finding("no-upstream", "error", text, "name one in /etc/resolv.conf, or in `dns: upstream:`")
    for (code, workload), trouble in state.troubles.items():
        text = f"{printable(code, 32)}: {printable(trouble)}"
        yield finding("lookups", "warning", text, BY_ITSELF, workload if workload in by_name else None)


def _of_policy(view: View, in_force: InForce | None) -> Iterator[Json]:
    if in_force is None:
        return
    written_in = {workload.place.file: name for name, workload in in_force.policy.workloads.items()}
    for problem in unenforced(in_force.policy):
        text = f"{problem.place}: {problem.message}"
        yield finding("not-yet-enforced", "warning", text, problem.hint, written_in.get(problem.place.file))


def _of_literal(in_force: InForce | None, now: datetime) -> Iterator[Json]:
    """What nothing opens by chance, and a rule opens on purpose: said as long as it does."""
    for workload in in_force.policy.workloads.values() if in_force else ():
        if found := lint_literal.addresses(workload, now):
            remedy = "give the workload credentials of its own, then take the rule out"
            yield finding("metadata-open", "warning", _opens(found), remedy, workload.name)
        if found := lint_literal.ports(workload, now):
            remedy = "let the workload ask something that offers less, then take the rule out"
            yield finding("control-port-open", "warning", _opens(found), remedy, workload.name)


def _opens(found: list[tuple[Rule, str]]) -> str:
    rule, what = found[0]
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    # What is lent stands in no file.
    where = f" ({printable(rule.place.file)}:{rule.place.line})" if rule.place.file else ""
    return f"rule {rule.id}{where} opens {what}{more}"


def of_listeners(exposed: Mapping[str, Sequence[Exposure]], in_force: InForce | None) -> Iterator[Json]:
    """Ports that are open and that no rule is about: somebody forgot a rule, or does not know what listens."""
    for name, found in exposed.items():
        ports = list(dict.fromkeys(one.port for one in found if not one.rules))
        if not ports or in_force is None:
            continue
        more = f" and {len(ports) - PORTS_SHOWN} more" if len(ports) > PORTS_SHOWN else ""
        what = f"port{'s' if len(ports) > 1 else ''} {', '.join(ports[:PORTS_SHOWN])}{more}"
        observed = in_force.policy.workloads[name].mode is Mode.OBSERVE
        who = "once it is enforced, nobody but itself reaches" if observed else "nobody but itself reaches"
        text = f"listens on {what}, and no ingress rule says so: {who} {'them' if len(ports) > 1 else 'it'}"
        remedy = "say `from:` whom it is for, or `from: []` for nobody"
        yield finding("listens-without-rule", "info", text, remedy, name)


def _of_files(view: View) -> Iterator[Json]:
    if view.config_errors:
        text = f"the rule files have {view.config_errors} errors; what was applied last stays in force"
        yield finding("files-broken", "warning", text, "penstock check /etc/penstock")
    word, _, reason = view.floor.partition(" ")
    if word in ("deny-all", "failed"):
        what = "denied every workload everything" if word == "deny-all" else "loaded nothing"
        text = f"before the daemon started the floor {what}: {printable(reason)}"
        yield finding("floor-fallback", "warning", text, "it was written anew; see: journalctl -u penstock-floor")


def _of_log(view: View) -> Iterator[Json]:
    for effect, error in view.troubles.items():
        code, remedy = TROUBLES.get(effect, ("trouble", BY_ITSELF))
        yield finding(code, "warning", error, remedy)
    if view.lost:
        text = f"{view.lost} log records of denied packets were lost; the packets are counted all the same"
        yield finding("log-loss", "warning", text, "see `unlogged` in the block log")
