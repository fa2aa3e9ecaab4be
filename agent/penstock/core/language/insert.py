"""Changing the text of a rule file by as little as possible: comments, order and spacing stay.

The places come from the YAML events; the text is cut there and nothing else is written anew.  Whoever uses this
parses the result and compares: a place that was misread must show as another policy, never be written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from penstock.core.language.parse_peer import quoted
from penstock.core.language.rule_ids import peer_text
from penstock.core.policy import EVERY_PORT, Direction, NamePeer, PortRange, Rule

_LOADER = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_HTTPS = (PortRange("tcp", 443, 443),)
_BOM = "\ufeff"


class CannotEdit(ValueError):
    """The text is not of a shape that can be changed in place; the message says why."""


@dataclass(frozen=True, slots=True)
class New:
    """A member to add: a rule, or `use:` of a preset when `rule` is None."""

    rule: Rule | None
    use: str = ""

    def pairs(self) -> list[tuple[str, str]]:
        """Its keys and values, as YAML in one line each."""
        if self.rule is None:
            return [("use", self.use)]
        rule = self.rule
        out = rule.direction is Direction.OUT
        peers = [_peer(peer_text(peer)) for peer in rule.peers]
        far = ("to" if out else "from", peers[0] if len(peers) == 1 else f"[{', '.join(peers)}]")
        ports = ("ports", f"[{', '.join(_ports(rule))}]")
        named = out and all(isinstance(peer, NamePeer) for peer in rule.peers)
        implied = named and rule.ports.ranges == _HTTPS and not rule.ports.icmp
        pairs = [far] if implied else [far, ports] if out else [ports, far]
        return [*pairs, ("private", "true")] if rule.private else pairs

    def block(self, indent: str = "") -> list[str]:
        """As a member of a list, a line a key."""
        return [f"{indent}{'- ' if n == 0 else '  '}{key}: {value}" for n, (key, value) in enumerate(self.pairs())]

    def flow(self) -> str:
        """As a member of a list in brackets."""
        return "{" + ", ".join(f"{key}: {value}" for key, value in self.pairs()) + "}"


def _peer(text: str) -> str:
    return f'"{text}"' if text.startswith("*") else text if text.startswith("workload:") else quoted(text)


def _ports(rule: Rule) -> list[str]:
    words = ["any"] if rule.ports.ranges == EVERY_PORT else [str(one) for one in rule.ports.ranges]
    return [*words, *(["icmp"] if rule.ports.icmp else [])]


class Text:
    """The text of a rule file, to be changed step by step.  CannotEdit where that is not possible.

    The text is one that `parse_file` takes without an error.
    """

    def __init__(self, data: bytes) -> None:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as e:
            raise CannotEdit("it is not UTF-8") from e
        self._bom = text.startswith(_BOM)
        self.text = text.removeprefix(_BOM)

    def as_bytes(self) -> bytes:
        """The text as it is now."""
        return ((_BOM if self._bom else "") + self.text).encode()

    def add(self, key: str, members: Sequence[New]) -> None:
        """Add members to the end of the list that the key of the file has."""
        if not members:
            return
        root, node = self._value(key)
        if not isinstance(node, yaml.SequenceNode):
            raise CannotEdit(f"`{key}` is no list")
        if root.flow_style or (node.flow_style and node.value):
            self._add_in_brackets(node, members)
        elif node.flow_style:
            self._add_instead_of_brackets(root, node, members)
        else:
            self._add_below(node, members)

    def set_word(self, key: str, word: str) -> None:
        """Put another word in the place of the value that the key of the file has."""
        _, node = self._value(key)
        if not isinstance(node, yaml.ScalarNode) or node.style in ("|", ">"):
            raise CannotEdit(f"`{key}` is not one word")
        self._cut(self._at(node.start_mark), self._at(node.end_mark), word)

    # --- places ---

    def _value(self, key: str) -> tuple[yaml.MappingNode, yaml.Node]:
        try:
            root = yaml.compose(self.text, Loader=_LOADER)
        except yaml.YAMLError as e:
            raise CannotEdit("it cannot be read as YAML") from e
        if not isinstance(root, yaml.MappingNode):
            raise CannotEdit("it is no mapping")
        for name, value in root.value:
            if name.value == key:
                return root, value
        raise CannotEdit(f"it has no `{key}`")

    def _starts(self) -> list[int]:
        return [0, *(found.end() for found in _BREAK.finditer(self.text))]

    def _at(self, mark: yaml.Mark) -> int:
        starts = self._starts()
        return starts[mark.line] + mark.column if mark.line < len(starts) else len(self.text)

    def _cut(self, start: int, end: int, instead: str) -> None:
        self.text = self.text[:start] + instead + self.text[end:]

    def _newline(self) -> str:
        found = _BREAK.search(self.text)
        return found[0] if found and found[0] in ("\r\n", "\r") else "\n"

    # --- the three shapes of a list ---

    def _add_in_brackets(self, node: yaml.SequenceNode, members: Sequence[New]) -> None:
        written = ", ".join(member.flow() for member in members)
        if node.value:
            at = self._at(_last(node.value[-1]).end_mark)
            self._cut(at, at, f", {written}")
        else:
            at = self._at(node.start_mark) + 1  # behind the bracket
            self._cut(at, at, written)

    def _add_instead_of_brackets(
        self, root: yaml.MappingNode, node: yaml.SequenceNode, members: Sequence[New]
    ) -> None:
        """`egress: []  # why` becomes `egress:  # why` and lines below."""
        start, end = self._at(node.start_mark), self._at(node.end_mark)
        if _BREAK.search(self.text[start:end]):
            raise CannotEdit("its empty list goes over several lines: write [] in one")
        bare = start
        while self.text[bare - 1] in " \t":
            bare -= 1
        line = _BREAK.search(self.text, end)
        stop = line.start() if line else len(self.text)
        indent = " " * (root.start_mark.column + 2)
        lines = [text for member in members for text in member.block(indent)]
        rest = self.text[end:stop].rstrip(" \t")
        self._cut(bare, stop, rest + "".join(self._newline() + text for text in lines))

    def _add_below(self, node: yaml.SequenceNode, members: Sequence[New]) -> None:
        """Behind the last line of the last member, and behind comments that stand inside of it."""
        dash = node.start_mark.column
        last = _last(node.value[-1])
        starts = self._starts()
        line = last.end_mark.line
        if isinstance(last, yaml.ScalarNode) and last.style in ("|", ">") and last.end_mark.column == 0:
            line -= 1  # the mark of such a text is behind its last line
            while line > last.start_mark.line and not self._line(starts, line).strip():
                line -= 1
        after = line + 1
        while after < len(starts) and self._is_inner_comment(starts, after, dash):
            after += 1
        lines = [text for member in members for text in member.block(" " * dash)]
        newline = self._newline()
        if after < len(starts):
            self._cut(starts[after], starts[after], "".join(text + newline for text in lines))
        else:
            self.text += "".join(newline + text for text in lines)

    def _line(self, starts: Sequence[int], number: int) -> str:
        end = starts[number + 1] if number + 1 < len(starts) else len(self.text)
        return self.text[starts[number] : end]

    def _is_inner_comment(self, starts: Sequence[int], number: int, dash: int) -> bool:
        line = self._line(starts, number)
        bare = line.lstrip(" ")
        return bare.startswith("#") and len(line) - len(bare) > dash


def _last(node: yaml.Node) -> yaml.Node:
    """What the text of the node ends with: of a block the mark is behind the comments that follow."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(node, yaml.MappingNode) else last
    return node
