"""YAML files -> Policy, or every mistake of all files at once.

`parse_file` reads one file and knows nothing of the others, so that its result can be kept as long as the
content stays the same.  `assemble` puts the results together: names that must exist, things that must be
there once, presets.  What a file is, its content says: `workload:` is a workload, `preset:` is a preset, the
rest is about the host.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from penstock.core.language.assemble import Assembly
from penstock.core.language.parse_host import HostPart, read_host
from penstock.core.language.parse_preset import read_preset
from penstock.core.language.parse_workload import WorkloadPart, read_workload
from penstock.core.language.reading import Reader, Reference, shown
from penstock.core.language.yaml_nodes import Node, Pairs, read
from penstock.core.policy import Place, Policy
from penstock.core.presets import Preset
from penstock.core.problems import Problem, any_error, in_order

PRESETS = "presets/"
"""Where presets are, below a configuration directory."""

NOTHING = Policy()
_OF_A_WORKLOAD = frozenset({"workload", "mode", "match", "egress", "ingress", "tests"})


@dataclass(frozen=True, slots=True)
class FileResult:
    """One file, read.  `part` is None when the file was unreadable, or too wrong to say what it is about."""

    path: str
    digest: str  # sha256 of the content, hexadecimal
    part: HostPart | WorkloadPart | Preset | None
    references: tuple[Reference, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Parsed:
    """`policy` is None when one of the problems is an error; `host` is then what is said of networks, as far as it
    was understood.  `presets` are the files of those in use.
    """

    policy: Policy | None
    problems: tuple[Problem, ...]
    host: Policy = NOTHING
    presets: tuple[str, ...] = ()


def parse_file(path: str, data: bytes) -> FileResult:
    """Read one file.  `path`, relative to the directory, is what problems say.  Content is never too bad."""
    digest = hashlib.sha256(data).hexdigest()
    document = read(path, data)
    if document.root is None:
        problems = document.problems or (_empty(path),)
        return FileResult(path, digest, None, (), problems)
    reader = Reader(path)
    part = _read_part(reader, path, document.root)
    return FileResult(path, digest, part, tuple(reader.references), (*document.problems, *reader.problems))


def _read_part(reader: Reader, path: str, root: Node) -> HostPart | WorkloadPart | Preset | None:
    keys = {key.text for key in root.pairs} if isinstance(root, Pairs) else set()
    if "preset" in keys and "workload" not in keys:
        return read_preset(reader, root)
    if keys & _OF_A_WORKLOAD and ("workload" in keys or not keys & {"networks", "host", "dns"}):
        return read_workload(reader, root)
    if path.startswith("rules.d/"):
        return read_workload(reader, root)
    return read_host(reader, root)


def _empty(path: str) -> Problem:
    return Problem(
        Place(path, 1, 1), "error", "empty", "the file is empty", "write `version: 1`, or remove the file"
    )


def assemble(results: Sequence[FileResult], presets: Mapping[str, FileResult]) -> Parsed:
    """Put files together.  `presets` by file name, and each is known by the name in its file.

    Problems of a preset file count only when a workload uses it.
    """
    assembly = Assembly()
    for result in sorted(results, key=lambda result: result.path):
        assembly.problems.extend(result.problems)
        assembly.add(result.part, result.path)
    known = {part.name: result for result in presets.values() if isinstance(part := result.part, Preset)}
    used, missing = assembly.expand({name: r.part for name, r in known.items() if isinstance(r.part, Preset)})
    assembly.problems.extend(same_name(used, presets.values()))
    read = [known[name] for name in used]
    read += [presets[path] for name in missing if (path := f"{name}.yaml") in presets]
    if any(isinstance(result.part, Preset) and result.part.knows_all for result in read):
        read = list(presets.values())
    assembly.problems.extend(problem for result in read for problem in preset_problems(result))
    assembly.check_references([reference for result in results for reference in result.references])
    problems, paths = in_order(assembly.problems), tuple(result.path for result in read)
    if any_error(problems):
        return Parsed(None, problems, replace(assembly.policy(""), workloads={}), paths)
    contents = [(result.path, result.digest) for result in results]
    contents += [(f"preset:{part.name}", r.digest) for r in read if isinstance(part := r.part, Preset)]
    return Parsed(assembly.policy(_hash(contents)), problems, presets=paths)


def preset_problems(result: FileResult) -> Iterator[Problem]:
    """What is wrong with a file of the presets, at places below the configuration directory."""
    path = _below_presets(result.path)
    if not isinstance(result.part, Preset) and not any_error(result.problems):
        text = "the file is no preset"
        yield Problem(Place(path, 1, 1), "error", "preset", text, "write `preset: NAME` and what it opens")
    for problem in result.problems:
        yield replace(problem, place=Place(path, problem.place.line, problem.place.column))


def same_name(used: Collection[str], results: Iterable[FileResult]) -> Iterator[Problem]:
    """Of two files that say the same name, which one is meant?"""
    first: dict[str, str] = {}
    for result in results:
        if isinstance(result.part, Preset) and result.part.name in used:
            before = first.setdefault(result.part.name, result.path)
            if before != result.path:
                text = f"the preset `{result.part.name}` is also in {shown(before)}"
                place = Place(_below_presets(result.path), result.part.place.line, result.part.place.column)
                hint = f"call this one {shown(before)} to replace it, or give it another name"
                yield Problem(place, "error", "preset", text, hint)


def _below_presets(path: str) -> str:
    return path if path.startswith(PRESETS) else PRESETS + path


def _hash(contents: list[tuple[str, str]]) -> str:
    total = hashlib.sha256()
    for path, digest in sorted(contents):
        total.update(f"{path}\0{digest}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()[:12]


def parse(files: Mapping[str, bytes], presets: Mapping[str, bytes] | None = None) -> Parsed:
    """Read and assemble: `files` and `presets` are contents by relative path."""
    results = [parse_file(path, data) for path, data in files.items()]
    return assemble(results, {path: parse_file(path, data) for path, data in (presets or {}).items()})
