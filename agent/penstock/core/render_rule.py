"""One rule as nft(8) takes it.  Every name in it was validated by the parser."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from penstock.core.actions import (
    LOG_BURST,
    LOG_RATE,
    SNAPLEN,
    Action,
    ByPort,
    Count,
    Dispatch,
    Divert,
    Final,
    Forget,
    Goto,
    Jump,
    Log,
    Note,
    NotePort,
    Remember,
    Restore,
    SetLabel,
    SetMark,
)
from penstock.core.conditions import (
    AddressIn,
    Among,
    AnyMark,
    AnyPortIn,
    AnySocket,
    AskedLately,
    Away,
    Before,
    CalledAt,
    Condition,
    Detour,
    Echo,
    End,
    Family,
    FlowIn,
    ForeignSource,
    FullSocket,
    HasLabel,
    Hook,
    InCgroup,
    InSet,
    Interface,
    LinkLocalDestination,
    LocalDestination,
    Loopback,
    Marked,
    OfProcess,
    Original,
    OtherSource,
    PortIn,
    PortKnown,
    Protocol,
    Redirected,
    Reply,
    TcpAnswer,
    TcpData,
    TcpEnd,
    TcpReset,
    TcpSyn,
    Tracked,
    Unreached,
)
from penstock.core.label_bits import FIRST_LABEL, SHARED, bits
from penstock.core.log_prefix import LOG_GROUP
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


MARK = 0x7073

FIXED: Mapping[Condition, str] = {
    AnyMark(): f"meta priority and 0xffff0000 == {MARK << 16:#x}",
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
    # Over IPv4 the kernel has a full socket of its own for resets.  It has no file, and so no user.
    OfProcess(): "meta skuid >= 0",
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
        case Marked(number):
            return f"meta priority {_mark(number)}"
        case Unreached(family, port):
            return f"{UNREACHED[family]},16 {port}"
        case AnyPortIn(end, first, last):
            return f"th {ENDS[end]}port {first}" + (f"-{last}" if last != first else "")
        case CalledAt(protocol, first, last):
            return f"meta l4proto {protocol} ct original proto-dst {first}" + (f"-{last}" if last != first else "")
        case PortIn(protocol, end, first, last):
            if (first, last) == (0, 65535):
                return f"meta l4proto {protocol}"
            return f"{protocol} {ENDS[end]}port {first}" + (f"-{last}" if last != first else "")
        case Before(time):
            return f"meta time < {min(int(time.timestamp()), LATEST)}"
        case AskedLately(name, family):
            return f"{ASKING} . {HEADERS[family]} daddr @{name}"
        case PortKnown(name, end):
            return f"th {ENDS[end]}port @{name}"
        case AddressIn(name, family, end, port):
            return f"{HEADERS[family]} {ENDS[end]}addr{f' . th {ENDS[end]}port' if port else ''} @{name}"
        case FlowIn(name, family, revoked, answer):
            called = f"{HEADERS[family]} {'saddr' if answer else 'daddr'}"
            return f"{_flow(family, answer)} @{name} {called} != @{revoked}"
    raise TypeError(f"no condition: {condition!r}")


LATEST = 18_000_000_000
"""In 2540: nft counts nanoseconds, and what it cannot count any more comes out as long ago."""

HEADERS = {4: "ip", 6: "ip6"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
NUMBER = {4: "ip protocol", 6: "meta l4proto"}
"""Where the number of the protocol stands: in IPv6 other headers may come before."""


def _flow(family: int, answer: bool = False) -> str:
    """The key of a flow: caller, called, protocol."""
    header = HEADERS[family]
    caller, called = ("d", "s") if answer else ("s", "d")
    return (
        f"{header} {caller}addr . th {caller}port . {header} {called}addr . th {called}port . meta l4proto"
    )


UNREACHED = {
    4: "icmp type destination-unreachable @th,224",
    6: "icmpv6 type destination-unreachable @th,384",
}
"""With the bit at which the port of what is quoted stands: behind eight bytes, and a header without options."""


def _mark(number: int) -> str:
    """What of a packet is its own and lasts over loopback: its priority, in hexadecimal.

    One above 6 is for CAP_NET_ADMIN (socket(7), SO_PRIORITY), and since Linux 5.14 for CAP_NET_RAW.
    """
    return f"{MARK:x}:{number:x}"


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


ASKING = "th sport . meta l4proto"
"""The key of whom a port asked.  With its address as well nft 1.0.6 runs out of registers, in IPv6."""


def _name_action(action: Action) -> str:
    match action:
        case Remember(name, family, seconds, anew):
            return f"{'update' if anew else 'add'} @{name} {{ {_flow(family)} timeout {seconds}s }}"
        case Note(name, family, seconds):
            return f"update @{name} {{ {HEADERS[family]} saddr . th sport timeout {seconds}s }}"
        case Forget(name, lately, family, milliseconds):
            address = f"{HEADERS[family]} daddr"
            noted = f"add @{lately} {{ {ASKING} . {address} timeout {milliseconds}ms }}"
            return f"{noted} delete @{name} {{ {ASKING} : {address} }}"
        case Divert(name, family, protocol, port, seconds):
            header = HEADERS[family]
            noted = f"update @{name} {{ {ASKING} timeout {seconds}s : {header} daddr }}"
            return f"{noted} {header} daddr set {LOOPBACK[family]} {protocol} dport set {port}"
        case Restore(name, family, protocol, port):
            header = HEADERS[family]
            asked = f"{header} saddr set th dport . meta l4proto map @{name}"
            return f"{asked} {protocol} sport set {port}"
        case SetMark(number):
            return f"meta priority set {_mark(number)}"
        case NotePort(name, seconds):
            return f"update @{name} {{ th sport timeout {seconds}s }}"
        case ByPort(end, chains):
            return f"th {ENDS[end]}port vmap {{ {', '.join(f'{port} : goto {name}' for port, name in chains)} }}"
    raise TypeError(f"no action: {action!r}")
