"""Learned addresses in a real kernel: written with names, moved on, read back, taken out with their flows."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

import pytest

from governed import eventually
from penstock.core.lookup_chains import ANSWERING, LISTENING, PORT
from penstock.core.name_chains import LONG, revoked_of
from penstock.core.name_elements import Opened, Retract
from penstock.core.resolver_wire import THERE
from penstock.demo.lab import Lab
from penstock.errors import PenstockError
from penstock.kernel import name_sets
from penstock.kernel import nfnetlink as nl
from penstock.kernel.name_sets import LEAST, LONGEST_COMMENT, SWEEPING, NameSets, called, learned, say_there
from penstock.kernel.nft import INET, Late, Nft, Part

pytestmark = pytest.mark.root

NAMES4, NAMES6, FLOWS4, FLOWS6 = (f"{kind}{family}_w_0" for kind in ("names", "flows") for family in (4, 6))
REVOKED4, REVOKED6 = revoked_of(NAMES4), revoked_of(NAMES6)
REMOVE = "add table inet penstock\ndelete table inet penstock\n"
Body = Callable[[Nft], None]


def learn(nft: Nft, addresses: Sequence[Opened]) -> None:
    NameSets(nft).learn(addresses)


def retract(nft: Nft, gone: Sequence[Retract]) -> None:
    NameSets(nft).retract(gone)


def renew(nft: Nft, addresses: Sequence[Opened]) -> None:
    NameSets(nft).renew(addresses)


def declared() -> str:
    lines = [REMOVE, "add table inet penstock\n"]
    for family, names, flows in ((4, NAMES4, FLOWS4), (6, NAMES6, FLOWS6)):
        address = f"ipv{family}_addr"
        ends = f"{address} . inet_service . {address} . inet_service . inet_proto"
        for plain in (names, revoked_of(names)):
            lines.append(f"add set inet penstock {plain} {{ type {address} ; flags timeout ; size 1048576 ; }}\n")
        lines.append(f"add set inet penstock {flows} {{ type {ends} ; flags dynamic, timeout ; size 9999 ; }}\n")
    for said in (LISTENING, ANSWERING):
        lines.append(f"add set inet penstock {said} {{ type inet_service ; flags timeout ; size 16 ; }}\n")
    return "".join(lines)


def inside(body: Body) -> Callable[[Lab], None]:
    """Make a test of `body`, which runs in the lab, beside the empty sets of a workload."""

    def run() -> None:
        nft = Nft()
        try:
            nft.load(declared())
            body(nft)
        finally:
            nft.load(REMOVE)
            nft.close()

    def test(lab: Lab) -> None:
        lab.host.call(run)

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    return test


def opened(address: str, name: str = "hub.example", seconds: float = 600) -> Opened:
    ip = ip_address(address)
    return Opened(NAMES4 if ip.version == 4 else NAMES6, ip.packed, name, seconds)


def held(nft: Nft, *sets: str) -> dict[str, tuple[str, float]]:
    """Address -> its name and how many seconds it still counts."""
    return {str(ip_address(o.address)): (o.name, o.seconds) for o in learned(nft, sets or (NAMES4, NAMES6))}


def remembered(nft: Nft) -> set[str]:
    """Who is called in the flows."""
    return {str(ip_address(called(o.address))) for o in learned(nft, (FLOWS4, FLOWS6))}


FLOWS = {
    "203.0.113.1": "192.0.2.10 . 5000 . 203.0.113.1 . 443 . tcp",
    "203.0.113.2": "192.0.2.10 . 443 . 203.0.113.2 . 443 . udp",
    "2001:db8::1": "2001:db8:2::10 . 5000 . 2001:db8::1 . 443 . tcp",
    "2001:db8::2": "2001:db8:2::10 . 443 . 2001:db8::2 . 443 . udp",
}


def remember(nft: Nft, seconds: int = 100) -> None:
    for address, flow in FLOWS.items():
        name = FLOWS6 if ":" in address else FLOWS4
        nft.load(f"add element inet penstock {name} {{ {flow} timeout {seconds}s }}\n")


def elements(*addresses: str) -> frozenset[bytes]:
    return frozenset(ip_address(a).packed for a in addresses)


@inside
def test_one_address_is_asked_for(nft: Nft) -> None:
    learn(nft, [opened("203.0.113.1"), opened("2001:db8::1"), opened("203.0.113.2", seconds=0.05)])
    assert name_sets.has(nft, NAMES4, ip_address("203.0.113.1").packed)
    assert name_sets.has(nft, NAMES6, ip_address("2001:db8::1").packed)
    assert not name_sets.has(nft, NAMES4, ip_address("203.0.113.3").packed)
    assert not name_sets.has(nft, NAMES6, ip_address("2001:db8::2").packed)
    assert not name_sets.has(nft, "no_such_set", ip_address("203.0.113.1").packed)
    time.sleep(0.06)
    assert not name_sets.has(nft, NAMES4, ip_address("203.0.113.2").packed), "its time is over"


@inside
def test_what_is_learned_is_read_back(nft: Nft) -> None:
    learn(nft, [opened("203.0.113.1", "a.example", 600.4), opened("2001:db8::1", "b.example", 86_400 * 30)])
    found = held(nft)
    assert {address: name for address, (name, _) in found.items()} == {
        "203.0.113.1": "a.example",
        "2001:db8::1": "b.example",
    }
    assert 598 < found["203.0.113.1"][1] <= 600.4
    assert 86_400 * 30 - 2 < found["2001:db8::1"][1] <= 86_400 * 30
    assert [o.set for o in learned(nft, [NAMES6])] == [NAMES6]
    listed = nft._library.run("list set inet penstock " + NAMES4)
    assert 'comment "a.example"' in listed, "for people too"


@inside
def test_a_set_that_is_not_there_holds_nothing(nft: Nft) -> None:
    assert list(learned(nft, ["names4_gone_0"])) == []
    retract(nft, [Retract("names4_gone_0", elements("203.0.113.1"))])
    with pytest.raises(PenstockError, match="the kernel refused a learned address"):
        learn(nft, [Opened("names4_gone_0", ip_address("203.0.113.1").packed, "x.example", 600)])


@inside
def test_one_that_cannot_be_taken_takes_the_others_with_it(nft: Nft) -> None:
    """The answer is withheld when not all is there: half of it would be worse than nothing."""
    wrong = Opened(NAMES4, b"\1" * 16, "x.example", 600)
    with pytest.raises(PenstockError):
        learn(nft, [opened("203.0.113.1"), wrong])
    assert held(nft) == {}
    learn(nft, [opened("203.0.113.1")])
    assert set(held(nft)) == {"203.0.113.1"}, "and the next batch is not confused by the failed one"


@inside
def test_to_learn_again_moves_the_end_and_the_name(nft: Nft) -> None:
    for address in ("203.0.113.1", "2001:db8::1"):
        for seconds, name in ((600, "a.example"), (1200, "b.example"), (60, "c.example"), (0.2, "d.example")):
            learn(nft, [opened(address, name, seconds)])
            (found,) = [held(nft)[address]]
            assert found[0] == name
            assert seconds - 1 < found[1] <= seconds
        eventually(partial(is_gone, nft, address))
        learn(nft, [opened(address)])
        assert address in held(nft), "also one that ran out, and is not swept yet"


@inside
def test_what_is_said_to_be_new_is_only_added(nft: Nft) -> None:
    for _ in range(2):
        learn(nft, [replace(opened("203.0.113.1"), new=True)])
        assert set(held(nft)) == {"203.0.113.1"}


@inside
def test_one_address_twice_in_a_batch(nft: Nft) -> None:
    learn(nft, [opened("203.0.113.1", "a.example", 600), opened("203.0.113.1", "b.example", 700)])
    assert held(nft)["203.0.113.1"][0] == "b.example"
    assert held(nft)["203.0.113.1"][1] > 690


@inside
def test_the_shortest_time_is_a_time(nft: Nft) -> None:
    """Zero would be for good."""
    for seconds in (0, -5, 0.0001):
        learn(nft, [opened("203.0.113.1", seconds=seconds)])
        eventually(lambda: held(nft) == {})


def is_gone(nft: Nft, address: str) -> bool:
    return address not in held(nft)


def name_of(length: int) -> str:
    return ("a" * 63 + ".") * (length // 64) + "b" * (length % 64)


@inside
def test_a_name_too_long_to_be_listed_is_not_written(nft: Nft) -> None:
    """nft does not load a longer comment, so somebody's saved ruleset would not either."""
    longest, longer = name_of(LONGEST_COMMENT - 1), name_of(LONGEST_COMMENT)
    names = {"203.0.113.1": longest, "203.0.113.2": longer, "203.0.113.3": name_of(253)}
    learn(nft, [opened(address, name) for address, name in names.items()])
    found = held(nft)
    assert {address: name for address, (name, _) in found.items()} == {
        "203.0.113.1": longest,
        "203.0.113.2": "",
        "203.0.113.3": "",
    }
    listed = nft._library.run("list ruleset")
    nft.load("flush ruleset\n" + listed)
    assert set(held(nft)) == set(found)


@inside
def test_elements_of_others_are_read_without_a_name(nft: Nft) -> None:
    nft.load(f'add element inet penstock {NAMES4} {{ 203.0.113.1 timeout 1h comment "ü \\n" }}\n')
    nft.load(f"add element inet penstock {NAMES4} {{ 203.0.113.2 timeout 1h }}\n")
    assert held(nft)["203.0.113.2"][0] == ""
    assert held(nft)["203.0.113.1"][0].isprintable()


@inside
def test_a_retraction_takes_out_names_and_flows_of_its_addresses(nft: Nft) -> None:
    learn(nft, [opened(address) for address in FLOWS])
    remember(nft)
    assert remembered(nft) == set(FLOWS)
    gone = [Retract(name, elements("203.0.113.1")) for name in (NAMES4, FLOWS4)]
    gone += [Retract(name, elements("2001:db8::2", "2001:db8::9")) for name in (NAMES6, FLOWS6)]
    retract(nft, gone)
    left = set(FLOWS) - {"203.0.113.1", "2001:db8::2"}
    assert (set(held(nft)), remembered(nft)) == (left, left)
    retract(nft, gone)
    assert (set(held(nft)), remembered(nft)) == (left, left)
    retract(nft, [Retract(FLOWS4, frozenset())])
    assert remembered(nft) == left


@inside
def test_a_retraction_of_all_others(nft: Nft) -> None:
    learn(nft, [opened(address) for address in FLOWS])
    remember(nft)
    retract(nft, [Retract(name, elements("203.0.113.1", "203.0.113.9"), others=True) for name in (NAMES4, FLOWS4)])
    retract(nft, [Retract(name, frozenset(), others=True) for name in (NAMES6, FLOWS6)])
    assert set(held(nft)) == remembered(nft) == {"203.0.113.1"}


def test_one_that_runs_out_meanwhile(lab: Lab) -> None:
    """Between the look and the deletion; the batch fails as a whole, and is tried again."""
    read = Nft.keys

    def slowly(nft: Nft, name: str, *until: float) -> list[bytes]:
        found = read(nft, name, *until)
        if len(found) == 3:
            eventually(lambda: len(read(nft, name)) == 2)
        return found

    @inside
    def body(nft: Nft) -> None:
        learn(nft, [opened("203.0.113.1"), opened("203.0.113.2"), opened("203.0.113.3", seconds=0.3)])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Nft, "keys", slowly)
            retract(nft, [Retract(NAMES4, elements("203.0.113.2"), others=True)])
        assert set(held(nft)) == {"203.0.113.2"}

    body(lab)


def test_a_set_that_never_rests(lab: Lab) -> None:
    """Each time that it is read something has gone before it is deleted."""
    read = Nft.keys

    @inside
    def body(nft: Nft) -> None:
        theirs = NameSets(nft)

        def always(nft: Nft, name: str, *until: float) -> list[bytes]:
            found = read(nft, name, *until)
            if name == NAMES4:
                nft.load(f"flush set inet penstock {name}\n")
                theirs.learn([opened(f"203.0.113.{os.urandom(1)[0] | 1}")])
            return found

        theirs.learn([opened("203.0.113.0")])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Nft, "keys", always)
            with pytest.raises(PenstockError, match="changes faster"):
                retract(nft, [Retract(NAMES4, frozenset(), others=True)])

    body(lab)


def revoked(nft: Nft) -> set[str]:
    return set(held(nft, REVOKED4, REVOKED6))


@inside
def test_flows_of_whom_is_taken_out_are_revoked_until_he_is_learned_again(nft: Nft) -> None:
    sets = NameSets(nft)
    sets.learn([opened(address) for address in FLOWS])
    remember(nft)
    kept = elements("203.0.113.1", "2001:db8::1")
    sets.retract([Retract(FLOWS4, kept, others=True, known=elements("203.0.113.7"))])
    sets.retract([Retract(FLOWS6, elements("2001:db8::2"))])
    assert remembered(nft) == {"203.0.113.1", "2001:db8::1"}
    assert revoked(nft) == {"203.0.113.2", "203.0.113.7", "2001:db8::2"}
    for o in learned(nft, [REVOKED4]):
        assert LONG - 5 < o.seconds <= LONG, "as long as a flow may be remembered"
    sets.learn([opened("203.0.113.2"), opened("203.0.113.1")])
    assert revoked(nft) == {"203.0.113.7", "2001:db8::2"}
    NameSets(nft).learn([opened("2001:db8::2")])  # as a daemon after this one
    assert revoked(nft) == {"203.0.113.7"}
    for _ in range(2):
        sets.retract([Retract(FLOWS4, elements("203.0.113.2"))])
        assert "203.0.113.2" in revoked(nft), "also when somebody else has emptied the set"
        nft.load(f"flush set inet penstock {REVOKED4}\n")


@inside
def test_when_there_is_no_room_to_revoke_those_before_are_forgotten(nft: Nft) -> None:
    nft.load(f"delete set inet penstock {REVOKED4}\n")
    nft.load(f"add set inet penstock {REVOKED4} {{ type ipv4_addr ; flags timeout ; size 2 ; }}\n")
    sets = NameSets(nft)
    for one, two in ((1, 2), (3, 4)):
        sets.retract([Retract(FLOWS4, elements(f"203.0.113.{one}", f"203.0.113.{two}"))])
        assert revoked(nft) == {f"203.0.113.{one}", f"203.0.113.{two}"}


@inside
def test_whom_a_retraction_revoked_stays_revoked_when_room_is_made_for_its_rest(nft: Nft) -> None:
    nft.load(f"delete set inet penstock {REVOKED4}\n")
    nft.load(f"add set inet penstock {REVOKED4} {{ type ipv4_addr ; flags timeout ; size 600 ; }}\n")
    sets = NameSets(nft)
    sets.retract([Retract(FLOWS4, elements(*(f"198.51.100.{n}" for n in range(50))))])
    many = elements(*(f"203.0.{n // 250}.{n % 250}" for n in range(600)))
    sets.retract([Retract(FLOWS4, many)])
    assert {ip_address(a).packed for a in revoked(nft)} == many


@inside
def test_whoever_is_no_longer_revoked_has_no_flows_left(nft: Nft) -> None:
    """They were more than there was time for."""
    nft.load(f"delete set inet penstock {REVOKED4}\n")
    nft.load(f"add set inet penstock {REVOKED4} {{ type ipv4_addr ; flags timeout ; size 2 ; }}\n")
    sets = NameSets(nft)
    remember(nft)
    with no_time():
        sets.retract([Retract(FLOWS4, elements("203.0.113.1", "203.0.113.9"))])
    assert remembered(nft) == FLOWS.keys(), "left behind"
    with no_time():
        sets.retract([Retract(FLOWS4, elements("203.0.113.7", "203.0.113.8"))])
    assert revoked(nft) == {"203.0.113.7", "203.0.113.8"}
    assert remembered(nft) == {"2001:db8::1", "2001:db8::2"}


@inside
def test_for_want_of_room_alone_is_anybody_forgotten(nft: Nft) -> None:
    sets = NameSets(nft)
    sets.retract([Retract(FLOWS4, elements("203.0.113.1"))])
    commit, failures = Nft.commit, [errno.ENOBUFS]

    def failing(nft: Nft, parts: list[Part], what: str) -> None:
        if what == "to revoke an address" and failures:
            raise PenstockError("no") from OSError(failures.pop(), "no")
        commit(nft, parts, what)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Nft, "commit", failing)
        with pytest.raises(PenstockError, match="no"):
            sets.retract([Retract(FLOWS4, elements("203.0.113.2"))])
    assert revoked(nft) == {"203.0.113.1"}


# --- when there is no time ---


@contextmanager
def no_time() -> Iterator[None]:
    """Of a set one part is looked at, and nothing is done about it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LOOKING", "SWEEPING", "LEAST"):
            patch.setattr(name_sets, name, 0, raising=False)
        yield


@inside
def test_a_set_that_may_hold_flows_of_others_is_emptied(nft: Nft) -> None:
    remember(nft)
    with no_time():
        retract(nft, [Retract(FLOWS4, elements("203.0.113.1"), others=True, known=elements("203.0.113.7"))])
    assert remembered(nft) == {"2001:db8::1", "2001:db8::2"}
    assert revoked(nft) == {"203.0.113.7"}


@inside
def test_who_is_known_is_revoked_and_the_others_go_on(nft: Nft) -> None:
    remember(nft)
    with no_time():
        retract(nft, [Retract(FLOWS4, elements("203.0.113.1")), Retract(FLOWS6, elements("2001:db8::2"))])
    assert remembered(nft) == FLOWS.keys()
    assert revoked(nft) == {"203.0.113.1", "2001:db8::2"}


@inside
def test_where_nobody_can_be_revoked_it_is_emptied_or_an_error(nft: Nft) -> None:
    nft.load(f"delete set inet penstock {REVOKED4}\ndelete set inet penstock {REVOKED6}\n")
    remember(nft)
    with no_time():
        retract(nft, [Retract(FLOWS6, elements("2001:db8::1"), others=True)])
        with pytest.raises(PenstockError, match="changes faster"):
            retract(nft, [Retract(FLOWS4, elements("203.0.113.1"))])
    assert remembered(nft) == {"203.0.113.1", "203.0.113.2"}


@inside
def test_a_flow_that_a_packet_under_way_writes_again_is_ended_too(nft: Nft) -> None:
    """All of them are taken out, and one is there at once; whoever is kept is not revoked."""
    remember(nft)
    commit, emptied = Nft.commit, []

    def late(nft: Nft, parts: list[Part], what: str) -> None:
        commit(nft, parts, what)
        if what == "to empty a set":
            emptied.append(revoked(nft))
            if len(emptied) == 1:
                remember(nft)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Nft, "commit", late)
        patch.setattr(name_sets, "SWEEPING", 0)
        look = Nft.keys
        at_first = [Late]

        def keys(nft: Nft, name: str, until: float = 0) -> list[bytes]:
            if name == FLOWS4 and at_first:
                raise at_first.pop()
            return look(nft, name)

        patch.setattr(Nft, "keys", keys)
        retract(nft, [Retract(FLOWS4, elements("203.0.113.1"), others=True)])
    assert emptied == [set(), {"203.0.113.2"}], "revoked before the second time"
    assert remembered(nft) == {"2001:db8::1", "2001:db8::2"}


@inside
def test_learned_addresses_that_cannot_be_looked_through_go_and_are_learned_anew(nft: Nft) -> None:
    kept = [opened(f"198.51.{n // 250}.{n % 250}") for n in range(2000)]
    learn(nft, [*kept, opened("203.0.113.3"), opened("2001:db8::1")])
    with no_time():
        retract(nft, [Retract(NAMES4, frozenset(a.address for a in kept), others=True)])
    assert set(held(nft)) == {"2001:db8::1"}
    for _ in range(2):
        with no_time():
            renew(nft, [*kept, opened("2001:db8::1"), opened("2001:db8::2")])
        assert len(held(nft)) == len(kept) + 2
        nft.load(f"delete element inet penstock {NAMES4} {{ 198.51.0.1 }}\n")


@inside
def test_who_may_be_revoked_is_forgotten_with_all_flows_of_that_set(nft: Nft) -> None:
    many = elements(*(f"198.51.{n // 250}.{n % 250}" for n in range(2000)))
    retract(nft, [Retract(FLOWS4, many), Retract(FLOWS6, elements("2001:db8::9"))])
    remember(nft)
    with no_time():
        learn(nft, [opened("198.51.0.1")])
    assert revoked(nft) == {"2001:db8::9"}
    assert remembered(nft) == {"2001:db8::1", "2001:db8::2"}
    assert set(held(nft)) == {"198.51.0.1"}


@inside
def test_full_sets_of_flows_keep_nobody_waiting(nft: Nft) -> None:
    """To list one takes the kernel five seconds."""
    count = 200_000
    nft.load(declared().replace("size 9999", f"size {count}"))
    timeout = nl.attribute(name_sets.TIMEOUT, struct.pack(">Q", 600_000))
    for start in range(0, count, 500):
        numbers = (divmod(n, 60_000) for n in range(start, start + 500))
        keys = (struct.pack(">IH2xIH2xB3x", 1, port, 0xCB007100 + to, 443, 17) for to, port in numbers)
        parts = [(name_sets._NEW, 0, INET, name_sets._message(FLOWS4, name_sets._key(k) + timeout)) for k in keys]
        nft.commit(parts, "a flow")
    began = time.thread_time()
    retract(nft, [Retract(FLOWS4, elements("203.0.113.0"))])
    retract(nft, [Retract(FLOWS4, elements("203.0.113.0"), others=True)])
    assert time.thread_time() - began < 5
    assert remembered(nft) == set()


def test_those_behind_one_that_takes_all_the_time_have_some(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    found = []
    for name, until in name_sets._in_turn("abcd", 1):
        found.append(round(until - clock[0], 3))
        clock[0] += {"a": 0.0, "b": 0.4, "c": 5, "d": 0.0}[name]
    assert found == [0.25, 0.333, 0.3, LEAST]


@inside
def test_a_table_without_that_set_is_emptied_all_the_same(nft: Nft) -> None:
    """It is one of the version before: the set comes with the rules that are loaded next."""
    nft.load(f"delete set inet penstock {REVOKED4}\n")
    remember(nft)
    retract(nft, [Retract(FLOWS4, elements("203.0.113.1"))])
    assert remembered(nft) == FLOWS.keys() - {"203.0.113.1"}
    learn(nft, [opened("203.0.113.1")])


@inside
def test_flows_that_run_out_all_the_time_keep_nobody_from_taking_them_out(nft: Nft) -> None:
    """A workload makes as many as it likes, and lets them run out."""
    nft.load(declared().replace("size 9999", "size 99999"))
    rows = (f"192.0.2.10 . {n % 60_000 + 1} . 203.0.113.{n // 60_000 + 1} . 443 . udp" for n in range(30_000))
    timed = [f"{row} timeout {300 + n % 997 * 2}ms" for n, row in enumerate(rows)]
    for start in range(0, len(timed), 1000):
        texts = ", ".join(timed[start : start + 1000])
        nft.load(f"add element inet penstock {FLOWS4} {{ {texts} }}\n")
    began = time.monotonic()
    retract(nft, [Retract(FLOWS4, elements("203.0.113.1"))])
    assert time.monotonic() - began < SWEEPING + 1
    assert "203.0.113.1" in revoked(nft)


@inside
def test_renewing_writes_what_is_missing_and_leaves_the_rest(nft: Nft) -> None:
    learn(nft, [opened("203.0.113.1", seconds=100)])
    renew(nft, [opened("203.0.113.1", seconds=900), opened("203.0.113.2", seconds=900), opened("2001:db8::1")])
    found = held(nft)
    assert set(found) == {"203.0.113.1", "203.0.113.2", "2001:db8::1"}
    assert found["203.0.113.1"][1] <= 100 < found["203.0.113.2"][1]


def ports(nft: Nft, name: str) -> dict[int, float]:
    """Port -> for how many seconds somebody is there."""
    return {int.from_bytes(o.address): o.seconds for o in learned(nft, [name])}


@inside
def test_who_is_there_is_for_some_seconds(nft: Nft) -> None:
    say_there(nft, [LISTENING, ANSWERING])
    for name in (LISTENING, ANSWERING):
        found = ports(nft, name)
        assert set(found) == {PORT}
        assert THERE - 1 < found[PORT] <= THERE
    listed = nft._library.run("list set inet penstock " + LISTENING)
    assert f"elements = {{ {PORT} timeout {THERE}s" in listed


@inside
def test_who_says_no_more_is_gone_by_himself(nft: Nft) -> None:
    say_there(nft, [LISTENING], seconds=60)
    say_there(nft, [ANSWERING], seconds=0.3)
    eventually(lambda: ports(nft, ANSWERING) == {})
    assert set(ports(nft, LISTENING)) == {PORT}


@inside
def test_to_say_it_again_moves_the_end(nft: Nft) -> None:
    for seconds in (60, 600, 6, 0.2):
        say_there(nft, [LISTENING], seconds=seconds)
        (left,) = ports(nft, LISTENING).values()
        assert seconds - 1 < left <= seconds
    eventually(lambda: ports(nft, LISTENING) == {})
    say_there(nft, [LISTENING])  # also when it ran out, and is not swept yet
    assert set(ports(nft, LISTENING)) == {PORT}


@inside
def test_who_is_gone_is_gone_at_once(nft: Nft) -> None:
    say_there(nft, [LISTENING, ANSWERING])
    for _ in range(2):  # also who was not there
        say_there(nft, [LISTENING], gone=[ANSWERING])
        assert (set(ports(nft, LISTENING)), ports(nft, ANSWERING)) == ({PORT}, {})
    say_there(nft, (), gone=(LISTENING, ANSWERING))
    assert (ports(nft, LISTENING), ports(nft, ANSWERING)) == ({}, {})


@inside
def test_who_is_there_changes_all_at_once_or_not_at_all(nft: Nft) -> None:
    generation = nft.generation()
    say_there(nft, [LISTENING], gone=[ANSWERING])
    assert nft.generation() == generation + 1
    say_there(nft, ())
    assert nft.generation() == generation + 1, "nothing was said"
    nft.load(f"delete set inet penstock {ANSWERING}\n")
    with pytest.raises(PenstockError, match="the kernel refused to be told who answers look-ups"):
        say_there(nft, [ANSWERING], gone=[LISTENING])
    assert set(ports(nft, LISTENING)) == {PORT}


@inside
def test_twenty_thousand(nft: Nft) -> None:
    """With names as long as they come: a batch fits into one buffer, its acknowledgements into another."""
    name = name_of(LONGEST_COMMENT - 1)
    many = [
        *(Opened(NAMES4, struct.pack(">I", 0x0A000000 + n), name, 600) for n in range(10_000)),
        *(Opened(NAMES6, struct.pack(">QQ", 0x20010DB8 << 32, n), name, 600) for n in range(10_000)),
    ]
    start = time.monotonic()
    learn(nft, many)
    print(f"20,000 learned in {time.monotonic() - start:.2f} s")
    learn(nft, many)
    assert len(held(nft)) == 20_000
    assert {name for name, _ in held(nft).values()} == {name}
    start = time.monotonic()
    retract(nft, [Retract(set_name, frozenset(), others=True) for set_name in (NAMES4, NAMES6)])
    print(f"and taken out in {time.monotonic() - start:.2f} s")
    assert held(nft) == {}


def test_who_is_called() -> None:
    v4, v6 = ip_address("203.0.113.1").packed, ip_address("2001:db8::1").packed
    assert called(v4) == v4
    assert called(v6) == v6
    assert called(bytes(4) + bytes(4) + v4 + bytes(8)) == v4
    assert called(bytes(16) + bytes(4) + v6 + bytes(8)) == v6


def test_names_of_any_bytes_do_no_harm() -> None:
    for data in (b"", b"\0", b"\0\5abc\0", b"\1\4abc\0", b"\0\4ab\xff\0", os.urandom(50)):
        assert isinstance(name_sets._name(data), str)
    assert name_sets._name(b"\0\4abc\0") == "abc"
