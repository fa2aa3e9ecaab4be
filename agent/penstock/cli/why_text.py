"""The answer of `penstock why`, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from penstock.cli.applied import path_of
from penstock.cli.format import localised, paint, wrapped
from penstock.cli.why_names import KEYS, Known
from penstock.core.asking import Answer
from penstock.core.blocks import DNS_PORT
from penstock.core.lookups import known_as
from penstock.core.name_rules import resolves
from penstock.core.nearest import describe, is_lent
from penstock.core.policy import AddressPeer, Direction, Mode, NamePeer, Policy, Sentence, Workload
from penstock.core.text import printable, time_text


class Kernel(StrEnum):
    """What the kernel says to the same question."""

    AGREES = "agrees"
    DISAGREES = "disagrees"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Shown:
    """A question and everything that was found out; `config` is where the rule files are.

    `names`: what the daemon knows of the name or address, None when it was not asked or did not answer.
    """

    policy: Policy
    workload: Workload
    sentence: Sentence
    answer: Answer
    kernel: Kernel
    config: Path | None
    names: Known | None = None

    @property
    def effect(self) -> str:
        """What happens to it now: "allow", "deny", "would-deny", or "mixed" when it depends on the address."""
        if self.answer.allow is None:
            return "mixed"
        if self.answer.allow:
            return "allow"
        return "would-deny" if self.workload.mode is Mode.OBSERVE else "deny"


HEADINGS = {
    "allow": ("ALLOWED", "green"),
    "deny": ("DENIED", "red"),
    "would-deny": ("WOULD BE DENIED, passes now: the workload is in observe mode", "yellow"),
    "mixed": ("DEPENDS on the address", "yellow"),
}
VERDICTS = {True: "allow", False: "deny", None: None}
KERNEL = {
    Kernel.AGREES: ("agrees", "green"),
    Kernel.UNKNOWN: ("unknown", None),
    Kernel.DISAGREES: ("DISAGREES: what it does is not what the policy says; see: penstock status", "red"),
}


def lines(found: Shown) -> list[str]:
    """For people."""
    heading, colour = HEADINGS[found.effect]
    if found.answer.allow is None and found.answer.by_interface:
        heading = "DEPENDS on the interface"
    word, kernel_colour = KERNEL[found.kernel]
    result = [f"{paint(heading, colour, bold=True)}  {_subject(found)}"]
    both = found.answer.allowed and found.answer.denied
    texts = _both(found.answer) if both else [found.answer.verdict.text]
    result += [line for text in texts for line in wrapped(localised(text), 2)]
    rule = _place(found, "rule") or _place(found, "nearest")
    if rule is not None and rule["file"] is not None:  # of what is lent all was said
        result.append(f"  {_where(rule)}")
    by_name = found.names.lines(found.policy, found.workload, found.answer) if found.names else ()
    result += [line for text in by_name for line in wrapped(text, 2)]
    if isinstance(found.sentence.peer, NamePeer) and found.names and found.kernel is Kernel.UNKNOWN:
        word += ", it can only be asked about addresses"
    result.append(f"  kernel: {paint(word, kernel_colour)}")
    result += [line for note in notes(found) for line in wrapped(note, 8, "  note: ")]
    return result


def as_json(found: Shown) -> dict[str, Any]:
    """For programs."""
    peer, verdict = found.sentence.peer, found.answer.verdict
    return {
        "v": 1,
        "workload": found.workload.name,
        "direction": found.sentence.direction.value,
        "question": found.sentence.text,
        "address": str(peer.address) if isinstance(peer, AddressPeer) else None,
        "name": peer.pattern if isinstance(peer, NamePeer) else None,
        "protocol": found.sentence.protocol,
        "port": found.sentence.port,
        "verdict": VERDICTS[found.answer.allow],
        "effect": found.effect,
        "mode": found.workload.mode.value,
        "reason": verdict.reason.value,
        "text": verdict.text,
        "rule": _place(found, "rule"),
        "nearest": _place(found, "nearest"),
        "kernel": found.kernel.value,
        "policy": found.policy.hash,
        "notes": list(notes(found)),
        **(found.names.as_json() if found.names else dict.fromkeys(KEYS)),
    }


def notes(found: Shown) -> Iterator[str]:
    """What else one should know."""
    peer, name = found.sentence.peer, found.workload.name
    ours = _goes_out(found) and resolves(found.workload) and found.workload.mode is not Mode.LOCK
    if isinstance(peer, NamePeer) and found.answer.allow and found.names is None and ours:
        yield "its addresses are open once they are looked up; whether they were is known to the daemon alone"
    elif isinstance(peer, AddressPeer) and peer.address.is_loopback and found.workload.mode is not Mode.LOCK:
        own = f"{name} always reaches its own listeners here" if _goes_out(found) else f"{name} itself always may"
        yield f"{own}; this is about every other {'listener' if _goes_out(found) else 'process'}"
    if isinstance(peer, NamePeer) and found.answer.allow is False:
        known = known_as(found.workload, peer.pattern)
        if known is not None:
            yield f"{known.kind}, which preset {known.preset} leaves closed: {known.text}"
    if ours and found.sentence.port == DNS_PORT:
        yield f"look-ups of {name} go to penstock's resolver all the same, whomever it asks: rules by name decide"
    if found.answer.allow is None and found.answer.by_interface:
        way = "leaves" if _goes_out(found) else "comes"
        yield f"an address does not tell by which interface it {way}; ask about a network by its name"
    if found.kernel is Kernel.DISAGREES:
        yield "the exit status is 2: policy and kernel give different answers"


def _goes_out(found: Shown) -> bool:
    return found.sentence.direction is Direction.OUT


def _subject(found: Shown) -> str:
    question = printable(found.sentence.text)
    if _goes_out(found):
        return f"{found.workload.name} -> {question}"
    return f"{question.removeprefix('from ').rpartition(' ')[0]} -> {found.workload.name} {question.split()[-1]}"


def _both(answer: Answer) -> Iterator[str]:
    for word, item in (("allowed", answer.allowed), ("denied", answer.denied)):
        if item is not None:
            over = item[0].interface
            where = [f"over {over or 'any other'}"] if over or answer.by_interface else []
            where += [] if answer.by_interface else [f"for {item[0].remote}"]
            yield f"{word} {' '.join(where)}: {item[1].text}"


def _place(found: Shown, which: str) -> dict[str, Any] | None:
    """The rule that allows, or that came nearest: its id, words and place."""
    verdict = found.answer.verdict
    wanted = verdict.rule if which == "rule" else verdict.nearest
    for rule in found.workload.rules:
        if rule.id == wanted:
            if is_lent(rule):
                where: dict[str, Any] = {"file": None, "line": None, "until": time_text(rule.expires)}
            else:
                where = {"file": path_of(rule.place, found.config), "line": rule.place.line}
            return {"id": rule.id, "text": describe(rule), **where}
    return None


def _where(rule: dict[str, Any]) -> str:
    """Where it stands."""
    return f"rule {rule['id']}: {rule['file']}:{rule['line']}"
