"""What a unit is: asked of systemd, and seen at its processes.

A name may be that of a service, of an instance, of a template (`vllm@.service`: all its instances), an alias, or a
glob.  What cannot be put into a slice is refused here, each with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from penstock.core.containers import CLIENTS
from penstock.core.match import OURS
from penstock.core.servers import Server, recognise
from penstock.core.text import printable
from penstock.enrol import running, systemctl
from penstock.enrol.running import Listener, Process
from penstock.errors import PenstockError

KINDS = (
    "service", "socket", "target", "timer", "slice", "scope", "path", "mount", "automount", "swap", "device"
)  # fmt: skip
PROPERTIES = (
    "Id", "LoadState", "LoadError", "FragmentPath", "DropInPaths", "ExecStart", "User", "Slice", "ControlGroup",
    "MainPID", "Delegate", "Transient", "DefaultDependencies", "PrivateNetwork", "NetworkNamespacePath",
    "DynamicUser", "RootDirectory", "RootImage",
)  # fmt: skip
GLOB = re.compile(r"[*?\[]")
MAX_UNITS = 200
_NAME = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}\Z")  # systemd.unit(5)
_PATTERN = re.compile(r"[A-Za-z0-9:_.\\@*?\[\]!-]{1,255}\Z")
_COMMAND = re.compile(r"\{ path=(.*?) ; argv\[\]=(.*?) ; (?:ignore_errors|flags)=")
_STAND_IN = "penstock"
"""An instance to ask about a template with: systemd knows nothing of a template itself."""
_WRAPPERS = frozenset({"env", "exec", "nohup", "nice", "ionice", "setpriv", "numactl", "taskset", "time"})
_SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh"})


@dataclass(frozen=True, slots=True)
class Facts:
    """A unit that can be protected.  `commands` are what it starts, words split at blanks."""

    name: str  # as systemd has it; a template's is `NAME@.service`
    fragment: str
    drop_ins: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    user: str
    slice: str
    own_slice: bool  # somebody chose that slice
    delegate: bool
    rooted: bool  # it has a root directory or image of its own
    processes: tuple[Process, ...]
    listeners: tuple[Listener, ...]
    server: Server | None

    @property
    def template(self) -> bool:
        """Whether it stands for all instances."""
        return "@." in self.name

    @property
    def match(self) -> str:
        """The glob that a rules file needs to match it."""
        return self.name.replace("@.", "@*.", 1)


def look(text: str) -> tuple[str, list[Facts]]:
    """(glob for `match`, the units that `text` means).  PenstockError when it means none or an impossible one."""
    name = full_name(text)
    if not GLOB.search(name):
        facts = _facts(name)
        return facts.match, [facts]
    found = [unit for unit in systemctl.names(name) if fnmatchcase(unit, name)]
    # The drop-in of a template is its instances' too.
    units = [unit for unit in found if template_of(unit) not in found or "@." in unit]
    if not units:
        raise PenstockError(f"no service matches {name}", hint="see: systemctl list-unit-files --type=service")
    if len(units) > MAX_UNITS:
        raise PenstockError(f"more than {MAX_UNITS} services match {name}", hint="name them closer")
    facts_of = {facts.name: facts for facts in map(_facts, units)}
    return name, list(facts_of.values())


def full_name(text: str) -> str:
    """The name with its kind, as systemctl completes it.  PenstockError when no unit can be named so."""
    shown = printable(text, 80)
    pattern = bool(GLOB.search(text))
    if not (_PATTERN if pattern else _NAME).match(text):
        raise PenstockError(f"`{shown}` cannot be the name of a unit", hint="write it as `systemctl` shows it")
    stem, dot, kind = text.rpartition(".")
    if not dot or kind not in KINDS:
        stem, kind, text = text, "service", f"{text}.service"
    if kind != "service":
        hint = {
            "socket": "protect the service that it starts",
            "timer": "protect the service that it starts",
            "path": "protect the service that it starts",
            "scope": "penstock adopt PID",
        }.get(kind, "name a service")
        raise PenstockError(f"{shown} is a {kind}, and only a service can be protected", hint=hint)
    if not re.search(r"[A-Za-z0-9]", stem) or stem.startswith("@"):
        raise PenstockError(f"`{shown}` names no one service", hint="write it as `systemctl` shows it")
    if text.startswith(("systemd-", "dbus-", "dbus.")):
        raise PenstockError(f"{shown} is a part of the system itself", hint="protect the services of models")
    if text in OURS or text.startswith("penstock-"):
        raise PenstockError(f"{shown} is a part of penstock itself", hint="protect the services of models")
    return text


def template_of(unit: str) -> str:
    """`a@.service` of `a@b.service`; of others the empty text."""
    prefix, at, rest = unit.partition("@")
    return f"{prefix}@.{rest.rpartition('.')[2]}" if at else ""


def _facts(name: str) -> Facts:
    template = "@." in name
    said = systemctl.show(name.replace("@.", f"@{_STAND_IN}.", 1) if template else name, PROPERTIES)
    real = said["Id"] or name
    if template:
        real = template_of(real)
    elif not _NAME.match(real):
        raise PenstockError(f"systemd knows {name} under a name that is none: {printable(real, 80)}")
    full_name(real)  # an alias may lead to a part of penstock
    commands = tuple(tuple(found[2].split()) for found in _COMMAND.finditer(said["ExecStart"]))
    _refuse(real, said, commands)
    processes = () if template else running.of_unit(said["ControlGroup"], said["MainPID"])
    if template:
        groups = [systemctl.show(unit, PROPERTIES) for unit in _instances(real)]
        processes = tuple(p for one in groups for p in running.of_unit(one["ControlGroup"], one["MainPID"]))
    if processes and _is_client((processes[0].exe,)):
        raise _no_client(real, processes[0].exe)
    seen = [recognise(process.comm, process.argv) for process in processes]
    seen += [recognise("", words) for argv in commands for words in (argv, unwrapped(argv))]
    usual = {"", "system.slice", f"system-{_escaped(real)}.slice"}
    return Facts(
        name=real,
        fragment=printable(said["FragmentPath"]),
        drop_ins=tuple(said["DropInPaths"].split()),
        commands=commands,
        user=printable(said["User"], 64) or ("one of its own" if said["DynamicUser"] == "yes" else "root"),
        slice=printable(said["Slice"], 256),
        own_slice=said["Slice"] not in usual and not said["Slice"].startswith("penstock-"),
        delegate=said["Delegate"] == "yes",
        rooted=bool(said["RootDirectory"].strip("/") or said["RootImage"]),
        processes=processes,
        listeners=running.listeners({process.pid for process in processes}),
        server=next((server for server in seen if server is not None), None),
    )


def _instances(template: str) -> list[str]:
    pattern = template.replace("@.", "@*.", 1)
    return [unit for unit in systemctl.names(pattern) if unit != template][:MAX_UNITS]


def _refuse(name: str, said: dict[str, str], commands: Sequence[Sequence[str]]) -> None:
    """PenstockError when the unit cannot be put into a slice by a drop-in."""
    state, fragment = said["LoadState"], said["FragmentPath"]
    if state == "not-found":
        raise PenstockError(f"there is no unit {name}", hint="see: systemctl list-unit-files --type=service")
    if state == "masked":
        raise PenstockError(f"{name} is masked: it cannot start", hint=f"systemctl unmask {name}")
    if state != "loaded":
        reason = printable(said["LoadError"].strip() or state, 200)
        raise PenstockError(f"systemd cannot load {name}: {reason}", hint=f"see: systemctl status {name}")
    if said["Transient"] == "yes":
        hint = "write a unit file for it, or start it with: penstock run"
        raise PenstockError(f"{name} is transient: it is gone when it ends", hint=hint)
    if fragment.startswith("/run/systemd/generator"):
        hint = f"write a unit file of that name in /etc/systemd/system: systemctl edit --full {name}"
        raise PenstockError(f"{name} is generated anew at each boot ({printable(fragment)})", hint=hint)
    if said["DefaultDependencies"] == "no":
        text = f"{name} starts before the host is up, and so before the rules can be there"
        raise PenstockError(text, hint="only services with DefaultDependencies=yes can be protected")
    if said["PrivateNetwork"] == "yes" or said["NetworkNamespacePath"]:
        text = f"{name} has a network of its own, where the host's rules see nothing"
        raise PenstockError(text, hint="see PrivateNetwork= and NetworkNamespacePath= of the unit")
    for argv in commands:
        if _is_client(unwrapped(argv)):
            raise _no_client(name, unwrapped(argv)[0])


def _is_client(argv: Sequence[str]) -> bool:
    return bool(argv) and argv[0].rpartition("/")[2] in CLIENTS


def _no_client(name: str, program: str) -> PenstockError:
    text = f"{name} only runs {printable(program, 80)}: what it starts lives in the cgroup of a container"
    return PenstockError(text, hint="see `Containers` in: penstock manual operating")


def unwrapped(argv: Sequence[str]) -> tuple[str, ...]:
    """The command inside `env A=B sh -c "exec COMMAND"` and its like, as far as it can be told."""
    words = list(argv[:64])
    while len(words) > 1:
        program = words[0].rpartition("/")[2]
        if program in _SHELLS and words[1].startswith("-") and words[1].endswith("c"):
            words = words[2:]
        elif program in _WRAPPERS:
            words = words[1:]
            while len(words) > 1 and (words[0].startswith("-") or "=" in words[0]):
                words = words[1:]
        else:
            break
    return tuple(words)


def _escaped(unit: str) -> str:
    """The middle of the slice that systemd gives an instance or template: `system-NAME.slice`, dashes escaped."""
    prefix, at, _ = unit.partition("@")
    return prefix.replace("-", "\\x2d") if at else ""
