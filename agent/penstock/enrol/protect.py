"""`penstock protect`: first rules for a unit, and the drop-in that gives it a slice.

`plan` looks and refuses; it changes nothing.  `perform` writes, all of it or nothing.  Nothing takes effect by
that: rules do by `penstock apply`, the slice does at the unit's next start after it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import penstock
from penstock.core.language.parse_peer import NAME_OF_OURS
from penstock.core.match import claims
from penstock.core.parse import parse
from penstock.core.policy import RESERVED_NAMES, Plane, Policy
from penstock.core.slices import slice_unit
from penstock.core.text import printable
from penstock.enrol import dropin, systemctl, unit
from penstock.enrol.draft import Draft, Wanted, draft
from penstock.enrol.dropin import DropIn, Hide
from penstock.enrol.running import Listener
from penstock.enrol.unit import Facts
from penstock.errors import PenstockError
from penstock.files import find_file, read_config, read_file, read_presets
from penstock.files import replace as put_file

FLOOR = "penstock-floor.service"
_PACKAGE = Path(penstock.__file__).parent
EXAMPLES = (
    _PACKAGE.parent.parent / "rules" / "examples",  # a checkout
    _PACKAGE / "rules" / "examples",
    Path("/usr/lib/penstock/examples"),
)
_STAND_IN = "{{version: 1, workload: {}, mode: observe, egress: [], ingress: []}}"
_PORT = re.compile(r"--?(?:port|http-port|p)(?:=(\d{1,5}))?\Z")


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.  `in_force` are the workloads of the applied policy; `now` is aware."""

    unit: str
    name: str | None
    config: Path
    in_force: Collection[str]
    now: datetime


@dataclass(frozen=True, slots=True)
class Plan:
    """What was found and what is to be written.  `rules` is None where the workload has its file already."""

    workload: str
    match: str
    units: tuple[Facts, ...]
    rules_path: Path
    rules: Draft | None
    drop_ins: Mapping[str, DropIn | None]  # by unit; None where it is to be written
    stale: frozenset[str]  # units whose drop-in is to be written anew
    in_force: bool  # the workload is in the applied policy
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """What was written, and what counts from now on."""

    written: tuple[Path, ...]
    armed: tuple[str, ...]


def plan(request: Request) -> Plan:
    """Look at everything, and refuse what cannot be.  PenstockError, one sentence."""
    if not systemctl.available():
        raise PenstockError("this host is not run by systemd", hint="start the server with: penstock run")
    if os.geteuid() != 0:
        raise PenstockError("only root may protect a unit", hint="run it with sudo")
    glob, units = unit.look(request.unit)
    if not _is_loaded(FLOOR):
        text = f"penstock is not installed as a service: there is no {FLOOR}"
        raise PenstockError(text, hint="sudo ./systemd/install.sh")
    files = read_config(request.config) if request.config.exists() else {}
    presets = read_presets(request.config)
    policy = _policy(request, glob, files, presets)
    known = _claimed(policy, units, request.name)
    workload = known or _new_name(policy, request, glob)
    _refuse_clash(workload)
    relative = policy.workloads[workload].place.file if known else f"rules.d/{workload}.yaml"
    path = find_file(request.config, relative)
    rules = None
    if not known:
        if os.path.lexists(path):
            raise PenstockError("is there already and is not this workload's", where=str(path))
        clients = sorted(name for name, one in policy.networks.items() if one.plane is Plane.INFERENCE)
        wanted = Wanted(relative, workload, glob, (), clients=tuple(clients))
        rules = _draft(request, units, wanted, files, presets)
        _check_claims(rules.policy, units, workload)
    found = {facts.name: _drop_in(facts.name) for facts in units}
    for name, one in found.items():
        if one is not None and one.workload != workload:
            raise PenstockError(f"puts {name} into the workload {one.workload}", where=str(one.path))
    return Plan(
        workload=workload,
        match=glob,
        units=tuple(units),
        rules_path=path,
        rules=rules,
        drop_ins=found,
        stale=frozenset(facts.name for facts in units if _is_stale(facts, found[facts.name])),
        in_force=workload in request.in_force,
        warnings=tuple(warning for facts in units for warning in _warnings(facts)),
    )


def perform(wanted: Plan) -> Done:
    """Write what the plan says.  PenstockError, and then nothing of it is left, when one file cannot be put."""
    written: list[Path] = []
    made: list[Path] = []
    hidden = {facts.name: dropin.hide(facts.rooted) for facts in wanted.units}
    try:
        for name in (name for name, one in wanted.drop_ins.items() if one is None):
            made += _make(dropin.pending_path(name).parent)
            dropin.write_pending(name, wanted.workload, hidden[name])
            written.append(dropin.pending_path(name))
        if wanted.rules is not None:
            made += _make(wanted.rules_path.parent)
            written.append(wanted.rules_path)
            put_file(wanted.rules_path, wanted.rules.text.encode(), 0o644)
        renewed = tuple(_renewed(wanted, hidden))
    except (OSError, PenstockError) as e:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        for directory in reversed(made):
            dropin.remove_if_empty(directory)
        if isinstance(e, PenstockError):
            raise
        where = printable(str(e.filename or wanted.rules_path), 4096)
        raise PenstockError(f"cannot be written: {e.strerror}; nothing was changed", where=where) from e
    armed = dropin.arm([wanted.workload]) if wanted.in_force else []
    if armed:
        now = {dropin.pending_path(name): dropin.armed_path(name) for name, _ in armed}
        written = [now.get(path, path) for path in written]
    return Done((*written, *renewed), tuple(name for name, _ in armed))


def _is_stale(facts: Facts, one: DropIn | None) -> bool:
    return one is not None and dropin.is_stale(one, dropin.hide(facts.rooted))


def _renewed(wanted: Plan, hidden: Mapping[str, Hide]) -> Iterator[Path]:
    """Last, because what they were is not kept: each counts as it is, written anew or not."""
    done: set[Path] = set()
    for name in sorted(wanted.stale):
        one = wanted.drop_ins[name]
        if one is not None and one.path not in done:  # instances share their template's
            dropin.renew(one, hidden[name])
            done.add(one.path)
            yield one.path


def _policy(request: Request, glob: str, files: dict[str, bytes], presets: dict[str, bytes]) -> Policy:
    """What the files say now.  They may name the workload that is yet to be written: it is left out again."""
    parsed = parse(files, presets)
    if parsed.policy is not None or not files:
        return parsed.policy or Policy()
    name = request.name if request.name is not None else name_for(glob)
    policy = parse({**files, f"rules.d/{name}.yaml": _STAND_IN.format(name).encode()}, presets).policy
    if policy is None or f"rules.d/{name}.yaml" in files:
        wrong = next(problem for problem in parsed.problems if problem.severity == "error")
        text = f"the rule files have mistakes, the first in {wrong.place}: {wrong.message}"
        raise PenstockError(text, hint=f"see: penstock check {request.config}")
    return replace(policy, workloads={key: one for key, one in policy.workloads.items() if key != name})


def _make(directory: Path) -> list[Path]:
    """Make a directory and those around it; the ones that were missing, outermost first."""
    missing = []
    while not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        path.mkdir(mode=0o755)
    return missing[::-1]


def _drop_in(name: str) -> DropIn | None:
    """Of the unit, or of its template: an instance has that too."""
    found = dropin.of_unit(name)
    template = unit.template_of(name)
    return found if found is not None or template in ("", name) else dropin.of_unit(template)


def _is_loaded(name: str) -> bool:
    return systemctl.show(name, ("LoadState",))["LoadState"] == "loaded"


def _names(facts: Facts) -> list[str]:
    """Names to hold against `match`: of a template one that any instance might have."""
    return [facts.name.replace("@.", "@any.", 1)]


def _claimed(policy: Policy, units: Collection[Facts], name: str | None) -> str | None:
    """The workload that matches the units already.  PenstockError when there are several, or `name` differs."""
    found = {facts.name: claims(policy, one) for facts in units for one in _names(facts)}
    names = sorted({name for every in found.values() for name in every})
    if len(names) > 1:
        raise PenstockError(f"several workloads match {' and '.join(found)}: {', '.join(names)}")
    if not names:
        return None
    without = next((one for one, every in found.items() if not every), None)
    if without is not None:
        text = f"the workload {names[0]} matches some of these units, and {without} not"
        raise PenstockError(text, hint=f"add it to `match` in {policy.workloads[names[0]].place.file}")
    if name is not None and name != names[0]:
        text = f"the workload {names[0]} matches {' and '.join(found)} already"
        raise PenstockError(text, hint=f"see {policy.workloads[names[0]].place.file}")
    return names[0]


def _new_name(policy: Policy, request: Request, glob: str) -> str:
    name = request.name if request.name is not None else name_for(glob)
    if not NAME_OF_OURS.match(name) or name in RESERVED_NAMES:
        shown = printable(name, 80)
        text = f"`{shown}` cannot be the name of a workload" if request.name is not None else (
            f"no name of a workload follows from {glob}")  # fmt: skip
        raise PenstockError(text, hint="choose one of a-z, 0-9 and `-`, at most 48: --name NAME")
    if name in policy.workloads:
        place = policy.workloads[name].place.file
        text = f"there is a workload {name} already, and it does not match {glob}"
        raise PenstockError(text, hint=f"add the unit to `match` in {place}, or choose another: --name NAME")
    return name


def name_for(glob: str) -> str:
    """A workload's name from that of a unit: `vllm@a.service` -> vllm.  May be no valid one."""
    stem = re.split(r"[@*?\[]", glob.removesuffix(".service"), maxsplit=1)[0]
    stem = re.sub(r"\\x[0-9a-f]{2}|[^a-z0-9]+", "-", stem.lower())
    return re.sub(r"-{2,}", "-", stem).strip("-")[:48].rstrip("-")


def _refuse_clash(workload: str) -> None:
    """PenstockError when somebody else has a unit file under the name of the workload's slice."""
    name = slice_unit(workload)
    fragment = systemctl.show(name, ("FragmentPath",))["FragmentPath"]
    if fragment:
        text = f"there is a slice {name} already, which is not from penstock"
        raise PenstockError(text, where=printable(fragment, 4096), hint="choose another name: --name NAME")


def _check_claims(policy: Policy, units: Collection[Facts], workload: str) -> None:
    for facts in units:
        for one in _names(facts):
            if (found := claims(policy, one)) != [workload]:
                names = ", ".join(found) or "no workload"
                raise PenstockError(f"{names} would match {one}, and not {workload} alone")


def _draft(
    request: Request, units: list[Facts], wanted: Wanted, files: dict[str, bytes], presets: dict[str, bytes]
) -> Draft:
    server = next((facts.server for facts in units if facts.server), None)
    seen = {(one.port, one.protocol): one for facts in units for one in sorted(facts.listeners, reverse=True)}
    told = _told_ports(units)
    ports = tuple(sorted(seen.values())) or tuple(Listener(port, "tcp", local=True) for port in told)
    example = _example(server.example) if server and server.example else None
    if not ports and server and example is None:
        ports = tuple(Listener(port, "tcp", local=True) for port in server.ports)
    what = f"the example for {server.name}" if server and example else "what was seen running"
    about = [f"Written by `penstock protect {request.unit}` from {what}; yours from now on.", ""]
    about += [line for facts in units[:10] for line in described(facts)]
    about += [
        "",
        "`observe` lets everything pass and records what the rules would deny: penstock blocks",
        f"What of that list it needs: penstock suggest {wanted.workload}; then: "
        f"penstock enforce {wanted.workload} --confirm 60s",
    ]
    wanted = replace(wanted, about=tuple(map(_ascii, about)), ports=ports, told=told)
    return draft(wanted, example, files, presets, request.now)


def _example(name: str) -> str | None:
    for directory in EXAMPLES:
        if (directory / name).is_file():
            return read_file(directory / name).decode()
    return None


def _told_ports(units: Collection[Facts]) -> tuple[int, ...]:
    """The ports that command lines tell: `--port 8001`, `--port=8001`."""
    lines = [process.argv for facts in units for process in facts.processes]
    lines += [argv for facts in units for argv in facts.commands]
    found = []
    for argv in lines:
        for word, following in zip(argv, (*argv[1:], ""), strict=True):
            if match := _PORT.match(word):
                value = match[1] or following
                if value.isascii() and value.isdecimal() and len(value) <= 5 and 0 < int(value) < 65536:
                    found.append(int(value))
    return tuple(dict.fromkeys(found))


def described(facts: Facts) -> list[str]:
    """What a unit is, in lines."""
    programs = [unit.unwrapped(argv)[0] for argv in facts.commands if argv]
    program = printable(programs[0], 200) if programs else "program unknown"
    known = f", looks like {facts.server.name}" if facts.server else ""
    line = f"{facts.name}: {program}{known}, user {facts.user}"
    if not facts.processes:
        line += ", not running"
    elif facts.listeners:
        line += f", listens on {', '.join(map(port_text, facts.listeners[:20]))}"
    else:
        line += ", listens on no port now"
    return [line, *([f"Beware: {facts.server.danger}."] if facts.server else [])]


def port_text(one: Listener) -> str:
    """`8000/tcp`, and whether only this host reaches it."""
    return f"{one.port}/{one.protocol}{' (this host only)' if one.local else ''}"


def _warnings(facts: Facts) -> list[str]:
    found = []
    if facts.own_slice:
        found.append(
            f"{facts.name} is in {facts.slice} on purpose: that slice's limits do not hold for it in its new one"
        )
    if facts.delegate:
        found.append(f"{facts.name} has Delegate=: it may make cgroups of its own; the rules hold in them too")
    if facts.user == "root":
        found.append(f"{facts.name} runs as root, and root can leave its cgroup: give it a User=")
    return found


def _ascii(line: str) -> str:
    return line.encode("ascii", "backslashreplace").decode()
