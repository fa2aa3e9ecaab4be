"""A file of rules.d: one workload."""

from __future__ import annotations

import re
from dataclasses import dataclass

from penstock.core.language.parse_host import is_interface, read_own_name
from penstock.core.language.parse_rule import Use, read_rules
from penstock.core.language.parse_sentence import read_sentences
from penstock.core.language.reading import Reader, near, shown
from penstock.core.language.yaml_nodes import Items, Node, Unreadable
from penstock.core.policy import Direction, Match, Mode, Place, Rule, Sentence

WORKLOAD_KEYS = ("version", "workload", "mode", "match", "egress", "ingress", "tests")
MAX_MATCHES = 100

_ELSEWHERE = dict.fromkeys(("networks", "host", "dns"), "it belongs into penstock.yaml")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@*?\[\]!-]{1,255}\Z")
_UNIT_KINDS = (".service", ".scope", ".slice", ".socket")
_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")
_EXE = re.compile(r"/[^\0\n]{1,4000}\Z")


@dataclass(frozen=True, slots=True)
class WorkloadPart:
    """What one workload file says, `use:` not yet replaced."""

    name: str
    mode: Mode
    match: tuple[Match, ...]
    egress: tuple[Rule | Use, ...]
    ingress: tuple[Rule, ...]
    sentences: tuple[Sentence, ...]
    place: Place


def read_workload(reader: Reader, root: Node) -> WorkloadPart | None:
    """The workload of one file; None when it has no keys at all, and nameless after a mistake in its name."""
    keys = reader.keys(root, "a workload file", WORKLOAD_KEYS, _ELSEWHERE)
    if keys is None:
        return None
    reader.version(root, keys)
    name = ""
    if "workload" not in keys:
        reader.error(root, "workload", "`workload` is missing", "write `workload: NAME`; one file, one workload")
    else:
        scalar = reader.text(keys["workload"], "`workload`")
        if scalar is not None and read_own_name(reader, scalar, "workload"):
            name = scalar.text
    mode = _read_mode(reader, root, keys)
    match = _read_matches(reader, keys["match"]) if "match" in keys else ()
    egress = _read_list(reader, root, keys, Direction.OUT)
    ingress = _read_list(reader, root, keys, Direction.IN)
    sentences = read_sentences(reader, keys["tests"]) if "tests" in keys else ()
    only_rules = tuple(rule for rule in ingress if isinstance(rule, Rule))
    place = reader.place(keys.get("workload", root))
    return WorkloadPart(name, mode, match, egress, only_rules, sentences, place)


def _read_list(reader: Reader, root: Node, keys: dict[str, Node], direction: Direction) -> tuple[Rule | Use, ...]:
    key = "egress" if direction is Direction.OUT else "ingress"
    if key not in keys:
        reader.error(root, "rules", f"`{key}` is missing", f"write `{key}: []` if nothing shall be open")
        return ()
    return read_rules(reader, keys[key], direction)


def _read_mode(reader: Reader, root: Node, keys: dict[str, Node]) -> Mode:
    if "mode" not in keys:
        hint = "write `mode: enforce`, or `mode: observe` to record only"
        reader.error(root, "mode", "`mode` is missing", hint)
        return Mode.ENFORCE
    scalar = reader.text(keys["mode"], "`mode`")
    if scalar is None:
        return Mode.ENFORCE
    if scalar.text not in list(Mode):
        hint = near(scalar.text, list(Mode)) or "write observe, enforce or lock"
        reader.error(scalar, "mode", f"`{shown(scalar.text)}` is no mode", hint)
        return Mode.ENFORCE
    return Mode(scalar.text)


def _read_matches(reader: Reader, node: Node) -> tuple[Match, ...]:
    items = node.items if isinstance(node, Items) else [node]
    if not items:
        hint = "leave it out for a workload that only `penstock run` starts"
        reader.error(node, "match", "`match` is an empty list", hint)
    if len(items) > MAX_MATCHES:
        reader.error(items[MAX_MATCHES], "match", f"more than {MAX_MATCHES} ways to match", "use a glob in `unit`")
    found = (_read_match(reader, item) for item in items[:MAX_MATCHES])
    return tuple(match for match in found if match is not None)


def _read_match(reader: Reader, node: Node) -> Match | None:
    keys = reader.keys(node, "`match`", ("unit", "container", "bridge", "exe"))
    if keys is None:
        return None
    if not keys:
        reader.error(
            node,
            "match",
            "`match` is empty and would match everything",
            "write `match: {unit: NAME.service}`",
        )
        return None
    values: dict[str, str] = {}
    for key, value in keys.items():
        scalar = reader.text(value, f"`{key}`")
        if scalar is None:
            continue
        if wrong := wrong_match(key, scalar.text):
            reader.error(scalar, "match", f"`{shown(scalar.text)}`: {wrong[0]}", wrong[1])
        values[key] = scalar.text
    return Match(**values) if values or not isinstance(node, Unreadable) else None


def wrong_match(key: str, text: str) -> tuple[str, str] | None:
    """What is wrong with a value of `match:`, and what to write instead; None when it is right."""
    if key == "unit":
        if not _UNIT.match(text):
            return "a unit's name does not hold such characters", "write it as `systemctl` shows it"
        if not text.endswith(_UNIT_KINDS):
            return "a unit's name ends in its kind", f"write {shown(text)}.service"
        if not re.search(r"[A-Za-z0-9]", text.rpartition(".")[0]):
            return "this matches every unit of the host", "name the unit"
    if key == "container" and not _CONTAINER.match(text):
        return "this cannot be the name of a container", "write the name that `docker ps` shows"
    if key == "bridge" and not is_interface(text):
        return "this cannot be an interface", "write its name as `ip link` shows it"
    if key == "exe" and not (_EXE.match(text) and text.isprintable()):
        return "an executable is an absolute path", "write it as /usr/bin/NAME"
    return None
