"""Our table in a real kernel: what was loaded is read back, what somebody else did to it is seen."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governed import placed, policy_of, rules
from penstock.core import cgroup_maps, chains, label_bits, lookup_chains
from penstock.core.compile import Live, Resolver, compile_policy
from penstock.core.policy import (
    EVERY_PORT,
    AddressPeer,
    AnyPeer,
    CidrPeer,
    Direction,
    Mode,
    Policy,
    PortRange,
    Ports,
    Rule,
    Workload,
)
from penstock.core.render_nft import Present, script
from penstock.core.ruleset import CATCH_ALL, Ruleset
from penstock.demo.lab import Lab
from penstock.errors import PenstockError
from penstock.kernel import nfnetlink as nl
from penstock.kernel import nft as nft_module
from penstock.kernel.nft import Late, Nft

pytestmark = pytest.mark.root

NOW = datetime.now(UTC)
V4, V6 = ip_address("198.51.100.10"), ip_address("2001:db8:51::10")
REMOVE = "add table inet penstock\ndelete table inet penstock\n"
SLICE, W = "penstock.slice", "penstock.slice/penstock-w.slice"
Body = Callable[[Nft, Lab], None]


def inside(body: Body) -> Callable[[Lab], None]:
    """Make a test of `body`, which runs in the lab, and leaves no table."""

    def run(lab: Lab) -> None:
        nft = Nft()
        try:
            body(nft, lab)
        finally:
            nft.load(REMOVE)
            nft.close()

    def test(lab: Lab) -> None:
        lab.host.call(run, lab)

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    return test


def foreign(text: str) -> str:
    """Another root at work."""
    done = subprocess.run(["nft", "-f", "-"], input=text + "\n", text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


PORT = Ports((PortRange("udp", 5000, 5000),))


def egress(*peers: Any, ports: Ports = PORT, **more: Any) -> Rule:
    return Rule("out-1", Direction.OUT, peers, ports, **more)


def ruleset(*rules: Rule, workload: str = "w", now: datetime = NOW) -> Ruleset:
    policy = Policy(workloads={workload: Workload(workload, Mode.ENFORCE, rules, ())})
    return compile_policy(policy, Live(now, {workload: label_bits.FIRST_LABEL}, 2))


USUAL = ruleset(egress(AddressPeer(V4), AddressPeer(V6), CidrPeer(ip_network("10.0.0.0/8"))))


def load(nft: Nft, lab: Lab, wanted: Ruleset, now: datetime = NOW) -> None:
    inode(lab, SLICE)
    nft.load(script(placed(wanted, lab.cgroup), nft.snapshot().present, now))


def inode(lab: Lab, path: str) -> int:
    place = lab.cgroup / path
    place.mkdir(parents=True, exist_ok=True)
    return place.stat().st_ino


def bindings(lab: Lab) -> dict[str, dict[int, tuple[str, str]]]:
    result: dict[str, dict[int, tuple[str, str]]] = {name: {} for name in cgroup_maps.MAPS}
    for name, verb, chain in cgroup_maps.bindings("w"):
        result[name][inode(lab, W)] = (verb, chain)
    return result


def send(address: Any, port: int = 5000) -> str:
    """One datagram; "ok", or why not."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(b"x", (str(address), port))
        except PermissionError:
            return "refused"
    return "ok"


# --- loading and reading back ---


@inside
def test_what_was_loaded_is_read_back(nft: Nft, lab: Lab) -> None:
    load(nft, lab, USUAL)
    found = nft.snapshot()
    assert found.present == Present.of(USUAL, NOW)
    assert (found.exists, found.ours, found.dormant) == (True, True, False)
    assert found.chains == {chain.name: len(chain.rules) for chain in USUAL.chains}
    assert found.bindings == {name: {} for name in cgroup_maps.MAPS}
    assert found.slices == dict.fromkeys(("output", "input"), inode(lab, SLICE))
    assert found.generation == nft.generation()
    assert nft.snapshot(elements=False).sets == dict.fromkeys(found.sets, frozenset())


@inside
def test_without_a_table_there_is_nothing(nft: Nft, lab: Lab) -> None:
    found = nft.snapshot()
    assert not found.exists
    assert not found.ours
    assert found.present == Present()
    assert nft.counters() == {}
    assert nft.hits("out4_w", 4) == {}
    assert not nft.has("out4_w", V4.packed, 17, 5000)


@inside
def test_somebody_elses_table_of_our_name_is_not_ours(nft: Nft, lab: Lab) -> None:
    foreign("add table inet penstock")
    found = nft.snapshot()
    assert found.exists
    assert not found.ours


@inside
def test_tables_of_others_are_not_read(nft: Nft, lab: Lab) -> None:
    load(nft, lab, USUAL)
    before = nft.snapshot()
    foreign("add table inet other\nadd chain inet other c\nadd rule inet other c accept\nadd table ip penstock")
    try:
        assert replace(nft.snapshot(), generation=before.generation) == before
    finally:
        foreign("delete table inet other\ndelete table ip penstock")


@inside
def test_whole_ranges_come_back(nft: Nft, lab: Lab) -> None:
    wanted = ruleset(egress(AnyPeer(), ports=Ports(EVERY_PORT, icmp=True)))
    load(nft, lab, wanted)
    assert nft.snapshot().present == Present.of(wanted, NOW)
    assert nft.has("out4_w", bytes(4), 6, 0)
    assert nft.has("out4_w", b"\xff" * 4, 17, 65535)
    assert nft.has("out6_w", b"\xff" * 16, 58, 65535)


@inside
def test_many_elements_are_loaded_and_read_back_soon(nft: Nft, lab: Lab) -> None:
    wanted = ruleset(egress(*(AddressPeer(ip_address(0x0B000000 + 2 * n)) for n in range(5000))))
    start = time.monotonic()
    load(nft, lab, wanted)
    assert nft.snapshot().present == Present.of(wanted, NOW)
    assert time.monotonic() - start < 3


@inside
def test_the_set_is_asked_in_both_families(nft: Nft, lab: Lab) -> None:
    load(nft, lab, USUAL)
    for name, address, other in (("out4_w", V4, ip_address("198.51.100.11")), ("out6_w", V6, ip_address("::1"))):
        assert nft.has(name, address.packed, 17, 5000)
        assert not nft.has(name, address.packed, 6, 5000)
        assert not nft.has(name, address.packed, 17, 5001)
        assert not nft.has(name, other.packed, 17, 5000)
    for text, there in (
        ("9.255.255.255", False),
        ("10.0.0.0", True),
        ("10.255.255.255", True),
        ("11.0.0.0", False),
    ):
        assert nft.has("out4_w", ip_address(text).packed, 17, 5000) is there


# --- of look-ups ---


def by_name(workload: str = "w") -> Ruleset:
    """With whom look-ups asked: maps that lead to no verdict, and sets of the shape of others."""
    policy = policy_of(rules(workload, "[{to: hub.example}]"))
    live = Live(NOW, {workload: label_bits.FIRST_LABEL}, 2, (), Resolver({workload: 40_053}))
    return compile_policy(policy, live)


ASKED = {
    "asked4_w": "5000 . udp timeout 1h : 192.0.2.53",
    "asked6_w": "5000 . tcp timeout 1h : 2001:db8::53",
    "lately4_w": "5000 . udp . 192.0.2.53 timeout 1h",
    "lately6_w": "5000 . tcp . 2001:db8::53 timeout 1h",
    lookup_chains.ASKERS: "5000 timeout 1h",
}


def ask(nft: Nft) -> None:
    """As the packets of look-ups do."""
    for name, element in ASKED.items():
        nft.load(f"add element inet penstock {name} {{ {element} }}\n")


def asked(nft: Nft) -> set[str]:
    """Those of the sets in which there is something."""
    return {name for name in ASKED if list(nft.elements(name))}


@inside
def test_whom_look_ups_asked_is_named_and_not_read(nft: Nft, lab: Lab) -> None:
    wanted = by_name()
    load(nft, lab, wanted)
    ask(nft)
    assert asked(nft) == set(ASKED)
    found = nft.snapshot()
    assert found.present == Present.of(wanted, NOW)
    assert found.bindings.keys() == set(wanted.maps)
    assert {name: found.sets[name] for name in ASKED} == dict.fromkeys(ASKED, frozenset())
    assert {name: found.timed[name] for name in ASKED} == dict.fromkeys(ASKED, frozenset())


@inside
def test_whom_look_ups_asked_outlives_a_reload_and_bindings(nft: Nft, lab: Lab) -> None:
    load(nft, lab, by_name())
    ask(nft)
    nft.bind(bindings(lab))
    load(nft, lab, by_name())
    assert asked(nft) == set(ASKED)
    nft.release(())
    assert asked(nft) == set(ASKED)
    assert not any(nft.snapshot().bindings[name] for name in cgroup_maps.MAPS)


@inside
def test_whom_look_ups_asked_goes_with_the_rules_by_name(nft: Nft, lab: Lab) -> None:
    load(nft, lab, by_name())
    ask(nft)
    load(nft, lab, USUAL)
    found = nft.snapshot()
    assert found.present == Present.of(USUAL, NOW)
    assert not found.sets.keys() & ASKED.keys()
    load(nft, lab, by_name())
    assert asked(nft) == set()


# --- binding ---


@inside
def test_binding_is_declared_and_may_be_repeated(nft: Nft, lab: Lab) -> None:
    load(nft, lab, USUAL)
    wanted = bindings(lab)
    nft.bind(wanted)
    assert nft.snapshot().bindings == wanted
    generation = nft.generation()
    nft.bind(wanted)
    assert nft.generation() == generation
    del wanted[cgroup_maps.OUT][inode(lab, W)]
    nft.bind(wanted)
    assert nft.snapshot().bindings == wanted


@inside
def test_a_cgroup_that_is_gone_is_unbound_by_its_number(nft: Nft, lab: Lab) -> None:
    load(nft, lab, USUAL)
    stale = bindings(lab)
    nft.bind(stale)
    (lab.cgroup / W).rmdir()
    fresh = bindings(lab)
    assert fresh != stale
    nft.bind(fresh)
    assert nft.snapshot().bindings == fresh


@inside
def test_a_verdict_is_replaced(nft: Nft, lab: Lab) -> None:
    load(nft, lab, USUAL)
    cgroup = inode(lab, W)
    nft.bind({cgroup_maps.OUT: {cgroup: ("goto", "out_w")}})
    nft.bind({cgroup_maps.OUT: {cgroup: ("jump", "refuse_out")}})
    assert nft.snapshot().bindings[cgroup_maps.OUT] == {cgroup: ("jump", "refuse_out")}


@inside
def test_bindings_outlive_a_reload(nft: Nft, lab: Lab) -> None:
    load(nft, lab, USUAL)
    nft.bind(bindings(lab))
    load(nft, lab, ruleset())
    assert nft.snapshot().bindings == bindings(lab)


@inside
def test_a_workload_that_goes_is_released_first(nft: Nft, lab: Lab) -> None:
    load(nft, lab, USUAL)
    nft.bind(bindings(lab))
    other = ruleset(workload="other")
    with pytest.raises(PenstockError):
        load(nft, lab, other)
    nft.release([chain.name for chain in other.chains])
    load(nft, lab, other)
    assert nft.snapshot().present == Present.of(other, NOW)
    assert nft.snapshot().bindings == {name: {} for name in cgroup_maps.MAPS}


@inside
def test_a_chain_that_is_not_there_cannot_be_bound(nft: Nft, lab: Lab) -> None:
    load(nft, lab, USUAL)
    with pytest.raises(PenstockError, match="refused to bind cgroups: No such file"):
        nft.bind({cgroup_maps.OUT: {1: ("goto", "nonsense")}})
    nft.bind(bindings(lab))
    assert nft.snapshot().bindings == bindings(lab)


# --- counters ---


def start_workload(nft: Nft, lab: Lab) -> None:
    """Load the usual rules, and be the workload from here on."""
    load(nft, lab, USUAL)
    nft.bind(bindings(lab))
    Path(lab.cgroup, W, "cgroup.procs").write_text("0")


@inside
def test_counters_are_kept_over_a_reload(nft: Nft, lab: Lab) -> None:
    start_workload(nft, lab)
    assert [send(V4), send(V6), send(V4, 5001), send(V6, 5001)] == ["ok", "ok", "refused", "refused"]
    denied = chains.counter_name(Direction.OUT, "w")
    assert nft.counters()[denied][0] == 2
    wider = ruleset(egress(AddressPeer(V4), AddressPeer(V6), CidrPeer(ip_network("11.0.0.0/8"))))
    load(nft, lab, wider)
    assert nft.counters()[denied][0] == 2
    for name, address in (("out4_w", V4), ("out6_w", V6)):
        hits = {e: n for e, n in nft.hits(name, address.version).items() if n[0]}
        assert {(e.low, packets) for e, (packets, _) in hits.items()} == {(int(address), 1)}
        [(_, size)] = hits.values()
        assert size > 20, "bytes of headers at least"
    assert send(V4) == "ok"
    assert sum(packets for packets, _ in nft.hits("out4_w", 4).values()) == 2


# --- time ---


@inside
def test_a_reload_changes_when_an_element_runs_out(nft: Nft, lab: Lab) -> None:
    def reload(expires: datetime | None) -> str:
        wanted = ruleset(egress(AddressPeer(V4), expires=expires))
        load(nft, lab, wanted)
        assert nft.snapshot().present == Present.of(wanted, NOW)
        listed: str = foreign("list set inet penstock out4_w")
        return listed

    assert " timeout " not in reload(None)
    assert " timeout 1h " in reload(NOW + timedelta(hours=1))
    assert " timeout 2h " in reload(NOW + timedelta(hours=2))
    assert " timeout 36500d " in reload(datetime.max.replace(tzinfo=UTC))
    assert " timeout " not in reload(None)


@inside
def test_an_element_runs_out_without_us(nft: Nft, lab: Lab) -> None:
    now = datetime.now(UTC)
    load(nft, lab, ruleset(egress(AddressPeer(V4), expires=now + timedelta(seconds=0.5)), now=now), now)
    assert nft.has("out4_w", V4.packed, 17, 5000)
    deadline = time.monotonic() + 5
    while nft.has("out4_w", V4.packed, 17, 5000):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert nft.snapshot().sets["out4_w"] == frozenset()


# --- others ---

FOREIGN = {
    "rule": "insert rule inet penstock out_w accept",
    "rule-elsewhere": "add rule inet penstock refuse_out accept",
    "rule-gone": "flush chain inet penstock out_w",
    "as-many-other-rules": "flush chain inet penstock refuse_in\n"
    + "add rule inet penstock refuse_in accept\n" * 2,
    "chain": "add chain inet penstock theirs",
    "hook": "add chain inet penstock theirs { type filter hook input priority 5 ; policy drop ; }",
    "element": "add element inet penstock out4_w { 203.0.113.66 . tcp . 1-65535 }",
    "element-gone": "delete element inet penstock out4_w { 198.51.100.10 . udp . 5000 }",
    "catch-all": "add element inet penstock out6_w { * }",
    "set": "add set inet penstock theirs { type ipv4_addr ; elements = { 192.0.2.1 } ; }",
    "set-of-our-size": "add set inet penstock theirs { type ipv4_addr . inet_proto . mark ; flags interval ; }",
    "map": "add map inet penstock theirs { type ipv4_addr : verdict ; elements = { 192.0.2.1 : drop } ; }",
    "map-of-marks": "add map inet penstock theirs { type ether_addr : mark ; elements = { 1:2:3:4:5:6 : 7 } ; }",
    "counter": "add counter inet penstock theirs",
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_others_do_to_our_table_is_seen_and_undone(lab: Lab, what: str) -> None:
    @inside
    def body(nft: Nft, lab: Lab) -> None:
        load(nft, lab, USUAL)
        before = nft.snapshot()
        foreign(FOREIGN[what])
        found = nft.snapshot()
        assert replace(found, generation=before.generation) != before
        load(nft, lab, USUAL)
        assert replace(nft.snapshot(), generation=before.generation) == before

    body(lab)


@inside
def test_a_catch_all_element_is_named(nft: Nft, lab: Lab) -> None:
    load(nft, lab, USUAL)
    foreign(FOREIGN["catch-all"])
    assert CATCH_ALL in nft.snapshot().sets["out6_w"]


@inside
def test_other_objects_in_our_table_do_no_harm(nft: Nft, lab: Lab) -> None:
    load(nft, lab, USUAL)
    foreign("add quota inet penstock theirs { 10 bytes ; }\nadd limit inet penstock theirs { rate 1/second ; }")
    assert nft.snapshot().present == Present.of(USUAL, NOW)
    assert set(nft.counters()) == set(USUAL.counters)


@inside
def test_a_dormant_table_is_noticed_and_woken(nft: Nft, lab: Lab) -> None:
    start_workload(nft, lab)
    foreign("add table inet penstock { flags dormant ; }")
    assert nft.snapshot().dormant
    assert send(V4, 5001) == "ok"
    load(nft, lab, USUAL)
    assert not nft.snapshot().dormant
    assert send(V4, 5001) == "refused"


# --- keys alone ---


def element(*attributes: bytes) -> bytes:
    return nl.nested(1, *attributes)


def key(value: bytes) -> bytes:
    return nl.attribute(1, nl.attribute(1, value))


def part(*elements: bytes) -> bytes:
    return nl.text(1, "penstock") + nl.text(2, "some") + nl.nested(3, *elements)


def test_keys_are_found_wherever_they_are_written() -> None:
    timeout, comment = nl.attribute(4, bytes(8)), nl.attribute(6, b"\0\3ab\0")
    keys = [b"abcd", bytes(16), b"e", b"", b"a" * 44, b"abcd"]
    usual = [element(key(k), timeout, comment) for k in keys]
    assert list(nft_module._keys(part(*usual))) == keys
    assert list(nft_module._keys(part(*usual, element(timeout, key(b"late")), *usual))) == [*keys, b"late", *keys]
    assert list(nft_module._keys(part(element(timeout), element(), usual[0]))) == [b"", b"", b"abcd"]
    verdict = nl.attribute(1, nl.attribute(2, b"abcd"))
    assert list(nft_module._keys(part(element(verdict), usual[0]))) == [b"", b"abcd"]
    assert list(nft_module._keys(part())) == []
    assert list(nft_module._keys(nl.text(1, "penstock"))) == []


@given(st.binary(max_size=80))
def test_garbage_has_keys_or_is_refused(data: bytes) -> None:
    for body in (data, nl.attribute(3, data), part(element(key(b"abcd")), data)):
        with contextlib.suppress(ValueError):
            assert all(isinstance(k, bytes) for k in nft_module._keys(body))


@inside
def test_keys_are_those_of_the_elements(nft: Nft, lab: Lab) -> None:
    nft.load(REMOVE + "add table inet penstock\n")
    rows = {
        "ipv4_addr": [f"198.51.{n // 250}.{n % 250}" for n in range(3000)],
        "ipv6_addr": [f"2001:db8::{n:x}" for n in range(3000)],
        "ipv4_addr . inet_service . inet_proto": [f"198.51.100.1 . {n + 1} . udp" for n in range(3000)],
    }
    for number, (kind, texts) in enumerate(rows.items()):
        for flags, more in (("timeout", 'timeout 9m comment "hub.example"'), ("constant", "")):
            name = f"{flags}{number}"
            held = "elements = {" + ", ".join(f"{text} {more}" for text in texts) + "}"
            nft.load(f"add set inet penstock {name} {{ type {kind} ; flags {flags} ; {held} ; }}\n")
            found = nft.keys(name)
            assert len(found) == len(set(found)) == 3000
            assert found == [nl.attribute_map(values[1])[1] for values in nft.elements(name)]
    assert nft.keys("no_such_set") == []


@inside
def test_a_list_that_is_given_up_is_in_nobodys_way(nft: Nft, lab: Lab) -> None:
    nft.load(REMOVE + "add table inet penstock\n")
    held = ", ".join(f"198.51.{n // 250}.{n % 250}" for n in range(20_000))
    nft.load(f"add set inet penstock many {{ type ipv4_addr ; elements = {{ {held} }} ; }}\n")
    nft.load("add set inet penstock few { type ipv4_addr ; elements = { 198.51.100.1 } ; }\n")
    for _ in range(3):
        with pytest.raises(Late):
            nft.keys("many", time.monotonic())
        assert len(nft.keys("few", time.monotonic())) == 1, "there is always time for it"
        assert nft.keys("no_such_set", time.monotonic()) == []
        assert set(nft.sets()) == {"many", "few"}
        assert len(nft.keys("many")) == len(list(nft.elements("many"))) == 20_000


# --- errors ---


@inside
def test_a_refused_script_says_why_in_one_line_and_changes_nothing(nft: Nft, lab: Lab) -> None:
    load(nft, lab, USUAL)
    generation = nft.generation()
    with pytest.raises(PenstockError) as caught:
        nft.load("add chain inet penstock fine\nadd rule inet penstock nowhere accept\n" + "# much\n" * 1000)
    text = str(caught.value)
    assert "nowhere" not in nft.snapshot().chains
    assert "\n" not in text
    assert "Error: " in text
    assert len(text) < 200
    assert nft.generation() == generation


def test_without_root_every_call_says_so(lab: Lab) -> None:
    def unprivileged() -> list[str]:
        os.setgid(65534)
        os.setuid(65534)
        nft, said = Nft(), []
        for call in (
            lambda: nft.load("add table inet penstock\n"),
            nft.snapshot,
            nft.generation,
            nft.counters,
            lambda: nft.bind({cgroup_maps.OUT: {1: ("goto", "x")}}),
        ):
            try:
                call()
                said.append("nothing")
            except PenstockError as error:
                said.append(str(error))
        return said

    said = lab.host.call(unprivileged)
    assert all("not permitted" in text for text in said), said
