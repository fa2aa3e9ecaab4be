"""Commands that only ask; their answers through the engine are tested with it."""

from __future__ import annotations

from typing import Any

from fake_host import START, TWO, Host

from penstock.core.asked import Asked
from penstock.core.commands import Commands
from penstock.core.effects import Answer, CountHits, Refuse
from penstock.core.events import Command, Hits
from penstock.core.learned import Learned
from penstock.core.view import View
from penstock.core.wire import Message


def ask(command: str, **arguments: object) -> Command:
    return Command(START, 7, Message(command, arguments))


def test_without_a_policy() -> None:
    commands, view = Commands(Learned(), Asked()), View(START)
    holds = {"workload": "a", "direction": "out", "address": "192.0.2.1", "protocol": "tcp", "port": 1, "here": 0}
    nothing = Answer(7, {"holds": None, "learned": None})
    assert commands.take(ask("holds", **holds), view, None) == [nothing]
    [refused] = commands.take(ask("hits", workload="a"), view, None)
    assert isinstance(refused, Refuse)
    assert commands.take(ask("ready", workload="a"), view, None) == [
        Answer(7, {"ready": False, "reason": "no policy is in force yet"})
    ]


def test_hits_that_nobody_asked_for_or_was_forgotten_are_nobodys() -> None:
    in_force = Host(TWO).start().engine.in_force
    commands = Commands(Learned(), Asked())
    [counting] = commands.take(ask("hits", workload="a"), View(START), in_force)
    assert isinstance(counting, CountHits)
    assert {name for name, _ in counting.sets} == {"out4_a", "out6_a", "in4_a", "in6_a"}
    commands.forget(7)
    [refused] = commands.hits(Hits(START, 7, {}), in_force)
    assert isinstance(refused, Refuse)


def test_what_chains_open_is_told_as_long_as_the_kernel_holds_them() -> None:
    in_force = Host(TWO).start().engine.in_force
    assert in_force
    commands, agrees = Commands(Learned(), Asked()), View(START, agrees=True)
    asked = {"workload": "a", "direction": "in", "far": "host", "protocol": "tcp", "port": 1}
    assert commands.take(ask("opens", **asked), agrees, in_force) == [Answer(7, {"rules": []})]
    for view, policy, changes in (
        (View(START, agrees=False), in_force, {}),
        (View(START), in_force, {}),
        (agrees, None, {}),
        (agrees, in_force, {"workload": "z"}),
    ):
        assert commands.take(ask("opens", **asked | changes), view, policy) == [Answer(7, {"rules": None})]
    [refused] = commands.take(ask("opens", **asked | {"far": "moon"}), agrees, in_force)
    assert isinstance(refused, Refuse)


def test_what_names_lead_to_is_answered_at_once() -> None:
    in_force = Host(TWO).start().engine.in_force
    learned, asked = Learned(), Asked()
    learned.learn("a", "x.example", [(b"\xc0\x00\x02\x01", 60)], START.timestamp())
    asked.refused("a", "y.example", "name", START.timestamp())
    commands = Commands(learned, asked)

    def about(name: str) -> Any:
        [answer] = commands.take(ask("names", workload="a", name=name), View(START), in_force)
        assert isinstance(answer, Answer)
        return answer.result

    assert [found["address"] for found in about("x.example")["addresses"]] == ["192.0.2.1"]
    assert [found["name"] for found in about("192.0.2.1")["names"]] == ["x.example"]
    assert about("y.example")["asked"]["reason"] == "name"


def test_a_question_about_names_that_makes_no_sense_is_refused() -> None:
    in_force = Host(TWO).start().engine.in_force
    senseless = (("a", "no name", in_force), ("c", "x.example", in_force), ("a", "x.example", None))
    for workload, name, policy in senseless:
        question = ask("names", workload=workload, name=name)
        [refused] = Commands(Learned(), Asked()).take(question, View(START), policy)
        assert isinstance(refused, Refuse)
