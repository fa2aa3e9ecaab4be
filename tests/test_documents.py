"""README and manual say what is true: their rules pass `check`, their commands and codes exist, none is left out.

A fenced block ```yaml is a whole file, or starts with `# in egress` or `# in ingress` and is rules for that list;
```yaml wrong is a file that `check` must refuse.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import click
import pytest

import exposition
from cli import fake_daemon
from penstock.cli.check import check_path
from penstock.cli.main import COMMANDS, penstock
from penstock.cli.manual import pages, title
from penstock.core import explain_names, label_bits, lookups, metrics
from penstock.core.blocks import Block
from penstock.core.findings import TROUBLES
from penstock.core.journal import MESSAGE_IDS
from penstock.core.language import parse_host, parse_ports, parse_preset, parse_rule, yaml_nodes
from penstock.core.parse import parse
from penstock.core.planes import ADMIN_PORTS, SHARED
from penstock.core.policy import METADATA
from penstock.core.problems import Problem
from penstock.core.servers import SERVERS
from penstock.core.unenforced import unenforced
from penstock.core.verdict import Reason
from penstock.daemon import places
from penstock.enrol import dropin
from penstock.files import read_presets
from test_examples import EXAMPLES, GATEWAY, NOW

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "agent/penstock"
CORE = PACKAGE / "core"
UNITS = ROOT / "systemd"
MANUAL = pages()
DOCUMENTS = {"README": ROOT / "README.md", **MANUAL}
TEXTS = {name: path.read_text() for name, path in DOCUMENTS.items()}
PAGES = ("how-it-works", "lifecycle", "names", "operating", "rules", "threat-model")
SCRIPTS = {name: (ROOT / name).read_text() for name in ("agent/try", "tests/run", "systemd/install.sh")}


class Fence(NamedTuple):
    """A fenced block: `kind` is what stands behind the three backticks."""

    kind: str
    text: str
    where: str


def fences(document: str) -> list[Fence]:
    """All fenced blocks of a document."""
    found = re.finditer(r"^```([^\n]*)\n(.*?)^```$", TEXTS[document], re.MULTILINE | re.DOTALL)
    lines = TEXTS[document]
    return [Fence(m[1], m[2], f"{document}:{lines.count(chr(10), 0, m.start()) + 1}") for m in found]


def below(document: str, heading: str) -> list[Fence]:
    """The fenced blocks between this heading of the second level and the next."""
    before, found, rest = TEXTS[document].partition(f"\n## {heading}\n")
    assert found, heading
    first = before.count("\n") + 2
    last = first + rest.partition("\n## ")[0].count("\n") + 1
    return [fence for fence in fences(document) if first < int(fence.where.partition(":")[2]) <= last]


FIRST_EXAMPLE, SECOND_EXAMPLE = "Govern a server of your own", "A gateway in front of a model server"
"""Of the README."""
FENCES = [fence for name in TEXTS for fence in fences(name)]
RULE_FENCES = [fence for fence in FENCES if fence.kind == "yaml"]
WRONG_FENCES = [fence for fence in FENCES if fence.kind == "yaml wrong"]
NETWORKS = next(f.text for f in RULE_FENCES if f.where.startswith("rules") and "networks:" in f.text)
STAND_IN = "version: 1\nworkload: {}\nmode: enforce\negress: []\ningress: []\n"


def spans(text: str) -> list[str]:
    """What stands in backticks outside of fenced blocks; `\\|` is how a table writes `|`."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.replace("\\|", "|").split()) for span in re.findall(r"`([^`]+)`", plain)]


def rows(document: str, heading: str) -> list[list[str]]:
    """The cells of each row of the first table behind that text."""
    rest = TEXTS[document].partition(heading)[2]
    table = re.search(r"(?:^\|.*\n)+", rest, re.MULTILINE)
    assert table, heading
    lines = table[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


# --- rules ---


def checked(fence: Fence, directory: Path) -> tuple[Problem, ...]:
    """What `penstock check` says of a block, with the networks of rules.md around it."""
    (directory / "penstock.yaml").write_text(NETWORKS)
    if "\npreset: " in f"\n{fence.text}":
        (directory / "presets").mkdir()
        (directory / "presets/ours.yaml").write_text(fence.text)
        name = re.search(r"^preset: (\S+)$", fence.text, re.MULTILINE)
        assert name
        fence = Fence("yaml", f"# in egress\n- use: {name[1]}\n", fence.where)
    if side := re.match(r"# in (egress|ingress)\n", fence.text):
        other = "ingress" if side[1] == "egress" else "egress"
        rules = "".join(f"  {line}\n" for line in fence.text.splitlines())
        text = f"version: 1\nworkload: w\nmode: enforce\n{other}: []\n{side[1]}:\n{rules}"
        fence = Fence("yaml", text, fence.where)
    is_workload = "\nworkload:" in fence.text
    path = directory / ("rules.d/w.yaml" if is_workload else "penstock.yaml")
    path.parent.mkdir(exist_ok=True)
    for other in re.findall(r"workload:([a-z0-9-]+)", fence.text):
        (path.parent / f"{other}.yaml").write_text(STAND_IN.format(other))
    path.write_text(fence.text)
    return check_path(path if is_workload else directory, NOW)[0]


@pytest.mark.parametrize("fence", RULE_FENCES, ids=lambda fence: fence.where)
def test_rules_pass_check(fence: Fence, tmp_path: Path) -> None:
    meant = ("wide-open", "one-sided")
    problems = [p for p in checked(fence, tmp_path) if p.code not in meant and "; overridden: " not in p.message]
    assert problems == []


@pytest.mark.parametrize("fence", WRONG_FENCES, ids=lambda fence: fence.where)
def test_wrong_rules_do_not_pass(fence: Fence, tmp_path: Path) -> None:
    lines = {problem.place.line for problem in checked(fence, tmp_path) if problem.severity == "error"}
    assert len(lines) >= 3, "each line that is wrong"


def test_the_readmes_rules_are_the_shipped_ones() -> None:
    """Without comments and some of the tests; the mode and the unit are what `protect` puts there."""
    shipped = {name: data.decode() for name, data in EXAMPLES.items()}
    for fence in below("README", FIRST_EXAMPLE):
        for name in ("penstock.yaml", "llama-server.yaml"):
            if fence.kind == "yaml" and f"/{name}\n" in fence.text:
                said = [re.sub(r"\s+#.*|^#.*", "", line) for line in fence.text.splitlines()]
                new = [line for line in said if line not in shipped[name].splitlines() and line]
                assert [line.partition(":")[0] for line in new] in ([], ["mode", "match"])


def test_the_readmes_gateway_is_the_shipped_one() -> None:
    """Word by word, without comments."""
    said = {}
    for fence in below("README", SECOND_EXAMPLE):
        if fence.kind == "yaml":
            path, _, text = fence.text.partition("\n")
            said[path.removeprefix("# /etc/penstock/")] = text
    shipped = {name: re.sub(r"(?m)^#.*\n", "", data.decode()) for name, data in GATEWAY.items()}
    assert said == shipped


@pytest.mark.parametrize("side", ["to", "from"])
def test_what_is_enforced_now_is_said(side: str) -> None:
    """Each word of the two tables: "enforced" when `check` has nothing to say, else not."""
    heading = "What `to` takes:" if side == "to" else "Every port that the workload opens"
    host = {"penstock.yaml": NETWORKS.encode()}
    if side == "to":
        host["rules.d/n.yaml"] = b"version: 1\nworkload: name\nmode: enforce\negress: []\ningress: []\n"
    words = 0
    for cells in rows("rules", heading):
        for word in spans(cells[0].replace("NAME", "other")):
            rule = f"[{{{side}: {word}, ports: [443]}}]"
            lists = f"egress: {rule}\ningress: []" if side == "to" else f"egress: []\ningress: {rule}"
            files = {
                **host,
                "rules.d/w.yaml": f"version: 1\nworkload: w\nmode: enforce\n{lists}\n".encode(),
                "rules.d/o.yaml": b"version: 1\nworkload: other\nmode: enforce\negress: []\ningress: []\n",
            }
            policy = parse(files).policy
            assert policy, (word, parse(files).problems)
            about = [problem for problem in unenforced(policy) if "admin_ports" not in problem.message]
            assert cells[-1].startswith("enforced") == (about == []), word
            words += 1
    assert words > 5


@pytest.mark.parametrize(
    ("what", "limit"),
    [
        ("workloads on a host", label_bits.MAX_WORKLOADS),
        ("networks", parse_host.MAX_NETWORKS),
        ("rules in one list", parse_rule.MAX_RULES),
        ("ranges in `ports`", parse_ports.MAX_RANGES),
        ("names in `known`", parse_preset.MAX_KNOWN),
        ("one file", yaml_nodes.MAX_NODES),
        ("one file", yaml_nodes.MAX_PROBLEMS),
        ("one file", yaml_nodes.MAX_DEPTH),
    ],
)
def test_limits(what: str, limit: int) -> None:
    row = next(cells for cells in rows("rules", "## Limits") if cells[0].startswith(what))
    assert f"{limit:,}" in row[1]


def test_each_preset_is_in_the_table() -> None:
    said = [span for cells in rows("rules", "## Presets") for span in spans(cells[0])]
    assert said == list(dict.fromkeys(said))
    assert set(said) == {name.removesuffix(".yaml") for name in read_presets()}


def test_each_key_of_a_preset_is_said() -> None:
    table = rows("rules", "Your own go into `presets/`")
    said = {word for cells in table for span in spans(cells[0]) for word in span.split(": ")[:1]}
    assert set(parse_preset.PRESET_KEYS) - {"version"} <= said


def test_metadata_addresses() -> None:
    assert [str(address) for address in METADATA if str(address) not in TEXTS["rules"]] == []


# --- commands ---


def options(command: click.Command) -> set[str]:
    """All flags of a command, and of the commands below it."""
    below = command.commands.values() if isinstance(command, click.Group) and command is not penstock else ()
    flags = {flag for parameter in command.params for flag in parameter.opts if flag.startswith("-")}
    return flags.union(*(options(one) for one in below))


TREE = {name: penstock.get_command(click.Context(penstock), name) for name in COMMANDS}
ALWAYS = {"-h", "--help"}


def mentions() -> Iterator[tuple[str, str]]:
    """Each `penstock ...` in backticks or in a shell block: where it stands, and the words behind."""
    for name, text in TEXTS.items():
        shell = [line for fence in fences(name) if fence.kind == "sh" for line in fence.text.splitlines()]
        for code in (*spans(text), *shell):
            said = re.match(r"(?:sudo )?(?:\.venv/bin/)?penstock((?: .*)?)$", code)
            if said:
                yield name, said[1].strip()
            elif code.split(" ")[0] in COMMANDS and " -" in code:
                yield name, code


def complaint(line: str) -> str:
    """What is wrong with the words behind `penstock`."""
    words = [word for word in re.split(r"[\s\[\]|]+", line.split(" -- ")[0]) if word]
    before = []
    while words and words[0].startswith("-"):
        before.append(words.pop(0))
        if before[-1] == "--run" and words:
            words.pop(0)
    unknown = set(before) - options(penstock) - ALWAYS
    if words and words[0] != "COMMAND":
        command = TREE.get(words[0])
        if command is None:
            return f"no command {words[0]}"
        unknown |= {word for word in words[1:] if word.startswith("-")} - options(command) - ALWAYS
    return f"no option {', '.join(sorted(unknown))}" if unknown else ""


def test_commands_and_flags_exist() -> None:
    found = list(mentions())
    assert len(found) > 50
    assert [f"{where}: penstock {line}: {wrong}" for where, line in found if (wrong := complaint(line))] == []


def test_a_wrong_command_is_seen() -> None:
    assert complaint("lend w 10.0.0.1:80") == "no command lend"
    assert complaint("apply --soon 60s") == "no option --soon"
    assert complaint("--run DIR status --wait") == ""
    assert complaint("run W --user USER -- ls --all") == ""


def test_every_command_and_flag_is_in_the_manual() -> None:
    said = " ".join(line for where, line in mentions() if where == "operating")
    words = set(re.split(r"[\s\[\]|]+", said))
    for name, command in TREE.items():
        assert command is not None
        assert name in words
        short = {"-f", "--follow"}
        missing = {o for o in options(command) if o not in words and o not in short}
        assert missing == set(), name


def test_flags_of_scripts_exist() -> None:
    lines = [line for fence in FENCES if fence.kind == "sh" for line in fence.text.splitlines()]
    lines += [span for text in TEXTS.values() for span in spans(text)]
    for script, source in SCRIPTS.items():
        calls = [line for line in lines if f"{script} " in f"{line} "]
        flags = {word for line in calls for word in line.split(script)[1].split() if word.startswith("--")}
        assert calls, script
        assert [flag for flag in flags if flag not in source] == []


# --- codes and keys ---


def calls(path: Path) -> Iterator[tuple[str, list[ast.expr]]]:
    """Name and arguments of each call in a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            yield name, node.args


def constants(path: Path, where: dict[str, int]) -> set[str]:
    """Texts that are an argument of these functions: name -> which argument."""
    found = set()
    for name, arguments in calls(path):
        if name in where and len(arguments) > where[name]:
            argument = arguments[where[name]]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                found.add(argument.value)
    return found


def finding_codes() -> set[str]:
    modules = (CORE / "findings.py", *(PACKAGE / "enrol").glob("*.py"))
    made = set().union(*(constants(path, {"finding": 0}) for path in modules))
    return made | {code for code, _ in TROUBLES.values()} | {"trouble"}


def reason_codes() -> set[str]:
    explained = set().union(*(constants(path, {"Explanation": 0}) for path in CORE.glob("*.py")))
    by_name = {explain_names.EXPIRED_NAME, explain_names.LITERAL, *lookups.Reason}
    return explained | set(Reason) | by_name


TELLERS = {
    **dict.fromkeys(("error", "warn", "say", "_error", "_stop"), 1),
    **dict.fromkeys(("tell", "Problem", "BadPeer", "_Stop"), 2),
}
"""Functions that take a code, and as which argument."""

INDIRECT = {
    *("peer", "not-yet-enforced", "unknown-network", "unknown-workload"),
    *("yaml-alias", "yaml-anchor", "yaml-tag"),
}
"""Codes that stand in no call as they are: a default, a constant, or put together."""


def problem_codes() -> set[str]:
    modules = [*CORE.rglob("*.py"), PACKAGE / "cli/check.py"]
    return INDIRECT | set().union(*(constants(path, TELLERS) for path in modules))


def test_ports_for_administrators() -> None:
    """Every one, and whether it counts in every workload or in that of its server."""
    said = {
        int(port): cells[2]
        for cells in rows("rules", "makes it an\nerror to open one to anybody else:")
        for port in re.findall(r"[0-9]+", cells[0])
    }
    assert said == {one.port: "that of the server" if one.of else "every workload" for one in ADMIN_PORTS}
    shared = TEXTS["rules"].partition("clients and administrators on one port:")[2].partition("\n\n")[0]
    ports = {port for one in SHARED.values() for port in one.ports}
    assert set(map(int, re.findall(r"[0-9]{4,}", shared))) == ports


def test_findings() -> None:
    assert len(finding_codes()) > 8
    assert {span for cells in rows("operating", "## Findings") for span in spans(cells[0])} == finding_codes()


def test_reasons() -> None:
    assert len(reason_codes()) > 15
    table = rows("operating", "Reasons, in blocks and in `why`:")
    assert {span for cells in table for span in spans(cells[0])} == reason_codes()


def test_codes_of_check() -> None:
    said = rows("rules", "Warnings, and the errors about sense:") + rows("rules", "Errors about what is written:")
    assert len(problem_codes()) > 60
    assert {span for cells in said for span in spans(cells[0])} == problem_codes()


def test_keys_of_a_block() -> None:
    """Those of `as_json` are the fields, and the version."""
    keys = {field.name for field in fields(Block)} | {"v"}
    assert {span for cells in rows("operating", "The log is JSON") for span in spans(cells[0])} == keys


def test_keys_of_status() -> None:
    whole = fake_daemon.status()
    said = {span: cells for cells in rows("operating", "## `status --json`") for span in spans(cells[0])}
    assert said.keys() - {"rules"} == whole.keys()
    for key, inside in {"workloads": fake_daemon.workload(), **whole}.items():
        for name in inside if isinstance(inside, dict) else ():
            assert f"`{name}`" in said[key][1], (key, name)


# --- what is installed ---


def test_the_man_page_has_each_command() -> None:
    section = (UNITS / "penstock.8").read_text().partition(".SH COMMANDS")[2].partition(".SH")[0]
    said = re.findall(r"^\.TP\n\.B (\S+)$", section, re.MULTILINE)
    assert set(said) == set(COMMANDS)
    assert len(said) == len(set(said))


def test_the_drop_in_is_the_one_that_is_written() -> None:
    fence = next(fence for fence in fences("operating") if fence.kind == "ini")
    assert fence.text == dropin.text("ollama.service", "ollama")


def test_files_of_the_daemon() -> None:
    """The table names each file in its state and run directories."""
    said = {cells[0]: spans(cells[2]) for cells in rows("operating", "## Directories")}
    for directory, files in (("`/var/lib/penstock`", places.STATE_FILES), ("`/run/penstock`", places.RUN_FILES)):
        assert set(said[directory]) >= {name for name in files if not name.endswith(".new")}


def test_metrics_are_told() -> None:
    """Each with its labels, in the order in which they are written."""
    told = {name: spans(cells[1]) for cells in rows("operating", "## Metrics") for name in spans(cells[0])}
    found = exposition.parse(metrics.text(exposition.STATUS, exposition.FACTS))
    assert list(told) == list(metrics.METRICS)
    assert {name: set(labels) for name, labels in told.items()} == {
        name: {label for labels in family.samples for label, _ in labels} for name, family in found.items()
    }


def test_message_ids_are_told() -> None:
    told = {tuple(spans(cells[0] + cells[1])) for cells in rows("operating", "## Journal")}
    assert told == set(MESSAGE_IDS.items())


def test_units_that_are_named_exist() -> None:
    ours = {path.name for path in UNITS.glob("penstock*.*")}
    for name, text in TEXTS.items():
        named = {span for span in spans(text) if re.fullmatch(r"penstock[\w-]*\.service|penstock\.slice", span)}
        assert named <= ours, name


def test_known_servers() -> None:
    listed = " ".join(TEXTS["operating"].partition("These are known:")[2].partition(".")[0].split())
    assert sorted(listed.replace(" and ", ", ").split(", ")) == sorted(server.name for server in SERVERS)


# --- the lifecycle contract ---

CONTRACT = "tests/hosts/test_lifecycle.py"


def functions_of(path: Path) -> set[str]:
    """The names of its test functions."""
    functions = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}


def shown_by(row: list[str]) -> list[tuple[str, str]]:
    """(file, function) of each test that a line of the contract names."""
    named = (span.rpartition("::") for span in spans(row[-1]))
    return [(file or CONTRACT, function) for file, _, function in named]


def test_each_line_of_the_contract_is_shown_by_tests_that_exist() -> None:
    table = rows("lifecycle", "# Lifecycle")
    assert len(table) > 20
    for row in table:
        assert shown_by(row), row[0]
        assert [test for test in shown_by(row) if test[1] not in functions_of(ROOT / test[0])] == [], row[0]


def test_each_test_of_the_contract_is_in_it() -> None:
    named = {test for row in rows("lifecycle", "# Lifecycle") for test in shown_by(row)}
    assert {(CONTRACT, function) for function in functions_of(ROOT / CONTRACT)} - named == set()


# --- the pages themselves ---


def test_pages_exist_and_are_listed() -> None:
    assert tuple(MANUAL) == PAGES
    assert all(title(path) for path in MANUAL.values())
    for page in PAGES:
        assert f"(agent/penstock/manual/{page}.md)" in TEXTS["README"]


@pytest.mark.parametrize("document", TEXTS)
def test_links_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXTS[document]):
        assert "://" in target or (DOCUMENTS[document].parent / target).exists(), target


@pytest.mark.parametrize("document", TEXTS)
def test_files_that_are_named_exist(document: str) -> None:
    for span in spans(TEXTS[document]):
        if re.match(r"(agent|tests|rules|systemd)/[\w./-]+$", span):
            assert (ROOT / span).exists(), span


NOT_BUILT = r"iptables|hash.chain|metrics file"


def test_nothing_is_promised() -> None:
    """What is not there is named in the README's list of it, and nowhere else."""
    before, _, rest = TEXTS["README"].partition("## Not yet")
    after = rest.partition("\n## ")[2]
    for text in (before, after):
        assert re.findall(NOT_BUILT, text) == []
    for page in MANUAL:
        assert [line for line in TEXTS[page].splitlines() if re.search(NOT_BUILT, line)] == []


@pytest.mark.parametrize("document", TEXTS)
def test_prose_stays_within_the_page(document: str) -> None:
    """Lines of tables and of output may be longer."""
    plain = re.sub(r"^```.*?^```$", "", TEXTS[document], flags=re.MULTILINE | re.DOTALL)
    assert [line for line in plain.splitlines() if len(line) > 118 and not line.startswith("|")] == []
