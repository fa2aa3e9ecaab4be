"""Reading one tree of nodes: checks of shape, and the list of what was wrong.

Every reader returns None, or leaves something out, after it has told a problem; nobody raises, so that one
run tells all mistakes of a file.  What YAML would have made of an unquoted text is said here, once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from penstock.core.language.yaml_nodes import MAX_PROBLEMS, Items, Node, Pairs, Scalar, Unreadable
from penstock.core.policy import Place
from penstock.core.problems import Problem, Severity
from penstock.core.text import printable

_BOOLEANS = re.compile(r"(?:yes|no|on|off|true|false|y|n)\Z", re.IGNORECASE)
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


@dataclass(frozen=True, slots=True)
class Reference:
    """A name that must exist somewhere in the policy: whoever has all files checks it."""

    kind: Literal["network", "workload"]
    name: str
    place: Place


class Reader:
    """Collects the problems of one file, and the names it refers to."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self.references: list[Reference] = []

    def place(self, node: Node) -> Place:
        """Where a node starts."""
        return Place(self.path, node.line, node.column)

    def error(self, node: Node, code: str, message: str, hint: str) -> None:
        """Tell a mistake."""
        self._tell(node, "error", code, message, hint)

    def warn(self, node: Node, code: str, message: str, hint: str) -> None:
        """Tell something that is legal and yet looks wrong."""
        self._tell(node, "warning", code, message, hint)

    def _tell(self, node: Node, severity: Severity, code: str, message: str, hint: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(self.place(node), severity, code, message, hint))
        elif len(self.problems) == MAX_PROBLEMS:
            text = f"more than {MAX_PROBLEMS} problems in this file"
            self.problems.append(
                Problem(self.place(node), "error", "too-many-problems", text, "correct these first")
            )

    def text(self, node: Node, what: str) -> Scalar | None:
        """A text that is there, and that no YAML reader takes for true, false or nothing."""
        if isinstance(node, Unreadable):
            return None
        if not isinstance(node, Scalar):
            shape = "a list" if isinstance(node, Items) else "a mapping"
            self.error(node, "shape", f"{what} is {shape}", "write one text")
        elif node.text == "" or (node.plain and node.text in _NULLS):
            self.error(node, "empty", f"{what} is empty", "write a value, or leave the key out")
        elif node.plain and _BOOLEANS.match(node.text):
            hint = f'put it in quotes, "{node.text}", if that is what you mean'
            self.error(
                node, "yaml-boolean", f"{what}: YAML reads an unquoted `{node.text}` as true or false", hint
            )
        else:
            return node
        return None

    def boolean(self, node: Node, what: str) -> bool:
        """`true` or `false`, unquoted; False after a mistake."""
        if isinstance(node, Unreadable):
            return False
        if isinstance(node, Scalar) and node.plain and node.text in ("true", "false"):
            return node.text == "true"
        written = f"`{shown(node.text)}`" if isinstance(node, Scalar) else "this"
        self.error(
            node,
            "boolean",
            f"{what}: {written} is neither true nor false",
            "write true or false, without quotes",
        )
        return False

    def list_of(self, node: Node, what: str, example: str) -> list[Node] | None:
        """The members of a list; a single value is a mistake with a hint."""
        if isinstance(node, Items):
            return node.items
        if not isinstance(node, Unreadable):
            found = "a mapping" if isinstance(node, Pairs) else "one value"
            if isinstance(node, Scalar) and node.plain and node.text in _NULLS:
                found = "empty"
            self.error(node, "shape", f"{what} is {found} and must be a list", f"write {example}")
        return None

    def one_or_more(self, node: Node, what: str) -> list[Node]:
        """The members of a list, or the one value itself."""
        if isinstance(node, Items):
            return node.items
        if isinstance(node, Pairs):
            self.error(node, "shape", f"{what} is a mapping", "write one value or a list of values")
        return [] if isinstance(node, Pairs | Unreadable) else [node]

    def keys(
        self, node: Node, what: str, known: Collection[str], elsewhere: Mapping[str, str] | None = None
    ) -> dict[str, Node] | None:
        """A mapping by its keys; unknown keys are told and left out.

        `elsewhere` says of keys that exist in another file or list what to do with them.
        """
        if not isinstance(node, Pairs):
            if not isinstance(node, Unreadable):
                self.error(
                    node,
                    "shape",
                    f"{what} is not a mapping",
                    f"write `key: value`, with keys {', '.join(known)}",
                )
            return None
        found: dict[str, Node] = {}
        for key, value in node.pairs.items():
            if key.text in known:
                found[key.text] = value
            elif len(self.problems) <= MAX_PROBLEMS:
                hint = (elsewhere or {}).get(key.text) or near(key.text, known) or f"known are {', '.join(known)}"
                self.error(key, "unknown-key", f"{what} has no key `{shown(key.text)}`", hint)
        return found

    def version(self, node: Node, keys: Mapping[str, Node]) -> None:
        """`version: 1` must be there."""
        version = keys.get("version")
        if version is None:
            self.error(node, "version", "`version` is missing", "write `version: 1` as the first line")
        elif isinstance(version, Unreadable):
            pass
        elif not isinstance(version, Scalar) or version.text != "1":
            written = f"`{shown(version.text)}`" if isinstance(version, Scalar) else "this"
            self.error(version, "version", f"{written} is no version of the policy language", "write `version: 1`")


def shown(text: str) -> str:
    """Foreign text, short and safe, for a message."""
    return printable(text, 80)


def near(word: str, known: Collection[str]) -> str:
    """A hint that names what was probably meant, or nothing."""
    close = get_close_matches(word[:80].lower(), known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(f'`{name}`' for name in close)}?" if close else ""
