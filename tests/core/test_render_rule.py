"""Each condition and each action as nft takes it."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import IPv4Network

import pytest

from penstock.core.actions import (
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
from penstock.core.render_rule import rule_text
from penstock.core.ruleset import Rule

OF_WORKLOADS = "3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 | 11 | 12 | 13 | 14 | 15 | 16 | 17 | 18"
AMONG = "ip saddr { 10.0.0.0/8, 192.0.2.0/24 }"
CONDITIONS = [
    (Reply(), "ct direction reply"),
    (Original(), "ct direction original"),
    (Tracked.NEW, "ct state new"),
    (Tracked.ESTABLISHED, "ct state established"),
    (Tracked.RELATED, "ct state related"),
    (Loopback(Hook.OUTPUT), "oif lo"),
    (Loopback(Hook.INPUT), "iif lo"),
    (Protocol("tcp"), "meta l4proto tcp"),
    (Protocol("udp"), "meta l4proto udp"),
    (Protocol("icmp"), "meta l4proto { icmp, icmpv6 }"),
    (Echo(4), "icmp type echo-request"),
    (Echo(6), "icmpv6 type echo-request"),
    (TcpReset(), "tcp flags & rst == rst"),
    (TcpAnswer(), "tcp flags & (ack | rst) != 0"),
    (Detour(4), "ip hdrlength > 5"),
    (Family(6), "meta nfproto ipv6"),
    (Detour(6), "ip6 nexthdr != tcp exthdr rt exists"),
    (InCgroup("a.slice/penstock.slice", 2), 'socket cgroupv2 level 2 "a.slice/penstock.slice"'),
    (LocalDestination(), "fib daddr type local"),
    (LinkLocalDestination(), "ip6 daddr fe80::/10"),
    (Away(), "oif != lo"),
    (HasLabel(2), "ct label 2"),
    (HasLabel(9), f"ct label and ({OF_WORKLOADS}) == (3 | 4 | 11)"),
    (Among(4, End.SOURCE, (IPv4Network("10.0.0.0/8"), IPv4Network("192.0.2.0/24"))), AMONG),
    (ForeignSource(), "fib saddr type != local"),
    (OtherSource(4), "ip saddr != 127.0.0.1"),
    (OtherSource(6), "ip6 saddr != ::1"),
    (FullSocket(), "socket mark & 0x0 == 0x0"),
    (TcpData(), "tcp flags & (fin | syn | rst) == 0"),
    (TcpEnd(), "tcp flags & (fin | rst) != 0"),
    (Redirected(), "ct status dnat"),
    (Marked(11), "meta priority 7073:b"),
    (AnyMark(), "meta priority and 0xffff0000 == 0x70730000"),
    (Unreached(4, 53), "icmp type destination-unreachable @th,224,16 53"),
    (Unreached(6, 53), "icmpv6 type destination-unreachable @th,384,16 53"),
    (OfProcess(), "meta skuid >= 0"),
    (AnyPortIn(End.SOURCE, 40053, 40060), "th sport 40053-40060"),
    (AnyPortIn(End.DESTINATION, 40053, 40053), "th dport 40053"),
    (PortIn("tcp", End.DESTINATION, 443, 443), "tcp dport 443"),
    (PortIn("udp", End.SOURCE, 8000, 8100), "udp sport 8000-8100"),
    (PortIn("udp", End.DESTINATION, 0, 65535), "meta l4proto udp"),
    (Before(datetime(2026, 3, 1, tzinfo=UTC)), "meta time < 1772323200"),
    (PortKnown("s", End.DESTINATION), "th dport @s"),
    (PortKnown("s", End.SOURCE), "th sport @s"),
    (AskedLately("s", 6), "th sport . meta l4proto . ip6 daddr @s"),
    (Interface("eth0.1", End.SOURCE), 'iifname "eth0.1"'),
    (Interface("eth0", End.DESTINATION), 'oifname "eth0"'),
    (CalledAt("tcp", 22, 22), "meta l4proto tcp ct original proto-dst 22"),
    (CalledAt("udp", 2375, 2376), "meta l4proto udp ct original proto-dst 2375-2376"),
    (TcpSyn(), "tcp flags & (syn | rst | ack) == syn"),
    (Before(datetime(2540, 1, 1, tzinfo=UTC)), "meta time < 17987443200"),
    (Before(datetime(9999, 12, 31, tzinfo=UTC)), "meta time < 18000000000"),
    (AddressIn("s", 4, End.DESTINATION), "ip daddr @s"),
    (AddressIn("s", 6, End.SOURCE), "ip6 saddr @s"),
    (AddressIn("s", 6, End.DESTINATION, port=True), "ip6 daddr . th dport @s"),
    (AnySocket(), "socket transparent 0"),
    (
        FlowIn("s", 4, "r"),
        "ip saddr . th sport . ip daddr . th dport . meta l4proto @s ip daddr != @r",
    ),
    (
        FlowIn("s", 6, "r", answer=True),
        "ip6 daddr . th dport . ip6 saddr . th sport . meta l4proto @s ip6 saddr != @r",
    ),
    (InSet("s", 4, End.DESTINATION, End.DESTINATION), "ip daddr . ip protocol . th dport @s"),
    (InSet("s", 4, End.SOURCE, End.DESTINATION), "ip saddr . ip protocol . th dport @s"),
    (InSet("s", 6, End.DESTINATION, End.SOURCE), "ip6 daddr . meta l4proto . th sport @s"),
    (InSet("s", 6, End.SOURCE, End.SOURCE), "ip6 saddr . meta l4proto . th sport @s"),
]
ACTIONS = [
    (Final.ACCEPT, "accept"),
    (Final.DROP, "drop"),
    (Final.RETURN, "return"),
    (Final.RESET, "reject with tcp reset"),
    (Final.PROHIBIT, "reject with icmpx type admin-prohibited"),
    (Goto("c"), "goto c"),
    (Jump("c"), "jump c"),
    (Count("n"), "counter name n"),
    (Log("p "), 'limit rate 50/second burst 100 packets log prefix "p " group 28787 snaplen 128'),
    (SetLabel(2), "ct label set 2"),
    (SetLabel(9), "ct label set 3 | 4 | 11"),
    (Remember("s", 4, 9), "update @s { ip saddr . th sport . ip daddr . th dport . meta l4proto timeout 9s }"),
    (
        Remember("s", 6, 9, anew=False),
        "add @s { ip6 saddr . th sport . ip6 daddr . th dport . meta l4proto timeout 9s }",
    ),
    (Note("s", 6, 9), "update @s { ip6 saddr . th sport timeout 9s }"),
    (NotePort("s", 9), "update @s { th sport timeout 9s }"),
    (
        Forget("m", "s", 4, 200),
        "add @s { th sport . meta l4proto . ip daddr timeout 200ms }"
        " delete @m { th sport . meta l4proto : ip daddr }",
    ),
    (
        Divert("m", 6, "tcp", 40053, 30),
        "update @m { th sport . meta l4proto timeout 30s : ip6 daddr } ip6 daddr set ::1 tcp dport set 40053",
    ),
    (Restore("m", 4, "udp", 53), "ip saddr set th dport . meta l4proto map @m udp sport set 53"),
    (SetMark(0), "meta priority set 7073:0"),
    (ByPort(End.SOURCE, ((1, "c"), (2, "d"))), "th sport vmap { 1 : goto c, 2 : goto d }"),
    (Dispatch("m", 3), "socket cgroupv2 level 3 vmap @m"),
]


@pytest.mark.parametrize(("condition", "text"), CONDITIONS)
def test_a_condition_as_text(condition: Condition, text: str) -> None:
    assert rule_text(Rule((condition,), (Final.DROP,))) == f"{text} drop"


@pytest.mark.parametrize(("action", "text"), ACTIONS)
def test_an_action_as_text(action: Action, text: str) -> None:
    assert rule_text(Rule((), (action,))) == text


def test_labels_that_follow_each_other_are_one_statement() -> None:
    rule = Rule((), (Count("n"), SetLabel(1), SetLabel(9), Count("m"), SetLabel(2), Final.ACCEPT))
    said = "counter name n ct label set 1 | 3 | 4 | 11 counter name m ct label set 2 accept"
    assert rule_text(rule) == said


def test_nothing_is_without_its_text() -> None:
    assert {type(c) for c, _ in CONDITIONS} == set(Condition.__args__)
    assert {type(a) for a, _ in ACTIONS} == set(Action.__args__)
    assert {a for a, _ in ACTIONS if isinstance(a, Final)} == set(Final)


def test_conditions_come_before_actions_in_their_order() -> None:
    rule = Rule((Protocol("udp"), HasLabel(1)), (Count("n"), Goto("c")))
    assert rule_text(rule) == "meta l4proto udp ct label 1 counter name n goto c"
