"""Many files -> one Policy: names that must exist, things that must be there once, presets put in.

Where a file could not be read, names it may have defined are not reported as missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from penstock.core.label_bits import MAX_WORKLOADS
from penstock.core.language.parse_host import HostPart
from penstock.core.language.parse_rule import Use
from penstock.core.language.parse_workload import WorkloadPart
from penstock.core.language.reading import Reference, near, shown
from penstock.core.language.rule_ids import derived_id
from penstock.core.language.yaml_nodes import MAX_PROBLEMS
from penstock.core.policy import (
    NOWHERE,
    Known,
    Match,
    Network,
    Place,
    Policy,
    Ports,
    Rule,
    Upstream,
    Workload,
)
from penstock.core.presets import Preset, known_to
from penstock.core.problems import Problem

MAX_GUESSES = 50  # looking for names that were meant is slow


@dataclass(frozen=True, slots=True)
class _Claim:
    """One way to match, and who said so."""

    workload: str
    match: Match
    place: Place


class Assembly:
    """Collects parts; `problems` is what was found wrong between them."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._networks: dict[str, Network] = {}
        self._parts: dict[str, WorkloadPart] = {}
        self._workloads: dict[str, Workload] = {}
        self._admin_ports: Ports | None = None
        self._admin_ports_place = NOWHERE
        self._upstreams: tuple[Upstream, ...] | None = None
        self._upstreams_place = NOWHERE
        self._unread: set[str] = set()  # kinds of names that an unreadable file may have defined

    def add(self, part: HostPart | WorkloadPart | Preset | None, path: str) -> None:
        """Take what one file says; None is a file that could not be read."""
        if isinstance(part, HostPart):
            self._add_host(part)
        elif isinstance(part, WorkloadPart):
            self._add_workload(part)
        elif isinstance(part, Preset):
            hint = "put it into the directory presets, or write `workload: NAME`"
            self._error(Place(path, 1, 1), "preset", "a preset among the rules", hint)
        else:
            self._unread.add("workload" if path.startswith("rules.d/") else "network")

    def _error(self, place: Place, code: str, message: str, hint: str) -> None:
        self.problems.append(Problem(place, "error", code, message, hint))

    def _add_host(self, part: HostPart) -> None:
        for network in part.networks:
            first = self._networks.setdefault(network.name, network)
            if first is not network:
                text = f"network `{network.name}` is defined twice, first at {_at(first.place)}"
                self._error(network.place, "duplicate-network", text, "keep one of them")
        if part.admin_ports is not None:
            if self._admin_ports is not None:
                text = f"`admin_ports` is there twice, first at {_at(self._admin_ports_place)}"
                self._error(part.admin_ports_place, "duplicate-key", text, "keep one of them")
            self._admin_ports, self._admin_ports_place = part.admin_ports, part.admin_ports_place
        if part.upstreams is not None:
            if self._upstreams is not None:
                text = f"`upstream` is there twice, first at {_at(self._upstreams_place)}"
                self._error(part.upstreams_place, "duplicate-key", text, "keep one of them")
            self._upstreams, self._upstreams_place = part.upstreams, part.upstreams_place

    def _add_workload(self, part: WorkloadPart) -> None:
        if not part.name:
            self._unread.add("workload")
        # No name holds a `?`: a nameless workload is checked as well, and clashes with none.
        first = self._parts.setdefault(part.name or f"?{part.place.file}", part)
        if first is not part:
            text = f"workload `{part.name}` has two files, the first is {shown(first.place.file)}"
            self._error(part.place, "duplicate-workload", text, "keep one of them, or rename one")
        elif len(self._parts) == MAX_WORKLOADS + 1:
            text = f"more than {MAX_WORKLOADS} workloads on one host"
            self._error(part.place, "too-many-workloads", text, "let services with equal rules share one workload")

    def expand(self, presets: Mapping[str, Preset]) -> tuple[list[str], list[str]]:
        """Make workloads of the parts, presets put in.  Returns the names used: of presets, and of none."""
        used: dict[str, None] = {}
        missing: dict[str, None] = {}
        for part in self._parts.values():
            egress: list[Rule] = []
            mine: dict[str, Preset] = {}
            for rule in part.egress:
                if isinstance(rule, Rule):
                    egress.append(rule)
                elif rule.preset in mine:
                    text = f"the preset `{rule.preset}` is there twice"
                    self._error(rule.place, "duplicate-rule", text, "keep one of them")
                elif rule.preset in presets:
                    mine[rule.preset] = presets[rule.preset]
                    egress.extend(_preset_rules(rule, presets[rule.preset]))
                else:
                    missing[rule.preset] = None
                    known = f"known are {', '.join(sorted(presets)[:20])}" if presets else "none is installed"
                    hint = near(rule.preset, presets) or known
                    self._error(rule.place, "unknown-preset", f"there is no preset `{shown(rule.preset)}`", hint)
            used.update(dict.fromkeys(mine))
            self._check_ids((*egress, *part.ingress))
            if part.name:
                self._workloads[part.name] = _workload(part, egress, known_to(mine.values(), presets))
        self._check_claims()
        return list(used), list(missing)

    def _check_ids(self, rules: tuple[Rule, ...]) -> None:
        ids: dict[str, Rule] = {}
        said: dict[str, Rule] = {}
        for rule in rules:
            what = (
                derived_id(rule) if "/" in rule.id or not rule.id.startswith(("egress-", "ingress-")) else rule.id
            )
            if what in said:
                text = f"this rule says the same as the one in line {said[what].place.line}"
                self._error(rule.place, "duplicate-rule", text, "keep one of them")
            elif rule.id in ids:
                text = f"the name `{rule.id}` is also that of the rule in line {ids[rule.id].place.line}"
                self._error(rule.place, "duplicate-rule-id", text, "choose another name")
            ids.setdefault(rule.id, rule)
            said.setdefault(what, rule)

    def _check_claims(self) -> None:
        """Two workloads that match one thing.  Two globs are compared as texts only."""
        exact: dict[Match, _Claim] = {}
        globs: list[_Claim] = []
        for workload in self._workloads.values():
            for match in workload.match:
                claim = _Claim(workload.name, match, workload.place)
                first = exact.setdefault(match, claim)
                if first is not claim:
                    self._clash(claim, first)
                elif _is_glob(match.unit):
                    globs.append(claim)
        for claim in exact.values():
            if claim.match.unit and not _is_glob(claim.match.unit):
                for glob in globs:
                    if glob.workload != claim.workload and _covers(glob.match, claim.match):
                        self._clash(*sorted((claim, glob), key=lambda c: c.place, reverse=True))

    def _clash(self, claim: _Claim, first: _Claim) -> None:
        if claim.workload == first.workload:
            self._error(claim.place, "match", "`match` holds the same twice", "keep one of them")
            return
        what = shown(claim.match.unit or claim.match.container or claim.match.bridge or claim.match.exe)
        other = f"`{first.workload}` at {_at(first.place)}"
        text = f"workload `{claim.workload}` matches `{what}`, and so does {other}"
        self._error(claim.place, "duplicate-match", text, "let one thing belong to one workload")

    def check_references(self, references: Iterable[Reference]) -> None:
        """Networks and workloads that rules name must exist."""
        missing = 0
        for reference in references:
            known = self._networks if reference.kind == "network" else self._parts
            if reference.name in known or reference.kind in self._unread:
                continue
            missing += 1
            if missing > MAX_PROBLEMS:
                text = f"more than {MAX_PROBLEMS} names that do not exist"
                self._error(reference.place, "too-many-problems", text, "correct the others first")
                return
            hint = near(reference.name, known) if missing <= MAX_GUESSES else ""
            if not hint and reference.kind == "network":
                hint = "define it under `networks` in penstock.yaml"
                if reference.name in self._parts:
                    hint = f"write workload:{reference.name} for the workload"
            text = f"there is no {reference.kind} `{shown(reference.name)}`"
            self._error(
                reference.place, f"unknown-{reference.kind}", text, hint or "write a file for it in rules.d"
            )

    def policy(self, policy_hash: str) -> Policy:
        """The whole; only to be asked for when there is no error."""
        return Policy(
            networks=self._networks,
            workloads=dict(sorted(self._workloads.items())),
            admin_ports=self._admin_ports or Ports(),
            admin_ports_place=self._admin_ports_place,
            upstreams=self._upstreams or (),
            upstreams_place=self._upstreams_place,
            hash=policy_hash,
        )


def _workload(part: WorkloadPart, egress: Iterable[Rule], known: tuple[Known, ...]) -> Workload:
    return Workload(
        part.name, part.mode, tuple(egress), part.ingress, part.match, part.sentences, known, place=part.place
    )


def _preset_rules(use: Use, preset: Preset) -> Iterable[Rule]:
    for rule in preset.rules:
        expires = min((end for end in (use.expires, rule.expires) if end), default=None)
        yield replace(
            rule,
            id=f"{preset.name}/{rule.id}",
            preset=preset.name,
            reason=use.reason or rule.reason,
            expires=expires,
            place=use.place,
        )


def _at(place: Place) -> str:
    return f"{shown(place.file)}:{place.line}"


def _is_glob(unit: str) -> bool:
    return any(c in unit for c in "*?[")


def _covers(glob: Match, match: Match) -> bool:
    """Whether everything that `match` stands for, `glob` stands for too."""
    if glob.container or glob.bridge or glob.exe:
        return False
    return fnmatchcase(match.unit, glob.unit)
