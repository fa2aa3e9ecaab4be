"""`penstock status` on a screen of 80 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from penstock.cli.format import (
    UNKNOWN,
    ago,
    clock,
    counted,
    local,
    moment,
    number,
    paint,
    span,
    table,
    width,
    wrapped,
)
from penstock.core.text import printable
from penstock.core.wire import Json

GOOD, WARN, BAD = "green", "yellow", "red"
STATES = {"enforcing": GOOD, "observing": WARN, "locked": WARN, "unenforced": BAD, "degraded": BAD}
MODES = {"observe": BAD}  # nothing is refused: that must strike the eye
SEVERITIES = {"error": BAD, "warning": WARN, "info": None}
ORDER = tuple(SEVERITIES)
NUMBERS = ("PROCS", "DENIED", "BLOCKS/1H")
WORKLOADS = 20
"""Workloads that are shown when there are more: those that want somebody's attention."""
FEWEST = 5
"""So many are shown, whether they do or not."""
QUIET = 3
GRANTS = 10
OF_ONE_CODE = 3
"""Findings of one code that are shown; there may be one for each rule."""
INDENT = 10
LISTENING = 20
"""Lines about open ports in the list of all workloads."""
OF_ONE_KIND = 6
"""Ports that differ in nothing else and are shown there."""
NOBODY = "nobody outside the workload"
HOW = {"slice": GOOD, "in-place": WARN}
IN_PLACE = "in-place: governed where it is; it comes into its slice at a restart after `penstock protect`"


def screen(
    status: Json, rules: Sequence[Json] | None, *, everything: bool = False, live: bool = False
) -> list[str]:
    """The lines; `rules` are those of the one workload that was asked for.

    `everything`: all workloads, grants and findings, however many.  `live`: without what does not change.
    """
    now = moment(status["time"]) or datetime.now(UTC)
    lines = [*_head(status, now), "", *_some_workloads(status["workloads"], everything=everything)]
    lines += _observed(status["workloads"])
    if rules is not None:
        lines += ["", *_units(status["workloads"])]
        lines += ["", *_rules(rules)]
    if not live or rules is not None:
        lines += _listening(status["workloads"], LISTENING if rules is None and not everything else None)
    if status["grants"]:
        lines += ["", "Grants", *_grants(status["grants"], now, None if everything else GRANTS)]
    if status["implicit"] and not live:
        lines += ["", "Always allowed"]
        lines += [line for text in status["implicit"] for line in wrapped(text, 4, "  - ")]
    lines += ["", *_findings(status["findings"], None if everything else OF_ONE_CODE)]
    return [line.rstrip() for line in lines]


def _head(status: Json, now: datetime) -> Iterator[str]:
    daemon, policy, kernel = status["daemon"], status["policy"], status["kernel"]
    since = ago(moment(daemon["since"]), now).removesuffix(" ago")
    version = printable(str(daemon["version"]))
    yield f"{'daemon':{INDENT}}running for {since}, version {version}, pid {daemon['pid']}"
    yield f"{'policy':{INDENT}}{_policy(policy, now)}"
    if policy.get("confirm_until") is not None:
        when = clock(moment(policy["confirm_until"]))
        yield " " * INDENT + paint(f"not confirmed: reverts at {when} unless `penstock confirm`", BAD)
    if policy["pending_files"]:
        count = policy["pending_files"]
        files = counted(count, "file")
        text = f"{files} {'differs' if count == 1 else 'differ'} from what is applied: penstock plan"
        yield " " * INDENT + paint(text, WARN)
    word, colour = {True: ("agrees", GOOD), False: ("DISAGREES", BAD)}.get(kernel["agrees"], ("not known", BAD))
    backend, checked = printable(str(kernel["backend"])), ago(moment(kernel["checked"]), now)
    yield f"{'kernel':{INDENT}}{backend} {paint(word, colour)}, checked {checked}"


def _policy(policy: Json, now: datetime) -> str:
    if policy["hash"] is None:
        return paint("none is applied: penstock apply", BAD)
    when = moment(policy["applied"])
    return f"{printable(policy['hash'])}, applied {local(when)} ({ago(when, now)})"


def _some_workloads(workloads: Sequence[Json], *, everything: bool) -> Iterator[str]:
    """Of many those that want attention, and how many others there are."""
    if everything or len(workloads) <= WORKLOADS:
        yield from _workloads(workloads)
        return
    first = sorted(workloads, key=_urgency)  # and by name, as they came
    wanting = sum(_urgency(one)[0] != QUIET for one in workloads)
    shown = min(max(wanting, FEWEST), WORKLOADS)
    yield from _workloads(first[:shown])
    rest = len(workloads) - shown
    quiet = sum(_urgency(one)[0] == QUIET for one in first[shown:])
    calm = "all of them enforce, and denied nothing in the last hour"
    what = calm if quiet == rest else f"{quiet} of them quiet"
    yield from _with_command(f"and {rest} more, {what}:", "penstock status --all", 0)


def _with_command(text: str, command: str, indent: int) -> Iterator[str]:
    """A command that is to be copied is never broken: it goes to a line of its own where it does not fit."""
    *lines, last = wrapped(text, indent)
    yield from lines
    if len(last) + 1 + len(command) <= width():
        yield f"{last} {command}"
    else:
        yield last
        yield " " * (indent + 2) + command


def _urgency(one: Json) -> tuple[int, int]:
    """What is not as the policy says comes first, then what is not enforced, then what was denied most."""
    states, blocks = {one["egress"], one["ingress"]}, one["blocks_1h"] or 0
    if one["outside"] or not states <= {"enforcing", "observing", "locked"}:
        return 0, 0
    if states != {"enforcing"}:
        return 1, 0
    return (2, -blocks) if blocks else (QUIET, 0)


def _workloads(workloads: Sequence[Json]) -> Iterator[str]:
    if not workloads:
        yield "no workloads; begin with: penstock protect UNIT"
        return
    both = any(one["egress"] != one["ingress"] for one in workloads)
    states = ("EGRESS", "INGRESS") if both else ("STATE",)
    header = ("WORKLOAD", "MODE", *states, "ENROLMENT", *NUMBERS)
    rows = [_row(one, both=both) for one in workloads]
    cells = table(header, rows, range(len(header) - len(NUMBERS), len(header)))
    spare = width() - len("  ".join(cells[0][1:])) - 2
    for row, one in zip(cells, ({}, *workloads), strict=True):
        name, rest = row[0].rstrip(), "  ".join(_coloured(row, one, both=both))
        if len(cells[0][0]) <= spare:
            yield f"{row[0]}  {rest}"
        elif len(name) <= spare:
            yield f"{name:{spare}}  {rest}"
        else:  # a long name stands on a line of its own: never cut, it is to be copied
            yield name
            yield f"{'':{max(spare, 0)}}  {rest}"


def _observed(workloads: Sequence[Json]) -> Iterator[str]:
    """How to go on with those that are to be enforced some day."""
    names = [printable(one["name"]) for one in workloads if one["mode"] == "observe" and not one["until"]]
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield from _with_command(
            f"only observed: {names[0]}{more}; the rules it needs:", f"penstock suggest {names[0]}", 0
        )


def _row(one: Json, *, both: bool) -> list[str]:
    until = moment(one["until"])
    mode = one["mode"] + (f" to {local(until)[11:16]}" if until else "")
    words = (one["name"], mode, one["egress"], *([one["ingress"]] if both else []), one["enrolment"])
    outside = f"+{one['outside']} out" if one["outside"] else ""
    numbers = (number(one["processes"]) + outside, number(one["denied"]), number(one["blocks_1h"]))
    return [*(printable(word) for word in words), *numbers]


def _coloured(row: Sequence[str], one: Json, *, both: bool) -> list[str]:
    if not one:
        return list(row[1:])
    states = [one["egress"], one["ingress"]] if both else [one["egress"]]
    colours = [MODES.get(one["mode"]), *(STATES.get(state, BAD) for state in states)]
    painted = [paint(cell, colour) for cell, colour in zip(row[1:], colours, strict=False)]
    return [*painted, *row[1 + len(painted) :]]


def _units(workloads: Sequence[Json]) -> Iterator[str]:
    """Where the processes of the one workload are, and what holds them there."""
    found = [unit for one in workloads for unit in one.get("units", ())]
    if not found:
        yield "no unit of it runs"
        return
    yield "Units"
    for one in found:
        count = one["processes"]
        size = f"{number(count)} {'process' if count == 1 else 'processes'}"
        yield f"  {printable(one['unit'])}: {paint(printable(one['how']), HOW.get(one['how']))}, {size}"
        yield f"      /{printable(one['cgroup'], 4096).lstrip('/')}"
    if any(one["how"] == "in-place" for one in found):
        yield from wrapped(IN_PLACE, 4)


def _listening(workloads: Sequence[Json], most: int | None) -> list[str]:
    """Who reaches the open ports, in `most` lines; nothing where none is open, or it is not known."""
    told = [
        (one["name"], _listener(one, same, most))
        for one in workloads
        for same in _alike(one.get("listening") or ())
    ]
    if not told:
        return []
    lines, left = ["", "Listening"], most
    for count, (_, some) in enumerate(told):
        if left is not None and len(some) > left:
            others = {name for name, _ in told[count:]}
            which = others.pop() if len(others) == 1 else "WORKLOAD"
            return [*lines, f"  and more: penstock status {which}"]
        left = None if left is None else left - len(some)
        lines += some
    return lines


def _alike(listening: Sequence[Json]) -> Iterator[list[Json]]:
    """Those that differ in nothing but the port stand together: some servers open dozens."""
    found: dict[Any, list[Json]] = {}
    for one in listening:
        key = (one["address"], one["protocol"], one["process"], tuple(one["reached_by"]), bool(one["rules"]))
        found.setdefault(key, []).append(one)
    yield from found.values()


def _listener(workload: Json, same: Sequence[Json], most: int | None) -> list[str]:
    one, suffix = same[0], "/udp" if same[0]["protocol"] == "udp" else ""
    ports = [f"{each['port']}{suffix}" for each in same]
    if most is not None and len(ports) > OF_ONE_KIND:
        ports[OF_ONE_KIND:] = [f"{len(ports) - OF_ONE_KIND} more"]
    address = printable(one["address"])
    where = f"[{address}]" if ":" in address else address
    process = f" ({printable(one['process'], 64)})" if one["process"] else ""
    words = [printable(word, 128) for word in one["reached_by"]]
    if workload["mode"] == "lock":
        words = ["nobody: locked"]
    elif not one["rules"]:
        words = [*words, "no rule"] if words else ["no rule: nobody outside the workload"]
    text = f"{workload['name']} {where}:{', '.join(ports)}{process} <- {', '.join(words) or NOBODY}"
    first, *rest = wrapped(text, 6)
    lines = [f"  {first.lstrip()}", *rest]
    return lines if one["rules"] else [paint(line, WARN) for line in lines]


def _rules(rules: Sequence[Json]) -> Iterator[str]:
    if not rules:
        yield "no rules: it may talk to nobody, and nobody to it"
        return
    yield f"{'HITS':>10}  RULE"
    for rule in rules:
        arrow = "out" if rule["direction"] == "out" else "in "
        first, *rest = wrapped(f"{arrow} {rule['text']}", 16)
        yield f"{number(rule['hits']):>10}  {first.lstrip()}"
        yield from rest
        where = "lent, see below" if rule["file"] is None else f"{rule['file']}:{rule['line']}"
        learned = "" if rule["names"] is None else f"  names learned now: {number(rule['names'])}"
        yield f"{'':>10}      {rule['id']}  {where}{learned}"


def _grants(grants: Sequence[Json], now: datetime, most: int | None) -> Iterator[str]:
    """Those that end first; what takes a workload out of its rules is red."""
    for one in grants[:most]:
        until = moment(one["until"])
        left = span(until - now) if until else UNKNOWN
        text = f"{one['id']}  {one['workload']}, {one['what']}: {left} left, {one['owner']}: {one['reason']}"
        colour = MODES.get(one["mode"]) if one.get("mode") else None
        yield from (paint(line, colour) for line in wrapped(text, 4, "  - "))
    if most is not None and len(grants) > most:
        yield f"  and {len(grants) - most} more: penstock grants"


def _findings(findings: Sequence[Json], most: int | None) -> Iterator[str]:
    if not findings:
        yield "no findings"
        return
    yield "Findings"
    seen: Counter[str] = Counter()
    for one in sorted(findings, key=_rank):
        seen[one["code"]] += 1
        if most is not None and seen[one["code"]] > most:
            continue
        about = f"{one['workload']}: " if one["workload"] else ""
        first, *rest = wrapped(f"{about}{one['text']} [{one['code']}]", INDENT)
        yield paint(f"  {one['severity']:<{INDENT - 2}}", SEVERITIES.get(one["severity"])) + first.lstrip()
        yield from rest
        if one["remedy"]:
            yield from wrapped(one["remedy"], INDENT + 3, " " * INDENT + "-> ")
    if most is None:
        return
    more = [f"{count - most} more [{code}]" for code, count in seen.items() if count > most]
    if more:
        yield from _with_command(f"and {', '.join(more)}:", "penstock status --all", 2)


def _rank(finding: Json) -> Any:
    severity = finding["severity"]
    return ORDER.index(severity) if severity in ORDER else -1
