"""Performing lists of effects: the order, what stops a list, and what the engine hears of it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from penstock.core import effects, events, resolver_wire
from penstock.core.compile import Live
from penstock.core.effects import Effect
from penstock.core.events import Event
from penstock.core.journal import MESSAGE_IDS, record
from penstock.core.policy import Policy
from penstock.daemon.clock import now
from penstock.daemon.executor import Executor, Resolver
from penstock.daemon.file_worker import FileWorker
from penstock.daemon.kernel_worker import KernelWorker
from penstock.errors import PenstockError
from penstock.kernel import systemd


class Workers:
    """Takes the place of both: remembers calls, and fails those that it is told to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.broken: dict[str, Exception] = {}
        self.heard: list[Event] = []
        self.told: list[Any] = []
        self.heals = False  # what is broken fails once

    def __getattr__(self, name: str) -> Any:
        def call(*args: object) -> Any:
            self.calls.append(name)
            if name in self.broken:
                raise self.broken.pop(name) if self.heals else self.broken[name]
            return events.Proven(now()) if name == "prove" else None

        return call

    def answer(self, request: int, result: object) -> None:
        self.told.append((request, result))

    def refuse(self, request: int, message: str, hint: str) -> None:
        self.told.append((request, message, hint))

    def run(self, *lists: list[Effect]) -> None:
        async def whole() -> None:
            thread = ThreadPoolExecutor(1)
            async with asyncio.TaskGroup() as tasks:
                files, kernel = cast(FileWorker, self), cast(KernelWorker, self)
                quit_ = lambda status, text: self.told.append((status, text))  # noqa: E731
                resolver = cast(Resolver, self)
                executor = Executor(tasks, files, kernel, thread, self, resolver, self.heard.append, quit_)
                for todo in lists:
                    task = executor.perform(todo)
                    if task:
                        await task
            executor.close()
            thread.shutdown()

        asyncio.run(whole())


MAKE = effects.MakeCgroups(3, ("a",))
RECORD = effects.Record(())
ANSWER = effects.Answer(5, {"x": 1})


def test_in_its_order_and_then_the_events() -> None:
    workers = Workers()
    workers.run([MAKE, effects.Prove(), effects.CommitState(3), ANSWER])
    assert workers.calls == ["make_cgroups", "prove", "commit_state"]
    assert [type(e) for e in workers.heard] == [events.Proven, events.Saved]
    assert workers.told == [(5, {"x": 1})]


def test_who_is_there_is_said_to_the_kernel() -> None:
    workers = Workers()
    workers.run([effects.SayThere(("listening",), ("answering",)), ANSWER])
    assert workers.calls == ["say_there"]
    assert workers.told == [(5, {"x": 1})]


def test_nobody_is_answered_before_the_resolver_goes_by_it() -> None:
    class Slow(Workers):
        async def configure(self, message: resolver_wire.Configure) -> None:
            await asyncio.sleep(0.02)
            self.told.append(message)

    workers = Slow()
    message = resolver_wire.Configure(1, (), (), ())
    workers.run([effects.Configure(message), ANSWER])
    assert workers.told == [message, (5, {"x": 1})]


def test_a_guard_that_fails_ends_the_list_and_is_told() -> None:
    workers = Workers()
    workers.broken["make_cgroups"] = PenstockError("no", where="/x", hint="do")
    workers.run([MAKE, effects.Prove(), ANSWER])
    assert workers.calls == ["make_cgroups"]
    [failed] = workers.heard
    assert isinstance(failed, events.Failed)
    assert (failed.effect, failed.error) == ("MakeCgroups", "/x: no; do")
    assert (failed.operation, failed.request) == (3, None)


def test_what_only_tells_stops_nothing() -> None:
    workers = Workers()
    workers.broken["record"] = OSError(28, "No space left on device", "/log")
    workers.run([RECORD, ANSWER])
    [failed] = workers.heard
    assert isinstance(failed, events.Failed)
    assert failed.error == "/log: No space left on device"
    assert workers.told == [(5, {"x": 1})]


def test_what_works_again_is_told_once() -> None:
    workers = Workers()
    workers.broken["record"] = OSError(28, "full")
    workers.heals = True
    workers.run([RECORD], [RECORD, RECORD])
    assert [type(event).__name__ for event in workers.heard] == ["Failed", "Worked"]


def test_a_request_that_fails_carries_its_number() -> None:
    workers = Workers()
    workers.broken["read_config"] = PenstockError("gone")
    workers.run([effects.ReadConfig(9)])
    [failed] = workers.heard
    assert isinstance(failed, events.Failed)
    assert failed.request == 9


def test_the_journal_is_one_safe_line(capsys: pytest.CaptureFixture[str]) -> None:
    Workers().run([effects.Journal("error", "a\x1b[31mb")])
    assert capsys.readouterr().err == "penstock: error: a\\x1b[31mb\n"


def test_the_journal_gets_records(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(systemd, "tell", lambda *args: told.append(args))
    monkeypatch.setattr(systemd, "send", lambda *args: told.append(args))
    block = effects.Journal("notice", "denied: a", "denied", {"WORKLOAD": "a"})
    Workers().run([effects.Journal("info", "b\x1b", "applied"), effects.TellBlocks((block, block))])
    fields = {"MESSAGE": "b\\x1b", "MESSAGE_ID": MESSAGE_IDS["applied"], "PENSTOCK_EVENT": "applied"}
    assert told == [("info", "b\\x1b", fields), *[("notice", record(block))] * 2]


def test_metrics_and_a_journal_that_takes_none_stop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(systemd, "send", full)
    workers = Workers()
    workers.broken["write_metrics"] = OSError(28, "No space left on device", "/run")
    line = effects.Journal("notice", "x")
    workers.run([effects.WriteMetrics(b"x"), effects.TellBlocks((line,)), ANSWER])
    failed = [(event.effect, event.error) for event in workers.heard if isinstance(event, events.Failed)]
    assert failed == [
        ("WriteMetrics", "/run: No space left on device"),
        ("TellBlocks", "Resource temporarily unavailable"),
    ]
    assert workers.told == [(5, {"x": 1})]


def test_a_policy_is_compiled_beside_the_files_and_the_rest_is_passed_on() -> None:
    workers = Workers()
    todo: list[Effect] = [
        effects.Compile(4, Policy(), Live(now(), {}, 1)),
        effects.Refuse(1, "m", "h"),
        effects.Quit(1, "bye"),
    ]
    workers.run(todo, [])
    assert workers.calls == ["compile"]
    assert workers.told == [(1, "m", "h"), (1, "bye")]
