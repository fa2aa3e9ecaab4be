"""One member of `egress:` or `ingress:` -> a Rule, or the `use:` of a preset."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

from penstock.core.language.parse_peer import BadPeer, peer, prefix
from penstock.core.language.parse_ports import read_ports
from penstock.core.language.reading import Reader, Reference, near, shown
from penstock.core.language.rule_ids import derived_id
from penstock.core.language.yaml_nodes import UNQUOTED_COLON, Node, Pairs, Scalar, Unreadable
from penstock.core.policy import (
    CidrPeer,
    Direction,
    NamePeer,
    NetworkPeer,
    Peer,
    Place,
    PortRange,
    Ports,
    Rule,
    WorkloadPeer,
)
from penstock.core.text import printable

MAX_RULES = 10_000  # of one list
MAX_REASON = 500

_RULE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
_DATE = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})\Z")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?([Zz]|[+-][0-9]{2}:[0-9]{2})?\Z"
)

_KEYS = {
    Direction.OUT: ("to", "ports", "except", "private", "expires", "name", "reason", "use"),
    Direction.IN: ("from", "ports", "except", "expires", "name", "reason", "override"),
}
_ELSEWHERE = {
    Direction.OUT: {
        "from": "`from` belongs into `ingress`",
        "for": "only a preset says what a rule is for; write it into `reason`",
        "source": "only a preset says where it was seen; write it into `reason`",
        "port": "did you mean `ports`?",
        "override": "it is about ports that `ingress` opens",
    },
    Direction.IN: {
        "to": "`to` belongs into `egress`",
        "use": "presets open egress only",
        "private": "`private` is about names in `egress`",
        "port": "did you mean `ports`?",
    },
}
OVERRIDABLE = ("admin-port", "two-planes")
"""What `check` says of an ingress rule and the rule may set aside, with a reason."""
_USE_KEYS = ("use", "reason", "expires")


@dataclass(frozen=True, slots=True)
class Use:
    """`use: PRESET`, to be replaced by the rules of the preset."""

    preset: str
    reason: str
    expires: datetime | None
    place: Place


def read_rules(reader: Reader, node: Node, direction: Direction) -> tuple[Rule | Use, ...]:
    """The rules of one list; wrong ones are told and left out."""
    what = "`egress`" if direction is Direction.OUT else "`ingress`"
    items = reader.list_of(node, what, "`[]` for nothing") or []
    if len(items) > MAX_RULES:
        text = f"more than {MAX_RULES:,} rules in {what}"
        reader.error(
            items[MAX_RULES],
            "too-many-rules",
            text,
            "one rule may hold a list of addresses, or name a network",
        )
        items = items[:MAX_RULES]
    rules = (read_rule(reader, item, direction) for item in items)
    return tuple(rule for rule in rules if rule is not None)


def read_rule(
    reader: Reader, node: Node, direction: Direction, others: tuple[str, ...] = ()
) -> Rule | Use | None:
    """One member of a list; None after a mistake.  `others` are keys that the caller reads himself."""
    side = "to" if direction is Direction.OUT else "from"
    if isinstance(node, Scalar):
        reader.error(
            node,
            "shape",
            f"`{shown(node.text)}` is no rule",
            f"write `{side}: {shown(node.text)}` and `ports:`",
        )
        return None
    what = "an egress rule" if direction is Direction.OUT else "an ingress rule"
    keys = reader.keys(node, what, (*_KEYS[direction], *others), _ELSEWHERE[direction])
    if keys is None:
        return None
    if "use" in keys:
        return _read_use(reader, node, {key: value for key, value in keys.items() if key not in others})
    before = len(reader.problems)
    rule = Rule(
        id="",
        direction=direction,
        peers=_read_side(reader, node, keys, direction),
        ports=Ports(),
        excepted=_read_except(reader, keys),
        private="private" in keys and reader.boolean(keys["private"], "`private`"),
        expires=_read_expires(reader, keys),
        reason=_read_reason(reader, keys),
        override=_read_override(reader, keys),
        place=reader.place(node),
    )
    rule = replace(rule, ports=_read_rule_ports(reader, node, keys, rule))
    if rule.private and not any(isinstance(far, NamePeer) for far in rule.peers):
        hint = "leave it out: it is about names that resolve to private addresses"
        reader.error(keys["private"], "private", "`private` without a name in `to`", hint)
    name = _read_name(reader, keys)
    if any(problem.severity == "error" for problem in reader.problems[before:]):
        return None
    return replace(rule, id=name or derived_id(rule))


def _read_use(reader: Reader, node: Node, keys: dict[str, Node]) -> Use | None:
    for extra in keys.keys() - set(_USE_KEYS):
        hint = "a preset brings its own; write a rule of your own instead"
        reader.error(keys[extra], "use", f"`use` takes no `{extra}`", hint)
    name = reader.text(keys["use"], "`use`")
    if name is None:
        return None
    return Use(name.text, _read_reason(reader, keys), _read_expires(reader, keys), reader.place(node))


def _read_side(reader: Reader, node: Node, keys: dict[str, Node], direction: Direction) -> tuple[Peer, ...]:
    side = "to" if direction is Direction.OUT else "from"
    if side not in keys:
        if not (isinstance(node, Pairs) and any(isinstance(value, Unreadable) for value in node.pairs.values())):
            hint = "write `to: 10.0.0.5`" if side == "to" else "write `from: [NETWORK]`, or `from: []` for nobody"
            reader.error(node, "rule", f"the rule has no `{side}`", hint)
        return ()
    members = reader.one_or_more(keys[side], f"`{side}`")
    if not members and side == "to" and not isinstance(keys[side], Unreadable):
        reader.error(keys[side], "rule", "`to` is an empty list, so the rule opens nothing", "leave the rule out")
    peers: dict[Peer, None] = {}
    for member in members:
        found = read_peer(reader, member, direction, f"`{side}`")
        if found is None:
            continue
        if found in peers:
            text = member.text if isinstance(member, Scalar) else ""
            reader.warn(member, "peer-twice", f"`{shown(text)}` is there twice", "leave one of them out")
        peers[found] = None
    return tuple(peers)


def read_peer(reader: Reader, node: Node, direction: Direction, what: str) -> Peer | None:
    """One peer; a network or workload in it becomes a reference to be checked."""
    scalar = reader.text(node, f"a member of {what}")
    if scalar is None:
        return None
    if scalar.plain and scalar.text[0] == ":":
        reader.error(scalar, "yaml-quote", UNQUOTED_COLON, f'write "{shown(scalar.text)}"')
        return None
    try:
        found = peer(scalar.text, direction)
    except BadPeer as error:
        reader.error(scalar, error.code, str(error), error.hint)
        return None
    if isinstance(found, NetworkPeer):
        reader.references.append(Reference("network", found.name, reader.place(scalar)))
    elif isinstance(found, WorkloadPeer):
        reader.references.append(Reference("workload", found.name, reader.place(scalar)))
    return found


def _read_rule_ports(reader: Reader, node: Node, keys: dict[str, Node], rule: Rule) -> Ports:
    if "ports" in keys:
        return read_ports(reader, keys["ports"]) or Ports()
    if rule.direction is Direction.IN:
        reader.error(
            node,
            "rule",
            "the rule has no `ports`",
            "write the ports the workload listens on: `ports: [8080]`",
        )
    elif rule.peers and all(isinstance(far, NamePeer) for far in rule.peers):
        return Ports((PortRange("tcp", 443, 443),))
    elif rule.peers:
        hint = "write `ports: [443]`; only rules that hold nothing but names mean 443/tcp without it"
        reader.error(node, "rule", "the rule has no `ports`", hint)
    return Ports()


def _read_except(reader: Reader, keys: dict[str, Node]) -> tuple[CidrPeer | NetworkPeer, ...]:
    if "except" not in keys:
        return ()
    what = "`except`"
    found: dict[CidrPeer | NetworkPeer, None] = {}
    members = reader.one_or_more(keys["except"], what)
    if not members and not isinstance(keys["except"], Unreadable | Pairs):
        reader.error(keys["except"], "rule", "`except` is an empty list", "leave it out")
    for member in members:
        far = read_peer(reader, member, Direction.OUT, what)
        if isinstance(far, NetworkPeer | CidrPeer):
            found[far] = None
        elif far is not None and isinstance(member, Scalar):
            try:
                found[CidrPeer(prefix(member.text))] = None
            except BadPeer:
                message = f"{what} takes prefixes and networks only, not `{shown(member.text)}`"
                reader.error(member, "rule", message, "write a list of prefixes or names of networks")
    return tuple(found)


def _read_name(reader: Reader, keys: dict[str, Node]) -> str:
    scalar = reader.text(keys["name"], "`name`") if "name" in keys else None
    if scalar is None:
        return ""
    if not _RULE_NAME.match(scalar.text):
        hint = "write 1 to 63 of a-z, 0-9, `.`, `_`, `-`, starting with a letter or a digit"
        reader.error(scalar, "rule-name", f"`{shown(scalar.text)}` cannot be the name of a rule", hint)
        return ""
    return scalar.text


def _read_reason(reader: Reader, keys: dict[str, Node]) -> str:
    scalar = reader.text(keys["reason"], "`reason`") if "reason" in keys else None
    if scalar is None:
        return ""
    if len(scalar.text) > MAX_REASON:
        reader.error(scalar, "reason", f"`reason` has more than {MAX_REASON} characters", "shorten it")
        return ""
    return printable(" ".join(scalar.text.split()), MAX_REASON * 8)


def _read_override(reader: Reader, keys: dict[str, Node]) -> tuple[str, ...]:
    """Codes of what `check` shall set aside; without a reason it is a mistake."""
    if "override" not in keys:
        return ()
    node = keys["override"]
    members = reader.one_or_more(node, "`override`")
    if not members and not isinstance(node, Unreadable | Pairs):
        reader.error(node, "override", "`override` is an empty list", "leave it out")
    found: dict[str, None] = {}
    for member in members:
        scalar = reader.text(member, "a member of `override`")
        if scalar is None:
            continue
        if scalar.text not in OVERRIDABLE:
            hint = near(scalar.text, OVERRIDABLE) or f"only {' and '.join(OVERRIDABLE)} can be"
            reader.error(scalar, "override", f"`{shown(scalar.text)}` cannot be overridden", hint)
        elif scalar.text in found:
            reader.error(scalar, "override", f"`{scalar.text}` is there twice", "keep one of them")
        found[scalar.text] = None
    if found and "reason" not in keys:
        text = "`override` needs a `reason`"
        reader.error(node, "override", text, "write `reason:` and why it is safe here, for whoever asks later")
    return tuple(sorted(found))


def _read_expires(reader: Reader, keys: dict[str, Node]) -> datetime | None:
    scalar = reader.text(keys["expires"], "`expires`") if "expires" in keys else None
    if scalar is None:
        return None
    example = 'write a date, 2027-01-31, or a time with its zone in quotes, "2027-01-31T18:00:00Z"'
    text = scalar.text
    is_time = _TIME.match(text)
    if is_time and not is_time[2]:
        reader.error(scalar, "expires", f"`{shown(text)}` has no zone", f'write "{shown(text)}Z" for UTC')
    elif is_time and scalar.plain:
        hint = f'write "{shown(text)}"'
        reader.error(scalar, "yaml-time", "YAML reads an unquoted time in its own way", hint)
    elif is_time or _DATE.match(text):
        try:
            return _end_of_day(text) if not is_time else datetime.fromisoformat(text.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            reader.error(scalar, "expires", f"`{shown(text)}` is not in the calendar", example)
    else:
        reader.error(scalar, "expires", f"`{shown(text)}` is neither a date nor a time", example)
    return None


def _end_of_day(text: str) -> datetime:
    day = date.fromisoformat(text) + timedelta(days=1)
    # The one place where core asks the machine: which zone the operator's calendar is in.
    return datetime(day.year, day.month, day.day).astimezone(UTC)
