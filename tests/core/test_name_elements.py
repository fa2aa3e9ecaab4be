"""From what was learned to elements: against the plainest thing that could be right, and what it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governed import policy_of, rules
from penstock.core import name_elements, rebinding
from penstock.core.learned import FLOOR, SLACK, Learned
from penstock.core.name_chains import FAMILIES, flow_set, learned_set
from penstock.core.name_elements import Names, Opened, Retract, admitting, all_opened, opened, retractions
from penstock.core.name_rules import Group, Index, NameRule, groups
from penstock.core.policy import Cidr, PortRange, Ports

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
T = NOW.timestamp()

# --- the plainest thing ---


def plain_retractions(
    names: Names, workload: str, learned: Learned, before: Names, strangers: bool
) -> Iterator[Retract]:
    """Each address by itself."""
    known: set[tuple[str, bytes]] = set()
    gone: set[tuple[str, bytes]] = set()
    every = groups(names.rules[workload])
    for address, name in learned.remembered(workload):
        now = groups(admitting(names.of(workload, name), ip_address(address)))
        then = groups(admitting(before.of(workload, name), ip_address(address)))
        known |= {(group.id, address) for group in now}
        gave = then if workload in before.rules else every if not now else ()
        gone |= {(group.id, address) for group in gave}
    for group in every:
        for family, size in zip(FAMILIES, (4, 16), strict=True):
            kept = frozenset(a for id_, a in known if id_ == group.id and len(a) == size)
            out = frozenset(a for id_, a in gone if id_ == group.id and len(a) == size) - kept
            yield Retract(learned_set(workload, group.id, family), kept, others=True, known=out)
            flows = flow_set(workload, group.id, family)
            if strangers:
                yield Retract(flows, kept, others=True, known=out)
            elif out:
                yield Retract(flows, out)


def plain_opened(names: Names, workload: str, learned: Learned) -> Iterator[Opened]:
    """Each answer by itself."""
    for address, name, end in learned.current(workload, T):
        of = admitting(names.of(workload, name), ip_address(address))
        yield from opened(of, workload, name, address, end, T)


# --- whatever may be ---

NAMES = ("a.example", "b.a.example", "x.example", "y.b.a.example", "other.test")
PATTERNS = ("a.example", "*.a.example", "*.example", "x.example", "*.test")
PORTS = (Ports((PortRange("tcp", 443, 443),)), Ports((), icmp=True))
EXCEPTED = tuple(
    ip_network(text)
    for text in ("192.0.2.0/24", "10.0.0.0/9", "2001:db8:1::/48", "2001:db8::/33", "192.0.2.9/32", "fd12::/16")
)
EXPIRES = (None, None, NOW - timedelta(hours=1), NOW + timedelta(seconds=300), NOW + timedelta(days=30))
ADDRESSES = tuple(
    ip_address(text).packed
    for text in (
        *("192.0.2.1", "192.0.2.9", "198.51.100.1", "10.0.0.1", "10.200.0.1", "127.0.0.1", "169.254.169.254"),
        *("0.0.0.0", "224.0.0.1", "2001:db8::1", "2001:db8:1::1", "2606:4700::1", "fd12::1", "fd00:ec2::254"),
        *("::1", "fe80::1", "ff02::1", "::ffff:192.0.2.1", "64:ff9b::192.0.2.1", "64:ff9b::10.0.0.1"),
        *("2002:c000:201::1", "2002:a00:1::1", "2001:0:c000:201::3fff:fdfe", "64:ff9b:1::c633:6401"),
    )
)


def names_of(*rules: NameRule) -> Names:
    """As of a policy that has them."""
    names = Names()
    names.rules, names.index = {"w": rules}, {"w": Index(rules)}
    return names


some = st.lists(st.sampled_from(EXCEPTED), max_size=3, unique=True).map(tuple)
all_groups = st.builds(Group, st.sampled_from(PORTS), st.booleans(), st.sampled_from(EXPIRES))
all_rules = st.builds(NameRule, st.sampled_from(PATTERNS), all_groups, st.just("out-1"), some)
all_names = st.lists(all_rules, max_size=6).map(lambda rules: names_of(*rules))
answers = st.tuples(
    st.sampled_from(NAMES), st.lists(st.sampled_from(ADDRESSES), min_size=1, max_size=8), st.integers(0, 1500)
)


def learned_of(found: list[tuple[str, list[bytes], int]]) -> Learned:
    """What such answers so long ago left; of the oldest half some are over."""
    learned = Learned()
    for name, addresses, ago in sorted(found, key=lambda answer: -answer[2]):
        assert learned.learn("w", name, [(address, 900) for address in addresses], T - ago)
    if len(found) % 2:
        for _ in range(30):
            learned.expire(T)
    return learned


def check(after: Names, which: tuple[str, ...], learned: Learned, before: Names, strangers: bool) -> None:
    """That together is as each by itself."""
    expected = [r for w in which for r in plain_retractions(after, w, learned, before, strangers)]
    assert list(retractions(after, which, learned, before=before, strangers=strangers)) == expected
    here = [element for workload in which for element in plain_opened(after, workload, learned)]
    assert list(all_opened(after, which, learned, NOW)) == here


@given(all_names, st.one_of(all_names, st.none(), st.just("same")), st.lists(answers, max_size=8), st.booleans())
@settings(deadline=None)
def test_together_is_as_each_by_itself(
    after: Names, earlier: Names | str | None, found: list[tuple[str, list[bytes], int]], strangers: bool
) -> None:
    before = earlier if isinstance(earlier, Names) else after if earlier else Names()
    check(after, tuple(after.rules), learned_of(found), before, strangers)


@pytest.mark.parametrize("other", [(), EXCEPTED[:1], EXCEPTED[1:3], EXCEPTED])
@pytest.mark.parametrize("private", [False, True])
def test_a_group_opens_what_one_of_its_rules_opens(other: tuple[Cidr, ...], private: bool) -> None:
    """Each rule has its own exceptions."""
    group = Group(PORTS[0], private)
    one = NameRule("a.example", group, "out-1", EXCEPTED[:2])
    two = NameRule("*.example", group, "out-2", other)
    learned = learned_of([("a.example", list(ADDRESSES), 0), ("x.example", list(ADDRESSES), 0)])
    after, fewer = names_of(one, two), names_of(one)
    check(after, ("w",), learned, Names(), True)
    check(after, ("w",), learned, fewer, False)
    check(fewer, ("w",), learned, after, False)


def test_workloads_are_apart() -> None:
    two = rules("w", "[{to: a.example}]"), rules("v", "[{to: '*.example', private: true}]")
    after = Names(policy_of(*two), NOW)
    learned = Learned()
    for workload in ("w", "v"):
        learned.learn(workload, "a.example", [(address, 0) for address in ADDRESSES], T)
    for which in (("w", "v"), ("v",), ()):
        check(after, which, learned, Names(), True)


# --- what it costs ---


@pytest.fixture
def many() -> Learned:
    """20 names with 40 addresses each, half of them twice: over, and learned again."""
    learned = Learned()
    for n in range(20):
        found = [(bytes((203, n, 0, k)), 0) for k in range(40)]
        if n % 2:
            learned.learn("w", f"n{n}.example", found, T - 2 * FLOOR)
            for _ in range(30):
                learned.expire(T - FLOOR + SLACK)
        learned.learn("w", f"n{n}.example", found, T)
    return learned


def counted(patch: pytest.MonkeyPatch, owner: Any, name: str) -> Counter[object]:
    """How often it is called, by its last argument."""
    original, calls = getattr(owner, name), Counter[object]()

    def call(*args: Any) -> Any:
        calls[args[-1]] += 1
        return original(*args)

    patch.setattr(owner, name, call)
    return calls


def test_a_name_is_looked_up_once_and_an_address_is_judged_once(
    many: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many addresses a name has, and for both policies: there can be a million."""
    group = Group(PORTS[0])
    after = names_of(NameRule("*.example", group, "out-1", EXCEPTED[:1]), NameRule("other.test", group, "out-2"))
    before = names_of(NameRule("*.example", Group(PORTS[0], private=True), "out-1"))
    looked_up = counted(monkeypatch, Index, "of")
    judged = counted(monkeypatch, name_elements, "kind_of")
    readied = counted(monkeypatch, name_elements, "Prefixes")
    gone = retractions(after, ("w",), many, before=before, strangers=True)
    assert len(gone[0].addresses) == 800
    assert looked_up == Counter({f"n{n}.example": 2 for n in range(20)}), "by the rules of now and those of before"
    assert judged == Counter(address for address, _ in many.remembered("w"))
    assert sum(readied.values()) == 1
    for calls in (looked_up, judged, readied):
        calls.clear()
    assert len(tuple(all_opened(after, ("w",), many, NOW))) == 800
    assert looked_up == Counter({f"n{n}.example": 1 for n in range(20)})
    assert judged == Counter(address for address, _, _ in many.current("w", T))
    assert sum(readied.values()) == 1


def test_exceptions_cost_only_where_there_are_some(many: Learned, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = counted(monkeypatch, rebinding.Prefixes, "hold")
    one = NameRule("*.example", Group(PORTS[0]), "out-1", EXCEPTED[:1])
    for more, expected in (((), 800), ((NameRule("n1.example", Group(PORTS[0]), "out-2"),), 760)):
        looked_at.clear()
        assert len(tuple(all_opened(names_of(one, *more), ("w",), many, NOW))) == 800
        assert sum(looked_at.values()) == expected
