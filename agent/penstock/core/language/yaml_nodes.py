"""YAML text -> a tree of texts with places; no meaning, no types, no resolver.

YAML reads `22:22` as 1342, `on` as true and `1.10` as 1.1.  Here every scalar stays the text that was
written, with a flag for "written without quotes", so that whoever expects a port or a name can say what YAML
would have made of it.  Anchors, aliases, tags, merge keys and second documents are refused; size, depth and
number of nodes are bounded, and nothing is ever expanded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import yaml

from penstock.core.language.yaml_mistakes import explain
from penstock.core.policy import Place
from penstock.core.problems import Problem
from penstock.core.text import printable

MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 16
MAX_NODES = 200_000
MAX_PROBLEMS = 500  # of one file; more are not told

# libyaml is twenty times as fast; both give the same events, in other words only for syntax errors.
_LOADER = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader

_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# Unquoted `*.name` and, inside brackets, `::1` end the reading of a file.  Such a file is read once more with
# the first character replaced by one of these, so that all its other mistakes are told as well.
_STAR, _COLON = "\ue000", "\ue001"
_STAR_TRAP = re.compile(r"(?<=[\s\[,])\*(?=\.)")
_COLON_TRAP = re.compile(r"(?<=[\s\[,]):(?=:)")


UNQUOTED_STAR = "an unquoted `*` is an alias in YAML"
UNQUOTED_COLON = "YAML does not reliably read an unquoted text that starts with `:`"


# These three are tuples and not dataclasses: a file may hold 200,000 of them.
class Scalar(NamedTuple):
    """A text as written.  `plain`: without quotes, so another YAML reader may take it for something else."""

    text: str
    plain: bool
    line: int
    column: int


class Items(NamedTuple):
    """A list."""

    items: list[Node]
    line: int
    column: int


class Pairs(NamedTuple):
    """A mapping: each key once, in the order of the file."""

    pairs: dict[Scalar, Node]
    line: int
    column: int


class Unreadable(NamedTuple):
    """Something that was already reported: readers pass over it in silence."""

    line: int
    column: int


Node: TypeAlias = Scalar | Items | Pairs | Unreadable


class _Stop(Exception):
    """The file cannot be read any further."""

    def __init__(self, line: int, column: int, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.told = (line, column, code, message, hint)


@dataclass(frozen=True, slots=True)
class Document:
    """`root` is None when the file could not be read to its end, or is empty (then there is no problem)."""

    root: Node | None
    problems: tuple[Problem, ...]


def read(path: str, data: bytes) -> Document:
    """Read one YAML document.  Never raises for bad content; `path` is only for places."""
    builder = _Builder(path)
    try:
        root = _read_twice(builder, _decode(data))
    except _Stop as stop:
        builder.tell(*stop.told)
        return Document(None, tuple(builder.problems))
    return Document(root, tuple(builder.problems))


def _read_twice(builder: _Builder, text: str) -> Node | None:
    try:
        return builder.build(text)
    except _Stop as stop:
        again = _COLON_TRAP.sub(_COLON, _STAR_TRAP.sub(_STAR, text))
        if stop.told[2] != "yaml-syntax" or again == text:
            raise
        builder.problems.clear()
        return builder.build(again, masked=True)


def _decode(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise _Stop(1, 1, "too-big", f"the file has more than {MAX_BYTES >> 20} MiB", "split it")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise _Stop(1, 1, "encoding", "the file is UTF-16", "save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _line_and_column(data[: error.start].decode("utf-8-sig", "replace"))
        byte = data[error.start] if error.start < len(data) else 0
        raise _Stop(
            line,
            column,
            "encoding",
            f"the byte 0x{byte:02x} is not UTF-8",
            "save the file as UTF-8 (not Latin-1)",
        ) from None
    if bad := _NOT_TEXT.search(text):
        line, column = _line_and_column(text[: bad.start()])
        what = f"a control character (U+{ord(bad.group()):04X}) in the text"
        hint = "save the file as UTF-8, not UTF-16" if bad.group() == "\0" else "remove it"
        raise _Stop(line, column, "encoding", what, hint)
    return text


def _line_and_column(before: str) -> tuple[int, int]:
    lines = re.split("\r\n|[\r\n\x85\u2028\u2029]", before)
    return len(lines), len(lines[-1]) + 1


class _Builder:
    """Turns events into nodes with a stack of its own: depth costs no recursion."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self.masked = False

    def tell(self, line: int, column: int, code: str, message: str, hint: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(Place(self.path, line, column), "error", code, message, hint))

    def build(self, text: str, *, masked: bool = False) -> Node | None:
        self.masked = masked
        root: list[Node] = []
        stack: list[list[Node]] = [root]
        starts: list[yaml.Event] = []
        for count, event in enumerate(_events(text)):
            if count > MAX_NODES:
                raise self._stop(
                    event, "too-many-nodes", f"more than {MAX_NODES:,} values in one file", "split it"
                )
            if isinstance(event, yaml.ScalarEvent):
                stack[-1].append(self._scalar(event))
            elif isinstance(event, yaml.CollectionStartEvent):
                if len(starts) == MAX_DEPTH:
                    raise self._stop(
                        event, "too-deep", f"nested more than {MAX_DEPTH} deep", "the rules need four levels"
                    )
                self._refuse_extras(event)
                starts.append(event)
                stack.append([])
            elif isinstance(event, yaml.CollectionEndEvent):
                stack[-2].append(self._collection(starts.pop(), stack.pop()))
            elif isinstance(event, yaml.AliasEvent):
                stack[-1].append(self._alias(event))
            elif isinstance(event, yaml.DocumentStartEvent) and root:
                raise self._stop(event, "documents", "a second document in one file", "write one file each")
        return root[0] if root else None

    def _stop(self, event: yaml.Event, code: str, message: str, hint: str) -> _Stop:
        return _Stop(*_at(event), code, message, hint)

    def _scalar(self, event: yaml.ScalarEvent) -> Scalar:
        if event.anchor is not None or event.tag is not None:
            self._refuse_extras(event)
        text, plain = event.value, not event.style
        line, column = _at(event)
        if self.masked and (_STAR in text or _COLON in text):
            trap = text[0] if plain else ""
            text = text.replace(_STAR, "*").replace(_COLON, ":")
            if trap in (_STAR, _COLON):
                what = UNQUOTED_STAR if trap == _STAR else UNQUOTED_COLON
                self.tell(line, column, "yaml-quote", what, f'write "{printable(text, 80)}"')
                plain = False
        return Scalar(text, plain, line, column)

    def _refuse_extras(self, event: yaml.NodeEvent) -> None:
        if event.anchor is not None:
            what = f"anchors (`&{printable(event.anchor, 40)}`) are not supported"
            self.tell(*_at(event), "yaml-anchor", what, "write the values out, or name them as a network")
        if (tag := getattr(event, "tag", None)) is not None:
            what = f"tags (`{printable(str(tag), 40)}`) are not supported"
            self.tell(
                *_at(event), "yaml-tag", what, 'leave the tag out; a text that starts with "!" must be quoted'
            )

    def _alias(self, event: yaml.AliasEvent) -> Unreadable:
        name = printable(str(event.anchor), 40)
        what = f"an unquoted `*{name}` is an alias in YAML, and aliases are not supported"
        self.tell(*_at(event), "yaml-alias", what, f'write "*{name}" in quotes, or the values themselves')
        return Unreadable(*_at(event))

    def _collection(self, start: yaml.Event, children: list[Node]) -> Node:
        line, column = _at(start)
        if isinstance(start, yaml.SequenceStartEvent):
            return Items(children, line, column)
        pairs: dict[Scalar, Node] = {}
        seen: dict[str, Scalar] = {}
        for key, value in zip(children[::2], children[1::2], strict=True):
            if not isinstance(key, Scalar):
                if not isinstance(key, Unreadable):
                    what = "a key must be a plain text"
                    self.tell(key.line, key.column, "yaml-key", what, "is this a template that was not filled in?")
            elif key.text == "<<":
                self.tell(
                    key.line,
                    key.column,
                    "yaml-merge",
                    "merge keys (`<<`) are not supported",
                    "write the values out",
                )
            elif key.text in seen:
                what = f"`{printable(key.text, 40)}` is there twice, first in line {seen[key.text].line}"
                self.tell(key.line, key.column, "duplicate-key", what, "keep one of them")
            else:
                seen[key.text] = key
                pairs[key] = value
        return Pairs(pairs, line, column)


def _at(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    return (1, 1) if mark is None else (mark.line + 1, mark.column + 1)


def _events(text: str) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        raise _Stop(*explain(error, text)) from None
    except yaml.YAMLError as error:
        raise _Stop(1, 1, "yaml-syntax", printable(str(error), 120), "check the text") from None
