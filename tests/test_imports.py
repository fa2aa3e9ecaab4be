"""Who may import whom: errors <- core <- files, this_host, kernel <- daemon, enrol; demo -> all.

The command line imports core, files, this_host and enrol.

Beside them the resolver, which imports core and errors, and is imported by nobody.

Each edge that is forbidden has its reason here; each exception too.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "agent"

LAYERS = (
    *("errors", "core", "files", "this_host", "blocklog"),
    *("kernel", "resolver", "enrol", "daemon", "cli", "demo"),
)

FORBIDDEN: dict[tuple[str, str], str] = {
    ("penstock.errors", "penstock"): "everything imports errors: it must import nothing of ours",
    ("penstock.core", "penstock.kernel"): "core decides without a kernel, and is tested without one",
    ("penstock.core", "penstock.daemon"): "core is what the daemon is built on",
    ("penstock.core", "penstock.cli"): "core serves the daemon too, which has no terminal",
    ("penstock.core", "penstock.demo"): "the demo is a user of everything and a part of nothing",
    ("penstock.core", "asyncio"): "core is handed events; waiting for them is wiring",
    ("penstock.core", "socket"): "core does no I/O; addresses come from ipaddress",
    ("penstock.core", "os"): "core does no I/O and reads no environment",
    ("penstock.core", "subprocess"): "core runs no programs",
    ("penstock.core", "logging"): "core returns what happened; telling people is an effect",
    ("penstock.core", "time"): "time arrives inside events, so that tests can choose it",
    ("penstock.core", "threading"): "core has one caller at a time",
    ("penstock.core", "pathlib"): "core gets text, not files",
    ("penstock.core", "click"): "core prints nothing",
    ("penstock.core", "pyroute2"): "core speaks to no kernel",
    ("penstock.core", "psutil"): "core looks at no processes",
    ("penstock.core", "penstock.files"): "core gets text, not files",
    ("penstock.core", "penstock.enrol"): "core knows no host",
    ("penstock.core", "penstock.blocklog"): "core gets text, not files",
    **{
        ("penstock.blocklog", f"penstock.{layer}"): "the log is read where there is nothing else of ours"
        for layer in ("files", "kernel", "enrol", "daemon", "cli", "demo")
    },
    **{
        ("penstock.blocklog", what): "it is called by whoever has a log: it prints and waits for nothing"
        for what in ("click", "asyncio", "subprocess")
    },
    **{
        (f"penstock.{layer}", "penstock.blocklog"): "the log is the daemon's to write, and for people to read"
        for layer in ("files", "kernel", "enrol")
    },
    ("penstock.core.verdict", "penstock.core.compile"): "a mistake of the compiler must show against it",
    ("penstock.core.verdict", "penstock.core.regions"): "a mistake of the compiler must show against it",
    ("penstock.core.verdict", "penstock.core.chains"): "a mistake of the compiler must show against it",
    ("penstock.core.verdict", "penstock.core.ruleset"): "a mistake of the compiler must show against it",
    ("penstock.core.nearest", "penstock.core.compile"): "a mistake of the compiler must show against it",
    ("penstock.core.nearest", "penstock.core.regions"): "a mistake of the compiler must show against it",
    ("penstock.core.nearest", "penstock.core.chains"): "a mistake of the compiler must show against it",
    ("penstock.core.nearest", "penstock.core.ruleset"): "a mistake of the compiler must show against it",
    ("penstock.core.connection", "penstock.core.compile"): "a mistake of the compiler must show against it",
    ("penstock.core.connection", "penstock.core.regions"): "a mistake of the compiler must show against it",
    ("penstock.core.connection", "penstock.core.chains"): "a mistake of the compiler must show against it",
    ("penstock.core.connection", "penstock.core.ruleset"): "a mistake of the compiler must show against it",
    ("penstock.core.compile", "penstock.core.verdict"): "a mistake of the evaluator must show against it",
    ("penstock.files", "penstock.kernel"): "rule files are checked on machines without a kernel of ours",
    ("penstock.files", "penstock.daemon"): "the command line reads files too, without a daemon",
    ("penstock.files", "penstock.cli"): "the daemon reads files too, without a terminal",
    ("penstock.files", "penstock.demo"): "the demo is a user of everything and a part of nothing",
    ("penstock.core", "penstock.this_host"): "core is handed what the host looks like",
    **{
        ("penstock.this_host", f"penstock.{layer}"): "commands ask it too, without root and without a daemon"
        for layer in ("kernel", "daemon", "cli", "demo", "enrol")
    },
    ("penstock.kernel", "penstock.daemon"): "one kernel facility a file, called by the daemon",
    ("penstock.kernel", "penstock.cli"): "the daemon has no terminal",
    ("penstock.kernel", "penstock.demo"): "the demo is a user of everything and a part of nothing",
    ("penstock.files", "penstock.enrol"): "files are read where no unit is enrolled too",
    ("penstock.kernel", "penstock.enrol"): "one kernel facility a file, used by enrolment",
    ("penstock.kernel", "asyncio"): "only the daemon folder waits for several things at once",
    ("penstock.daemon", "penstock.cli"): "the daemon has no terminal",
    ("penstock.daemon", "penstock.demo"): "the demo is a user of everything and a part of nothing",
    ("penstock.daemon", "penstock.enrol"): "enrolment changes units for people; the daemon takes them as they are",
    ("penstock.enrol", "penstock.daemon"): "the daemon is asked over its socket, by the command line",
    ("penstock.enrol", "penstock.cli"): "enrolment does and returns; the command line talks",
    ("penstock.enrol", "penstock.demo"): "the demo is a user of everything and a part of nothing",
    ("penstock.enrol", "asyncio"): "a command asks one question and ends",
    ("penstock.enrol", "click"): "enrolment does and returns; the command line talks",
    ("penstock.enrol", "subprocess"): "programs are run through one door, enrol.systemctl",
    **{
        ("penstock.resolver", f"penstock.{layer}"): "it reads hostile packets: the less is in it, the better"
        for layer in ("files", "this_host", "kernel", "enrol", "daemon", "cli", "demo")
    },
    ("penstock.resolver", "subprocess"): "it may not even fork",
    **{
        (f"penstock.{layer}", "penstock.resolver"): "it is a program of its own, reached over its link"
        for layer in ("core", "files", "blocklog", "kernel", "enrol", "daemon", "cli")
    },
    ("penstock.cli", "subprocess"): "programs are run through one door, enrol.systemctl",
    ("penstock.cli", "penstock.kernel"): "the command line asks the daemon over its socket",
    ("penstock.cli", "penstock.daemon"): "the command line asks the daemon over its socket",
    ("penstock.cli", "penstock.demo"): "every command would pay for loading the lab",
    ("penstock.cli", "asyncio"): "a command asks one question and ends",
    ("penstock.daemon", "subprocess"): "a root daemon that starts no programs is easier to trust",
    ("penstock.kernel", "subprocess"): "a root daemon that starts no programs is easier to trust",
}

ALLOWED: dict[tuple[str, str], str] = {
    ("penstock.cli.daemon", "penstock.daemon"): "the command that is the daemon",
    ("penstock.cli.demo", "penstock.demo"): "the command that is the demo",
    ("penstock.enrol.systemctl", "subprocess"): "the one door for running programs",
    ("penstock.cli.run", "penstock.kernel"): "it enters the cgroup itself and gives up its rights",
    ("penstock.cli.probe", "penstock.kernel"): "a child of it enters the cgroup, as `run` does",
    ("penstock.cli.editor", "subprocess"): "the editor is the operator's, with his environment and terminal",
}

CALLS_BANNED_IN_CORE = {
    "open": "core gets text, not files",
    "print": "core prints nothing",
    "now": "time arrives inside events",
    "today": "time arrives inside events",
    "utcnow": "time arrives inside events",
}


@dataclass(frozen=True, slots=True)
class Import:
    module: str  # the file that imports, as a module name
    imported: str
    line: int


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(module: str, text: str) -> list[Import]:
    """Every import in `text`, also inside functions; those only for the type checker do not count."""
    tree = ast.parse(text)
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for statement in branch.body
        for node in ast.walk(statement)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [Import(module, alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            found += [Import(module, f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def violations(module: str, text: str) -> list[str]:
    """One line for each import of `module` that is forbidden and not excepted."""
    found = []
    for item in imports_of(module, text):
        if any(within(module, who) and within(item.imported, what) for who, what in ALLOWED):
            continue
        for (who, what), reason in FORBIDDEN.items():
            if within(module, who) and within(item.imported, what) and not within(item.imported, who):
                found.append(f"{module}:{item.line}: imports {item.imported}; {reason}")
    return found


def impure_calls(module: str, text: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in CALLS_BANNED_IN_CORE:
                found.append(f"{module}:{node.lineno}: calls {name}(); {CALLS_BANNED_IN_CORE[name]}")
    return found


MODULES = {module_name(path, SOURCE): path.read_text() for path in sorted(SOURCE.glob("penstock/**/*.py"))}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    assert violations(module, MODULES[module]) == []


@pytest.mark.parametrize("module", [m for m in MODULES if within(m, "penstock.core")])
def test_core_touches_nothing(module: str) -> None:
    assert impure_calls(module, MODULES[module]) == []


def test_there_is_no_layer_without_a_rule() -> None:
    assert {m.split(".")[1] for m in MODULES if "." in m} <= {*LAYERS, "manual"}


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("penstock.errors", "from penstock.core import text"),
        ("penstock.core.parse", "import penstock.kernel.nft"),
        ("penstock.core.parse", "def f():\n    import time"),
        ("penstock.core.engine", "from os import path"),
        ("penstock.kernel.nft", "from penstock.daemon import app"),
        ("penstock.core.surroundings", "from penstock.this_host import look"),
        ("penstock.this_host", "from penstock.kernel import diagnosis"),
        ("penstock.kernel.nft", "import subprocess"),
        ("penstock.daemon.app", "from penstock import cli"),
        ("penstock.cli.blocks", "from penstock.kernel import nft"),
        ("penstock.cli.run", "from penstock.daemon import app"),
        ("penstock.daemon.app", "from penstock.enrol import dropin"),
        ("penstock.kernel.nft", "from penstock.enrol import dropin"),
        ("penstock.enrol.protect", "import subprocess"),
        ("penstock.enrol.protect", "from penstock.cli import client"),
    ],
)
def test_a_violation_is_caught(module: str, text: str) -> None:
    assert len(violations(module, text)) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("penstock.core.parse", "from penstock.errors import PenstockError"),
        ("penstock.cli.run", "from penstock.kernel import cgroup"),
        ("penstock.cli.apply", "from penstock.enrol import dropin"),
        ("penstock.enrol.systemctl", "import subprocess"),
        ("penstock.core.parse", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import socket"),
        ("penstock.core.ossified", "import ossified"),
    ],
)
def test_what_is_allowed_passes(module: str, text: str) -> None:
    assert violations(module, text) == []


def test_an_impure_call_is_caught() -> None:
    assert len(impure_calls("m", "datetime.now()\nopen('x')")) == 2
