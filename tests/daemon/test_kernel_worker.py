"""What effects do to the kernel, where the order of what is asked for matters."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address

import pytest

from governed import Actor, policy_of, rules, slice_of
from penstock.core import effects
from penstock.core.compile import Live, Resolver, compile_policy
from penstock.core.label_bits import FIRST_LABEL
from penstock.core.lookup_chains import ANSWERING, LISTENING
from penstock.core.name_elements import Opened, Retract
from penstock.core.ruleset import Ruleset
from penstock.daemon import kernel_worker
from penstock.daemon.kernel_worker import KernelWorker
from penstock.demo.lab import Lab
from penstock.errors import PenstockError
from penstock.kernel import cgroup
from penstock.kernel.nft import Nft

pytestmark = pytest.mark.root


def begun(tree: Lab) -> tuple[KernelWorker, Ruleset, str]:
    """Nothing is loaded yet; the set is one of its learned addresses."""
    policy = policy_of(rules("w", "[{to: hub.example}]"))
    place = cgroup.slice_for_nft(tree.cgroup)
    ruleset = compile_policy(policy, Live(datetime.now(UTC), {"w": FIRST_LABEL}, 1, (), Resolver(), place))
    worker = KernelWorker(tree.cgroup)
    worker.make_cgroups(effects.MakeCgroups(7, ()))
    return worker, ruleset, next(s.name for s in ruleset.name_sets if s.name.startswith("names4_"))


def late(tree: Lab) -> list[str]:
    """Learn what was judged before the last load, and after it; what is held then, or the refusal."""
    worker, ruleset, set_name = begun(tree)
    address = Opened(set_name, ip_address("192.0.2.1").packed, "hub.example", 60)
    found = []
    try:
        worker.load(effects.Load(7, ruleset, None))
        for loaded in (6, 7):
            for ask in (
                partial(worker.learn, effects.Learn((1,), (address,), loaded)),
                partial(worker.renew, effects.Renew((), (address,), loaded)),
            ):
                try:
                    ask()
                except PenstockError as e:
                    found.append(e.message)
                else:
                    found.append("done")
            found.append(f"{len(worker.learned())} held")
    finally:
        Nft().load("add table inet penstock\ndelete table inet penstock\n")
    return found


def test_what_was_judged_by_another_policy_is_not_learned(lab: Lab) -> None:
    found = lab.host.call(late, lab)
    assert found[:2] == ["another policy was loaded since the look-up"] * 2
    assert found[2:] == ["0 held", "done", "done", "1 held"]


def meanwhile(tree: Lab) -> list[int]:
    """How many addresses are held after each of some loads that take out all but what was learned for them."""
    worker, ruleset, set_name = begun(tree)
    one, two = (Opened(set_name, ip_address(f"192.0.2.{n}").packed, "hub.example", 60) for n in (1, 2))
    gone = Retract(set_name, frozenset(), others=True, known=frozenset({one.address}))
    found = []
    try:
        worker.load(effects.Load(7, ruleset, None))
        for then, loads in (((one,), 8), ((), 9), ((one, two), 10), ((one,), 12), (None, 13)):
            operation = loads if loads != 12 else 11
            worker.learn(effects.Learn((1,), (one,), operation, then))
            worker.load(effects.Load(loads, ruleset, None, (gone,)))
            found.append(len(worker.learned()))
    finally:
        Nft().load("add table inet penstock\ndelete table inet penstock\n")
    return found


def test_what_is_learned_while_a_policy_is_loaded_is_not_taken_out_by_that(lab: Lab) -> None:
    assert lab.host.call(meanwhile, lab) == [1, 0, 2, 0, 0]


def behind(tree: Lab) -> list[list[int]]:
    """What is held when it is learned behind the load for which it was judged."""
    worker, ruleset, set_name = begun(tree)
    one, two = (Opened(set_name, ip_address(f"192.0.2.{n}").packed, "hub.example", 60) for n in (1, 2))
    found = []
    try:
        for number, then in enumerate(((two,), (), None), 7):
            worker.load(effects.Load(number, ruleset, None, (Retract(set_name, frozenset(), others=True),)))
            worker.learn(effects.Learn((1,), (one,), number, then))
            found.append(sorted(element.address[-1] for element in worker.learned()))
    finally:
        Nft().load("add table inet penstock\ndelete table inet penstock\n")
    return found


def test_what_is_learned_behind_a_load_is_by_the_rules_that_it_brought(lab: Lab) -> None:
    assert lab.host.call(behind, lab) == [[2], [], [1]]


def held(set_name: str) -> int:
    return len(list(Nft().elements(set_name)))


def there(tree: Lab) -> list[tuple[int, int]]:
    """How much is in the sets that say who is there: before, when both are, and when one is gone."""
    policy = policy_of(rules("w", "[{to: hub.example}]", mode="observe"), rules("v", "[{to: hub.example}]"))
    live = Live(
        datetime.now(UTC),
        {"w": FIRST_LABEL, "v": FIRST_LABEL + 1},
        1,
        (),
        Resolver({"w": 40_053, "v": 40_054}),
        cgroup.slice_for_nft(tree.cgroup),
    )
    worker = KernelWorker(tree.cgroup)
    worker.make_cgroups(effects.MakeCgroups(7, ()))
    found = []
    try:
        worker.load(effects.Load(7, compile_policy(policy, live), None))
        for said in (
            effects.SayThere((), (LISTENING, ANSWERING)),
            effects.SayThere((LISTENING, ANSWERING)),
            effects.SayThere((LISTENING,), (ANSWERING,)),
            effects.SayThere((), (LISTENING, ANSWERING)),
        ):
            worker.say_there(said)
            found.append((held(LISTENING), held(ANSWERING)))
    finally:
        Nft().load("add table inet penstock\ndelete table inet penstock\n")
    return found


def test_it_is_said_who_is_there_and_who_is_gone(lab: Lab) -> None:
    assert lab.host.call(there, lab) == [(0, 0), (1, 1), (1, 0), (0, 0)]


def listening(lab: Lab, request: int | None) -> dict[int, str] | None:
    worker = KernelWorker(lab.cgroup)
    Nft().load("add table inet penstock")
    try:
        seen = worker.examine(effects.Examine(request, ("w",), {}, {"x.slice/x.service": "w"}), None)
    finally:
        Nft().load("delete table inet penstock")
    return None if seen.listeners is None else {one.port: one.workload for one in seen.listeners}


def listen(port: int) -> None:
    _held.append(socket.create_server(("127.0.0.1", port)))


_held: list[socket.socket] = []


def test_open_ports_of_slice_and_places_are_looked_at_for_who_asked(lab: Lab) -> None:
    places = (slice_of("w"), "x.slice/x.service", "x.slice/y.service")
    with ExitStack() as stack:
        for number, place in enumerate(places):
            stack.enter_context(Actor(lab.host, place))(listen, 4000 + number)
        assert lab.host.call(listening, lab, 1) == {4000: "w", 4001: "w"}
        assert lab.host.call(listening, lab, None) is None


@pytest.mark.parametrize("slow", [False, True])
def test_after_a_slow_load_ends_are_told_anew(lab: Lab, monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    told: list[object] = []

    def load(*arguments: object) -> None:
        time.sleep(2 * kernel_worker.LATE if slow else 0)

    monkeypatch.setattr(kernel_worker, "load", load)
    monkeypatch.setattr(kernel_worker, "retime", lambda nft, ruleset, clock: told.append(ruleset))
    ruleset = compile_policy(policy_of(rules("w")), Live(datetime.now(UTC), {"w": FIRST_LABEL}, 1))
    KernelWorker(lab.cgroup).load(effects.Load(7, ruleset, None))
    assert told == ([ruleset] if slow else [])
