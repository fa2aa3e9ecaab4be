"""Edits of a rule file, each proved: the new text says what the old one said, what was wanted, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from penstock.core.language.insert import CannotEdit, New, Text
from penstock.core.language.parse_rule import Use
from penstock.core.language.parse_workload import WorkloadPart
from penstock.core.parse import parse_file
from penstock.core.policy import NOWHERE, Direction, Mode, Rule
from penstock.core.problems import any_error

__all__ = ["CannotEdit", "New", "with_mode", "with_rules"]


def with_rules(path: str, data: bytes, members: Sequence[New]) -> bytes:
    """The file with these rules at the ends of its lists.  CannotEdit."""
    text, before = Text(data), _part(path, data)
    egress = [new for new in members if _direction(new) is Direction.OUT]
    ingress = [new for new in members if _direction(new) is Direction.IN]
    text.add("ingress", ingress)
    text.add("egress", egress)
    wanted = replace(
        before,
        egress=(*before.egress, *map(_said, egress)),
        ingress=(*before.ingress, *(new.rule for new in ingress if new.rule is not None)),
    )
    return _proved(path, text.as_bytes(), wanted)


def with_mode(path: str, data: bytes, mode: Mode) -> bytes:
    """The file with another mode.  CannotEdit."""
    text, before = Text(data), _part(path, data)
    if before.mode is mode:
        return data
    text.set_word("mode", mode.value)
    return _proved(path, text.as_bytes(), replace(before, mode=mode))


def _proved(path: str, data: bytes, wanted: WorkloadPart) -> bytes:
    if _bare(_part(path, data)) != _bare(wanted):
        raise CannotEdit("the changed text would not say what was meant")
    return data


def _part(path: str, data: bytes) -> WorkloadPart:
    result = parse_file(path, data)
    if not isinstance(result.part, WorkloadPart) or any_error(result.problems):
        raise CannotEdit("it has mistakes, see: penstock check")
    return result.part


def _bare(part: WorkloadPart) -> WorkloadPart:
    """Without places: these move."""
    egress = tuple(replace(one, place=NOWHERE) if isinstance(one, Use) else one for one in part.egress)
    return replace(part, egress=egress, place=NOWHERE)


def _direction(new: New) -> Direction:
    return new.rule.direction if new.rule is not None else Direction.OUT


def _said(new: New) -> Rule | Use:
    return new.rule if new.rule is not None else Use(new.use, "", None, NOWHERE)
