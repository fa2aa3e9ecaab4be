"""From the words of `penstock grant` to a Grant, or to a sentence that says why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import ceil

from penstock.core.advice import has_port
from penstock.core.coverage import Cover
from penstock.core.grants import (
    MAX_ALL,
    MAX_OF_ONE,
    MAX_PEERS,
    MAX_RULES,
    Grant,
    beside,
    missing,
    with_grants,
)
from penstock.core.language.parse_peer import BadPeer, peer
from penstock.core.language.parse_ports import BadPorts, merged, port_range
from penstock.core.language.reading import near, shown
from penstock.core.language.rule_ids import peer_text
from penstock.core.lint import lint
from penstock.core.name_rules import resolves
from penstock.core.names import shared_suffix
from penstock.core.nearest import called, describe, is_over, terms
from penstock.core.parse import parse_file
from penstock.core.policy import (
    EVERY_PORT,
    AnyPeer,
    Cidr,
    CidrPeer,
    Direction,
    Mode,
    NamePeer,
    NetworkPeer,
    Peer,
    Place,
    PlanePeer,
    Policy,
    PortRange,
    Ports,
    Rule,
    Workload,
    WorkloadPeer,
)
from penstock.core.presets import Preset
from penstock.core.problems import Problem, any_error
from penstock.core.text import printable
from penstock.core.unenforced import CODE, unenforced
from penstock.core.wire import LONGEST_GRANT, Json

LONGEST_REASON = 200
LONGEST_USER = 64
WIDEST = {4: 16, 6: 48}
"""The shortest prefix that is lent without more ado."""
NEW_PRESETS = "see: penstock presets; a new one can be lent after: penstock apply"
BY_PAIR = "one-sided"
"""A problem of lint: the other workload has no rule for this one.  It may be lent as well, afterwards."""


class BadGrant(ValueError):
    """It is not lent: why, and what to do instead."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Request:
    """Who wants what, when, under which policy.  `presets` are files by path, `lent` what is lent already."""

    said: Json  # the arguments of the command
    login: str  # who logged in, as the kernel knows it; "" where it does not
    now: datetime
    uptime: float
    policy: Policy  # of the files
    presets: Mapping[str, bytes]
    lent: Sequence[Grant]


def grant(request: Request, name: str) -> tuple[Grant, list[str]]:
    """The grant, with the id `name`, and what one should know about it.  BadGrant when it is not to be."""
    said, policy = request.said, request.policy
    workload = workload_of(policy, said["workload"])
    if workload.mode is Mode.LOCK:
        text = f"{workload.name} is locked: everything is denied to it, granted or not"
        raise BadGrant(text, "give it another mode first")
    reason = reason_of(said["reason"])
    until = until_of(request)
    try:
        direction = Direction(said["direction"])
    except ValueError:
        raise BadGrant("the direction is out or in") from None
    rules, preset = _rules(request, direction, name, until)
    what = f"preset {preset}" if preset else describe(rules[0])
    ends = request.uptime + (until - request.now).total_seconds()
    owner = owner_of(request.login, said["user"])
    made = Grant(name, workload.name, what, rules, until, ends, owner, reason, request.now, preset)
    _check_references(policy, made)
    _check_width(policy, made, wide=bool(said["wide"]))
    notes = list(_problems(policy, workload, made))
    _check_news(request, workload, made)
    notes += _look_ups(request, workload, made)
    room_for(request, workload)
    if workload.mode is Mode.OBSERVE:
        notes.insert(0, f"{workload.name} is in observe mode: nothing is denied to it, with or without the grant")
    return made, notes


def owner_of(login: str, user: str) -> str:
    """Whose grant it is, in words that tell what is known from what was only said."""
    claimed = printable(user, LONGEST_USER)
    if login:
        return login if claimed in ("", login) else f"{login} (as {claimed})"
    return f"{claimed} (says sudo)" if claimed else "root"


# --- what is asked for ---


def workload_of(policy: Policy, name: str) -> Workload:
    """The workload of that name.  BadGrant when there is none."""
    if name in policy.workloads:
        return policy.workloads[name]
    names = sorted(policy.workloads)
    hint = near(name, names) or (f"there are {', '.join(names[:10])}" if names else "it has none")
    raise BadGrant(f"the policy in force has no workload `{shown(name)}`", hint)


def reason_of(text: str) -> str:
    """Why, in one line.  BadGrant when it is missing or too long."""
    words = " ".join(text.split())
    if not words:
        raise BadGrant("a grant needs a reason", 'write --reason "why, and who may be asked"')
    if len(words) > LONGEST_REASON:
        raise BadGrant(f"the reason has more than {LONGEST_REASON} characters", "shorten it")
    return printable(words, LONGEST_REASON)


def until_of(request: Request) -> datetime:
    """Its end, a whole second: nothing ends before it."""
    seconds, at = request.said["seconds"], request.said["until"]
    if bool(seconds) == bool(at):
        raise BadGrant("a grant needs an end", "write --for 30m or --until 18:00")
    end = float(at) if at else request.now.timestamp() + seconds
    left = end - request.now.timestamp()
    if left <= 0:
        raise BadGrant("that is over already", "write --for 30m, or a later --until")
    if left > LONGEST_GRANT:
        hint = "write a rule with `expires:` into its file"
        raise BadGrant(f"nothing is lent for more than {LONGEST_GRANT // 86_400} days", hint)
    return datetime.fromtimestamp(ceil(end), UTC)


def _rules(request: Request, direction: Direction, name: str, until: datetime) -> tuple[tuple[Rule, ...], str]:
    """The rules, and the preset that they are of."""
    said, policy = request.said, request.policy
    word, ports = said["peer"], said["ports"]
    try:
        far = peer(word, direction)
    except BadPeer as e:
        raise BadGrant(str(e), e.hint) from e
    if isinstance(far, NetworkPeer) and direction is Direction.OUT:
        found = _preset(request.presets, far.name)
        if found is not None and not (ports and far.name in policy.networks):
            if ports:
                raise BadGrant(f"the preset `{far.name}` brings its own ports", "leave them out")
            return _preset_rules(found, name, until), found.name
        if found is None and far.name not in policy.networks:
            raise _no_such(request, far.name)
    rule = Rule(name, direction, (far,), _ports(ports, far, direction))
    return (rule,), ""


def _no_such(request: Request, word: str) -> BadGrant:
    names = {path.rpartition("/")[2].removesuffix(".yaml") for path in request.presets}
    hint = near(word, sorted(names | request.policy.networks.keys()))
    if word in request.policy.workloads:
        hint = f"write workload:{word} for the workload"
    return BadGrant(f"there is no network and no preset `{shown(word)}`", hint or NEW_PRESETS)


def _ports(text: str, far: Peer, direction: Direction) -> Ports:
    words = [word.strip() for word in text.split(",")] if text else []
    if not words and isinstance(far, NamePeer):
        return Ports((PortRange("tcp", 443, 443),))
    if not words:
        if direction is Direction.IN:
            raise BadGrant("the port is missing", "write --port 8000: the port that the workload listens on")
        raise BadGrant("the port is missing", f"write {_with_port(peer_text(far))}")
    if len(words) > MAX_PEERS:
        raise BadGrant(f"more than {MAX_PEERS} ports", "write ranges, or any")
    ranges = []
    for word in words:
        if word not in ("any", "icmp"):
            try:
                ranges.append(port_range(word))
            except BadPorts as e:
                raise BadGrant(str(e), e.hint) from e
    if direction is Direction.IN and words == ["icmp"]:
        raise BadGrant("the kernel answers echo requests, not the workload", "leave it out")
    return Ports(EVERY_PORT if "any" in words else merged(ranges), icmp="icmp" in words)


def _with_port(word: str) -> str:
    return f"[{word}]:443" if word.count(":") > 1 else f"{word}:443"


# --- presets ---


def _preset(presets: Mapping[str, bytes], name: str) -> Preset | None:
    """The preset of that name among the files; its own file is tried first.  BadGrant when it cannot be used."""
    likely = sorted(presets, key=lambda path: path.rpartition("/")[2] != f"{name}.yaml")
    for path in likely:
        if path.rpartition("/")[2] != f"{name}.yaml" and name.encode() not in presets[path]:
            continue
        result = parse_file(path, presets[path])
        if isinstance(result.part, Preset) and result.part.name == name:
            if any_error(result.problems):
                hint = "`penstock presets` says which; once they are mended: penstock apply"
                raise BadGrant(f"the preset `{name}` has mistakes", hint)
            return result.part
    return None


def _preset_rules(preset: Preset, name: str, until: datetime) -> tuple[Rule, ...]:
    rules = tuple(
        replace(rule, id=f"{name}/{rule.id}", preset=preset.name, reason="", expires=None, place=Place("", 0, 0))
        for rule in preset.rules
        if rule.expires is None or rule.expires >= until
    )
    if not rules:
        raise BadGrant(f"the preset `{preset.name}` opens nothing", f"see: penstock presets show {preset.name}")
    if len(rules) > MAX_RULES or any(len(rule.peers) > MAX_PEERS for rule in rules):
        raise BadGrant(f"the preset `{preset.name}` is too large to be lent", "lend the names that are needed")
    return rules


# --- whether it may be ---


def _check_references(policy: Policy, made: Grant) -> None:
    absent = missing(policy, made)
    if absent:
        kind, _, word = absent.partition(" ")
        hint = near(word, policy.networks if kind == "network" else policy.workloads)
        raise BadGrant(f"the policy in force has no {kind} `{shown(word)}`", hint)


def _check_width(policy: Policy, made: Grant, *, wide: bool) -> None:
    for rule in made.rules if not wide else ():
        for far in rule.peers:
            if isinstance(far, AnyPeer):
                raise BadGrant("`any` is every address", "name what is needed, or say --yes-wide")
            pattern = far.pattern if isinstance(far, NamePeer) else ""
            if pattern.startswith("*.") and shared_suffix(pattern.removeprefix("*.")):
                raise BadGrant(f"{pattern} is names of many owners", "name what is needed, or say --yes-wide")
            for cidr in _prefixes(policy, far):
                if cidr.prefixlen < WIDEST[cidr.version]:
                    what = f"{peer_text(far)} is" if isinstance(far, CidrPeer) else f"{peer_text(far)} has {cidr},"
                    text = f"{what} wider than /{WIDEST[cidr.version]}"
                    raise BadGrant(text, "lend less, or say --yes-wide")


def _prefixes(policy: Policy, far: Peer) -> Iterator[Cidr]:
    match far:
        case CidrPeer(cidr):
            yield cidr
        case NetworkPeer(name):
            yield from policy.networks[name].cidrs
        case PlanePeer(plane):
            for network in policy.of_plane(plane):
                yield from network.cidrs


def _problems(policy: Policy, workload: Workload, made: Grant) -> Iterator[str]:
    """What lint says of its rules.  BadGrant for errors, and for what would not be in force."""
    rules = tuple(replace(rule, place=Place("grant", n, 1)) for n, rule in enumerate(made.rules, 1))
    # Alone, and with those it names: others may have 100,000 addresses, and nothing to do with it.
    alone = replace(
        workload,
        egress=tuple(rule for rule in rules if rule.direction is Direction.OUT),
        ingress=tuple(rule for rule in rules if rule.direction is Direction.IN),
    )
    named = {far.name for rule in rules for far in rule.peers if isinstance(far, WorkloadPeer)}
    others = {name: policy.workloads[name] for name in named}
    small = replace(policy, workloads={**others, workload.name: alone})
    seen: set[str] = set()
    for problem in (*unenforced(small), *lint(small)):
        if problem.place.file == "grant" and problem.message not in seen:
            seen.add(problem.message)
            if _forbids(problem):
                raise BadGrant(problem.message, problem.hint)
            yield f"{problem.message}; {problem.hint}" if problem.hint else problem.message


def _forbids(problem: Problem) -> bool:
    return problem.code == CODE or (problem.severity == "error" and problem.code != BY_PAIR)


def _look_ups(request: Request, workload: Workload, made: Grant) -> Iterator[str]:
    """What a first name changes for all other names.  BadGrant when it would end look-ups that a rule allows."""
    before = with_grants(request.policy, request.lent, request.now).workloads[workload.name]
    if resolves(before) or not resolves(beside(before, made)) or workload.mode is Mode.OBSERVE:
        return
    for rule in before.egress:
        if not is_over(rule, request.now) and any(has_port(rule.ports, 53, name) for name in ("udp", "tcp")):
            text = f"{workload.name} looks names up by {called(rule)}; with a name lent it could look up no other"
            raise BadGrant(text, "lend the address, or write rules by name into its file")
    yield "while it is lent, penstock's resolver answers the look-ups: names that no rule has do not exist"


def _check_news(request: Request, workload: Workload, made: Grant) -> None:
    """Whether some rule, or some grant that lasts as long, opens all of it already."""
    others = list(workload.rules)
    for other in request.lent:
        if other.workload == workload.name:
            others += other.lent()
    by = [_opener(request.policy, rule, others, made.until) for rule in made.rules]
    if all(by):
        names = ", ".join(dict.fromkeys(by[:3]))
        raise BadGrant(f"{made.what} is allowed already, by {names}", f"see: penstock status {workload.name}")


def _opener(policy: Policy, rule: Rule, others: Sequence[Rule], until: datetime) -> str:
    """Which of the others opens all that `rule` does until then; empty when none does alone."""
    for other in others:
        ends = other.expires is not None and other.expires < until
        if other.direction is not rule.direction or ends or other.excepted or (rule.private and not other.private):
            continue
        if _has_ports(other.ports, rule.ports) and other.peers:
            cover = Cover(policy, other.peers)
            if all(cover.holds(far) for far in rule.peers):
                return called(other) + terms(other)
    return ""


def _has_ports(wide: Ports, narrow: Ports) -> bool:
    return (wide.icmp or not narrow.icmp) and all(
        any(w.protocol == n.protocol and w.first <= n.first and n.last <= w.last for w in wide.ranges)
        for n in narrow.ranges
    )


def room_for(request: Request, workload: Workload) -> None:
    """BadGrant when too much is lent already."""
    of_it = sum(other.workload == workload.name for other in request.lent)
    if of_it >= MAX_OF_ONE:
        hint = "revoke one (penstock grants), or write rules"
        raise BadGrant(f"{workload.name} has {MAX_OF_ONE} grants already", hint)
    if len(request.lent) >= MAX_ALL:
        raise BadGrant(f"{MAX_ALL} grants are live on this host", "revoke some: penstock grants")
