"""The first rules of a workload: an example of rules/examples, made to fit this host.

The parser decides what fits.  Whatever of the example names networks or workloads that this host does not have, or
is a mistake here for another reason, stays in the file as a comment that says why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from penstock.core.checking import examine
from penstock.core.parse import Parsed, parse
from penstock.core.policy import Policy
from penstock.core.problems import Problem
from penstock.enrol.running import Listener
from penstock.errors import PenstockError

_LISTS = ("egress", "ingress", "tests")
_PORTS = re.compile(r"(?<=ports: \[)[^\]]*(?=\])")
_INGRESS_TEST = re.compile(r"(?<=- ingress from )(\S+) (\d+)")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_LOCAL = '[127.0.0.0/8, "::1"]'
_NOBODY = "CLIENTS"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the rules are for.  `about` are comment lines; `ports` were seen, or told by a command line."""

    path: str  # below the configuration directory
    workload: str
    match: str
    about: tuple[str, ...]
    ports: tuple[Listener, ...] = ()
    told: tuple[int, ...] = ()  # ports that command lines say
    clients: tuple[str, ...] = ()  # networks that clients are in


@dataclass(frozen=True, slots=True)
class Draft:
    """`left_out` says of each rule or test that does not fit this host why; `policy` is all files with it."""

    text: str
    left_out: tuple[str, ...]
    policy: Policy


@dataclass(slots=True)
class _Block:
    """One member of a list, its lines as they are in the file; with a reason it is a comment."""

    key: str
    lines: list[str]
    reason: str = ""
    first: int = 0  # line in the file that was composed last


@dataclass(slots=True)
class _Example:
    comments: list[str] = field(default_factory=list)
    blocks: list[_Block] = field(default_factory=list)


def draft(
    wanted: Wanted, example: str | None, files: Mapping[str, bytes], presets: Mapping[str, bytes], now: datetime
) -> Draft:
    """The file for `wanted` beside the other `files`.

    PenstockError when they would not pass `penstock check` together, whatever is left out.
    """
    read = _fitted(_read(example), wanted) if example else _Example(blocks=_plain(wanted))
    for _ in range(len(read.blocks) + 2):
        text = _compose(wanted, read)
        parsed = _judge({**files, wanted.path: text.encode()}, presets, now)
        if parsed.policy is not None:
            out = tuple(f"{_title(block)}: {block.reason}" for block in read.blocks if block.reason)
            return Draft(text, out, parsed.policy)
        if not _leave_out(read.blocks, wanted.path, parsed.problems):
            break
    wrong = next(problem for problem in parsed.problems if problem.severity == "error")
    if wrong.place.file != wanted.path:
        text = f"the rule files have mistakes, the first in {wrong.place}"
        raise PenstockError(text, hint="see: penstock check")
    raise PenstockError(f"its rules would not pass `penstock check`: {wrong.message}", hint=wrong.hint)


def _judge(files: Mapping[str, bytes], presets: Mapping[str, bytes], now: datetime) -> Parsed:
    return examine(parse(files, presets), now)


def _read(example: str) -> _Example:
    """Take an example apart.  It is one of ours: two blanks before a list's members, four inside."""
    found, key = _Example(), ""
    for line in example.splitlines():
        if line.startswith("#") and not key:
            found.comments.append(line)
        elif line[:1].isalpha():
            key = line.partition(":")[0]
        elif key in _LISTS and line.startswith("  - "):
            found.blocks.append(_Block(key, [line]))
        elif key in _LISTS and line.startswith("    ") and found.blocks:
            found.blocks[-1].lines.append(line)
    return found


def _fitted(example: _Example, wanted: Wanted) -> _Example:
    """With the ports that were seen: the example's main one may have another number here."""
    written = [n for b in example.blocks if b.key == "ingress" for line in b.lines for n in _numbers(line)]
    seen = {one.port for one in wanted.ports if one.protocol == "tcp"}
    strangers = sorted(seen - set(written))
    instead = [port for port in strangers if port in wanted.told] or (strangers if len(strangers) == 1 else [])
    renamed = {written[0]: instead} if written and written[0] not in seen and instead else {}
    blocks = [replace(block, lines=[_renumber(line, renamed) for line in block.lines]) for block in example.blocks]
    for block in blocks:
        ports = {n for line in block.lines for n in _numbers(line)}
        if block.key == "ingress" and seen and ports and not ports & seen:
            block.reason = "nothing listened there when this was written"
    return _Example(example.comments, blocks)


def _numbers(line: str) -> list[int]:
    """The ports that a line of a rule opens; of a range all of them."""
    found: list[int] = []
    inside = _PORTS.search(line)
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", inside[0] if inside else ""):
        found += range(int(first), int(last or first) + 1)
    return found


def _renumber(line: str, renamed: Mapping[int, Sequence[int]]) -> str:
    def of(text: str) -> list[str]:
        return [str(port) for port in renamed.get(int(text), (int(text),))]

    line = _PORTS.sub(lambda m: re.sub(r"\d+", lambda n: ", ".join(of(n[0])), m[0]), line)
    return _INGRESS_TEST.sub(lambda m: f"{m[1]} {of(m[2])[0]}", line)


def _plain(wanted: Wanted) -> list[_Block]:
    """Rules for a server that we do not know: its ports, to this host or to the networks of clients."""
    blocks = []
    for one in wanted.ports:
        port = f"{one.port}/udp" if one.protocol == "udp" else str(one.port)
        source = _LOCAL if one.local else f"[{', '.join(wanted.clients) or _NOBODY}]"
        block = _Block("ingress", [f"  - ports: [{port}]", f"    from: {source}"])
        if not one.local and not wanted.clients:
            block.reason = "name the network of its clients in penstock.yaml, with `plane: inference`"
        blocks.append(block)
    blocks.append(_Block("tests", ["  - egress 169.254.169.254:80 deny"]))
    return blocks


def _leave_out(blocks: Sequence[_Block], path: str, problems: Sequence[Problem]) -> bool:
    """Give each block that has an error its reason; False when no error is in one."""
    found = False
    for problem in problems:
        if problem.severity == "error" and problem.place.file == path:
            for block in blocks:
                inside = block.first <= problem.place.line < block.first + len(block.lines)
                if inside and not block.reason:
                    block.reason, found = problem.message, True
    return found


def _compose(wanted: Wanted, example: _Example) -> str:
    match = wanted.match if _PLAIN.match(wanted.match) else f"'{wanted.match}'"
    lines = [*(f"# {line}".rstrip() for line in wanted.about)]
    lines += ["#", *example.comments] if example.comments else []
    lines += ["version: 1", f"workload: {wanted.workload}", "mode: observe", f"match: {{unit: {match}}}"]
    for key in _LISTS:
        blocks = [block for block in example.blocks if block.key == key]
        active = any(not block.reason for block in blocks)
        if active:
            lines.append(f"{key}:")
        elif key != "tests":
            lines.append(f"{key}: []")
        for block in blocks:
            if block.reason:
                lines.append(f"  # left out: {block.reason}")
                lines += [f"  # {line[2:]}" for line in block.lines]
            else:
                block.first = len(lines) + 1
                lines += block.lines
        if key == "ingress":
            lines += _others(wanted.ports, blocks)
    return "\n".join(lines) + "\n"


def _others(ports: Sequence[Listener], blocks: Sequence[_Block]) -> list[str]:
    opened = {n for block in blocks for line in block.lines for n in _numbers(line)}
    rest = [f"{one.port}/{one.protocol}{' (this host only)' if one.local else ''}" for one in ports
            if one.port not in opened]  # fmt: skip
    if not rest:
        return []
    return [f"  # also listening, and opened by no rule: {', '.join(rest[:40])}{' ...' if rest[40:] else ''}"]


def _title(block: _Block) -> str:
    words = " ".join(" ".join(block.lines).split()).removeprefix("- ")
    return f"{'test' if block.key == 'tests' else block.key} `{words}`"
