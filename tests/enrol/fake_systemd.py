"""A systemd that only answers what it is asked of units that a test names; tests/hosts has the real one."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from penstock.enrol import dropin, running, systemctl
from penstock.enrol.running import Listener, Process
from penstock.errors import PenstockError

OLLAMA = {"ExecStart": "/usr/local/bin/ollama serve", "User": "ollama"}
DEFAULTS = {
    "LoadState": "loaded",
    "Slice": "system.slice",
    "Transient": "no",
    "DefaultDependencies": "yes",
    "PrivateNetwork": "no",
    "DynamicUser": "no",
    "Delegate": "no",
    "MainPID": "0",
}
NOTHING = {"LoadState": "not-found", "Transient": "no"}


class FakeSystemd:
    """Units by name; `aliases` lead to them.  `said` are the commands that change something."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.units: dict[str, dict[str, str]] = {}
        self.aliases: dict[str, str] = {}
        self.said: list[tuple[str, ...]] = []
        self.processes: dict[str, tuple[Process, ...]] = {}
        self.ports: tuple[Listener, ...] = ()
        self.add("penstock-floor.service")

    def add(self, name: str, **properties: str) -> None:
        """A unit with a file in /etc/systemd/system, of these properties; ExecStart as one writes it."""
        said = {**DEFAULTS, "FragmentPath": f"/etc/systemd/system/{name}", **properties}
        if command := said.get("ExecStart"):
            program = command.split()[0]
            said["ExecStart"] = f"{{ path={program} ; argv[]={command} ; ignore_errors=no ; start_time=[n/a] }}"
        self.units[name] = said

    def run_unit(self, name: str, *processes: Process) -> None:
        """It runs, with these processes."""
        self.units[name] |= {"ControlGroup": f"/system.slice/{name}", "MainPID": str(processes[0].pid)}
        self.processes[f"/system.slice/{name}"] = processes

    def run(self, *arguments: str, timeout: float = 0, nothing: int = 0) -> str:
        """As systemctl.run."""
        match arguments[0]:
            case "show":
                return self._show(arguments[-1], arguments[1].removeprefix("--property=").split(","))
            case "list-units" | "list-unit-files":
                return "".join(
                    f"{name} x x\n" for name in self.units
                    if fnmatchcase(name, arguments[-1]) and name.endswith(".service")
                    and ("@." not in name or arguments[0] == "list-unit-files")
                )  # fmt: skip
            case _:
                if arguments[0] == "restart" and arguments[-1] not in self.units:
                    raise PenstockError("Unit not found.")
                self.said.append(arguments)
                return ""

    def _show(self, name: str, properties: list[str]) -> str:
        if "@." in name:
            raise PenstockError("Unit name is missing the instance name.")
        name = self.aliases.get(name, name)
        prefix, at, rest = name.partition("@")
        template = self.units.get(f"{prefix}@.{rest.rpartition('.')[2]}") if at else None
        said: Mapping[str, str] = self.units.get(name) or template or NOTHING
        return "".join(f"{key}={name if key == 'Id' else said.get(key, '')}\n" for key in properties)


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystemd:
    """In place of the real one, with directories of its own."""
    made = FakeSystemd(tmp_path)
    monkeypatch.setattr(systemctl, "run", made.run)
    monkeypatch.setattr(systemctl, "available", lambda: True)
    monkeypatch.setattr(dropin, "UNITS", tmp_path / "system")
    monkeypatch.setattr(dropin, "RESOLVE", tmp_path / "resolve")
    monkeypatch.setattr(running, "of_unit", lambda group, main: made.processes.get(group, ()))
    monkeypatch.setattr(running, "listeners", lambda pids: made.ports if pids else ())
    return made
