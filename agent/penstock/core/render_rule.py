"""One rule as nft(8) takes it.  Every name in it was validated by the parser."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from penstock.core.label_bits import FIRST_LABEL, SHARED, bits
from penstock.core.log_prefix import LOG_GROUP
from penstock.core.rule_parts import (
    LOG_BURST,
    LOG_RATE,
    SNAPLEN,
    Action,
    AddressIn,
    Among,
    Answering,
    AnySocket,
    AskedAt,
    Away,
    Before,
    CalledAt,
    Condition,
    Count,
    Detour,
    Dispatch,
    Echo,
    End,
    Family,
    Final,
    FlowIn,
    ForeignSource,
    FullSocket,
    Goto,
    HasLabel,
    Hook,
    InCgroup,
    InSet,
    Interface,
    Jump,
    LinkLocalDestination,
    LocalDestination,
    Log,
    Loopback,
    Note,
    Original,
    OtherSource,
    PortIn,
    Protocol,
    Redirect,
    Redirected,
    Remember,
    Reply,
    SetLabel,
    SetZone,
    TcpAnswer,
    TcpData,
    TcpEnd,
    TcpReset,
    TcpSyn,
    Tracked,
)
from penstock.core.ruleset import Rule


def rule_text(rule: Rule) -> str:
    """Return one rule as nft would take it."""
    return " ".join([*(_condition(c) for c in rule.when), *_actions(rule.do)])


def _actions(actions: Iterable[Action]) -> Iterator[str]:
    """Labels that follow each other are one statement: each costs the kernel a lock."""
    for labels, group in groupby(actions, key=lambda action: isinstance(action, SetLabel)):
        if labels:
            yield "ct label set " + _bits(b for a in group if isinstance(a, SetLabel) for b in bits(a.label))
        else:
            yield from map(_action, group)


def _bits(found: Iterable[int]) -> str:
    return " | ".join(map(str, found))


ENDS = {End.SOURCE: "s", End.DESTINATION: "d"}
INTERFACES = {Hook.OUTPUT: "oif lo", Hook.INPUT: "iif lo"}
ECHO = {4: "icmp type echo-request", 6: "icmpv6 type echo-request"}
PROTOCOLS = {"icmp": "{ icmp, icmpv6 }", "tcp": "tcp", "udp": "udp"}


FIXED: Mapping[Condition, str] = {
    Reply(): "ct direction reply",
    Original(): "ct direction original",
    TcpReset(): "tcp flags & rst == rst",
    TcpSyn(): "tcp flags & (syn | rst | ack) == syn",
    TcpAnswer(): "tcp flags & (ack | rst) != 0",
    ForeignSource(): "fib saddr type != local",
    OtherSource(4): "ip saddr != 127.0.0.1",
    OtherSource(6): "ip6 saddr != ::1",
    LocalDestination(): "fib daddr type local",
    LinkLocalDestination(): "ip6 daddr fe80::/10",
    Away(): "oif != lo",
    Detour(4): "ip hdrlength > 5",
    # Every TCP packet would walk its headers for nothing: before a routing header there is no TCP header.
    Detour(6): "ip6 nexthdr != tcp exthdr rt exists",
    TcpData(): "tcp flags & (fin | syn | rst) == 0",
    TcpEnd(): "tcp flags & (fin | rst) != 0",
    Redirected(): "ct status dnat",
    # `socket mark` loads only from full sockets; every mark passes the comparison.
    FullSocket(): "socket mark & 0x0 == 0x0",
    AnySocket(): "socket transparent 0",
}


def _condition(condition: Condition) -> str:
    match condition:
        case Tracked():
            return f"ct state {condition}"
        case Loopback(hook):
            return INTERFACES[hook]
        case Interface(name, end):
            return f'{"iifname" if end is End.SOURCE else "oifname"} "{name}"'
        case Among(family, end, cidrs):
            return f"{HEADERS[family]} {ENDS[end]}addr {{ {', '.join(map(str, cidrs))} }}"
        case Protocol(name):
            return f"meta l4proto {PROTOCOLS[name]}"
        case Family(family):
            return f"meta nfproto ipv{family}"
        case Echo(family):
            return ECHO[family]
        case HasLabel(label) if label < FIRST_LABEL:
            return f"ct label {label}"
        case HasLabel(label):
            return f"ct label and ({_bits(SHARED)}) == ({_bits(bits(label))})"
        case InSet(name, family, peer, port):
            return f"{HEADERS[family]} {ENDS[peer]}addr . {NUMBER[family]} . th {ENDS[port]}port @{name}"
        case InCgroup(path, level):
            return f'socket cgroupv2 level {level} "{path}"'
        case _:
            return FIXED.get(condition) or _of_names(condition)


def _of_names(condition: Condition) -> str:
    """A condition about look-ups, or about what they opened."""
    match condition:
        case AskedAt(port):
            return f"ct original proto-dst {port}"
        case CalledAt(protocol, first, last):
            return f"meta l4proto {protocol} ct original proto-dst {first}" + (f"-{last}" if last != first else "")
        case PortIn(protocol, end, first, last):
            if (first, last) == (0, 65535):
                return f"meta l4proto {protocol}"
            return f"{protocol} {ENDS[end]}port {first}" + (f"-{last}" if last != first else "")
        case Before(time):
            return f"meta time < {min(int(time.timestamp()), LATEST)}"
        case Answering(name):
            return f"th dport @{name}"
        case AddressIn(name, family, end, port):
            return f"{HEADERS[family]} {ENDS[end]}addr{f' . th {ENDS[end]}port' if port else ''} @{name}"
        case FlowIn(name, family, answer):
            return f"{_flow(family, answer)} @{name}"
    raise TypeError(f"no condition: {condition!r}")


LATEST = 18_000_000_000
"""In 2540: nft counts nanoseconds, and what it cannot count any more comes out as long ago."""

HEADERS = {4: "ip", 6: "ip6"}
NUMBER = {4: "ip protocol", 6: "meta l4proto"}
"""Where the number of the protocol stands: in IPv6 other headers may come before."""


def _flow(family: int, answer: bool = False) -> str:
    """The key of a flow: caller, called, protocol."""
    header = HEADERS[family]
    caller, called = ("d", "s") if answer else ("s", "d")
    return (
        f"{header} {caller}addr . th {caller}port . {header} {called}addr . th {called}port . meta l4proto"
    )


def _action(action: Action) -> str:
    match action:
        case Final.RESET:
            return "reject with tcp reset"
        case Final.PROHIBIT:
            # With `type`, which releases before 1.0.1 demand.
            return "reject with icmpx type admin-prohibited"
        case Final():
            return str(action)
        case Goto(chain):
            return f"goto {chain}"
        case Jump(chain):
            return f"jump {chain}"
        case Count(counter):
            return f"counter name {counter}"
        case Log(prefix):
            rate = f"limit rate {LOG_RATE}/second burst {LOG_BURST} packets"
            return f'{rate} log prefix "{prefix}" group {LOG_GROUP} snaplen {SNAPLEN}'
        case Dispatch(name, level):
            return f"socket cgroupv2 level {level} vmap @{name}"
    return _name_action(action)


def _name_action(action: Action) -> str:
    match action:
        case Remember(name, family, seconds, anew):
            return f"{'update' if anew else 'add'} @{name} {{ {_flow(family)} timeout {seconds}s }}"
        case Note(name, family, seconds):
            return f"update @{name} {{ {HEADERS[family]} saddr . th sport timeout {seconds}s }}"
        case Redirect(protocol, port):
            return f"meta l4proto {protocol} redirect to :{port}"
        case SetZone(zone):
            return f"ct original zone set {zone}"
    raise TypeError(f"no action: {action!r}")
